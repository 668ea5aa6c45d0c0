"""The bundle store under processes that die at every step, hostile files, and files that are none."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepreduce.private.store import BundleDamaged, BundleGone, BundleName, BundleStore, StoreError

PROGRAM = bytes(range(32))
SESSION = bytes(range(16))
READS = {"pread", "preadv", "mmap"}


def killed_everywhere(folder: Path, work: str) -> list[dict[str, Any]]:
    victim = Path(__file__).with_name("store_victim.py")
    command = [sys.executable, str(victim), str(folder), work]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    # The work ended by itself once for each way of dying, and nothing ended in another way than the two.
    ends = [one["exit"] for one in results if one["exit"] != -signal.SIGKILL]
    assert ends == [0] * len({one["when"] for one in results})
    for one in results:
        assert one["damaged"] == [], one
        assert one["after"] == 0, one
        assert all(name.endswith(".bundle") for name in one["files"]), one  # nothing temporary is left
    return results


def reported(one: dict[str, Any], what: str) -> list[Any]:
    return [value for kind, value in one["reports"] if kind == what]


def died_at(results: list[dict[str, Any]]) -> set[str]:
    return {name for one in results for name in reported(one, "died")}


def test_killed_while_writing(tmp_path: Path) -> None:
    results = killed_everywhere(tmp_path, "write")
    assert {"pwrite", "fsync", "rename", "flock", "ftruncate", "open"} <= died_at(results)
    for one in results:
        assert one["whole"] in ([0, 1, 2], [0, 1, 2, 5]), one
        if reported(one, "published"):
            assert 5 in one["whole"], one
        if not reported(one, "finished"):
            assert 5 not in one["whole"], one
    assert sum(5 in one["whole"] for one in results) > 3


@pytest.mark.parametrize("work", ["take", "take_next"])
def test_killed_while_taking(tmp_path: Path, work: str) -> None:
    results = killed_everywhere(tmp_path, work)
    assert {"unlink", "fsync", "flock", "pread", "preadv"} <= died_at(results)
    for one in results:
        taken = reported(one, "taken")
        # Untouched and takeable, or gone for ever; never both, and nothing beyond what the child asked for.
        assert not set(taken) & set(one["whole"]), one
        assert one["whole"] in ([0, 1, 2], [1, 2], [2]), one
        # Wherever something of a bundle was about to be read, it was gone before.
        if set(reported(one, "died")) & READS:
            reading = len(reported(one, "read"))  # bundles before this one were read to their end
            assert reading not in one["whole"], one
    assert {len(one["whole"]) for one in results} == {1, 2, 3}


def test_killed_while_discarding(tmp_path: Path) -> None:
    for one in killed_everywhere(tmp_path, "discard"):
        assert not (reported(one, "discarded") and one["whole"]), one


def test_garbage_of_a_dead_writer_goes_and_a_living_writers_file_stays(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from deepreduce.private.store import BundleName, BundleStore
store = BundleStore(Path(sys.argv[1]), program=bytes(32), role="server")
writer = store.create(BundleName(bytes(16), 1), {"a": ("u1", (9,))})
writer.write("a", 0, bytes(9))
writer.finish()
os.kill(os.getpid(), signal.SIGKILL)
"""
    store = BundleStore(tmp_path / "bundles", program=bytes(32), role="client")
    with store.create(BundleName(SESSION, 0), {"a": ("u1", (1,))}) as writer:
        writer.write("a", 0, b"x")
        for _ in range(2):
            done = subprocess.run([sys.executable, "-c", script, tmp_path / "bundles"], check=False)
            assert done.returncode == -signal.SIGKILL
            assert len(list(tmp_path.rglob("*.partial"))) == 2  # the second run removed what the first one left
        BundleStore(tmp_path / "bundles", program=PROGRAM, role="client")  # sweeps for all programs and roles
        assert len(list(tmp_path.rglob("*.partial"))) == 1
        writer.finish()
        BundleStore(tmp_path / "bundles", program=PROGRAM, role="client")
        writer.publish()
    assert store.count() == 1


# Hostile files


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "bundles", program=PROGRAM, role="client")


@pytest.fixture
def path(store: BundleStore) -> Path:
    """A whole bundle of two sections: header to 128, table to 384, JSON to 391, sections at 448 and 512, end at 518."""
    with store.create(NAME, {"a": (np.uint64, (2,)), "b": (np.uint8, (2, 3))}, {"a": 1}) as writer:
        writer.write("a", 0, np.array([1, 2], np.uint64))
        writer.write("b", 0, b"sixtin")
        writer.finish()
        writer.publish()
    return store.folder / f"{PROGRAM.hex()}-client" / NAME.file_name


NAME = BundleName(SESSION, 7)


def forge(path: Path, change: Callable[[bytearray], object]) -> None:
    """Change the file and mend its checksum, as one does who knows the format."""
    content = bytearray(path.read_bytes())
    change(content)
    count, meta = struct.unpack_from("<II", content, 72)
    content[88:120] = bytes(32)
    content[88:120] = hashlib.sha256(content[: 128 + 128 * min(count, 65536) + min(meta, 2**20)]).digest()
    path.write_bytes(content)


def refused(store: BundleStore, path: Path, *, match: str = "what its writer left") -> None:
    with pytest.raises(BundleDamaged, match=match) as caught:
        store.take(NAME)
    assert all(part in str(caught.value) for part in ("Got: ", "Do: ", "this one was removed", path.name))
    assert not path.exists()
    with pytest.raises(BundleGone):
        store.take(NAME)


def test_a_forged_file_that_changes_nothing_is_taken(store: BundleStore, path: Path) -> None:
    forge(path, lambda content: None)
    with store.take(NAME) as bundle:
        assert bundle.array("a", load=True).tolist() == [1, 2]


@pytest.mark.parametrize(
    "length", [0, 1, 4, 87, 127, 128, 129, 255, 383, 384, 390, 391, 447, 448, 463, 512, 517, 519, 10_000]
)
def test_truncated_or_longer(store: BundleStore, path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(length)
    refused(store, path)


def put(offset: int, kind: str, *values: Any) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(kind, content, offset, *values)


HOSTILE: dict[str, Callable[[bytearray], object]] = {
    "magic": put(0, "<4s", b"\x7fELF"),
    "version 0": put(4, "<H", 0),
    "version 2": put(4, "<H", 2),
    "the other role": put(6, "<H", 1),
    "no role": put(6, "<H", 2),
    "another program": put(8, "<B", 255),
    "another session": put(40, "<B", 255),
    "another number": put(56, "<Q", 8),
    "a huge number": put(56, "<Q", 2**64 - 1),
    "no sections": put(72, "<I", 0),
    "too many sections": put(72, "<I", 1025),
    "all the sections there are": put(72, "<I", 2**32 - 1),
    "one section less": put(72, "<I", 1),
    "one section more": put(72, "<I", 3),
    "long meta data": put(76, "<I", 2**32 - 1),
    "longer meta data": put(76, "<I", 8),
    "a length": put(80, "<Q", 519),
    "a huge length": put(80, "<Q", 2**64 - 1),
    "padding of the header": put(127, "<B", 1),
    "an empty name": put(128, "<48s", b""),
    "a name with a zero inside": put(128, "<48s", b"a\0b"),
    "a name outside of ASCII": put(128, "<48s", b"\xff\xfe"),
    "a path with a line end": put(128, "<48s", b"a\n"),
    "two of one name": put(256, "<48s", b"a"),
    "an object dtype": put(176, "<4s", b"|O"),
    "a big dtype": put(176, "<4s", b"<U99"),
    "the other byte order": put(176, "<4s", b">u8"),
    "a dtype of other size": put(176, "<4s", b"<u4"),
    "no dtype": put(176, "<4s", b""),
    "seven dimensions": put(184, "<I", 7),
    "seven dimensions of nothing": lambda content: (
        put(312, "<I", 7)(content), put(328, "<Q", 0)(content), put(80, "<Q", 512)(content), content.__delitem__(slice(512, None)),
    ),
    "many dimensions": put(184, "<I", 2**32 - 1),
    "padding of an entry": put(188, "<I", 1),
    "before the file": put(192, "<Q", 2**64 - 64),
    "in the header": put(192, "<Q", 0),
    "behind the file": put(192, "<Q", 2**40),
    "not aligned": put(192, "<Q", 449),
    "on another section": put(320, "<Q", 448),
    "in the order of no writer": lambda content: (put(192, "<Q", 512)(content), put(320, "<Q", 448)(content)),
    "longer than its shape": put(200, "<Q", 24),
    "shorter than its shape": put(200, "<Q", 8),
    "a shape of 2^63": put(208, "<Q", 2**63),
    "a shape and length that wrap": lambda content: (put(200, "<Q", 0)(content), put(208, "<Q", 2**61)(content)),
    "huge and empty": lambda content: (
        put(184, "<I", 3)(content), put(200, "<Q", 0)(content), put(208, "<QQQ", 2**62, 0, 2**62)(content),
    ),
    "a dimension that is not counted": put(216, "<Q", 1),
    "a longer section than the file": lambda content: (put(200, "<Q", 2**43)(content), put(208, "<Q", 2**40)(content)),
    "a last section longer than the file": lambda content: (put(328, "<Q", 600)(content), put(336, "<Q", 200)(content)),
    "bytes behind the last section": lambda content: (content.append(0), put(80, "<Q", 519)(content)),
    "a last section that ends early": lambda content: (put(328, "<Q", 3)(content), put(336, "<Q", 1)(content)),
    "meta data: a list": put(384, "<7s", b"[1,2,3]"),
    "meta data: no JSON": put(384, "<7s", b"{'a':1}"),
    "meta data: NaN": put(384, "<7s", b'{"":NaN'),
    "meta data: not UTF-8": put(384, "<7s", b'{"\xff":1}'),
    "meta data: too short": put(384, "<7s", b'{"a":1 '),
}  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_header(store: BundleStore, path: Path, change: Callable[[bytearray], object]) -> None:
    before = path.read_bytes()
    forge(path, change)
    assert path.read_bytes() != before
    refused(store, path, match=r"Got: (?!the checksum)")  # by a check of its own


def test_meta_data_that_nest_deeply_or_repeat_a_key(store: BundleStore, path: Path) -> None:
    template = path.read_bytes()
    for meta in (b"[" * 500_000, b'{"a":1,"a":2}', b'{"a":' * 150_000):
        sections = -(-(384 + len(meta)) // 64) * 64
        content = bytearray(template[:384] + meta).ljust(sections + 70, b"\0")
        struct.pack_into("<IQ", content, 76, len(meta), len(content))
        struct.pack_into("<Q", content, 192, sections)
        struct.pack_into("<Q", content, 320, sections + 64)
        path.write_bytes(content)
        forge(path, lambda content: None)
        refused(store, path)


def test_an_unmended_checksum(store: BundleStore, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[64] ^= 0xFF  # of the time of creation, which may be any byte: nothing but the checksum covers it
    path.write_bytes(content)
    refused(store, path, match="checksum of the header")


@pytest.mark.parametrize("at", [448, 463, 512, 517])
def test_a_damaged_section_is_found_when_it_is_loaded(store: BundleStore, path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff")
    section = "a" if at < 512 else "b"
    with store.take(NAME) as bundle:
        bundle.array("b" if section == "a" else "a", load=True)
        bundle.array(section)
        with pytest.raises(BundleDamaged, match=f"checksum of section '{section}'"):
            bundle.array(section, load=True)
    assert not path.exists()


def test_a_file_that_becomes_shorter_while_it_is_read(store: BundleStore, path: Path) -> None:
    with path.open("r+b") as other, store.take(NAME) as bundle:
        other.truncate(450)
        with pytest.raises(BundleDamaged, match="ends after 2 bytes"):
            bundle.array("a", load=True)


def test_a_renamed_copy_is_damaged(store: BundleStore, path: Path) -> None:
    copy = path.with_name(BundleName(SESSION, 8).file_name)
    copy.write_bytes(path.read_bytes())
    store.take(NAME).close()
    with pytest.raises(BundleDamaged, match="the name"):
        store.take(BundleName(SESSION, 8))


def test_a_bundle_of_the_other_party(store: BundleStore, path: Path) -> None:
    server = BundleStore(store.folder, program=PROGRAM, role="server")
    other = store.folder / f"{PROGRAM.hex()}-server" / NAME.file_name
    path.rename(other)
    refused(server, other, match="the role client, where server belongs")


# Things that are no bundles


def link(path: Path) -> None:
    path.with_name("secret").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(path.with_name("secret"))


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("replaced", [link, dangling, pipe, directory])
def test_no_regular_file(store: BundleStore, path: Path, replaced: Callable[[Path], None]) -> None:
    replaced(path)
    assert store.count() == store.expire() == store.discard(SESSION) == 0
    assert store.take_next() == []
    with pytest.raises(BundleDamaged, match="regular file"):
        store.take(NAME)
    with pytest.raises(StoreError, match="must be new"):
        store.create(NAME, {"a": ("u1", (1,))})
    assert os.path.lexists(path)  # left for the user to look at
    if replaced is link:
        assert path.with_name("secret").exists()


@pytest.mark.parametrize("replaced", [link, pipe, directory])
def test_a_lock_that_is_no_file_never_hangs(store: BundleStore, path: Path, replaced: Callable[[Path], None]) -> None:
    replaced(store.folder / ".lock")
    if replaced is pipe:
        BundleStore(store.folder, program=PROGRAM, role="client")  # a pipe can be locked as well as a file
    else:
        with pytest.raises(StoreError):
            BundleStore(store.folder, program=PROGRAM, role="client")


def test_files_that_are_not_ours_are_ignored_and_kept(store: BundleStore, path: Path) -> None:
    others = [
        "notes.txt", f"{SESSION.hex()}-7.bundle.bak", f"{SESSION.hex()}-07.bundle", f"x{SESSION.hex()}-7.bundle",
        f".{SESSION.hex()}-7.partial", f".{SESSION.hex()}-7.0123456789abcdeg.partial", ".partial", "\udcff.bundle",
    ]  # fmt: skip
    for other in others:
        path.with_name(other).write_bytes(b"mine")
        os.utime(path.with_name(other), (0, 0))
    (store.folder / "photos").mkdir()
    (store.folder / "photos" / path.name).write_bytes(b"mine")
    os.utime(store.folder / "photos" / path.name, (0, 0))
    size = path.stat().st_size
    again = BundleStore(store.folder, program=PROGRAM, role="client")
    assert again.names() == [NAME]
    assert again.bytes() == size
    again.take_next(5)[0].close()
    assert again.discard(SESSION) == 0
    assert sorted(one.name for one in path.parent.iterdir()) == sorted(others)
    assert (store.folder / "photos" / path.name).exists()


def test_a_folder_that_vanishes(store: BundleStore, path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))
    for call in (lambda: store.take(NAME), store.take_next, store.count, lambda: store.discard(SESSION)):
        with pytest.raises(StoreError, match="Where: "):
            call()
