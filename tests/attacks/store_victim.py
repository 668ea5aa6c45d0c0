"""Not a test: a process that is killed at the n-th system call of a piece of work, for every n, and what is left.

    python store_victim.py FOLDER WORK

For every n, and before, in the middle of, and after the call: fill a fresh store, fork, kill the child there, reopen.
Prints a JSON list of what the child had reported, where it died, and what the next process finds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deepreduce.private.store import BundleDamaged, BundleName, BundleStore

PROGRAM, SESSION, OTHER = bytes(32), bytes(range(16)), bytes(16)
CALLS = (
    "open", "close", "pwrite", "pread", "preadv", "fsync", "unlink", "rename", "ftruncate", "posix_fallocate",
    "stat", "fstat", "mkdir", "scandir",
)  # fmt: skip
GARBAGE = f".{SESSION.hex()}-9.0123456789abcdef.partial"
Report = Callable[..., None]


def opened(folder: Path) -> BundleStore:
    return BundleStore(folder, program=PROGRAM, role="client")


def contents(number: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).integers(0, 2**63, 300, dtype=np.uint64)


def write(store: BundleStore, number: int, report: Report | None = None, session: bytes = SESSION) -> None:
    say = report or (lambda *_: None)
    with store.create(
        BundleName(session, number), {"a": (np.uint64, (300,)), "b": ("u1", (7,))}, {"n": number}
    ) as writer:
        raw = contents(number).tobytes()
        writer.write("b", 0, b"0123456")
        writer.write("a", 1000, raw[1000:])
        writer.write("a", 0, raw[:1000])
        writer.finish()
        say("finished", number)
        writer.publish()
        say("published", number)


def work_write(folder: Path, report: Report) -> None:
    write(opened(folder), 5, report)


def work_take(folder: Path, report: Report) -> None:
    store = opened(folder)
    for number in (0, 1):
        with store.take(BundleName(SESSION, number)) as bundle:
            report("taken", number)
            assert np.array_equal(bundle.array("a"), contents(number))
            assert np.array_equal(bundle.array("a", load=True), contents(number))
            report("read", number)


def work_take_next(folder: Path, report: Report) -> None:
    for bundle in opened(folder).take_next(2):
        report("taken", bundle.name.number)
        assert np.array_equal(bundle.array("a", load=True), contents(bundle.name.number))
        report("read", bundle.name.number)
        bundle.close()


def work_discard(folder: Path, report: Report) -> None:
    opened(folder).discard(SESSION)
    report("discarded", 0)


def kill_at(count: int, when: str, report: Report) -> None:
    """Replace the calls by ones that end this process, by the signal that nobody can catch, at the count-th."""
    made = [0]

    def wrap(module: Any, name: str) -> None:
        real = getattr(module, name, None)
        if real is None:
            return

        def deadly(*arguments: Any, **options: Any) -> Any:
            here = made[0] == count
            made[0] += 1
            if here:
                report("died", name)
                if when == "after":
                    real(*arguments, **options)
                elif when == "middle" and name == "pwrite":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2], arguments[2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(module, name, deadly)

    for name in CALLS:
        wrap(os, name)
    wrap(fcntl, "flock")
    wrap(mmap, "mmap")


def left(folder: Path) -> dict[str, Any]:
    """What the next process finds: the bundles that can be taken, whole, and every file."""
    store = opened(folder)
    place = next(path for path in folder.iterdir() if path.is_dir())
    files = sorted(path.name for path in place.iterdir())
    whole, damaged = [], []
    for name in store.names():
        try:
            with store.take(name) as bundle:
                same = np.array_equal(bundle.array("a", load=True), contents(name.number))
                same = (
                    same and bundle.array("b", load=True).tobytes() == b"0123456" and bundle.meta == {"n": name.number}
                )
                (whole if same else damaged).append(name.number)
        except BundleDamaged:
            damaged.append(name.number)
    return {"files": files, "whole": sorted(whole), "damaged": damaged, "after": store.count()}


def victim(folder: Path, work: Callable[[Path, Report], None], count: int, when: str) -> dict[str, Any]:
    store = opened(folder)
    for number in range(3):
        write(store, number)
        os.utime(next(folder.rglob(f"*-{number}.bundle")), (2e9 + number,) * 2)
    write(store, 9)
    next(folder.rglob("*-9.bundle")).rename(store.folder / f"{PROGRAM.hex()}-client" / GARBAGE)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            send = os.write
            kill_at(count, when, lambda *what: send(writing, (json.dumps(what) + "\n").encode()))
            work(folder, lambda *what: send(writing, (json.dumps(what) + "\n").encode()))
            os._exit(0)
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        reports = [json.loads(line) for line in pipe]
    _, status = os.waitpid(child, 0)
    return {"n": count, "when": when, "exit": os.waitstatus_to_exitcode(status), "reports": reports, **left(folder)}


def main() -> None:
    folder, work = Path(sys.argv[1]), globals()[f"work_{sys.argv[2]}"]
    results = []
    for when in ("before", "middle", "after") if work is work_write else ("before", "after"):
        count = 0
        while True:
            results.append(victim(folder / f"{when}{count}", work, count, when))
            if results[-1]["exit"] != -signal.SIGKILL:
                break
            count += 1
    print(json.dumps(results))


if __name__ == "__main__":
    main()
