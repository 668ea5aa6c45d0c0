"""The circuits of private inference against Python's integers, and the AND gates they cost."""

from __future__ import annotations

from typing import Any

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
from deepreduce.private.circuits.functions import Ending

ENDINGS: list[Ending] = ["word", "bits"]


def shares(x: np.ndarray, width: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    server = rng.integers(0, 2**width, x.shape)
    return {"server_share": server, "client_share": (x - server) % 2**width}


def run(circuit: Circuit, x: np.ndarray, width: int, out_bits: int, seed: int = 0) -> np.ndarray:
    """The output of a circuit on random shares of x, the mask added back in where there is one."""
    rng = np.random.default_rng(seed)
    values = shares(x, width, rng)
    if any(g.name == "client_mask" for g in circuit.inputs):
        mask = rng.integers(0, 2**out_bits, len(x)).astype(np.uint64)
        out = from_bits(np.asarray(evaluate_plain(circuit, {**values, "client_mask": mask})["out"], np.uint8)) + mask
    else:
        out = np.asarray(evaluate_plain(circuit, values)["out"], np.uint64)
    return out & np.uint64(2**out_bits - 1)


def moved(x: Any, places: int, out_bits: int) -> Any:
    return (x << places if places >= 0 else x >> -places) % 2**out_bits


def test_example_one_relu() -> None:
    circuit = relu(17, 27)
    server, client = 70_000, 2**17 - 60_000
    out = evaluate_plain(circuit, {"server_share": np.array([server]), "client_share": np.array([client])})
    assert out["out"].tolist() == [10_000]


def test_and_gates() -> None:
    """What a garbled ReLU costs: 15.5 AND gates and 16 selected bits, or 52 with the mask too."""
    for words in (1, 3):
        choice = chosen_multiple(27, words)
        assert (choice.and_gates, choice.hashes, choice.table_bytes) == (0, words, 0)
    word, bits = relu(17, 27), relu(17, 27, ending="bits")
    assert (word.and_gates, word.known_and_gates, word.hashes, word.table_bytes) == (16, 1, 47, 628)
    assert (bits.and_gates, bits.known_and_gates, bits.hashes, bits.table_bytes) == (58, 12, 104, 1664)
    assert (word.wires_of("evaluator"), bits.wires_of("evaluator")) == (17, 44)
    assert rescale(17, 27).and_gates == 16
    assert arg_max(100, 17).and_gates <= 100 * 16 + 99 * 17 + 98 * 17 + 100


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("places", [-2, 0, 3])
def test_every_pair_of_shares(ending: Ending, places: int) -> None:
    width, out_bits = 4, 6
    server, client = (a.ravel() for a in np.meshgrid(np.arange(16), np.arange(16)))
    x = (server + client + 8) % 16 - 8
    cases = {
        "relu": (relu(width, out_bits, places=places, ending=ending), np.maximum(x, 0)),
        "rescale": (rescale(width, out_bits, places=places, ending=ending), x),
    }
    for name, (circuit, expected) in cases.items():
        for mask in (0, 1, 37, 63) if ending == "bits" else (0,):
            values = {"server_share": server, "client_share": client}
            if ending == "bits":
                values["client_mask"] = np.full_like(x, mask)
            out = evaluate_plain(circuit, values)["out"]
            number = from_bits(np.asarray(out, np.uint8)) if ending == "bits" else out
            assert np.array_equal(number, (moved(expected, places, out_bits) - mask) % 2**out_bits), name


@given(st.integers(2, 24), st.integers(1, 40), st.integers(-6, 9), st.sampled_from(ENDINGS), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_real_widths(width: int, out_bits: int, places: int, ending: Ending, seed: int) -> None:
    places = max(places, 1 - width)
    top = 2 ** (width - 1)
    rng = np.random.default_rng(seed)
    edges = np.array([-top, -top + 1, -1, 0, 1, top - 1])
    x = np.concatenate([edges, rng.integers(-top, top, 40)])
    expected = moved(np.maximum(x, 0), places, out_bits)
    assert np.array_equal(run(relu(width, out_bits, places=places, ending=ending), x, width, out_bits), expected)
    expected = moved(x, places, out_bits)
    assert np.array_equal(run(rescale(width, out_bits, places=places, ending=ending), x, width, out_bits), expected)


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
        lambda: relu(17, 27, places=-17),
        lambda: relu(17, 27, ending="other"),  # type: ignore[arg-type]
        lambda: arg_max(1, 8),
    ):
        with pytest.raises(UsageError, match=r"Got: .* Do: "):
            make()
