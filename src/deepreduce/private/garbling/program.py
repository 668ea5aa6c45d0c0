"""From a circuit to the straight-line program that both backends run: wires become few reusable slots.

A program is a list of operations on **slots**. One slot holds the labels of one wire for a group of sixteen instances
(256 bytes), and is used again as soon as its wire is no longer read, so that the working set stays in the first-level
cache. Inputs are loaded just before they are first read.

Operation codes (column 0; bits 8 and 9 invert the first and second operand), with operands a, b and destination d:

| code | | effect |
| ---: | --- | --- |
| 0 | ZERO | slot d becomes the constant label 0 (its value is false) |
| 1, 2 | LOAD_GARBLER, LOAD_EVALUATOR | slot d becomes column a of that party's labels |
| 3 | XOR | slot d = slot a XOR slot b |
| 4 | AND | slot d = a AND b by half gates; 2 keys, 32 bytes of table |
| 5 | AND_KNOWN | the same, b known to the evaluator; 1 key, 16 bytes |
| 6 | OUTPUT | colour of slot a goes to output column d |
| 7 | TERM | word d gains weight * a; 1 key, 1 entry |
| 8 | SELECTED | word d gains weight * (a AND b); 1 key, 2 entries |
| 9 | BASE | ends the SELECTED terms of selector b in word d; 1 entry |
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError, problem
from ..circuits import Circuit
from ..circuits.circuit import AND_KNOWN, XOR

OP_ZERO, OP_LOAD_GARBLER, OP_LOAD_EVALUATOR, OP_XOR, OP_AND, OP_AND_KNOWN = range(6)
OP_OUTPUT, OP_TERM, OP_SELECTED, OP_BASE = range(6, 10)
INVERT_A, INVERT_B = 1 << 8, 1 << 9


@dataclass(frozen=True, eq=False)
class Program:
    """What a backend needs to know of a circuit.

    Attributes:
        operations: int32 [operations, 4]: code and inversions, a, b, d.
        weights: uint64 [operations]: the weight of a term, else 0.
        constants: uint64 [words]: the public summand of each word.
        word_bits: uint8 [words]: the ring of each word.
        slots: slots in use at the same time.
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
    slots: int
    garbler_wires: int
    evaluator_wires: int
    output_bits: int
    hashes: int
    table_bytes: int


@functools.lru_cache(maxsize=64)
def compile_circuit(circuit: Circuit) -> Program:
    """Translate a circuit; the result is kept for the next call.

    Raises:
        UsageError: a gate claims that the evaluator knows an input that it cannot know.
    """
    _check_known(circuit)
    steps, weights = _steps(circuit)
    operations, slots = _assign_slots(steps)
    result = Program(
        operations=operations,
        weights=np.array(weights, np.uint64),
        constants=np.array([w.constant for w in circuit.words], np.uint64),
        word_bits=np.array([w.bits for w in circuit.words], np.uint8),
        slots=slots,
        garbler_wires=circuit.wires_of("garbler"),
        evaluator_wires=circuit.wires_of("evaluator"),
        output_bits=circuit.output_bits,
        hashes=circuit.hashes,
        table_bytes=circuit.table_bytes,
    )
    for array in (result.operations, result.weights, result.constants, result.word_bits):
        array.setflags(write=False)
    return result


_READS_A = {OP_XOR, OP_AND, OP_AND_KNOWN, OP_OUTPUT, OP_TERM, OP_SELECTED}
_READS_B = {OP_XOR, OP_AND, OP_AND_KNOWN, OP_SELECTED, OP_BASE}
_WRITES = {OP_ZERO, OP_LOAD_GARBLER, OP_LOAD_EVALUATOR, OP_XOR, OP_AND, OP_AND_KNOWN}

Step = tuple[int, int, int, int]


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


def _steps(circuit: Circuit) -> tuple[list[Step], list[int]]:
    """The operations in order, on wires instead of slots."""
    steps: list[Step] = []
    weights: list[int] = []
    column = {"garbler": 0, "evaluator": 0}
    source: dict[int, Step] = {0: (OP_ZERO, 0, 0, 0)}
    wire = 1
    for group in circuit.inputs:
        code = OP_LOAD_GARBLER if group.owner == "garbler" else OP_LOAD_EVALUATOR
        for _ in range(group.wires):
            source[wire] = (code, column[group.owner], 0, wire)
            column[group.owner] += 1
            wire += 1

    def emit(code: int, a: int, b: int, d: int, weight: int = 0) -> None:
        steps.append((code, a, b, d))
        weights.append(weight)

    def ready(literal: int) -> int:
        """The wire of a literal, loaded by now."""
        load = source.pop(literal >> 1, None)
        if load is not None:
            emit(*load)
        return literal >> 1

    def flags(a: int, b: int = 0) -> int:
        return (INVERT_A if a & 1 else 0) | (INVERT_B if b & 1 else 0)

    codes = (OP_XOR, OP_AND, OP_AND_KNOWN)
    for i, (kind, a, b) in enumerate(circuit.gates.tolist()):
        wire_a, wire_b = ready(a), ready(b)
        emit(codes[kind] | flags(a, b), wire_a, wire_b, wire + i)
    at = 0
    for output in circuit.outputs:
        for literal in output.literals:
            emit(OP_OUTPUT | flags(literal), ready(literal), 0, at)
            at += 1
    for index, word in enumerate(circuit.words):
        for term in (t for t in word.terms if t.selector is None):
            emit(OP_TERM | flags(term.bit), ready(term.bit), 0, index, term.weight)
        for selector in word.selectors:
            for term in (t for t in word.terms if t.selector == selector):
                wire_a, wire_b = ready(term.bit), ready(selector)
                emit(OP_SELECTED | flags(term.bit, selector), wire_a, wire_b, index, term.weight)
            emit(OP_BASE, 0, ready(selector), index)
    return steps, weights


def _assign_slots(steps: list[Step]) -> tuple[NDArray[np.int32], int]:
    """Give every wire a slot from its definition to its last use."""
    last_use: dict[int, int] = {}
    for i, (code, a, b, _) in enumerate(steps):
        if code & 0xFF in _READS_A:
            last_use[a] = i
        if code & 0xFF in _READS_B:
            last_use[b] = i
    slot_of: dict[int, int] = {}
    free: list[int] = []
    slots = 0
    rows = np.zeros((len(steps), 4), np.int32)
    for i, (code, a, b, d) in enumerate(steps):
        kind = code & 0xFF
        operands = ([a] if kind in _READS_A else []) + (
            [b] if kind in _READS_B and (kind not in _READS_A or b != a) else []
        )
        row = [code, slot_of[a] if kind in _READS_A else a, slot_of[b] if kind in _READS_B else 0, d]
        for wire in operands:
            if last_use[wire] == i:
                free.append(slot_of.pop(wire))
        if kind in _WRITES:
            if free:
                slot_of[d] = free.pop()
            else:
                slot_of[d], slots = slots, slots + 1
            row[3] = slot_of[d]
            if d not in last_use:
                free.append(slot_of.pop(d))
        rows[i] = row
    return rows, slots
