"""Builds circuits with as few AND gates as it can see: constants folded, equal expressions merged.

XOR and NOT are free in a garbled circuit, AND is what costs. So the builder keeps, for every wire, its value as an XOR
of *basis* wires (inputs and outputs of AND gates): two expressions that differ only in how their XORs are bracketed get
one wire, and `(a ^ b) ^ a` is `b`. It also knows which wires the evaluator can compute alone (XORs of its own inputs):
an AND with such a wire costs half (Zahur, Rosulek, Evans, Eurocrypt 2015, section 3: the evaluator's half gate).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...errors import UsageError, problem
from .circuit import (
    AND,
    AND_KNOWN,
    MAX_WORD_BITS,
    XOR,
    BitOutput,
    Circuit,
    InputGroup,
    Owner,
    Term,
    WordOutput,
)

FALSE, TRUE = 0, 1
"""The constant literals."""


class Builder:
    """Collects inputs, gates and outputs, and gives a frozen `Circuit`.

    Literals are plain integers (`2 * wire + inverted`), so that a number is a list of literals, lowest bit first.
    All inputs are declared before the first gate.

    Example:
        >>> b = Builder()
        >>> (x,), (y,) = b.input("garbler", "x", 1), b.input("evaluator", "y", 1)
        >>> b.output("both", [b.and_(x, y)])
        >>> b.build().and_gates
        1
    """

    def __init__(self) -> None:
        self._groups: list[InputGroup] = []
        self._gates: list[tuple[int, int, int]] = []
        self._outputs: list[BitOutput] = []
        self._words: list[WordOutput] = []
        self._forms: list[frozenset[int]] = [frozenset()]  # per wire: the basis wires whose XOR it is
        self._wire_of_form: dict[frozenset[int], int] = {frozenset(): 0}
        self._ands: dict[tuple[int, int], int] = {}  # pair of wires without inversion, and its inversions, to a literal
        self._evaluator_wires: set[int] = set()

    # inputs and outputs

    def input(self, owner: Owner, name: str, bits: int, count: int = 1) -> list[int]:
        """Declare an input group and return its literals.

        Args:
            owner: "garbler" or "evaluator".
            name: unique among inputs.
            bits: bits per number, 1 to 64.
            count: numbers per instance.

        Returns:
            `bits * count` literals: number after number, lowest bit first.

        Raises:
            UsageError: a name comes twice, a size is out of range, or gates exist already.
        """
        if owner not in ("garbler", "evaluator") or not 1 <= bits <= 64 or count < 1:
            raise UsageError(
                problem(
                    "an input group has an owner (garbler, evaluator), 1 to 64 bits and at least one number",
                    got=(owner, bits, count),
                    remedy="split wider inputs into several numbers",
                )
            )
        if self._gates or any(g.name == name for g in self._groups):
            raise UsageError(
                problem(
                    "inputs have different names and come before the first gate",
                    got=name,
                    remedy="declare all inputs first",
                )
            )
        first = len(self._forms)
        group = InputGroup(owner, name, bits, count)
        self._groups.append(group)
        for wire in range(first, first + group.wires):
            form = frozenset((wire,))
            self._forms.append(form)
            self._wire_of_form[form] = wire
            if owner == "evaluator":
                self._evaluator_wires.add(wire)
        return [2 * wire for wire in range(first, first + group.wires)]

    def output(self, name: str, literals: Sequence[int]) -> None:
        """Name bits as an output."""
        self._fresh_output(name)
        self._outputs.append(BitOutput(name, tuple(literals)))

    def word(
        self,
        name: str,
        bits: int,
        terms: Iterable[tuple[int, int, int]],
        constant: int = 0,
        *,
        multiplied: int | None = None,
    ) -> None:
        """Name a sum modulo 2^bits as an output that the parties get as additive shares.

        Args:
            name: unique among outputs.
            bits: the ring, 1 to 64.
            terms: (bit, selector, weight); a selector of `TRUE` selects always. Weights may be negative.
            constant: a public number to add.
            multiplied: a bit that a random factor multiplies, no constant; None for no factor.

        Raises:
            UsageError: the name is taken, the ring is out of range, or the multiplied bit is a constant.
        """
        self._fresh_output(name)
        if multiplied in (FALSE, TRUE):
            raise UsageError(problem("a factor multiplies a bit", got="a constant", remedy="leave it out"))
        if not 1 <= bits <= MAX_WORD_BITS:
            raise UsageError(problem(f"a word has 1 to {MAX_WORD_BITS} bits", got=bits, remedy="choose a smaller ring"))
        merged: dict[tuple[int, int], int] = {}
        for bit, selector, weight in terms:
            if selector in (FALSE, bit ^ 1) or bit == FALSE:
                continue
            if bit in (TRUE, selector):
                bit, selector = selector, TRUE
            if bit == TRUE:
                constant += weight
            else:
                merged[bit, selector] = merged.get((bit, selector), 0) + weight
        # Terms of one selector stand together, because they share a ciphertext; those without come first.
        order = {s: i for i, s in enumerate(dict.fromkeys([TRUE, *(s for _, s in merged)]))}
        kept = sorted(
            ((b, s, w % 2**bits) for (b, s), w in merged.items() if w % 2**bits), key=lambda term: order[term[1]]
        )
        self._words.append(
            WordOutput(
                name,
                bits,
                tuple(Term(b, None if s == TRUE else s, w) for b, s, w in kept),
                constant % 2**bits,
                multiplied,
            )
        )

    def build(self) -> Circuit:
        """Drop gates that no output needs and freeze the rest.

        Raises:
            UsageError: there is no input or no output.
        """
        if not self._groups or not (self._outputs or self._words):
            raise UsageError(
                problem(
                    "a circuit has an input and an output",
                    got="none",
                    remedy="call input, and output or word, before build",
                )
            )
        inputs = sum(g.wires for g in self._groups)
        wanted = {x >> 1 for o in self._outputs for x in o.literals}
        wanted |= {x >> 1 for w in self._words for x in w.literals}
        for i in range(len(self._gates) - 1, -1, -1):
            if 1 + inputs + i in wanted:
                _, a, b = self._gates[i]
                wanted |= {a >> 1, b >> 1}
        new_wire = list(range(1 + inputs))
        gates: list[tuple[int, int, int]] = []

        def moved(literal: int) -> int:
            return 2 * new_wire[literal >> 1] + (literal & 1)

        for i, (kind, a, b) in enumerate(self._gates):
            if 1 + inputs + i in wanted:
                new_wire.append(1 + inputs + len(gates))
                gates.append((kind, moved(a), moved(b)))
            else:
                new_wire.append(0)
        return Circuit(
            tuple(self._groups),
            np.array(gates, np.int32).reshape(-1, 3),
            tuple(BitOutput(o.name, tuple(map(moved, o.literals))) for o in self._outputs),
            tuple(
                WordOutput(
                    w.name,
                    w.bits,
                    tuple(
                        Term(moved(t.bit), None if t.selector is None else moved(t.selector), t.weight) for t in w.terms
                    ),
                    w.constant,
                    None if w.multiplied is None else moved(w.multiplied),
                )
                for w in self._words
            ),
        )

    # gates

    @property
    def and_gates(self) -> int:
        """AND gates so far, unused ones included."""
        return sum(kind != XOR for kind, _, _ in self._gates)

    def not_(self, a: int) -> int:
        """The inverse of a literal; free."""
        return a ^ 1

    def xor(self, a: int, b: int) -> int:
        """Exclusive or of two literals; free to garble."""
        inverted = (a ^ b) & 1
        form = self._forms[a >> 1] ^ self._forms[b >> 1]
        wire = self._wire_of_form.get(form)
        if wire is None:
            wire = self._add(XOR, a & ~1, b & ~1, form)
        return 2 * wire + inverted

    def and_(self, a: int, b: int) -> int:
        """And of two literals; constants, equal and opposite inputs cost nothing."""
        if a == b or b == TRUE:
            return a
        if a == TRUE:
            return b
        if FALSE in (a, b) or a == b ^ 1:
            return FALSE
        a, b = min(a, b), max(a, b)
        # The four ANDs of a pair and its inverses differ by XORs, so one of them is enough.
        for flip in range(4):
            known = self._ands.get((a ^ (flip & 1), b ^ (flip >> 1)))
            if known is not None:
                return self._repolarised(known, a, b, flip)
        if self.known_to_evaluator(a) and not self.known_to_evaluator(b):
            first, second = b, a
        else:
            first, second = a, b
        kind = AND_KNOWN if self.known_to_evaluator(second) else AND
        literal = 2 * self._add(kind, first, second, None)
        self._ands[a, b] = literal
        return literal

    def or_(self, a: int, b: int) -> int:
        """Or of two literals: one AND."""
        return self.and_(a ^ 1, b ^ 1) ^ 1

    def known_to_evaluator(self, literal: int) -> bool:
        """Is the literal an XOR of the evaluator's own inputs?"""
        form = self._forms[literal >> 1]
        return bool(form) and form <= self._evaluator_wires

    def _repolarised(self, product: int, a: int, b: int, flip: int) -> int:
        """a AND b, from `product` = (a ^ f0) AND (b ^ f1), where f0 and f1 are the bits of `flip`."""
        # ab = (a ^ f0)(b ^ f1) ^ f0 * (b ^ f1) ^ f1 * a, expanded over GF(2).
        if flip & 1:
            product = self.xor(product, b ^ (flip >> 1))
        if flip >> 1:
            product = self.xor(product, a)
        return product

    def _add(self, kind: int, a: int, b: int, form: frozenset[int] | None) -> int:
        wire = len(self._forms)
        self._gates.append((kind, a, b))
        form = frozenset((wire,)) if form is None else form
        self._forms.append(form)
        self._wire_of_form[form] = wire
        return wire

    def _fresh_output(self, name: str) -> None:
        if name in {o.name for o in self._outputs} | {w.name for w in self._words}:
            raise UsageError(problem("outputs have different names", got=name, remedy="choose another name"))
