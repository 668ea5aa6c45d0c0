"""The steps of a program as layers: every padding, stride and dilation against the program's own convolution."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.private.homomorphic import (
    Answer,
    Keys,
    LayerError,
    Parameters,
    PublicKey,
    Request,
    StepPlan,
    choose_parameters,
    draw_share,
    generate_keys,
    plan_step,
    prepare_weights,
    receive,
    request,
    respond,
)
from deepreduce.private.homomorphic.layer import Layer
from deepreduce.private.program import Convolution, Matrix
from deepreduce.private.ring import ExactConvolution, ExactMatrix, random_words, reduce

from .exact import CALM, convolve

RINGS = [(27, (56, 56)), (34, (60, 60)), (44, (56, 40, 40)), (59, (60, 48, 48)), (59, (60, 60, 60))]
WEIGHT_BITS = 8


@pytest.fixture(scope="module", params=RINGS, ids=str)
def keys(request: pytest.FixtureRequest) -> Keys:
    return generate_keys(Parameters(*request.param))


def exact(op: Convolution | Matrix, weights: np.ndarray, x: np.ndarray, bits: int) -> np.ndarray:
    """Compute a step as the twin does."""
    if isinstance(op, Matrix):
        return ExactMatrix(weights)(x[None], bits)[0]
    geometry = {"stride": op.stride, "padding": op.padding, "dilation": op.dilation, "groups": op.groups}
    return ExactConvolution(weights, **geometry)(x[None], bits)[0]


def some_weights(op: Convolution | Matrix, seed: int = 0) -> np.ndarray:
    limit = 1 << (WEIGHT_BITS - 1)
    return np.random.default_rng(seed).integers(-limit, limit, op.weight_shape)


def plan_of(op: Convolution | Matrix, in_shape: tuple[int, ...]) -> StepPlan:
    out = exact(op, some_weights(op), np.zeros(in_shape, np.uint64), 27).shape
    return plan_step(op, in_shape, out)


def check_layer(op: Convolution | Matrix, in_shape: tuple[int, ...], seed: int = 0) -> StepPlan:
    """Compare step and layer in the clear."""
    weights, x, step = some_weights(op, seed), random_words(in_shape, 59), plan_of(op, in_shape)
    y = convolve(step.plan.layer, step.fit_input(x[None]), step.fit_weights(weights))
    assert np.array_equal(reduce(step.fit_output(y)[0], 59), exact(op, weights, x, 59))
    return step


def check_private(keys: Keys, op: Convolution | Matrix, in_shape: tuple[int, ...]) -> None:
    """Run a step under encryption, all messages as bytes."""
    parameters, bits, weights = keys.parameters, keys.parameters.ring_bits, some_weights(op)
    step = plan_of(op, in_shape)
    prepared = prepare_weights(parameters, step.plan, step.fit_weights(weights), weight_bits=WEIGHT_BITS)
    x = draw_share(parameters, in_shape)
    sent = request(keys, step.plan, step.fit_input(x[None])).to_bytes()
    public = PublicKey.from_bytes(parameters, PublicKey.of(keys).to_bytes())
    response = respond(prepared, public, Request.from_bytes(parameters, step.plan, sent))
    y = receive(keys, Answer.from_bytes(parameters, step.plan, response.answer.to_bytes()))
    total = reduce(step.fit_output(y)[0] + step.fit_output(response.share)[0], bits)
    assert np.array_equal(total, exact(op, weights, x, bits))


SHAPES = {
    "same": (Convolution((5, 4, 3, 3), padding=(1, 1, 1, 1)), (4, 8, 8)),
    "stride 2, padded on one side": (Convolution((5, 4, 3, 3), (2, 2), (0, 1, 0, 1)), (4, 8, 8)),
    "padded above more": (Convolution((3, 2, 3, 3), padding=(2, 0, 1, 0)), (2, 7, 9)),
    "cut": (Convolution((3, 2, 3, 3), padding=(-1, -2, 1, -1)), (2, 9, 9)),
    "cut on one side, padded on the other": (Convolution((3, 2, 3, 2), (1, 2), (-2, 3, 2, -1)), (2, 9, 9)),
    "dilated": (Convolution((3, 2, 3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)), (2, 9, 9)),
    "dilated unevenly": (Convolution((3, 2, 2, 3), (1, 2), (2, 0, 0, 1), (3, 1)), (2, 9, 10)),
    "dilated as far as the stride": (Convolution((3, 2, 2, 3), (2, 4), (1, 2, 3, 0), (2, 6)), (2, 9, 17)),
    "depthwise": (Convolution((6, 1, 3, 3), (2, 2), (1, 0, 1, 0), groups=6), (6, 8, 8)),
    "grouped 1x1": (Convolution((6, 2, 1, 1), (2, 2), groups=3), (6, 8, 7)),
    "large stride": (Convolution((3, 2, 2, 2), (5, 4), (1, 0, 0, 2)), (2, 17, 15)),
    "one pixel": (Convolution((7, 9, 3, 3), padding=(1, 1, 1, 1)), (9, 1, 1)),
    "nothing but padding": (Convolution((3, 2, 1, 1), (9, 9), (3, 0, 3, 0)), (2, 1, 1)),
    "matrix": (Matrix((10, 300)), (300,)),
}


def test_example_a_step_of_a_program(keys: Keys) -> None:
    check_private(keys, *SHAPES["stride 2, padded on one side"])


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_exact_under_encryption(name: str, keys: Keys) -> None:
    check_private(keys, *SHAPES[name])


@st.composite
def convolutions(draw) -> tuple[Convolution, tuple[int, int, int]]:
    groups, per_group, more = (draw(st.integers(1, 3)) for _ in range(3))
    kernel, stride, dilation = (draw(st.tuples(st.integers(1, 4), st.integers(1, 4))) for _ in range(3))
    sides, padding = [], []
    for k, d in zip(kernel, dilation, strict=True):
        size = draw(st.integers(1, 12))
        before = draw(st.integers(1 - size, 6))
        after = draw(st.integers(max(1 - size - min(0, before), d * (k - 1) + 1 - size - before), 14))
        sides.append(size)
        padding += [before, after]
    op = Convolution((groups * more, per_group, *kernel), stride, tuple(padding), dilation, groups)
    return op, (groups * per_group, *sides)


@settings(CALM, max_examples=300)
@given(convolutions(), st.integers(0, 1 << 32))
def test_every_geometry_is_exact_in_the_clear(case, seed: int) -> None:
    check_layer(*case, seed)


@settings(CALM, max_examples=12)
@given(convolutions())
def test_every_geometry_is_exact_under_encryption(keys: Keys, case) -> None:
    check_private(keys, *case)


def test_a_layer_with_equal_padding_is_taken_as_it_is() -> None:
    for op, shape in ((SHAPES["same"]), (Convolution((8, 4, 3, 3), (2, 2), (1, 1, 1, 1)), (4, 16, 16))):
        step, x = check_layer(op, shape), random_words(shape, 59)
        assert step.plan.layer == Layer(4, op.weight_shape[0], *shape[1:], (3, 3), op.stride, (1, 1))
        assert np.shares_memory(step.fit_input(x[None]), x)


def test_padding_on_one_side_is_shared_where_a_stride_hides_the_other() -> None:
    """Windows that leave the last row unread do as well with a row of zeros after it."""
    step = check_layer(Convolution((8, 4, 3, 3), (2, 2), (1, 0, 1, 0)), (4, 16, 16))
    assert step.plan.layer == Layer(4, 8, 16, 16, (3, 3), (2, 2), (1, 1))


@pytest.mark.parametrize(
    "op,in_shape,side,kernel",
    [
        (Convolution((8, 4, 1, 1), (2, 2)), (4, 16, 16), 8, 1),
        (Convolution((8, 4, 1, 1), (7, 7), (0, 3, 0, 3)), (4, 16, 16), 3, 1),
        (Convolution((8, 4, 3, 3), (2, 2), (2, 2, 2, 2), (2, 2)), (4, 16, 16), 8, 3),
        (Convolution((8, 4, 3, 3), (1, 1), (0, 0, 0, 0), (4, 4)), (4, 9, 9), 3, 3),
        (Convolution((8, 4, 3, 3), padding=(1, 1, 1, 1)), (4, 1, 1), 1, 1),
        (Convolution((8, 4, 5, 5), padding=(2, 2, 2, 2)), (4, 2, 2), 2, 3),
        (Convolution((8, 4, 3, 3), padding=(-4, -4, -4, -4)), (4, 16, 16), 8, 3),
    ],
    ids=["1x1 stride 2", "1x1 stride 7", "stride and dilation", "one window", "one pixel", "four pixels", "cut"],
)
def test_what_is_not_read_is_not_sent(op: Convolution, in_shape: tuple[int, int, int], side: int, kernel: int) -> None:
    layer = check_layer(op, in_shape).plan.layer
    assert layer.in_shape == (4, side, side)
    assert layer.kernel == (kernel, kernel)


def test_wrong_shapes_are_refused() -> None:
    op, in_shape = SHAPES["same"]
    step = plan_of(op, in_shape)
    with pytest.raises(LayerError, match="input of the step"):
        step.fit_input(np.zeros((1, 4, 8, 9), np.uint64))
    with pytest.raises(LayerError, match="weights of the step"):
        step.fit_weights(np.zeros((5, 4, 3, 2), np.int64))
    with pytest.raises(LayerError, match="output of the layer"):
        step.fit_output(np.zeros((5, 64), np.uint64))
    for wrong_in, wrong_out in (
        ((3, 8, 8), (5, 8, 8)),
        ((4, 64), (5, 8, 8)),
        (in_shape, (5, 8, 7)),
        (in_shape, (320,)),
    ):
        with pytest.raises(LayerError, match="Do:"):
            plan_step(op, wrong_in, wrong_out)
    with pytest.raises(LayerError, match="fit into the padded map"):
        plan_step(Convolution((5, 4, 3, 3), padding=(-3, -3, 0, 0)), (4, 8, 8), (5, 0, 6))
    with pytest.raises(LayerError, match="input of the matrix"):
        plan_step(Matrix((3, 4)), (4, 1, 1), (3,))
    with pytest.raises(LayerError, match="output of the step"):
        plan_step(Matrix((3, 4)), (4,), (4,))


def test_the_room_does_not_bring_the_program_room_along() -> None:
    """Worker processes import it; PyTorch would cost each of them seconds and memory."""
    script = "import sys, deepreduce.private.homomorphic\nassert 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_one_set_of_parameters_for_rings_of_several_sizes() -> None:
    """A share mod 2^k is one mod 2^K for any K >= k: the result, taken mod 2^k, is the same."""
    steps = {bits: plan_of(*SHAPES[name]) for bits, name in ((20, "same"), (51, "cut"))}
    parameters = choose_parameters([step.plan for step in steps.values()], ring_bits=51, weight_bits=WEIGHT_BITS)
    keys = generate_keys(parameters)
    for bits, name in ((20, "same"), (51, "cut")):
        op, step = SHAPES[name][0], steps[bits]
        weights, x = some_weights(op), random_words(step.in_shape, bits)
        prepared = prepare_weights(parameters, step.plan, step.fit_weights(weights), weight_bits=WEIGHT_BITS)
        response = respond(prepared, PublicKey.of(keys), request(keys, step.plan, step.fit_input(x[None])))
        total = step.fit_output(receive(keys, response.answer))[0] + step.fit_output(response.share)[0]
        assert np.array_equal(reduce(total, bits), exact(op, weights, x, bits))
