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


@dataclass(frozen=True, eq=False)
class ServerMasks:
    """What the server keeps of the offline phase to ask for n ReLUs.

    As in all that follows, numbers are below the stated ring, of any unsigned type that holds them.

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
    return carries(reduce(share >> np.uint64(op.width - op.tested), index_bits(op)), index_bits(op))


def client_highest(op: Circuit, share: Words) -> Words:
    """Return c, [n]."""
    return share >> np.uint64(op.width - 1)


def word_kind(op: Circuit, bits: int) -> type[np.uint32] | type[np.uint64]:
    """Return the words in which all is computed: they wrap modulo 2^32 or 2^64, of which the ring 2^bits is a part."""
    return np.uint32 if bits <= 32 and op.width < 32 else np.uint64


def ask(op: Circuit, share: Words, own: ServerMasks, bits: int) -> tuple[Question, Asked]:
    """Return what the server sends, and what it remembers.

    Args:
        op: the program's circuit, with `tested`.
        share: the server's, [n] mod 2^width without the dropped bits.
        own: from the offline phase, used once.
        bits: k, the ring of the output.
    """
    word = word_kind(op, bits)
    lower, low = word(op.width - op.tested), word(index_bits(op))
    half, choices = word(1) << lower >> word(1), _words(own.choices, word)
    moved = _ring(_words(share, word) + half, op.width)
    s = moved >> word(op.width - 1)
    places = _ring(moved >> lower ^ choices, index_bits(op))
    b = s ^ _words(look_up(own.table, places), word)
    told = b ^ choices >> low
    product = _ring(_negated(_signed(moved, s, op) - half, b), bits)
    opened = _ring(product - _words(own.factors, word), bits)
    wraps: Any = own.wraps
    if bits > op.width:
        upper = _words(own.wraps, word)
        wraps = np.stack(
            [_ring(each - m, bits - op.width) for each, m in zip((b & s, _negated(s, b)), upper, strict=True)]
        )
    return Question(places | told << low, opened, wraps), Asked(product, (b | s << word(1)).astype(np.uint8))


def reply(op: Circuit, question: Question, own: ClientPart, bits: int) -> Reply:
    """Return what the client sends.

    Args:
        op: the program's circuit.
        question: from the server.
        own: from the offline phase, used once.
        bits: k, the ring of the output.
    """
    word = word_kind(op, bits)
    asked, values, coins = (_words(each, word) for each in (question.places, own.values, own.coins))
    told = asked >> word(index_bits(op))
    c = values >> word(op.width - 1)
    b = c ^ _words(look_up(own.table, _ring(asked, index_bits(op))), word) ^ word(1)
    value = _signed(values, c, op)
    first = coins & word(1)
    flips = [b ^ first]
    opened = _words(own.products, word) + (_words(question.product, word) & _mask(first))
    mine = (value & _mask(b)) + _negated(opened, flips[0])
    if bits > op.width:
        second = coins >> word(1)
        flips.append(b & c ^ second)
        p, q = (_words(each, word) for each in question.wraps)
        own_p, own_q = (_words(each, word) for each in own.wraps)
        wrapped = own_p + (p & _mask(c)) + _negated(own_q + (q & _mask(second)), flips[1])
        mine += wrapped << word(op.width)
    h_0, h_1 = (_words(each, word) for each in own.pads)
    between = (h_0 ^ h_1) & _mask(told)
    chosen, other = h_0 ^ between, h_1 ^ between
    z, t = mine - chosen - _words(own.masks, word), _negated(value, b) - other + chosen
    return Reply(np.stack(flips), np.stack([_ring(z, bits), _ring(t, bits)]))


def outputs(op: Circuit, answer: Reply, asked: Asked, own: ServerOffsets, bits: int) -> Words:
    """Return the server's share of the outputs, [n].

    Args:
        op: the program's circuit.
        answer: from the client.
        asked: from `ask`.
        own: from the offline phase.
        bits: k, the ring of the output.
    """
    word = word_kind(op, bits)
    remembered, product = _words(asked.bits, word), _words(asked.product, word)
    z, t = (_words(each, word) for each in answer.words)
    flip = _words(answer.flips[0], word)
    total = z + _words(own.constants, word) + ((t - product) & _mask(remembered & word(1)))  # b_S X_S is -b_S Y
    total += (product & _mask(flip)) - _negated(_words(own.offsets, word), flip)
    if bits > op.width:
        third = _words(answer.flips[1], word)
        q = _negated(remembered >> word(1), remembered & word(1))
        total += ((q & _mask(third)) - _negated(_words(own.wraps, word), third)) << word(op.width)
    found: Words = _ring(total, bits).astype(np.uint64)
    return found


def _words(values: NDArray[Any], kind: type[np.uint32] | type[np.uint64]) -> Any:
    return values.astype(kind, copy=False)


def _ring(values: Any, bits: int) -> Any:
    """Return values modulo 2^bits, in their words."""
    return values & values.dtype.type((1 << bits) - 1)


def _signed(share: Any, highest: Any, op: Circuit) -> Any:
    """Return a share of `width` bits as a signed number, modulo the words."""
    return share - (highest << share.dtype.type(op.width))


def _mask(bit: Any) -> Any:
    """Return all ones where a bit is 1."""
    return bit.dtype.type(0) - bit


def _negated(values: Any, bit: Any) -> Any:
    """Return (1 - 2 bit) values, modulo the words."""
    mask = _mask(bit)
    return (values ^ mask) - mask
