"""Arithmetic on residues and limbs against Python's integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.private.homomorphic import MessageError
from deepreduce.private.homomorphic.residues import (
    combine_modulo,
    compose,
    decompose,
    multiply_modulo,
    pack,
    round_away,
    shift_up,
    unpack,
)

from .exact import CALM

# The largest primes of 40, 48, 56 and 60 bits that are 1 modulo 2 * 8192, which SEAL takes as well, and smaller ones.
LARGE = [0xFFFFE80001, 0xFFFFFFFF00001, 0xFFFFFFFFFFC0001]
PAIRS = st.sampled_from(
    [(LARGE[2], LARGE[1]), (LARGE[2], LARGE[0]), (LARGE[1], LARGE[0]), (LARGE[0], LARGE[2]), (5, 3)]
)


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
