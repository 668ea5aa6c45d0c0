"""What each party sees, what is refused, and what a second use would have given away."""

from __future__ import annotations

import copy
import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from deepreduce.private.transfer import (
    BaseChoices,
    Corrections,
    TransferError,
    TreeSums,
    choose_setup,
    extend_receiver,
    extend_sender,
    finish_setup,
    new_delta,
    new_session,
    offer_setup,
    plant_setup,
)
from deepreduce.private.transfer._backends import get_backend
from deepreduce.private.transfer._state import SingleUse

COUNT = 128 * 256


def deviation(bits: np.ndarray) -> float:
    """Return by how many standard deviations the share of ones differs from one half; `bits` holds 0 and 1."""
    return float(abs(bits.mean() - 0.5) * 2 * np.sqrt(bits.size))


def rows_of(message: Corrections) -> np.ndarray:
    """Return the corrections as bits, shape (trees, transfers)."""
    trees = message.rows.shape[1]
    rows = message.rows.transpose(1, 0, 2).reshape(trees, -1)
    return np.unpackbits(rows, axis=1, bitorder="little")


@pytest.mark.parametrize("field_bits", [1, 2, 4, 8])
def test_the_servers_view_is_the_same_for_all_zeros_and_all_ones(field_bits: int, set_up: Callable[..., Any]) -> None:
    """Message, labels, and every pair of them look uniform, whatever was chosen. Twenty set-ups per choice."""
    worst = 5.5  # of some 10^5 looks; a Gaussian passes 5.5 sigma once in 10^7
    for value in (0, 1):
        ones_per_place = np.zeros((128 // field_bits, 256))
        for seed in range(20):
            pair = set_up(b"view%d%d" % (value, seed), field_bits)
            _, message, _ = extend_receiver(pair.client, np.full(COUNT // 16, value, np.uint8))
            _, zeros = extend_sender(pair.server, message, COUNT // 16)
            rows = rows_of(message)
            labels = np.unpackbits(zeros, axis=1, bitorder="little").T
            assert max(deviation(row) for row in rows) < worst
            assert max(deviation(row) for row in labels) < worst
            # A row against the next tree's row, and against a bit of the server's label made from the same tree.
            assert max(deviation(one ^ two) for one, two in pairwise(rows)) < worst
            assert max(deviation(rows[bit // field_bits] ^ labels[bit]) for bit in range(128)) < worst
            ones_per_place += rows[:, :256]
        # Over the set-ups, every single place is a fair coin (20 throws: sigma = sqrt(5)).
        assert np.abs(ones_per_place - 10).max() <= 10
        assert abs(ones_per_place.mean() - 10) < worst * np.sqrt(5 / ones_per_place.size)
        assert abs(ones_per_place.var() - 5) < 1


def test_what_the_server_knows_of_a_pad_does_not_open_it(set_up: Callable[..., Any]) -> None:
    """The sum of all leaves but the unknown one agrees with the choice bits half of the time; with it, always."""
    pair = set_up()
    bits = np.random.default_rng(1).integers(0, 2, COUNT, dtype=np.uint8)
    server, client = pair.server, pair.client
    engine = get_backend("numpy")
    _, message, _ = extend_receiver(client, bits)
    rows = rows_of(message)
    number = int.from_bytes(pair.delta.tobytes(), "little")
    for tree in range(32):
        nonces = np.repeat(server._nonces[tree : tree + 1], 15, axis=0)
        streams = engine.expand(server._leaves[tree, 1:], nonces, 0, COUNT // 128)
        known = np.unpackbits(np.bitwise_xor.reduce(streams, axis=0), bitorder="little")
        assert deviation(rows[tree] ^ known ^ bits) < 5
        missing = client._leaves[tree, (number >> 4 * tree) % 16][None]
        pad = np.unpackbits(engine.expand(missing, nonces[:1], 0, COUNT // 128)[0], bitorder="little")
        assert np.array_equal(rows[tree] ^ known ^ pad, bits)


def test_the_clients_view_is_the_same_for_any_offset(set_up: Callable[..., Any]) -> None:
    """The client receives one message, of points; its labels do not depend on delta at all."""
    low, high = (set_up(b"d", delta=np.array([1, *[fill] * 15], np.uint8)) for fill in (0, 255))
    bits = np.random.default_rng(2).integers(0, 2, 1000, dtype=np.uint8)
    assert low.wire[0] == high.wire[0]
    points = [np.frombuffer(pair.wire[1][40:], np.uint8).reshape(128, 32)[:, 1:31] for pair in (low, high)]
    for part in points:
        assert deviation(np.unpackbits(part)) < 5
    # Points differ exactly where the path bit differs: elsewhere the same scalars give the same points.
    same = (points[0] == points[1]).all(axis=1)
    assert same.sum() == 1 + 7  # the bits of the first byte, which is 1 in both offsets
    for pair in (low, high):
        labels, _, _ = pair.batch(bits)
        assert max(deviation(row) for row in np.unpackbits(labels, axis=1).T) < 5
        assert deviation((labels[:, 0] & 1) ^ bits) < 5


def test_reuse_would_leak_and_is_refused(set_up: Callable[..., Any]) -> None:
    pair, twin = set_up(), set_up()
    first, second = np.zeros(128, np.uint8), np.random.default_rng(3).integers(0, 2, 128, dtype=np.uint8)
    # Two set-ups with the same seeds show what a second use would do: the messages' difference is the choices'.
    _, one, _ = extend_receiver(pair.client, first)
    _, two, _ = extend_receiver(twin.client, second)
    assert np.array_equal(rows_of(one)[0] ^ rows_of(two)[0], second)
    for bits in (first, second):
        with pytest.raises(TransferError, match="one step only"):
            extend_receiver(pair.client, bits)
    extend_sender(pair.server, one, 128)
    with pytest.raises(TransferError, match="one step only"):
        extend_sender(pair.server, two, 128)


def test_set_up_states_serve_once() -> None:
    session, delta = new_session(), new_delta()
    at_client, offer = offer_setup(session)
    at_server, chosen = choose_setup(session, delta, offer)
    _, sums = plant_setup(at_client, chosen)
    finish_setup(at_server, sums)
    with pytest.raises(TransferError, match="one step only"):
        plant_setup(at_client, chosen)
    with pytest.raises(TransferError, match="one step only"):
        finish_setup(at_server, sums)


def test_many_threads_spend_a_state_once(set_up: Callable[..., Any]) -> None:
    client = set_up().client

    def attempt(seed: int) -> bool:
        bits = np.random.default_rng(seed).integers(0, 2, 4096, dtype=np.uint8)
        try:
            extend_receiver(client, bits)
        except TransferError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(32))) == 1


def test_spending_is_atomic() -> None:
    """The check and the mark are one step, however long a thread sleeps in between."""

    class Slow(SingleUse):
        def check_unspent(self) -> None:
            super().check_unspent()
            time.sleep(0.005)

    state = Slow()

    def attempt(_: int) -> bool:
        try:
            state.spend()
        except TransferError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_states_cannot_be_copied_stored_forked_or_read(
    set_up: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = set_up()
    session = new_session()
    at_client, offer = offer_setup(session)
    at_server, _ = choose_setup(session, pair.delta, offer)
    states: list[Any] = [pair.client, pair.server, at_client, at_server, at_client._base, at_server._base]
    for state in states:
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TransferError, match="copied or stored"):
                attempt(state)
        with pytest.raises(TypeError):
            replace(state)
        assert repr(state) == f"<{type(state).__name__}>"
        with pytest.raises(AttributeError):
            state.position = 0
    monkeypatch.setattr(os, "getpid", lambda: -1)
    for step in (
        lambda: extend_receiver(pair.client, np.zeros(1, np.uint8)),
        lambda: plant_setup(at_client, BaseChoices(session, np.zeros((128, 32), np.uint8))),
        lambda: finish_setup(at_server, TreeSums(session, 4, np.zeros((32, 3, 2, 16), np.uint8))),
    ):
        with pytest.raises(TransferError, match="another process"):
            step()


def test_replayed_reordered_and_foreign_batches_are_refused(set_up: Callable[..., Any]) -> None:
    pair, other = set_up(), set_up(b"other")
    bits = np.ones(130, np.uint8)
    client, first, labels = extend_receiver(pair.client, bits)
    client, second, _ = extend_receiver(client, bits)
    _, foreign, _ = extend_receiver(other.client, bits)
    server = pair.server
    with pytest.raises(TransferError, match="next batch"):
        extend_sender(server, second, 130)
    with pytest.raises(TransferError, match="this session"):
        extend_sender(server, foreign, 130)
    with pytest.raises(TransferError, match="next batch"):
        extend_sender(server, first, 131)
    with pytest.raises(TransferError, match="Corrections"):
        extend_sender(server, first.encode(), 130)  # type: ignore[arg-type]
    server, zeros = extend_sender(server, first, 130)
    assert np.array_equal(zeros ^ pair.delta, labels)
    with pytest.raises(TransferError, match="next batch"):
        extend_sender(server, first, 130)
    extend_sender(server, second, 130)


def test_set_up_messages_of_another_session_or_field_are_refused() -> None:
    session = new_session()
    at_client, offer = offer_setup(session, 4)
    at_server, chosen = choose_setup(session, new_delta(), offer, 4)
    with pytest.raises(TransferError, match="Step 3"):
        plant_setup(at_client, offer)  # type: ignore[arg-type]
    _, sums = plant_setup(at_client, chosen)
    for wrong in (
        TreeSums(new_session(), 4, sums.sums),
        TreeSums(session, 2, np.zeros((64, 1, 2, 16), np.uint8)),
    ):
        with pytest.raises(TransferError, match="this session"):
            finish_setup(at_server, wrong)
    with pytest.raises(TransferError, match="TreeSums"):
        finish_setup(at_server, sums.encode())  # type: ignore[arg-type]
    finish_setup(at_server, sums)


def test_a_tampered_body_changes_labels_and_nothing_else(set_up: Callable[..., Any]) -> None:
    """Integrity is TLS's task; a flipped bit of tree i shifts q by Delta_i there, without a crash."""
    pair = set_up()
    bits = np.zeros(256, np.uint8)
    _, message, labels = extend_receiver(pair.client, bits)
    data = bytearray(message.encode())
    tree, transfer = 3, 128 + 9
    data[40 + (1 * 32 + tree) * 16 + 9 // 8] ^= 1 << (9 % 8)
    _, zeros = extend_sender(pair.server, Corrections.decode(data), 256)
    wrong = np.zeros(16, np.uint8)
    wrong[tree // 2] = pair.delta[tree // 2] & (0xF0 if tree % 2 else 0x0F)
    assert np.array_equal(zeros[transfer], labels[transfer] ^ wrong)
    zeros[transfer] = labels[transfer]
    assert np.array_equal(zeros, labels)


def test_errors_never_show_secrets(set_up: Callable[..., Any]) -> None:
    pair = set_up()
    bits = np.full(50, 2, np.uint8)
    with pytest.raises(TransferError) as caught:
        extend_receiver(pair.client, bits)
    assert "[" not in str(caught.value)
    assert pair.delta.tobytes().hex() not in repr(pair.server)


def test_the_default_source_is_the_operating_system() -> None:
    for function in (offer_setup, choose_setup, new_delta, new_session):
        assert function.__kwdefaults__["_random"] is os.urandom
