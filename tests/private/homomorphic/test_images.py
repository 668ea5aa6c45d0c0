"""Several images in one ciphertext: packing, planning, the kernel's sums, and both ways to answer."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deepreduce.private.homomorphic import (
    Answer,
    Keys,
    Layer,
    PlainWeights,
    Plan,
    PublicKey,
    Request,
    choose_parameters,
    draw_share,
    generate_keys,
    plan_images,
    plan_layer,
    prepare_weights,
    receive,
    request,
    respond,
)
from deepreduce.private.homomorphic import _backends as backends
from deepreduce.private.homomorphic.arithmetic import arithmetic
from deepreduce.private.homomorphic.errors import LayerError
from deepreduce.private.homomorphic.noise import flood_bits_needed
from deepreduce.private.homomorphic.packing import Tiling
from deepreduce.private.homomorphic.taps import Gatherer
from deepreduce.private.homomorphic.tiling import MOST_SHARED, Prices, _shared

from .exact import CALM, RESNET18, convolve, layer, negacyclic
from .test_packing import layers

LARGEST_PRIME = 1152921504606830593

SHARING = Prices(product=1e3)
"""Products so dear that images always share where they can."""


def of_images(of: Layer, values: NDArray[np.uint64], weights: NDArray[np.int64]) -> NDArray[np.uint64]:
    return np.stack([convolve(of, one, weights) for one in values])


def through_taps(plan: Plan, values: NDArray[np.uint64], weights: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Run a layer as a server does, with integers in place of ciphertexts, weight by weight."""
    inputs = plan.encode_input(values).view(np.int64)
    taps, outputs = plan.taps, np.full(plan.outputs, -(1 << 62), np.int64)
    for answer in range(plan.answers):
        group, tile, band = plan.answer_place(answer)
        total = np.zeros(plan.degree, np.int64)
        for plane_tile, polynomial in enumerate(plan.encode_weights(weights, group, tile)):
            here = taps.tiles == plane_tile
            channel = tile * plan.tiling.channels + taps.channels[here]
            there = channel < plan.channels
            again = np.zeros(plan.degree, np.int64)
            flat = weights.reshape(len(weights), -1)
            places, sources = taps.exponents[here][there], taps.sources[here][there]
            np.add.at(again, places, flat[group * plan.channels + channel[there], sources])
            # Two taps may have one place where both meet zeros alone: for every output they lie in the padding.
            assert np.array_equal(again, polynomial) or np.unique(places).size < places.size
            total += negacyclic(inputs[plan.request_of(group, plane_tile, band)], again)
        places, indices = plan.results[answer]
        assert places.size == plan.result_count(answer) and (np.diff(places) > 0).all()
        outputs[indices] = total[places]
    return outputs.reshape(plan.out_shape).view(np.uint64)


def check(plan: Plan, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 1 << 40, plan.in_shape, dtype=np.uint64)
    weights = rng.integers(-128, 128, plan.layer.weight_shape)
    expected = of_images(plan.layer, values.reshape(-1, *plan.layer.in_shape), weights)
    assert np.array_equal(through_taps(plan, values, weights), expected.reshape(plan.out_shape))


# Plans


def test_example_images_fill_a_polynomial() -> None:
    shape = layer(4, 6, 8)
    (plan,) = plan_images(shape, 8, degree=1024, prices=SHARING)
    # A plane takes 81 of 1024 coefficients, so twelve blocks fit beside the border: of eight images one plane each.
    assert plan.tiling == Tiling(8, (False, False), 1, 1, images=8)
    assert (plan.requests, plan.answers, plan.in_shape, plan.out_shape) == (4, 6, (8, 4, 8, 8), (8, 6, 8, 8))
    check(plan, 0)


@settings(CALM, max_examples=60)
@given(layers(), st.sampled_from([256, 512, 1024]), st.data(), st.integers(0, 1 << 32))
def test_every_tiling_of_several_images_is_exact(shape: Layer, degree: int, data: Any, seed: int) -> None:
    images = data.draw(st.integers(2, 20))
    tilings = [tiling for tiling, _ in _shared(shape, images, degree, 100, 10_000, Prices())]
    if tilings:
        check(Plan(shape, data.draw(st.sampled_from(tilings)), degree), seed)


@settings(CALM, max_examples=60)
@given(layers(), st.integers(1, 40), st.sampled_from([Prices(), SHARING]))
def test_plans_are_for_as_many_images_and_never_dearer(shape: Layer, images: int, prices: Prices) -> None:
    single = plan_layer(shape, degree=512, prices=prices)
    plans = plan_images(shape, images, degree=512, prices=prices)
    assert sum(plan.tiling.images for plan in plans) == images
    assert sum(map(prices.of, plans)) <= images * prices.of(single) * (1 + 1e-9)
    for plan in plans:
        assert plan.weights_per_answer <= single.weights_per_answer
        assert plan.tiling.images == 1 or max(plan.requests, plan.answers) <= max(
            MOST_SHARED, single.requests, single.answers
        )
        if plan.tiling.images == 1:
            assert plan == single  # the only one of one image for which a server has weights


@pytest.mark.parametrize("images", [2, 5, 16, 64, 128])
def test_parameters_that_hide_the_weights_of_one_image_hide_those_of_several(images: int) -> None:
    for _, shape, _ in RESNET18:
        single = flood_bits_needed(plan_layer(shape), weight_bits=14, ring_bits=31)
        plans = plan_images(shape, images)
        assert all(flood_bits_needed(plan, weight_bits=14, ring_bits=31) <= single for plan in plans)


def test_the_more_together_the_fewer_ciphertexts_for_each() -> None:
    def each(images: int) -> float:
        plans = [(plan, count) for _, shape, count in RESNET18 for plan in plan_images(shape, images)]
        return sum((plan.requests + plan.answers) * count for plan, count in plans) / images

    counts = [each(images) for images in (1, 8, 32, 128)]
    assert counts == sorted(counts, reverse=True) and counts[-1] < counts[0] / 4


def test_groups_and_images_do_not_share_a_polynomial() -> None:
    shape = layer(8, 8, 4, groups=8)
    Plan(shape, Tiling(4, (False, False), 1, 1, 2), 512)
    Plan(shape, Tiling(4, (False, False), 1, 1, 1, 2), 512)
    for tiling in (Tiling(4, (False, False), 1, 1, 2, 2), Tiling(4, (False, False), 1, 1, 1, 0)):
        with pytest.raises(LayerError, match="fit into 512"):
            Plan(shape, tiling, 512)


# The kernel


def kernel() -> Any:
    if backends.kernel is None:
        pytest.skip("needs the compiled kernel")
    return backends.kernel


@settings(CALM, max_examples=60)
@given(st.data(), st.sampled_from([1, 4, 64]))
def test_the_kernel_multiplies_by_single_weights(data: Any, width: int) -> None:
    degree = data.draw(st.integers(1, 300))
    margin = data.draw(st.integers(0, degree))
    moduli = data.draw(st.lists(st.sampled_from([3, (1 << 48) - 59, LARGEST_PRIME]), min_size=1, max_size=3))
    terms, sums, count = data.draw(st.integers(1, 40)), 8 * data.draw(st.integers(1, 2)), 3
    largest = 1 << data.draw(st.sampled_from([1, 7, 12, 29, 31]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    primes = np.array(moduli, np.uint64)
    extreme = data.draw(st.booleans())

    def drawn(shape: tuple[int, ...], p: int) -> NDArray[np.uint64]:
        return np.full(shape, p - 1, np.uint64) if extreme else rng.integers(0, p, shape, np.uint64)

    words = np.ascontiguousarray(np.stack([drawn((count, 2, degree), p) for p in moduli], axis=2))
    out = np.ascontiguousarray(np.stack([drawn((sums, 2, degree), p) for p in moduli], axis=2))
    before = out.astype(object)
    weights = np.full((sums, terms), -largest) if extreme else rng.integers(-largest, largest, (sums, terms))
    places, exponents = rng.integers(0, count, terms), rng.integers(0, margin + 1, terms)

    spread = np.empty((count, 2, len(moduli), margin + degree), np.uint64)
    offsets = (places * spread[0].size + margin - exponents).astype(np.uint64)
    packed = np.ascontiguousarray(weights.astype(np.int32).reshape(-1, 8, terms).transpose(0, 2, 1))
    assert kernel().vectors(width) <= width
    try:
        kernel().spread(words, primes, degree, margin, spread)
        kernel().taps(spread, margin, offsets, packed, primes, out, degree)
    finally:
        kernel().vectors(64)
    total = before
    for term in range(terms):
        x, e = words[places[term]].astype(object), exponents[term]
        moved = np.concatenate([-x[..., degree - e :], x[..., : degree - e]], axis=-1)
        total = total + weights[:, term].astype(object)[:, None, None, None] * moved
    assert np.array_equal(out, total % primes.astype(object)[:, None])


def test_the_kernel_checks_every_size() -> None:
    primes, degree, margin = np.array([97, 101], np.uint64), 16, 5
    words, spread = np.zeros((3, 2, 2, degree), np.uint64), np.zeros((3, 2, 2, margin + degree), np.uint64)
    kernel().spread(words, primes, degree, margin, spread)
    for odd in ((words[:2], margin), (words, 4), (words, 17), (words, -1)):
        with pytest.raises(ValueError, match="sizes are in range"):
            kernel().spread(odd[0], primes, degree, odd[1], spread)
    offsets, weights = np.array([5, 84, 168 + 0], np.uint64), np.ones((1, 3, 8), np.int32)
    out = np.zeros((8, 2, 2, degree), np.uint64)
    good = (spread, margin, offsets, weights, primes, out, degree)
    kernel().taps(*good)
    for place, other in (
        (0, spread[:2]),  # an offset past the last ciphertext
        (1, 4),
        (2, np.array([6, 84, 168], np.uint64)),  # past the margin: it would read the next line
        (2, np.array([5, 84, 168 + 84], np.uint64)),
        (2, np.array([5, 84, 2**64 - 1], np.uint64)),
        (2, offsets[:2]),
        (3, weights[:, :2]),
        (3, np.ones((1, 3, 7), np.int32)),
        (4, np.array([97, 100], np.uint64)),
        (5, out[:7]),
        (5, out[:4]),
        (6, 15),
        (6, 0),
    ):
        with pytest.raises(ValueError, match="sizes are in range"):
            kernel().taps(*(other if number == place else one for number, one in enumerate(good)))
    both = np.zeros(8 * 2 * 2 * degree, np.uint64)  # what was checked would be overwritten
    with pytest.raises(ValueError, match="sizes are in range"):
        kernel().taps(spread, margin, both[:3], weights, primes, both, degree)


# Answers


SHAPES = [
    (layer(8, 8, 8), 12, 27),
    (layer(4, 6, 9, stride=2), 7, 40),
    (layer(8, 8, 8, stride=2, groups=8), 40, 31),
    (Layer(5, 7, 6, 9, (3, 2), (1, 2), (1, 0)), 11, 50),
    (Layer.linear(64, 10), 30, 31),
]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"{shape[2]}-{shape[0].in_channels}-{shape[1]}")
def case(request: pytest.FixtureRequest) -> tuple[Plan, Keys, NDArray[np.int64]]:
    shape, images, ring_bits = request.param
    parameters = choose_parameters([plan_layer(shape)], ring_bits=ring_bits, weight_bits=8)
    plan = plan_images(shape, images, prices=SHARING)[0]
    assert plan.tiling.images > 1
    return plan, generate_keys(parameters), np.random.default_rng(1).integers(-128, 128, shape.weight_shape)


def test_shares_of_several_images_add_up(case: tuple[Plan, Keys, NDArray[np.int64]]) -> None:
    plan, keys, weights = case
    parameters = keys.parameters
    prepared = prepare_weights(parameters, plan_layer(plan.layer), weights, weight_bits=8)
    share = draw_share(parameters, plan.in_shape)
    asked = Request.from_bytes(parameters, plan, request(keys, plan, share).to_bytes())
    response = respond(prepared.plain(plan), PublicKey.of(keys), asked)
    found = receive(keys, Answer.from_bytes(parameters, plan, response.answer.to_bytes())) + response.share
    expected = of_images(plan.layer, share, weights)
    assert found.shape == response.share.shape == plan.out_shape
    assert not ((found - expected) & np.uint64((1 << parameters.ring_bits) - 1)).any()
    again = respond(prepared.plain(plan), PublicKey.of(keys), asked)
    assert not np.array_equal(again.share, response.share) and len(np.unique(response.share)) > 0.5 * plan.outputs


def test_both_ways_add_up_the_same(case: tuple[Plan, Keys, NDArray[np.int64]]) -> None:
    kernel()
    plan, keys, weights = case
    weights = weights.copy()
    weights[:1] = 0  # a whole answer, where it has one channel
    plain = PlainWeights(keys.parameters, plan, weights.astype(np.int32))
    bodies = dict(enumerate(request(keys, plan, draw_share(keys.parameters, plan.in_shape)).bodies))
    ours, seals = (Gatherer(plain, bodies, backend=name) for name in ("kernel", "seal"))
    answers = list(range(plan.answers))
    for one, other in zip(ours.sums(answers), seals.sums(answers), strict=True):
        assert one is not None
        if other is None:
            assert not one.any()
            continue
        transformed = one.copy()
        arithmetic(keys.parameters).transform(transformed)
        assert np.array_equal(transformed, other)


@pytest.mark.parametrize("backend", ["kernel", "seal"])
def test_weights_that_are_all_zero(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "seal":
        monkeypatch.setattr(backends, "kernel", None)
    else:
        kernel()
    shape = layer(4, 6, 4)
    parameters = choose_parameters([plan_layer(shape)], ring_bits=27, weight_bits=8)
    keys, plan = generate_keys(parameters), plan_images(shape, 3, prices=SHARING)[0]
    assert plan.tiling.images > 1
    plain = PlainWeights(parameters, plan, np.zeros(shape.weight_shape, np.int32))
    response = respond(plain, PublicKey.of(keys), request(keys, plan, draw_share(parameters, plan.in_shape)))
    assert not ((receive(keys, response.answer) + response.share) & np.uint64((1 << 27) - 1)).any()


def test_tables_of_several_images_are_not_kept() -> None:
    plan = plan_images(layer(8, 8, 8), 9, prices=SHARING)[0]
    places, indices = plan.result(1)
    assert "results" not in plan.__dict__
    for one, other in zip(plan.results[1], (places, indices), strict=True):
        assert np.array_equal(one, other)


def test_weights_travel_to_workers_without_what_they_do_not_need() -> None:
    shape = layer(8, 8, 8)
    parameters = choose_parameters([plan_layer(shape)], ring_bits=27, weight_bits=8)
    weights = np.random.default_rng(1).integers(-128, 128, shape.weight_shape)
    prepared = prepare_weights(parameters, plan_layer(shape), weights, weight_bits=8)
    assert pickle.loads(pickle.dumps(prepared)).integers is None
    plain = prepared.plain(plan_images(shape, 9, prices=SHARING)[0])
    assert np.array_equal(pickle.loads(pickle.dumps(plain)).integers, weights)
