"""The bytes of a bundle's file: a golden file, round trips, and what the format does not have."""

from __future__ import annotations

import hashlib
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.private.store import MAX_NUMBER, BundleName, BundleStore, StoreError
from deepreduce.private.store.format import DTYPES, decode

SESSION = bytes(range(16))
PROGRAM = bytes(range(100, 132))

GOLDEN = (
    b"DRBU" + bytes.fromhex("0100" "0100") + PROGRAM + SESSION
    + bytes.fromhex("4e61bc0000000000")  # number 12345678
    + bytes.fromhex("00407a10f35a0000")  # 100,000,000 seconds after 1970
    + bytes.fromhex("02000000" "07000000" "0602000000000000")  # two sections, 7 bytes of JSON, 518 bytes of file
    + bytes.fromhex("386b605f760507691ece1543ea919c7a4a23a981617cdfc48356faecbeb787de") + bytes(8)
    + b"masks".ljust(48, b"\0") + b"<u8\0" + bytes.fromhex("b1dab506" "01000000" "00000000")
    + struct.pack("<8Q", 448, 16, 2, 0, 0, 0, 0, 0)
    + b"tables/0".ljust(48, b"\0") + b"|u1\0" + bytes.fromhex("be1f104b" "02000000" "00000000")
    + struct.pack("<8Q", 512, 6, 2, 3, 0, 0, 0, 0)
    + b'{"a":1}' + bytes(57)
    + struct.pack("<QQ", 1, 2**64 - 1) + bytes(48)
    + b"sixtin"
)  # fmt: skip


def write(store: BundleStore, name: BundleName, arrays: dict[str, np.ndarray[Any, Any]], meta: dict[str, Any]) -> None:
    with store.create(name, {key: (one.dtype, one.shape) for key, one in arrays.items()}, meta) as writer:
        for key, one in arrays.items():
            writer.write(key, 0, one)
        writer.finish()
        writer.publish()


def test_golden_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 10**17)
    name = BundleName(SESSION, 12_345_678)
    masks = np.array([1, 2**64 - 1], dtype=np.uint64)
    tables = np.frombuffer(b"sixtin", np.uint8).reshape(2, 3)
    store = BundleStore(tmp_path / "bundles", program=PROGRAM, role="server")
    write(store, name, {"masks": masks, "tables/0": tables}, {"a": 1})
    path = tmp_path / "bundles" / f"{PROGRAM.hex()}-server" / "000102030405060708090a0b0c0d0e0f-12345678.bundle"
    content = path.read_bytes()
    assert content == GOLDEN
    blank = GOLDEN[:88] + bytes(32) + GOLDEN[120:391]
    assert hashlib.sha256(blank).digest() == GOLDEN[88:120]
    with store.take(name) as bundle:
        assert bundle.created_seconds == 1e8
        for load in (False, True):
            assert np.array_equal(bundle.array("masks", load=load), masks)
            assert np.array_equal(bundle.array("tables/0", load=load), tables)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=6)))
    seed = draw(st.integers(0, 2**32 - 1))
    raw = np.random.default_rng(seed).bytes(dtype.itemsize * int(np.prod(shape, dtype=int)))
    return np.frombuffer(raw, dtype).reshape(shape)


names = st.from_regex(r"[A-Za-z0-9_./-]{1,48}", fullmatch=True)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    sections=st.dictionaries(names, arrays(), min_size=1, max_size=6),
    meta=st.dictionaries(st.text(), values, max_size=4),
    number=st.integers(0, MAX_NUMBER),
)
def test_whatever_was_written_comes_back(
    sections: dict[str, np.ndarray[Any, Any]], meta: dict[str, Any], number: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = BundleStore(Path(folder) / "bundles", program=PROGRAM, role="client")
        name = BundleName(SESSION, number)
        write(store, name, sections, meta)
        (path,) = Path(folder).rglob("*.bundle")
        assert store.bytes() == path.stat().st_size
        with store.take(store.names()[0]) as bundle:
            assert (bundle.name, bundle.meta) == (name, meta)
            assert list(bundle.sections) == list(sections)
            for load in (False, True):
                for key, one in sections.items():
                    got = bundle.array(key, load=load)
                    assert (got.dtype, got.shape, got.tobytes()) == (one.dtype, one.shape, one.tobytes())
                    assert load or one.size == 0 or got.ctypes.data % 64 == 0


def test_a_file_on_another_byte_order_is_written_little_endian(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "bundles", program=PROGRAM, role="client")
    with store.create(BundleName(SESSION, 0), {"a": (">u4", (1,))}) as writer:
        writer.write("a", 0, np.array([1], "<u4"))
        writer.finish()
        writer.publish()
    assert next(tmp_path.rglob("*.bundle")).read_bytes().endswith(b"\1\0\0\0")


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {f"s{number}": ("u1", (1,)) for number in range(65_537)},
        {"": ("u1", (1,))},
        {"a b": ("u1", (1,))},
        {"é": ("u1", (1,))},
        {"a" * 49: ("u1", (1,))},
        {1: ("u1", (1,))},
        {"a": ("bool", (1,))},
        {"a": ("c16", (1,))},
        {"a": ("O", (1,))},
        {"a": ("S3", (1,))},
        {"a": ([("x", "u1")], (1,))},
        {"a": ("no dtype", (1,))},
        {"a": ("u1", (-1,))},
        {"a": ("u1", (1.5,))},
        {"a": ("u1", 5)},
        {"a": ("u1", (1,) * 7)},
        {"a": ("u8", (2**46,))},
        {"a": ("u1", (2**40, 0, 2**40))},
        {"a": "u1"},
    ],
)
def test_sections_that_the_format_does_not_have(tmp_path: Path, sections: Any) -> None:
    store = BundleStore(tmp_path / "bundles", program=PROGRAM, role="client")
    with pytest.raises(StoreError, match="sections"):
        store.create(BundleName(SESSION, 0), sections)
    assert store.bytes() == 0


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "meta",
    [[], {"a": float("nan")}, {"a": (1,)}, {1: 2}, {"a": b"raw"}, {"a": "x" * 2**20}, {"a": {1}}, nested(100_000)],
    ids=["list", "nan", "tuple", "number as key", "bytes", "long", "set", "deep"],
)
def test_meta_data_that_would_not_come_back(tmp_path: Path, meta: Any) -> None:
    store = BundleStore(tmp_path / "bundles", program=PROGRAM, role="client")
    with pytest.raises(StoreError, match="meta data"):
        store.create(BundleName(SESSION, 0), {"a": ("u1", (1,))}, meta)


def test_names() -> None:
    name = BundleName(SESSION, MAX_NUMBER)
    assert name.file_name == "000102030405060708090a0b0c0d0e0f-281474976710655.bundle"
    assert BundleName.of_file(name.file_name) == name
    assert BundleName(SESSION, 2) < BundleName(SESSION, 10) < BundleName(bytes([1]) * 16, 0)
    text = SESSION.hex()
    for other in (
        f"{text}-281474976710656.bundle", f"{text}-01.bundle", f"{text}--1.bundle", f"{text.upper()}-1.bundle",
        f"{text}-1.bundle\n", f"{text}-\u0661.bundle", f".{text}-1.bundle", f"{text}-1", f"{text[:-2]}-1.bundle", "",
    ):  # fmt: skip
        assert BundleName.of_file(other) is None


@pytest.mark.parametrize(
    ("session", "number"),
    [
        (bytes(15), 0),
        (bytearray(16), 0),
        ("0" * 16, 0),
        (SESSION, -1),
        (SESSION, MAX_NUMBER + 1),
        (SESSION, True),
        (SESSION, 1.0),
    ],
)
def test_wrong_names(session: Any, number: Any) -> None:
    with pytest.raises(StoreError):
        BundleName(session, number)


def test_no_bit_of_the_header_can_be_flipped() -> None:
    header = GOLDEN[:391]
    assert decode(lambda offset, length: header[offset : offset + length], len(GOLDEN)).name.number == 12_345_678
    for bit in range(8 * len(header)):
        flipped = bytearray(header)
        flipped[bit // 8] ^= 1 << bit % 8
        raw = bytes(flipped)
        with pytest.raises(ValueError):
            decode(lambda offset, length, raw=raw: raw[offset : offset + length], len(GOLDEN))
