from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.private.homomorphic import Layer, Plan, plan_layer
from deepreduce.private.homomorphic.errors import LayerError
from deepreduce.private.homomorphic.packing import spread
from deepreduce.private.homomorphic.tiling import DEGREE, MAX_PLANNING, _tilings, check_planning

from .exact import CALM, RESNET18, convolve, layer, negacyclic, network_layers


def through_polynomials(plan: Plan, values, weights):
    """Run a layer as the engine does, with integers in place of ciphertexts."""
    inputs = plan.encode_input(values.astype(np.uint64)).view(np.int64)
    outputs = np.full(plan.layer.outputs, -(1 << 62), np.int64)
    for answer in range(plan.answers):
        group_tile, channel_tile, band = plan.answer_place(answer)
        polynomials = plan.encode_weights(weights, group_tile, channel_tile)
        total = np.zeros(plan.degree, np.int64)
        for plane_tile, polynomial in enumerate(polynomials):
            total += negacyclic(inputs[plan.request_of(group_tile, plane_tile, band)], polynomial)
        places, indices = plan.results[answer]
        assert places.size == plan.result_count(answer)
        assert (np.diff(places) > 0).all()
        assert np.abs(polynomials).astype(bool).sum() <= plan.weights_per_answer
        outputs[indices] = total[places]
    return outputs.reshape(plan.layer.out_shape).view(np.uint64)


def check(plan: Plan, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 1 << 40, plan.layer.in_shape, dtype=np.uint64)
    weights = rng.integers(-128, 128, plan.layer.weight_shape)
    assert np.array_equal(through_polynomials(plan, values, weights), convolve(plan.layer, values, weights))


def test_example_a_small_convolution() -> None:
    plan = plan_layer(layer(4, 6, 8), degree=512)
    # 8 x 8 with one shared row and column of zeros: 81 coefficients a plane, six planes in 512.
    assert (plan.pitch, plan.tiling.planes * plan.tiling.channels) == (81, 6)
    check(plan)


@st.composite
def layers(draw) -> Layer:
    groups = draw(st.integers(1, 6))
    kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    size = [draw(st.integers(max(1, k - 2 * p), 16)) for k, p in zip(kernel, padding, strict=True)]
    return Layer(
        groups * draw(st.integers(1, 5)),
        groups * draw(st.integers(1, 5)),
        *size,
        kernel,
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding,
        groups,
    )


@settings(CALM, max_examples=40)
@given(layers(), st.sampled_from([512, 1024]), st.integers(0, 1 << 32))
def test_every_shape_is_exact(shape: Layer, degree: int, seed: int) -> None:
    check(plan_layer(shape, degree=degree), seed)


@settings(CALM, max_examples=40)
@given(layers(), st.sampled_from([256, 512]), st.data())
def test_every_tiling_is_exact_not_only_the_cheapest(shape: Layer, degree: int, data) -> None:
    tilings = list(_tilings(shape, degree))
    if tilings:
        check(Plan(shape, data.draw(st.sampled_from(tilings)), degree))


@settings(CALM, max_examples=25)
@given(layers(), st.data())
def test_the_tightest_degree_is_exact(shape: Layer, data) -> None:
    """A polynomial cut off right after the last result wraps most; its degree need not be a power of two here."""
    tilings = list(_tilings(shape, 512))
    if tilings:
        loose = Plan(shape, data.draw(st.sampled_from(tilings)), 512)
        check(Plan(shape, loose.tiling, loose._end))


@pytest.mark.parametrize(
    "shape",
    [
        layer(16, 16, 32, groups=16),
        layer(16, 16, 32, stride=2, groups=16),
        layer(48, 48, 8, groups=48),
        layer(4, 4, 64, 7),
        layer(2, 2, 64, 3, groups=2),
        layer(3, 8, 64, 7, 2),
        layer(20, 30, 1, 1),
        Layer.linear(700, 33),
        Layer(6, 4, 5, 9, (3, 1), (1, 2), (2, 0), 2),
        layer(40, 40, 2),
    ],
    ids=str,
)
def test_shapes_of_networks_at_full_degree(shape: Layer) -> None:
    check(plan_layer(shape))


def test_spread_numbers_have_no_three_equally_spaced() -> None:
    found = spread(400)
    assert found[:9] == [0, 1, 3, 4, 9, 10, 12, 13, 27]
    assert not any(2 * b - a in found for a in found for b in found if a < b)


def test_depthwise_layers_are_not_wasteful() -> None:
    """A grid of all pairs would hold 2 and 5 channels where 3 and 8 fit."""
    plan = plan_layer(layer(96, 96, 32, groups=96))
    assert (plan.requests, plan.answers, plan.products) == (32, 32, 32)
    plan = plan_layer(layer(128, 128, 16, groups=128))
    assert (plan.requests, plan.answers, plan.products) == (16, 16, 16)


def test_a_stride_does_not_waste_ciphertexts() -> None:
    shape = layer(64, 128, 32, stride=2)
    chosen = plan_layer(shape)
    unsplit = [Plan(shape, tiling, DEGREE) for tiling in _tilings(shape, DEGREE) if tiling.split == (False, False)]
    assert chosen.tiling.split == (True, True)
    assert chosen.requests + chosen.answers < min(plan.requests + plan.answers for plan in unsplit)
    # A 1x1 convolution of stride 2 sends a quarter of its input.
    plan = plan_layer(layer(64, 128, 32, 1, 2))
    assert (plan.sources >= 0).sum() == 64 * 16 * 16


@settings(CALM, max_examples=40)
@given(layers(), st.sampled_from([256, 8192]))
def test_planning_is_never_more_than_was_said(shape: Layer, degree: int) -> None:
    tilings = list(_tilings(shape, degree))
    axes = {(tiling.split, tiling.rows): Plan(shape, tiling, degree).rows for tiling in tilings}
    bands = sum(axis.phases * axis.bands for axis in axes.values())
    assert len(tilings) + bands <= check_planning([shape], degree=degree) <= 20 * (len(tilings) + bands) + 1000


def test_no_network_comes_near_the_bound_on_planning() -> None:
    for name in ("resnet18", "mobilenet_v1", "vgg16", "wide_resnet_22_8"):
        shapes = network_layers(name)
        assert check_planning(shapes * 2) == check_planning(shapes) < MAX_PLANNING // 100
    wide = [layer(2048, 2048, side, stride=stride, groups=2) for side in (7, 14, 28) for stride in (1, 2)]
    assert check_planning(wide) < MAX_PLANNING // 7


def test_layers_that_would_take_hours_to_plan_are_refused_at_once() -> None:
    tall = [Layer(1, 1, 60_000, 1, (3, 1), (1, 1), (padding, 0)) for padding in range(2)]
    grouped = [Layer(4096, 4096 - 2 * less, 2, 2, (2, 2), (2, 2), (0, 0), 2) for less in range(20)]
    for shapes in (tall, grouped):
        check_planning(shapes[:1])
        with pytest.raises(LayerError, match=r"cut in at most 524,288 ways together. Got: .*Layer.* Do: give grouped"):
            check_planning(shapes)


def test_counts_of_resnet18() -> None:
    """Pinned: a change of the tiling is a change of the protocol's cost."""
    plans = [(plan_layer(shape), count) for _, shape, count in RESNET18]
    assert sum(plan.requests * count for plan, count in plans) == 460
    assert sum(plan.answers * count for plan, count in plans) == 566
    assert sum(plan.products * count for plan, count in plans) == 13_707


def test_the_choice_is_deterministic() -> None:
    first = plan_layer(layer(64, 64, 32))
    plan_layer.cache_clear()
    assert plan_layer(layer(64, 64, 32)) == first
    assert plan_layer(layer(64, 64, 32)).digest == first.digest
    assert plan_layer(layer(64, 65, 32)).digest != first.digest


@pytest.mark.parametrize(
    "wrong",
    [
        {"in_channels": 0},
        {"groups": 3},
        {"kernel": (9, 9)},
        {"stride": (0, 1)},
        {"padding": (-1, 0)},
        {"height": 1 << 17},
        {"kernel": (1, 1, 1)},
    ],
)
def test_layers_without_meaning_are_refused(wrong) -> None:
    with pytest.raises(LayerError, match="Do:"):
        Layer(**{"in_channels": 4, "out_channels": 4, "height": 8, "width": 8} | wrong)


def test_a_map_wider_than_a_polynomial_is_refused() -> None:
    with pytest.raises(LayerError, match="One output row"):
        plan_layer(Layer(1, 1, 4, 600, (3, 3)), degree=512)
    with pytest.raises(LayerError, match="must fit"):
        Plan(layer(4, 4, 32), plan_layer(layer(4, 4, 32)).tiling, 1024)


def test_wrong_shapes_are_refused() -> None:
    plan = plan_layer(layer(4, 4, 8))
    with pytest.raises(LayerError, match="input"):
        plan.encode_input(np.zeros((4, 8, 9), np.uint64))
    with pytest.raises(LayerError, match="weights"):
        plan.encode_weights(np.zeros((4, 4, 3, 2), np.int64), 0, 0)
