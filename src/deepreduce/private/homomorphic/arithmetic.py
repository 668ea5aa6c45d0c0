"""What the compiled kernel does with the polynomials of one set of parameters: transforms, noise, messages, moduli.

Polynomials are arrays of 64-bit words, shape (..., prime, coefficient), every word below its prime. The primes are the
data primes, or the first of them: those that an answer keeps. NTT values lie as SEAL lays them, so that keys, weights
and ciphertexts go from one to the other as they are. A kernel must be there, `_backends.kernel`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ...errors import problem
from . import _backends
from .draws import fresh
from .errors import ParameterError
from .packing import Integers, Words
from .parameters import Parameters
from .scheme import scheme

_TRITS_PER_OCTET = 5
_NOISE_OCTETS = 8


class Arithmetic:
    """The primes of some parameters, and the powers of their roots; `arithmetic` keeps one per process."""

    def __init__(self, parameters: Parameters) -> None:
        context = scheme(parameters)
        self.parameters = parameters
        self._degree, self._kept = parameters.degree, len(context.answer_primes)
        self._primes = np.array(context.primes, np.uint64)
        roots = np.array([primitive_root(prime, 2 * self._degree) for prime in context.primes], np.uint64)
        self._powers = np.empty((len(roots), 2, 2, self._degree), np.uint64)
        self._kernel.powers(self._primes, roots, self._powers, self._degree)
        modulus = math.prod(context.primes)
        self._whole = np.array([(modulus >> parameters.ring_bits) % prime for prime in context.primes], np.uint64)
        self._rest = modulus % (1 << parameters.ring_bits)
        probe = np.zeros((len(roots), self._degree), np.uint64)
        probe[:, 1] = 1
        self.transform(probe)
        line = np.zeros(self._degree, np.uint64)
        line[1] = 1
        if probe.tobytes() != context.transform(line):
            raise ParameterError(
                problem(
                    "SEAL must order NTT values as the kernel does",
                    got="a version with other roots of unity or another order",
                    remedy="install seal-python 4.4",
                )
            )

    @property
    def _kernel(self) -> Any:
        assert _backends.kernel is not None  # `_backends.choose` has looked
        return _backends.kernel

    def transform(self, words: Words) -> None:
        """Turn coefficients into NTT values, in place."""
        primes = self._primes_of(words)
        self._kernel.transform(words, self._powers[: primes.size], primes, self._degree, False)

    def transform_back(self, words: Words) -> None:
        """Turn NTT values into coefficients, in place."""
        primes = self._primes_of(words)
        self._kernel.transform(words, self._powers[: primes.size], primes, self._degree, True)

    def transformed(self, integers: Integers) -> Words:
        """Return the NTT values of N integers that are smaller in size than any prime."""
        found = (integers + self._primes.astype(np.int64)[:, None] * (integers < 0)).astype(np.uint64)
        self.transform(found)
        return found

    def add(self, words: Words, others: Words) -> None:
        """Add other polynomials to some, in place."""
        self._kernel.add(words, others, self._primes_of(words), self._degree)

    def lifted(self, words: Words) -> Words:
        """Return polynomials times 2^64: as `product` takes them."""
        squares = np.array([pow(2, 128, prime) for prime in self._primes_of(words).tolist()], np.uint64)
        return self.product(words, np.repeat(squares[:, None], self._degree, axis=1))

    def product(self, words: Words, polynomial: Words) -> Words:
        """Multiply polynomials by one, NTT values all; one factor must be `lifted`, because 2^64 is divided out."""
        found = np.empty_like(words)
        self._kernel.products(words, polynomial, self._primes_of(words), found, self._degree)
        return found

    def ternary(self) -> Words:
        """Draw a secret polynomial, uniform on -1, 0 and 1."""
        found = np.empty((self._primes.size, self._degree), np.uint64)
        # An octet gives five numbers, but for 13 of 256. So many octets are too few less than once in 10^32.
        while not self._kernel.ternary(
            fresh(self._degree // _TRITS_PER_OCTET * 11 // 10 + 64), self._primes, found, self._degree
        ):
            pass
        return found

    def noise(self) -> Words:
        """Draw the noise of a ciphertext: of 21 coins those that fell heads, less those of 21 others."""
        found = np.empty((self._primes.size, self._degree), np.uint64)
        self._kernel.binomial(fresh(_NOISE_OCTETS * self._degree), self._primes, found, self._degree)
        return found

    def scaled(self, messages: Words) -> Words:
        """Return (q / t) m, rounded, of N ring elements m."""
        found = np.empty((self._primes.size, self._degree), np.uint64)
        bits = self.parameters.ring_bits
        self._kernel.scaled(messages, self._whole, self._rest, bits, self._primes, found, self._degree)
        return found

    def switch(self, words: Words) -> Words:
        """Return a ciphertext in coefficients divided by the primes that an answer does not keep, rounded."""
        while words.shape[-2] > self._kept:
            primes = self._primes_of(words)
            *others, last = primes.tolist()
            found = np.empty((2, len(others), self._degree), np.uint64)
            inverses = np.array([pow(last, -1, prime) for prime in others], np.uint64)
            self._kernel.switched(words, inverses, primes, found, self._degree)
            words = found
        return words

    def rounded(self, words: Words) -> Words:
        """Return N ring elements m from (q / t) m and noise below a quarter of q / t; `words` has the primes of q."""
        primes = self._primes_of(words)
        modulus = math.prod(primes.tolist())
        inverses = np.array([pow(modulus // prime, -1, prime) for prime in primes.tolist()], np.uint64)
        found = np.empty(self._degree, np.uint64)
        self._kernel.rounded(words, inverses, self.parameters.ring_bits, primes, found, self._degree)
        return found

    def _primes_of(self, words: Words) -> Words:
        return self._primes[: words.shape[-2]]


@functools.lru_cache(maxsize=8)
def arithmetic(parameters: Parameters) -> Arithmetic:
    """Return this process's arithmetic for some parameters.

    Raises:
        ParameterError: SEAL lays out its numbers in another way.
    """
    return Arithmetic(parameters)


def primitive_root(prime: int, order: int) -> int:
    """Return the smallest number whose powers modulo a prime repeat after `order`: a power of two dividing p - 1."""
    candidates = (pow(base, (prime - 1) // order, prime) for base in range(2, prime))
    root = next(found for found in candidates if pow(found, order // 2, prime) == prime - 1)
    square, smallest = root * root % prime, root
    for _ in range(order // 2 - 1):  # the others are its odd powers
        root = root * square % prime
        smallest = min(smallest, root)
    return smallest
