"""Units: nonlinear elements in portions that are prepared, sent and evaluated together. All of it is public.

A step's elements all get the same function. A unit takes up to `PORTION` of them; how the step's elements are cut is
decided here, from the public program alone. A round of the online phase carries the units of several steps. Units are
of two kinds: a `LookupUnit` looks up the signs of ordinary ReLUs (`lookup`, `multiplexer`), a `GarbledUnit` has a
garbled circuit for all else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..circuits import Circuit, arg_max, chosen_multiple, relu, rescale
from ..circuits.functions import CLIENT_SHARE, SERVER_SHARE
from ..garbling.types import LABEL_BYTES
from ..program import Circuit as CircuitOp
from ..program import PublicProgram, Step
from ..program.operations import RELU, RESCALE
from ..ring import Words
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
class _Unit(ABC):
    """Some elements with one function, prepared together.

    Attributes:
        number: the layer in the tweak; unique in the program.
        step: the program's step that it belongs to.
        bits: k, the ring of what comes out; 0 for the arg-max.
        reads: flat elements of the step's input that an instance takes, [instances, numbers].
        writes: flat elements of the step's output that the words fill, [instances]; none for the arg-max.
    """

    number: int
    step: Step
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
    def prepared_bytes(self) -> int:
        """What travels offline, both ways."""
        return self.corrections_bytes + self.answer_bytes + self.permuting_bytes

    @property
    def word_type(self) -> np.dtype[np.unsignedinteger]:
        """The smallest type that holds a word."""
        return word_type(max(1, self.bits))

    @property
    @abstractmethod
    def corrections_bytes(self) -> int:
        """Client to server, offline."""

    @property
    @abstractmethod
    def answer_bytes(self) -> int:
        """Server to client, offline."""

    # What the other kind of unit lacks, for sums over all.

    @property
    def and_gates(self) -> int:
        """Of all instances."""
        return 0

    @property
    def hashes(self) -> int:
        """What the evaluator of the circuits hashes."""
        return 0

    @property
    def index_bits(self) -> int:
        """L, of a lookup."""
        return 0

    @property
    def table_words(self) -> int:
        """Words of 64 bits in the table of one lookup."""
        return 0

    @property
    def permuting_bytes(self) -> int:
        """Client to server, offline, of a lookup: what permutes the tables."""
        return 0


@dataclass(frozen=True, eq=False)
class GarbledUnit(_Unit):
    """A unit with a garbled circuit: of the arg-max, of exact refreshes, and of ReLUs whose signs are not looked up.

    Attributes:
        circuit: what is garbled.
    """

    circuit: Circuit

    @property
    def and_gates(self) -> int:
        """Of all instances."""
        return self.instances * self.circuit.and_gates

    @property
    def hashes(self) -> int:
        """What the evaluator hashes."""
        return self.instances * self.circuit.hashes

    @property
    def transfers(self) -> int:
        """Oblivious transfers in which the client chooses: its input bits."""
        return self.instances * self.circuit.wires_of("evaluator")

    @property
    def corrections_bytes(self) -> int:
        """Client to server, offline."""
        return corrections_bytes(self.transfers)

    @property
    def answer_bytes(self) -> int:
        """Server to client, offline: garbled tables."""
        return self.instances * self.circuit.table_bytes

    @property
    def garbler_labels_bytes(self) -> int:
        """The server's labels."""
        return self.instances * self.circuit.wires_of("garbler") * LABEL_BYTES

    @property
    def labels_bytes(self) -> int:
        """Server to client, online: its labels."""
        return self.garbler_labels_bytes

    @property
    def words_bytes(self) -> int:
        """Client to server, online: a word for each output."""
        return packed_bytes(self.instances, self.bits) if self.bits else 0

    @property
    def working_bytes(self) -> int:
        """What the server takes to make its message, or to take in the client's: at most, for one image."""
        return 4 * self.labels_bytes  # both labels of every wire, and a copy of the one that is sent

    def garbler_values(self, dropped: Words) -> dict[str, Words]:
        """Return the server's inputs from its share [elements] without the dropped bits."""
        return {SERVER_SHARE: dropped[self.reads]}

    def evaluator_values(self, dropped: Words) -> dict[str, Words]:
        """Return the client's inputs from its share [elements] without the dropped bits."""
        return {CLIENT_SHARE: dropped[self.reads]}

    def circuits(self) -> tuple[Circuit, ...]:
        """Return all that goes through the kernel of garbling."""
        return (self.circuit,)


@dataclass(frozen=True, eq=False)
class LookupUnit(_Unit):
    """A unit of ReLUs whose signs are looked up; see `multiplexer` for the letters."""

    circuit: ClassVar[None] = None

    @property
    def index_bits(self) -> int:
        """L."""
        return index_bits(self.op)

    @property
    def table_words(self) -> int:
        """Words of 64 bits in one table."""
        return table_words(self.index_bits)

    @property
    def pad_words(self) -> int:
        """Words of 64 bits in what the server chooses for one bit of one index."""
        return pad_words(self.index_bits)

    @property
    def upper_bits(self) -> int:
        """Of the ring of the products with 2^width, 0 if there are none."""
        return self.bits - self.op.width

    @property
    def chosen_products(self) -> int:
        """Products of one lookup in which the client chooses: Y, P and Q."""
        return 3 if self.upper_bits else 1

    @property
    def transfers(self) -> int:
        """Oblivious transfers in which the client chooses: products."""
        return self.instances * self.chosen_products

    @property
    def choices(self) -> int:
        """Oblivious transfers the other way, in which the server chooses: index bits, and one for a product."""
        return self.instances * (self.index_bits + 1)

    @property
    def corrections_bytes(self) -> int:
        """Client to server, offline."""
        return corrections_bytes(self.transfers)

    @property
    def answer_bytes(self) -> int:
        """Server to client, offline: the corrections of the transfers in which it chooses."""
        return corrections_bytes(self.choices)

    @property
    def permuting_bytes(self) -> int:
        """Client to server, offline: what permutes the tables."""
        return 8 * self.instances * self.index_bits * self.pad_words

    @property
    def question_parts(self) -> tuple[int, ...]:
        """Bytes of the parts of a question: places, e_Y, e_P and e_Q."""
        n, upper = self.instances, packed_bytes(self.instances, self.upper_bits) if self.upper_bits else 0
        return packed_bytes(n, self.index_bits + 1), packed_bytes(n, self.bits), upper, upper

    @property
    def reply_parts(self) -> tuple[int, ...]:
        """Bytes of the parts of a reply: each line of flips, then z and t."""
        n = self.instances
        flips = (-(-n // 8),) * (2 if self.upper_bits else 1)
        return *flips, packed_bytes(n, self.bits), packed_bytes(n, self.bits)

    @property
    def labels_bytes(self) -> int:
        """Server to client, online: questions."""
        return sum(self.question_parts)

    @property
    def words_bytes(self) -> int:
        """Client to server, online: replies."""
        return sum(self.reply_parts)

    @property
    def working_bytes(self) -> int:
        """What the server takes to make its message, or to take in the client's: at most, for one image."""
        return 8 * self.instances * (self.table_words + 20)  # the table, and some twenty lines of words

    def entering(self, dropped: Words) -> Words:
        """Return what of a party's share [elements] without the dropped bits enters, [instances]."""
        return dropped[self.reads[:, 0]]

    def circuits(self) -> tuple[Circuit, ...]:
        """Return all that goes through the kernel of garbling: hashes of transfers."""
        return chosen_multiple(WORD_BITS), chosen_multiple(WORD_BITS, self.pad_words)


Unit = GarbledUnit | LookupUnit
"""A unit of either kind; `circuit` is None where signs are looked up."""


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
    """Cut a step into units.

    Args:
        public: the program.
        step: one that is not linear, and not the arg-max.
        number: of its first unit.
    """
    op = step.circuit
    assert op is not None and op.kind in (RELU, RESCALE)
    bits, everything = public.tensors[step.output].ring_bits, _elements(public, step)
    kept = everything if op.kept is None else op.kept
    found: list[Unit] = []
    if op.tested:
        most = min(PORTION, _PORTION_WORDS // pad_words(index_bits(op)))
        found += [LookupUnit(i, step, bits, part[:, None], part) for i, part in _portions(kept, most, number)]
    else:
        circuit = (relu if op.kind == RELU else rescale)(op.width, bits)
        found += _garbled(step, circuit, bits, kept, number)
    if op.kept is not None and op.rest_in_circuit:
        rest = np.setdiff1d(everything, kept)
        found += _garbled(step, rescale(op.width, bits), bits, rest, number + len(found))
    return found


def ending_unit(public: PublicProgram, number: int) -> GarbledUnit:
    """Return the unit of the arg-max: one instance, which takes all logits."""
    step = public.steps[-1]
    logits = _elements(public, step)
    assert step.circuit is not None
    circuit = arg_max(len(logits), step.circuit.width)
    return GarbledUnit(number, step, 0, logits[None], np.zeros(0, np.int32), circuit)


def _elements(public: PublicProgram, step: Step) -> Indices:
    return np.arange(public.tensors[step.inputs[0]].size, dtype=np.int32)


def _garbled(step: Step, circuit: Circuit, bits: int, elements: Indices, number: int) -> list[GarbledUnit]:
    parts = _portions(elements, PORTION, number)
    return [GarbledUnit(i, step, bits, part[:, None], part, circuit) for i, part in parts]


def _portions(elements: Indices, most: int, number: int) -> list[tuple[int, Indices]]:
    """Cut elements into parts of at most so many, with the numbers of their units."""
    return list(enumerate((elements[start : start + most] for start in range(0, len(elements), most)), number))
