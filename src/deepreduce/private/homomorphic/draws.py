"""Random numbers of the encryption: AES-256 in counter mode, keyed by the operating system.

A blinded answer takes some 230 KB of random octets. The operating system would take as long for them as the arithmetic
does, so it gives a key of 256 bits, fresh for every call, and AES gives the rest (NIST SP 800-38A, 6.5).
"""

from __future__ import annotations

import math
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from .packing import Words
from .parameters import Parameters
from .residues import centred
from .scheme import scheme

SEED_BYTES = 32
"""A seed is a key of AES-256."""

_SPARE_BITS = 64
"""Bits that a number has beyond those below its prime: modulo the prime it is within 2^-65 of uniform."""


def stream(seed: bytes, count: int) -> bytes:
    """Return the first octets of the key stream of a seed, the counter beginning at 0."""
    return Cipher(AES(seed), CTR(bytes(16))).encryptor().update(bytes(count))


def fresh(count: int) -> bytes:
    """Draw secret octets."""
    return stream(os.urandom(SEED_BYTES), count)


def expand(parameters: Parameters, seed: bytes) -> Words:
    """Expand a public seed to a polynomial: the second one of a request.

    Of every coefficient modulo every prime, prime by prime: as many octets as hold 63 bits more than the prime has. Of
    these so many bits count, as a little-endian number less half its range, modulo the prime.

    Args:
        parameters: of the encryption.
        seed: 32 octets.

    Returns:
        Shape (prime, coefficient); each number is within 2^-65 of uniform, in statistical distance.
    """
    primes, degree = scheme(parameters).primes, parameters.degree
    found = np.empty((len(primes), degree), np.uint64)
    bits = [prime.bit_length() - 1 + _SPARE_BITS for prime in primes]
    sizes = [-(-some // 8) * degree for some in bits]
    octets, place = memoryview(stream(seed, sum(sizes))), 0
    for line, prime, some, size in zip(found, primes, bits, sizes, strict=True):
        line[:] = centred(octets[place : place + size], (prime,), bits=some)[0]
        place += size
    return found


def flood(parameters: Parameters) -> Words:
    """Draw one flood: N secret integers uniform on [-2^(f-1), 2^(f-1)), modulo the primes.

    Returns:
        Shape (prime, coefficient).
    """
    bits = parameters.flood_bits
    return centred(fresh(-(-bits // 8) * parameters.degree), scheme(parameters).primes, bits=bits)


def draw_share(parameters: Parameters, shape: tuple[int, ...]) -> Words:
    """Draw a secret mask, uniform elements of Z_2^k.

    Args:
        parameters: set k.
        shape: of the mask.

    Returns:
        Numbers below 2^k.
    """
    drawn = np.frombuffer(fresh(8 * math.prod(shape)), "<u8").reshape(shape)
    return drawn & np.uint64((1 << parameters.ring_bits) - 1)
