"""Ring elements mod 2^k, shares of them, and two ways to divide shares by a power of two.

Dropping the low d bits. Two parties hold y_S + y_C = y mod 2^k with y_C uniform. The client computes
floor(y_C / 2^d); the server first adds 2^d - 1 and computes floor((y_S + 2^d - 1 mod 2^k) / 2^d). Then, **exactly**,

    server + client = floor(y / 2^d)  or  ceil(y / 2^d)   mod 2^(k - d),

without any probability of failure: write y_C = h·2^d + l with 0 <= l < 2^d. Then (y - y_C + 2^d - 1 mod 2^k) / 2^d,
rounded down, is floor((y - l + 2^d - 1) / 2^d) - h mod 2^(k - d), and 0 <= l <= 2^d - 1. Over the uniform l the
upper value comes out with probability (y mod 2^d) / 2^d: the rounding is unbiased, and exact where 2^d divides y.
The ring loses d bits.

Truncating. Where y is small, both parties know more: y_S + y_C is not only y mod 2^k but, over the integers, y + 2^k,
unless y_C is one of the |y| (or so) elements of the ring for which the sum wraps once less or once more. So without
its last reduction the sum above, less 2^(k - d), is floor(y / 2^d) or ceil(y / 2^d) over the integers, and the parties
may reduce it modulo any ring, also a larger one. This is the truncation of SecureML (Mohassel and Zhang, IEEE S&P
2017, theorem 1); it fails, and then grossly, with probability at most (|y| + 1) / 2^k over the uniform y_C: y_C <= y
for y >= 0, y_C > 2^k - |y| for y < 0. What is wrong then is a multiple of 2^(k - d), so modulo that it never fails.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError, problem

Words = NDArray[np.uint64]
"""Ring elements: `uint64`, each below 2^k."""

MAX_RING_BITS = 62
"""Largest k; two bits of a 64-bit word stay free, so that sums of two elements never overflow the word."""


UNIFORM_BITS = 30
"""Low bits of a truncated share that are uniform at least, where its ring has more; see `homomorphic/noise.py`."""


def check_bits(bits: int) -> None:
    """Check that 1 <= bits <= 62.

    Raises:
        UsageError: otherwise.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MAX_RING_BITS:
        raise UsageError(
            problem(
                f"ring bits are a whole number from 1 to {MAX_RING_BITS}",
                got=bits,
                remedy="use a smaller format, so that the ring fits a 64-bit word",
            )
        )


def reduce(values: Words, bits: int) -> Words:
    """Return the values mod 2^bits; they may be any `uint64`, a wrapped sum or product included."""
    check_bits(bits)
    return values & np.uint64((1 << bits) - 1)


def unsigned(values: NDArray[np.int64], bits: int) -> Words:
    """Return signed integers mod 2^bits as ring elements; any `int64` is taken."""
    return reduce(np.ascontiguousarray(values, dtype=np.int64).view(np.uint64), bits)


def signed(values: Words, bits: int) -> NDArray[np.int64]:
    """Return ring elements as the signed integers in [-2^(bits-1), 2^(bits-1)) that they stand for."""
    check_bits(bits)
    free = np.uint64(64 - bits)
    return (values << free).view(np.int64) >> np.int64(64 - bits)


def shift_left(values: Words, shift: int, bits: int) -> Words:
    """Return values · 2^shift mod 2^bits, shift from 0 to 62.

    Applied to both shares it is exact, and shares mod 2^(bits - shift) are enough: multiplying by 2^shift makes
    shares mod 2^bits of them.
    """
    if not 0 <= shift <= MAX_RING_BITS:
        raise UsageError(problem("a shift is from 0 to 62 bits", got=shift, remedy="align the formats of the branches"))
    return reduce(values << np.uint64(shift), bits)


def random_words(shape: tuple[int, ...], bits: int) -> Words:
    """Draw uniform ring elements from the operating system's randomness."""
    check_bits(bits)
    count = int(np.prod(shape, dtype=np.int64))
    return reduce(np.frombuffer(os.urandom(8 * count), dtype=np.uint64).reshape(shape).copy(), bits)


def split(values: Words, client: Words, bits: int) -> Words:
    """Return the server's share of `values` when the client's share is `client`: values - client mod 2^bits.

    The secret is hidden only if `client` is uniform and used once; `random_words` draws such a share.
    """
    return reduce(values - client, bits)


def reconstruct(server: Words, client: Words, bits: int) -> Words:
    """Return the value that two shares stand for: server + client mod 2^bits."""
    return reduce(server + client, bits)


def drop_server(share: Words, bits: int, dropped: int) -> Words:
    """Drop the low `dropped` bits of the server's share mod 2^bits; the result is a share mod 2^(bits - dropped).

    Args:
        share: the server's share.
        bits: of its ring.
        dropped: from 0 to bits - 1. See the head of this module for the exact guarantee.

    Raises:
        UsageError: if nothing would remain of the ring.
    """
    _check_drop(bits, dropped)
    return reduce(share + np.uint64((1 << dropped) - 1), bits) >> np.uint64(dropped)


def drop_client(share: Words, bits: int, dropped: int) -> Words:
    """Drop the low `dropped` bits of the client's share; see `drop_server`."""
    _check_drop(bits, dropped)
    return reduce(share, bits) >> np.uint64(dropped)


def truncate_server(share: Words, bits: int, dropped: int, to: int) -> Words:
    """Drop low bits of the server's share of a small number; the result is a share mod 2^to, for any ring.

    Args:
        share: the server's share.
        bits: of its ring.
        dropped: from 0 to bits - 1.
        to: bits of the ring of the result. See the head of this module for how likely it is to fail.

    Raises:
        UsageError: if nothing would remain of the ring.
    """
    _check_drop(bits, dropped)
    return reduce((reduce(share, bits) + np.uint64((1 << dropped) - 1)) >> np.uint64(dropped), to)


def truncate_client(share: Words, bits: int, dropped: int, to: int) -> Words:
    """Drop low bits of the client's share of a small number; see `truncate_server`."""
    _check_drop(bits, dropped)
    return reduce((reduce(share, bits) >> np.uint64(dropped)) - np.uint64(1 << (bits - dropped)), to)


def _check_drop(bits: int, dropped: int) -> None:
    check_bits(bits)
    if not 0 <= dropped < bits:
        raise UsageError(
            problem(
                "at least one bit of a ring stays when low bits are dropped",
                got=f"{dropped} of {bits} bits",
                remedy="drop fewer bits",
            )
        )
