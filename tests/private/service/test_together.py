"""Bundles that are prepared together: in lots that both parties' memory allows, and each good for itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepreduce.private.homomorphic import ProcessPool, open_pool
from deepreduce.private.protocol import layout as layout_module
from deepreduce.private.service import ServerLimits
from deepreduce.private.service import client as client_module
from deepreduce.private.service import dialogue as dialogue_module
from deepreduce.private.store import BundleName, BundleWriter, StoreFull
from deepreduce.private.wire import PeerError

from .parties import serving, small, sure, tiny

IMAGES, LABELS = sure(tiny(), 8)


@pytest.mark.parametrize("together", [1, 2, 3, 128])
def test_example_five_in_lots(together: int, tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    seen: list[int] = []
    limits = ServerLimits(together=together, deadline_seconds=120.0)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party, party.client() as client:
        client.prepare(1)  # and the set-up
        sent = client.prepare(5, progress=seen.append).traffic.sent_bytes
        assert seen == [1, 2, 3, 4, 5] and party.store.count() == 6
        layout = tiny().client.layout
        lots = {1: [1] * 5, 2: [2, 2, 1], 3: [3, 2], 128: [4, 1]}[together]
        requests = sum(job.request_bytes for lot in lots for job in layout.jobs_together(lot))
        assert requests < sent < requests + 50_000
        assert np.array_equal(client.infer(IMAGES[:6]).labels, LABELS[:6])


@pytest.mark.parametrize("workers", [open_pool, ProcessPool], ids=["default", "processes"])
def test_workers_answer_for_several_images(tmp_path: Path, certificate: tuple[Path, Path], workers: Any) -> None:
    images, labels = sure(small(), 3)
    with (
        serving(small(), tmp_path, certificate, workers=workers) as party,
        party.client(workers=1) as client,
    ):
        client.prepare(3)
        assert any(job.plan.images > 1 for job in small().client.layout.jobs_together(3))
        assert np.array_equal(client.infer(images).labels, labels)


@pytest.mark.parametrize("most", [1, 5_000, 7_000, 20_000])
def test_bundles_end_in_whatever_groups_their_units_go(
    most: int, tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one unit at a time, where a bundle takes several groups, to several bundles in each."""
    monkeypatch.setattr(layout_module, "GROUP_BYTES", most)
    groups = [len(group) for group in tiny().client.layout.groups(7)]
    assert sum(groups) == 7 * len(tiny().client.layout.units)
    with serving(tiny(), tmp_path, certificate) as party, party.client() as client:
        seen: list[tuple[int, int]] = []
        client.prepare(7, progress=lambda done: seen.append((done, party.client_store().count())))
        assert seen == [(n, n) for n in range(1, 8)] and party.store.count() == 7
        assert np.array_equal(client.infer(IMAGES[:7]).labels, LABELS[:7])


def test_a_server_without_room_in_the_middle_says_so(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the client is sending then, and has not heard yet of all that is finished."""
    monkeypatch.setattr(layout_module, "GROUP_BYTES", 1)
    with serving(tiny(), tmp_path, certificate) as party, party.client() as client:
        create = party.store.create

        def failing(name: BundleName, *arguments: Any) -> BundleWriter:
            if name.number == 5:
                raise StoreFull("no room")
            return create(name, *arguments)

        monkeypatch.setattr(party.store, "create", failing)
        with pytest.raises(PeerError, match="no room for as many bundles"):
            client.prepare(9)
        made = party.store.count()
        assert 3 <= made == party.client_store().count() <= 5
        assert not list(party.store.folder.rglob("*.partial")) + list(party.client_store().folder.rglob("*.partial"))
        monkeypatch.setattr(party.store, "create", create)
        with party.client() as other:
            assert np.array_equal(other.infer(IMAGES[:7]).labels, LABELS[:7])


def test_fewer_go_together_where_they_would_take_too_much(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = tiny().client.layout
    limits = ServerLimits(batch_bytes=3 * layout.server_share_bytes + 1)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party, party.client() as client:
        assert client._welcome.together == 3 == client._most_together()
        monkeypatch.setattr(client_module, "_TOGETHER_BYTES", 2 * layout.client_share_bytes + 1)
        assert client._most_together() == 2
        monkeypatch.setattr(client_module, "_TOGETHER_BYTES", 1)
        assert client._most_together() == 1
    with serving(tiny(), tmp_path / "one", certificate, limits=ServerLimits(batch_bytes=1)) as party:
        assert party.client()._welcome.together == 1


def test_a_lot_that_breaks_off_leaves_what_was_ready(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the day's count goes on with those that were made, where the server is at fault."""
    limits = ServerLimits(bundles_per_day=5, deadline_seconds=120.0)
    publish, left = BundleWriter.publish, [2]

    def failing(writer: BundleWriter) -> None:
        if writer._header.role == "server":
            left[0] -= 1
            if left[0] < 0:
                raise StoreFull("no room")
        publish(writer)

    with serving(tiny(), tmp_path, certificate, limits=limits) as party:
        monkeypatch.setattr(BundleWriter, "publish", failing)
        with party.client() as client, pytest.raises(PeerError, match="no room for as many bundles"):
            client.prepare(4)
        monkeypatch.setattr(BundleWriter, "publish", publish)
        assert party.store.count() == party.client_store().count() == 2
        with party.client() as client:
            assert client.prepare(3).bundles == 3  # two of five were made
            with pytest.raises(PeerError, match="0 are left now"):
                client.prepare(1)
        with party.client() as client:
            assert np.array_equal(client.infer(IMAGES[:5]).labels, LABELS[:5])


def test_a_client_that_leaves_in_a_lot_has_it_counted(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    limits = ServerLimits(bundles_per_day=5, deadline_seconds=120.0)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party:

        def stop(done: int) -> None:
            raise KeyboardInterrupt

        with party.client() as client, pytest.raises(KeyboardInterrupt):
            client.prepare(4, progress=stop)
        assert party.client_store().count() == 1  # it is good for an image
        with party.client() as client:
            assert np.array_equal(client.infer(IMAGES[:1]).labels, LABELS[:1])
            with pytest.raises(PeerError, match="1 are left now"):
                client.prepare(2)


@pytest.mark.parametrize("full", ["server", "client"])
def test_bundles_without_room_are_refused_before_there_is_work_in_them(
    full: str, tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ServerLimits(bundles_per_day=9, deadline_seconds=120.0)
    worked: list[int] = []
    answer = dialogue_module.answer_layers

    def counting(*arguments: Any, bundles: int, **options: Any) -> Any:
        worked.append(bundles)
        return answer(*arguments, bundles=bundles, **options)

    monkeypatch.setattr(dialogue_module, "answer_layers", counting)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party:
        store = party.client_store()
        with party.client(store=store) as client:
            client.prepare(1)
            own = party.store if full == "server" else store
            own.limit_bytes = 3 * own.bytes()  # room for two more
            assert worked == [1]
            with pytest.raises(PeerError if full == "server" else StoreFull, match="room"):
                client.prepare(4)
        assert worked in ([1], [1, 4]) and (full == "client" or worked == [1])
        with party.client(store=store) as client:
            assert client.prepare(2).bundles == 2
            assert np.array_equal(client.infer(IMAGES[:3]).labels, LABELS[:3])


def test_every_bundle_of_a_lot_has_the_whole_deadline(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    limits = ServerLimits(deadline_seconds=2.0, slowest_bytes_per_second=1 << 40)
    with serving(tiny(), tmp_path, certificate, limits=limits) as party, party.client() as client:
        assert client.prepare(6, progress=lambda done: time.sleep(0.5)).bundles == 6
