"""What reaches the disk before what, and who wins when many want the same bundle."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepreduce.private.store import BundleGone, BundleName, BundleStore, StoreError

SESSION = bytes(range(16))
PROGRAM = bytes(range(100, 132))
Put = Callable[..., BundleName]
READS = {"read", "pread", "preadv", "mmap"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every call that matters, in order, with the path that its descriptor or argument stands for."""
    recorded: list[tuple[str, str]] = []

    def path_of(argument: object) -> str:
        if isinstance(argument, int):
            argument = Path(f"/proc/self/fd/{argument}").readlink()
        return Path(str(argument)).name.removesuffix(" (deleted)")

    def record(module: Any, name: str) -> None:
        real = getattr(module, name)

        def recording(*arguments: Any, **options: Any) -> Any:
            where = path_of(arguments[0])
            result = real(*arguments, **options)
            recorded.append((name, where))
            return result

        monkeypatch.setattr(module, name, recording)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)
    for name in ("open", "pwrite", "fsync", "rename", "unlink", "read", "pread", "preadv", "posix_fallocate"):
        record(os, name)
    for name in ("flock",):
        record(fcntl, name)
    record(mmap, "mmap")
    return recorded


def kinds(calls: list[tuple[str, str]]) -> list[str]:
    return [kind for kind, _ in calls]


def test_a_taken_bundle_is_durably_gone_before_the_first_read(
    store: BundleStore, place: Path, put: Put, calls: list[tuple[str, str]]
) -> None:
    name = put(store)
    calls.clear()
    with store.take(name) as bundle:
        bundle.array("masks")
        bundle.array("masks", load=True)
    file = name.file_name
    assert calls == [
        ("open", place.name),
        ("open", file),
        ("flock", file),
        ("unlink", file),
        ("fsync", place.name),
        ("pread", file),
        ("pread", file),
        ("mmap", file),
        ("preadv", file),
    ]


def test_several_are_taken_with_one_synchronisation(
    store: BundleStore, place: Path, put: Put, calls: list[tuple[str, str]]
) -> None:
    for number in range(4):
        put(store, number)
    calls.clear()
    for bundle in store.take_next(3):
        bundle.close()
    first_read = next(index for index, (kind, _) in enumerate(calls) if kind in READS)
    assert kinds(calls[:first_read]) == ["open", *["open", "flock", "unlink"] * 3, "fsync"]
    assert calls[first_read - 1] == ("fsync", place.name)
    assert "unlink" not in kinds(calls[first_read:])


def test_a_bundle_is_on_the_disk_before_it_has_a_name(
    store: BundleStore, place: Path, put: Put, calls: list[tuple[str, str]]
) -> None:
    name = put(store)
    calls = [call for call in calls if call != ("pwrite", ".lock")]  # a bound of what lies there, worth no waiting
    temporary = next(where for kind, where in calls if kind == "pwrite")
    assert temporary.endswith(".partial")
    named = calls.index(("rename", temporary))
    assert calls[:named].index(("fsync", temporary)) > max(
        index for index, (kind, _) in enumerate(calls) if kind == "pwrite"
    )
    assert kinds(calls).index("posix_fallocate") < kinds(calls).index("pwrite")
    assert ("fsync", place.name) in calls[named:]
    assert store.names() == [name]


def test_discarding_is_durable(store: BundleStore, place: Path, put: Put, calls: list[tuple[str, str]]) -> None:
    put(store)
    calls.clear()
    store.discard(SESSION)
    assert kinds(calls)[-2:] == ["unlink", "fsync"]
    assert not READS & set(kinds(calls))


@pytest.mark.parametrize("failing", ["unlink", "fsync"])
@pytest.mark.parametrize("several", [False, True])
def test_a_disk_that_fails_serves_nothing(
    store: BundleStore, put: Put, monkeypatch: pytest.MonkeyPatch, failing: str, several: bool
) -> None:
    name = put(store)

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    def reads(*_: object) -> None:
        raise AssertionError("read before it was durable")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fails)
        patch.setattr(os, "pread", reads)
        with pytest.raises(StoreError, match=r"the disk is broken.*Do: "):
            store.take_next() if several else store.take(name)
    # What could not be removed is untouched; what was removed is gone.
    assert store.count() == (1 if failing == "unlink" else 0)


def test_a_bundle_with_a_second_name_is_refused(store: BundleStore, place: Path, put: Put) -> None:
    name = put(store)
    os.link(place / name.file_name, place / "copy")
    with pytest.raises(StoreError, match="hard link"):
        store.take(name)
    with pytest.raises(BundleGone):
        store.take(name)


def test_removed_between_open_and_lock(store: BundleStore, place: Path, put: Put, monkeypatch: Any) -> None:
    """Another process was faster in the only gap there is, and a new bundle already has the name."""
    name = put(store)
    real = fcntl.flock
    raced = []

    def late(descriptor: int, operation: int) -> None:
        if not raced:
            raced.append(True)
            store.take(name).close()
            put(store)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(BundleGone):
        store.take(name)
    assert store.names() == [name]


def test_while_another_one_takes_it(store: BundleStore, place: Path, put: Put) -> None:
    names = [put(store, number) for number in range(2)]
    with (place / store.names()[0].file_name).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BundleGone):
            store.take(store.names()[0])
        (bundle,) = store.take_next(2)  # passes over it
        bundle.close()
        assert store.expire() == store.discard(bytes(16)) == 0
    # The other one died before it removed the name, so the bundle was never read.
    store.take(store.names()[0]).close()
    assert len(names) == 2


def test_threads_race_for_every_bundle(store: BundleStore, put: Put) -> None:
    names = [put(store, number) for number in range(50)]
    start = threading.Barrier(8)
    lost = Counter[int]()

    def take(which: int) -> list[int]:
        mine = []
        start.wait()
        if which % 2:
            for name in names:  # all of these want the same bundle at the same time
                try:
                    with store.take(name) as bundle:
                        mine.append(int(bundle.array("masks")[0]))
                except BundleGone:
                    lost[which] += 1
        else:
            while bundles := store.take_next(1 + which // 2):
                for bundle in bundles:
                    mine.append(int(bundle.array("masks", load=True)[0]))
                    bundle.close()
        return mine

    with ThreadPoolExecutor(8) as pool:
        taken = [number for mine in pool.map(take, range(8)) for number in mine]
    assert sorted(taken) == list(range(50))
    assert sum(lost.values()) >= 150  # four wanted each of the fifty; one of all eight got it
    assert store.count() == 0


PROCESS = """
import sys, time
from pathlib import Path
from deepreduce.private.store import BundleGone, BundleStore
folder, ready, kind = sys.argv[1:]
store = BundleStore(Path(folder), program=bytes(range(100, 132)), role="client")
names = store.names()
Path(ready).touch()
while not (Path(ready).parent / "go").exists():
    time.sleep(0.001)
if kind == "all":
    for name in names:
        try:
            with store.take(name) as bundle:
                print(int(bundle.array("masks")[0]))
        except BundleGone:
            pass
else:
    while bundles := store.take_next(int(kind)):
        for bundle in bundles:
            print(int(bundle.array("masks")[0]))
            bundle.close()
"""


def test_processes_race_for_every_bundle(store: BundleStore, folder: Path, tmp_path: Path, put: Put) -> None:
    for number in range(50):
        put(store, number)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, folder, tmp_path / f"ready{which}", kind], stdout=subprocess.PIPE, text=True
        )
        for which, kind in enumerate(("all", "all", "1", "3"))
    ]
    deadline = time.monotonic() + 600
    while len(list(tmp_path.glob("ready*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    (tmp_path / "go").touch()
    taken = [int(line) for process in processes for line in process.communicate(timeout=600)[0].split()]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(taken) == list(range(50))


def test_one_prepares_and_one_infers(folder: Path) -> None:
    """Opening, which sweeps and expires, and taking disturb no writer, and the other way round."""
    failures: list[BaseException] = []
    done = threading.Event()
    taken: list[int] = []

    def prepare() -> None:
        try:
            for number in range(60):
                store = BundleStore(folder, program=PROGRAM, role="client")
                with store.create(BundleName(SESSION, number), {"a": (np.int64, (3,))}) as writer:
                    writer.write("a", 0, np.full(3, number))
                    writer.finish()
                    writer.publish()
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    def infer() -> None:
        try:
            while True:
                last = done.is_set()
                bundles = BundleStore(folder, program=PROGRAM, role="client").take_next(2)
                for bundle in bundles:
                    taken.append(int(bundle.array("a").sum()) // 3)
                    bundle.close()
                if last and not bundles:
                    return
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=target) for target in (prepare, infer, infer)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert failures == []
    assert sorted(taken) == list(range(60))


def test_a_published_bundle_can_be_taken_at_once(store: BundleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A taker that comes right after the rename meets no lock of the writer's."""
    name = BundleName(SESSION, 0)
    real = os.rename
    taken = []

    def rename(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        with store.take(name) as bundle:
            taken.append(bundle.array("a").tolist())

    monkeypatch.setattr(os, "rename", rename)
    with store.create(name, {"a": ("u1", (1,))}) as writer:
        writer.write("a", 0, b"\7")
        writer.finish()
        writer.publish()
    assert taken == [[7]]
