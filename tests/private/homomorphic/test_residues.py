"""Arithmetic on residues and limbs against Python's integers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.private.homomorphic import MessageError, _backends
from deepreduce.private.homomorphic._backends import available_backends
from deepreduce.private.homomorphic.residues import (
    centred,
    combine_modulo,
    compose,
    cut,
    decompose,
    multiply_modulo,
    pack,
    restore,
    round_away,
    shift_up,
    unpack,
)

from .exact import CALM

# The largest primes of 40, 48, 56 and 60 bits that are 1 modulo 2 * 8192, which SEAL takes as well, and smaller ones.
LARGE = [0xFFFFE80001, 0xFFFFFFFF00001, 0xFFFFFFFFFFC0001]
LARGEST = (1 << 60) - 2**14 * 28 + 1
PAIRS = st.sampled_from(
    [(LARGE[2], LARGE[1]), (LARGE[2], LARGE[0]), (LARGE[1], LARGE[0]), (LARGE[0], LARGE[2]), (5, 3), (3, 5),
     (LARGEST, LARGE[1]), (LARGE[1], LARGEST)]
)  # fmt: skip


def limbs(values: list[int], count: int = 2) -> np.ndarray:
    return np.array([[value >> 64 * place & ((1 << 64) - 1) for value in values] for place in range(count)], np.uint64)


def integers(numbers: np.ndarray) -> list[int]:
    return [sum(int(limb) << 64 * place for place, limb in enumerate(column)) for column in numbers.T]


def below(modulus: int) -> st.SearchStrategy[list[int]]:
    """Draw numbers, those at the ends and around the border of the limbs among them."""
    special = [v for v in (0, 1, modulus - 1, modulus // 2, (1 << 64) - 1, 1 << 64) if v < modulus]
    return st.lists(st.one_of(st.integers(0, modulus - 1), st.sampled_from(special)), min_size=1)


@CALM
@given(PAIRS, st.data())
def test_example_remainders_modulo_two_primes_and_back(primes: tuple[int, int], data) -> None:
    values = data.draw(below(math.prod(primes)))
    residues = np.array([[value % prime for value in values] for prime in primes], np.uint64)
    assert integers(compose(residues, primes)) == values
    assert np.array_equal(decompose(limbs(values), primes), residues)
    one = residues[:1]
    assert np.array_equal(compose(one, primes[:1]), one) and np.array_equal(decompose(one, primes[:1]), one)


@CALM
@given(st.lists(st.integers(0, (1 << 48) - 1), min_size=1), st.data())
def test_modular_product_is_exact(values: list[int], data) -> None:
    prime = data.draw(st.sampled_from([(1 << 56) - 5, 0xFFFFFFFFF78001, (1 << 60) - 93, (1 << 40) - 87, 65537]))
    factor = data.draw(st.integers(0, prime - 1))
    array = np.array(values, np.uint64)
    assert multiply_modulo(array, factor, prime).tolist() == [value * factor % prime for value in values]
    found = combine_modulo([array, array[::-1], array], factor, prime)
    whole = [low + (high << 48) + (low << 96) for low, high in zip(values, values[::-1], strict=True)]
    assert found.tolist() == [value * factor % prime for value in whole]


@CALM
@given(st.sampled_from(LARGE), st.one_of(st.none(), st.sampled_from(LARGE)), st.integers(0, 90), st.data())
def test_rounding_away_low_bits(prime: int, other: int | None, drop: int, data) -> None:
    count, modulus = (1, prime) if other is None else (2, prime * other)
    drop = min(drop, modulus.bit_length() - 1)
    values = data.draw(below(modulus))
    high = round_away(limbs(values, count), drop, modulus)
    assert all(value << drop < modulus for value in integers(high))
    half = (1 << drop) >> 1
    assert all((v - (h << drop) + half) % modulus <= 2 * half for v, h in zip(values, integers(high), strict=True))
    assert integers(shift_up(high, drop)) == [value << drop for value in integers(high)]


@contextmanager
def using(backend: str) -> Iterator[None]:
    """The kernel, or numpy in its place."""
    with pytest.MonkeyPatch.context() as patch:
        if backend == "seal":
            patch.setattr(_backends, "kernel", None)
        yield


@pytest.mark.parametrize("backend", available_backends())
@CALM
@given(st.one_of(PAIRS, st.sampled_from([(prime,) for prime in LARGE])), st.integers(0, 119), st.data())
def test_what_is_cut_comes_back_rounded(backend: str, primes: tuple[int, ...], drop: int, data) -> None:
    """Both ways, as bytes, against Python's integers."""
    modulus = math.prod(primes)
    drop = min(drop, modulus.bit_length() - 1)
    size = -(-(modulus.bit_length() - drop) // 8)
    values = data.draw(below(modulus))
    residues = np.array([[value % one for value in values] for one in primes], np.uint64)
    with using(backend):
        octets = cut(residues, primes, drop=drop, size=size)
    high = [value + ((1 << drop) >> 1) >> drop for value in values]
    high = [value if value << drop < modulus else 0 for value in high]
    assert octets == b"".join(value.to_bytes(size, "little") for value in high)
    with using(backend):
        back = restore(octets, primes, drop=drop, size=size, what="a test")
        assert back.tolist() == [[(value << drop) % one for value in high] for one in primes]
        assert np.array_equal(restore(memoryview(octets), primes, drop=drop, size=size, what="a test"), back)
    least = -(-modulus >> drop)
    for wrong in {least, (1 << 8 * size) - 1}:
        if least <= wrong < 1 << 8 * size:
            with using(backend), pytest.raises(MessageError, match="a test must be below its modulus.*at least"):
                restore(octets + wrong.to_bytes(size, "little"), primes, drop=drop, size=size, what="a test")


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("primes", [(LARGE[2], LARGE[0]), (LARGE[0], LARGE[2]), (LARGEST, LARGE[1]), (LARGEST,)])
def test_a_thousand_numbers_are_cut(backend: str, primes: tuple[int, ...]) -> None:
    """As they come out of SEAL, behind a header of an odd size."""
    rng = np.random.default_rng(0)
    residues = np.stack([rng.integers(0, prime, 1000, np.uint64) for prime in primes])
    shifted = np.frombuffer(bytes(1) + residues.tobytes(), "<u8", offset=1).reshape(residues.shape)
    drop, size = 20, -(-(math.prod(primes).bit_length() - 20) // 8)
    values = integers(compose(residues, primes))
    with using(backend):
        octets = cut(shifted, primes, drop=drop, size=size)
    high = [value + (1 << drop - 1) >> drop for value in values]
    assert octets == b"".join(value.to_bytes(size, "little") for value in high)


@pytest.mark.parametrize("backend", available_backends())
@CALM
@given(st.integers(1, 192), st.lists(st.sampled_from([*LARGE, 3, 65537]), min_size=1, max_size=3), st.data())
def test_random_bits_become_numbers_around_zero(backend: str, bits: int, primes: list[int], data) -> None:
    size = -(-bits // 8)
    values = data.draw(st.lists(st.integers(0, (1 << 8 * size) - 1), min_size=1, max_size=20))
    octets = b"".join(value.to_bytes(size, "little") for value in values)
    expected = [value % (1 << bits) - (1 << bits - 1) for value in values]
    with using(backend):
        found = centred(octets, tuple(primes), bits=bits)
    assert found.tolist() == [[value % prime for value in expected] for prime in primes]


@pytest.mark.skipif("kernel" not in available_backends(), reason="the compiled kernel is not there")
def test_the_kernel_refuses_what_does_not_fit() -> None:
    kernel: Any = _backends.kernel
    numbers, octets, two, one = (
        np.zeros((2, 5), np.uint64),
        bytes(40),
        np.array([5, 7], np.uint64),
        np.array([5], np.uint64),
    )
    kernel.cut(numbers, two, 3, 4, 8, bytearray(40))
    kernel.restore(octets, two, 4, 8, numbers)
    kernel.centred(octets, two, 64, numbers)
    even, large, three = (
        np.array([5, 8], np.uint64),
        np.array([5, (1 << 60) + 1], np.uint64),
        np.array([3, 5, 7], np.uint64),
    )
    for primes in (even, large, three, np.zeros(0, np.uint64), one):
        for call in (
            lambda own=primes: kernel.cut(numbers, own, 3, 4, 8, bytearray(40)),
            lambda own=primes: kernel.restore(octets, own, 4, 8, numbers),
            lambda own=primes: kernel.centred(octets, own, 64, numbers),
        ):
            with pytest.raises(ValueError, match="fit together"):
                call()
    for inverse, drop, size, length in (
        (7, 4, 8, 40),
        (3, -1, 8, 40),
        (3, 120, 8, 40),
        (3, 4, 0, 0),
        (3, 4, 17, 85),
        (3, 4, 8, 39),
    ):
        with pytest.raises(ValueError, match="fit together"):
            kernel.cut(numbers, two, inverse, drop, size, bytearray(length))
    for drop, size, length in ((-1, 8, 40), (120, 8, 40), (4, 0, 0), (4, 17, 85), (4, 8, 39), (4, 8, 48)):
        with pytest.raises(ValueError, match="fit together"):
            kernel.restore(bytes(length), two, drop, size, numbers)
    for bits, length in ((0, 0), (-8, 40), (193, 125), (64, 39), (64, 48)):
        with pytest.raises(ValueError, match="fit together"):
            kernel.centred(bytes(length), two, bits, numbers)


@CALM
@given(st.integers(1, 16), st.lists(st.integers(0, (1 << 128) - 1), max_size=20), st.data())
def test_packing_keeps_the_low_bytes_and_holds_the_bound(size: int, values: list[int], data) -> None:
    values = [value % (1 << 8 * size) for value in values]
    octets = pack(limbs(values), size)
    assert octets == b"".join(value.to_bytes(size, "little") for value in values)
    assert integers(unpack(octets, size, 1 << 128, what="a test", limbs=2)) == values
    bound = data.draw(st.one_of(st.integers(1, (1 << 128) - 1), st.sampled_from([v or 1 for v in values] or [1])))
    if all(value < bound for value in values):
        unpack(octets, size, bound, what="a test", limbs=2)
    else:
        with pytest.raises(MessageError, match="below its modulus"):
            unpack(octets, size, bound, what="a test", limbs=2)
