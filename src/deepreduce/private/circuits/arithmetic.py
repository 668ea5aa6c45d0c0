"""Arithmetic on two's-complement numbers with few AND gates: a number is a list of literals, lowest bit first.

Sums use the full adder with one AND gate, carry' = carry ^ ((a ^ carry) & (b ^ carry)), so that a k-bit sum modulo 2^k
costs k - 1 (Boyar, Peralta, Pochuev, TCS 235, 2000; in garbled circuits Kolesnikov, Sadeghi, Schneider, CANS 2009,
section 3). Constants among the inputs fold away in the builder.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import UsageError, problem
from .builder import FALSE, TRUE, Builder

Number = Sequence[int]


def _same_bits(a: Number, b: Number) -> None:
    if len(a) != len(b) or not a:
        raise UsageError(
            problem(
                "both numbers have the same number of bits, at least one", got=(len(a), len(b)), remedy="extend one"
            )
        )


def _carries(b: Builder, x: Number, y: Number, carry: int, count: int) -> list[int]:
    """The carries into bits 0 to `count` of x + y + carry; `count` AND gates."""
    carries = [carry]
    for x_i, y_i in zip(x[:count], y[:count], strict=True):
        if x_i in (FALSE, TRUE) or y_i in (FALSE, TRUE):
            # The same carry, written so that the builder sees the AND with the other bit itself, which costs half if
            # the evaluator knows that bit: the upper part of "ReLU minus mask" is such a sum.
            public, other = (x_i, y_i) if x_i in (FALSE, TRUE) else (y_i, x_i)
            carry = b.or_(carry, other) if public == TRUE else b.and_(carry, other)
        else:
            carry = b.xor(carry, b.and_(b.xor(x_i, carry), b.xor(y_i, carry)))
        carries.append(carry)
    return carries


def add(b: Builder, x: Number, y: Number) -> list[int]:
    """x + y modulo 2^k; k - 1 AND gates, the first at half price where the evaluator knows a summand."""
    _same_bits(x, y)
    carries = _carries(b, x, y, FALSE, len(x) - 1)
    # In this order the first XOR is one that the carry needed as well.
    return [b.xor(b.xor(x_i, c), y_i) for x_i, y_i, c in zip(x, y, carries, strict=True)]


def subtract(b: Builder, x: Number, y: Number) -> list[int]:
    """x - y modulo 2^k, as not(not(x) + y); k - 1 AND gates, no carry to feed in."""
    return [bit ^ 1 for bit in add(b, [x_i ^ 1 for x_i in x], y)]


def less_than(b: Builder, x: Number, y: Number, *, signed: bool = False) -> int:
    """Is x < y? k AND gates: the carry out of not(x) + y.

    Args:
        b: the builder.
        x: k bits.
        y: k bits.
        signed: read both in two's complement. Only the top bits change their role, at no cost.
    """
    _same_bits(x, y)
    if signed:
        x, y = [*x[:-1], x[-1] ^ 1], [*y[:-1], y[-1] ^ 1]
    return _carries(b, [x_i ^ 1 for x_i in x], y, FALSE, len(x))[-1]


def select(b: Builder, condition: int, if_true: Number, if_false: Number) -> list[int]:
    """One of two numbers; k AND gates."""
    _same_bits(if_true, if_false)
    return [b.xor(f, b.and_(condition, b.xor(t, f))) for t, f in zip(if_true, if_false, strict=True)]


def gate_bits(b: Builder, condition: int, x: Number) -> list[int]:
    """x where the condition holds, else 0; k AND gates."""
    return [b.and_(condition, x_i) for x_i in x]


def negative(x: Number) -> int:
    """The sign of a two's-complement number: 1 below zero. Free."""
    return x[-1]


def extend(x: Number, bits: int, *, signed: bool) -> list[int]:
    """Widen a number to `bits` bits, or keep its low bits. Free."""
    fill = x[-1] if signed else FALSE
    return [*x[:bits], *[fill] * (bits - len(x))]


def shift(x: Number, places: int, bits: int, *, signed: bool) -> list[int]:
    """x * 2^places modulo 2^bits; negative places divide and round down. Free."""
    moved = [FALSE] * places + list(x) if places >= 0 else list(x[-places:]) or [x[-1] if signed else FALSE]
    return extend(moved, bits, signed=signed)
