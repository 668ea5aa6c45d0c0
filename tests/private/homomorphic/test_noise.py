"""The answer hides the weights: bounds on the noise, and what the owner of the secret key sees."""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from scipy.stats import ks_2samp, kstest

from deepreduce.private.homomorphic import (
    Keys,
    ParameterError,
    Parameters,
    PublicKey,
    _backends,
    check_budget,
    check_total,
    choose_parameters,
    draw_share,
    encryption,
    generate_keys,
    plan_layer,
    prepare_weights,
    request,
    respond,
)
from deepreduce.private.homomorphic._backends import available_backends
from deepreduce.private.homomorphic.draws import expand, flood
from deepreduce.private.homomorphic.encryption import Blinder, Encryptor
from deepreduce.private.homomorphic.noise import (
    ROUNDING_MEAN,
    blinding_noise,
    flood_bits_needed,
    mean_blinding_noise,
    mean_noise,
    weights_noise,
)
from deepreduce.private.homomorphic.parameters import PRIME_SETS
from deepreduce.private.homomorphic.products import multiply, read_inputs
from deepreduce.private.homomorphic.scheme import Scheme, scheme
from deepreduce.private.homomorphic.wire import read_answer, read_ciphertext
from deepreduce.private.program import FormatSettings
from deepreduce.private.ring import UNIFORM_BITS

from .exact import RESNET18, coefficients, decrypt, layer, negacyclic, noise

SHAPE = layer(12, 3, 16)
PLAN = plan_layer(SHAPE)
PARAMETERS = [
    Parameters(27, (56, 56)),
    Parameters(44, (56, 40, 40)),
    Parameters(59, (60, 48, 48)),
    Parameters(59, (60, 60, 60)),
]
"""Answers that keep one prime, and two; with primes below t, and with none."""

_SCALE = 20
"""Bits after the point with which the client's own noise is multiplied in integers."""

CERTAIN, CHANCE = 1e-30, 1e-15
"""Below the first a statistical test has seen a difference; above the second it has not, but for one run in 10^12."""


@pytest.fixture(scope="module", params=PARAMETERS, ids=str)
def keys(request: pytest.FixtureRequest) -> Keys:
    return generate_keys(request.param)


@pytest.fixture(params=available_backends(), autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> _backends.Name:
    """Every test here is of either way to encrypt and to blind."""
    if request.param == "seal":
        monkeypatch.setattr(_backends, "kernel", None)
    return request.param


def unit(keys: Keys) -> int:
    """t, in whose inverse `noise` measures."""
    return 1 << keys.parameters.ring_bits


def sets_of_weights() -> list[np.ndarray]:
    """Two very different models: small weights and the largest."""
    rng = np.random.default_rng(5)
    small = rng.integers(-1, 2, SHAPE.weight_shape)
    large = np.where(rng.integers(0, 2, SHAPE.weight_shape) == 1, 127, -128)
    return [small, large]


class Conversation:
    """One request and what a server with some weights makes of it, step by step."""

    def __init__(self, keys: Keys, weights: np.ndarray) -> None:
        self.keys, self.context = keys, scheme(keys.parameters)
        self.prepared = prepare_weights(keys.parameters, PLAN, weights, weight_bits=8)
        self.share = draw_share(keys.parameters, SHAPE.in_shape)
        self.request = request(keys, PLAN, self.share)
        self.blinder = Blinder(PublicKey.of(keys))
        self.weights = weights

    def product(self) -> np.ndarray:
        """The unblinded sum of products, as NTT values."""
        inputs = read_inputs(self.keys.parameters, dict(enumerate(self.request.bodies)))
        [found] = multiply(self.prepared, inputs, [0])
        assert found is not None
        return found

    def without_flood(self, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
        """An answer that is masked and re-randomised, but not flooded."""
        with monkeypatch.context() as patch:
            patch.setattr(encryption, "flood", lambda parameters: np.zeros_like(flood(parameters)))
            return self.blinded()

    def blinded(self) -> np.ndarray:
        """What `respond` makes, before it is switched to the smaller modulus."""
        return self.blinder.blind(self.product())[0]

    def noise(self, words: np.ndarray) -> np.ndarray:
        """The exact noise that the client finds."""
        return noise(self.keys, words) / unit(self.keys)

    def predicted(self) -> np.ndarray:
        """w * e: what the client, who knows e, would find without blinding if it guessed the weights right."""
        total = np.zeros(PLAN.degree, np.float64)
        polynomials = PLAN.encode_weights(self.weights, 0, 0)
        for plane_tile, polynomial in enumerate(polynomials):
            first, seed = read_ciphertext(self.keys.parameters, self.request.bodies[PLAN.request_of(0, plane_tile, 0)])
            fresh = coefficients(self.keys, np.stack([first, expand(self.keys.parameters, seed)]))
            own = (noise(self.keys, fresh) << _SCALE) // unit(self.keys)
            total += negacyclic(own.astype(np.int64), polynomial) / 2**_SCALE
        return total


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])


def test_example_unblinded_noise_is_the_weights_times_the_clients_own_noise(keys: Keys) -> None:
    talk = Conversation(keys, sets_of_weights()[1])
    found, predicted = talk.noise(coefficients(keys, talk.product())), talk.predicted()
    assert np.abs(found.astype(float) - predicted).max() < 0.01
    assert np.abs(predicted).max() <= weights_noise(PLAN, 8)


def test_flooded_noise_is_the_same_for_two_sets_of_weights(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    talks = [Conversation(keys, weights) for weights in sets_of_weights()]
    scale = 2.0**keys.parameters.flood_bits
    flooded = [talk.noise(talk.blinded()).astype(float) / scale for talk in talks]
    assert ks_2samp(*flooded).pvalue > CHANCE
    for sample in flooded:
        assert kstest(sample, "uniform", args=(-0.5, 1)).pvalue > CHANCE
    # The same test sees the difference at once when the flood is left out.
    bare = [talk.noise(talk.without_flood(monkeypatch)).astype(float) for talk in talks]
    assert ks_2samp(*bare).pvalue < CERTAIN
    assert bare[1].std() > 5 * bare[0].std()


def test_flooded_noise_does_not_follow_the_clients_own_noise(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sharper test: the client knows its noise and checks a guess of the weights against the answer."""
    talk = Conversation(keys, sets_of_weights()[1])
    predicted = talk.predicted()
    limit = 8 / math.sqrt(PLAN.degree)
    assert abs(correlation(talk.noise(talk.blinded()), predicted)) < limit
    assert correlation(talk.noise(talk.without_flood(monkeypatch)), predicted) > 0.9


def test_the_noise_of_what_travels_is_the_same_for_two_sets_of_weights(keys: Keys) -> None:
    samples = []
    for weights in sets_of_weights():
        prepared = prepare_weights(keys.parameters, PLAN, weights, weight_bits=8)
        share = draw_share(keys.parameters, SHAPE.in_shape)
        found = []
        for _ in range(4):
            answer = respond(prepared, PublicKey.of(keys), request(keys, PLAN, share)).answer
            for body, (places, _indices) in zip(answer.bodies, PLAN.results, strict=True):
                words = read_answer(keys.parameters, body, places)
                found.append(noise(keys, words, "answer")[places].astype(float))
        samples.append(np.concatenate(found))
    assert ks_2samp(*samples).pvalue > CHANCE
    modulus = math.prod(scheme(keys.parameters).answer_primes)
    # The flood fills up to an eighth of the modulus; rounding and truncation stay below as much again.
    assert all(0.2 * modulus / 4 < np.abs(sample).max() < modulus / 4 for sample in samples)


def test_the_second_polynomial_is_fresh(keys: Keys) -> None:
    """Without re-randomisation it is sum w c_1, from which the client solves for w."""
    talk = Conversation(keys, sets_of_weights()[1])
    bare, first, second = coefficients(keys, talk.product())[1], talk.blinded()[1], talk.blinded()[1]
    assert np.array_equal(bare, coefficients(keys, talk.product())[1])
    for a, b in ((bare, first), (first, second)):
        for line, other, prime in zip(a, b, talk.context.primes, strict=True):
            difference = (line.astype(object) - other) % prime / prime
            assert kstest(difference.astype(float), "uniform").pvalue > CHANCE


def test_all_coefficients_are_masked_not_only_the_results(keys: Keys) -> None:
    talk = Conversation(keys, sets_of_weights()[1])
    partial = decrypt(keys, coefficients(keys, talk.product()))
    first, second = (decrypt(keys, talk.blinded()) for _ in range(2))
    rest = np.setdiff1d(np.arange(PLAN.degree), PLAN.results[0][0])
    assert partial[rest].astype(bool).mean() > 0.3, "there is nothing to hide"
    for sample in (
        first,
        second,
        (first - partial) & np.uint64(unit(keys) - 1),
        (first - second) & np.uint64(unit(keys) - 1),
    ):
        assert kstest(sample[rest] / unit(keys), "uniform").pvalue > CHANCE


def test_the_noise_is_drawn_as_the_bounds_assume(keys: Keys, backend: _backends.Name) -> None:
    encryptor, values = Encryptor(keys), draw_share(keys.parameters, (PLAN.degree,))
    drawn = [encryptor.encrypt(values) for _ in range(3)]
    words = [coefficients(keys, np.stack([first, expand(keys.parameters, seed)])) for first, seed in drawn]
    assert all(np.array_equal(decrypt(keys, one), values) for one in words)
    fresh = np.concatenate([noise(keys, one) for one in words]) / unit(keys)
    rounding = 0.5
    assert 10 < np.abs(fresh).max() <= 21 + rounding
    assert abs(fresh.astype(float).var() - 10.5) < 1.5  # nine standard deviations
    blinder = Blinder(PublicKey.of(keys))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encryption, "flood", lambda parameters: np.zeros_like(flood(parameters)))
        zeros = [noise(keys, blinder.blind(None)[0]) / unit(keys) for _ in range(3)]
    sizes = np.abs(np.concatenate(zeros)).astype(float)
    assert sizes.max() <= blinding_noise(PLAN.degree) and sizes.mean() <= mean_blinding_noise(PLAN.degree)
    if backend == "kernel":  # -e u + e_1 S: the sum of 16,384 products of which a third are zero
        expected = math.sqrt(10.5 * 4 / 3 * PLAN.degree) * math.sqrt(2 / math.pi)
        assert abs(sizes.mean() / expected - 1) < 0.1


def test_flood_is_uniform_on_its_range(keys: Keys) -> None:
    for ring_bits, primes in (
        (27, (56, 56)),
        (27, (60, 60)),
        (27, (60, 48, 48)),
        (44, (56, 40, 40)),
        (59, (60, 60, 60)),
    ):
        context = scheme(Parameters(ring_bits, primes))
        drawn, modulus = flood(context.parameters), math.prod(context.primes)
        total = np.zeros(drawn.shape[1], object)
        for line, prime in zip(drawn, context.primes, strict=True):
            assert line.max() < prime
            total += line.astype(object) * (modulus // prime * pow(modulus // prime, -1, prime))
        centred = (total + modulus // 2) % modulus - modulus // 2
        bits = context.parameters.flood_bits
        assert -(1 << (bits - 1)) <= centred.min() and centred.max() < 1 << (bits - 1)
        assert kstest((centred / 2**bits).astype(float), "uniform", args=(-0.5, 1)).pvalue > CHANCE
        for bit in (0, 30, 47, 48, bits - 2):
            assert abs(((centred >> bit) & 1).mean() - 0.5) < 0.05  # nine standard deviations
        assert 8 << ring_bits << (bits - 1) <= modulus


def test_the_largest_noise_of_blinding_is_bounded() -> None:
    """-e u + e_1 S with all of their largest size, and all of the same sign; and e_0, and one for the rounding."""
    n = 64
    largest = np.full(n, 21, np.int64)
    sums = -negacyclic(largest, -np.ones(n, np.int64)) + negacyclic(largest, np.ones(n, np.int64))
    assert abs(sums).max() == 2 * 21 * n and blinding_noise(n) == 2 * 21 * n + 21 + 1
    assert mean_blinding_noise(n) == pytest.approx(1 + math.sqrt(10.5 + 2 * n * 10.5 * 2 / 3))


def test_needed_flooding_is_both_bounds() -> None:
    plan = plan_layer(layer(512, 512, 4))
    needed = flood_bits_needed(plan, weight_bits=8, ring_bits=27)
    worst = weights_noise(plan, 8) + blinding_noise(plan.degree)
    assert 2**needed >= 2**41 * worst
    assert 2**23 * mean_noise(plan, 8, 27) / 2**needed <= 2**-40
    assert 2 ** (needed - 1) < max(2**41 * worst, 2**63 * mean_noise(plan, 8, 27))
    assert worst == pytest.approx(21.5 * plan.tiling.channels * 512 * 9 * 128, rel=0.01)


def floor_sum(count: int, modulus: int, factor: int, start: int) -> int:
    """Return the sum of floor((factor i + start) / modulus) over i < count, exactly: Euclid's algorithm."""
    total = 0
    while True:
        total += (count - 1) * count // 2 * (factor // modulus) + count * (start // modulus)
        factor, start = factor % modulus, start % modulus
        end = factor * count + start
        if end < modulus:
            return total
        count, start = divmod(end, modulus)
        modulus, factor = factor, modulus


def rounding_mean(q: int, ring_bits: int, low: int, first: int | None = None) -> float:
    """Return the mean rounding of (q / t) m over 2^low numbers m in a row, the last ones below t unless told."""
    t, count = 1 << ring_bits, 1 << low
    first = t - count if first is None else first
    total = Fraction(q, t) * (count * first + count * (count - 1) // 2)
    return float((total - floor_sum(count, 2 * t, 2 * q, 2 * q * first + t)) / count)


def test_rounding_mean_against_addition() -> None:
    for q, ring_bits, low in ((1009, 7, 3), (12345, 9, 9), (99, 5, 1), (77777, 12, 10)):
        t = 1 << ring_bits
        each = [Fraction(q * (t - (1 << low) + h), t) for h in range(1 << low)]
        added = sum(x - math.floor(x + Fraction(1, 2)) for x in each) / len(each)
        assert rounding_mean(q, ring_bits, low) == pytest.approx(float(added), abs=1e-15)


@pytest.mark.parametrize("prime_bits", PRIME_SETS, ids=str)
def test_roundings_of_truncated_shares_cancel(prime_bits: tuple[int, ...]) -> None:
    random = Random(0)
    for ring_bits in range(UNIFORM_BITS, 60):
        with contextlib.suppress(ParameterError):
            q = math.prod(scheme(Parameters(ring_bits, prime_bits)).primes)
            for low in range(UNIFORM_BITS, ring_bits + 1):
                assert abs(rounding_mean(q, ring_bits, low)) <= ROUNDING_MEAN
                first = random.randrange(1 << ring_bits)  # what a pool or a sum makes of such shares
                assert abs(rounding_mean(q, ring_bits, low, first)) <= ROUNDING_MEAN


def test_roundings_of_scaled_shares_cancel_with_the_bits_of_today() -> None:
    """A share that a sum has scaled is uniform on the multiples of 2^s, and k - s is at least a circuit's width."""
    width = FormatSettings().activation_bits + 1
    assert 2.0 ** -(width + 1) <= ROUNDING_MEAN


def test_flooding_for_every_layer_of_resnet18() -> None:
    plans = [plan_layer(shape) for _, shape, _ in RESNET18]
    parameters = choose_parameters(plans, ring_bits=27, weight_bits=8)
    assert parameters == Parameters(27, (56, 56))
    assert all(check_budget(parameters, plan, weight_bits=8) >= 0 for plan in plans)
    assert choose_parameters(plans, ring_bits=37, weight_bits=8).prime_bits == (60, 60)
    assert choose_parameters(plans, ring_bits=37, weight_bits=13).prime_bits == (56, 40, 40)
    assert choose_parameters(plans, ring_bits=40, weight_bits=13).prime_bits == (60, 48, 48)
    assert choose_parameters(plans, ring_bits=44, weight_bits=8).prime_bits == (56, 40, 40)
    assert choose_parameters(plans, ring_bits=50, weight_bits=13).prime_bits == (60, 48, 48)
    assert choose_parameters(plans, ring_bits=59, weight_bits=20).prime_bits == (60, 48, 48)
    assert choose_parameters(plans, ring_bits=59, weight_bits=32).prime_bits == (60, 60, 60)
    assert check_budget(choose_parameters(plans, ring_bits=59, weight_bits=32), plans[0], weight_bits=32) > 0


def test_what_the_flood_cannot_hide_is_refused() -> None:
    plan = plan_layer(layer(512, 512, 4))
    with pytest.raises(ParameterError, match="bits of flooding"):
        check_budget(Parameters(37, (56, 56)), plan, weight_bits=13)
    with pytest.raises(ParameterError, match="weights 2 to 32"):
        choose_parameters([plan], ring_bits=27, weight_bits=33)
    for outside in (1, 60):
        with pytest.raises(ParameterError, match="2 to 59 bits"):
            choose_parameters([plan], ring_bits=outside, weight_bits=8)
        with pytest.raises(ParameterError, match="44 to 59 bits"):
            Parameters(outside, (60, 60, 60))
    with pytest.raises(ParameterError, match="first 17 bits wider"):
        Parameters(40, (56, 56))
    with pytest.raises(ParameterError, match="one of"):
        Parameters(27, (56, 56, 56, 56))
    check_total([plan] * 1000)
    with pytest.raises(ParameterError, match="8,388,608"):
        check_total([plan] * 1025)


@pytest.mark.parametrize("bits", PRIME_SETS)
def test_all_sets_are_secure_by_seals_own_table(bits: tuple[int, ...]) -> None:
    for parameters in (Parameters(bits[0] - 17, bits), Parameters(59, bits)):
        found = Scheme(parameters)
        assert [prime.bit_length() for prime in found.key_primes] == [*bits, 30]
    assert sum(bits) + 30 <= 218


def allowed() -> list[Parameters]:
    """Return all parameters that there are."""
    found = []
    for bits in PRIME_SETS:
        for ring_bits in range(2, 60):
            with contextlib.suppress(ParameterError):
                found.append(Parameters(ring_bits, bits))
    return found


def test_the_noise_of_every_answer_is_at_most_a_quarter_of_a_unit() -> None:
    """The sum of `parameters.py` in integers, in units of 1 / 2, for all rings and prime sets."""
    primes = {bits: scheme(Parameters(30, bits)).primes for bits in PRIME_SETS}
    found = allowed()
    for parameters in found:
        n, own = parameters.degree, primes[parameters.prime_bits]
        kept = len(parameters.answer_prime_bits)
        assert kept == (1 if parameters.ring_bits <= 43 else 2)
        modulus, whole = math.prod(own[:kept]), math.prod(own)
        flood = 1 << parameters.flood_bits
        hidden = flood >> 40
        switched = -(-(flood + hidden) * modulus // whole) + sum(
            -(-(1 + n) // math.prod(own[kept:place])) for place in range(kept, len(own))
        )
        bits = sum(parameters.answer_prime_bits)
        first, second = (1 << max(0, bits - 8 * size) for size in parameters.answer_bytes)
        truncated = (first if first > 1 else 0) + (n * second if second > 1 else 0)
        assert 4 * (switched + truncated) << parameters.ring_bits <= 2 * modulus, parameters
    rings = {bits: [p.ring_bits for p in found if p.prime_bits == bits] for bits in PRIME_SETS}
    assert rings[60, 60, 60] == list(range(2, 60))
    assert rings[56, 56] == [*range(2, 40), *range(44, 60)]
