"""Garbling gives what the circuit gives in clear: all small circuits, and the circuits of private inference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.private import transfer
from deepreduce.private.circuits import (
    TRUE,
    Builder,
    Circuit,
    arg_max,
    evaluate_plain,
    input_bits,
    relu,
    rescale,
)
from deepreduce.private.garbling import (
    Backend,
    Tweak,
    decode_words,
    evaluate,
    garble,
    garbler_labels,
    mask_words,
    new_start,
    receiver_to_labels,
    sender_to_zero_labels,
)

from .play import backends, circuits, play, random_inputs, transferred

BACKENDS = pytest.mark.parametrize("backend", backends(), ids=lambda b: b.name)


def test_example_one_and_gate() -> None:
    """The whole exchange, step by step: the server garbles, the client evaluates."""
    b = Builder()
    (x,), (y,) = b.input("garbler", "x", 1), b.input("evaluator", "y", 1)
    b.output("both", [b.and_(x, y)])
    circuit = b.build()
    x_values, y_values = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1], np.uint8)

    delta, tweak = transfer.new_delta(), Tweak(new_start(), bundle=0, layer=0)
    zero_labels, client_labels = transferred(y_values[:, None], delta=delta.tobytes())  # what oblivious transfer gives
    garbled = garble(circuit, instances=4, delta=delta, tweak=tweak, evaluator_zero_labels=zero_labels)
    server_labels = garbler_labels(circuit, {"x": x_values}, seed=garbled.seed, delta=delta)
    evaluated = evaluate(
        circuit,
        instances=4,
        tables=garbled.tables,
        garbler_labels=server_labels,
        evaluator_labels=client_labels,
        tweak=tweak,
    )
    assert (evaluated.colours ^ garbled.decoding)[:, 0].tolist() == [0, 0, 0, 1]


def gates_of_two(b: Builder, x: int, y: int) -> list[int]:
    return [b.xor(x, y), b.and_(x, y), b.and_(x ^ 1, y), b.and_(x, y ^ 1), b.or_(x, y), b.and_(x, y) ^ 1]


@BACKENDS
@pytest.mark.parametrize("owners", list(itertools.product(["garbler", "evaluator"], repeat=3)))
def test_all_circuits_of_two_gates(backend: Backend, owners: tuple[str, str, str]) -> None:
    """(x gate y) gate z, for every pair of gates, every owner of every input, every input."""
    for first, second in itertools.product(range(6), repeat=2):
        b = Builder()
        x, y, z = (b.input(owner, name, 1)[0] for owner, name in zip(owners, "xyz", strict=True))  # type: ignore[arg-type]
        inner = gates_of_two(b, x, y)[first]
        outer = gates_of_two(b, inner, z)[second]
        b.output("bits", [inner, outer])
        b.word("word", 9, [(inner, TRUE, 3), (outer, inner, 100), (z, outer ^ 1, -1)], 5)
        circuit = b.build()
        cases = np.arange(8, dtype=np.uint64)
        values = {name: cases >> np.uint64(i) & np.uint64(1) for i, name in enumerate("xyz")}
        plain = evaluate_plain(circuit, values)
        secure = play(circuit, values, backend=backend).outputs(circuit)
        assert all(np.array_equal(secure[name], plain[name]) for name in plain), (first, second)


@BACKENDS
def test_a_circuit_without_tables(backend: Backend) -> None:
    """XORs, NOTs and constants alone: nothing is hashed, the outputs are masked all the same."""
    b = Builder()
    x, y = b.input("garbler", "x", 1)[0], b.input("evaluator", "y", 1)[0]
    b.output("out", [b.xor(x, y), b.not_(x), y, TRUE, b.xor(y, y)])
    b.word("w", 8, [(TRUE, TRUE, 77)])
    circuit = b.build()
    values = {"x": np.arange(40) % 2, "y": np.arange(40) // 2 % 2}
    played = play(circuit, values, backend=backend)
    assert played.garbled.tables.size == circuit.hashes == 0
    plain, secure = evaluate_plain(circuit, values), played.outputs(circuit)
    assert all(np.array_equal(secure[name], plain[name]) for name in plain)
    assert 0 < played.garbled.decoding[:, 0].mean() < 1


@given(circuits(), st.integers(1, 70), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_random_circuits(circuit: Circuit, instances: int, seed: int) -> None:
    values = random_inputs(circuit, instances, seed)
    plain = evaluate_plain(circuit, values)
    for backend in backends():
        secure = play(circuit, values, backend=backend).outputs(circuit)
        assert all(np.array_equal(secure[name], plain[name]) for name in plain), backend.name


@BACKENDS
@pytest.mark.parametrize("instances", [1, 15, 16, 17, 64, 65, 130])
def test_circuits_of_private_inference(backend: Backend, instances: int) -> None:
    for circuit in (
        relu(17, 27),
        relu(18, 40),
        rescale(14, 30),
        arg_max(10, 9),
    ):
        values = random_inputs(circuit, instances, instances)
        plain = evaluate_plain(circuit, values)
        secure = play(circuit, values, backend=backend).outputs(circuit)
        assert all(np.array_equal(secure[name], plain[name]) for name in plain)


def test_the_evaluator_masks_a_word_in_clear() -> None:
    """The path of a ReLU: the client subtracts its next mask and sends the word; the shares add up to the ReLU."""
    circuit, ring = relu(17, 27), 2**27
    values = random_inputs(circuit, 100, 1)
    played = play(circuit, values)
    mask = np.random.default_rng(2).integers(0, ring, (100, 1), dtype=np.uint64)
    sent = mask_words(played.evaluated.words, mask, circuit)
    assert sent.max() < ring
    server_share = decode_words(sent, played.garbled.offsets, circuit)
    x = ((values["server_share"] + values["client_share"]) % 2**17).astype(np.int64)
    x -= 2**17 * (x >> 16)
    assert np.array_equal((server_share + mask) % np.uint64(ring), np.maximum(x, 0).astype(np.uint64))


def test_labels_from_real_oblivious_transfer() -> None:
    """The transfers are the labels: both parties through the OT extension, then one ReLU layer."""
    session = transfer.new_session()
    client, offer = transfer.offer_setup(session)
    server, chosen = transfer.choose_setup(session, transfer.new_delta(), offer)
    at_client, sums = transfer.plant_setup(client, chosen)
    at_server = transfer.finish_setup(server, sums)

    circuit, instances = relu(17, 27), 50
    values = random_inputs(circuit, instances, 8)
    bits = input_bits(circuit, "evaluator", {"client_share": values["client_share"]})
    at_client, corrections, blocks = transfer.extend_receiver(at_client, bits.reshape(-1))
    at_server, zeros = transfer.extend_sender(at_server, corrections, bits.size)
    zero_labels = sender_to_zero_labels(zeros.reshape(instances, -1, 16).copy())
    client_labels = receiver_to_labels(blocks.reshape(instances, -1, 16).copy(), bits)

    tweak = Tweak(new_start(), 0, 0)
    garbled = garble(
        circuit, instances=instances, delta=at_server.delta, tweak=tweak, evaluator_zero_labels=zero_labels
    )
    own = {"server_share": values["server_share"]}
    evaluated = evaluate(
        circuit,
        instances=instances,
        tables=garbled.tables,
        garbler_labels=garbler_labels(circuit, own, seed=garbled.seed, delta=at_server.delta),
        evaluator_labels=client_labels,
        tweak=tweak,
    )
    out = decode_words(evaluated.words, garbled.offsets, circuit)[:, 0]
    assert np.array_equal(out, evaluate_plain(circuit, values)["out"])


def test_threads_change_nothing() -> None:
    circuit = relu(9, 20)
    values = random_inputs(circuit, 9000, 3)
    alone, together = play(circuit, values), play(circuit, values, threads=3)
    assert np.array_equal(alone.garbled.tables, together.garbled.tables)
    assert np.array_equal(alone.garbled.offsets, together.garbled.offsets)
    assert np.array_equal(alone.evaluated.words, together.evaluated.words)
