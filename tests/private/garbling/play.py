"""Both parties in one function: garble, hand the labels over, evaluate, decode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from deepreduce.private.circuits import FALSE, TRUE, Builder, Circuit, input_bits
from deepreduce.private.garbling import (
    Backend,
    BackendError,
    Evaluated,
    Garbled,
    Tweak,
    decode_bits,
    decode_words,
    evaluate,
    garbler_labels,
    get_backend,
    receiver_to_labels,
    sender_to_zero_labels,
)
from deepreduce.private.garbling.engine import _garble_from_seed

DELTA = bytes.fromhex("c3a5f00d5eed00112233445566778899")
TWEAK = Tweak(bytes.fromhex("0f1e2d3c4b5a69788796a5b4c3d2e1f0"), 3, 5)
SEED = bytes(range(100, 116))
NUMPY = get_backend("numpy")


def backends() -> list[Backend]:
    """All that this machine has."""
    found = []
    for name in ("numpy", "aes", "vaes"):
        try:
            found.append(get_backend(name))  # type: ignore[arg-type]
        except BackendError:
            continue
    return found


@dataclass
class Played:
    garbled: Garbled
    garbler_labels: np.ndarray
    evaluator_labels: np.ndarray
    evaluated: Evaluated

    def outputs(self, circuit: Circuit) -> dict[str, np.ndarray]:
        """All outputs; of words without what their factors add, whose bits are outputs as well."""
        bits = decode_bits(self.evaluated.colours, self.garbled.decoding)
        words = decode_words(self.evaluated.words, self.garbled.offsets, circuit)
        literals = [literal for output in circuit.outputs for literal in output.literals]
        factors = iter(self.garbled.factors.T)
        for i, word in enumerate(circuit.words):
            if word.multiplied is not None:
                multiple = next(factors) * bits[:, literals.index(word.multiplied)]
                words[:, i] = (words[:, i] - multiple) & np.uint64(2**word.bits - 1)
        named = {}
        at = 0
        for output in circuit.outputs:
            named[output.name] = bits[:, at : at + len(output.literals)]
            at += len(output.literals)
        return {**named, **{w.name: words[:, i] for i, w in enumerate(circuit.words)}}


def transferred(bits: np.ndarray, seed: int = 0, delta: bytes = DELTA) -> tuple[np.ndarray, np.ndarray]:
    """What correlated OT gives, drawn by a dealer: labels of 0 for the garbler, of the bits for the evaluator."""
    sender = np.random.default_rng(seed).integers(0, 256, (*bits.shape, 16), dtype=np.uint8)
    receiver = sender ^ (bits[..., None] * np.frombuffer(delta, np.uint8))
    return sender_to_zero_labels(sender), receiver_to_labels(receiver, bits)


def play(
    circuit: Circuit,
    values: dict[str, np.ndarray],
    *,
    backend: Backend | None = None,
    evaluator: Backend | None = None,
    threads: int = 1,
    delta: bytes = DELTA,
    seed: bytes = SEED,
    tweak: Tweak = TWEAK,
) -> Played:
    instances = len(next(iter(values.values())))
    bits = input_bits(circuit, "evaluator", {g.name: values[g.name] for g in circuit.groups("evaluator")})
    zero, own = transferred(bits.reshape(instances, -1), delta=delta)
    garbled = _garble_from_seed(circuit, instances, delta, tweak, zero, threads, backend, seed)
    theirs = np.zeros((instances, 0, 16), np.uint8)
    if circuit.groups("garbler"):
        mine = {g.name: values[g.name] for g in circuit.groups("garbler")}
        theirs = garbler_labels(circuit, mine, seed=garbled.seed, delta=delta, backend=backend)
    evaluated = evaluate(
        circuit,
        instances=instances,
        tables=garbled.tables,
        garbler_labels=theirs,
        evaluator_labels=own,
        tweak=tweak,
        threads=threads,
        backend=evaluator or backend,
    )
    return Played(garbled, theirs, own, evaluated)


def garbler_zero_labels(circuit: Circuit, instances: int) -> np.ndarray:
    """The garbler's labels of 0, one per wire, from `SEED`."""
    zeros = {g.name: np.zeros((instances, g.count), int) for g in circuit.groups("garbler")}
    return garbler_labels(circuit, zeros, seed=SEED, delta=DELTA)


def random_inputs(circuit: Circuit, instances: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {g.name: rng.integers(0, 2**g.bits, (instances, g.count), dtype=np.uint64) for g in circuit.inputs}


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    """Random circuits of all kinds of gates, outputs and words, inputs of both parties mixed."""
    b = Builder()
    literals = [*b.input("garbler", "g", 3), *b.input("evaluator", "e", 2, 2), *b.input("garbler", "h", 1), FALSE, TRUE]
    for _ in range(draw(st.integers(0, 30))):
        gate = draw(st.sampled_from([b.and_, b.and_, b.xor, b.or_]))
        x, y = (draw(st.sampled_from(literals)) ^ draw(st.integers(0, 1)) for _ in range(2))
        literals.append(gate(x, y))
    picks = st.sampled_from(literals)
    b.output("first", draw(st.lists(picks, min_size=1, max_size=4)))
    if draw(st.booleans()):
        b.output("second", [draw(picks)])
    for name in draw(st.sampled_from([[], ["w"], ["w", "v"]])):
        bits = draw(st.sampled_from([1, 7, 32, 33, 64]))
        weights = st.integers(-(2**40), 2**40)
        terms = draw(st.lists(st.tuples(picks, st.one_of(st.just(TRUE), picks), weights), max_size=6))
        multiplied = draw(st.sampled_from([None, *(x for x in literals if x > TRUE)]))
        b.word(name, bits, terms, draw(weights), multiplied=multiplied)
        if multiplied is not None:
            b.output(f"{name}.multiplied", [multiplied])
    return b.build()
