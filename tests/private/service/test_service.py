"""Client and server over TLS on loopback: what they promise to each other and to their users."""

from __future__ import annotations

import fcntl
import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepreduce.errors import DataError, DeepReduceError, RunError, UsageError
from deepreduce.private.deployment import ServerModel
from deepreduce.private.homomorphic import ProcessPool, default_backend, open_pool
from deepreduce.private.program import Program
from deepreduce.private.protocol import GROUP_BUNDLES, PROTOCOL
from deepreduce.private.ring import decode
from deepreduce.private.service import Client, Server, ServerLimits
from deepreduce.private.service import client as client_module
from deepreduce.private.service.messages import MAX_SMALL_BYTES, Lost, Start
from deepreduce.private.service.strangers import host_of
from deepreduce.private.store import BundleGone, BundleStore, StoreFull
from deepreduce.private.twin import Twin
from deepreduce.private.wire import Channel, Kind, PeerError, PeerGone, PeerTimeout, WireError

from ..protocol.harness import replayed
from .parties import InProcess, Party, pixels, serving, small, sure, tiny, wait_for

IMAGES, LABELS = sure(tiny(), 12)


@pytest.fixture(scope="module")
def party(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> Iterator[Party]:
    limits = ServerLimits(clients=4, images=4, bundles=3, deadline_seconds=120.0)
    with serving(tiny(), tmp_path_factory.mktemp("served"), certificate, limits=limits) as found:
        yield found


def test_example_prepare_then_infer(party: Party) -> None:
    with party.client("example") as client:
        made = client.prepare(2)
        assert made.bundles == 2 and made.stored_bytes > 0 and made.traffic.sent_bytes > 0
        store = party.client_store("example")
        assert store.count() == 2
        answer = client.infer(IMAGES[:2])
        assert np.array_equal(answer.labels, LABELS[:2]) and answer.logits is None
        assert store.count() == 0 == party.store.count()
        layout = tiny().client.layout
        assert answer.traffic.turns == len(layout.rounds) + 1
        assert answer.traffic.received_bytes < made.traffic.received_bytes


@pytest.mark.parametrize("workers", [open_pool, ProcessPool], ids=["default", "processes"])
def test_four_clients_at_once_with_workers(tmp_path: Path, certificate: tuple[Path, Path], workers: Any) -> None:
    batches = [sure(small(), 2, seed=number) for number in range(4)]
    with serving(small(), tmp_path, certificate, workers=workers) as party:

        def work(number: int) -> np.ndarray:
            with party.client(f"client{number}", workers=0) as client:
                client.prepare(2)
                return client.infer(batches[number][0]).labels

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(work, range(4)))
        assert party.store.count() == 0
        pids = party.server._service.pool.pids
        assert len(pids) == (workers is ProcessPool or default_backend() == "seal")
    for answer, (_, labels) in zip(answers, batches, strict=True):
        assert np.array_equal(answer, labels)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_prepared_weights_are_for_their_owner_alone(party: Party) -> None:
    weights = party.folder / "server" / "weights"
    paths = [weights, *weights.rglob("*")]
    assert len(paths) > 2
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o700, 0o600}


def test_a_folder_of_weights_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    folder, store = tmp_path / "weights", BundleStore(tmp_path / "s", program=tiny().client.digest, role="server")
    folder.mkdir()
    for mode in (0o750, 0o705, 0o770, 0o1777):
        folder.chmod(mode)
        with pytest.raises(RunError, match=rf"Got: mode {mode:04o}. Do: chmod 700 '{folder}'.* Where: "):
            Server(tiny(), store, weights_folder=folder)
        assert folder.stat().st_mode & 0o7777 == mode and not list(folder.iterdir())
    folder.chmod(0o700)
    Server(tiny(), store, weights_folder=folder).close()
    made = [path for path in folder.rglob("*") if path != folder]
    for path in made:
        path.chmod(0o755)
    Server(tiny(), store, weights_folder=folder).close()  # what is ours is mended
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700, 0o600}


def test_missing_bundles_are_prepared_by_infer(party: Party) -> None:
    with party.client("missing") as client:
        client.prepare(1)
        before = client.traffic
        answer = client.infer(IMAGES[:3])
        assert np.array_equal(answer.labels, LABELS[:3])
        offline = (client.traffic - before) - answer.traffic
        assert offline.sent_bytes > sum(job.request_bytes for job in tiny().client.layout.jobs_together(2))
        assert party.client_store("missing").count() == 0


def test_a_batch_beyond_the_servers_limit_goes_in_turns(party: Party) -> None:
    seen: list[int] = []
    with party.client("turns") as client:
        client.prepare(7, progress=seen.append)  # the server makes 3 per request
        assert seen == [1, 2, 3, 4, 5, 6, 7]
        answer = client.infer(IMAGES[:10])  # the server takes 4 at once; 3 are prepared
        assert np.array_equal(answer.labels, LABELS[:10])
        layout = tiny().client.layout
        assert answer.traffic.turns == 3 * (len(layout.rounds) + 1)
        assert 0 < answer.parts.channel + answer.parts.circuits <= answer.seconds


def test_bundles_outlive_the_connection_and_both_programs(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    with serving(tiny(), tmp_path, certificate) as party, party.client() as client:
        client.prepare(2)
    with serving(tiny(), tmp_path, certificate) as party:
        assert party.store.count() == 2
        with party.client() as client:
            assert np.array_equal(client.infer(IMAGES[:2]).labels, LABELS[:2])
            assert client.traffic.sent_bytes < 2_000  # nothing was prepared
        assert party.store.count() == 0


def test_logits_are_those_of_the_twin_bit_by_bit(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[Any] = []
    draw = client_module.draw_shares

    def recorded(*arguments: Any, **options: Any) -> Any:
        shares.extend(draw(*arguments, **options))
        return shares

    monkeypatch.setattr(client_module, "draw_shares", recorded)
    model = small()
    images, labels = sure(model, 2)
    limits = ServerLimits(reveal=("label", "logits"), deadline_seconds=120.0)
    with serving(model, tmp_path, certificate, limits=limits) as party, party.client() as client:
        answer = client.infer(images, reveal="logits")
        values = client.encode(images)
    logits = model.client.public.logits
    form = model.client.public.tensors[logits]
    # Bundles are taken oldest first, in the order in which they were made.
    exact = replayed(model.program, values, shares)[logits]
    assert answer.logits is not None
    assert np.array_equal(answer.logits, decode(exact, fraction_bits=form.fraction_bits, bits=form.ring_bits))
    assert np.array_equal(answer.labels, labels)


def test_wrong_images_cost_nothing(party: Party) -> None:
    with party.client("wrong") as client:
        client.prepare(1)
        for wrong in (IMAGES[0], IMAGES.astype(np.float32), pixels(1, 1, 3), pixels(1, 3, 2)):
            with pytest.raises(DataError, match=r"uint8 \[n, 1, 2, 2\].*Got: .*Do: "):
                client.infer(wrong)
        with pytest.raises(UsageError, match="At least one image"):
            client.infer(IMAGES[:0])
        with pytest.raises(UsageError, match="At least one bundle"):
            client.prepare(0)
        assert party.client_store("wrong").count() == 1
        assert np.array_equal(client.infer(IMAGES[:1]).labels, LABELS[:1])  # and the connection still serves


def test_the_server_reveals_what_its_owner_allows(party: Party) -> None:
    with party.client("policy") as client:
        client.prepare(1)
        with pytest.raises(UsageError, match=r"reveals label\. Got: a request for logits"):
            client.infer(IMAGES[:1], reveal="logits")
        assert party.client_store("policy").count() == 1
        # A client that asks nevertheless is refused before a bundle is taken.
        client._welcome = SimpleNamespace(images=4, bundles=3, together=9, reveal=("label", "logits"))
        servers = party.store.count()
        with pytest.raises(PeerError, match="reveals label") as refused:
            client.infer(IMAGES[:1], reveal="logits")
        assert refused.value.code == "policy" and party.store.count() == servers


@pytest.mark.parametrize(("images", "bundles", "code"), [(2, 3, "ok"), (9, 3, "limit"), (4, 99, "limit")])
def test_a_client_that_asks_for_too_much_is_refused(party: Party, images: int, bundles: int, code: str) -> None:
    client = party.client(f"much{images}-{bundles}")
    client._welcome = SimpleNamespace(
        images=images, bundles=bundles, together=9, reveal=("label",), session=client._welcome.session
    )
    if code == "ok":
        client.infer(IMAGES[:2])
        client.close()  # or the server would complain of its silence in the middle of a later test
        return
    with pytest.raises(PeerError) as refused:
        client.prepare(bundles)
        client.infer(np.repeat(IMAGES, 2, axis=0)[:images])
    assert refused.value.code == code
    with pytest.raises(WireError, match="alive"):
        client.prepare(1)


def test_a_full_server_says_so_and_a_free_slot_is_given_again(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    limits = ServerLimits(clients=2, deadline_seconds=120.0)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party:
        first, _second = party.client("a"), party.client("b")
        with pytest.raises(PeerError, match="try again later") as refused:
            party.client("c")
        assert refused.value.code == "busy"
        first.close(politely=True)
        wait_for(lambda: party.server._service.slots._value == 1)  # type: ignore[attr-defined]
        assert np.array_equal(party.client("c").infer(IMAGES[:1]).labels, LABELS[:1])


def test_another_model_is_refused(party: Party, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="another model") as refused:
        party.client(model=small().client)
    assert refused.value.code == "model"


def test_another_version_is_refused(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    hello = client_module.Hello
    monkeypatch.setattr(client_module, "Hello", lambda model: hello(model, 1))
    with pytest.raises(PeerError, match=f"version {PROTOCOL}") as refused:
        party.client()
    assert refused.value.code == "version"
    monkeypatch.setattr(client_module, "Hello", hello)
    monkeypatch.setattr(client_module, "PROTOCOL", 1)
    with pytest.raises(WireError, match=f"the server speaks {PROTOCOL}"):
        party.client()


def test_one_half_that_the_server_lost_costs_one_bundle(party: Party, caplog: pytest.LogCaptureFixture) -> None:
    with party.client("lost") as client:
        client.prepare(3)
        store, servers = party.client_store("lost"), party.store.count()
        party.store.take(store.names()[0]).close()
        before = client.traffic
        assert np.array_equal(client.infer(IMAGES[:2]).labels, LABELS[:2])  # on the same connection
        assert (client.traffic - before).sent_bytes < 2_000  # nothing was prepared
        assert store.count() == 0 and party.store.count() == servers - 3
    assert [record.getMessage() for record in caplog.records if record.name == "deepreduce.client"] == [
        "prepared bundles that were lost at the server, or belong to other weights: 1; others take their place"
    ]


def test_a_session_of_which_the_server_has_nothing_is_given_up_at_once(party: Party) -> None:
    """As when its store was emptied: asking for one bundle after the other would take long."""
    for count in (3, 2):
        with party.client("two") as client:
            client.prepare(count)
    store = party.client_store("two")
    first = [name for name in store.names() if name.session == store.names()[0].session]
    assert len(first) == 3
    for name in first:
        party.store.take(name).close()
    with party.client("two") as client:
        assert np.array_equal(client.infer(IMAGES[:1]).labels, LABELS[:1])
        assert store.count() == 1  # of the other session
        assert np.array_equal(client.infer(IMAGES[:2]).labels, LABELS[:2])


def test_bundles_that_are_missing_after_a_loss_are_prepared(party: Party) -> None:
    with party.client("refill") as client:
        client.prepare(3)
        store = party.client_store("refill")
        party.store.take(store.names()[1]).close()
        assert np.array_equal(client.infer(IMAGES[:3]).labels, LABELS[:3])
        assert store.count() == 0
        assert client.prepare(1).bundles == 1
        assert np.array_equal(client.infer(IMAGES[3:4]).labels, LABELS[3:4])


def test_a_server_that_loses_all_that_it_makes_does_not_keep_the_client_forever(
    party: Party, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[object] = []

    def gone(name: object) -> None:
        taken.append(name)
        raise BundleGone("of no disk")

    monkeypatch.setattr(party.store, "take", gone)
    client = party.client("forgetful")
    with pytest.raises(
        WireError, match=r"must keep the bundles that it makes\. Got: it lost some 3 times in a row\. Do: "
    ):
        client.infer(IMAGES[:1])
    assert len(taken) == 3


def test_halves_that_the_server_holds_go_with_the_next_start_or_the_connection(party: Party) -> None:
    """What it took for a START of which others were lost is used by nobody else."""
    with party.client("held") as client:
        client.prepare(3)
        names = party.client_store("held").names()
        party.store.take(names[0]).close()
        for wanted in ([0, 1], [0, 1], [0, 2]):  # it holds the second one, until the third is asked for instead
            asked = Start(tuple((names[place].session, names[place].number) for place in wanted), "label")
            client._channel.send(Kind.START, asked.encode())
            _, answer = client._channel.receive_any({Kind.LOST: MAX_SMALL_BYTES})
            assert Lost.decode(answer, asked) == Lost((0,))
            assert names[wanted[1]] not in party.store.names()
        asked = Start(((names[1].session, names[1].number),), "label")
        client._channel.send(Kind.START, asked.encode())
        _, answer = client._channel.receive_any({Kind.LOST: MAX_SMALL_BYTES})
        assert Lost.decode(answer, asked) == Lost((0,), (names[1].session,))  # nothing of it is left


def test_an_idle_connection_that_the_server_ended_costs_no_bundle(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    limits = ServerLimits(deadline_seconds=1.0)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party:
        client = party.client("idle")
        client.prepare(2)
        wait_for(lambda: not party.server._channels)
        for words in ("deadline", "closed", "closed"):
            with pytest.raises(WireError, match=words):
                client.infer(IMAGES[:1])
        assert party.client_store("idle").count() == 2
        with party.client("idle") as client:
            assert np.array_equal(client.infer(IMAGES[:2]).labels, LABELS[:2])


def test_bundles_of_other_weights_are_given_up(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    model = tiny()
    with serving(model, tmp_path, certificate) as party, party.client() as client:
        client.prepare(3)
    weights = dict(model.program.weights)
    last = max(weights)
    weights[last] = replace(weights[last], weight=weights[last].weight[::-1], bias=weights[last].bias[::-1])
    retrained = replace(model, program=replace(model.program, weights=weights))
    assert retrained.client.digest == model.client.digest  # the same architecture and formats, as far as clients see
    images, labels = sure(retrained, 1)
    with serving(retrained, tmp_path, certificate) as party, party.client() as client:
        assert np.array_equal(client.infer(images).labels, labels)
        assert client.traffic.sent_bytes > 100_000 and party.client_store().count() == 0  # others were prepared


def damage(path: Path) -> None:
    """Flip one bit in the last section, which no header covers; the file stays as old as it is."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("where", ["header", "section"])
def test_a_damaged_bundle_of_the_server_costs_itself_alone(
    party: Party, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    with party.client(f"rot{where}") as client:
        client.prepare(2)
        name = party.client_store(f"rot{where}").names()[0]
        (path,) = party.store.folder.rglob(name.file_name)
        if where == "section":
            damage(path)
        else:
            path.write_bytes(path.read_bytes()[:100])
        assert np.array_equal(client.infer(IMAGES[:1]).labels, LABELS[:1])
        assert party.client_store(f"rot{where}").count() == 0
    (told,) = [
        record for record in caplog.records if record.name == "deepreduce.server" and record.levelname == "WARNING"
    ]
    assert "must be what its writer left" in told.getMessage()


def losses(caplog: pytest.LogCaptureFixture) -> int:
    return sum("a prepared bundle is lost" in record.getMessage() for record in caplog.records)


def test_a_damaged_bundle_of_the_client_is_replaced(party: Party, caplog: pytest.LogCaptureFixture) -> None:
    with party.client("torn") as client:
        client.prepare(1)
        (path,) = party.client_store("torn").folder.rglob("*.bundle")
        path.write_bytes(path.read_bytes()[:100])
        assert np.array_equal(client.infer(IMAGES[:1]).labels, LABELS[:1])
    assert losses(caplog) == 1


def test_a_damaged_section_at_the_client_costs_its_own_bundle_alone(
    party: Party, caplog: pytest.LogCaptureFixture
) -> None:
    with party.client("rotten") as client:
        client.prepare(3)
        store = party.client_store("rotten")
        (path,) = store.folder.rglob(store.names()[0].file_name)
        damage(path)
        assert np.array_equal(client.infer(IMAGES[:2]).labels, LABELS[:2])
        assert store.count() == 0
    assert losses(caplog) == 1


def test_a_bundle_that_another_program_holds_is_replaced(party: Party) -> None:
    """A backup that locks what it reads: the bundle is there and cannot be taken."""
    with party.client("locked") as client:
        client.prepare(1)
        (path,) = party.client_store("locked").folder.rglob("*.bundle")
        with path.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert np.array_equal(client.infer(IMAGES[:1]).labels, LABELS[:1])
            assert path.exists()


def test_a_damaged_section_is_found_where_bundles_are_too_large_for_memory(
    party: Party, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask of zeros, from a block that the disk lost, would send the image as it is."""
    monkeypatch.setattr(client_module, "_IN_MEMORY_BYTES", 0)
    with party.client("mapped") as client:
        client.prepare(3)
        store = party.client_store("mapped")
        (path,) = store.folder.rglob(store.names()[0].file_name)
        damage(path)
        assert np.array_equal(client.infer(IMAGES[:2]).labels, LABELS[:2])
        assert store.count() == 0


def other_weights(model: ServerModel) -> ServerModel:
    """The same public program with other weights: a network that was trained again."""
    weights = {
        output: replace(own, weight=None if own.weight is None else -own.weight[::-1])
        for output, own in model.program.weights.items()
    }
    return ServerModel(model.client, Program(model.client.public, weights))


class Piped(InProcess):
    """Arguments travel as to worker processes."""

    in_this_process = False

    def map(self, function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> list[Any]:
        return [function(*pickle.loads(pickle.dumps(arguments))) for arguments in jobs]


def test_a_server_keeps_its_weights_whatever_another_one_does(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """As in a rolling restart: the new server of the same store begins before the old one ends."""
    folders = tmp_path / "server" / "weights"
    with serving(tiny(), tmp_path, certificate, workers=Piped) as old:
        with serving(other_weights(tiny()), tmp_path, certificate, workers=Piped) as new, new.client("new") as client:
            assert len(list(folders.glob("*/*/"))) == 2
            assert not np.array_equal(client.infer(IMAGES[:8]).labels, LABELS[:8])
        with old.client("old") as client:
            assert np.array_equal(client.infer(IMAGES[:8]).labels, LABELS[:8])
    (left,) = folders.glob("*")
    (left / "0123").mkdir()  # of a server that is gone
    own = next(path for path in left.glob("*/") if any(path.glob("*.ntt")))
    (own / ".1.ntt.00ff").write_bytes(b"half")  # of one that was killed
    with serving(tiny(), tmp_path, certificate, workers=Piped):
        (only,) = left.glob("*/")
        assert not list(only.glob(".*.ntt.*")) and list(only.glob("*.ntt"))


def test_weights_that_are_gone_are_the_servers_own_fault(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    with serving(tiny(), tmp_path, certificate, workers=Piped) as party, party.client() as client:
        for path in (tmp_path / "server" / "weights").rglob("*.ntt"):
            path.unlink()
        with pytest.raises(PeerError, match="its log says why") as told:
            client.prepare(1)
        assert told.value.code == "internal"


def test_what_was_not_made_is_not_counted(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    limits = ServerLimits(bundles_per_day=2, deadline_seconds=120.0)
    with serving(tiny(), tmp_path, certificate, limits=limits, limit_bytes=10) as party:
        for _ in range(3):
            with party.client() as client, pytest.raises(PeerError, match="no room for as many bundles"):
                client.prepare(1)
        party.store.limit_bytes = None
        with party.client() as client:
            assert client.prepare(2).bundles == 2


def test_a_client_that_is_just_in_time_for_every_frame_is_ended(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ServerLimits(clients=1, deadline_seconds=120.0)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party, party.client() as client:
        client.prepare(1)
        party.server._service.limits = replace(limits, deadline_seconds=2.0, slowest_bytes_per_second=1e9)
        send = Channel.send

        def slow(self: Channel, *arguments: Any, **options: Any) -> None:
            if self is client._channel:
                time.sleep(0.9)
            send(self, *arguments, **options)

        monkeypatch.setattr(Channel, "send", slow)
        with pytest.raises((PeerError, PeerGone)) as told:
            client.prepare(1)
        assert not isinstance(told.value, PeerError) or told.value.code == "deadline"


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("64:ff9b::c000:207", "192.0.2.7"),
    ],
)
def test_one_host_has_one_address(address: str, host: str) -> None:
    assert host_of(address) == host


def test_fewer_images_go_at_once_where_the_system_opens_few_files(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("deepreduce.private.service.server.room_for_files", lambda wanted: min(wanted, 160))
    limits = ServerLimits(clients=2, images=64)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party, party.client() as client:
        here = client._welcome.images
        assert here == (160 - 2 * 20 - 2 * len(tiny().client.layout.jobs)) // 2 - 2 * GROUP_BUNDLES > 0
        assert f"images at once: {here}, not 64: the system lets this process open no more files" in caplog.text
        assert np.array_equal(client.infer(IMAGES[: here + 1]).labels, LABELS[: here + 1])


def test_a_full_store_of_the_client_ends_the_connection_and_costs_no_bundle(party: Party) -> None:
    with party.client("full") as client:
        size = client.prepare(2).stored_bytes
    store = party.client_store("full")
    store.limit_bytes = int(2.9 * size)
    client = party.client(store=store)
    with pytest.raises(StoreFull):
        client.infer(IMAGES[:4])
    assert store.count() == 2
    with pytest.raises(WireError, match=r"alive.*closed"):  # and not a riddle from the server
        client.infer(IMAGES[:3])
    with party.client(store=store) as client:
        assert np.array_equal(client.infer(IMAGES[:2]).labels, LABELS[:2])


def test_a_full_store_of_the_server_is_told(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    with serving(tiny(), tmp_path, certificate, limit_bytes=1000) as party:
        with pytest.raises(PeerError, match="no room") as refused:
            party.client().prepare(1)
        assert refused.value.code == "limit" and party.store.count() == 0


def test_a_client_that_falls_silent_is_told_and_its_slot_is_free(
    tmp_path: Path, certificate: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "deepreduce.server")
    limits = ServerLimits(clients=1, deadline_seconds=3.0)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party:
        silent = party.client("silent")
        wait_for(lambda: "too slow" in caplog.text)
        party.server._service.limits = replace(limits, deadline_seconds=120.0)
        with pytest.raises((PeerError, PeerGone)) as told:
            silent.prepare(1)
        assert not isinstance(told.value, PeerError) or told.value.code == "deadline"
        party.client("next").infer(IMAGES[:1])


def test_closing_the_server_wakes_everybody(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    begin = time.monotonic()
    with serving(tiny(), tmp_path, certificate, limits=ServerLimits(deadline_seconds=600)) as party:
        idle, busy = party.client("idle"), party.client("busy")
        told: list[BaseException] = []

        def prepare() -> None:
            try:
                busy.prepare(500)
            except DeepReduceError as error:
                told.append(error)

        thread = threading.Thread(target=prepare)
        thread.start()
        wait_for(lambda: party.store.count() > 1)
        party.server.close()
        party.server.close()
        thread.join(timeout=120)
        assert len(told) == 1
        with pytest.raises((PeerGone, PeerError, PeerTimeout)):
            idle.prepare(1)
    assert time.monotonic() - begin < 300


def test_a_client_that_leaves_politely_leaves_one_line(party: Party, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "deepreduce.server")
    with party.client("polite") as client:
        client.infer(IMAGES[:1])
    client.close(politely=True)  # again
    wait_for(lambda: len(caplog.records) == 2)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert "prepared 1 of 1 bundles" in caplog.text and "images: 1" in caplog.text


def test_bundles_of_a_day_are_counted_for_each_client(
    tmp_path: Path, certificate: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """By certificate, over all connections; what is refused costs nothing."""
    caplog.set_level(logging.INFO, "deepreduce.server")
    limits = ServerLimits(bundles_per_day=3)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party:
        with party.client("ann") as client:
            client.prepare(2)
        client = party.client("ann")
        with pytest.raises(
            PeerError, match="at most 3 bundles a day are made for one client; 1 are left now"
        ) as refused:
            client.infer(IMAGES[:4])
        assert refused.value.code == "limit" and party.client_store("ann").count() == 2 == party.store.count()
        with party.client("ann") as client:
            assert np.array_equal(client.infer(IMAGES[:3]).labels, LABELS[:3])
        ours, theirs = socket.socketpair()
        with Channel(theirs) as theirs, ThreadPoolExecutor(1) as threads:
            serving_ann = threads.submit(party.server.handle, theirs, client="another")
            store = party.client_store("another")
            with Client(Channel(ours), tiny().client, store, workers=0) as client:
                assert client.prepare(3).bundles == 3
            serving_ann.result(60)


def test_limits_out_of_range_are_refused() -> None:
    for wrong in (
        {"clients": 0},
        {"images": 1025},
        {"bundles": 0},
        {"deadline_seconds": 0.0},
        {"deadline_seconds": float("nan")},
        {"handshake_seconds": 1e9},
        {"reveal": ()},
        {"reveal": ("weights",)},
    ):
        with pytest.raises(UsageError, match=r"Got: .*Do: "):
            ServerLimits(**wrong)  # type: ignore[arg-type]


def test_old_bundles_go_while_the_server_runs(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepreduce.private.service.server._EXPIRE_SECONDS", 0.2)
    with serving(tiny(), tmp_path, certificate) as party:
        with party.client() as client:
            client.prepare(1)
        party.store.keep_days = 1e-9
        wait_for(lambda: party.store.count() == 0)


def test_names_of_bundles_are_never_given_twice(party: Party) -> None:
    with party.client("names") as client:
        client.prepare(3)
        first = set(party.client_store("names").names())
    with party.client("names") as client:
        client.prepare(3)
        names = set(party.client_store("names").names())
        assert len(first) == 3 and first < names and len(names) == 6
        assert {name.number for name in names} == {0, 1, 2}


def test_the_twin_says_what_the_images_of_these_tests_are() -> None:
    assert len(set(LABELS)) > 1  # or equal labels would prove little
    assert np.array_equal(Twin(tiny().program).run(tiny().client.normalise(IMAGES)).labels, LABELS)
