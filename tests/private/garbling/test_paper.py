"""Tables against the formulas of the papers, written down once more with Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from deepreduce.private.circuits import TRUE, Builder
from deepreduce.private.garbling import Backend

from .play import DELTA, TWEAK, backends, garbler_zero_labels, play, transferred

BACKENDS = pytest.mark.parametrize("backend", backends(), ids=lambda b: b.name)
OFFSET = int.from_bytes(DELTA, "little")
HALF = 2**64 - 1
INSTANCES = 150


def sigma(x: int) -> int:
    """sigma(high || low) = (high ^ low) || high."""
    high, low = x >> 64, x & HALF
    return (high ^ low) << 64 | high


def aes_hash(x: int, instance: int, number: int) -> int:
    """AES_k(x) ^ x, k = start ^ (bundle, layer, block of 64 instances, number of the hash)."""
    tweak = TWEAK.bundle << 80 | TWEAK.layer << 64 | instance // 64 << 32 | number
    key = int.from_bytes(TWEAK.start, "little") ^ tweak
    cipher = Cipher(algorithms.AES(key.to_bytes(16, "little")), modes.ECB()).encryptor()
    return int.from_bytes(cipher.update(x.to_bytes(16, "little")), "little") ^ x


def numbers(labels: np.ndarray, wire: int) -> list[int]:
    return [int.from_bytes(row[wire].tobytes(), "little") for row in labels]


def entries(tables: np.ndarray, count: int, size: int) -> list[list[int]]:
    """Entry by entry the numbers of all instances, from the layout by groups of sixteen."""
    raw = tables.tobytes()
    out: list[list[int]] = [[] for _ in range(count)]
    for first in range(0, INSTANCES, 16):
        lanes = min(16, INSTANCES - first)
        for entry in range(count):
            for lane in range(lanes):
                at = (first * count + entry * lanes + lane) * size
                out[entry].append(int.from_bytes(raw[at : at + size], "little"))
    return out


@BACKENDS
def test_half_gates(backend: Backend) -> None:
    """Zahur, Rosulek, Evans, Eurocrypt 2015, figure 2, for a garbler's inputs a, b."""
    b = Builder()
    x, y = b.input("garbler", "x", 2)
    b.output("out", [b.and_(x, y)])
    circuit = b.build()
    played = play(circuit, {"x": np.zeros(INSTANCES, int)}, backend=backend)
    zero = garbler_zero_labels(circuit, INSTANCES)
    generator, evaluator = entries(played.garbled.tables, 2, 16)
    for i, (a0, b0) in enumerate(zip(numbers(zero, 0), numbers(zero, 1), strict=True)):
        p_a, p_b = a0 & 1, b0 & 1
        h_a0, h_a1 = (aes_hash(sigma(v), i, 0) for v in (a0, a0 ^ OFFSET))
        h_b0, h_b1 = (aes_hash(sigma(v), i, 1) for v in (b0, b0 ^ OFFSET))
        t_g = h_a0 ^ h_a1 ^ p_b * OFFSET
        t_e = h_b0 ^ h_b1 ^ a0
        assert (generator[i], evaluator[i]) == (t_g, t_e)
        zero_out = h_a0 ^ p_a * t_g ^ h_b0 ^ p_b * (t_e ^ a0)
        assert played.garbled.decoding[i, 0] == zero_out & 1


@BACKENDS
def test_the_evaluators_half_gate(backend: Backend) -> None:
    """The same, section 3: b is known to the evaluator, one ciphertext."""
    b = Builder()
    (x,), (y,) = b.input("garbler", "x", 1), b.input("evaluator", "y", 1)
    b.output("out", [b.and_(x, y)])
    circuit = b.build()
    played = play(circuit, {n: np.zeros(INSTANCES, int) for n in "xy"}, backend=backend)
    zero = garbler_zero_labels(circuit, INSTANCES)
    known, _ = transferred(np.zeros((INSTANCES, 1), np.uint8))
    (table,) = entries(played.garbled.tables, 1, 16)
    for i, (a0, b0) in enumerate(zip(numbers(zero, 0), numbers(known, 0), strict=True)):
        h_b0, h_b1 = (aes_hash(sigma(v), i, 0) for v in (b0, b0 ^ OFFSET))
        assert table[i] == h_b0 ^ h_b1 ^ a0 and played.garbled.decoding[i, 0] == h_b0 & 1


@BACKENDS
def test_terms_of_a_word(backend: Backend) -> None:
    """The projection gate of Ball, Malkin, Rosulek without its first row, alone and under a selector."""
    b = Builder()
    x, s = b.input("garbler", "v", 2)
    weight, selected_weight, ring = 1000, 77, 2**30
    b.word("w", 30, [(x, TRUE, weight), (x, s, selected_weight)], 9)
    circuit = b.build()
    played = play(circuit, {"v": np.zeros(INSTANCES, int)}, backend=backend)
    zero = garbler_zero_labels(circuit, INSTANCES)
    table = entries(played.garbled.tables, 4, 4)
    for i, (x0, s0) in enumerate(zip(numbers(zero, 0), numbers(zero, 1), strict=True)):
        x_of = [x0 ^ ((x0 & 1) ^ colour) * OFFSET for colour in (0, 1)]  # the label of each colour
        s_of = [s0 ^ ((s0 & 1) ^ colour) * OFFSET for colour in (0, 1)]
        x_value, s_value = [x0 & 1, 1 - (x0 & 1)], [s0 & 1, 1 - (s0 & 1)]  # what each colour means
        pad = [aes_hash(sigma(label), i, 0) for label in x_of]
        assert table[0][i] == (pad[0] - pad[1] + weight * (x_value[1] - x_value[0])) % 2**32
        bases = []
        for d in (0, 1):
            pads = [aes_hash(sigma(s_of[d]) ^ label, i, 1) for label in x_of]
            step = s_value[d] * selected_weight * (x_value[1] - x_value[0])
            assert table[1 + d][i] == (pads[0] - pads[1] + step) % 2**32
            bases.append(pads[0] - s_value[d] * selected_weight * x_value[0])
        assert table[3][i] == (bases[0] - bases[1]) % 2**32
        offset = pad[0] - weight * x_value[0] + bases[0] - 9
        assert played.garbled.offsets[i, 0] == offset % ring


@BACKENDS
@pytest.mark.parametrize("inverted", [0, 1])
def test_a_factor_is_the_difference_of_two_pads(backend: Backend, inverted: int) -> None:
    """No ciphertext: the evaluator has the pad of its label, the garbler the one of false and the way to the other."""
    b = Builder()
    (x,) = b.input("garbler", "v", 1)
    b.word("w", 30, [], 9, multiplied=x ^ inverted)
    circuit = b.build()
    values = np.arange(INSTANCES) % 2
    played = play(circuit, {"v": values}, backend=backend)
    zero = garbler_zero_labels(circuit, INSTANCES)
    assert played.garbled.tables.size == 0
    for i, x0 in enumerate(numbers(zero, 0)):
        false, true = (aes_hash(sigma(x0 ^ (inverted ^ value) * OFFSET), i, 0) for value in (0, 1))
        assert played.garbled.offsets[i, 0] == (false - 9) % 2**30
        assert played.garbled.factors[i, 0] == (true - false) % 2**30
        assert played.evaluated.words[i, 0] == (true if values[i] ^ inverted else false) % 2**30
