"""Correlated transfers: t = q xor b delta, whatever the size, the choices, the field, and the backend."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.private.transfer import (
    MAX_POSITION,
    Corrections,
    ReceiverState,
    SenderState,
    TransferError,
    choose_setup,
    extend_receiver,
    extend_sender,
    new_delta,
    new_session,
    offer_setup,
)

from .seeded import Seeded

SIZES = [0, 1, 7, 127, 128, 129, 1024, 100_000]


def test_example(set_up: Callable[..., Any]) -> None:
    pair = set_up()
    bits = np.array([0, 1, 1, 0], dtype=np.uint8)
    labels, zeros, _ = pair.batch(bits)
    assert np.array_equal(labels, zeros ^ bits[:, None] * pair.delta)
    assert np.array_equal(labels[1], zeros[1] ^ pair.delta)
    assert np.array_equal(pair.server.delta, pair.delta)
    # The colours (lowest bits) of a wire's two labels differ.
    assert pair.delta[0] & 1 == 1


@pytest.mark.parametrize("field_bits", [1, 2, 4, 8])
def test_every_size_and_pattern(
    field_bits: int, backend: str, set_up: Callable[..., Any], rng: np.random.Generator
) -> None:
    pair = set_up(field_bits=field_bits, backend=backend)
    for count in SIZES:
        patterns = [
            np.zeros(count, np.uint8),
            np.ones(count, np.uint8),
            (np.arange(count) % 2).astype(bool),
            rng.integers(0, 2, count, dtype=np.uint8),
        ]
        for bits in patterns if count < 100_000 else patterns[3:]:
            labels, zeros, message = pair.batch(bits, backend)
            assert labels.shape == zeros.shape == (count, 16)
            assert labels.dtype == zeros.dtype == np.uint8
            assert np.array_equal(labels, zeros ^ bits[:, None] * pair.delta)
            assert len(message) == 40 + 16 * (128 // field_bits) * -(-count // 128)


_SHARED: dict[int, Any] = {}


@settings(max_examples=60, deadline=None)
@given(bits=st.lists(st.booleans(), max_size=400), field_bits=st.sampled_from([1, 2, 4, 8]))
def test_any_choices(bits: list[bool], field_bits: int, set_up: Callable[..., Any]) -> None:
    pair = _SHARED.setdefault(field_bits, set_up(field_bits=field_bits))
    choices = np.array(bits, dtype=np.uint8)
    labels, zeros, _ = pair.batch(choices)
    assert np.array_equal(labels, zeros ^ choices[:, None] * pair.delta)


@pytest.mark.parametrize("delta", [b"\x01" + bytes(15), b"\xff" * 16, b"\x01" + bytes(14) + b"\x80"])
def test_extreme_offsets(delta: bytes, set_up: Callable[..., Any], backend: str) -> None:
    pair = set_up(delta=np.frombuffer(delta, dtype=np.uint8), backend=backend)
    bits = (np.arange(300) % 3 == 0).astype(np.uint8)
    labels, zeros, _ = pair.batch(bits, backend)
    assert np.array_equal(labels, zeros ^ bits[:, None] * np.frombuffer(delta, dtype=np.uint8))


@pytest.mark.parametrize("field_bits", [1, 2, 4, 8])
def test_backends_can_be_mixed(field_bits: int, set_up: Callable[..., Any], rng: np.random.Generator) -> None:
    """The twin at one party, the default at the other, and the same bytes as with one backend for both."""
    bits = rng.integers(0, 2, 1000, dtype=np.uint8)
    mixed, plain = set_up(field_bits=field_bits), set_up(field_bits=field_bits, backend="numpy")
    assert mixed.wire == plain.wire
    _, message, labels = extend_receiver(mixed.client, bits, backend="numpy")
    _, zeros = extend_sender(mixed.server, message, 1000)
    again = plain.batch(bits)
    assert np.array_equal(labels, again[0])
    assert np.array_equal(zeros, again[1])
    assert bytes(message.encode()) == again[2]


@pytest.mark.parametrize("threads", [2, 3, 64])
def test_threads_change_nothing(threads: int, set_up: Callable[..., Any], rng: np.random.Generator) -> None:
    bits = rng.integers(0, 2, 5000, dtype=np.uint8)
    one, many = set_up(), set_up()
    labels, zeros, message = one.batch(bits)
    _, shared, same_labels = extend_receiver(many.client, bits, threads=threads)
    _, same_zeros = extend_sender(many.server, shared, 5000, threads=threads)
    assert bytes(shared.encode()) == message
    assert np.array_equal(labels, same_labels)
    assert np.array_equal(zeros, same_zeros)


def test_batches_never_repeat_a_label(set_up: Callable[..., Any], backend: str) -> None:
    pair = set_up(backend=backend)
    seen: set[bytes] = set()
    total = 0
    for count in (1, 200, 128, 3000, 0, 1, 1):
        position = pair.client.position
        bits = np.zeros(count, dtype=np.uint8)
        labels, zeros, _ = pair.batch(bits, backend)
        assert np.array_equal(labels, zeros)
        seen |= {label.tobytes() for label in labels}
        total += count
        assert pair.client.position == pair.server.position == position + -(-count // 128)
    assert len(seen) == total
    # Nor is it the other label of an earlier one.
    assert not seen & {(np.frombuffer(label, np.uint8) ^ pair.delta).tobytes() for label in seen}


def test_set_ups_are_unrelated(set_up: Callable[..., Any]) -> None:
    bits = np.zeros(500, dtype=np.uint8)
    first, second = (set_up(seed).batch(bits)[0] for seed in (b"one", b"two"))
    assert not {row.tobytes() for row in first} & {row.tobytes() for row in second}


def test_golden_bytes(set_up: Callable[..., Any]) -> None:
    """The wire of version 1, with fixed seeds. A change here is a new version of the protocol."""
    digests = {}
    for field_bits in (1, 4):
        pair = set_up(b"golden", field_bits)
        messages = [*pair.wire, pair.batch((np.arange(130) % 2).astype(np.uint8))[2]]
        digests[field_bits] = [hashlib.sha256(message).hexdigest()[:16] for message in messages]
        assert [len(message) for message in messages] == [72, 4136, 40 if field_bits == 1 else 3112, len(messages[3])]
        assert messages[3][:40] == b"OTC1" + bytes([field_bits, 0, 0, 0]) + bytes(8) + b"\x82" + bytes(7) + (
            Seeded(b"sessiongolden")(16)
        )
    assert digests == GOLDEN


GOLDEN = {
    1: ["bf3dd28721a8d703", "1a2ba9138335946c", "5c5f209351f11290", "11a94ad01fc6fdd4"],
    4: ["bf3dd28721a8d703", "8a3988c1234c91b6", "6cd8d8d6ba631129", "9f848262d2247318"],
}


def test_new_delta_sets_the_lowest_bit() -> None:
    deltas = [new_delta() for _ in range(64)]
    assert all(delta[0] & 1 for delta in deltas)
    assert len({delta.tobytes() for delta in deltas}) == 64
    bits = np.unpackbits(np.stack(deltas), bitorder="little").reshape(64, 128)
    assert (bits[:, 1:].any(axis=0) & ~bits[:, 1:].all(axis=0)).all()


def test_delta_is_copied(set_up: Callable[..., Any]) -> None:
    delta = new_delta()
    kept = delta.copy()
    pair = set_up(delta=delta)
    delta[:] = 0
    pair.server.delta[:] = 0
    assert np.array_equal(pair.server.delta, kept)


@pytest.mark.parametrize(
    "delta",
    [np.zeros(16, np.uint8), np.full(16, 254, np.uint8), np.ones(15, np.uint8), np.ones(16), b"\x01" * 16, None],
)
def test_wrong_offsets_are_refused(delta: object) -> None:
    session = new_session()
    _, offer = offer_setup(session)
    with pytest.raises(TransferError, match="delta"):
        choose_setup(session, delta, offer)  # type: ignore[arg-type]


@pytest.mark.parametrize("field_bits", [0, 3, 5, 16, -1, 4.0, True, None])
def test_wrong_fields_are_refused(field_bits: object) -> None:
    with pytest.raises(TransferError, match="1, 2, 4, or 8 bits"):
        offer_setup(new_session(), field_bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, -1, 1025, 1.5])
def test_wrong_thread_counts_are_refused(threads: Any, set_up: Callable[..., Any]) -> None:
    with pytest.raises(TransferError, match="threads"):
        extend_receiver(set_up().client, np.zeros(1, np.uint8), threads=threads)


@pytest.mark.parametrize("bits", [[0, 1], np.array([2], np.uint8), np.zeros((2, 2), np.uint8), np.zeros(3), None])
def test_wrong_choices_are_refused_and_cost_nothing(bits: Any, set_up: Callable[..., Any]) -> None:
    pair = set_up()
    with pytest.raises(TransferError, match="Choice bits"):
        extend_receiver(pair.client, bits)
    labels, zeros, _ = pair.batch(np.zeros(1, np.uint8))
    assert np.array_equal(labels, zeros)


def test_a_set_up_ends(set_up: Callable[..., Any]) -> None:
    """At 2^30 blocks there is no further batch; the last block before is still correct."""
    pair = set_up()
    client, server = pair.client, pair.server
    shared = (client.session, 4)
    near = MAX_POSITION - 1
    client = ReceiverState(*shared, client._leaves, client._nonces, near)
    server = SenderState(*shared, server._leaves, server._nonces, near, pair.delta)
    with pytest.raises(TransferError, match="new set-up"):
        extend_receiver(client, np.zeros(129, np.uint8))
    bits = np.ones(128, np.uint8)
    client, message, labels = extend_receiver(client, bits)
    server, zeros = extend_sender(server, Corrections.decode(message.encode()), 128)
    assert np.array_equal(labels, zeros ^ pair.delta)
    assert client.position == server.position == MAX_POSITION
    with pytest.raises(TransferError, match="new set-up"):
        extend_receiver(client, bits)
