"""Encryption, decryption and blinding: the compiled kernel against SEAL and against Python's own integers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from deepreduce.errors import UsageError
from deepreduce.private.homomorphic import (
    Keys,
    MessageError,
    ParameterError,
    Parameters,
    PublicKey,
    _backends,
    draw_share,
    encryption,
    generate_keys,
)
from deepreduce.private.homomorphic import (
    arithmetic as arithmetic_module,
)
from deepreduce.private.homomorphic._backends import available_backends
from deepreduce.private.homomorphic.arithmetic import Arithmetic, arithmetic, primitive_root
from deepreduce.private.homomorphic.draws import expand, flood, fresh, stream
from deepreduce.private.homomorphic.encryption import Blinder, Decryptor, Encryptor
from deepreduce.private.homomorphic.scheme import Scheme, scheme

from .exact import CALM, coefficients, decrypt, noise

needs_kernel = pytest.mark.skipif("kernel" not in available_backends(), reason="the compiled kernel is not there")
PARAMETERS = [
    Parameters(2, (56, 56)),
    Parameters(31, (60, 60)),
    Parameters(43, (60, 48, 48)),
    Parameters(44, (56, 40, 40)),
    Parameters(59, (60, 60)),
    Parameters(59, (60, 60, 60)),
]
CHANCE = 1e-15
HELD = settings(CALM, suppress_health_check=[*CALM.suppress_health_check, HealthCheck.function_scoped_fixture])
"""The fixture holds for all examples of a test."""
MODULI = [(1 << 60) - 2**14 + 1, (1 << 59) - 55, (1 << 40) - 9 * 2**14 + 1, 65_537, 193, 3]
"""Primes; a transform of degree n takes those of which n divides half of p - 1."""


def kernel() -> Any:
    return _backends.kernel


@pytest.fixture(scope="module", params=PARAMETERS, ids=str)
def keys(request: pytest.FixtureRequest) -> Keys:
    return generate_keys(request.param)


# Ciphertexts


@pytest.mark.parametrize("sender", available_backends())
@pytest.mark.parametrize("reader", available_backends())
def test_either_way_reads_what_the_other_made(keys: Keys, sender: _backends.Name, reader: _backends.Name) -> None:
    parameters, n = keys.parameters, keys.parameters.degree
    ring = np.uint64((1 << parameters.ring_bits) - 1)
    for values in (draw_share(parameters, (n,)), np.zeros(n, np.uint64), np.full(n, ring)):
        first, seed = Encryptor(keys, backend=sender).encrypt(values)
        sent = np.stack([first, expand(parameters, seed)])
        assert np.array_equal(decrypt(keys, coefficients(keys, sent)), values)
        blinder = Blinder(PublicKey.of(keys), backend=reader)
        for product, expected in ((sent, values), (None, np.zeros(n, np.uint64))):
            words, mask = blinder.blind(product)
            small = blinder.switch(words)
            for backend in available_backends():
                found = Decryptor(keys, backend=backend).decrypt(small)
                assert np.array_equal((found + mask) & ring, expected)


@needs_kernel
def test_both_switch_to_the_same_words(keys: Keys) -> None:
    context, rng = scheme(keys.parameters), np.random.default_rng(1)
    words = np.stack([rng.integers(0, p, (2, keys.parameters.degree), np.uint64) for p in context.primes], axis=1)
    words[:, :, :3] = np.array([[0, p // 2, p - 1] for p in context.primes])
    own, other = (Blinder(PublicKey.of(keys), backend=name).switch(words) for name in ("kernel", "seal"))
    assert np.array_equal(own, other) and own.shape[1] == len(context.answer_primes)


@pytest.mark.parametrize("backend", available_backends())
def test_every_ciphertext_has_its_own_seed_noise_flood_and_mask(
    backend: _backends.Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one number under one key: what is left when all that the client knows is taken away must differ."""
    parameters = Parameters(31, (60, 60))
    keys, n = generate_keys(parameters), parameters.degree
    values, encryptor = draw_share(parameters, (n,)), Encryptor(keys, backend=backend)
    drawn = [encryptor.encrypt(values) for _ in range(2)]
    assert drawn[0][1] != drawn[1][1]
    sent = (np.stack([one, expand(parameters, seed)]) for one, seed in drawn)
    unlike(*(noise(keys, coefficients(keys, words)) for words in sent), equal=0.2)
    blinder = Blinder(PublicKey.of(keys), backend=backend)
    answers = [blinder.blind(None) for _ in range(2)]
    assert (answers[0][1] == answers[1][1]).mean() < 0.01  # masks
    unlike(*(noise(keys, words) for words, _ in answers))  # floods
    for one, other in zip(answers[0][0][1], answers[1][0][1], strict=True):  # a u + e_1
        unlike(one, other)
    # Without floods the noise of either is that of its own u and e_1.
    with monkeypatch.context() as patch:
        patch.setattr(encryption, "flood", lambda own: np.zeros_like(flood(own)))
        unlike(*(noise(keys, blinder.blind(None)[0]) for _ in range(2)), equal=0.05)
    if backend == "kernel":  # and of the second polynomial without u: e_1
        patched = arithmetic(parameters)
        monkeypatch.setattr(patched, "ternary", lambda: np.zeros((2, n), np.uint64))
        unlike(*(blinder.blind(None)[0][1, 0] for _ in range(2)), equal=0.2)


def unlike(one: np.ndarray, other: np.ndarray, equal: float = 0.01) -> None:
    """Two draws of many numbers differ, and so do their halves, and they are not correlated."""
    half = one.size // 2
    for a, b in ((one, other), (one[:half], one[half:]), (other[:half], other[half:]), (one[:half], other[half:])):
        assert (a == b).mean() < equal
        if a.dtype == object:
            scale = float(abs(one).max())
            assert abs(np.corrcoef((a / scale).astype(float), (b / scale).astype(float))[0, 1]) < 9 / math.sqrt(a.size)


@needs_kernel
def test_every_draw_is_fresh() -> None:
    own = arithmetic(Parameters(31, (60, 60)))
    for draw, equal in ((own.ternary, 0.4), (own.noise, 0.2), (lambda: flood(own.parameters), 0.01)):
        unlike(draw()[0], draw()[0], equal)


def test_a_key_that_hides_nothing_is_refused_or_answered() -> None:
    """SEAL refuses a ciphertext that anybody can read; the kernel makes it, for whom it asked so."""
    keys = generate_keys(Parameters(31, (60, 60)))
    open_key = PublicKey(keys.parameters, bytes(len(keys.public)))
    with pytest.raises(MessageError, match="A public key must be one that hides"):
        Blinder(open_key, backend="seal").blind(None)
    if "kernel" in available_backends():
        assert Blinder(open_key, backend="kernel").blind(None)[0].shape == (2, 2, 8192)


def test_a_way_that_does_not_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backends, "kernel", None)
    own = generate_keys(PARAMETERS[1])
    for make in (Encryptor, Decryptor):
        with pytest.raises(UsageError, match="one of seal here.*build the kernel"):
            make(own, backend="kernel")
    with pytest.raises(UsageError, match="one of seal here"):
        Blinder(PublicKey.of(own), backend="kernel")


def test_a_kernel_of_another_release_is_told() -> None:
    old = SimpleNamespace(supported=lambda: True, sums=None, __file__="_kernel.so")
    with pytest.raises(UsageError, match="same release.*make setup.*_kernel.so"):
        _backends.usable(old)
    assert _backends.usable(None) is None and _backends.usable(SimpleNamespace(supported=lambda: False)) is None


@needs_kernel
def test_another_order_of_ntt_values_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheme, "transform", lambda self, values: bytes(16 * self.parameters.degree))
    with pytest.raises(ParameterError, match="SEAL must order NTT values as the kernel does"):
        Arithmetic(PARAMETERS[1])
    monkeypatch.undo()
    monkeypatch.setattr(
        arithmetic_module, "primitive_root", lambda prime, order: pow(primitive_root(prime, order), 3, prime)
    )
    with pytest.raises(ParameterError, match="install seal-python"):
        Arithmetic(PARAMETERS[1])


@pytest.fixture(params=["vectors", "none"])
def vectors(request: pytest.FixtureRequest) -> Iterator[None]:
    """With the processor's vectors, and without."""
    kernel().vectors(64 if request.param == "vectors" else 1)
    yield
    kernel().vectors(64)


# Draws


def test_a_seed_is_expanded_as_it_says() -> None:
    """Block by block with AES alone, and in integers; and the same today as tomorrow."""
    parameters, seed = Parameters(44, (56, 40, 40)), bytes(range(32))
    found, place = expand(parameters, seed), 0
    blocks = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    octets = b"".join(blocks.update(counter.to_bytes(16, "big")) for counter in range(30_000))
    for line, prime in zip(found, scheme(parameters).primes, strict=True):
        bits = prime.bit_length() + 63
        size = -(-bits // 8)
        for value in line[:500].tolist():
            number = int.from_bytes(octets[place : place + size], "little") % (1 << bits)
            assert value == (number - (1 << (bits - 1))) % prime
            place += size
        place += (parameters.degree - 500) * size
        assert kstest(line / prime, "uniform").pvalue > CHANCE
    assert hashlib.sha256(found.tobytes()).hexdigest()[:32] == "75e368f0d2b0ee6ecc6936ccee00a327"
    assert stream(seed, 5) == octets[:5] and len(fresh(7)) == 7 and fresh(16) != fresh(16)


def test_a_share_is_uniform() -> None:
    for bits in (2, 31, 59):
        drawn = draw_share(Parameters(bits, (60, 60)), (3, 4, 2000))
        assert drawn.shape == (3, 4, 2000) and int(drawn.max()) < 1 << bits
        counts = np.bincount((drawn >> np.uint64(bits - 2)).ravel().astype(np.int64), minlength=4)
        assert chisquare(counts).pvalue > CHANCE


@needs_kernel
def test_secrets_are_uniform_on_three_numbers_and_noise_is_binomial() -> None:
    own = arithmetic(Parameters(59, (60, 48, 48)))
    primes = scheme(own.parameters).primes
    for draw, weights in (
        (own.ternary, {-1: 1, 0: 1, 1: 1}),
        (own.noise, {value: math.comb(42, 21 + value) for value in range(-21, 22)}),
    ):
        words = np.concatenate([draw() for _ in range(8)], axis=1)
        signed = [
            np.where(line > p // 2, line.astype(object) - p, line).astype(int)
            for line, p in zip(words, primes, strict=True)
        ]
        assert all(np.array_equal(signed[0], line) for line in signed)
        total, counts = sum(weights.values()), {value: int((signed[0] == value).sum()) for value in weights}
        assert sum(counts.values()) == signed[0].size
        common = [value for value in weights if signed[0].size * weights[value] / total > 20]
        expected = np.array([weights[value] for value in common], float)
        seen = np.array([counts[value] for value in common], float)
        assert chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > CHANCE


@needs_kernel
def test_too_few_octets_are_told_and_those_beyond_243_left_out() -> None:
    primes, out = np.array([5, 7], np.uint64), np.zeros((2, 6), np.uint64)
    assert not kernel().ternary(bytes([255, 0, 243]), primes, out, 6)
    assert kernel().ternary(bytes([255, 0, 250, 242]), primes, out, 6)
    assert out.tolist() == [[4, 4, 4, 4, 4, 1], [6, 6, 6, 6, 6, 1]]
    assert kernel().ternary(bytes([1 + 2 * 3 + 0 * 9 + 1 * 27 + 2 * 81]), primes, out[:, :5].copy(), 5)


@needs_kernel
def test_noise_is_what_its_octets_say() -> None:
    """Ones in the low 21 bits, less ones in the 21 above; whatever lies beyond."""
    words = [0, (1 << 64) - 1, *(1 << bit for bit in range(64)), (1 << 21) - 1, ((1 << 21) - 1) << 21]
    words += np.random.default_rng(2).integers(0, 1 << 64, 500, np.uint64).tolist()
    primes, out = np.array([MODULI[0], 23], np.uint64), np.zeros((2, len(words)), np.uint64)
    kernel().binomial(np.array(words, np.uint64).tobytes(), primes, out, len(words))
    low = (1 << 21) - 1
    expected = [(word & low).bit_count() - (word >> 21 & low).bit_count() for word in words]
    assert out.tolist() == [[value % p for value in expected] for p in (MODULI[0], 23)]


# The kernel, function by function, in integers


def residues(rng: np.random.Generator, moduli: list[int], *shape: int, largest: bool) -> np.ndarray:
    """Residues (*shape[:-1], modulus, shape[-1])."""
    *lines, degree = shape
    parts = [
        np.full((*lines, degree), p - 1, np.uint64) if largest else rng.integers(0, p, (*lines, degree), np.uint64)
        for p in moduli
    ]
    return np.ascontiguousarray(np.stack(parts, axis=-2))


def as_integers(words: np.ndarray) -> np.ndarray:
    return words.astype(object)


@needs_kernel
@pytest.mark.usefixtures("vectors")
@given(st.data())
@settings(HELD, max_examples=60)
def test_transforms_are_exact_and_each_others_inverse(data: st.DataObject) -> None:
    """Value i is the polynomial at root^(2 (i reversed) + 1); for every degree, also those with no vectors."""
    bits = data.draw(st.integers(0, 9))
    degree = 1 << bits
    moduli = [p for p in MODULI if (p - 1) % (2 * degree) == 0]
    primes, rng = np.array(moduli, np.uint64), np.random.default_rng(data.draw(st.integers(0, 2**32)))
    roots = [primitive_root(p, 2 * degree) for p in moduli]
    powers = np.empty((len(moduli), 2, 2, degree), np.uint64)
    kernel().powers(primes, np.array(roots, np.uint64), powers, degree)
    words = residues(rng, moduli, 2, degree, largest=data.draw(st.booleans()))
    found = words.copy()
    kernel().transform(found, powers, primes, degree, False)
    place = int(f"{data.draw(st.integers(0, degree - 1)):0{max(1, bits)}b}"[::-1], 2) if bits else 0
    for k, (p, root) in enumerate(zip(moduli, roots, strict=True)):
        at = pow(root, 2 * place + 1, p)
        row = int(f"{place:0{max(1, bits)}b}"[::-1], 2) if bits else 0
        for line in range(2):
            value = 0
            for coefficient in reversed(words[line, k].tolist()):
                value = (value * at + coefficient) % p
            assert found[line, k, row] == value
    kernel().transform(found, powers, primes, degree, True)
    assert np.array_equal(found, words)


@needs_kernel
def test_the_smallest_root_is_found() -> None:
    for p, order in ((17, 16), (193, 64), (65_537, 2), (MODULI[0], 256)):
        root = primitive_root(p, order)
        assert pow(root, order // 2, p) == p - 1
    assert primitive_root(17, 16) == min(r for r in range(1, 17) if pow(r, 8, 17) == 16)


@needs_kernel
@given(st.data())
@settings(CALM, max_examples=60)
def test_sums_products_and_moduli_are_exact(data: st.DataObject) -> None:
    degree = data.draw(st.integers(1, 70))
    moduli = data.draw(st.lists(st.sampled_from(MODULI), min_size=2, max_size=3, unique=True))
    primes, rng = np.array(moduli, np.uint64), np.random.default_rng(data.draw(st.integers(0, 2**32)))
    largest = data.draw(st.booleans())
    words, others = (residues(rng, moduli, 3, degree, largest=largest) for _ in range(2))
    column = as_integers(primes)[:, None]

    total = words.copy()
    kernel().add(total, others, primes, degree)
    assert np.array_equal(total, (as_integers(words) + others) % column)

    found = np.empty_like(words)
    kernel().products(words, np.ascontiguousarray(others[0]), primes, found, degree)
    halved = np.array([[pow(2, -64, p)] for p in moduli], object)
    assert np.array_equal(found, as_integers(words) * others[0] * halved % column)

    last = moduli[-1]
    inverses = np.array([pow(last, -1, p) for p in moduli[:-1]], np.uint64)
    switched = np.empty((3, len(moduli) - 1, degree), np.uint64)
    kernel().switched(words, inverses, primes, switched, degree)
    rounded = (as_integers(words[:, -1:]) + last // 2) % last - last // 2  # what is left when it is divided
    assert np.array_equal(
        switched, (as_integers(words[:, :-1]) - rounded) * as_integers(inverses)[:, None] % column[:-1]
    )


@needs_kernel
@given(st.data())
@settings(CALM, max_examples=60)
def test_messages_are_scaled_and_found_again(data: st.DataObject) -> None:
    """(q / t) m, rounded half up; and back with any noise below a quarter of q / t."""
    bits = data.draw(st.integers(1, 59))
    moduli = data.draw(
        st.lists(st.sampled_from([p for p in MODULI if p > 1 << 39]), min_size=1, max_size=3, unique=True)
    )
    modulus, t = math.prod(moduli), 1 << bits
    if modulus < 1 << (bits + 4):
        return
    primes, rng = np.array(moduli, np.uint64), np.random.default_rng(data.draw(st.integers(0, 2**32)))
    degree = data.draw(st.integers(1, 40))
    messages = rng.integers(0, t, degree, np.uint64)
    messages[0] = t - 1
    whole = np.array([modulus // t % p for p in moduli], np.uint64)
    out = np.empty((len(moduli), degree), np.uint64)
    kernel().scaled(messages, whole, modulus % t, bits, primes, out, degree)
    exact = [(2 * modulus * m + t) // (2 * t) for m in messages.tolist()]
    assert out.tolist() == [[x % p for x in exact] for p in moduli]

    quarter = modulus // (4 * t) - 1
    noisy = [x + data.draw(st.sampled_from([-quarter, 0, quarter])) for x in exact]
    words = np.array([[x % p for x in noisy] for p in moduli], np.uint64)
    inverses = np.array([pow(modulus // p, -1, p) for p in moduli], np.uint64)
    found = np.empty(degree, np.uint64)
    kernel().rounded(words, inverses, bits, primes, found, degree)
    assert np.array_equal(found, messages)


GOOD: dict[str, dict[str, Any]] = {
    "powers": {"primes": np.array([17, 97], np.uint64), "roots": np.array([3, 2], np.uint64),
               "out": np.zeros((2, 2, 2, 8), np.uint64), "degree": 8},
    "transform": {"words": np.zeros((3, 2, 8), np.uint64), "powers": np.zeros((2, 2, 2, 8), np.uint64),
                  "primes": np.array([17, 97], np.uint64), "degree": 8, "back": False},
    "add": {"words": np.zeros((3, 2, 5), np.uint64), "others": np.zeros((3, 2, 5), np.uint64),
            "primes": np.array([17, 97], np.uint64), "degree": 5},
    "products": {"words": np.zeros((3, 2, 5), np.uint64), "polynomial": np.zeros((2, 5), np.uint64),
                 "primes": np.array([17, 97], np.uint64), "out": np.zeros((3, 2, 5), np.uint64), "degree": 5},
    "ternary": {"octets": bytes(9), "primes": np.array([17, 97], np.uint64), "out": np.zeros((2, 5), np.uint64), "degree": 5},
    "binomial": {"octets": bytes(40), "primes": np.array([193, 97], np.uint64), "out": np.zeros((2, 5), np.uint64), "degree": 5},
    "scaled": {"messages": np.zeros(5, np.uint64), "whole": np.array([16, 96], np.uint64), "rest": 15, "bits": 4,
               "primes": np.array([17, 97], np.uint64), "out": np.zeros((2, 5), np.uint64), "degree": 5},
    "switched": {"words": np.zeros((3, 2, 5), np.uint64), "inverses": np.array([16], np.uint64),
                 "primes": np.array([17, 97], np.uint64), "out": np.zeros((3, 1, 5), np.uint64), "degree": 5},
    "rounded": {"words": np.zeros((2, 5), np.uint64), "inverses": np.array([16, 96], np.uint64), "bits": 4,
                "primes": np.array([17, 97], np.uint64), "out": np.zeros(5, np.uint64), "degree": 5},
}  # fmt: skip
BAD: list[tuple[str, str, Any]] = [
    ("powers", "degree", 6), ("powers", "degree", 0), ("powers", "degree", -8), ("powers", "degree", 1 << 40),
    ("powers", "roots", np.array([3, 97], np.uint64)), ("powers", "roots", np.array([3], np.uint64)),
    ("powers", "out", np.zeros((2, 2, 8), np.uint64)), ("powers", "primes", np.array([16, 97], np.uint64)),
    ("transform", "degree", 4), ("binomial", "primes", np.array([19, 97], np.uint64)), ("transform", "powers", np.zeros((2, 2, 8), np.uint64)),
    ("transform", "words", np.zeros((3, 8), np.uint64)), ("transform", "words", np.zeros(0, np.uint64)),
    ("transform", "primes", np.array([17], np.uint64)), ("transform", "primes", np.array([17, 1], np.uint64)),
    ("add", "others", np.zeros((2, 2, 5), np.uint64)), ("add", "degree", 4), ("add", "words", np.zeros(0, np.uint64)),
    ("products", "polynomial", np.zeros((3, 5), np.uint64)), ("products", "out", np.zeros((2, 2, 5), np.uint64)),
    ("products", "words", np.zeros((3, 5), np.uint64)), ("products", "degree", 65_537),
    ("ternary", "out", np.zeros((2, 4), np.uint64)), ("ternary", "degree", 0),
    ("binomial", "octets", bytes(39)), ("binomial", "out", np.zeros((1, 5), np.uint64)),
    ("scaled", "messages", np.zeros(4, np.uint64)), ("scaled", "whole", np.array([17, 96], np.uint64)),
    ("scaled", "rest", 16), ("scaled", "bits", 0), ("scaled", "bits", 60), ("scaled", "out", np.zeros((2, 4), np.uint64)),
    ("switched", "out", np.zeros((3, 2, 5), np.uint64)), ("switched", "inverses", np.array([17], np.uint64)),
    ("switched", "inverses", np.array([1, 1], np.uint64)), ("switched", "primes", np.array([17], np.uint64)),
    ("rounded", "words", np.zeros((1, 5), np.uint64)), ("rounded", "out", np.zeros(4, np.uint64)),
    ("rounded", "inverses", np.array([17, 96], np.uint64)), ("rounded", "bits", 0), ("rounded", "bits", 60),
]  # fmt: skip


@needs_kernel
@pytest.mark.parametrize("name", GOOD)
def test_the_kernel_takes_what_fits_and_only_aligned_words_and_writes_only_where_it_may(name: str) -> None:
    function, good = getattr(kernel(), name), GOOD[name]
    function(*good.values())
    for key, value in good.items():
        if isinstance(value, np.ndarray):
            shifted = np.frombuffer(bytearray(value.nbytes + 1), np.uint8)[1:].view("<u8").reshape(value.shape)
            shifted[...] = value
            with pytest.raises(ValueError, match="which are aligned"):
                function(*(good | {key: shifted}).values())
    written = good["words" if name in ("transform", "add") else "out"].copy()
    written.flags.writeable = False
    with pytest.raises((BufferError, TypeError)):
        function(*(good | {"words" if name in ("transform", "add") else "out": written}).values())


@needs_kernel
def test_only_degrees_that_are_powers_of_two_are_transformed() -> None:
    """Everything else fits."""
    primes, powers = np.array([97], np.uint64), np.zeros((1, 2, 2, 24), np.uint64)
    with pytest.raises(ValueError, match="fit together"):
        kernel().transform(np.zeros((1, 1, 24), np.uint64), powers, primes, 24, False)
    with pytest.raises(ValueError, match="fit together"):
        kernel().powers(primes, np.array([2], np.uint64), powers, 24)


@needs_kernel
@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case[0]}-{case[1]}-{np.shape(case[2]) or case[2]}")
def test_the_kernel_refuses_what_does_not_fit(case: tuple[str, str, Any]) -> None:
    name, key, value = case
    with pytest.raises(ValueError, match="fit together"):
        getattr(kernel(), name)(*(GOOD[name] | {key: value}).values())
