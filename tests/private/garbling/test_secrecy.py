"""What each party sees looks the same whatever the other's values are; no key and no label is used twice.

Statistics find blunders, not attacks: the argument is in the package's documentation.
"""

from __future__ import annotations

import numpy as np
import pytest

from deepreduce.private.circuits import TRUE, Builder, Circuit, relu
from deepreduce.private.garbling import Tweak, _numpy

from .play import NUMPY, TWEAK, play, random_inputs

N = 6000
EXTREMES = {"zeros": 0, "ones": 2**6 - 1}


def bits_and_words() -> Circuit:
    b = Builder()
    x, y = b.input("garbler", "x", 6), b.input("evaluator", "y", 6)
    b.output(
        "out",
        [b.and_(i, j) for i, j in zip(x, reversed(x), strict=True)] + [b.and_(i, j) for i, j in zip(x, y, strict=True)],
    )
    b.word("w", 16, [(i, TRUE, 1 << k) for k, i in enumerate(x)])
    b.word("v", 16, [(i, x[5], 1 << k) for k, i in enumerate(x[:5])])
    return b.build()


def fair(ones: np.ndarray, count: int) -> bool:
    """Every frequency within six standard deviations of one half."""
    return bool((np.abs(ones - count / 2) < 6 * np.sqrt(count) / 2).all())


@pytest.mark.parametrize("mine", EXTREMES)
@pytest.mark.parametrize("theirs", EXTREMES)
def test_the_evaluators_view_is_uniform_bits(mine: str, theirs: str) -> None:
    circuit = bits_and_words()
    values = {"x": np.full(N, EXTREMES[mine]), "y": np.full(N, EXTREMES[theirs])}
    played = play(circuit, values, tweak=Tweak(TWEAK.start, 11, len(mine)))
    whole = N // 16 * 16
    tables = np.unpackbits(played.garbled.tables[: whole * circuit.table_bytes].reshape(whole // 16, -1), axis=1)
    assert fair(tables.sum(axis=0), whole // 16)
    labels = np.unpackbits(played.garbler_labels.reshape(N, -1), axis=1)
    assert fair(labels.sum(axis=0), N)
    assert fair(played.evaluated.colours.sum(axis=0), N)
    words = np.unpackbits(played.evaluated.words.astype("<u2").view(np.uint8).reshape(N, -1), axis=1)
    assert fair(words.sum(axis=0), N)
    # The decoding bits, which stay with the garbler, are as uniform: they are the pad of the outputs.
    assert fair(played.garbled.decoding.sum(axis=0), N)


def test_colours_do_not_follow_values() -> None:
    """No output's colour is correlated with its value, where both values occur."""
    circuit = bits_and_words()
    played = play(circuit, random_inputs(circuit, N, 5))
    colours = played.evaluated.colours.astype(int)
    values = played.outputs(circuit)["out"]
    for column in range(colours.shape[1]):
        for value in (0, 1):
            chosen = colours[values[:, column] == value, column]
            assert abs(chosen.sum() - len(chosen) / 2) < 6 * np.sqrt(len(chosen)) / 2


def test_no_ciphertext_comes_twice() -> None:
    """Equal inputs in all instances, equal labels of no two wires: all AND tables differ."""
    circuit = bits_and_words()
    played = play(circuit, {"x": np.zeros(640, int), "y": np.zeros(640, int)})
    blocks = played.garbled.tables.tobytes()
    size = circuit.table_bytes * 16
    seen = set()
    for group in range(40):
        # Three ANDs of two garbler's wires come first, 512 bytes each.
        for at in range(0, 3 * 512, 16):
            seen.add(blocks[group * size + at : group * size + at + 16])
    assert len(seen) == 40 * 6 * 16


def test_no_key_comes_twice_under_one_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over layers, bundles, parts and blocks: every key that AES is called with belongs to one hash of one block."""
    keys: list[bytes] = []
    real = _numpy.encrypt
    circuit = relu(6, 10)

    def recording(key: bytes, data: np.ndarray, out: np.ndarray) -> None:
        keys.append(key)
        real(key, data, out)

    monkeypatch.setattr(_numpy, "encrypt", recording)
    monkeypatch.setattr(_numpy, "keystream", lambda key, counter, out: out.fill(7))
    values = random_inputs(circuit, 4200, 2)  # two parts, 66 blocks
    for bundle, layer in ((0, 0), (0, 1), (1, 0), (2**48 - 1, 2**16 - 1)):
        tweak = Tweak(TWEAK.start, bundle, layer)
        before = len(keys)
        play(circuit, values, backend=NUMPY, tweak=tweak)
        assert len(keys) - before == 2 * 66 * circuit.hashes  # once by the garbler, once by the evaluator
    assert len(set(keys)) == len(keys) // 2 == 4 * 66 * circuit.hashes


def test_another_tweak_or_start_gives_other_tables() -> None:
    circuit = relu(6, 10)
    values = random_inputs(circuit, 64, 1)
    tweaks = [TWEAK, Tweak(TWEAK.start, 3, 6), Tweak(TWEAK.start, 4, 5), Tweak(bytes(16), 3, 5)]
    tables = [play(circuit, values, tweak=t).garbled.tables for t in tweaks]
    for i, first in enumerate(tables):
        for second in tables[i + 1 :]:
            assert np.count_nonzero(first == second) < 0.02 * first.size


def test_the_wrong_tweak_does_not_decode() -> None:
    circuit = relu(6, 10)
    values = random_inputs(circuit, 64, 1)
    played = play(circuit, values)
    from deepreduce.private.garbling import evaluate

    other = evaluate(
        circuit,
        instances=64,
        tables=played.garbled.tables,
        garbler_labels=played.garbler_labels,
        evaluator_labels=played.evaluator_labels,
        tweak=Tweak(TWEAK.start, 3, 6),
    )
    assert np.count_nonzero(other.words == played.evaluated.words) <= 3
