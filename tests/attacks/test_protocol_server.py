"""A hostile server: whatever it sends in place of any message, the client ends with an error or with some class."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepreduce.private.service import Client, Server, ServerLimits
from deepreduce.private.service.messages import PROTOCOL
from deepreduce.private.store import BundleStore
from deepreduce.private.wire import Channel, Kind, PeerGone, PeerTimeout

from ..private.service.parties import InProcess, sure, tiny
from .tampering import ATTACKS, DEADLINE, SLACK, Attack, Tampering, ending

IMAGES, LABELS = sure(tiny(), 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile-server")
    store = BundleStore(folder / "server", program=tiny().client.digest, role="server")
    limits = ServerLimits(deadline_seconds=DEADLINE)
    with Server(tiny(), store, weights_folder=folder / "weights", limits=limits) as found:
        found._service.pool.close()
        found._service.pool = InProcess(1)  # type: ignore[assignment]
        yield found


def hostile_server(server: Server, folder: Path, target: Kind, attack: Attack) -> str:
    ours, theirs = socket.socketpair()
    spoiling = Tampering.take_over(Channel(theirs, deadline_seconds=DEADLINE), target, attack)

    def serve() -> None:
        with spoiling:
            server.handle(spoiling)

    thread = threading.Thread(target=serve)
    thread.start()
    store = BundleStore(folder, program=tiny().client.digest, role="client")

    def work() -> np.ndarray:
        with Client(Channel(ours, deadline_seconds=DEADLINE), tiny().client, store, workers=0) as client:
            client.prepare(1)
            return client.infer(IMAGES[:1]).labels

    try:
        return ending(work)
    finally:
        thread.join(timeout=2 * DEADLINE)
        assert not thread.is_alive() and spoiling.spoiled
        for name in store.names():  # what a lying server left must not spoil the next attack
            store.discard(name.session)


def test_example_a_server_that_answers_with_random_tables(server: Server, tmp_path: Path) -> None:
    got = hostile_server(server, tmp_path / "client", Kind.TABLES, ATTACKS["random bytes"])
    assert got in ("label", "DeepReduceError")  # some class, or one that does not exist


@pytest.mark.parametrize(
    "target",
    [Kind.WELCOME, Kind.GO, Kind.CHOICES, Kind.ANSWER, Kind.TABLES, Kind.READY, Kind.LABELS, Kind.RESULT],
    ids=lambda kind: kind.name,
)
def test_a_hostile_server(server: Server, tmp_path: Path, target: Kind) -> None:
    ours = {"WireError", "PeerGone", "PeerError", "TransferError", "MessageError", "GarblingError", "DeepReduceError"}
    for name, attack in ATTACKS.items():
        got = hostile_server(server, tmp_path / "client", target, attack)
        held = target in (Kind.CHOICES, Kind.ANSWER, Kind.TABLES, Kind.LABELS, Kind.RESULT)
        allowed = set(ours)
        if name in ("random bytes", "zeros", "ones", "half random") and (held or target == Kind.GO):
            allowed.add("label")  # a wrong one, of a server that spoils its own work
        if name in ("sent twice", "replayed") and target == Kind.RESULT:
            allowed.add("label")
        if target == Kind.GO and name in ("nothing", "one byte less"):
            allowed.add("label")  # GO is empty
        assert got in allowed, (target.name, name, got)
    folder = tmp_path / "client"
    assert not list(folder.rglob("*.partial"))
    assert (
        hostile_server(server, folder, Kind.WELCOME, lambda channel, kind, body: channel.honest(kind, body)) == "label"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"reveal": ["logits"]}, {"reveal": []}, {"reveal": ["\x1b[2J"]}, {"images": 0}, {"images": 10**9},
        {"bundles": 0}, {"session": "00"}, {"protocol": 1}, {"session": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_welcome_of_nonsense(server: Server, tmp_path: Path, change: dict[str, Any]) -> None:
    def attack(channel: Tampering, kind: Kind, body: bytes) -> None:
        channel.honest(kind, json.dumps(json.loads(body) | change).encode())

    got = hostile_server(server, tmp_path / "client", Kind.WELCOME, attack)
    assert got in ("WireError", "UsageError")


@pytest.mark.parametrize("number", [1, 2**48 - 1, -1, "0"])
def test_a_ready_of_another_bundle_publishes_nothing(server: Server, tmp_path: Path, number: Any) -> None:
    def attack(channel: Tampering, kind: Kind, _: bytes) -> None:
        channel.honest(kind, json.dumps({"number": number}).encode())

    assert hostile_server(server, tmp_path / "client", Kind.READY, attack) == "WireError"
    assert BundleStore(tmp_path / "client", program=tiny().client.digest, role="client").count() == 0


@pytest.mark.parametrize("wanted", range(4))
def test_a_class_that_does_not_exist_is_an_error(server: Server, tmp_path: Path, wanted: int) -> None:
    """Three classes take two bits, and a server can answer so that the client decodes the fourth."""

    def attack(channel: Tampering, kind: Kind, decoding: bytes) -> None:
        change = int(LABELS[0]) ^ wanted
        channel.honest(kind, bytes([decoding[0] ^ (change & 1), decoding[1] ^ (change >> 1)]))

    got = hostile_server(server, tmp_path / "client", Kind.RESULT, attack)
    assert got == ("DeepReduceError" if wanted == 3 else "label")


def test_a_server_that_says_nothing_more(tmp_path: Path) -> None:
    for kind in (Kind.WELCOME, Kind.GO):
        ours, theirs = socket.socketpair()
        with theirs, Channel(theirs) as silent:
            if kind == Kind.GO:
                numbers = {"protocol": PROTOCOL, "images": 1, "bundles": 1, "together": 1}
                welcome = {"session": "00" * 16, "reveal": ["label"], **numbers}
                silent.send(Kind.WELCOME, json.dumps(welcome).encode())
            begin = time.monotonic()
            store = BundleStore(tmp_path / "client", program=tiny().client.digest, role="client")
            channel = Channel(ours, deadline_seconds=0.3)
            with pytest.raises(PeerTimeout), Client(channel, tiny().client, store, workers=0) as client:
                client.prepare(1)
            assert time.monotonic() - begin < 0.3 + SLACK


def test_a_server_that_hangs_up_is_gone(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    store = BundleStore(tmp_path / "client", program=tiny().client.digest, role="client")
    with pytest.raises(PeerGone):
        Client(Channel(ours, deadline_seconds=DEADLINE), tiny().client, store, workers=0)
