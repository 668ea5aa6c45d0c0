"""The file of a bundle: its name, its bytes, and the checks before anything believes them.

Little-endian. A header of 128 bytes, a table of n entries of 128 bytes, m bytes of JSON, then the sections in order,
each from the first multiple of 64 on, with zeros between. The file ends with the last section.

    offset  size  header field
         0   4+2  magic "DRBU", version 1
         6     2  role: 0 client, 1 server
         8    32  digest of the deployment, see `deployment.py`
        40  16+8  session, number within it (below 2^48)
        64     8  time of creation, microseconds since 1970, signed; for people, nothing depends on it
        72   4+4  n (1 to 65536), m (at most 2^20)
        80     8  length of the file
        88    32  SHA-256 of header, table and JSON, with zeros in this field; zeros from 120 on
    offset  size  field of an entry of the table
         0    48  name, ASCII, filled up with zeros
        48   4+4  dtype as numpy writes it ("|u1", "<u8", filled up), CRC-32 of the section
        56   4+4  number of dimensions (at most 6), zeros
        64   8+8  offset in the file, length in bytes
        80    48  shape, 8 bytes a dimension, the rest zeros
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from deepreduce._json import parse_json
from deepreduce.errors import problem

from ._errors import StoreError

MAGIC = b"DRBU"
VERSION = 1
HEADER_BYTES = 128
ALIGNMENT = 64
SESSION_BYTES = 16
PROGRAM_BYTES = 32
MAX_NUMBER = (1 << 48) - 1
MAX_SECTIONS = 65_536
MAX_META_BYTES = 1 << 20
MAX_DIMENSIONS = 6
MAX_SECTION_BYTES = 1 << 48

ROLES = ("client", "server")
Role = Literal["client", "server"]

DTYPES = ("|u1", "<u2", "<u4", "<u8", "|i1", "<i2", "<i4", "<i8", "<f4", "<f8")
"""What a section may hold. No booleans: a damaged byte that is neither 0 nor 1 would be one all the same."""

_HEADER = struct.Struct("<4sHH32s16sQqIIQ32s8s")
_ENTRY = struct.Struct("<48s4sII4sQQ6Q")
_SHA = slice(88, 120)
_SECTION_NAME = re.compile(r"[A-Za-z0-9_./-]{1,48}")
_FILE_NAME = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,14})\.bundle")


@dataclass(frozen=True, order=True)
class BundleName:
    """What the two parties call one bundle.

    A name is given once: the session is random and drawn anew for every preparation, the number counts within it.

    Args:
        session: 16 bytes.
        number: from 0 to 2^48 - 1.

    Raises:
        StoreError: another type or range.
    """

    session: bytes
    number: int

    def __post_init__(self) -> None:
        session: object = self.session
        number: object = self.number
        if not isinstance(session, bytes) or len(session) != SESSION_BYTES:
            got = f"{len(session)} bytes" if isinstance(session, bytes) else f"a {type(session).__name__}"
            raise StoreError(
                problem("a session must be 16 bytes", got=got, remedy="use the session that both parties agreed on")
            )
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_NUMBER:
            raise StoreError(
                problem(
                    "the number of a bundle must be an integer from 0 to 2^48 - 1",
                    got=repr(number)[:40],
                    remedy="count the bundles of a session from 0",
                )
            )

    @property
    def file_name(self) -> str:
        """`<session in hex>-<number>.bundle`."""
        return f"{self.session.hex()}-{self.number}.bundle"

    @classmethod
    def of_file(cls, file_name: str) -> BundleName | None:
        """Return the name that a file stands for, or None if the file is none of ours."""
        match = _FILE_NAME.fullmatch(file_name)
        if match is None or int(match[2]) > MAX_NUMBER:
            return None
        return cls(bytes.fromhex(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.session.hex()}-{self.number}"


@dataclass(frozen=True)
class Section:
    """One named array and its place in the file; `offset` and `length` in bytes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    length: int
    crc32: int = 0


@dataclass(frozen=True)
class Header:
    """Everything that stands before the sections."""

    program: bytes
    role: Role
    name: BundleName
    created_microseconds: int
    meta: dict[str, Any]
    sections: tuple[Section, ...]


def encode_meta(meta: Mapping[str, Any]) -> bytes:
    """Return the JSON object of a bundle.

    Raises:
        StoreError: no JSON object, not finite, or longer than 1 MiB.
    """
    try:
        if not isinstance(meta, dict):
            raise TypeError(f"a {type(meta).__name__}, not a dict")
        text = json.dumps(meta, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        if parse_json(text) != meta:
            raise ValueError("tuples, or keys that are no texts, or a key that stands twice")
        if len(text) > MAX_META_BYTES:
            raise ValueError(f"{len(text):,} bytes")
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            problem(
                "the meta data of a bundle must be a JSON object of at most 1 MiB that reads back as it was written",
                got=str(error)[:200],
                remedy="use dicts with texts as keys, lists, texts and finite numbers; put arrays into sections",
            )
        ) from error
    return text


def lay_out(sections: Mapping[str, tuple[Any, tuple[int, ...]]], meta_bytes: int) -> tuple[Section, ...]:
    """Give every section its place in the file, in the order of the mapping.

    Args:
        sections: dtype and shape of every section.
        meta_bytes: length of the JSON object.

    Raises:
        StoreError: a name, dtype or shape that the format does not have, or too many sections.
    """
    try:
        if not 1 <= len(sections) <= MAX_SECTIONS:
            raise ValueError(f"{len(sections)} sections")
        placed = []
        end = HEADER_BYTES + _ENTRY.size * len(sections) + meta_bytes
        for name, (dtype, shape) in sections.items():
            if not isinstance(name, str) or not _SECTION_NAME.fullmatch(name):
                raise ValueError(f"the name {name!r:.80}")
            kind = np.dtype(dtype).newbyteorder("<")
            dimensions = tuple(int(size) if isinstance(size, int | np.integer) else -1 for size in shape)
            length = _length(kind, dimensions)
            offset = _aligned(end)
            placed.append(Section(name, kind, dimensions, offset, length))
            end = offset + length
    except (TypeError, ValueError) as error:
        raise StoreError(
            problem(
                f"a bundle has 1 to {MAX_SECTIONS} sections; each has a name of at most 48 letters, digits and _./-, "
                f"one of the dtypes {', '.join(DTYPES)}, at most {MAX_DIMENSIONS} dimensions and 2^48 bytes",
                got=error,
                remedy="describe every section as name: (dtype, shape)",
            )
        ) from error
    return tuple(placed)


def file_bytes(sections: tuple[Section, ...]) -> int:
    """Return the length of the file that these sections need."""
    return sections[-1].offset + sections[-1].length


def encode(header: Header) -> bytes:
    """Return header, table and JSON object: what stands at the beginning of the file."""
    meta = encode_meta(header.meta)
    table = b"".join(
        _ENTRY.pack(
            one.name.encode(),
            one.dtype.str.encode(),
            one.crc32,
            len(one.shape),
            b"",
            one.offset,
            one.length,
            *one.shape,
            *([0] * (MAX_DIMENSIONS - len(one.shape))),
        )
        for one in header.sections
    )
    fixed = bytearray(
        _HEADER.pack(
            MAGIC,
            VERSION,
            ROLES.index(header.role),
            header.program,
            header.name.session,
            header.name.number,
            header.created_microseconds,
            len(header.sections),
            len(meta),
            file_bytes(header.sections),
            b"",
            b"",
        )
    )
    fixed[_SHA] = hashlib.sha256(fixed + table + meta).digest()
    return bytes(fixed) + table + meta


def decode(read: Callable[[int, int], bytes], size: int) -> Header:
    """Read what stands before the sections, and check all of it.

    Args:
        read: gives the bytes at (offset, length), fewer at the end of the file.
        size: length of the file.

    Raises:
        ValueError: anything that `encode` would not have written, or another length of the file.
    """
    fixed = read(0, HEADER_BYTES)
    _require(len(fixed) == HEADER_BYTES, f"the file ends after {len(fixed)} bytes, inside its header")
    magic, version, role, program, session, number, created, count, meta_bytes, length, _, zeros = _HEADER.unpack(fixed)
    _require(magic == MAGIC, "it does not begin like a bundle")
    _require(version == VERSION, f"format version {version}, where this release reads {VERSION}")
    _require(role < len(ROLES), f"role {role}")
    _require(number <= MAX_NUMBER, f"number {number}")
    _require(1 <= count <= MAX_SECTIONS, f"{count} sections")
    _require(meta_bytes <= MAX_META_BYTES, f"{meta_bytes} bytes of meta data")
    _require(length == size, f"{size} bytes, where the header says {length}")
    _require(not any(zeros), "bytes that must be zero are not")
    table_bytes = count * _ENTRY.size
    rest = read(HEADER_BYTES, table_bytes + meta_bytes)
    _require(len(rest) == table_bytes + meta_bytes, "the file ends inside its table")
    blank = bytearray(fixed)
    blank[_SHA] = bytes(32)
    _require(hashlib.sha256(blank + rest).digest() == fixed[_SHA], "the checksum of the header does not fit")

    sections = []
    end = HEADER_BYTES + len(rest)
    for place in range(0, table_bytes, _ENTRY.size):
        section = _decode_entry(rest[place : place + _ENTRY.size])
        _require(section.offset == _aligned(end), f"section {section.name!r} is not where the one before it ends")
        end = section.offset + section.length
        sections.append(section)
    _require(end == size, f"the sections end at byte {end}, the file at {size}")
    _require(len({one.name for one in sections}) == len(sections), "two sections of one name")
    try:
        meta = parse_json(rest[table_bytes:])
    except RecursionError:
        raise ValueError("meta data that nest too deeply") from None
    _require(isinstance(meta, dict), "meta data that are no JSON object")
    return Header(program, cast(Role, ROLES[role]), BundleName(session, number), created, meta, tuple(sections))


def _decode_entry(entry: bytes) -> Section:
    name, dtype, crc32, dimensions, zeros, offset, length, *shape = _ENTRY.unpack(entry)
    text = name.rstrip(b"\0").decode("ascii")
    _require(_SECTION_NAME.fullmatch(text) is not None, f"a section with the name {text!r}")
    kind = dtype.rstrip(b"\0").decode("ascii")
    _require(kind in DTYPES, f"section {text!r} of dtype {kind!r}")
    _require(dimensions <= MAX_DIMENSIONS, f"section {text!r} of {dimensions} dimensions")
    _require(not any(zeros) and not any(shape[dimensions:]), f"section {text!r}: bytes that must be zero are not")
    size = tuple(shape[:dimensions])
    _require(_length(np.dtype(kind), size) == length, f"section {text!r}: its length does not fit its shape")
    return Section(text, np.dtype(kind), size, offset, length, crc32)


def _length(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    if dtype.str not in DTYPES:
        raise ValueError(f"the dtype {dtype}")
    # numpy multiplies the sizes that are not zero, so these must not overflow even where the section is empty
    most = dtype.itemsize * math.prod(max(size, 1) for size in shape)
    if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape) or most > MAX_SECTION_BYTES:
        raise ValueError(f"the shape {shape!r:.120}")
    return dtype.itemsize * math.prod(shape)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
