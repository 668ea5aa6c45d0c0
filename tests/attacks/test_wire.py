"""A stranger on the wire: whatever bytes come, however slowly, the answer is one clear refusal in bounded time and memory.

Every test here plays the attacker on a bare socket and lets a `Channel` meet it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.private.wire import (
    MAX_ERROR_BYTES,
    Channel,
    Kind,
    PeerError,
    PeerGone,
    PeerTimeout,
    TlsError,
    WireError,
    accept,
    client_context,
    connect,
    self_signed,
    server_context,
)

DEADLINE_SECONDS = 0.4  # where an attack lasts until it has passed
PATIENCE_SECONDS = 30.0  # where nothing waits for it but on a busy machine
SLACK_SECONDS = 15.0  # what a busy machine may add to a deadline; every attack here would last longer

Victim = tuple[Channel, socket.socket]


def frame(
    kind: int, body: bytes = b"", *, sequence: int = 0, length: int | None = None, start: bytes = b"DR\1"
) -> bytes:
    return start + struct.pack("<BIQ", kind, sequence, len(body) if length is None else length) + body


@pytest.fixture
def victim() -> Iterator[Victim]:
    """A channel, and the stranger's own socket."""
    left, right = socket.socketpair()
    with Channel(left, deadline_seconds=PATIENCE_SECONDS, name="stranger") as channel, right:
        yield channel, right


@pytest.fixture
def hasty(victim: Victim) -> Victim:
    """The same with a deadline that a test waits for."""
    victim[0]._deadline_seconds = DEADLINE_SECONDS
    return victim


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"), ["127.0.0.1"])


@contextlib.contextmanager
def tls_server(
    certificate: tuple[Path, Path], *, handshake_seconds: float = PATIENCE_SECONDS
) -> Iterator[tuple[int, Future[Channel]]]:
    """Accept one connection in a thread; give the port and the future of the channel."""
    with ThreadPoolExecutor(1) as pool, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_SECONDS)
        context = server_context(*certificate)
        accepted = pool.submit(
            lambda: accept(
                listener.accept()[0],
                context,
                handshake_seconds=handshake_seconds,
                deadline_seconds=PATIENCE_SECONDS,
            )
        )
        yield listener.getsockname()[1], accepted
        if accepted.exception(PATIENCE_SECONDS) is None:
            accepted.result().close()


@contextlib.contextmanager
def trickle(sock: socket.socket, data: bytes) -> Iterator[None]:
    """Send a byte every 0.3 seconds while the block runs."""
    stop = threading.Event()

    def run() -> None:
        with contextlib.suppress(OSError):
            for byte in data:
                if stop.wait(0.3):
                    return
                socket.socket.send(sock, bytes([byte]))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)


READERS: dict[str, Callable[[Channel], object]] = {
    "receive": lambda channel: channel.receive(Kind.TABLES, 100),
    "receive_into": lambda channel: channel.receive_into(Kind.TABLES, np.empty(25, np.uint32)),
    "receive_any": lambda channel: channel.receive_any({Kind.TABLES: 100, Kind.BYE: 0}),
}
every_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


@every_reader
def test_an_honest_frame_passes(victim: Victim, read: Callable[[Channel], object]) -> None:
    victim[1].sendall(frame(Kind.TABLES, bytes(100)))
    assert read(victim[0]) in (bytes(100), (Kind.TABLES, bytes(100)), None)  # one reads into an array
    assert victim[0].received_bytes == 116


@every_reader
@pytest.mark.parametrize("size", [1, 12, 15])
def test_truncated_header(victim: Victim, read: Callable[[Channel], object], size: int) -> None:
    victim[1].sendall(frame(Kind.TABLES, bytes(100))[:size])
    victim[1].shutdown(socket.SHUT_WR)
    with pytest.raises(PeerGone, match=f"ended after {size} of 16 header bytes"):
        read(victim[0])


@every_reader
@pytest.mark.parametrize("size", [0, 1, 99])
def test_truncated_body(victim: Victim, read: Callable[[Channel], object], size: int) -> None:
    victim[1].sendall(frame(Kind.TABLES, bytes(100))[: 16 + size])
    victim[1].shutdown(socket.SHUT_WR)
    with pytest.raises(PeerGone, match=f"ended after {size} of 100 bytes of the TABLES frame's body"):
        read(victim[0])


@every_reader
@pytest.mark.parametrize("length", [101, 2**31, 2**32 + 100, 2**63, 2**64 - 1])
def test_oversized_length_reserves_nothing(victim: Victim, read: Callable[[Channel], object], length: int) -> None:
    victim[1].sendall(frame(Kind.TABLES, length=length))
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=f"100 bytes. Got: {length:,}"):
            read(victim[0])
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_an_agreed_size_is_reserved_only_after_the_header(victim: Victim) -> None:
    victim[1].sendall(frame(Kind.BYE))
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="must be TABLES. Got: BYE"):
            victim[0].receive(Kind.TABLES, 2**30)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [MAX_ERROR_BYTES + 1, 2**63])
def test_oversized_error(victim: Victim, length: int) -> None:
    victim[1].sendall(frame(Kind.ERROR, length=length))
    with pytest.raises(WireError, match="ERROR frame must be at most 2,048 bytes") as caught:
        victim[0].receive(Kind.TABLES, 100)
    assert not isinstance(caught.value, PeerError)


@every_reader
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (frame(Kind.TABLES, bytes(100), start=b"XX\1"), "begin with"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "begin with"),
        (frame(Kind.TABLES, bytes(100), start=b"DR\0"), "version 0"),
        (frame(Kind.TABLES, bytes(100), start=b"DR\2"), "version 2"),
        (frame(0, bytes(100)), "kind 0"),
        (frame(200, bytes(100)), "kind 200"),
        (frame(Kind.KEY, bytes(100)), "Got: KEY"),
        (frame(Kind.TABLES, bytes(100), sequence=1), "number 1 in place of 0"),
        (frame(Kind.TABLES, bytes(100), sequence=2**32 - 1), "number 4294967295 in place of 0"),
    ],
)
def test_wrong_headers(victim: Victim, read: Callable[[Channel], object], data: bytes, said: str) -> None:
    victim[1].sendall(data)
    with pytest.raises(WireError, match=said):
        read(victim[0])
    with pytest.raises(WireError, match="must be alive"):
        read(victim[0])


FRAMES = [frame(Kind.WORDS, bytes([number]) * 8, sequence=number) for number in range(3)]


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ((0, 0), "number 0 in place of 1"),
        ((0, 1, 1), "number 1 in place of 2"),
        ((1, 0), "number 1 in place of 0"),
        ((0, 2), "number 2 in place of 1"),
    ],
    ids=["replayed", "replayed later", "reordered", "dropped"],
)
def test_wrong_order(victim: Victim, order: tuple[int, ...], said: str) -> None:
    victim[1].sendall(b"".join(FRAMES[number] for number in order))
    for number in order[:-1] if order[0] == 0 else []:
        assert victim[0].receive(Kind.WORDS, 8) == bytes([number]) * 8
    with pytest.raises(WireError, match=said):
        victim[0].receive(Kind.WORDS, 8)


@settings(deadline=None, max_examples=150)
@given(st.one_of(st.binary(max_size=200), st.builds(frame, st.integers(0, 255), st.binary(max_size=120))))
def test_any_bytes(data: bytes) -> None:
    for read in READERS.values():
        left, right = socket.socketpair()
        with Channel(left, deadline_seconds=PATIENCE_SECONDS) as channel, right:
            right.sendall(data)
            right.shutdown(socket.SHUT_WR)
            with contextlib.suppress(WireError):
                read(channel)
                assert data[:4] in (b"DR\1\x0a", b"DR\1\x13")
            assert channel.received_bytes <= len(data)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (rb'{"code": "busy", "message": "\u001b[2J\u001b]0;owned\u0007wait\nfor\u009b31m it\u202e"}', "wait for it"),
        ('{"code": "busy", "message": "\x7f\u009b2Jwait"}'.encode(), "wait"),
        (rb'{"code": "busy", "message": "\ud800\u0000"}', ""),
    ],
)
def test_an_error_cannot_write_to_our_terminal(victim: Victim, body: bytes, message: str) -> None:
    victim[1].sendall(frame(Kind.ERROR, body))
    with pytest.raises(PeerError) as caught:
        victim[0].receive(Kind.TABLES, 100)
    assert (caught.value.code, caught.value.message) == ("busy", message)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "body", [b"", b"[" * 2048, b"{" * 2048, b"\xff" * 2048, b'{"code": "\\u001b[2J", "message": ""}']
)
def test_an_error_that_is_none(victim: Victim, body: bytes) -> None:
    victim[1].sendall(frame(Kind.ERROR, body))
    with pytest.raises(WireError, match="why the peer gave up is not known"):
        victim[0].receive(Kind.TABLES, 100)


@every_reader
@pytest.mark.parametrize("whole", [0, 16, 50], ids=["header", "first body byte", "body"])
def test_slow_drip(hasty: Victim, read: Callable[[Channel], object], whole: int) -> None:
    data = frame(Kind.TABLES, bytes(100))
    hasty[1].sendall(data[:whole])
    before = time.monotonic()
    with trickle(hasty[1], data[whole:]), pytest.raises(PeerTimeout, match="when it passed"):
        read(hasty[0])
    assert time.monotonic() - before < DEADLINE_SECONDS + SLACK_SECONDS


def test_silence(hasty: Victim) -> None:
    before = time.monotonic()
    with pytest.raises(PeerTimeout, match="0 of 16 header bytes"):
        hasty[0].receive(Kind.TABLES, 100)
    assert time.monotonic() - before < DEADLINE_SECONDS + SLACK_SECONDS


def test_a_peer_that_never_reads(hasty: Victim) -> None:
    before = time.monotonic()
    with pytest.raises(PeerTimeout, match="must take the TABLES frame within the deadline"):
        hasty[0].send(Kind.TABLES, np.zeros(2**24, np.uint8))
    hasty[0].fail("deadline", "too slow")
    assert time.monotonic() - before < DEADLINE_SECONDS + SLACK_SECONDS


def test_a_peer_that_reads_drop_by_drop(hasty: Victim) -> None:
    stop = threading.Event()

    def sip() -> None:
        while not stop.wait(0.02) and hasty[1].recv(4096):
            pass

    thread = threading.Thread(target=sip)
    thread.start()
    before = time.monotonic()
    try:
        with pytest.raises(PeerTimeout):
            hasty[0].send(Kind.TABLES, np.zeros(2**24, np.uint8))
        assert time.monotonic() - before < DEADLINE_SECONDS + SLACK_SECONDS
    finally:
        stop.set()
        thread.join(5)


def test_giving_up_on_a_peer_that_neither_reads_nor_closes(victim: Victim) -> None:
    victim[1].setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            victim[1].send(bytes(65536))
    before = time.monotonic()
    victim[0].fail("protocol", "no")
    assert time.monotonic() - before < 0.25 + SLACK_SECONDS


def test_reused_after_a_timeout(victim: Victim) -> None:
    """A late frame must not be taken for the answer to the next question."""
    with pytest.raises(PeerTimeout):
        victim[0].receive(Kind.TABLES, 100, deadline_seconds=0.05)
    victim[1].sendall(frame(Kind.TABLES, bytes(100)))
    with pytest.raises(WireError, match="must be alive"):
        victim[0].receive(Kind.TABLES, 100)


@pytest.fixture
def tls_victim(certificate: tuple[Path, Path]) -> Iterator[tuple[Channel, ssl.SSLSocket]]:
    """A server's channel, and the client's own TLS socket."""
    with (
        tls_server(certificate) as (port, accepted),
        socket.create_connection(("127.0.0.1", port)) as plain,
        client_context(certificate[0]).wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        yield accepted.result(PATIENCE_SECONDS), secure


@pytest.fixture
def hasty_tls(tls_victim: Any) -> Any:
    """The same with a deadline that a test waits for."""
    tls_victim[0]._deadline_seconds = DEADLINE_SECONDS
    return tls_victim


@every_reader
def test_slow_drip_of_records(hasty_tls: Any, read: Callable[[Channel], object]) -> None:
    channel, stranger = hasty_tls
    stop = threading.Event()

    def run() -> None:
        with contextlib.suppress(OSError):
            for byte in frame(Kind.TABLES, bytes(100)):
                if stop.wait(0.3):
                    return
                stranger.send(bytes([byte]))

    thread = threading.Thread(target=run)
    thread.start()
    before = time.monotonic()
    try:
        with pytest.raises(PeerTimeout):
            read(channel)
        assert time.monotonic() - before < DEADLINE_SECONDS + SLACK_SECONDS
    finally:
        stop.set()
        thread.join(5)


def test_slow_drip_within_one_record(hasty_tls: Any) -> None:
    channel, stranger = hasty_tls
    before = time.monotonic()
    with trickle(stranger, b"\x17\x03\x03\x40\x00" + bytes(500)), pytest.raises(PeerTimeout):
        channel.receive(Kind.TABLES, 100)
    assert time.monotonic() - before < DEADLINE_SECONDS + SLACK_SECONDS


def test_never_reading_over_tls(hasty_tls: Any) -> None:
    before = time.monotonic()
    with pytest.raises(PeerTimeout):
        hasty_tls[0].send(Kind.TABLES, np.zeros(2**26, np.uint8))
    assert time.monotonic() - before < DEADLINE_SECONDS + SLACK_SECONDS


def test_a_forged_record(tls_victim: Any) -> None:
    channel, stranger = tls_victim
    socket.socket.sendall(stranger, b"\x17\x03\x03\x00\x40" + bytes(64))
    with pytest.raises(TlsError, match="every record must be authentic"):
        channel.receive(Kind.TABLES, 100)


def test_the_connection_cut_below_tls(tls_victim: Any) -> None:
    """Whoever sits between the parties can cut the connection, but not make half a conversation look whole."""
    channel, stranger = tls_victim
    stranger.sendall(frame(Kind.TABLES, bytes(100))[:50])
    socket.socket.shutdown(stranger, socket.SHUT_WR)
    with pytest.raises(PeerGone, match="34 of 100 bytes"):
        channel.receive(Kind.TABLES, 100)


def test_tls_1_2_client(certificate: tuple[Path, Path]) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_verify_locations(certificate[0])
    with (
        tls_server(certificate) as (port, accepted),
        socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as plain,
    ):
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            old.wrap_socket(plain, server_hostname="127.0.0.1")
        with pytest.raises(TlsError, match=r"TLS 1.3.* Got: UNSUPPORTED_PROTOCOL"):
            accepted.result(PATIENCE_SECONDS)


def test_tls_1_2_server(certificate: tuple[Path, Path]) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(*certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(PATIENCE_SECONDS)

        def serve() -> None:
            with listener.accept()[0] as plain, contextlib.suppress(OSError):
                old.wrap_socket(plain, server_side=True).close()

        serving = pool.submit(serve)
        with pytest.raises(TlsError, match="TLS 1.3"):
            connect(
                f"127.0.0.1:{listener.getsockname()[1]}",
                client_context(certificate[0]),
                deadline_seconds=PATIENCE_SECONDS,
            )
        serving.result(PATIENCE_SECONDS)


@pytest.mark.parametrize("says", [b"", b"\x16", frame(Kind.HELLO, b"hello"), b"GET / HTTP/1.1\r\n\r\n", bytes(100)])
def test_plain_client_of_a_tls_server(certificate: tuple[Path, Path], says: bytes) -> None:
    with (
        tls_server(certificate, handshake_seconds=DEADLINE_SECONDS) as (port, accepted),
        socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as plain,
    ):
        before = time.monotonic()
        plain.sendall(says)
        assert isinstance(accepted.exception(PATIENCE_SECONDS), TlsError | PeerTimeout)
        assert time.monotonic() - before < DEADLINE_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize("reset", [True, False])
def test_a_client_that_hangs_up_at_once(certificate: tuple[Path, Path], reset: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        plain = socket.create_connection(listener.getsockname(), PATIENCE_SECONDS)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
        plain.close()
        accepted, _ = listener.accept()
        with pytest.raises(PeerGone, match="must complete the TLS handshake"):
            accept(accepted, server_context(*certificate), handshake_seconds=PATIENCE_SECONDS)
        assert accepted.fileno() == -1


def test_handshake_drop_by_drop(certificate: tuple[Path, Path]) -> None:
    with (
        tls_server(certificate, handshake_seconds=DEADLINE_SECONDS) as (port, accepted),
        socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as plain,
    ):
        before = time.monotonic()
        with trickle(plain, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)):
            assert isinstance(accepted.exception(PATIENCE_SECONDS), PeerTimeout)
        assert time.monotonic() - before < DEADLINE_SECONDS + SLACK_SECONDS


def test_a_server_that_the_ca_did_not_sign(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    other, _ = self_signed(tmp_path, ["127.0.0.1"])
    with tls_server(certificate) as (port, accepted):
        with pytest.raises(TlsError, match="must be signed by the CA that this side was given.*self-signed"):
            connect(f"127.0.0.1:{port}", client_context(other), deadline_seconds=PATIENCE_SECONDS)
        assert isinstance(accepted.exception(PATIENCE_SECONDS), TlsError)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.2", "evil.example"])
def test_a_server_of_another_name(certificate: tuple[Path, Path], name: str) -> None:
    with tls_server(certificate) as (port, accepted):
        with pytest.raises(TlsError, match=f"must be for {name}. Got: .*mismatch"):
            connect(
                f"127.0.0.1:{port}", client_context(certificate[0]), deadline_seconds=PATIENCE_SECONDS, server_name=name
            )
        assert isinstance(accepted.exception(PATIENCE_SECONDS), TlsError)


def test_a_client_with_a_certificate_of_nobody(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    stranger = self_signed(tmp_path, ["client"])
    context = server_context(*certificate, client_ca=certificate[0])
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(PATIENCE_SECONDS)
        accepted = pool.submit(lambda: accept(listener.accept()[0], context, handshake_seconds=PATIENCE_SECONDS))
        trusting = client_context(certificate[0], *stranger)
        with connect(f"127.0.0.1:{listener.getsockname()[1]}", trusting, deadline_seconds=PATIENCE_SECONDS) as channel:
            with pytest.raises(TlsError, match="certificate of the client must be signed by the CA"):
                accepted.result(PATIENCE_SECONDS)
            with pytest.raises(TlsError, match="must trust this side's certificate. Got: it refused: .*UNKNOWN_CA"):
                channel.receive(Kind.WELCOME, 0)
