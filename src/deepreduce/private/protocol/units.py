"""Units: circuits in portions that are garbled, sent and evaluated together. All of it is public.

A step's circuits are the same function on different elements. A unit takes up to `PORTION` of them; how the step's
elements are cut is decided here, from the public program alone. A round of the online phase carries the units of
several steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..circuits import Circuit, arg_max, clip, max_pool, relu, rescale, sign_test
from ..circuits.functions import CLIENT_SHARE, SERVER_SHARE
from ..garbling.types import LABEL_BYTES
from ..program import Circuit as CircuitOp
from ..program import PublicProgram, Step, is_argmax
from ..program.operations import MAX, MAX_RELU, RELU, RELU6, RESCALE
from ..transfer import corrections_bytes
from .multiplexer import client_tested, server_tested
from .packing import packed_bytes, word_type

Indices = NDArray[np.int32]

PORTION = 16_384
"""Most instances of a unit: it bounds the memory of both parties, and is a multiple of the hash's block of 64."""


@dataclass(frozen=True, eq=False)
class Unit:
    """Some instances of one circuit, garbled together.

    Attributes:
        number: the layer in the tweak; unique in the program.
        step: the program's step that it belongs to.
        circuit: what is garbled.
        reads: flat elements of the step's input that an instance takes, [instances, numbers].
        writes: flat elements of the step's output that the words fill, [instances]; none for the arg-max.
    """

    number: int
    step: Step
    circuit: Circuit
    reads: Indices
    writes: Indices

    @property
    def instances(self) -> int:
        """How many circuits."""
        return len(self.reads)

    @property
    def multiplexed(self) -> bool:
        """Whether the circuit tests a sign alone, and the value goes around it: see `multiplexer`."""
        return any(word.multiplied is not None for word in self.circuit.words)

    @property
    def op(self) -> CircuitOp:
        """The step's operation."""
        assert self.step.circuit is not None
        return self.step.circuit

    @property
    def transfers(self) -> int:
        """Oblivious transfers: input bits of the client."""
        return self.instances * self.circuit.wires_of("evaluator")

    @property
    def choices(self) -> int:
        """Oblivious transfers the other way, in which the server chooses."""
        return self.instances if self.multiplexed else 0

    @property
    def corrections_bytes(self) -> int:
        """Client to server, offline."""
        return corrections_bytes(self.transfers)

    @property
    def choices_bytes(self) -> int:
        """Server to client, offline, where there are any."""
        return corrections_bytes(self.choices)

    @property
    def tables_bytes(self) -> int:
        """Server to client, offline."""
        return self.instances * self.circuit.table_bytes

    @property
    def garbler_labels_bytes(self) -> int:
        """The server's labels."""
        return self.instances * self.circuit.wires_of("garbler") * LABEL_BYTES

    @property
    def labels_bytes(self) -> int:
        """Server to client, online: its labels, and one word more for each value that goes around."""
        return self.garbler_labels_bytes + self.multiplexed * self.word_bytes

    @property
    def own_labels_bytes(self) -> int:
        """What the client keeps of the transfers."""
        return self.transfers * LABEL_BYTES

    @property
    def words_bytes(self) -> int:
        """Client to server, online: a word for each output, and one more for each value that goes around."""
        return (1 + self.multiplexed) * self.word_bytes

    @property
    def word_bytes(self) -> int:
        """One word for each instance, packed; 0 for the arg-max."""
        return sum(packed_bytes(self.instances, word.bits) for word in self.circuit.words)

    @property
    def word_type(self) -> np.dtype[np.unsignedinteger]:
        """The smallest type that holds a word."""
        return word_type(self.circuit.words[0].bits if self.circuit.words else 1)

    def garbler_values(self, dropped: NDArray[np.uint64]) -> dict[str, NDArray[np.uint64]]:
        """Return the server's inputs from its share [elements] without the dropped bits."""
        own = dropped[self.reads]
        return {SERVER_SHARE: server_tested(self.op, own) if self.multiplexed else own}

    def evaluator_values(self, dropped: NDArray[np.uint64]) -> dict[str, NDArray[np.uint64]]:
        """Return the client's inputs from its share [elements] without the dropped bits."""
        own = dropped[self.reads]
        return {CLIENT_SHARE: client_tested(self.op, own) if self.multiplexed else own}


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
        return [Unit(number, step, arg_max(size, op.width), everything, nothing)]
    found: list[Unit] = []

    def cut(circuit: Circuit, reads: Indices, writes: Indices) -> None:
        for start in range(0, len(reads), PORTION):
            part = slice(start, start + PORTION)
            found.append(Unit(number + len(found), step, circuit, reads[part], writes[part]))

    if op.windows is not None:
        # A window cut short at the border repeats its first element: the maximum stays the same.
        first = op.windows[np.arange(len(op.windows)), np.argmax(op.windows >= 0, axis=1)]
        reads = np.where(op.windows < 0, first[:, None], op.windows).astype(np.int32)
        cut(_pooling(op, reads.shape[1], out_bits), reads, np.arange(len(reads), dtype=np.int32))
        return found
    kept = np.arange(size, dtype=np.int32) if op.kept is None else op.kept
    if len(kept):
        cut(_activation(op, out_bits), kept[:, None], kept)
    if op.kept is not None and op.rest_in_circuit:
        rest = np.setdiff1d(np.arange(size, dtype=np.int32), kept)
        if len(rest):
            cut(rescale(op.width, out_bits), rest[:, None], rest)
    return found


def _activation(op: CircuitOp, out_bits: int) -> Circuit:
    if op.kind == RESCALE:
        return rescale(op.width, out_bits)
    if op.tested:
        return sign_test(op.tested, op.width, out_bits)
    if op.kind == RELU or _never_capped(op):
        return relu(op.width, out_bits)
    assert op.kind == RELU6
    return clip(op.width, out_bits, op.cap)


def _pooling(op: CircuitOp, count: int, out_bits: int) -> Circuit:
    if op.kind == MAX:
        return max_pool(count, op.width, out_bits)
    capped = op.kind != MAX_RELU and not _never_capped(op)
    return max_pool(count, op.width, out_bits, rectify=True, ceiling=op.cap if capped else None)


def _never_capped(op: CircuitOp) -> bool:
    """Tell whether no number of the circuit's width is above its cap."""
    return op.cap >= (1 << (op.width - 1)) - 1
