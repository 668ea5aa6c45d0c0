"""From a circuit to the straight-line program that both backends run: wires become few reusable slots.

A program is a list of operations on **slots**. One slot holds the labels of one wire for a group of sixteen instances
(256 bytes), and is used again as soon as its wire is no longer read, so that the working set stays in the first-level
cache. Inputs are loaded just before they are first read. Slot 0 always holds the constant label 0, whose value is
false: it stands for operands that are not there. XORs around an AND are folded into it, where they cost nothing beside
the cipher: a full adder is two operations.

Columns: code (bits 8 and 9 invert the first and second operand), a, b, d, a2, b2, c. With A = a XOR a2, B = b XOR b2:

| code | | effect |
| ---: | --- | --- |
| 0, 1 | LOAD_GARBLER, LOAD_EVALUATOR | slot d becomes column a of that party's labels |
| 2 | XOR | slot d = A XOR B |
| 3 | AND | slot d = (A AND B) XOR c by half gates; 2 keys, 32 bytes of table |
| 4 | AND_KNOWN | the same, B known to the evaluator; 1 key, 16 bytes |
| 5 | OUTPUT | colour of slot a goes to output column d |
| 6 | TERM | word d gains weight * a; 1 key, 1 entry |
| 7 | SELECTED | word d gains weight * (a AND b); 1 key, 2 entries |
| 8 | BASE | ends the SELECTED terms of selector b in word d; 1 entry |
| 9 | FACTOR | word d gains a random factor times a, word d + 1 is that factor, at the garbler alone; 1 key |
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError, problem
from ..circuits import Circuit, WordOutput
from ..circuits.circuit import AND, AND_KNOWN, XOR

OP_LOAD_GARBLER, OP_LOAD_EVALUATOR, OP_XOR, OP_AND, OP_AND_KNOWN = range(5)
OP_OUTPUT, OP_TERM, OP_SELECTED, OP_BASE, OP_FACTOR = range(5, 10)
INVERT_A, INVERT_B = 1 << 8, 1 << 9


@dataclass(frozen=True, eq=False)
class Program:
    """What a backend needs to know of a circuit.

    Attributes:
        operations: int32 [operations, 7], see the module.
        weights: uint64 [operations]: the weight of a term, else 0.
        constants: uint64 [words]: the public summand of each word.
        word_bits: uint8 [words]: the ring of each word. The factor of a word counts as one more word, behind it.
        factors: bool [words]: which of them are factors.
        slots: slots in use at the same time, slot 0 among them.
        garbler_wires: columns of the garbler's labels.
        evaluator_wires: columns of the evaluator's labels.
        output_bits: colour bits per instance.
        hashes: keys per block of instances.
        table_bytes: bytes of tables per instance.
    """

    operations: NDArray[np.int32]
    weights: NDArray[np.uint64]
    constants: NDArray[np.uint64]
    word_bits: NDArray[np.uint8]
    factors: NDArray[np.bool_]
    slots: int
    garbler_wires: int
    evaluator_wires: int
    output_bits: int
    hashes: int
    table_bytes: int


@functools.lru_cache(maxsize=256)
def compile_circuit(circuit: Circuit) -> Program:
    """Translate a circuit; the result is kept for the next call.

    Raises:
        UsageError: a gate claims that the evaluator knows an input that it cannot know.
    """
    _check_known(circuit)
    steps = _steps(circuit)
    columns = [(w, factor) for w in circuit.words for factor in _columns(w)]
    operations, slots = _assign_slots(steps)
    result = Program(
        operations=operations,
        weights=np.array([s.weight for s in steps], np.uint64),
        constants=np.array([0 if factor else w.constant for w, factor in columns], np.uint64),
        word_bits=np.array([w.bits for w, _ in columns], np.uint8),
        factors=np.array([factor for _, factor in columns], np.bool_),
        slots=slots,
        garbler_wires=circuit.wires_of("garbler"),
        evaluator_wires=circuit.wires_of("evaluator"),
        output_bits=circuit.output_bits,
        hashes=circuit.hashes,
        table_bytes=circuit.table_bytes,
    )
    for array in (result.operations, result.weights, result.constants, result.word_bits, result.factors):
        array.setflags(write=False)
    return result


@dataclass
class _Step:
    """An operation on wires: `reads` are the operands a, b, a2, b2, c (wire 0 where there is none), `to` the target."""

    code: int
    reads: list[int]
    to: int
    weight: int = 0

    @property
    def kind(self) -> int:
        return self.code & 0xFF


_LOADS = (OP_LOAD_GARBLER, OP_LOAD_EVALUATOR)
_WRITES = (*_LOADS, OP_XOR, OP_AND, OP_AND_KNOWN)
_ANDS = (OP_AND, OP_AND_KNOWN)


def _check_known(circuit: Circuit) -> None:
    """Refuse an AND_KNOWN whose second input is not an XOR of the evaluator's: its colour would not be its value."""
    known = [False]
    for group in circuit.inputs:
        known += [group.owner == "evaluator"] * group.wires
    for kind, a, b in circuit.gates.tolist():
        known.append(kind == XOR and known[a >> 1] and known[b >> 1])
        if kind == AND_KNOWN and not known[b >> 1]:
            raise UsageError(
                problem(
                    "a gate of half the price has a second input that the evaluator knows",
                    got="one that depends on the garbler",
                    remedy="build circuits with Builder",
                )
            )


def _steps(circuit: Circuit) -> list[_Step]:
    """The operations in order, on wires instead of slots; loads come just before the first read."""
    codes = {XOR: OP_XOR, AND: OP_AND, AND_KNOWN: OP_AND_KNOWN}
    first = 1 + circuit.input_wires
    work = [
        _Step(codes[kind] | _flags(a, b), [a >> 1, b >> 1, 0, 0, 0], first + i)
        for i, (kind, a, b) in enumerate(circuit.gates.tolist())
    ]
    for at, literal in enumerate(x for output in circuit.outputs for x in output.literals):
        work.append(_Step(OP_OUTPUT | _flags(literal), [literal >> 1, 0, 0, 0, 0], at))
    index = 0
    for word in circuit.words:
        for term in (t for t in word.terms if t.selector is None):
            work.append(_Step(OP_TERM | _flags(term.bit), [term.bit >> 1, 0, 0, 0, 0], index, term.weight))
        for selector in word.selectors:
            for term in (t for t in word.terms if t.selector == selector):
                code = OP_SELECTED | _flags(term.bit, selector)
                work.append(_Step(code, [term.bit >> 1, selector >> 1, 0, 0, 0], index, term.weight))
            work.append(_Step(OP_BASE, [0, selector >> 1, 0, 0, 0], index))
        if word.multiplied is not None:
            work.append(_Step(OP_FACTOR | _flags(word.multiplied), [word.multiplied >> 1, 0, 0, 0, 0], index))
        index += len(_columns(word))
    work = _fold_before(_fold_after(work))

    sources: dict[int, _Step] = {}
    columns = {"garbler": 0, "evaluator": 0}
    for wire, owner in enumerate((g.owner for g in circuit.inputs for _ in range(g.wires)), start=1):
        code = OP_LOAD_GARBLER if owner == "garbler" else OP_LOAD_EVALUATOR
        sources[wire] = _Step(code, [columns[owner], 0, 0, 0, 0], wire)
        columns[owner] += 1
    steps: list[_Step] = []
    for step in work:
        steps += [sources.pop(wire) for wire in dict.fromkeys(step.reads) if wire in sources]
        steps.append(step)
    return steps


def _columns(word: WordOutput) -> tuple[bool, ...]:
    """Of a word's columns, which is a factor."""
    return (False,) if word.multiplied is None else (False, True)


def _flags(a: int, b: int = 0) -> int:
    return (INVERT_A if a & 1 else 0) | (INVERT_B if b & 1 else 0)


def _readers(work: list[_Step]) -> dict[int, list[int]]:
    """For every wire the indices of the steps that read it, once per reading."""
    readers: dict[int, list[int]] = {}
    for i, step in enumerate(work):
        for wire in step.reads:
            readers.setdefault(wire, []).append(i)
    return readers


def _fold_after(work: list[_Step]) -> list[_Step]:
    """Fold `AND, then XOR with an older wire` into the AND, where nothing else reads the AND."""
    readers = _readers(work)
    gone: set[int] = set()
    for step in work:
        users = readers.get(step.to, []) if step.kind in _ANDS else []
        if len(users) == 1 and work[users[0]].kind == OP_XOR and users[0] not in gone:
            xor = work[users[0]]
            other = xor.reads[0] ^ xor.reads[1] ^ step.to
            if other < step.to:
                step.reads[4], step.to = other, xor.to
                gone.add(users[0])
    return [step for i, step in enumerate(work) if i not in gone]


def _fold_before(work: list[_Step]) -> list[_Step]:
    """Fold an XOR into its readers, where these are at most two and all of them gates with room for it."""
    readers = _readers(work)
    gone: set[int] = set()
    for i, step in enumerate(work):
        users = readers.get(step.to, [])
        if (
            step.kind != OP_XOR
            or step.reads[2]
            or step.reads[3]
            or not 1 <= len(users) <= 2
            or len(set(users)) < len(users)
        ):
            continue
        places = [(work[u], work[u].reads.index(step.to)) for u in users]
        if all(user.kind in (OP_XOR, *_ANDS) and at < 2 and not user.reads[at + 2] for user, at in places):
            for user, at in places:
                user.reads[at], user.reads[at + 2] = step.reads[0], step.reads[1]
            for u in users:
                for wire in step.reads[:2]:
                    readers[wire].append(u)
            for wire in step.reads[:2]:
                readers[wire].remove(i)
            gone.add(i)
    return [step for i, step in enumerate(work) if i not in gone]


def _assign_slots(steps: list[_Step]) -> tuple[NDArray[np.int32], int]:
    """Give every wire a slot from its definition to its last use."""
    last_use: dict[int, int] = {}
    for i, step in enumerate(steps):
        if step.kind not in _LOADS:
            last_use.update(dict.fromkeys(step.reads, i))
    slot_of: dict[int, int] = {0: 0}
    free: list[int] = []
    slots = 1
    rows = np.zeros((len(steps), 7), np.int32)
    for i, step in enumerate(steps):
        reads = step.reads if step.kind in _LOADS else [slot_of[wire] for wire in step.reads]
        if step.kind not in _LOADS:
            free += [slot_of.pop(wire) for wire in set(step.reads) if wire and last_use[wire] == i]
        to = step.to
        if step.kind in _WRITES:
            if free:
                slot_of[to] = free.pop()
            else:
                slot_of[to], slots = slots, slots + 1
            to = slot_of[to]
        rows[i] = (step.code, reads[0], reads[1], to, *reads[2:])
    return rows, slots
