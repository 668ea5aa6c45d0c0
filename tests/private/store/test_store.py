"""The folder of bundles: writing, taking, limits, age, and who may read it. Read the first test first."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import itertools
import os
import pickle
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepreduce.private.store import (
    Bundle,
    BundleDamaged,
    BundleGone,
    BundleName,
    BundleStore,
    StoreError,
    StoreFull,
)
from deepreduce.private.store import store as store_module

SESSION = bytes(range(16))
PROGRAM = bytes(range(100, 132))
Put = Callable[..., BundleName]
ONE = {"masks": (np.uint64, (5,))}


def test_example(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "bundles", program=PROGRAM, role="client")
    name = BundleName(SESSION, 0)
    tables = np.arange(96, dtype=np.uint8).reshape(6, 16)

    # The server's messages arrive in pieces and go to the disk as they come.
    with store.create(name, {"masks": (np.uint64, (3,)), "tables": (np.uint8, (6, 16))}, {"layers": 1}) as writer:
        writer.write("masks", 0, np.array([1, 2, 3], dtype=np.uint64))
        writer.write("tables", 0, tables[:4])
        writer.write("tables", 64, tables[4:].tobytes())
        writer.finish()
        assert store.count() == 0  # all of it is on the disk, but the other party may not be so far
        writer.publish()
    assert store.names() == [name]

    with store.take(name) as bundle:
        assert store.count() == 0  # consumed before the first byte was read
        assert bundle.name == name
        assert bundle.meta == {"layers": 1}
        assert abs(bundle.created_seconds - time.time()) < 60
        assert bundle.sections == {"masks": (np.dtype("<u8"), (3,)), "tables": (np.dtype("u1"), (6, 16))}
        assert np.array_equal(bundle.array("masks"), [1, 2, 3])
        assert np.array_equal(bundle.array("tables", load=True), tables)
    with pytest.raises(BundleGone, match="taken once"):
        store.take(name)


def test_take_next_takes_the_oldest_of_any_session_and_then_less(store: BundleStore, place: Path, put: Put) -> None:
    other = bytes(16)
    names = [put(store, 10), put(store, 9), put(store, 3, other), put(store, 4, other)]
    for age, name in enumerate(names):  # number and session must not matter before the age
        os.utime(place / name.file_name, (time.time() - 100 + age,) * 2)
    assert store.names() == names

    first = store.take_next()
    assert [bundle.name for bundle in first] == names[:1]
    assert first[0].array("masks")[0] == 10
    more = store.take_next(7)
    assert [bundle.name for bundle in more] == names[1:]
    assert store.take_next(2) == []
    for bundle in first + more:
        bundle.close()


def test_equal_times_go_by_number(store: BundleStore, place: Path, put: Put) -> None:
    names = [put(store, number) for number in (11, 2, 1)]
    for name in names:
        os.utime(place / name.file_name, (1e9, 1e9))
    assert [name.number for name in store.names()] == [1, 2, 11]


@pytest.mark.parametrize("count", [0, -1, True, 1.5, None])
def test_take_next_needs_a_number(store: BundleStore, count: Any) -> None:
    with pytest.raises(StoreError, match="at least 1"):
        store.take_next(count)


def test_programs_and_roles_do_not_see_each_other(folder: Path, store: BundleStore, put: Put) -> None:
    server = BundleStore(folder, program=PROGRAM, role="server")
    other = BundleStore(folder, program=bytes(32), role="client")
    name = put(store)
    assert put(server) == put(other) == name
    assert store.bytes() == server.bytes() == sum(path.stat().st_size for path in folder.rglob("*.bundle"))
    store.take(name).close()
    assert (store.count(), server.count(), other.count()) == (0, 1, 1)


# Writing


def test_pieces_in_any_order_and_of_any_kind(store: BundleStore) -> None:
    values = np.random.default_rng(1).integers(0, 2**63, 1000, dtype=np.uint64)
    raw = values.tobytes()
    cuts = [0, 1, 8, 9, 777, 4000, 7999, 8000]
    pieces = list(itertools.pairwise(cuts))
    for number, order in enumerate(([6, 0, 3, 1, 5, 2, 4], [0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0])):
        with store.create(BundleName(SESSION, number), {"a": (np.uint64, (10, 100)), "b": ("u1", (8000,))}) as writer:
            for which in order:
                start, end = pieces[which]
                kinds = (raw[start:end], bytearray(raw[start:end]), memoryview(raw)[start:end])
                writer.write("a", start, kinds[which % 3])
                writer.write("b", start, np.frombuffer(raw[start:end], np.uint8))
            writer.finish()
            writer.publish()
        with store.take(BundleName(SESSION, number)) as bundle:
            assert np.array_equal(bundle.array("a", load=True), values.reshape(10, 100))
            assert np.array_equal(bundle.array("b", load=True), np.frombuffer(raw, np.uint8))


def test_a_gap_is_refused_and_may_then_be_filled(store: BundleStore) -> None:
    with store.create(BundleName(SESSION, 0), ONE | {"empty": ("u1", (0,))}) as writer:
        writer.write("masks", 8, bytes(32))
        writer.write("empty", 0, b"")
        with pytest.raises(StoreError, match="gaps in masks"):
            writer.finish()
        with pytest.raises(StoreError, match="not finished"):
            writer.publish()
        writer.write("masks", 0, bytes(8))
        writer.finish()
        writer.publish()
    assert store.count() == 1


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (16, bytes(8), "written once"),
        (15, bytes(2), "written once"),
        (9, bytes(8), "written once"),
        (0, bytes(40), "written once"),
        (40, bytes(1), "lie within"),
        (-1, bytes(1), "lie within"),
        (0, bytes(41), "lie within"),
        (2**70, bytes(1), "lie within"),
        (0.0, bytes(1), "lie within"),
        (0, np.zeros(2, np.int32), "contiguous"),
        (0, np.zeros(4, np.uint8)[::2], "contiguous"),
        (0, memoryview(bytes(8))[::2], "contiguous"),
        (0, np.zeros(1, ">u8"), "contiguous"),
        (0, [1, 2], "contiguous"),
        (0, "text", "contiguous"),
    ],
)
def test_wrong_pieces(store: BundleStore, offset: Any, data: Any, message: str) -> None:
    with store.create(BundleName(SESSION, 0), ONE) as writer:
        writer.write("masks", 16, bytes(8))
        with pytest.raises(StoreError, match=message):
            writer.write("masks", offset, data)
        with pytest.raises(StoreError, match="announced"):
            writer.write("labels", 0, bytes(1))


def test_the_order_of_the_steps(store: BundleStore, put: Put) -> None:
    with store.create(BundleName(SESSION, 0), ONE) as writer:
        writer.write("masks", 0, bytes(40))
        writer.finish()
        for call in (writer.finish, lambda: writer.write("masks", 0, b"")):
            with pytest.raises(StoreError, match="is finished"):
                call()
        writer.publish()
        for call in (writer.finish, writer.publish, lambda: writer.write("masks", 0, b"")):
            with pytest.raises(StoreError, match="published or abandoned"):
                call()
        writer.abandon()  # nothing to abandon any more
    assert store.count() == 1


def test_abandoned_or_failed_writing_leaves_nothing(store: BundleStore, place: Path) -> None:
    with pytest.raises(ZeroDivisionError), store.create(BundleName(SESSION, 0), ONE) as writer:
        writer.write("masks", 0, bytes(40))
        writer.finish()
        raise ZeroDivisionError
    writer.abandon()
    assert list(place.iterdir()) == []


def test_a_name_is_not_given_twice(store: BundleStore, put: Put) -> None:
    with store.create(BundleName(SESSION, 0), ONE) as late:
        late.write("masks", 0, bytes(40))
        late.finish()
        name = put(store)
        with pytest.raises(StoreError, match="must be new"):
            late.publish()
        with pytest.raises(StoreError, match="must be new"):
            store.create(name, ONE)
    with store.take(name) as bundle:
        assert np.array_equal(bundle.array("masks"), np.arange(5))


def test_after_a_failed_write_nothing_can_be_published(store: BundleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with store.create(BundleName(SESSION, 0), ONE) as writer:
        writer.write("masks", 0, bytes(40))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            with pytest.raises(StoreError, match="broken"):
                writer.finish()
        for call in (writer.finish, writer.publish):
            with pytest.raises(StoreError, match="could not be written"):
                call()
    assert store.count() == 0


# Space


def test_limit_counts_every_program_and_what_is_being_written(folder: Path, store: BundleStore, put: Put) -> None:
    put(store)
    size = store.bytes()
    server = BundleStore(folder, program=bytes(32), role="server", limit_bytes=3 * size - 1)
    with server.create(BundleName(SESSION, 0), ONE):
        assert store.bytes() == 2 * size
        with pytest.raises(StoreFull, match=f"within {3 * size - 1:,} bytes.*{2 * size:,} bytes there"):
            server.create(BundleName(SESSION, 1), ONE)
    with server.create(BundleName(SESSION, 1), ONE):  # the abandoned one no longer counts
        pass
    server.limit_bytes = 2 * size
    put(server)
    with pytest.raises(StoreFull):
        put(server, 2)
    store.take(BundleName(SESSION, 0)).close()
    put(server, 2)


def test_a_full_disk_is_an_error_before_the_work(store: BundleStore, place: Path, monkeypatch: Any) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StoreFull, match=r"room.*Got: no space.*Do: free some space.*Where: "):
        store.create(BundleName(SESSION, 0), ONE)
    assert list(place.iterdir()) == []
    # Where the system cannot reserve, the free space is compared.
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    store.limit_bytes = 1 << 50
    with pytest.raises(StoreFull, match="no space left for"):
        store.create(BundleName(SESSION, 0), {"a": ("u1", (1 << 43,))})
    assert list(place.iterdir()) == []


def test_without_a_limit_a_bundle_takes_half_of_the_disk_at_most(
    store: BundleStore, place: Path, monkeypatch: Any
) -> None:
    """A stranger's file decides how large a bundle is: 500 bytes can ask for 130 GB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    store.create(BundleName(SESSION, 0), {"a": ("u1", (9_000_000,))}).abandon()  # no large one
    monkeypatch.setattr(store_module, "_LARGE_BYTES", 1_000_000)
    with pytest.raises(
        StoreFull, match=r"at most half of what is free.*Got: 5,00[\d,]+ bytes of 10,000,000\. Do: .*limit"
    ):
        store.create(BundleName(SESSION, 0), {"a": ("u1", (5_000_000,))})
    assert list(place.iterdir()) == []
    store.create(BundleName(SESSION, 0), {"a": ("u1", (4_900_000,))}).abandon()
    store.limit_bytes = 6_000_000
    store.create(BundleName(SESSION, 0), {"a": ("u1", (5_000_000,))}).abandon()


def test_room_for_several_is_looked_at_before_they_are_begun(
    store: BundleStore, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store)
    size = store.bytes()
    store.check_room(1000, ONE)
    store.limit_bytes = 4 * size
    store.check_room(3, ONE)
    with pytest.raises(
        StoreFull, match=rf"4 bundles.*Got: {4 * size:,} bytes, and room for {3 * size:,}\. Do: .*Where"
    ):
        store.check_room(4, ONE)
    store.limit_bytes = size - 1
    with pytest.raises(StoreFull, match="room for 0"):
        store.check_room(1, ONE)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * size))
    store.limit_bytes = None
    store.check_room(2, ONE)
    with pytest.raises(StoreFull, match=f"room for {2 * size:,}"):
        store.check_room(3, ONE)


def test_the_space_is_really_reserved(store: BundleStore, place: Path) -> None:
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("the system reserves nothing")
    with store.create(BundleName(SESSION, 0), {"a": ("u1", (1 << 22,))}):
        (path,) = place.iterdir()
        assert path.stat().st_blocks * 512 >= 1 << 22


# Age


def test_old_bundles_expire_at_opening_whatever_the_program(folder: Path, store: BundleStore, put: Put) -> None:
    server = BundleStore(folder, program=bytes(32), role="server")
    for one in (store, server):
        for number in range(3):
            put(one, number)
    for path in folder.rglob("*-1.bundle"):
        os.utime(path, (time.time() - 3.1 * 86_400,) * 2)
    for path in folder.rglob("*-2.bundle"):
        os.utime(path, (time.time() - 2.9 * 86_400,) * 2)
    assert store.expire() == 0
    BundleStore(folder, program=PROGRAM, role="client", keep_days=3)
    for one in (store, server):
        assert sorted(name.number for name in one.names()) == [0, 2]


def test_a_clock_that_is_set_back_or_forward(store: BundleStore, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    names = [put(store)]
    for number, shift in ((1, -(10**18)), (2, -now - 10**9), (3, 10**18)):
        monkeypatch.setattr(time, "time_ns", lambda shift=shift: now + shift)
        monkeypatch.setattr(time, "time", lambda shift=shift: (now + shift) / 1e9)
        names.append(put(store, number))
        if shift < 0:
            assert store.expire() == 0
        assert sorted(store.names()) == names
        with store.take(names.pop()) as bundle:
            assert bundle.created_seconds == pytest.approx((now + shift) / 1e9)
    assert store.expire() == 1  # thirty years in the future all bundles are old; none comes back later
    assert store.count() == 0


def test_discard_a_session(store: BundleStore, folder: Path, put: Put) -> None:
    server = BundleStore(folder, program=PROGRAM, role="server")
    other = bytes(16)
    for number in range(3):
        put(store, number)
        put(server, number)
    kept = put(store, 0, other)
    assert store.discard(SESSION) == 3
    assert store.discard(SESSION) == 0
    assert store.names() == [kept]
    assert server.count() == 3
    with pytest.raises(StoreError, match="16 bytes"):
        store.discard(b"short")


# Who may read it


def test_rights_are_the_owners_from_the_beginning(folder: Path, store: BundleStore, place: Path, put: Put) -> None:
    before = os.umask(0)
    try:
        fresh = BundleStore(folder / "deep" / "er", program=PROGRAM, role="server")
        with fresh.create(BundleName(SESSION, 0), ONE):
            paths = [path for path in (folder / "deep" / "er").rglob("*") if path.is_file()]
            assert len(paths) == 2  # the lock and the temporary file
            assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
        name = put(fresh)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "deep" / "er").stat().st_mode) == 0o700
    inside = folder / "deep" / "er" / f"{PROGRAM.hex()}-server"
    assert stat.S_IMODE(inside.stat().st_mode) == 0o700
    assert stat.S_IMODE((inside / name.file_name).stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o750, 0o704, 0o710, 0o777])
@pytest.mark.parametrize("which", ["folder", "place"])
def test_a_folder_that_others_can_enter_is_refused(
    store: BundleStore, folder: Path, place: Path, mode: int, which: str
) -> None:
    (folder if which == "folder" else place).chmod(mode)
    with pytest.raises(StoreError, match="chmod 700"):
        BundleStore(folder, program=PROGRAM, role="client")


def test_a_folder_of_another_user_is_refused(store: BundleStore, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(StoreError, match="belong to the user"):
        BundleStore(folder, program=PROGRAM, role="client")


def test_a_link_in_place_of_the_inner_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(mode=0o700)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (folder / f"{PROGRAM.hex()}-client").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        BundleStore(folder, program=PROGRAM, role="client")


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="must be usable"):
        BundleStore(tmp_path / "file", program=PROGRAM, role="client")


@pytest.mark.parametrize(
    "wrong",
    [
        {"program": bytes(31)},
        {"program": "00" * 32},
        {"role": "garbler"},
        {"limit_bytes": 0},
        {"limit_bytes": True},
        {"limit_bytes": 1.5},
        {"keep_days": 0},
        {"keep_days": float("nan")},
        {"keep_days": float("inf")},
        {"keep_days": "30"},
    ],
)
def test_wrong_arguments(folder: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(StoreError):
        BundleStore(folder, **({"program": PROGRAM, "role": "client"} | wrong))
    assert not folder.exists()


# A taken bundle


def test_arrays_are_read_only_and_outlive_the_bundle(store: BundleStore, put: Put) -> None:
    bundle = store.take(put(store))
    mapped, loaded = bundle.array("masks"), bundle.array("masks", load=True)
    for values in (mapped, loaded):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1
    bundle.close()
    bundle.close()
    assert np.array_equal(mapped, loaded)
    with pytest.raises(StoreError, match="closed"):
        bundle.array("masks")


def test_the_space_is_free_after_close(store: BundleStore, tmp_path: Path) -> None:
    def open_files() -> int:
        """Of the store alone: what other tests left open may close at any time."""
        paths = []
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                paths.append(str(entry.readlink()))
        return sum(path.startswith(str(store.folder)) for path in paths)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    with store.create(BundleName(SESSION, 0), {"a": ("u1", (1 << 20,))}) as writer:
        writer.write("a", 0, bytes(1 << 20))
        writer.finish()
        writer.publish()
    gc.collect()
    before = open_files()
    with store.take(BundleName(SESSION, 0)) as bundle:
        bundle.array("a").sum()
        bundle.array("a", load=True)
        assert open_files() > before
    assert open_files() == before


def test_no_such_section(store: BundleStore, put: Put) -> None:
    with store.take(put(store)) as bundle, pytest.raises(StoreError, match="choose among masks"):
        bundle.array("labels")


def test_a_bundle_cannot_be_copied(store: BundleStore, put: Put) -> None:
    with store.take(put(store)) as bundle:
        for copies in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(StoreError, match="copied or pickled"):
                copies(bundle)
        assert "masks" not in repr(bundle)


def test_a_forked_child_can_neither_use_a_bundle_nor_remove_a_writers_file(folder: Path) -> None:
    script = """
import os, sys
from pathlib import Path
import numpy as np
from deepreduce.private.store import *
store = BundleStore(Path(sys.argv[1]), program=bytes(32), role="server")
def write(number):
    writer = store.create(BundleName(bytes(16), number), {"a": (np.uint8, (1,))})
    writer.write("a", 0, b"x")
    return writer
with write(0) as writer:
    writer.finish(); writer.publish()
writer, bundle = write(1), store.take(BundleName(bytes(16), 0))
refused = 0
child = os.fork()
if child == 0:
    for call in (lambda: bundle.array("a"), writer.finish, writer.publish):
        try:
            call()
        except StoreError as error:
            refused += "forked" in str(error)
    writer.abandon()
    os._exit(refused)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
writer.finish(); writer.publish(); bundle.close()
print(store.count())
"""
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "1"]


def test_a_lock_that_the_file_system_refuses(store: BundleStore, put: Put, monkeypatch: Any) -> None:
    import fcntl

    name = put(store)

    def refuses(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuses)
        for call in (lambda: store.take(name), lambda: store.create(BundleName(SESSION, 1), ONE)):
            with pytest.raises(StoreError, match="local file system"):
                call()
    store.take(name).close()  # refused before anything happened to it


def test_a_lock_that_another_process_never_gives_back(store: BundleStore, folder: Path, monkeypatch: Any) -> None:
    import fcntl

    from deepreduce.private.store import _system

    monkeypatch.setattr(_system, "_LOCK_SECONDS", 0.02)
    with (folder / ".lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="stopped process"):
            store.create(BundleName(SESSION, 0), ONE)


def test_damaged_bundles_are_passed_over_and_told(store: BundleStore, place: Path, put: Put) -> None:
    names = [put(store, number) for number in range(4)]
    for name in names[:2]:
        with (place / name.file_name).open("r+b") as file:
            file.truncate(50)
        os.utime(place / name.file_name, (names.index(name),) * 2)  # still the oldest
    told: list[BundleDamaged] = []
    (bundle,) = store.take_next(damaged=told.append)
    bundle.close()
    assert bundle.name == names[2]
    assert [name.file_name in str(error) for name, error in zip(names, told, strict=False)] == [True, True]
    (place / names[3].file_name).write_bytes(b"")
    with pytest.raises(BundleDamaged, match="removed"):
        store.take_next(2)
    assert store.take_next() == []
    assert isinstance(bundle, Bundle)


FEW_FILES = """
import resource, sys
from pathlib import Path
import numpy as np
from deepreduce.private.store import BundleName, BundleStore, StoreError, room_for_files
soft, hard = int(sys.argv[2]), int(sys.argv[3])
store = BundleStore(Path(sys.argv[1]), program=bytes(32), role="client")
for number in range(60):
    with store.create(BundleName(bytes(16), number), {"masks": (np.uint8, (1,))}) as writer:
        writer.write("masks", 0, np.zeros(1, np.uint8))
        writer.finish()
        writer.publish()
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    print(len(store.take_next(60)), store.count())
except StoreError as error:
    print(error, store.count(), len(store.take_next(5)))
"""


@pytest.mark.parametrize(("soft", "hard", "said"), [(64, 4096, "60 0"), (64, 64, "60 bundles at once need as many")])
def test_where_few_files_may_be_open_no_bundle_is_lost(tmp_path: Path, soft: int, hard: int, said: str) -> None:
    """The soft limit is raised; where the hard one is too low, that is said before any bundle is consumed."""
    command = [sys.executable, "-c", FEW_FILES, str(tmp_path / "store"), str(soft), str(hard)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert said in done.stdout
    assert soft < hard or ("ulimit -n" in done.stdout and done.stdout.split()[-2:] == ["60", "5"])
