"""Labels: what correlated OT gives fits, and what is drawn is fresh."""

from __future__ import annotations

import numpy as np
import pytest

from deepreduce.private.circuits import Builder, arg_max, relu
from deepreduce.private.garbling import (
    GarblingError,
    Tweak,
    garble,
    garbler_labels,
    new_start,
    receiver_to_labels,
    sender_to_zero_labels,
)

from .play import DELTA, SEED, TWEAK, backends, garbler_zero_labels, transferred


def test_correlated_ot_becomes_labels() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (5, 7), dtype=np.uint8)
    sender = rng.integers(0, 256, (5, 7, 16), dtype=np.uint8)
    receiver = sender ^ bits[..., None] * np.frombuffer(DELTA, np.uint8)
    zero, own = sender_to_zero_labels(sender), receiver_to_labels(receiver, bits)
    assert zero is sender and own is receiver
    assert np.array_equal(own, zero ^ bits[..., None] * np.frombuffer(DELTA, np.uint8))
    assert np.array_equal(own[..., 0] & 1, bits) and not (zero[..., 0] & 1).any()


@pytest.mark.parametrize("backend", backends(), ids=lambda b: b.name)
def test_the_garblers_labels_are_its_bits(backend: object) -> None:
    circuit = arg_max(3, 5)
    values = np.array([[1, -1, 7], [31, 0, 16]])
    zero = garbler_zero_labels(circuit, 2)
    labels = garbler_labels(circuit, {"server_share": values}, seed=SEED, delta=DELTA, backend=backend)  # type: ignore[arg-type]
    for i, v, j in np.ndindex(2, 3, 5):
        offset = np.frombuffer(DELTA, np.uint8) if int(values[i, v]) >> j & 1 else np.uint8(0)
        assert np.array_equal(labels[i, 5 * v + j], zero[i, 5 * v + j] ^ offset)


def test_several_groups_of_the_garbler() -> None:
    b = Builder()
    x, y = b.input("garbler", "x", 3), b.input("garbler", "y", 2)
    b.output("out", [b.and_(x[0], y[0])])
    circuit = b.build()
    zero = garbler_zero_labels(circuit, 4)
    values = {"y": np.array([0, 1, 2, 3]), "x": np.array([7, 0, 5, 2])}
    difference = garbler_labels(circuit, values, seed=SEED, delta=DELTA) ^ zero
    expected = [
        [v >> j & 1 for v, n in ((int(values["x"][i]), 3), (int(values["y"][i]), 2)) for j in range(n)]
        for i in range(4)
    ]
    assert np.array_equal(difference.any(axis=2), np.array(expected, bool))


def test_every_garbling_draws_its_own_labels() -> None:
    circuit = relu(5, 8)
    zero, _ = transferred(np.zeros((3, 5), np.uint8))
    first, second = (
        garble(circuit, instances=3, delta=DELTA, tweak=TWEAK, evaluator_zero_labels=zero) for _ in range(2)
    )
    assert first.seed != second.seed and not np.array_equal(first.tables, second.tables)
    assert len({new_start() for _ in range(50)}) == 50


def test_secrets_do_not_show_in_a_printout() -> None:
    circuit = relu(5, 8)
    zero, _ = transferred(np.zeros((1, 5), np.uint8))
    garbled = garble(circuit, instances=1, delta=DELTA, tweak=TWEAK, evaluator_zero_labels=zero)
    assert repr(garbled.seed) not in repr(garbled) and "offsets" not in repr(garbled)


def test_malformed_labels_are_refused() -> None:
    circuit = relu(5, 8)
    good = np.zeros((2, 5, 16), np.uint8)
    for bad in (np.zeros((2, 5, 15), np.uint8), np.zeros((2, 16), np.uint8), np.zeros((2, 5, 16), np.int8), None):
        with pytest.raises(GarblingError, match=r"\[instances, wires, 16\]"):
            sender_to_zero_labels(bad)  # type: ignore[arg-type]
    with pytest.raises(GarblingError, match="choice"):
        receiver_to_labels(good, np.zeros((5, 2), np.uint8))
    with pytest.raises(GarblingError, match="0 or 1"):
        receiver_to_labels(good, np.full((2, 5), 2, np.uint8))
    share = {"server_share": np.zeros(2, int)}
    with pytest.raises(GarblingError, match="lowest bit 1"):
        garbler_labels(circuit, share, seed=SEED, delta=bytes(16))
    with pytest.raises(GarblingError, match="seed is 16 bytes"):
        garbler_labels(circuit, share, seed=SEED[1:], delta=DELTA)
    for start, bundle, layer in ((b"", 0, 0), (bytes(16), 2**48, 0), (bytes(16), 0, 2**16), (bytes(16), -1, 0)):
        with pytest.raises(GarblingError):
            Tweak(start, bundle, layer)
