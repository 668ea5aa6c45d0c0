"""Units: nonlinear elements in portions that are prepared, sent and evaluated together. All of it is public.

A step's elements all get the same function. A unit takes up to `PORTION` of them; how the step's elements are cut is
decided here, from the public program alone. A round of the online phase carries the units of several steps. Units are
of two kinds: those of ordinary ReLUs look up a sign (`lookup`, `multiplexer`), all others have a garbled circuit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..circuits import Circuit, arg_max, chosen_multiple, relu, rescale
from ..circuits.functions import CLIENT_SHARE, SERVER_SHARE
from ..garbling.types import LABEL_BYTES
from ..program import Circuit as CircuitOp
from ..program import PublicProgram, Step, is_argmax
from ..program.operations import RELU, RESCALE
from ..transfer import corrections_bytes
from .lookup import pad_words, table_words
from .multiplexer import index_bits
from .packing import packed_bytes, word_type

Indices = NDArray[np.int32]

PORTION = 16_384
"""Most instances of a unit: it bounds the memory of both parties, and is a multiple of the hash's block of 64. Lookups
with larger tables than usual come in smaller units, of 1,024 at least."""

_PORTION_WORDS = 2 * PORTION
"""Most words of pads in a unit of lookups for one bit of their indices."""

WORD_BITS = 64
"""Of what is hashed for a transfer of a lookup."""


@dataclass(frozen=True, eq=False)
class Unit:
    """Some elements with one function, prepared together.

    Attributes:
        number: the layer in the tweak; unique in the program.
        step: the program's step that it belongs to.
        circuit: what is garbled; None where signs are looked up.
        bits: k, the ring of what comes out; 0 for the arg-max.
        reads: flat elements of the step's input that an instance takes, [instances, numbers].
        writes: flat elements of the step's output that the words fill, [instances]; none for the arg-max.
    """

    number: int
    step: Step
    circuit: Circuit | None
    bits: int
    reads: Indices
    writes: Indices

    @property
    def instances(self) -> int:
        """How many elements come out."""
        return len(self.reads)

    @property
    def op(self) -> CircuitOp:
        """The step's operation."""
        assert self.step.circuit is not None
        return self.step.circuit

    @property
    def garbled(self) -> Circuit:
        """The circuit, of a unit that has one."""
        assert self.circuit is not None
        return self.circuit

    @property
    def index_bits(self) -> int:
        """L, of a lookup."""
        return index_bits(self.op)

    @property
    def table_words(self) -> int:
        """Words of 64 bits in the table of one lookup."""
        return table_words(self.index_bits)

    @property
    def pad_words(self) -> int:
        """Words of 64 bits in what the server chooses for one bit of one lookup's index."""
        return pad_words(self.index_bits)

    @property
    def upper_bits(self) -> int:
        """Of the ring of a lookup's products with 2^width, 0 if there are none."""
        return self.bits - self.op.width

    @property
    def chosen_products(self) -> int:
        """Products of one lookup in which the client chooses: Y, P and Q."""
        return 3 if self.upper_bits else 1

    @property
    def and_gates(self) -> int:
        """Of all instances."""
        return 0 if self.circuit is None else self.instances * self.circuit.and_gates

    @property
    def hashes(self) -> int:
        """What the evaluator of the circuits hashes."""
        return 0 if self.circuit is None else self.instances * self.circuit.hashes

    @property
    def transfers(self) -> int:
        """Oblivious transfers in which the client chooses: its input bits, or products."""
        per = self.chosen_products if self.circuit is None else self.circuit.wires_of("evaluator")
        return self.instances * per

    @property
    def choices(self) -> int:
        """Oblivious transfers the other way, in which the server chooses: index bits, and one for a product."""
        return self.instances * (self.index_bits + 1) if self.circuit is None else 0

    @property
    def corrections_bytes(self) -> int:
        """Client to server, offline."""
        return corrections_bytes(self.transfers)

    @property
    def answer_bytes(self) -> int:
        """Server to client, offline: garbled tables, or the corrections of the transfers in which it chooses."""
        if self.circuit is None:
            return corrections_bytes(self.choices)
        return self.instances * self.circuit.table_bytes

    @property
    def permuting_bytes(self) -> int:
        """Client to server, offline, of a lookup: what permutes the tables."""
        return 0 if self.circuit is not None else 8 * self.instances * self.index_bits * self.pad_words

    @property
    def garbler_labels_bytes(self) -> int:
        """The server's labels."""
        return self.instances * self.garbled.wires_of("garbler") * LABEL_BYTES

    @property
    def question_parts(self) -> tuple[int, ...]:
        """Bytes of the parts of a lookup's question: places, e_Y, e_P and e_Q."""
        n, upper = self.instances, packed_bytes(self.instances, self.upper_bits) if self.upper_bits else 0
        return packed_bytes(n, self.index_bits + 1), packed_bytes(n, self.bits), upper, upper

    @property
    def reply_parts(self) -> tuple[int, ...]:
        """Bytes of the parts of a lookup's reply: each line of flips, then z and t."""
        n = self.instances
        flips = (-(-n // 8),) * (2 if self.upper_bits else 1)
        return *flips, packed_bytes(n, self.bits), packed_bytes(n, self.bits)

    @property
    def labels_bytes(self) -> int:
        """Server to client, online: its labels, or questions."""
        return sum(self.question_parts) if self.circuit is None else self.garbler_labels_bytes

    @property
    def words_bytes(self) -> int:
        """Client to server, online: a word for each output, or replies."""
        if self.circuit is None:
            return sum(self.reply_parts)
        return packed_bytes(self.instances, self.bits) if self.bits else 0

    @property
    def working_bytes(self) -> int:
        """What the server takes to make its message, or to take in the client's: at most, for one image."""
        if self.circuit is None:  # the table, and some twenty lines of words
            return 8 * self.instances * (self.table_words + 20)
        return 4 * self.labels_bytes  # both labels of every wire, and a copy of the one that is sent

    @property
    def word_type(self) -> np.dtype[np.unsignedinteger]:
        """The smallest type that holds a word."""
        return word_type(max(1, self.bits))

    def garbler_values(self, dropped: NDArray[np.uint64]) -> dict[str, NDArray[np.uint64]]:
        """Return the server's inputs from its share [elements] without the dropped bits."""
        return {SERVER_SHARE: dropped[self.reads]}

    def evaluator_values(self, dropped: NDArray[np.uint64]) -> dict[str, NDArray[np.uint64]]:
        """Return the client's inputs from its share [elements] without the dropped bits."""
        return {CLIENT_SHARE: dropped[self.reads]}

    def circuits(self) -> tuple[Circuit, ...]:
        """Return all that goes through the kernel of garbling."""
        if self.circuit is not None:
            return (self.circuit,)
        return chosen_multiple(WORD_BITS), chosen_multiple(WORD_BITS, self.pad_words)


@dataclass(frozen=True)
class OnlineRound:
    """One round trip of the online phase.

    Attributes:
        linear: steps that the server computes first.
        circuits: steps whose units travel, the arg-max left out.
        units: theirs, in order.
    """

    linear: tuple[Step, ...]
    circuits: tuple[Step, ...]
    units: tuple[Unit, ...]


def cut_units(public: PublicProgram, step: Step, number: int) -> list[Unit]:
    """Cut a step's circuits into units.

    Args:
        public: the program.
        step: one with a circuit.
        number: of its first unit.
    """
    op = step.circuit
    assert op is not None
    size, out_bits = public.tensors[step.inputs[0]].size, public.tensors[step.output].ring_bits
    nothing = np.zeros(0, np.int32)
    if is_argmax(step):
        everything = np.arange(size, dtype=np.int32)[None]
        return [Unit(number, step, arg_max(size, op.width), 0, everything, nothing)]
    found: list[Unit] = []

    def cut(circuit: Circuit | None, reads: Indices, writes: Indices) -> None:
        size = PORTION if circuit is not None else min(PORTION, _PORTION_WORDS // pad_words(index_bits(op)))
        for start in range(0, len(reads), size):
            part = slice(start, start + size)
            found.append(Unit(number + len(found), step, circuit, out_bits, reads[part], writes[part]))

    kept = np.arange(size, dtype=np.int32) if op.kept is None else op.kept
    if len(kept):
        cut(_activation(op, out_bits), kept[:, None], kept)
    if op.kept is not None and op.rest_in_circuit:
        rest = np.setdiff1d(np.arange(size, dtype=np.int32), kept)
        if len(rest):
            cut(rescale(op.width, out_bits), rest[:, None], rest)
    return found


def _activation(op: CircuitOp, out_bits: int) -> Circuit | None:
    if op.kind == RESCALE:
        return rescale(op.width, out_bits)
    if op.tested:
        return None
    assert op.kind == RELU
    return relu(op.width, out_bits)
