"""The builder folds and merges without changing the function, and counts what it builds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.errors import UsageError
from deepreduce.private.circuits import FALSE, TRUE, Builder, Circuit, evaluate_plain, from_bits, input_bits, to_bits
from deepreduce.private.circuits.circuit import AND, InputGroup


def test_example() -> None:
    b = Builder()
    (x,), (y,) = b.input("garbler", "x", 1), b.input("evaluator", "y", 1)
    b.output("both", [b.and_(x, y)])
    circuit = b.build()
    result = evaluate_plain(circuit, {"x": np.array([0, 0, 1, 1]), "y": np.array([0, 1, 0, 1])})
    assert result["both"][:, 0].tolist() == [0, 0, 0, 1]
    assert (circuit.and_gates, circuit.known_and_gates, circuit.table_bytes) == (1, 1, 16)


def test_constants_fold() -> None:
    b = Builder()
    (x,) = b.input("garbler", "x", 1)
    assert b.and_(x, TRUE) == x and b.and_(FALSE, x) == FALSE and b.and_(x, x) == x
    assert b.and_(x, b.not_(x)) == FALSE and b.or_(x, b.not_(x)) == TRUE and b.or_(FALSE, x) == x
    assert b.xor(x, x) == FALSE and b.xor(x, TRUE) == b.not_(x) and b.xor(b.not_(x), x) == TRUE
    assert b.and_gates == 0


def test_equal_expressions_are_merged() -> None:
    b = Builder()
    x, y, z = b.input("garbler", "v", 3)
    assert b.xor(b.xor(x, y), z) == b.xor(x, b.xor(z, y))
    assert b.xor(b.xor(x, y), x) == y
    product = b.and_(x, y)
    assert b.and_(y, x) == product
    assert b.and_(b.not_(x), y) == b.xor(product, y)
    assert b.or_(x, y) == b.xor(product, b.xor(x, y))
    assert b.and_gates == 1


def test_what_no_output_needs_is_left_out() -> None:
    b = Builder()
    x, y, z = b.input("garbler", "v", 3)
    kept = b.and_(x, y)
    b.and_(y, z)
    b.output("out", [b.not_(kept)])
    assert b.and_gates == 2
    assert b.build().and_gates == 1


def test_the_evaluator_knows_xors_of_its_own_inputs_only() -> None:
    b = Builder()
    (x,) = b.input("garbler", "x", 1)
    y, z = b.input("evaluator", "v", 2)
    assert b.known_to_evaluator(b.xor(y, b.not_(z)))
    assert not b.known_to_evaluator(b.xor(x, y)) and not b.known_to_evaluator(b.and_(y, z))
    assert not b.known_to_evaluator(TRUE)


@st.composite
def expressions(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Steps over a growing list of values; the first five are three inputs and the two constants."""
    steps = []
    for i in range(draw(st.integers(1, 25))):
        pick = st.integers(0, 4 + i)
        steps.append((draw(st.sampled_from(["xor", "and", "or", "not"])), draw(pick), draw(pick)))
    return steps


@given(expressions())
@settings(max_examples=150, deadline=None)
def test_every_expression_keeps_its_value(steps: list[tuple[str, int, int]]) -> None:
    b = Builder()
    literals = [*b.input("garbler", "g", 1), *b.input("evaluator", "e", 2), FALSE, TRUE]
    cases = np.arange(8)
    values = [cases & 1, cases >> 1 & 1, cases >> 2 & 1, 0 * cases, 0 * cases + 1]
    for name, i, j in steps:
        if name == "not":
            literals.append(b.not_(literals[i]))
            values.append(1 - values[i])
        else:
            literals.append({"xor": b.xor, "and": b.and_, "or": b.or_}[name](literals[i], literals[j]))
            values.append(
                {"xor": np.bitwise_xor, "and": np.bitwise_and, "or": np.bitwise_or}[name](values[i], values[j])
            )
    b.output("all", literals)
    circuit = b.build()
    out = evaluate_plain(circuit, {"g": cases & 1, "e": cases >> 1})["all"]
    assert np.array_equal(out, np.stack(values, axis=1))
    assert circuit.and_gates <= sum(name in ("and", "or") for name, _, _ in steps)


def test_words_fold_constants_and_merge_terms() -> None:
    b = Builder()
    x, s = b.input("garbler", "v", 2)
    b.word(
        "w",
        8,
        [(x, TRUE, 3), (x, TRUE, 2), (TRUE, s, 7), (TRUE, TRUE, 250), (x, FALSE, 9), (x, b.not_(x), 1), (s, s, 1)],
    )
    circuit = b.build()
    word = circuit.words[0]
    assert [(t.selector, t.weight) for t in word.terms] == [(None, 5), (None, 8)] and word.constant == 250
    values = np.arange(4)
    expected = (5 * (values & 1) + 8 * (values >> 1) + 250) % 256
    assert np.array_equal(evaluate_plain(circuit, {"v": values})["w"], expected)


def test_digest_tells_circuits_apart() -> None:
    def make(name: str = "x", weight: int = 1) -> Circuit:
        b = Builder()
        x, y = b.input("garbler", name, 2)
        b.word("w", 8, [(b.and_(x, y), TRUE, weight)])
        return b.build()

    assert make() == make() and hash(make()) == hash(make()) and len(make().digest) == 32
    assert len({make().digest, make("y").digest, make(weight=2).digest}) == 3


def test_bits_round_trip() -> None:
    values = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    assert np.array_equal(from_bits(to_bits(values, 64)), values)
    assert to_bits(np.array([-2]), 4).tolist() == [[0, 1, 1, 1]]


def test_mistakes_are_refused() -> None:
    b = Builder()
    (x,) = b.input("garbler", "x", 1)
    with pytest.raises(UsageError, match="1 to 64 bits"):
        b.input("garbler", "y", 65)
    with pytest.raises(UsageError, match="different names"):
        b.input("evaluator", "x", 1)
    with pytest.raises(UsageError, match="input and an output"):
        b.build()
    b.output("out", [x])
    with pytest.raises(UsageError, match="different names"):
        b.word("out", 8, [])
    with pytest.raises(UsageError, match="1 to 64 bits"):
        b.word("w", 0, [])
    circuit = b.build()
    with pytest.raises(UsageError, match="exactly the garbler's"):
        input_bits(circuit, "garbler", {})
    with pytest.raises(UsageError, match="shape"):
        input_bits(circuit, "garbler", {"x": np.zeros((2, 2), int)})
    with pytest.raises(UsageError, match="belongs to an input group"):
        evaluate_plain(circuit, {"x": np.zeros(1, int), "z": np.zeros(1, int)})
    group = (InputGroup("garbler", "x", 1),)
    with pytest.raises(UsageError, match="wires before its own"):
        Circuit(group, np.array([[AND, 2, 4]], np.int32), (), ())
    with pytest.raises(UsageError, match="int32 array"):
        Circuit(group, np.zeros((1, 3)), (), ())  # type: ignore[arg-type]
