from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.errors import UsageError
from deepreduce.private.ring import (
    MAX_RING_BITS,
    ExactConvolution,
    ExactMatrix,
    available_backends,
    default_backend,
    products,
    random_words,
)


def needs(backend: products.Name) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        backend not in available_backends(), reason=f"the kernel was not built, or this processor has no {backend}"
    )


BACKENDS = [pytest.param("avx512", marks=needs("avx512")), pytest.param("fma", marks=needs("fma")), "torch"]
ARITHMETICS = [pytest.param(0, marks=needs("avx512"), id="words"), pytest.param(27, marks=needs("fma"), id="limbs")]


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


def wrapping_convolution(
    x: np.ndarray, w: np.ndarray, stride: tuple[int, int], padding: int, groups: int
) -> np.ndarray:
    """Convolve in numpy's 64-bit words, which wrap."""
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], axis=(2, 3))[
        :, :, :: stride[0], :: stride[1]
    ]
    parts = zip(np.split(windows, groups, axis=1), np.split(w.view(np.uint64), groups), strict=True)
    return np.concatenate([np.einsum("nihwab,oiab->nohw", part, own) for part, own in parts], axis=1)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_convolutions_against_python_integers(backend: products.Name, data: st.DataObject) -> None:
    draw = data.draw
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    out_group = draw(st.sampled_from([1, 2, 5, 17]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = tuple(draw(st.integers(-1, 2)) for _ in range(4))
    bits = draw(st.sampled_from([1, 8, 28, 41, 59, MAX_RING_BITS]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    largest = 1 << draw(st.integers(1, 30))
    w = rng.integers(-largest, largest, (groups * out_group, per_group, *kernel))
    x = random_words((2, groups * per_group, 8, 7), bits)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    got = ExactConvolution(w, **geometry, backend=backend)(x, bits)
    expected = plain_convolution(x.astype(object), w, stride, padding, dilation, groups) % (1 << bits)
    assert np.array_equal(got.astype(object), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [14, 20])
@pytest.mark.parametrize("bits", [25, 32, 33, 62])
@pytest.mark.parametrize(
    ("images", "inputs", "outputs", "side", "kernel", "stride", "groups"),
    [
        (1, 3, 64, 32, 3, 1, 1),
        (2, 70, 40, 9, 3, 2, 1),
        (1, 32, 100, 4, 3, 1, 1),
        (3, 24, 16, 5, 1, 1, 1),
        (5, 300, 10, 1, 1, 1, 1),
        (2, 36, 36, 12, 3, 1, 36),
        (1, 8, 4, 20, 5, 2, 2),
        (2, 40, 60, 7, 3, 1, 2),
    ],
)
def test_layers_of_all_shapes_against_words_that_wrap(
    images: int, inputs: int, outputs: int, side: int, kernel: int, stride: int, groups: int, bits: int, size: int,
    backend: products.Name,
) -> None:  # fmt: skip
    """As large as the kernel's blocks of channels and positions and beyond, with weights of both widths."""
    rng = np.random.default_rng(outputs + bits)
    w = rng.integers(-(1 << size), 1 << size, (outputs, inputs // groups, kernel, kernel))
    x = random_words((images, inputs, side, side), bits)
    around = kernel // 2
    convolution = ExactConvolution(w, stride=(stride, stride), padding=(around,) * 4, groups=groups, backend=backend)
    expected = wrapping_convolution(x, w, (stride, stride), around, groups) & np.uint64((1 << bits) - 1)
    assert np.array_equal(convolution(x, bits), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_elements_of_a_larger_ring_are_reduced(backend: products.Name) -> None:
    w = np.random.default_rng(0).integers(-9000, 9000, (20, 6, 3, 3))
    x = random_words((1, 6, 8, 8), 62)
    convolution = ExactConvolution(w, backend=backend)
    for bits in (20, 32, 45):
        assert np.array_equal(convolution(x, bits), convolution(x & np.uint64((1 << bits) - 1), bits))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_image_gives_none(backend: products.Name) -> None:
    assert ExactConvolution(np.ones((4, 2, 3, 3), np.int64), backend=backend)(
        np.zeros((0, 2, 8, 8), np.uint64), 30
    ).shape == (0, 4, 6, 6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [2, 30, 52, 62])
def test_products_are_exact_at_the_bound(bits: int, backend: products.Name) -> None:
    """All elements and weights at their extremes, so that partial sums reach the largest magnitude."""
    for weight in (1, (1 << 20) - 1, 1 << 20):
        w = np.full((2, 300), weight, dtype=np.int64)
        w[1] *= -1
        matrix = ExactMatrix(w, backend=backend)
        for element in (1 << (bits - 1), (1 << (bits - 1)) - 1, (1 << bits) - 1):
            x = np.full((1, 300), element, dtype=np.uint64)
            expected = [300 * weight * element % (1 << bits), -300 * weight * element % (1 << bits)]
            assert matrix(x, bits)[0].tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
@given(st.integers(1, 62), st.integers(1, 30), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_matrices_against_python_integers(backend: products.Name, bits: int, inputs: int, size: int) -> None:
    rng = np.random.default_rng(bits * 31 + inputs)
    w = rng.integers(-(1 << size), 1 << size, (3, inputs))
    x = random_words((2, inputs), bits)
    expected = x.astype(object) @ w.T.astype(object) % (1 << bits)
    assert np.array_equal(ExactMatrix(w, backend=backend)(x, bits).astype(object), expected)


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


def test_the_compiled_kernel_is_the_default_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_backend() == available_backends()[0]
    assert available_backends()[-1] == "torch"
    monkeypatch.setattr("deepreduce.private.ring._backends._kernel", None)
    assert available_backends() == ("torch",)
    with pytest.raises(UsageError, match="build the kernel"):
        ExactMatrix(np.ones((1, 1), np.int64), backend="avx512")
    assert ExactMatrix(np.full((1, 1), 3))(np.array([[5]], np.uint64), 4).tolist() == [[15]]


@needs("fma")
@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize(
    ("limb_bits", "largest", "inputs"),
    [(4, 900, 2800), (4, 900, 3), (6, 900, 700), (13, 900, 9), (27, 5, 2800), (53, 1, 1)],
)
@pytest.mark.parametrize("bits", [1, 33, 62])
def test_any_number_of_limbs(limb_bits: int, largest: int, inputs: int, groups: int, bits: int) -> None:
    """From one to sixteen, of as many inputs as fill a panel; more limbs than a panel has columns for one place."""
    rng = np.random.default_rng(bits)
    w = rng.integers(-largest, largest + 1, (groups * 3, inputs, 1, 1))
    x = random_words((2, groups * inputs, 1, 3), bits)
    product = products._Compiled(
        w.astype(np.int16), products._Geometry((1, 1), (0, 0, 0, 0), (1, 1), groups), limb_bits
    )
    expected = wrapping_convolution(x, w, (1, 1), 0, groups) & np.uint64((1 << bits) - 1)
    assert np.array_equal(product(x, bits), expected)


SHAPE = {
    "images": 1, "channels": 40, "height": 6, "width": 6, "outputs": 20, "rows": 4, "columns": 4,
    "kernel_height": 3, "kernel_width": 3, "stride_down": 1, "stride_right": 1, "dilation_down": 1,
    "dilation_right": 1, "top": 0, "left": 0, "groups": 1, "bits": 40, "weight_bytes": 2, "limb_bits": 0,
}  # fmt: skip


@pytest.mark.parametrize("limb_bits", ARITHMETICS)
@pytest.mark.parametrize("bits", [30, 50])
@pytest.mark.parametrize("groups", [1, 2, 20])
def test_threads_change_nothing(groups: int, bits: int, limb_bits: int) -> None:
    from deepreduce.private.ring import _kernel

    rng = np.random.default_rng(1)
    shape = SHAPE | {"groups": groups, "bits": bits, "images": 3, "limb_bits": limb_bits}
    x = random_words((3, 40, 6, 6), bits)
    taps = 40 // groups * 9
    weights = rng.integers(-9000, 9000, (groups * (1 if groups == 20 else -(-20 // groups // 16) * 16) * taps,))
    found = []
    for threads in (1, 2, 3, 7, 64):
        out = np.full((3, 20, 4, 4), 7, np.uint64)
        _kernel.convolve(x, weights.astype(np.int16), out, tuple(shape.values()), threads, groups == 20)
        found.append(out)
    assert all(np.array_equal(out, found[0]) for out in found)


@pytest.mark.parametrize("limb_bits", ARITHMETICS)
@pytest.mark.parametrize(
    "changed",
    [
        {"images": 0}, {"images": 2}, {"channels": 41}, {"height": 7}, {"width": 1 << 40}, {"outputs": 40}, {"rows": 5},
        {"columns": -1}, {"kernel_height": 4}, {"kernel_width": 1 << 23, "kernel_height": 1 << 23}, {"stride_down": 0},
        {"dilation_right": -1}, {"groups": 3}, {"bits": 0}, {"bits": 65}, {"weight_bytes": 4}, {"weight_bytes": 3},
        {"limb_bits": -1}, {"limb_bits": 3}, {"limb_bits": 54},
        {"top": 1 << 26}, {"left": -(1 << 62)}, {"stride_down": 1 << 26, "dilation_down": 1 << 26, "rows": 1 << 26},
    ],
)  # fmt: skip
def test_the_kernel_refuses_sizes_that_do_not_match(changed: dict[str, int], limb_bits: int) -> None:
    from deepreduce.private.ring import _kernel

    x, weights, out = np.zeros(40 * 36, np.uint64), np.zeros(32 * 360, np.int16), np.zeros(20 * 16, np.uint64)
    good = SHAPE | {"limb_bits": limb_bits}
    _kernel.convolve(x, weights, out, tuple(good.values()), 1, False)
    with pytest.raises(ValueError, match="match the buffers"):
        _kernel.convolve(x, weights, out, tuple((good | changed).values()), 1, False)
    for threads in (0, 257):
        with pytest.raises(ValueError, match="match the buffers"):
            _kernel.convolve(x, weights, out, tuple(good.values()), threads, False)


@pytest.mark.parametrize("limb_bits", ARITHMETICS)
def test_what_lies_outside_the_input_is_zero(limb_bits: int) -> None:
    """Geometry that leads far outside reads zeros, and nothing else."""
    from deepreduce.private.ring import _kernel

    x, weights = np.ones((1, 40, 6, 6), np.uint64), np.ones(32 * 360, np.int16)
    for top, left, strides in ((100, 0, 1), (0, -100, 1), (-6, 3, 2), (5, 5, 1000)):
        out = np.full((1, 20, 4, 4), 7, np.uint64)
        shape = SHAPE | {
            "top": top,
            "left": left,
            "stride_down": strides,
            "stride_right": strides,
            "limb_bits": limb_bits,
        }
        _kernel.convolve(x, weights, out, tuple(shape.values()), 1, False)
        place = np.zeros((4, 4), np.uint64)
        for i in range(4):
            for j in range(4):
                seen = [
                    (i * strides + a - top, j * strides + b - left)
                    for a in range(3) for b in range(3)
                ]  # fmt: skip
                place[i, j] = 40 * sum(0 <= y < 6 and 0 <= z < 6 for y, z in seen)
        assert np.array_equal(out, np.broadcast_to(place, out.shape))


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_threads_than_the_kernel_starts(backend: products.Name, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "threads", lambda: 300)
    monkeypatch.setattr(products, "_THREAD_MACS", 1)
    w = np.random.default_rng(0).integers(-900, 900, (64, 8, 3, 3))
    x = random_words((1, 8, 20, 20), 40)
    found = ExactConvolution(w, backend=backend)(x, 40)
    assert np.array_equal(found, wrapping_convolution(x, w, (1, 1), 0, 1) & np.uint64((1 << 40) - 1))


def test_a_backend_that_is_not_there_is_refused_for_any_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepreduce.private.ring._backends._kernel", None)
    with pytest.raises(UsageError, match="build the kernel"):
        ExactMatrix(np.full((1, 1), 1 << 40), backend="avx512")
