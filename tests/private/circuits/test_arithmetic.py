"""Arithmetic against Python's integers: exhaustively at small widths, with the AND gates of the literature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from deepreduce.errors import UsageError
from deepreduce.private.circuits import Builder, Circuit, evaluate_plain, from_bits
from deepreduce.private.circuits import arithmetic as ar
from deepreduce.private.circuits.arithmetic import Number

Operation = Callable[[Builder, Number, Number], list[int]]


def two_inputs(operation: Operation, bits: int) -> Circuit:
    b = Builder()
    x, y = b.input("garbler", "x", bits), b.input("evaluator", "y", bits)
    b.output("out", operation(b, x, y))
    return b.build()


def all_pairs(circuit: Circuit, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = (a.ravel() for a in np.meshgrid(np.arange(2**bits), np.arange(2**bits)))
    return x, y, from_bits(np.asarray(evaluate_plain(circuit, {"x": x, "y": y})["out"], np.uint8)).astype(np.int64)


def signed(x: np.ndarray, bits: int) -> np.ndarray:
    return (x + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_sum(bits: int) -> None:
    circuit = two_inputs(ar.add, bits)
    x, y, out = all_pairs(circuit, bits)
    assert np.array_equal(out, (x + y) % 2**bits)
    assert circuit.and_gates == bits - 1
    assert circuit.known_and_gates == min(1, bits - 1)


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_comparison(bits: int) -> None:
    circuit = two_inputs(lambda b, x, y: [ar.less_than(b, x, y)], bits)
    x, y, out = all_pairs(circuit, bits)
    assert np.array_equal(out, signed(x, bits) < signed(y, bits)) and circuit.and_gates == bits


def test_selection() -> None:
    circuit = two_inputs(lambda b, x, y: ar.select(b, x[0], x, y), 4)
    x, y, out = all_pairs(circuit, 4)
    assert np.array_equal(out, np.where(x & 1, x, y)) and circuit.and_gates <= 4


def test_numbers_of_different_length_are_refused() -> None:
    b = Builder()
    x = b.input("garbler", "x", 3)
    with pytest.raises(UsageError, match="same number of bits"):
        ar.add(b, x, x[:2])
