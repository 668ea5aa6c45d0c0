"""From a sign that is shared to a ReLU that is shared: the value goes around the circuit. All functions are pure.

A ReLU is a sign and a product: y = b x, b = 1 where x counts as positive. Only the sign needs a circuit
(`circuits.sign_test`), and it is told by the upper bits of the shares. The product of a shared bit and a shared number
costs two ring elements at the client and one at the server, in the messages that travel anyway. Modulo 2^k, the ring of
the output, with x' = x + T/2 as the circuit sees it, w and T as there, and both shares of x' without their highest bit:

    b x  =  b (x'_S - T/2 + x'_C)  -  2^(w - 1) b carry

    offline    server   p     decoding bit of b: b = c xor p, where c is the client's colour bit
                        m, o  factor and offset of the circuit's word (`garbling`): the client will get
                              W = o + m b - 2^(w - 1) b carry
               client   f, h  factor and offset of a transfer in which the server chooses by p (`circuits.
                              chosen_multiple`): the server gets  h + p f
                        r     its next mask
    online     server → e = x'_S - T/2 - m,   beside the labels
               client   v = e + x'_C, which is x - m but for the carry;   b v = c v + p (1 - 2 c) v
                      → t = (1 - 2 c) v - f,   z = c v + W - h - r
               server   z + p t + (h + p f) - o  =  c v + p (1 - 2 c) v + m b - 2^(w - 1) b carry - r  =  y - r

Why it says nothing. To the client m is uniform in the ring, because the circuit's word gives it the hash of one label
of b, and m is the difference of the hashes of both; so e is uniform. c is b under the permutation bit p. To the server,
with p = 0, t is masked by f, of which it has nothing, and z by r; with p = 1 it has h + f, so that h masks t, and again
r masks z. All of it is used once. The product is the multiplexer of CrypTFlow2 (Rathee et al., CCS 2020, section 3)
without its second transfer: what the garbler would choose by is known to it before the image, so a random factor of the
circuit takes that transfer's place.
"""

from __future__ import annotations

import numpy as np

from ..program import Circuit
from ..ring import Words, reduce


def server_tested(op: Circuit, share: Words) -> Words:
    """Return what the server puts into the circuit, from its share [n] mod 2^width without the dropped bits."""
    return _moved(op, share) >> _lower(op)


def client_tested(op: Circuit, share: Words) -> Words:
    """Return what the client puts into the circuit, from its share likewise."""
    return share >> _lower(op)


def client_value(op: Circuit, share: Words) -> Words:
    """Return x'_C, which the client keeps for the online phase, below 2^(width - 1)."""
    return reduce(share, op.width - 1)


def openings(op: Circuit, share: Words, factors: Words, bits: int) -> Words:
    """Return e, which the server sends.

    Args:
        op: the program's circuit.
        share: the server's, [n] mod 2^width without the dropped bits.
        factors: m, [n].
        bits: k, the ring of the output.
    """
    half = np.uint64(1) << _lower(op) >> np.uint64(1)
    # Sums and differences of uint64 wrap modulo 2^64, of which every ring is a part.
    return reduce(reduce(_moved(op, share), op.width - 1) - half - factors, bits)


def reply(
    values: Words, opened: Words, colours: Words, words: Words, masks: Words, factors: Words, bits: int
) -> tuple[Words, Words]:
    """Return z and t, which the client sends.

    Args:
        values: x'_C, [n].
        opened: e, [n], from the server.
        colours: c, [n], 0 or 1: from the evaluation, as are
        words: W, [n].
        masks: h + r, [n].
        factors: f, [n].
        bits: k, the ring of the output.
    """
    v = opened + values
    sign = np.uint64(0) - colours  # all ones where the colour is 1
    chosen = v & sign
    return reduce(chosen + words - masks, bits), reduce(v - chosen - chosen - factors, bits)


def outputs(words: Words, multiples: Words, decoding: Words, offsets: Words, bits: int) -> Words:
    """Return the server's share of the outputs.

    Args:
        words, multiples: z and t, [n], from the client.
        decoding: p, [n], 0 or 1.
        offsets: o - (h + p f), [n].
        bits: k, the ring of the output.
    """
    return reduce(words + (multiples & (np.uint64(0) - decoding)) - offsets, bits)


def _lower(op: Circuit) -> np.uint64:
    return np.uint64(op.width - op.tested)


def _moved(op: Circuit, share: Words) -> Words:
    """Return the server's share of x'."""
    return reduce(share + (np.uint64(1) << _lower(op) >> np.uint64(1)), op.width)
