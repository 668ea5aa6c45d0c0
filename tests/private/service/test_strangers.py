"""Who opens connections and stays silent loses its own; who greets at once comes through."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deepreduce.private.service import ServerLimits
from deepreduce.private.service.strangers import Strangers
from deepreduce.private.wire import Kind

from .parties import serving, sure, tiny


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    made = [socket.socketpair() for _ in range(6)]
    yield made
    for pair in made:
        for end in pair:
            end.close()


def is_cut(peer: socket.socket) -> bool:
    peer.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        return peer.recv(1) == b""
    return False


def test_the_oldest_of_the_address_with_most_connections_goes(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    strangers = Strangers(4)
    numbers = [
        strangers.admit(ours, address) for (ours, _), address in zip(pairs, ["b", "a", "a", "a", "a", "c"], strict=True)
    ]
    assert [is_cut(peer) for _, peer in pairs] == [False, True, True, False, False, False]
    assert len(strangers) == 4
    for number in numbers:
        strangers.leave(number)
    assert len(strangers) == 0


def test_of_equals_the_oldest_goes_and_who_has_greeted_stays(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    strangers = Strangers(2)
    first = strangers.admit(pairs[0][0], "a")
    strangers.admit(pairs[1][0], "b")
    strangers.leave(first)
    strangers.leave(first)
    third = strangers.admit(pairs[2][0], "c")
    assert len(strangers) == 2 and not any(is_cut(peer) for _, peer in pairs)
    fourth = strangers.admit(pairs[3][0], "d")
    assert [is_cut(peer) for _, peer in pairs[:4]] == [False, True, False, False]
    for number in (third, fourth):
        strangers.leave(number)


def test_who_is_ending_counts_again(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    strangers = Strangers(2)
    numbers = [strangers.admit(ours, address) for (ours, _), address in zip(pairs[:2], "aa", strict=True)]
    for number in numbers:
        strangers.greeted(number)
        strangers.greeted(number)
    assert len(strangers) == 0
    third, fourth = (strangers.admit(ours, "b") for ours, _ in pairs[2:4])
    assert not any(is_cut(peer) for _, peer in pairs)
    strangers.ending(numbers[0])  # of the two addresses the other one has most
    assert [is_cut(peer) for _, peer in pairs[:4]] == [False, False, True, False]
    strangers.ending(numbers[1])
    assert [is_cut(peer) for _, peer in pairs[:4]] == [False, False, True, True] or is_cut(pairs[0][1])
    for number in (*numbers, third, fourth):
        strangers.leave(number)
        strangers.ending(number)
    assert len(strangers) == 0


def test_who_greets_and_breaks_the_protocol_keeps_nobody_waiting(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each the server waits until its last word is taken; together they would take all places that there are."""
    monkeypatch.setattr("deepreduce.private.wire.channel._LINGER_SECONDS", 60.0)
    images, labels = sure(tiny(), 1, seed=3)
    limits = ServerLimits(clients=2, deadline_seconds=120.0, handshake_seconds=120.0)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party, contextlib.ExitStack() as stack:
        with party.client("honest") as client:
            client.prepare(1)
        for _ in range(40):
            rude = party.client("rude")
            rude._channel.send(Kind.INPUT, b"not now")
            stack.callback(rude.close)
        begin = time.monotonic()
        with party.client("honest") as client:
            assert np.array_equal(client.infer(images).labels, labels)
        assert time.monotonic() - begin < 30.0


def test_silent_connections_keep_nobody_out(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than the server has room for, from the client's own address, and none of them ever says a word."""
    # On a busy machine those that were turned out need longer to end.
    monkeypatch.setattr("deepreduce.private.service.server._MAKE_ROOM_SECONDS", 60.0)
    images, labels = sure(tiny(), 1, seed=3)
    limits = ServerLimits(clients=2, deadline_seconds=120.0, handshake_seconds=120.0)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party, contextlib.ExitStack() as stack:
        host, port = party.address.rsplit(":", 1)
        silent = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(40)]
        with party.client("honest") as client:
            assert np.array_equal(client.infer(images).labels, labels)
        assert sum(is_cut(one) for one in silent) >= 40 - 10
