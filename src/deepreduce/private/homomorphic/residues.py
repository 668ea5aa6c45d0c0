"""Arithmetic of residues on whole arrays: modulo single primes, and modulo the product of two in two 64-bit limbs.

An answer is cut down to the high bits of numbers modulo q', the product of the primes that it keeps: one, or two of
together up to 120 bits. Such numbers are held as limbs, shape (limbs, count), the low limb first, with as many limbs
as there are primes. Everything is exact. `cut`, `restore` and `centred` are computed by the compiled kernel where there
is one; the functions on limbs are the same in numpy.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ...errors import problem
from . import _backends
from .errors import MessageError
from .packing import Words

_WORD = (1 << 64) - 1
_HALF = np.uint64(32)
_LOW_HALF = np.uint64((1 << 32) - 1)
_PIECE_BITS = 48
_PIECE = np.uint64(_PIECE_BITS)
_LOW_PIECE = np.uint64((1 << 48) - 1)


def cut(residues: Words, primes: tuple[int, ...], *, drop: int, size: int) -> bytes:
    """Round numbers to their high bits and pack them.

    Args:
        residues: of numbers modulo the product of one or two primes, shape (primes, count).
        primes: one or two of at most 60 bits.
        drop: low bits that go.
        size: bytes that a number takes then; more than eight for two primes alone.
    """
    if _backends.kernel is None:
        return pack(round_away(compose(residues, primes), drop, math.prod(primes)), size)
    out = bytearray(residues.shape[1] * size)
    inverse = pow(primes[0], -1, primes[1]) if len(primes) == 2 else 0
    words = np.require(residues, np.uint64, ["C", "A"])
    _backends.kernel.cut(words, np.array(primes, np.uint64), inverse, drop, size, out)
    return bytes(out)


def restore(data: bytes | memoryview, primes: tuple[int, ...], *, drop: int, size: int, what: str) -> Words:
    """Return the residues of the numbers that `cut` packed, zeros in place of the bits that went.

    Args:
        data: numbers of `size` bytes each.
        primes, drop, size: as for `cut`.
        what: the message that holds them, for the error.

    Returns:
        Shape (primes, count).

    Raises:
        MessageError: a number is not below the product of the primes.
    """
    modulus = math.prod(primes)
    if _backends.kernel is None:
        return decompose(shift_up(unpack(data, size, -(-modulus >> drop), what=what, limbs=len(primes)), drop), primes)
    found = np.empty((len(primes), len(data) // size), np.uint64)
    if not _backends.kernel.restore(data, np.array(primes, np.uint64), drop, size, found):
        raise _too_large(what, size, -(-modulus >> drop))
    return found


def centred(octets: bytes | memoryview, primes: tuple[int, ...], *, bits: int) -> Words:
    """Return numbers from -2^(bits - 1) up to 2^(bits - 1), without it, modulo primes.

    Args:
        octets: of each number 2^(bits - 1) more, in ceil(bits / 8) bytes; bits beyond `bits` are not looked at.
        primes: of at most 60 bits.
        bits: from 1 to 192.

    Returns:
        Shape (primes, count).
    """
    size = -(-bits // 8)
    count = len(octets) // size
    found = np.empty((len(primes), count), np.uint64)
    if _backends.kernel is not None:
        _backends.kernel.centred(octets, np.array(primes, np.uint64), bits, found)
        return found
    padded = np.zeros((count, 24), np.uint8)
    padded[:, :size] = np.frombuffer(octets, np.uint8).reshape(count, size)
    pieces = []
    for low in range(0, bits, _PIECE_BITS):
        piece = np.zeros((count, 8), np.uint8)
        piece[:, :6] = padded[:, low // 8 : low // 8 + 6]
        mask = np.uint64((1 << min(_PIECE_BITS, bits - low)) - 1)
        pieces.append(piece.view("<u8").ravel().astype(np.uint64) & mask)
    for line, prime in zip(found, primes, strict=True):
        line[:] = combine_modulo(pieces, 1, prime)
    lowest = np.array([(-(1 << (bits - 1))) % prime for prime in primes], np.uint64)[:, None]
    return add_modulo(found, lowest, primes)


def add_modulo(a: Words, b: Words, primes: tuple[int, ...]) -> Words:
    """Add residues below their primes; the primes run along the first axis."""
    modulus = np.array(primes, np.uint64)[:, None]
    total = a + b
    total -= modulus * (total >= modulus)
    return total


def multiply_modulo(a: Words, factor: int, prime: int) -> Words:
    """Multiply numbers below 2^48 by a constant below a prime of at most 60 bits, modulo that prime.

    The quotient comes from a double: a is exact in it, factor / prime and the product are each rounded once, so its
    error is below 2^48 2^-52, and the remainder, computed modulo 2^64, is off by one prime at most.
    """
    quotient = (a.astype(np.float64) * (factor / prime)).astype(np.uint64)
    rest = (a * np.uint64(factor) - quotient * np.uint64(prime)).view(np.int64)
    rest += prime * (rest < 0)
    rest -= prime * (rest >= prime)
    return rest.view(np.uint64)


def combine_modulo(pieces: list[Words], factor: int, prime: int) -> Words:
    """Return factor times the numbers with these pieces of 48 bits, the lowest first, modulo a prime."""
    total = np.zeros_like(pieces[0])
    for place, piece in enumerate(pieces):
        total += multiply_modulo(piece, (factor << 48 * place) % prime, prime)
        total -= np.uint64(prime) * (total >= prime)
    return total


def compose(residues: Words, primes: tuple[int, ...]) -> Words:
    """Return the numbers modulo the product of one or two primes that have these residues (Chinese remainders).

    Args:
        residues: shape (primes, count).
        primes: p, or p and p'; of at most 60 bits.

    Returns:
        Limbs: r, or r + p ((r' - r) / p mod p').
    """
    if len(primes) == 1:
        return residues
    (p, other), (low, high) = primes, residues
    difference = high + np.uint64(other) - low % np.uint64(other)
    quotient = combine_modulo([difference & _LOW_PIECE, difference >> _PIECE], pow(p, -1, other), other)
    # p times quotient in halves of 32 bits; both have at most 60 bits, so no sum of products overflows.
    a, b, c, d = quotient & _LOW_HALF, quotient >> _HALF, np.uint64(p) & _LOW_HALF, np.uint64(p) >> _HALF
    middle = a * d + ((a * c) >> _HALF)
    upper = b * d + (middle >> _HALF) + ((b * c + (middle & _LOW_HALF)) >> _HALF)
    lower = quotient * np.uint64(p) + low
    return np.stack([lower, upper + (lower < low)])


def decompose(numbers: Words, primes: tuple[int, ...]) -> Words:
    """Return the residues of the numbers that `compose` returned, shape (primes, count)."""
    if len(primes) == 1:
        return numbers
    low, high = numbers
    pieces = [low & _LOW_PIECE, (low >> _PIECE) | ((high << np.uint64(16)) & _LOW_PIECE), high >> _HALF]
    return np.stack([combine_modulo(pieces, 1, prime) for prime in primes])


def round_away(numbers: Words, drop: int, modulus: int) -> Words:
    """Round away the low bits; what would round up to the modulus or past it becomes zero, which is the same."""
    half = (1 << drop) >> 1
    rounded = numbers.copy()
    rounded[0] += np.uint64(half & _WORD)
    if len(numbers) == 2:
        rounded[1] += np.uint64(half >> 64) + (rounded[0] < numbers[0])
    high = _shift_down(rounded, drop)
    high[:, _reaches(shift_up(high, drop), modulus)] = 0
    return high


def shift_up(numbers: Words, bits: int) -> Words:
    """Multiply by 2^bits; nothing may be lost."""
    if len(numbers) == 1 or bits == 0:
        return numbers << np.uint64(bits)
    low, high = numbers
    if bits >= 64:
        return np.stack([np.zeros_like(low), low << np.uint64(bits - 64)])
    return np.stack([low << np.uint64(bits), (high << np.uint64(bits)) | (low >> np.uint64(64 - bits))])


def pack(numbers: Words, size: int) -> bytes:
    """Return the low `size` bytes of every number, little endian.

    Args:
        numbers: limbs, or the only limb.
        size: at most eight times the number of limbs.
    """
    limbs = np.ascontiguousarray(np.atleast_2d(numbers).T.astype("<u8", copy=False))
    return np.ascontiguousarray(limbs.view(np.uint8)[:, :size]).tobytes()


def unpack(data: bytes | memoryview, size: int, bound: int, *, what: str, limbs: int = 1) -> Words:
    """Return the numbers that `pack` wrote, as limbs; all must be below a bound.

    Raises:
        MessageError: a number is not below the bound.
    """
    octets = np.frombuffer(data, np.uint8).reshape(-1, size)
    words = np.zeros((octets.shape[0], 8 * limbs), np.uint8)
    words[:, :size] = octets
    found = np.ascontiguousarray(words.view("<u8").T.astype(np.uint64, copy=False))
    if _reaches(found, bound).any():
        raise _too_large(what, size, bound)
    return found


def _too_large(what: str, size: int, bound: int) -> MessageError:
    return MessageError(
        problem(
            f"every word of {what} must be below its modulus",
            got=f"a word of up to {8 * size} bits that is at least {bound:#x}",
            remedy="drop the connection: the other party is broken or hostile",
        )
    )


def _shift_down(numbers: Words, bits: int) -> Words:
    if len(numbers) == 1 or bits == 0:
        return numbers >> np.uint64(bits)
    low, high = numbers
    if bits >= 64:
        return np.stack([high >> np.uint64(bits - 64), np.zeros_like(high)])
    return np.stack([(low >> np.uint64(bits)) | (high << np.uint64(64 - bits)), high >> np.uint64(bits)])


def _reaches(numbers: Words, bound: int) -> npt.NDArray[np.bool_]:
    """Tell which numbers are at least as large as a bound."""
    if bound >> 64 * len(numbers):
        return np.zeros(numbers.shape[1], np.bool_)
    top: npt.NDArray[np.uint64] = numbers[-1]
    found: npt.NDArray[np.bool_] = top >= np.uint64(bound >> 64 * (len(numbers) - 1))
    if len(numbers) == 2:
        at_top = top == np.uint64(bound >> 64)
        found &= ~at_top | (numbers[0] >= np.uint64(bound & _WORD))
    return found
