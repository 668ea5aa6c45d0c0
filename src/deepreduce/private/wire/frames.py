"""The frame: 16 bytes of header, then the body.

Everything that the two parties say is a sequence of frames in each direction. All integers are little-endian.

    offset  size  header field
         0     2  magic "DR"
         2     1  version of the wire: 1
         3     1  kind, see `Kind`
         4     4  sequence: counts the frames of this direction from 0
         8     8  length of the body in bytes
        16        the body

The sequence catches frames that were dropped, repeated, or reordered by a defect at either end; against an attacker
between the two parties stands TLS, below. A reader knows which kinds may come next and how long each may be, and
compares the header with that before it reads a body. It reserves memory for the body only then, or has brought its own
of the size that it expects. The largest body that anybody can make us hold is thus the reader's choice, not the
sender's. There is no end mark: a connection that ends anywhere but after BYE was cut.

An ERROR frame may come where any other kind is expected. Its body is JSON in UTF-8, at most 2,048 bytes: an object
with a "code", one of the words in `errors.py`, and a "message" for a person; other keys are left for later versions.
Whoever sends it closes the connection. The fields up to the version stay where they are in every later version.
"""

from __future__ import annotations

import json
import re
import struct
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from deepreduce._json import parse_json
from deepreduce.errors import printable, problem

from .errors import INTERNAL, PeerError, WireError

_HEADER = struct.Struct("<2sBBIQ")
_MAGIC = b"DR"
_CODE = re.compile(r"[a-z][a-z0-9_-]{0,31}")

WIRE_VERSION = 1
"""Version of the frame; what the frames mean has a version of its own, in HELLO."""

HEADER_BYTES = _HEADER.size
"""Length of the header that every frame begins with: 16 bytes."""

MAX_ERROR_BYTES = 2048
"""Longest body of an ERROR frame."""

MAX_FRAMES = 1 << 32
"""Most frames in one direction of one connection, so that no sequence number comes twice."""

Buffer = bytes | bytearray | memoryview | np.ndarray[Any, np.dtype[Any]]
"""What a body is made of: any C-contiguous memory of plain numbers."""


class Kind(IntEnum):
    """What a frame is; the number is its byte on the wire."""

    HELLO = 1  # client: versions, and which network it holds
    WELCOME = 2  # server: it agrees
    OFFER = 3  # base transfers, client: BaseOffer
    CHOICES = 4  # base transfers, server: BaseChoices
    SUMS = 5  # base transfers, client: TreeSums
    KEY = 6  # offline, client: the public key of the homomorphic encryption
    REQUEST = 7  # offline, client: its encrypted share
    ANSWER = 8  # offline, server: the encrypted result
    CORRECTIONS = 9  # offline, both: Corrections of a batch of transfers
    TABLES = 10  # offline, server: garbled tables; client: what permutes the tables of lookups
    PREPARE = 11  # client: prepare a bundle
    READY = 12  # the bundle is stored at the server
    START = 13  # online, client: which bundles, how many images, what to reveal
    GO = 14  # online, server: the bundles are there and now consumed
    INPUT = 15  # online, client: masked images
    LABELS = 16  # online, server: the garbler's labels, or its questions of lookups
    WORDS = 17  # online, client: results minus the next masks, or its replies to questions
    RESULT = 18  # online, server: what is revealed
    BYE = 19  # the connection ends on purpose
    LOST = 20  # online, server: instead of GO, which bundles have no half there
    ERROR = 255  # the sender gave up


class Header(NamedTuple):
    """A header whose magic, version, and kind were checked; its sequence and length were not."""

    kind: Kind
    sequence: int
    length: int


def encode_header(kind: Kind, sequence: int, length: int) -> bytes:
    """Return the 16 bytes that a frame begins with.

    Raises:
        WireError: if the direction has used up its 2^32 sequence numbers.
    """
    if not 0 <= sequence < MAX_FRAMES:
        raise WireError(
            problem(
                f"one connection carries at most {MAX_FRAMES:,} frames in one direction",
                got=f"frame {sequence:,}",
                remedy="close the connection and open a new one",
            )
        )
    return _HEADER.pack(_MAGIC, WIRE_VERSION, Kind(kind), sequence, length)


def decode_header(data: bytes | bytearray | memoryview) -> Header:
    """Read a header back.

    Args:
        data: exactly 16 bytes.

    Raises:
        WireError: if the magic, the version, or the kind is unknown.
    """
    if len(data) != HEADER_BYTES:
        raise violation(f"a header must have {HEADER_BYTES} bytes", f"{len(data)} bytes")
    magic, version, kind, sequence, length = _HEADER.unpack(data)
    if magic != _MAGIC:
        raise WireError(
            problem(
                f"a frame must begin with {_MAGIC!r}",
                got=repr(magic),
                remedy="check that the address is that of a deepreduce server, and that both sides use TLS",
            )
        )
    if version != WIRE_VERSION:
        raise WireError(
            problem(
                f"both parties must speak version {WIRE_VERSION} of the wire",
                got=f"the peer speaks version {version}",
                remedy="install the same version of deepreduce at both parties",
            )
        )
    try:
        return Header(Kind(kind), sequence, length)
    except ValueError:
        raise violation("the kind of a frame must be known", f"kind {kind}") from None


def encode_error(code: str, message: str) -> bytes:
    """Return the body of an ERROR frame; a message that is too long is cut, so this never fails.

    Args:
        code: one of the words in `errors.py`; anything that is no word becomes "internal".
        message: for a person at the other side; it must hold nothing that they should not know.
    """
    if not _CODE.fullmatch(code):
        code = INTERNAL
    text = printable(message)[:MAX_ERROR_BYTES]
    while True:
        body = json.dumps({"code": code, "message": text}, ensure_ascii=False).encode()
        if len(body) <= MAX_ERROR_BYTES:
            return body
        text = text[: len(text) * 7 // 8]


def decode_error(body: bytes | bytearray, peer: str) -> PeerError:
    """Read the body of an ERROR frame.

    Args:
        body: of the frame.
        peer: how error messages call its sender.

    Returns:
        The exception, ready to be raised, with everything taken out that could harm a terminal.

    Raises:
        WireError: if the body is not as specified.
    """
    try:
        if len(body) > MAX_ERROR_BYTES:
            raise ValueError(f"{len(body)} bytes")
        value = parse_json(bytes(body))
        code, message = value["code"], value["message"]
        if not isinstance(code, str) or not isinstance(message, str):
            raise TypeError("no text")
        if not _CODE.fullmatch(code):
            raise ValueError("a code that is no word")
    except (ValueError, TypeError, LookupError, RecursionError):
        raise violation(
            f"an ERROR frame must be JSON with a code and a message, at most {MAX_ERROR_BYTES:,} bytes",
            "something else, so why the peer gave up is not known",
            peer,
        ) from None
    return PeerError(code, message, peer)


def flat_view(part: Buffer) -> memoryview:
    """Return the memory of `part` as a flat view of bytes, without a copy.

    Raises:
        WireError: if it is no memory of plain numbers in C order.
    """
    try:
        if isinstance(part, np.ndarray):
            part = np.asarray(part)  # a subclass may keep a shape of its own
            if part.flags.c_contiguous and not part.dtype.hasobject:
                # numpy's view knows structured, swapped, and date types, for which memoryview.cast fails.
                return part.reshape(-1).view(np.uint8).data if part.nbytes else _no_bytes(part.flags.writeable)
        else:
            view = memoryview(part)
            if view.c_contiguous:
                return view.cast("B") if view.nbytes else _no_bytes(not view.readonly)
    except TypeError:
        pass
    got = f"an array of {part.dtype} with strides {part.strides}" if isinstance(part, np.ndarray) else type(part)
    raise WireError(
        problem(
            "the parts of a body must be bytes or arrays of numbers in C order",
            got=got,
            remedy="call numpy.ascontiguousarray first",
        )
    )


def violation(must: str, got: object, where: str | None = None) -> WireError:
    """Build the error for a peer that breaks the protocol."""
    return WireError(
        problem(
            must,
            got=got,
            remedy="run the same version of deepreduce at both parties and connect again",
            where=where,
        )
    )


def _no_bytes(writable: bool) -> memoryview:
    return memoryview(bytearray() if writable else b"")
