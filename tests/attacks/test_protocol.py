"""A hostile client: whatever it sends in place of any message, the server says what was wrong and serves the next one."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepreduce.private.service import Client, ServerLimits
from deepreduce.private.service.messages import Hello, Lost, Prepare, Start
from deepreduce.private.wire import (
    Channel,
    Kind,
    PeerError,
    WireError,
    client_context,
    connect,
)
from deepreduce.private.wire.frames import encode_header

from ..private.service.parties import Party, certificate_in, serving, sure, tiny, wait_for
from .tampering import ATTACKS, DEADLINE, SLACK, Attack, Tampering, ending

IMAGES, LABELS = sure(tiny(), 2)
HOLDS = (Kind.INPUT, Kind.WORDS, Kind.CORRECTIONS, Kind.SUMS, Kind.REQUEST, Kind.KEY)
"""Messages of numbers of which most are as good as any other: nonsense in them spoils the sender's own answer."""
NONSENSE = {"label", "DeepReduceError"}
"""What the client then gets: some class, or one that does not exist."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate_in(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def party(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> Iterator[Party]:
    limits = ServerLimits(clients=2, images=4, bundles=10, deadline_seconds=DEADLINE)
    with serving(tiny(), tmp_path_factory.mktemp("attacked"), certificate, limits=limits) as found:
        yield found


def reach(party: Party, *, deadline_seconds: float = DEADLINE) -> Channel:
    wait_for(lambda: party.server._service.slots._value > 0)  # type: ignore[attr-defined] # it may not have seen the last one go
    return connect(party.address, client_context(party.certificate[0]), deadline_seconds=deadline_seconds)


def greeted(party: Party, *, deadline_seconds: float = DEADLINE) -> Channel:
    channel = reach(party, deadline_seconds=deadline_seconds)
    channel.send(Kind.HELLO, Hello(party.model.client.digest).encode())
    channel.receive_any({Kind.WELCOME: 10_000})
    return channel


def honest(party: Party) -> None:
    """The next honest client is served, once the attackers' slots are free."""
    end = time.monotonic() + DEADLINE + SLACK
    while True:
        try:
            with party.client("honest") as client:
                assert np.array_equal(client.infer(IMAGES).labels, LABELS)
                return
        except PeerError as error:
            assert error.code == "busy" and time.monotonic() < end
            time.sleep(0.01)


def hostile_client(party: Party, target: Kind, attack: Attack) -> str:
    def work() -> np.ndarray:
        channel = Tampering.take_over(reach(party), target, attack)
        store = party.client_store("hostile")
        with Client(channel, party.model.client, store, workers=0) as client:
            client.prepare(1)
            labels = client.infer(IMAGES[:1]).labels
        assert channel.spoiled
        return labels

    return ending(work)


def test_example_a_frame_that_is_replayed(party: Party) -> None:
    assert hostile_client(party, Kind.REQUEST, ATTACKS["replayed"]) == "protocol"
    honest(party)


@pytest.mark.parametrize(
    "target",
    [
        Kind.HELLO, Kind.PREPARE, Kind.OFFER, Kind.SUMS, Kind.KEY, Kind.REQUEST, Kind.CORRECTIONS, Kind.START,
        Kind.INPUT, Kind.WORDS,
    ],
    ids=lambda kind: kind.name,
)  # fmt: skip
def test_a_hostile_client(party: Party, target: Kind, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "deepreduce.server")
    for name, attack in ATTACKS.items():
        got = hostile_client(party, target, attack)
        allowed = {"protocol", "PeerGone"}
        if name in ("random bytes", "zeros", "ones", "half random") and target in HOLDS:
            allowed |= NONSENSE
        if name in ("sent twice", "replayed") and target == Kind.WORDS:
            allowed.add("label")  # it is the last message: the server notices when it expects the next order
        assert got in allowed, (target.name, name, got)
    # Nothing of it was a surprise: no traceback, and no secret could be in one.
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    honest(party)


class Foreign:
    """Records an honest client's frames, so that they can be sent by another one."""

    def __init__(self, party: Party) -> None:
        self.frames: list[tuple[Kind, bytes]] = []
        send = Channel.send

        def recording(channel: Channel, kind: Kind, *parts: Any, **options: Any) -> None:
            self.frames.append(
                (
                    kind,
                    b"".join(
                        np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else bytes(part)
                        for part in parts
                    ),
                )
            )
            send(channel, kind, *parts, **options)

        channel = reach(party)
        channel.send = recording.__get__(channel)  # type: ignore[method-assign]
        with Client(channel, party.model.client, party.client_store("recorded"), workers=0) as client:
            client.prepare(1)
            assert np.array_equal(client.infer(IMAGES[:1]).labels, LABELS[:1])

    def of(self, kind: Kind) -> bytes:
        return next(body for own, body in self.frames if own == kind)


@pytest.fixture(scope="module")
def foreign(party: Party) -> Foreign:
    return Foreign(party)


def test_frames_of_another_connection(party: Party, foreign: Foreign) -> None:
    for target, allowed in (
        (Kind.OFFER, "protocol"),  # these carry the session
        (Kind.SUMS, "protocol"),
        (Kind.CORRECTIONS, "protocol"),
        (Kind.START, "WireError"),  # what the server says is lost is not what this client named
        (Kind.KEY, "label"),  # these are as good as any other: the sender alone gets nonsense
        (Kind.REQUEST, "label"),
        (Kind.INPUT, "label"),
        (Kind.WORDS, "label"),
    ):
        got = hostile_client(party, target, lambda channel, kind, _: channel.honest(kind, foreign.of(kind)))
        assert got == allowed or (allowed == "label" and got in NONSENSE), (target.name, got)
    honest(party)


def test_a_whole_conversation_that_is_replayed_reaches_no_result(party: Party, foreign: Foreign) -> None:
    (hello, body), *rest = foreign.frames
    with reach(party) as channel, contextlib.suppress(WireError):
        channel.send(hello, body)
        seen = [channel.receive_any({Kind.WELCOME: 10_000})[0]]  # a refusal of the rest could overtake it
        for kind, body in rest:
            channel.send(kind, body)
        while True:
            seen.append(channel.receive_any(dict.fromkeys(Kind, 10_000_000))[0])
    assert Kind.WELCOME in seen and Kind.RESULT not in seen and Kind.LABELS not in seen
    honest(party)


def prepared_names(party: Party, count: int) -> tuple[tuple[bytes, int], ...]:
    """Prepare bundles with an honest client that never uses them."""
    store = party.client_store(f"unused{time.monotonic_ns()}")
    with party.client(store=store) as client:
        client.prepare(count)
    return tuple((name.session, name.number) for name in store.names())


def asked(party: Party, body: bytes, kind: Kind = Kind.START) -> str:
    """Send one request; return the answer's code, GO, or LOST."""
    with greeted(party) as channel:
        channel.send(kind, body)
        try:
            return channel.receive_any({Kind.GO: 0, Kind.LOST: 10_000})[0].name
        except PeerError as error:
            return error.code


def test_bundles_that_one_may_not_have(party: Party) -> None:
    (session, number), more, third = prepared_names(party, 3)
    assert asked(party, Start(((bytes(16), 0),), "label").encode()) == "LOST"
    assert asked(party, Start(((session, number + 10),), "label").encode()) == "LOST"
    assert asked(party, Start(((session, 2**48 - 1),), "label").encode()) == "LOST"
    twice = [[session.hex(), number]] * 2
    assert asked(party, json.dumps({"bundles": twice, "reveal": "label"}).encode()) == "protocol"
    before = party.store.count()
    assert asked(party, Start(((session, number),), "logits").encode()) == "policy"
    assert asked(party, Start(tuple((bytes(16), n) for n in range(5)), "label").encode()) == "limit"
    assert party.store.count() == before  # a refusal before the bundles are looked at costs none
    assert asked(party, Start(((session, number),), "label").encode()) == "GO"
    assert asked(party, Start(((session, number),), "label").encode()) == "LOST"  # it is spent, though unused
    assert asked(party, Start((more, (session, number)), "label").encode()) == "LOST"
    assert asked(party, Start((more,), "label").encode()) == "LOST"  # spent with the one that was not there
    assert asked(party, Start((third,), "label").encode()) == "GO"
    honest(party)


def test_the_same_start_twice_on_one_connection(party: Party) -> None:
    store = party.client_store("twice")
    with party.client(store=store) as client:
        client.prepare(1)
        (name,) = store.names()
        client.infer(IMAGES[:1])
        start = Start(((name.session, name.number),), "label")
        client._channel.send(Kind.START, start.encode())
        _, answer = client._channel.receive_any({Kind.LOST: 10_000})
        assert Lost.decode(answer, start) == Lost((0,), (name.session,))
    honest(party)


def test_one_bundle_for_many_clients_at_once(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    limits = ServerLimits(clients=8, deadline_seconds=DEADLINE)
    with serving(tiny(), tmp_path, certificate, limits=limits) as wide:
        (name,) = prepared_names(wide, 1)
        with ThreadPoolExecutor(6) as threads:
            answers = list(threads.map(lambda _: asked(wide, Start((name,), "label").encode()), range(6)))
    assert sorted(answers) == ["GO", *["LOST"] * 5]


@pytest.mark.parametrize(
    ("bundles", "together", "code"),
    [
        (11, 1, "limit"),
        (2**31, 1, "limit"),
        (2**31 + 1, 1, "protocol"),
        (-1, 1, "protocol"),
        (2, 129, "limit"),
        (2, 1024, "limit"),
        (2, 1025, "protocol"),
        (2, 0, "protocol"),
    ],
)
def test_prepare_with_other_numbers(party: Party, bundles: int, together: int, code: str) -> None:
    assert asked(party, Prepare(bundles, together).encode(), Kind.PREPARE) == code


def test_small_messages_of_all_sizes(party: Party) -> None:
    for body in (b"", b"{}", b"[" * 60_000, b"\xff" * 65_536, b'{"bundles":' + b"1" * 60_000 + b"}"):
        for kind in (Kind.PREPARE, Kind.START):
            assert asked(party, body, kind) == "protocol"
    with greeted(party) as channel, pytest.raises(PeerError) as refused:
        channel.send(Kind.START, bytes(65_537))
        channel.receive(Kind.GO, 0)
    assert refused.value.code == "protocol"
    honest(party)


def test_orders_that_do_not_fit(party: Party) -> None:
    for kind in (Kind.HELLO, Kind.OFFER, Kind.KEY, Kind.REQUEST, Kind.INPUT, Kind.WORDS, Kind.WELCOME, Kind.RESULT):
        assert asked(party, b"{}", kind) == "protocol"
    with reach(party) as channel, pytest.raises(PeerError) as refused:
        channel.send(Kind.START, b"{}")  # before HELLO
        channel.receive(Kind.GO, 0)
    assert refused.value.code == "protocol"


def test_a_client_that_stops_anywhere(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """Each client keeps one message to itself: both sides end at their deadlines, and all of them at once."""
    targets = [Kind.HELLO, Kind.PREPARE, Kind.OFFER, Kind.SUMS, Kind.KEY, Kind.REQUEST, Kind.CORRECTIONS, Kind.START]
    targets += [Kind.INPUT, Kind.WORDS]
    limits = ServerLimits(clients=10, deadline_seconds=5.0, handshake_seconds=5.0)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party:

        def work(target: Kind) -> str:
            channel = Tampering.take_over(reach(party), target, lambda *_: None)
            store = party.client_store(target.name)
            with Client(channel, party.model.client, store, workers=0) as client:
                return str(client.infer(IMAGES[:1]).labels)

        def told(target: Kind) -> str:
            return ending(lambda: work(target))

        with ThreadPoolExecutor(10) as threads:
            answers = dict(zip(targets, threads.map(told, targets), strict=True))
        # After two of them the client has more to say before it waits, and what it says does not fit.
        assert answers == dict.fromkeys(targets, "deadline") | dict.fromkeys([Kind.KEY, Kind.CORRECTIONS], "protocol")
        honest(party)


def test_connections_that_say_nothing_take_no_slot(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    limits = ServerLimits(clients=1, deadline_seconds=60, handshake_seconds=5.0)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party, contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(reach(party))  # TLS, and no HELLO
        honest(party)  # at once: the only slot is free
        host, port = party.address.split(":")
        for _ in range(30):
            stack.enter_context(socket.create_connection((host, int(port))))  # not even TLS
        begin = time.monotonic()
        while True:
            try:
                honest(party)
                break
            except WireError:  # turned away in the flood
                assert time.monotonic() - begin < DEADLINE + SLACK
                time.sleep(0.1)
        # The strangers were cut off.
        wait_for(lambda: len([thread for thread in threading.enumerate() if "_greet" in thread.name]) <= 10)


def test_a_slow_drip_ends_at_the_deadline(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    limits = ServerLimits(clients=2, deadline_seconds=2.0, handshake_seconds=2.0)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party:
        for opened, kind in ((reach, Kind.HELLO), (greeted, Kind.PREPARE)):
            channel, begin = opened(party), time.monotonic()
            with channel, contextlib.suppress(OSError):
                channel._sock.send(encode_header(kind, channel._sent_frames, 60_000))
                while time.monotonic() - begin < 2 * SLACK:
                    channel._sock.send(b" ")
                    time.sleep(0.15)
            assert time.monotonic() - begin < 2.0 + SLACK
        raw = socket.create_connection(tuple(party.address.split(":")))  # type: ignore[arg-type]
        begin = time.monotonic()
        with raw, contextlib.suppress(OSError):
            raw.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            while time.monotonic() - begin < 2 * SLACK:
                raw.send(b"\0")
                time.sleep(0.15)
        assert time.monotonic() - begin < 2.0 + SLACK
        honest(party)


def test_hostile_clients_leave_no_memory_behind(party: Party, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "deepreduce.server")  # a captured record keeps its error, and that its frames

    def round_of_attacks() -> None:
        for name in ("a huge length", "ones", "cut off"):
            for target in (Kind.HELLO, Kind.KEY, Kind.REQUEST, Kind.INPUT):
                hostile_client(party, target, ATTACKS[name])
        wait_for(lambda: not party.server._channels)

    round_of_attacks()
    honest(party)
    tracemalloc.start()
    try:
        round_of_attacks()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        round_of_attacks()
        gc.collect()
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now - before < 500_000
    assert peak - before < 20_000_000  # both parties of this process; a huge length is 2^63
    honest(party)
    assert not list(party.store.folder.rglob("*.partial"))
