from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.errors import UsageError
from deepreduce.private.ring import MAX_RING_BITS, ExactConvolution, ExactMatrix, random_words


def plain_convolution(
    x: np.ndarray,
    w: np.ndarray,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> np.ndarray:
    """Convolve Python integers, by the definition."""
    top, bottom, left, right = padding
    n, _, height, width = x.shape
    padded = np.zeros(
        (n, x.shape[1], height + max(0, top) + max(0, bottom), width + max(0, left) + max(0, right)), object
    )
    padded[:, :, max(0, top) : max(0, top) + height, max(0, left) : max(0, left) + width] = x
    padded = padded[
        :, :, max(0, -top) : padded.shape[2] - max(0, -bottom), max(0, -left) : padded.shape[3] - max(0, -right)
    ]
    outputs, per_group, kh, kw = w.shape
    rows = (padded.shape[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (padded.shape[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((n, outputs, rows, columns), object)
    for o in range(outputs):
        first = o // (outputs // groups) * per_group
        for i in range(kh):
            for j in range(kw):
                part = padded[
                    :,
                    first : first + per_group,
                    i * dilation[0] : i * dilation[0] + (rows - 1) * stride[0] + 1 : stride[0],
                    j * dilation[1] : j * dilation[1] + (columns - 1) * stride[1] + 1 : stride[1],
                ]
                out[:, o] += (part * w[o, :, i, j].astype(object)[None, :, None, None]).sum(axis=1)
    return out


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_convolutions_against_python_integers(data: st.DataObject) -> None:
    draw = data.draw
    groups, per_group, out_group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = tuple(draw(st.integers(-1, 2)) for _ in range(4))
    bits = draw(st.sampled_from([1, 8, 28, 41, 59, MAX_RING_BITS]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    largest = 1 << draw(st.integers(1, 30))
    w = rng.integers(-largest, largest, (groups * out_group, per_group, *kernel))
    x = random_words((2, groups * per_group, 8, 7), bits)
    got = ExactConvolution(w, stride=stride, padding=padding, dilation=dilation, groups=groups)(x, bits)
    expected = plain_convolution(x.astype(object), w, stride, padding, dilation, groups) % (1 << bits)
    assert np.array_equal(got.astype(object), expected)


@pytest.mark.parametrize("bits", [2, 30, 52, 62])
def test_products_are_exact_at_the_bound(bits: int) -> None:
    """All elements and weights at their extremes, so that partial sums reach the largest magnitude."""
    for weight in (1, (1 << 20) - 1, 1 << 20):
        w = np.full((2, 300), weight, dtype=np.int64)
        w[1] *= -1
        matrix = ExactMatrix(w)
        for element in (1 << (bits - 1), (1 << (bits - 1)) - 1, (1 << bits) - 1):
            x = np.full((1, 300), element, dtype=np.uint64)
            expected = [300 * weight * element % (1 << bits), -300 * weight * element % (1 << bits)]
            assert matrix(x, bits)[0].tolist() == expected


@given(st.integers(1, 62), st.integers(1, 30), st.integers(1, 24))
@settings(max_examples=40, deadline=None)
def test_matrices_against_python_integers(bits: int, inputs: int, size: int) -> None:
    rng = np.random.default_rng(bits * 31 + inputs)
    w = rng.integers(-(1 << size), 1 << size, (3, inputs))
    x = random_words((2, inputs), bits)
    expected = x.astype(object) @ w.T.astype(object) % (1 << bits)
    assert np.array_equal(ExactMatrix(w)(x, bits).astype(object), expected)


def test_a_product_is_linear_over_shares() -> None:
    w = np.random.default_rng(0).integers(-2000, 2000, (4, 3, 3, 3))
    convolution = ExactConvolution(w, padding=(1, 1, 1, 1))
    x, client = random_words((1, 3, 6, 6), 33), random_words((1, 3, 6, 6), 33)
    mask = np.uint64((1 << 33) - 1)
    both = (convolution((x - client) & mask, 33) + convolution(client, 33)) & mask
    assert np.array_equal(both, convolution(x, 33))


def test_weights_beyond_exactness_are_refused() -> None:
    with pytest.raises(UsageError, match="fewer weight bits"):
        ExactMatrix(np.full((1, 2), 1 << 49))
