"""A Boolean circuit as data: who puts in what, the gates in topological order, what comes out.

Wires are numbered: 0 is the constant false, then the inputs in the order of their groups, then one wire per gate. A
**literal** is `2 * wire + inverted`, as in the AIGER format, so that inversion costs nothing: under free XOR
(Kolesnikov and Schneider, ICALP 2008) a NOT is only a change of the garbler's mind about which label means 0.

Two kinds of output:

* **bits**: the evaluator ends with the colour bit of the label, the garbler with the decoding bit; their XOR is the
  value.
* **words**: a sum of weighted bits modulo 2^bits, `sum_i weight_i * (selector_i AND x_i)`. The evaluator ends with this
  sum plus an offset that only the garbler knows: an additive share, which is what the next linear layer wants. It costs
  a few bytes per bit where a subtraction inside the circuit costs an AND gate of 32 bytes (see
  `deepreduce.private.garbling`). A word may also have a **factor**: to its sum comes `factor * bit`, where the factor
  is a random element of the ring that garbling draws and only the garbler learns. That costs no ciphertext.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError, problem

Owner = Literal["garbler", "evaluator"]
Bits = NDArray[np.uint8]
Words = NDArray[np.uint64]

XOR, AND, AND_KNOWN = 0, 1, 2
"""Kinds of gates. `AND_KNOWN` is an AND whose second input the evaluator knows in clear: half the price."""

MAX_WORD_BITS = 64


@dataclass(frozen=True)
class InputGroup:
    """Inputs that belong together: `count` numbers of `bits` bits each, lowest bit first, given by one party.

    Attributes:
        owner: who knows the values, "garbler" or "evaluator".
        name: unique in the circuit.
        bits: bits per number, 1 to 64.
        count: numbers per instance, at least 1.
    """

    owner: Owner
    name: str
    bits: int
    count: int = 1

    @property
    def wires(self) -> int:
        """Wires that the group takes: `bits * count`."""
        return self.bits * self.count


@dataclass(frozen=True)
class BitOutput:
    """A named output of single bits, lowest first: literals into the circuit."""

    name: str
    literals: tuple[int, ...]


@dataclass(frozen=True)
class Term:
    """One bit of a word: adds `weight` where `bit` is true, and `selector` too if there is one."""

    bit: int
    selector: int | None
    weight: int


@dataclass(frozen=True)
class WordOutput:
    """A named output modulo 2^bits: `constant` plus its terms. Terms with the same selector stand together.

    `multiplied` is the bit that a random factor multiplies, see the module; None where there is no factor.
    """

    name: str
    bits: int
    terms: tuple[Term, ...]
    constant: int = 0
    multiplied: int | None = None

    @property
    def entry_bytes(self) -> int:
        """Bytes of one ciphertext of this word: 4 up to 32 bits, else 8."""
        return 4 if self.bits <= 32 else 8

    @property
    def literals(self) -> tuple[int, ...]:
        """All literals that it reads."""
        read = [x for t in self.terms for x in (t.bit, t.selector)]
        return tuple(x for x in (*read, self.multiplied) if x is not None)

    @property
    def selectors(self) -> tuple[int, ...]:
        """The different selectors, in the order in which they stand."""
        return tuple(dict.fromkeys(t.selector for t in self.terms if t.selector is not None))


@dataclass(frozen=True, eq=False)
class Circuit:
    """A circuit that can be stored, compared and garbled. Made by `Builder.build`; equal when the digests are equal.

    Attributes:
        inputs: the groups, in the order of their wires.
        gates: int32 [gates, 3]: kind, first literal, second literal. Gate i drives wire `1 + input wires + i`.
        outputs: bits that come out.
        words: words that come out.
    """

    inputs: tuple[InputGroup, ...]
    gates: NDArray[np.int32]
    outputs: tuple[BitOutput, ...]
    words: tuple[WordOutput, ...]

    def __post_init__(self) -> None:
        if self.gates.dtype != np.int32 or self.gates.ndim != 2 or self.gates.shape[1] != 3:
            raise UsageError(
                problem(
                    "the gates of a circuit are an int32 array [gates, 3]",
                    got=f"{self.gates.dtype} {self.gates.shape}",
                    remedy="build circuits with Builder",
                )
            )
        kind, literals = self.gates[:, 0], self.gates[:, 1:]
        own = 1 + self.input_wires + np.arange(len(self.gates))
        if len(self.gates) and (
            kind.min() < XOR
            or kind.max() > AND_KNOWN
            or literals.min() < 0
            or bool((literals >> 1 >= own[:, None]).any())
        ):
            raise UsageError(
                problem(
                    "every gate reads wires before its own",
                    got="one that does not",
                    remedy="build circuits with Builder",
                )
            )
        if any(word.multiplied is not None and word.multiplied < 2 for word in self.words):
            raise UsageError(
                problem("a factor multiplies a bit", got="a constant", remedy="build circuits with Builder")
            )
        limit = 2 * (1 + self.input_wires + len(self.gates))
        used = [x for o in self.outputs for x in o.literals]
        used += [x for w in self.words for x in w.literals]
        if any(not 0 <= x < limit for x in used):
            raise UsageError(
                problem(
                    "every output reads a wire of the circuit",
                    got="one that does not",
                    remedy="build circuits with Builder",
                )
            )
        self.gates.setflags(write=False)

    @cached_property
    def input_wires(self) -> int:
        """Input wires of both parties."""
        return sum(g.wires for g in self.inputs)

    def groups(self, owner: Owner) -> tuple[InputGroup, ...]:
        """The input groups of one party, in order: the columns of that party's labels."""
        return tuple(g for g in self.inputs if g.owner == owner)

    def wires_of(self, owner: Owner) -> int:
        """Input wires of one party per instance."""
        return sum(g.wires for g in self.groups(owner))

    @cached_property
    def output_bits(self) -> int:
        """Bits that come out per instance (words not counted)."""
        return sum(len(o.literals) for o in self.outputs)

    @cached_property
    def and_gates(self) -> int:
        """AND gates of both kinds."""
        return int(np.count_nonzero(self.gates[:, 0] != XOR))

    @cached_property
    def known_and_gates(self) -> int:
        """AND gates of which the evaluator knows one input: 16 bytes of table instead of 32."""
        return int(np.count_nonzero(self.gates[:, 0] == AND_KNOWN))

    @cached_property
    def table_bytes(self) -> int:
        """Bytes of garbled tables per instance."""
        total = 32 * (self.and_gates - self.known_and_gates) + 16 * self.known_and_gates
        for word in self.words:
            entries = len(word.selectors) + sum(1 if t.selector is None else 2 for t in word.terms)
            total += word.entry_bytes * entries
        return total

    @cached_property
    def hashes(self) -> int:
        """Hashes that the evaluator computes per instance: one per half gate, term of a word and factor."""
        of_words = sum(len(w.terms) + (w.multiplied is not None) for w in self.words)
        return 2 * self.and_gates - self.known_and_gates + of_words

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over a canonical form: two parties that agree on it garble and evaluate the same circuit."""
        h = hashlib.sha256(b"deepreduce circuit 2\n")
        for g in self.inputs:
            h.update(f"input {g.owner} {g.name!r} {g.bits} {g.count}\n".encode())
        h.update(f"gates {len(self.gates)}\n".encode() + self.gates.astype("<i4").tobytes())
        for o in self.outputs:
            h.update(f"output {o.name!r} {o.literals}\n".encode())
        for w in self.words:
            terms = [(t.bit, t.selector, t.weight) for t in w.terms]
            h.update(f"word {w.name!r} {w.bits} {w.constant} {terms} {w.multiplied}\n".encode())
        return h.digest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.digest == other.digest


def to_bits(values: NDArray[np.integer], bits: int) -> Bits:
    """Write numbers in two's complement, lowest bit first.

    Args:
        values: integers of any shape; only the low `bits` bits count.
        bits: 1 to 64.

    Returns:
        uint8 of shape [..., bits] with values 0 and 1.
    """
    as_bytes = (
        np.asarray(values, np.uint64 if values.dtype.kind == "u" else np.int64)[..., None].astype("<u8").view(np.uint8)
    )
    return np.unpackbits(as_bytes, axis=-1, bitorder="little")[..., :bits]


def from_bits(bits: Bits) -> Words:
    """Read numbers written by `to_bits`: uint8 [..., bits] to uint64 [...], without sign."""
    weights = np.uint64(1) << np.arange(bits.shape[-1], dtype=np.uint64)
    return np.asarray((bits.astype(np.uint64) * weights).sum(axis=-1, dtype=np.uint64))


def named_words(circuit: Circuit, owner: Owner, values: Mapping[str, NDArray[np.integer]]) -> dict[str, Words]:
    """Check one party's numbers and bring them to uint64 [instances, count], in the order of its groups.

    Raises:
        UsageError: a group is missing, unknown, has another shape, or another number of instances than the first.
    """
    groups = circuit.groups(owner)
    if {g.name for g in groups} != set(values):
        raise UsageError(
            problem(
                f"values are given for exactly the {owner}'s input groups {[g.name for g in groups]}",
                got=sorted(values),
                remedy="name each group once",
            )
        )
    words: dict[str, Words] = {}
    for group in groups:
        array = np.asarray(values[group.name])
        instances = len(next(iter(words.values()))) if words else array.shape[0] if array.ndim else 0
        shapes = {(instances, group.count)} | ({(instances,)} if group.count == 1 else set())
        if array.dtype.kind not in "iu" or array.shape not in shapes:
            raise UsageError(
                problem(
                    f"group {group.name!r} takes integers of shape [{instances}, {group.count}]",
                    got=f"{array.dtype} {array.shape}",
                    remedy="give one row per instance, as many in every group",
                )
            )
        # Negative numbers wrap into two's complement; only the low bits count later.
        words[group.name] = array.astype(np.uint64).reshape(instances, group.count)
    return words


def input_bits(circuit: Circuit, owner: Owner, values: Mapping[str, NDArray[np.integer]]) -> Bits:
    """Lay one party's numbers out in the order of its wires: the evaluator's are its choice bits in oblivious transfer.

    Args:
        circuit: the circuit.
        owner: whose inputs.
        values: for each of the owner's groups integers of shape [instances] (count 1) or [instances, count]; negative
            numbers in two's complement.

    Returns:
        uint8 [instances, wires of the owner], values 0 and 1.

    Raises:
        UsageError: a group is missing, unknown or has another shape.
    """
    words = named_words(circuit, owner, values)
    columns = [to_bits(words[g.name], g.bits).reshape(-1, g.wires) for g in circuit.groups(owner)]
    return np.concatenate(columns, axis=1) if columns else np.zeros((0, 0), np.uint8)


def evaluate_plain(circuit: Circuit, values: Mapping[str, NDArray[np.integer]]) -> dict[str, NDArray[np.generic]]:
    """Evaluate the circuit in clear for many instances: the truth that garbling is tested against.

    Args:
        circuit: the circuit.
        values: integers [instances] or [instances, count] for every input group of both parties.

    Returns:
        For each bit output uint8 [instances, bits]; for each word uint64 [instances], reduced modulo 2^bits, without
        what its factor adds: garbling draws that.

    Raises:
        UsageError: groups are missing or have the wrong shape.
    """
    by_owner = {
        owner: input_bits(circuit, owner, {n: v for n, v in values.items() if n in names})
        for owner, names in _names(circuit, values).items()
    }
    instances = max(b.shape[0] for b in by_owner.values())
    wires = np.zeros((1 + circuit.input_wires + len(circuit.gates), instances), np.uint8)
    column = dict.fromkeys(by_owner, 0)
    at = 1
    for group in circuit.inputs:
        start = column[group.owner]
        wires[at : at + group.wires] = by_owner[group.owner][:, start : start + group.wires].T
        column[group.owner] += group.wires
        at += group.wires
    for i, (kind, a, b) in enumerate(circuit.gates.tolist()):
        x, y = wires[a >> 1] ^ (a & 1), wires[b >> 1] ^ (b & 1)
        wires[at + i] = x ^ y if kind == XOR else x & y

    def value(literal: int) -> Bits:
        return np.asarray(wires[literal >> 1] ^ (literal & 1), np.uint8)

    result: dict[str, NDArray[np.generic]] = {}
    for out in circuit.outputs:
        result[out.name] = np.stack([value(x) for x in out.literals], axis=1)
    for word in circuit.words:
        total = np.full(instances, word.constant, np.uint64)
        for t in word.terms:
            on = value(t.bit) if t.selector is None else value(t.bit) & value(t.selector)
            total += on.astype(np.uint64) * np.uint64(t.weight)
        result[word.name] = total & np.uint64(2**word.bits - 1)
    return result


def _names(circuit: Circuit, values: Mapping[str, object]) -> dict[Owner, set[str]]:
    known: dict[Owner, set[str]] = {o: {g.name for g in circuit.groups(o)} for o in ("garbler", "evaluator")}
    unknown = set(values) - known["garbler"] - known["evaluator"]
    if unknown:
        raise UsageError(
            problem(
                "every value belongs to an input group",
                got=sorted(unknown),
                remedy=f"use {[g.name for g in circuit.inputs]}",
            )
        )
    return {owner: names for owner, names in known.items() if names}
