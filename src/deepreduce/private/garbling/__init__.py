"""Garbled circuits for many instances at once: half gates with words that come out as additive shares.

**Cost.** An AND gate takes 32 bytes of tables and two AES calls at the evaluator, one with an input that the evaluator
knows 16 bytes and one call; XOR and NOT are free. A bit of a word takes 4 bytes (8 above 32 bits), twice that with a
selector, and one call.

**The hash** is MITCCR of Guo, Katz, Wang, Weng, Yu ("Better Concrete Security for Half-Gates Garbling (in the
Multi-Instance Setting)", CRYPTO 2020): H(x, k) = AES_k(sigma(x)) XOR sigma(x), the tweak being the AES key. A key
belongs to (bundle, layer, block of 64 instances, hash of the circuit) under a random start, see `Tweak`.

**Concrete bound.** Model AES as an ideal cipher; let the attacker compute it p times. Per key, an instance has one hash
that the evaluator cannot compute itself (an AND gate's half, a term, a factor) or three (a term with a selector), so at
most mu = 192 hidden hashes share a key, all of inputs that differ from known ones by an invertible linear map of the
offset, which has 127 bits of entropy. A query under that key hits the input or the output of one of them with
probability at most 2 mu / 2^127. Two hidden hashes of one key behave differently from random functions only if their
inputs or outputs meet, which for q hidden hashes in all happens with probability at most q mu / 2^127. So the advantage
is at most

    2 mu p / 2^127 + mu q / 2^127  <  p / 2^118.4 + q / 2^119.4,

with q = 2^46 (a million inferences of a ResNet18 under one offset) and p = 2^70: 2^-48. With one fixed key instead, as
in JustGarble, mu would be q and the first term p / 2^80. Were m sessions to share a key, mu would grow by the factor m;
their starts are random, so for S sessions of N keys that happens with probability below (S N)^2 / 2^129. Blocks of 64
instances, and not of one, because a key schedule costs as much as several hashes; in the numpy twin, thousands.

**What is not promised.** The parties are semi-honest: a garbler that cheats is not caught, and the inputs must not be
chosen from the tables that were sent before. Everything here is for one use: labels, tables, seed, and the pair
(bundle, layer) of a tweak; who stores them marks them as used before using them.

**A word** of weighted bits, sum of w_i x_i, costs no AND gate: let P_c = H(label of x_i with colour c, k) cut to 32 or
64 bits and l the permutation bit. The garbler publishes P_0 - P_1 + (1 - 2 l) w_i, and the evaluator, holding the label
of colour c, gets P_0 - l w_i + w_i x_i: the term plus an offset that it does not know. This is a projection gate (Ball,
Malkin, Rosulek, "Garbling Gadgets", CCS 2016, section 4) with the first row removed, into a label space without
point-and-permute. One of P_0, P_1 is hidden from the evaluator, so the ciphertext is uniform to it. With a selector s
the pads are hashes of both labels, P_{d,c} = H(sigma(label of s with colour d) XOR label of x_i with colour c); per
colour d of the selector there is one ciphertext per bit, and one in all makes the offsets of both colours equal. Each
ciphertext contains a hidden pad that no other one contains.

**A factor** of a bit b costs no ciphertext at all. With P_v = H(label of b for the value v, k) the garbler takes P_0
for the offset and P_1 - P_0 for the factor; the evaluator, who holds one label, has P_0 + b (P_1 - P_0). It is the
projection gate whose ciphertext is zero, because the number that it multiplies was chosen so. One of the two pads is
hidden from the evaluator, so the factor is uniform to it.
"""

from .backend import Backend, BackendError, describe, get_backend
from .engine import decode_bits, decode_words, evaluate, garble, mask_words
from .labels import (
    garbler_labels,
    new_start,
    receiver_to_labels,
    sender_to_zero_labels,
)
from .program import compile_circuit
from .types import Evaluated, Garbled, GarblingError, Tweak

__all__ = [
    "Backend",
    "BackendError",
    "Evaluated",
    "Garbled",
    "GarblingError",
    "Tweak",
    "compile_circuit",
    "decode_bits",
    "decode_words",
    "describe",
    "evaluate",
    "garble",
    "garbler_labels",
    "get_backend",
    "mask_words",
    "new_start",
    "receiver_to_labels",
    "sender_to_zero_labels",
]
