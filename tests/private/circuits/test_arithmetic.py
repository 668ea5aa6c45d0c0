"""Arithmetic against Python's integers: exhaustively at small widths, with the AND gates of the literature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from deepreduce.errors import UsageError
from deepreduce.private.circuits import FALSE, TRUE, Builder, Circuit, evaluate_plain, from_bits
from deepreduce.private.circuits import arithmetic as ar
from deepreduce.private.circuits.arithmetic import Number

Operation = Callable[[Builder, Number, Number], list[int]]


def constant(value: int, bits: int) -> list[int]:
    """The literals of a public number."""
    return [TRUE if value >> i & 1 else FALSE for i in range(bits)]


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
def test_sum_and_difference(bits: int) -> None:
    for operation, expected in ((ar.add, np.add), (ar.subtract, np.subtract)):
        circuit = two_inputs(operation, bits)
        x, y, out = all_pairs(circuit, bits)
        assert np.array_equal(out, expected(x, y) % 2**bits)
        assert circuit.and_gates == bits - 1
        assert circuit.known_and_gates == min(1, bits - 1)


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_comparison(bits: int) -> None:
    unsigned = two_inputs(lambda b, x, y: [ar.less_than(b, x, y)], bits)
    x, y, out = all_pairs(unsigned, bits)
    assert np.array_equal(out, x < y) and unsigned.and_gates == bits
    circuit = two_inputs(lambda b, x, y: [ar.less_than(b, x, y, signed=True)], bits)
    x, y, out = all_pairs(circuit, bits)
    assert np.array_equal(out, signed(x, bits) < signed(y, bits)) and circuit.and_gates == bits


@pytest.mark.parametrize("value", range(16))
def test_public_constants_cost_less(value: int) -> None:
    sum_circuit = two_inputs(lambda b, x, y: ar.add(b, x, constant(value, 4)), 4)
    x, _, out = all_pairs(sum_circuit, 4)
    assert np.array_equal(out, (x + value) % 16) and sum_circuit.and_gates <= 2
    over = two_inputs(lambda b, x, y: [ar.less_than(b, constant(value, 4), x)], 4)
    x, _, out = all_pairs(over, 4)
    assert np.array_equal(out, value < x) and over.and_gates <= 3


def test_difference_from_zero_of_a_known_number_costs_half() -> None:
    circuit = two_inputs(lambda b, x, y: ar.subtract(b, [x[0], *constant(0, 4)], y), 5)
    x, y, out = all_pairs(circuit, 5)
    assert np.array_equal(out, ((x & 1) - y) % 32)
    assert circuit.and_gates == circuit.known_and_gates == 4


def test_selection() -> None:
    circuit = two_inputs(lambda b, x, y: ar.select(b, x[0], x, y), 4)
    x, y, out = all_pairs(circuit, 4)
    assert np.array_equal(out, np.where(x & 1, x, y)) and circuit.and_gates <= 4
    gated = two_inputs(lambda b, x, y: ar.gate_bits(b, y[0], x), 4)
    x, y, out = all_pairs(gated, 4)
    assert np.array_equal(out, np.where(y & 1, x, 0)) and gated.and_gates == 4


@pytest.mark.parametrize("places", [-6, -4, -3, -1, 0, 2, 5])
@pytest.mark.parametrize("with_sign", [False, True])
def test_shifts_round_down_and_extend(places: int, with_sign: bool) -> None:
    circuit = two_inputs(lambda b, x, y: ar.shift(x, places, 7, signed=with_sign), 4)
    x, _, out = all_pairs(circuit, 4)
    value = signed(x, 4) if with_sign else x
    expected = value << places if places >= 0 else value >> -places
    assert np.array_equal(out, expected % 2**7) and circuit.and_gates == 0


def test_numbers_of_different_length_are_refused() -> None:
    b = Builder()
    x = b.input("garbler", "x", 3)
    with pytest.raises(UsageError, match="same number of bits"):
        ar.add(b, x, x[:2])
