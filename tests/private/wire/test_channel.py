"""Frames between two channels: what was sent arrives, what was not agreed does not, and everything is counted."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.errors import UsageError
from deepreduce.private.wire import Channel, Kind, PeerError, PeerGone, PeerTimeout, Traffic, WireError
from deepreduce.private.wire.channel import _records

Pair = tuple[Channel, Channel]


def test_example(pair: Pair) -> None:
    client, server = pair
    image = np.arange(12, dtype=np.uint32).reshape(3, 4)
    client.send(Kind.INPUT, b"id:1", image)
    assert server.receive(Kind.INPUT, 52) == b"id:1" + image.tobytes()
    server.send(Kind.RESULT, b"\x07")
    assert client.receive_any({Kind.RESULT: 100, Kind.BYE: 0}) == (Kind.RESULT, b"\x07")
    assert client.snapshot() == Traffic(sent_bytes=68, received_bytes=17, turns=1)


def test_golden_frames() -> None:
    left, right = socket.socketpair()
    with Channel(left) as channel, right:
        channel.send(Kind.HELLO, b"abc", np.array([1], "<u2"))
        channel.send(Kind.BYE)
        channel.fail("limit", "no")
        golden = "44520101 00000000 0500000000000000 616263 0100 44520113 01000000 0000000000000000"
        golden += "445201ff 02000000 2200000000000000"
        assert right.recv(1000) == bytes.fromhex(golden) + b'{"code": "limit", "message": "no"}'


def pairs(pair: Pair, tls_pair: Callable[[], Pair]) -> list[Pair]:
    return [pair, tls_pair()]


def test_a_peer_that_is_there_can_be_asked_for_without_a_frame(pair: Pair, tls_pair: Callable[[], Pair]) -> None:
    for client, server in pairs(pair, tls_pair):
        before = client.snapshot()
        client.check()
        assert client.snapshot() == before
        client.send(Kind.HELLO, b"abc")
        assert server.receive(Kind.HELLO, 3) == b"abc"
        server.send(Kind.GO)
        client.receive(Kind.GO, 0)
        client.check()
        server.check()


def test_a_peer_that_left_meanwhile_is_found_out(pair: Pair, tls_pair: Callable[[], Pair]) -> None:
    for client, server in pairs(pair, tls_pair):
        server.close()
        with pytest.raises(PeerGone, match="the connection ended"):
            client.check()
        with pytest.raises(WireError, match="alive"):
            client.check()


def test_a_peer_that_gave_up_meanwhile_says_why(tls_pair: Callable[[], Pair], pool: ThreadPoolExecutor) -> None:
    client, server = tls_pair()
    telling = pool.submit(server.fail, "deadline", "too slow")
    time.sleep(0.1)
    with pytest.raises(PeerError, match="too slow") as told:
        client.check()
    telling.result(60)
    assert (told.value.code, told.value.peer) == ("deadline", client.name)


def test_a_forked_child_cannot_talk(tls_pair: Callable[[], Pair]) -> None:
    """Two processes with the same TLS state would encrypt different bytes under the same nonce."""
    client, server = tls_pair()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        said = []
        for talk in (lambda: client.send(Kind.BYE), lambda: client.receive(Kind.BYE, 0), client.check):
            try:
                talk()
            except WireError as error:
                said.append(str(error))
        client.fail("internal", "not told")
        os.write(write, "\n".join(said).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    lines = os.read(read, 10_000).decode().splitlines()
    os.close(read)
    assert len(lines) == 3 and all("forked from it. Do: connect in the process that talks" in line for line in lines)
    client.send(Kind.BYE)
    server.receive(Kind.BYE, 0)  # the parent's connection is as it was


def test_a_frame_that_is_not_due_ends_the_channel(pair: Pair) -> None:
    pair[1].send(Kind.GO)
    with pytest.raises(WireError, match="must be none"):
        pair[0].check()


def test_into_an_array_without_a_copy(pair: Pair, pool: ThreadPoolExecutor) -> None:
    sent = np.arange(2**20, dtype=np.int64).reshape(1024, 1024)
    got = np.zeros_like(sent)
    sending = pool.submit(pair[0].send, Kind.TABLES, sent[:5], sent[5:])
    pair[1].receive_into(Kind.TABLES, got)
    sending.result(60)
    assert np.array_equal(got, sent)
    assert pair[1].received_bytes == 16 + sent.nbytes == pair[0].sent_bytes


def test_megabytes_through_tls(tls_pair: Callable[[], Pair], pool: ThreadPoolExecutor) -> None:
    client, server = tls_pair()
    sent = np.random.default_rng(0).integers(0, 256, 5_000_003, dtype=np.uint8)
    sending = pool.submit(client.send, Kind.REQUEST, b"head", sent[:100_000], sent[100_000:], b"tail")
    got = server.receive(Kind.REQUEST, 8 + sent.size)
    sending.result(60)
    assert bytes(got) == b"head" + sent.tobytes() + b"tail"
    back = np.empty_like(sent)
    sending = pool.submit(server.send, Kind.ANSWER, sent)
    client.receive_into(Kind.ANSWER, back)
    sending.result(60)
    assert np.array_equal(back, sent)
    assert server.snapshot() == Traffic(16 + sent.size, 24 + sent.size, 0)
    assert client.turns == 1


def test_tcp_sends_at_once(tls_pair: Callable[[], Pair]) -> None:
    for channel in tls_pair():
        assert channel._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


parts = st.lists(
    st.one_of(
        st.binary(max_size=50),
        st.integers(0, 40_000).map(lambda size: np.arange(size, dtype=np.uint16)),
        st.sampled_from([16368, 16367, 16384, 32768, 0]).map(bytearray),
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=50)
@given(st.lists(parts, min_size=1, max_size=4), st.sampled_from(["receive", "receive_into", "receive_any"]))
def test_what_is_sent_arrives(frames: list[list[Any]], how: str) -> None:
    left, right = socket.socketpair()
    with (
        Channel(left, deadline_seconds=60) as one,
        Channel(right, deadline_seconds=60) as two,
        ThreadPoolExecutor(1) as pool,
    ):
        sending = pool.submit(lambda: [one.send(Kind.WORDS, *frame) for frame in frames])
        for frame in frames:
            body = b"".join(part.tobytes() if isinstance(part, np.ndarray) else bytes(part) for part in frame)
            if how == "receive":
                got = two.receive(Kind.WORDS, len(body))
            elif how == "receive_any":
                kind, got = two.receive_any({Kind.BYE: 0, Kind.WORDS: 2**20})
                assert kind is Kind.WORDS
            else:
                got = bytearray(len(body))
                two.receive_into(Kind.WORDS, got)
            assert got == body
        sending.result(60)
        assert one.snapshot().sent_bytes == two.snapshot().received_bytes


@given(st.lists(st.integers(0, 60_000), max_size=8))
def test_records_are_full_but_for_the_last(sizes: list[int]) -> None:
    parts = [memoryview(bytes([number]) * size) for number, size in enumerate(sizes)]
    pieces = list(_records(b"h" * 16, parts))
    assert b"".join(pieces) == b"h" * 16 + b"".join(parts)
    assert all(len(piece) % 16384 == 0 for piece in pieces[:-1])
    assert all(pieces)


def test_large_parts_are_not_copied() -> None:
    part = np.zeros(2**20, np.uint8)
    pieces = list(_records(b"h" * 16, [part.data]))
    assert [len(piece) for piece in pieces] == [16384, 63 * 16384, 16]
    assert np.shares_memory(np.frombuffer(pieces[1], np.uint8), part)


def test_turns_are_round_trips(pair: Pair) -> None:
    client, server = pair
    for _ in range(3):
        client.send(Kind.WORDS)
        client.send(Kind.WORDS)
        for _ in range(2):
            server.receive(Kind.WORDS, 0)
        for _ in range(2):
            server.send(Kind.LABELS, b"x")
        for _ in range(2):
            client.receive(Kind.LABELS, 1)
    before = client.snapshot()
    client.send(Kind.BYE)
    assert (client.turns, server.turns) == (3, 2)
    assert before == Traffic(96, 102, 3)
    assert client.snapshot() - before == Traffic(16, 0, 0)


@pytest.mark.parametrize("size", [3, 5])
def test_another_size_than_agreed(pair: Pair, size: int) -> None:
    pair[0].send(Kind.RESULT, b"four")
    with pytest.raises(WireError, match=f"exactly {size} bytes. Got: 4"):
        pair[1].receive(Kind.RESULT, size)
    with pytest.raises(WireError, match="must be alive"):
        pair[1].receive(Kind.RESULT, 4)
    with pytest.raises(WireError, match="must be alive"):
        pair[1].send(Kind.BYE)


def test_the_largest_size(pair: Pair) -> None:
    pair[0].send(Kind.HELLO, b"four")
    pair[0].send(Kind.HELLO, b"five!")
    assert pair[1].receive_any({Kind.HELLO: 4}) == (Kind.HELLO, b"four")
    with pytest.raises(WireError, match="at most 4 bytes. Got: 5"):
        pair[1].receive_any({Kind.HELLO: 4})


def test_another_kind_than_agreed(pair: Pair) -> None:
    pair[0].send(Kind.RESULT)
    with pytest.raises(WireError, match="must be START or BYE. Got: RESULT"):
        pair[1].receive_any({Kind.START: 10, Kind.BYE: 0})


def test_a_peer_that_gives_up(pair: Pair, pool: ThreadPoolExecutor) -> None:
    client, server = pair
    failing = pool.submit(server.fail, "busy", "8 clients are served; try again in a minute")
    with pytest.raises(PeerError, match="Got: busy: 8 clients") as caught:
        client.receive(Kind.WELCOME, 100)
    client.close()
    failing.result(60)
    assert (caught.value.code, caught.value.message) == ("busy", "8 clients are served; try again in a minute")


def test_giving_up_after_a_violation(pair: Pair, pool: ThreadPoolExecutor) -> None:
    client, server = pair
    client.send(Kind.BYE)
    with pytest.raises(WireError, match="must be HELLO") as caught:
        server.receive(Kind.HELLO, 10)
    failing = pool.submit(server.fail, "protocol", str(caught.value))
    with pytest.raises(PeerError, match="protocol.*must be HELLO"):
        client.receive(Kind.WELCOME, 10)
    client.close()
    failing.result(60)


@pytest.mark.parametrize("through_tls", [False, True])
@pytest.mark.parametrize("lingers", [False, True])
def test_giving_up_reaches_a_peer_that_sends(
    pair: Pair,
    tls_pair: Callable[[], Pair],
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    lingers: bool,
    through_tls: bool,
) -> None:
    client, server = tls_pair() if through_tls else pair
    if not lingers:  # the connection is then reset while the client sends
        monkeypatch.setattr(server, "_linger", lambda: None)

    def send_and_listen() -> None:
        client.send(Kind.REQUEST, np.zeros(2**25, np.uint8))
        client.receive(Kind.ANSWER, 1)

    sending = pool.submit(send_and_listen)
    with pytest.raises(WireError, match="at most 1,000 bytes"):
        server.receive_any({Kind.REQUEST: 1000})
    server.fail("limit", "too large")
    with pytest.raises(PeerError, match="too large"):
        sending.result(60)
    assert (client.sent_bytes < 2**25) or lingers


@pytest.mark.parametrize("through_tls", [False, True])
def test_giving_up_reaches_a_peer_that_sends_and_has_not_listened(
    pair: Pair,
    tls_pair: Callable[[], Pair],
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    through_tls: bool,
) -> None:
    """What a server says of finished bundles lies before its last words."""
    client, server = tls_pair() if through_tls else pair
    monkeypatch.setattr(server, "_linger", lambda: None)
    sending = pool.submit(client.send, Kind.REQUEST, np.zeros(2**25, np.uint8))
    with pytest.raises(WireError, match="at most 1,000 bytes"):
        server.receive_any({Kind.REQUEST: 1000})
    for number in range(3):
        server._dead = None  # it has just refused the request
        server.send(Kind.READY, b'{"number":%d}' % number)
    server.fail("limit", "no room")
    with pytest.raises(PeerError, match="no room"):
        sending.result(60)


def test_failing_never_raises(pair: Pair) -> None:
    client, server = pair
    client.close()
    server.fail("internal", "x" * 10_000)
    server.fail("internal", "again")
    client.fail("internal", "closed already")


def test_no_error_frame_follows_half_a_frame() -> None:
    left, right = socket.socketpair()
    with Channel(left, deadline_seconds=0.2) as channel, right:
        with pytest.raises(PeerTimeout, match="must take the TABLES frame"):
            channel.send(Kind.TABLES, np.zeros(2**23, np.uint8))
        channel.fail("deadline", "too slow")
        right.settimeout(60)
        rest = bytearray()
        while chunk := right.recv(2**20):
            rest += chunk
        assert len(rest) == channel.sent_bytes < 2**23
        assert b"too slow" not in rest


def test_a_closed_channel(pair: Pair) -> None:
    pair[0].close()
    pair[0].close()
    for call in (lambda: pair[0].send(Kind.BYE), lambda: pair[0].receive(Kind.BYE, 0)):
        with pytest.raises(WireError, match="it was closed"):
            call()
    with pytest.raises(PeerGone, match="ended after 0 of 16 header bytes"):
        pair[1].receive(Kind.BYE, 0)


def test_sending_to_a_peer_that_has_gone(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(PeerGone, match="must take the BYE frame"):
        pair[1].send(Kind.BYE)


def test_a_deadline_of_its_own_for_one_call(pair: Pair) -> None:
    before = time.monotonic()
    with pytest.raises(PeerTimeout, match="0 of 16 header bytes when it passed"):
        pair[0].receive(Kind.BYE, 0, deadline_seconds=0.1)
    assert time.monotonic() - before < 30
    with pytest.raises(WireError, match="must be alive. Got: an earlier call ended with PeerTimeout"):
        pair[0].receive(Kind.BYE, 0)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_what_is_no_deadline(pair: Pair, seconds: float) -> None:
    with pytest.raises(UsageError, match="positive number of seconds"):
        pair[0].send(Kind.BYE, deadline_seconds=seconds)
    with pytest.raises(UsageError, match="positive number of seconds"):
        Channel(pair[0]._sock, deadline_seconds=seconds)
    pair[0].send(Kind.BYE)


def test_a_wrong_call_leaves_the_channel_alive(pair: Pair) -> None:
    with pytest.raises(WireError, match="C order"):
        pair[0].send(Kind.INPUT, np.arange(6)[::2])
    with pytest.raises(WireError, match="call fail"):
        pair[0].send(Kind.ERROR)
    with pytest.raises(WireError, match="writable"):
        pair[1].receive_into(Kind.INPUT, b"abc")
    pair[0].send(Kind.INPUT, b"abc")
    assert pair[1].receive(Kind.INPUT, 3) == b"abc"


def test_an_interrupt_within_a_frame_leaves_the_channel_dead(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(limits: object, clock: object, exactly: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pair[0], "_read_header", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pair[0].receive(Kind.BYE, 0)
    with pytest.raises(WireError, match="was interrupted"):
        pair[0].receive(Kind.BYE, 0)


def test_another_thread_can_cut_the_connection(pair: Pair) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pair[0].receive, Kind.BYE, 0, deadline_seconds=300)
        time.sleep(0.1)
        begin = time.monotonic()
        pair[0].abort()
        with pytest.raises(PeerGone):
            waiting.result(timeout=60)
    assert time.monotonic() - begin < 60
    pair[0].close()
    pair[0].abort()  # after the end it does nothing


def test_patience_bounds_all_frames_together(pair: Pair) -> None:
    """A peer that is just in time for every frame takes no longer for it, however many frames there are."""
    one, other = pair
    with pytest.raises(PeerTimeout, match="within the deadline"), one.patience(0.5):
        for _ in range(1000):
            other.send(Kind.GO)
            time.sleep(0.01)  # what this side computes does not count
            one.receive(Kind.GO, 0)
            thread = threading.Timer(0.1, other.send, (Kind.GO,))
            thread.start()
            one.receive(Kind.GO, 0, deadline_seconds=60.0)
            thread.join()
    thread.join()


def test_patience_ends_with_its_block(pair: Pair) -> None:
    one, other = pair
    with one.patience(5):
        other.send(Kind.GO)
        one.receive(Kind.GO, 0)
        one._patience = 0.001
    thread = threading.Timer(0.2, other.send, (Kind.GO,))
    thread.start()
    one.receive(Kind.GO, 0)
    thread.join()
