"""The circuits of private inference against Python's integers, and the AND gates they cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.errors import UsageError
from deepreduce.private.circuits import (
    Circuit,
    arg_max,
    chosen_multiple,
    evaluate_plain,
    from_bits,
    relu,
    rescale,
)


def shares(x: np.ndarray, width: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    server = rng.integers(0, 2**width, x.shape)
    return {"server_share": server, "client_share": (x - server) % 2**width}


def run(circuit: Circuit, x: np.ndarray, width: int, seed: int = 0) -> np.ndarray:
    """The output of a circuit on random shares of x."""
    return evaluate_plain(circuit, shares(x, width, np.random.default_rng(seed)))["out"]


def test_example_one_relu() -> None:
    circuit = relu(17, 27)
    server, client = 70_000, 2**17 - 60_000
    out = evaluate_plain(circuit, {"server_share": np.array([server]), "client_share": np.array([client])})
    assert out["out"].tolist() == [10_000]


def test_and_gates() -> None:
    """What a garbled ReLU costs: 15.5 AND gates and 16 selected bits."""
    for words in (1, 3):
        choice = chosen_multiple(27, words)
        assert (choice.and_gates, choice.hashes, choice.table_bytes) == (0, words, 0)
    circuit = relu(17, 27)
    assert (circuit.and_gates, circuit.known_and_gates, circuit.hashes, circuit.table_bytes) == (16, 1, 47, 628)
    assert circuit.wires_of("evaluator") == 17
    assert rescale(17, 27).and_gates == 16
    assert arg_max(100, 17).and_gates <= 100 * 16 + 99 * 17 + 98 * 17 + 100


def test_every_pair_of_shares() -> None:
    width, out_bits = 4, 6
    server, client = (a.ravel() for a in np.meshgrid(np.arange(16), np.arange(16)))
    x = (server + client + 8) % 16 - 8
    values = {"server_share": server, "client_share": client}
    for circuit, expected in ((relu(width, out_bits), np.maximum(x, 0)), (rescale(width, out_bits), x)):
        assert np.array_equal(evaluate_plain(circuit, values)["out"], expected % 2**out_bits)


@given(st.integers(2, 24), st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_real_widths(width: int, out_bits: int, seed: int) -> None:
    top = 2 ** (width - 1)
    rng = np.random.default_rng(seed)
    edges = np.array([-top, -top + 1, -1, 0, 1, top - 1])
    x = np.concatenate([edges, rng.integers(-top, top, 40)])
    assert np.array_equal(run(relu(width, out_bits), x, width), np.maximum(x, 0) % 2**out_bits)
    assert np.array_equal(run(rescale(width, out_bits), x, width), x % 2**out_bits)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 10, 16, 100])
def test_arg_max_takes_the_first_of_equals(count: int) -> None:
    width = 6
    rng = np.random.default_rng(count)
    x = np.concatenate([rng.integers(-32, 32, (50, count)), rng.integers(-2, 1, (50, count)), np.full((1, count), -32)])
    out = evaluate_plain(arg_max(count, width), shares(x, width, rng))["index"]
    assert out.shape[1] == (count - 1).bit_length()
    assert np.array_equal(from_bits(np.asarray(out, np.uint8)), x.argmax(axis=1))


def test_sizes_out_of_range_are_refused() -> None:
    for make in (
        lambda: relu(1, 27),
        lambda: relu(63, 27),
        lambda: relu(17, 65),
        lambda: rescale(17, 0),
        lambda: arg_max(1, 8),
    ):
        with pytest.raises(UsageError, match=r"Got: .* Do: "):
            make()
