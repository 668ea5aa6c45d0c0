"""Arithmetic on two's-complement numbers with few AND gates: a number is a list of literals, lowest bit first.

Sums use the full adder with one AND gate, carry' = carry ^ ((a ^ carry) & (b ^ carry)), so that a k-bit sum modulo 2^k
costs k - 1 (Boyar, Peralta, Pochuev, TCS 235, 2000; in garbled circuits Kolesnikov, Sadeghi, Schneider, CANS 2009,
section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import UsageError, problem
from .builder import FALSE, Builder

Number = Sequence[int]


def _same_bits(a: Number, b: Number) -> None:
    if len(a) != len(b) or not a:
        raise UsageError(
            problem(
                "both numbers have the same number of bits, at least one", got=(len(a), len(b)), remedy="extend one"
            )
        )


def _carries(b: Builder, x: Number, y: Number, count: int) -> list[int]:
    """The carries into bits 0 to `count` of x + y; `count` AND gates."""
    carries = [FALSE]
    for x_i, y_i in zip(x[:count], y[:count], strict=True):
        carry = carries[-1]
        carries.append(b.xor(carry, b.and_(b.xor(x_i, carry), b.xor(y_i, carry))))
    return carries


def add(b: Builder, x: Number, y: Number) -> list[int]:
    """x + y modulo 2^k; k - 1 AND gates, the first at half price where the evaluator knows a summand."""
    _same_bits(x, y)
    carries = _carries(b, x, y, len(x) - 1)
    # In this order the first XOR is one that the carry needed as well.
    return [b.xor(b.xor(x_i, c), y_i) for x_i, y_i, c in zip(x, y, carries, strict=True)]


def less_than(b: Builder, x: Number, y: Number) -> int:
    """Is x < y, both read in two's complement? k AND gates: the carry out of not(x) + y with the signs exchanged."""
    _same_bits(x, y)
    inverted = [*(x_i ^ 1 for x_i in x[:-1]), x[-1]]
    return _carries(b, inverted, [*y[:-1], y[-1] ^ 1], len(x))[-1]


def select(b: Builder, condition: int, if_true: Number, if_false: Number) -> list[int]:
    """One of two numbers; k AND gates."""
    _same_bits(if_true, if_false)
    return [b.xor(f, b.and_(condition, b.xor(t, f))) for t, f in zip(if_true, if_false, strict=True)]


def negative(x: Number) -> int:
    """The sign of a two's-complement number: 1 below zero. Free."""
    return x[-1]
