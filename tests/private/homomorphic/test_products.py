"""Sums of products: the compiled kernel against SEAL and against Python's own integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.errors import UsageError
from deepreduce.private.homomorphic import (
    Keys,
    MessageError,
    Parameters,
    WeightsError,
    _backends,
    default_backend,
    draw_share,
    generate_keys,
    plan_layer,
    prepare_weights,
    request,
)
from deepreduce.private.homomorphic._backends import available_backends
from deepreduce.private.homomorphic.draws import SEED_BYTES
from deepreduce.private.homomorphic.products import multiply, read_inputs, requests_of
from deepreduce.private.homomorphic.scheme import scheme

from .exact import layer

needs_kernel = pytest.mark.skipif("kernel" not in available_backends(), reason="the compiled kernel is not there")
PARAMETERS = [Parameters(27, (56, 56)), Parameters(30, (60, 60)), Parameters(59, (60, 48, 48))]
LARGEST_PRIME = (1 << 60) - 2**14 * 28 + 1


def kernel() -> Any:
    return _backends.kernel


@pytest.fixture(scope="module", params=PARAMETERS, ids=str)
def keys(request: pytest.FixtureRequest) -> Keys:
    return generate_keys(request.param)


@needs_kernel
def test_both_give_the_same_words(keys: Keys) -> None:
    """Several requests and answers, groups, and polynomials that are all zero."""
    shape = layer(40, 24, 32)
    plan = plan_layer(shape)
    rng = np.random.default_rng(0)
    weights = rng.integers(-128, 128, shape.weight_shape)
    weights[:, -8:] = 0
    weights[:5] = 0
    prepared = prepare_weights(keys.parameters, plan, weights, weight_bits=8)
    asked = request(keys, plan, draw_share(keys.parameters, shape.in_shape))
    bodies = dict(enumerate(asked.bodies))
    assert plan.requests > 2 and plan.answers > 2
    inputs = [read_inputs(keys.parameters, bodies, backend=name) for name in ("kernel", "seal")]
    every = list(range(plan.answers))
    together, other = (multiply(prepared, own, every) for own in inputs)
    alone = [one for answer in every for one in multiply(prepared, inputs[0], [answer])]
    assert any(one is None for one in together) and any(one is not None for one in together)
    for found in zip(together, alone, other, strict=True):
        assert all(one is None for one in found) or all(np.array_equal(found[0], one) for one in found)


def exact(inputs: np.ndarray, weights: np.ndarray, pairs: np.ndarray, primes: np.ndarray) -> np.ndarray:
    """The same in Python's integers."""
    found = np.zeros(inputs.shape[1:], object)
    for number, which in pairs.tolist():
        found += inputs[number].astype(object) * weights[which].astype(object)
    return (found % primes.astype(object)[:, None]).astype(np.uint64)


@needs_kernel
@pytest.mark.parametrize("width", [1, 4, 64])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_sums_are_exact(width: int, data: st.DataObject) -> None:
    """Any odd moduli up to 60 bits, sums of any number of terms, degrees that fit no vector, and the largest residues."""
    degree = data.draw(st.integers(1, 600))
    lengths = data.draw(st.lists(st.one_of(st.integers(0, 50), st.integers(230, 260)), min_size=1, max_size=4))
    odd = (
        st.integers(2, 60)
        .flatmap(lambda bits: st.integers(1 << (bits - 2), (1 << (bits - 1)) - 1))
        .map(lambda half: 2 * half + 1)
    )
    moduli = data.draw(
        st.lists(st.one_of(st.sampled_from([3, 5, (1 << 48) - 59, LARGEST_PRIME]), odd), min_size=1, max_size=3)
    )
    primes = np.array(moduli, np.uint64)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    largest = data.draw(st.booleans())
    count, polynomials = 3, 4

    def residues(*shape: int) -> np.ndarray:
        parts = [
            np.full((*shape, degree), p - 1, np.uint64) if largest else rng.integers(0, p, (*shape, degree), np.uint64)
            for p in moduli
        ]
        return np.ascontiguousarray(np.stack(parts, axis=-2))

    inputs, weights = residues(count, 2), residues(polynomials)
    terms = sum(lengths)
    pairs = np.stack([rng.integers(0, count, terms), rng.integers(0, polynomials, terms)], axis=1).astype(np.uint32)
    out = np.full((len(lengths), 2, len(moduli), degree), 7, np.uint64)
    kernel().vectors(width)
    try:
        assert kernel().sums(inputs, weights, np.array(lengths, np.uint32), pairs, primes, out, degree)
    finally:
        kernel().vectors(64)
    for found, own in zip(out, np.split(pairs, np.cumsum(lengths)[:-1]), strict=True):
        assert np.array_equal(found, exact(inputs, weights, own, primes))


@needs_kernel
def test_thousands_of_the_largest_products_are_exact() -> None:
    """The high word of a sum is corrected again and again."""
    degree, terms = 5, 4097
    for prime in (LARGEST_PRIME, (1 << 59) + 1):
        primes = np.array([prime], np.uint64)
        inputs, weights = (
            np.full((1, 2, 1, degree), prime - 1, np.uint64),
            np.full((1, 1, degree), prime - 1, np.uint64),
        )
        out = np.empty((2, 1, degree), np.uint64)
        assert kernel().sums(
            inputs, weights, np.array([terms], np.uint32), np.zeros((terms, 2), np.uint32), primes, out, degree
        )
        assert set(out.ravel().tolist()) == {terms * (prime - 1) ** 2 % prime}


@needs_kernel
@pytest.mark.parametrize("degree", [7, 259])
def test_a_weight_that_is_no_residue_is_told_wherever_it_stands(degree: int) -> None:
    """The file is read through a map: what another process writes into it must not be taken for a product."""
    moduli = (LARGEST_PRIME, (1 << 48) - 59)
    primes = np.array(moduli, np.uint64)
    inputs, out = np.zeros((1, 2, 2, degree), np.uint64), np.empty((2, 2, degree), np.uint64)
    weights = np.stack([np.full(degree, prime - 1, np.uint64) for prime in moduli])[None].copy()
    terms, pairs = np.array([3], np.uint32), np.zeros((3, 2), np.uint32)
    assert kernel().sums(inputs, weights, terms, pairs, primes, out, degree)
    for place in range(degree):
        for line, prime in enumerate(moduli):
            for value in (prime, (1 << 60) - 1, 1 << 60, 1 << 63, (1 << 64) - 1):
                wrong = weights.copy()
                wrong[0, line, place] = value
                assert not kernel().sums(inputs, wrong, terms, pairs, primes, out, degree)


@needs_kernel
@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": np.zeros((2, 2, 2, 63), np.uint64)}, {"inputs": np.zeros((2, 1, 2, 64), np.uint64)},
        {"weights": np.zeros((3, 2, 63), np.uint64)}, {"out": np.zeros((2, 2, 63), np.uint64)},
        {"out": np.zeros((1, 2, 64), np.uint64)}, {"pairs": np.array([[2, 0]], np.uint32)},
        {"pairs": np.array([[0, 3]], np.uint32)}, {"pairs": np.array([[2**32 - 1, 0]], np.uint32)},
        {"pairs": np.zeros(3, np.uint32)}, {"terms": np.zeros(0, np.uint32)}, {"terms": np.array([2], np.uint32)},
        {"terms": np.array([0], np.uint32)}, {"terms": np.array([1, 0], np.uint32)}, {"terms": np.zeros(5, np.uint8)},
        {"terms": np.array([2**32 - 1], np.uint32)}, {"primes": np.array([3], np.uint64)},
        {"primes": np.array([3, 4], np.uint64)}, {"primes": np.array([3, (1 << 60) + 1], np.uint64)},
        {"primes": np.array([3, 1], np.uint64)}, {"primes": np.zeros(0, np.uint64)}, {"degree": 0}, {"degree": -1},
        {"degree": 65_537}, {"inputs": np.zeros(0, np.uint64)}, {"weights": np.zeros(0, np.uint64)},
    ],
)  # fmt: skip
def test_the_kernel_refuses_sizes_that_do_not_fit(changes: dict) -> None:
    good = {
        "inputs": np.zeros((2, 2, 2, 64), np.uint64), "weights": np.zeros((3, 2, 64), np.uint64),
        "terms": np.array([1], np.uint32), "pairs": np.array([[1, 2]], np.uint32), "primes": np.array([3, 5], np.uint64),
        "out": np.zeros((2, 2, 64), np.uint64), "degree": 64,
    }  # fmt: skip
    assert kernel().sums(*good.values())
    with pytest.raises(ValueError, match="fit together"):
        kernel().sums(*(good | changes).values())


@needs_kernel
def test_the_kernel_reads_only_aligned_words() -> None:
    raw = bytes(1 + 8 * 256)
    words = np.frombuffer(raw, "<u8", offset=1).reshape(2, 2, 1, 64)
    with pytest.raises(ValueError, match="which are aligned"):
        kernel().sums(
            words, np.zeros((1, 1, 64), np.uint64), np.ones(1, np.uint32), np.zeros((1, 2), np.uint32), np.array([3], np.uint64),
            np.zeros((2, 1, 64), np.uint64), 64,
        )  # fmt: skip


@needs_kernel
def test_the_kernel_writes_only_into_what_may_be_written() -> None:
    out = np.zeros((2, 1, 8), np.uint64)
    out.flags.writeable = False
    with pytest.raises((BufferError, TypeError)):
        kernel().sums(
            np.zeros((1, 2, 1, 8), np.uint64), np.zeros((1, 1, 8), np.uint64), np.ones(1, np.uint32), np.zeros((1, 2), np.uint32),
            np.array([3], np.uint64), out, 8,
        )  # fmt: skip


@pytest.mark.parametrize("backend", available_backends())
def test_weights_that_were_changed_on_the_disk_are_told(tmp_path: Path, backend: _backends.Name) -> None:
    keys = generate_keys(PARAMETERS[0])
    shape, file = layer(9, 17, 16), tmp_path / "layer"
    plan = plan_layer(shape)
    prepared = prepare_weights(keys.parameters, plan, np.ones(shape.weight_shape, np.int64), weight_bits=8, file=file)
    inputs = read_inputs(
        keys.parameters, dict(enumerate(request(keys, plan, draw_share(keys.parameters, shape.in_shape)).bodies)),
        backend=backend,
    )  # fmt: skip
    assert multiply(prepared, inputs, [0])[0] is not None
    words = np.array(prepared.words)
    words[prepared.polynomials(0)[0], 5] = scheme(keys.parameters).primes[0]
    with pytest.raises(WeightsError, match="Prepared weights must be as prepare_weights wrote them"):
        multiply(replace(prepared, words=words), inputs, [0])


@pytest.mark.parametrize("backend", available_backends())
def test_ciphertexts_are_checked_and_a_layer_without_weights_has_no_product(backend: _backends.Name) -> None:
    keys = generate_keys(PARAMETERS[0])
    shape = layer(9, 17, 16)
    plan = plan_layer(shape)
    bodies = dict(enumerate(request(keys, plan, draw_share(keys.parameters, shape.in_shape)).bodies))
    inputs = read_inputs(keys.parameters, bodies, backend=backend)
    nothing = prepare_weights(keys.parameters, plan, np.zeros(shape.weight_shape, np.int64), weight_bits=8)
    assert multiply(nothing, inputs, [0, 0]) == [None, None]
    assert sorted(requests_of(plan, 0)) == list(range(plan.requests))
    bodies[0] = bodies[0][:SEED_BYTES] + b"\xff" * 7 + bodies[0][SEED_BYTES + 7 :]
    with pytest.raises(MessageError, match="below its modulus"):
        read_inputs(keys.parameters, bodies, backend=backend)


def test_without_the_kernel_seal_is_used_and_nothing_else_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backends, "kernel", None)
    assert available_backends() == ("seal",) and default_backend() == "seal"
    with pytest.raises(UsageError, match="one of seal here.*build the kernel"):
        read_inputs(PARAMETERS[0], {}, backend="kernel")
