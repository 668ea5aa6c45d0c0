"""From shares of a number to shares of its ReLU, in one message each way and without a circuit. All functions are pure.

y = B x, where B is 1 if x counts as positive. With x' = x + T/2 in w bits and T = 2^(w - t) (`program.rectified`), only
the t upper bits of the shares of x' decide: s and u, the highest one and the other L = t - 1, at the server, c and v at
the client. Their sum is positive where an even number of s, c and the carry of u + v are 1:

    B = not (s xor c xor [u + v >= 2^L]),        and by the shares of that carry (`lookup`)
    B = b_S xor b_C,   b_S = s xor M_S[d],   b_C = not (c xor M_C[d]),   d = u xor a

Where B is 1, the shares, read as signed numbers of w bits, sum to X_S + X_C = x' if s or c is 0, and to x' - 2^w if
both are 1. So with X_S less T/2, modulo 2^k, the ring of the output,

    y = B (X_S + X_C) + 2^w B s c
      = b_S X_S + b_C Y + b_C X_C + b_S Z + 2^w (c P + (b_C c) Q)
        with  Y = (1 - 2 b_S) X_S,  Z = (1 - 2 b_C) X_C,  P = b_S s,  Q = (1 - 2 b_S) s

Four products are of two parties' numbers, each of a bit and a ring element.

*Three with a bit of the client's.* Offline it chooses by g in a transfer whose sender, the server, has o and m: it gets
o + g m. Online the server sends e = Y - m; the client has o + g m + g e = o + g Y. Its true bit is b = g xor f, so the
product is g Y (1 - 2 f) + f Y, and once f is told the server adds its part: -o (1 - 2 f) + f Y. So the bit need not be
known before the message that it answers. For Y (b = b_C) and Q (b = b_C c) g is random and f travels; for P it is c,
and f is 0. P and Q are multiplied by 2^w, so their ring has w bits less.

*One with the server's.* It chooses by pi, random, in a reverse transfer, and has h_pi of the client's h_0 and h_1. It
sends f_S = b_S xor pi; the client sends t = Z - h_(1 - f_S) + h_(f_S); then h_pi + b_S t = b_S Z + h_(f_S).

    server → d, f_S, e_Y, e_P, e_Q
    client → f_Y, f_Q, t, z = all that it has of y - h_(f_S) - r, r being its next mask
    server   z + h_pi + b_S t + all that it has of y  =  y - r

Why it says nothing. To the client a, pi and each m are uniform: of a transfer it has one of two hashes, and m is their
difference. To the server each g that hides a bit is uniform; r masks z, whatever else is in it, and the hash that it
has not chosen masks t. All of it is used once. The product with two transfers is the multiplexer of CrypTFlow2 (Rathee
et al., CCS 2020, section 3); that one of its choices may be told after the fact saves the round trip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..program import Circuit
from ..ring import Words, reduce
from .lookup import carries, look_up

_ONE = np.uint64(1)


@dataclass(frozen=True, eq=False)
class ServerMasks:
    """What the server keeps of the offline phase to ask for n ReLUs.

    Attributes:
        table: M_S, [n, words].
        choices: a, and pi as the bit above it, [n].
        factors: m of the transfer for Y, [n].
        wraps: m of those for P and Q, [2, n], modulo 2^(k - w); none where k = w.
    """

    table: Words
    choices: Words
    factors: Words
    wraps: Words


@dataclass(frozen=True, eq=False)
class ServerOffsets:
    """What the server keeps of the offline phase to take the answer.

    Attributes:
        constants: h_pi less 2^w times the o of the transfer for P, [n].
        offsets: o of the transfer for Y, [n].
        wraps: o of that for Q, [n], modulo 2^(k - w); none where k = w.
    """

    constants: Words
    offsets: Words
    wraps: Words


@dataclass(frozen=True, eq=False)
class ClientPart:
    """What the client keeps of the offline phase for n ReLUs.

    Attributes:
        table: M_C, [n, words].
        values: its share of x', [n], w bits.
        coins: the g of the transfer for Y, and that for Q as the bit above it, [n].
        products: o + g m of the transfer for Y, [n].
        wraps: of those for P and Q, [2, n], modulo 2^(k - w); none where k = w.
        pads: h_0 and h_1, [2, n].
        masks: r, [n].
    """

    table: Words
    values: Words
    coins: Words
    products: Words
    wraps: Words
    pads: Words
    masks: Words


@dataclass(frozen=True, eq=False)
class Question:
    """What the server sends: d with f_S as the bit above it, e_Y, and e_P and e_Q [2, n]."""

    places: Words
    product: Words
    wraps: Words


@dataclass(frozen=True, eq=False)
class Asked:
    """What the server remembers until the reply.

    Attributes:
        product: Y, [n], modulo 2^k, in any type that holds it.
        bits: b_S, and s as the bit above it, uint8 [n].
    """

    product: NDArray[Any]
    bits: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Reply:
    """What the client sends: f_Y and f_Q [2, n], 0 or 1; z and t [2, n]."""

    flips: Words
    words: Words


def index_bits(op: Circuit) -> int:
    """Return L, the bits of a share that the carry hangs on."""
    return op.tested - 1


def client_carries(op: Circuit, share: Words) -> Words:
    """Return the client's table T, from its share [n] mod 2^width without the dropped bits."""
    return carries(reduce(share >> _lower(op), index_bits(op)), index_bits(op))


def client_highest(op: Circuit, share: Words) -> Words:
    """Return c, [n]."""
    return share >> np.uint64(op.width - 1)


def ask(op: Circuit, share: Words, own: ServerMasks, bits: int) -> tuple[Question, Asked]:
    """Return what the server sends, and what it remembers.

    Args:
        op: the program's circuit, with `tested`.
        share: the server's, [n] mod 2^width without the dropped bits.
        own: from the offline phase, used once.
        bits: k, the ring of the output.
    """
    half = _ONE << _lower(op) >> _ONE
    moved = reduce(share + half, op.width)
    s = moved >> np.uint64(op.width - 1)
    places = reduce(moved >> _lower(op) ^ own.choices, index_bits(op))
    b = s ^ look_up(own.table, places)
    told = b ^ own.choices >> np.uint64(index_bits(op))
    # Sums and differences of uint64 wrap modulo 2^64, of which every ring is a part.
    product = reduce(_negated(_signed(op, moved) - half, b), bits)
    question = Question(
        places | told << np.uint64(index_bits(op)),
        reduce(product - own.factors, bits),
        reduce(np.stack([b & s, _negated(s, b)]) - own.wraps, bits - op.width) if bits > op.width else own.wraps,
    )
    return question, Asked(product, (b | s << _ONE).astype(np.uint8))


def reply(op: Circuit, question: Question, own: ClientPart, bits: int) -> Reply:
    """Return what the client sends.

    Args:
        op: the program's circuit.
        question: from the server.
        own: from the offline phase, used once.
        bits: k, the ring of the output.
    """
    places, told = reduce(question.places, index_bits(op)), question.places >> np.uint64(index_bits(op))
    c = own.values >> np.uint64(op.width - 1)
    b = c ^ look_up(own.table, places) ^ _ONE
    value = _signed(op, own.values)
    first, second = own.coins & _ONE, own.coins >> _ONE
    flip = b ^ first
    mine = (value & _mask(b)) + _negated(own.products + (question.product & _mask(first)), flip)
    flips = [flip]
    if bits > op.width:
        third = b & c ^ second
        flips.append(third)
        wrapped = own.wraps[0] + (question.wraps[0] & _mask(c))
        wrapped += _negated(own.wraps[1] + (question.wraps[1] & _mask(second)), third)
        mine += wrapped << np.uint64(op.width)
    chosen, other = np.where(told.astype(bool), own.pads[::-1], own.pads)
    words = np.stack([mine - chosen - own.masks, _negated(value, b) - other + chosen])
    return Reply(np.stack(flips), reduce(words, bits))


def outputs(op: Circuit, answer: Reply, asked: Asked, own: ServerOffsets, bits: int) -> Words:
    """Return the server's share of the outputs, [n].

    Args:
        op: the program's circuit.
        answer: from the client.
        asked: from `ask`.
        own: from the offline phase.
        bits: k, the ring of the output.
    """
    b, product = (asked.bits & 1).astype(np.uint64), asked.product.astype(np.uint64, copy=False)
    z, t = answer.words
    flip = answer.flips[0]
    total = z + own.constants + (t - product & _mask(b))  # b_S X_S is -b_S Y
    total += (product & _mask(flip)) - _negated(own.offsets, flip)
    if bits > op.width:
        s, third = (asked.bits >> 1).astype(np.uint64), answer.flips[1]
        wrapped = (_negated(s, b) & _mask(third)) - _negated(own.wraps, third)
        total += wrapped << np.uint64(op.width)
    return reduce(total, bits)


def _lower(op: Circuit) -> np.uint64:
    return np.uint64(op.width - op.tested)


def _signed(op: Circuit, share: Words) -> Words:
    """Return a share of `width` bits as a signed number, modulo 2^64."""
    highest = share >> np.uint64(op.width - 1)
    return share - (highest << np.uint64(op.width))


def _mask(bit: Words) -> Words:
    """Return all ones where a bit is 1."""
    return np.uint64(0) - bit


def _negated(values: Words, bit: Words) -> Words:
    """Return (1 - 2 bit) values, modulo 2^64."""
    mask = _mask(bit)
    return (values ^ mask) - mask
