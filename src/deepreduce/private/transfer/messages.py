"""The four messages of oblivious transfer, their bytes, and the checks before anything believes them.

Every message is a 40-byte header and a body whose length follows from the header alone. All integers are
little-endian.

    offset  size  header field
         0     4  kind: "OTA1" offer, "OTR1" choices, "OTT1" tree sums, "OTC1" corrections (the digit is the version)
         4     4  field bits k of the extension; 0 in the two messages of the base transfers
         8     8  position: the first pseudorandom block of the batch; 0 outside "OTC1"
        16     8  count: base transfers ("OTA1", "OTR1": at most 4096; "OTT1": 128) or transfers of the batch ("OTC1")
        24    16  session identifier

    kind    from → to            body, n = count, k = field bits
    OTA1    client → server      32                          a point of Ristretto255
    OTR1    server → client      32 n                        n points
    OTT1    client → server      (128/k) (k - 1) 32          tree sums [tree, level, side, 16 bytes]
    OTC1    client → server      (128/k) 16 ceil(n/128)      corrections [block of 128 transfers, tree, 128 bits]

With k = 4 a set-up takes 72 + 4,136 + 3,112 bytes, and a batch of n transfers 40 + 512 ceil(n/128): 4 bytes each.
`decode` accepts the exact length only and reserves no memory that the sender's numbers decide.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from deepreduce.errors import problem

from ._errors import MAX_BATCH, SESSION_BYTES, Bytes, TransferError, check_count, check_field_bits, check_session

_HEADER = struct.Struct(f"<4sIQQ{SESSION_BYTES}s")

HEADER_BYTES = _HEADER.size
"""Length of the header that every message begins with."""

POINT_BYTES = 32
"""Length of an encoded point of Ristretto255 (RFC 9496, section 4.3.2)."""

SECURITY = 128
"""Computational security parameter in bits: base transfers of an extension, and bits of a label."""

MAX_BASE = 4096
"""Most base transfers in one run."""

MAX_POSITION = 1 << 30
"""Pseudorandom blocks of 128 transfers that one set-up may spend, so that AES stays far from its birthday bound."""

Buffer = bytes | bytearray | memoryview


def base_offer_bytes() -> int:
    """Return the length of an encoded `BaseOffer`: 72 bytes."""
    return HEADER_BYTES + POINT_BYTES


def base_choices_bytes(count: int = SECURITY) -> int:
    """Return the length in bytes of an encoded `BaseChoices` for `count` base transfers: 40 + 32 count."""
    return HEADER_BYTES + POINT_BYTES * check_count(count, most=MAX_BASE, what="base transfers")


def tree_sums_bytes(field_bits: int = 4) -> int:
    """Return the length in bytes of an encoded `TreeSums`: 40 + 32 (128/k) (k - 1)."""
    return HEADER_BYTES + 32 * (SECURITY // check_field_bits(field_bits)) * (field_bits - 1)


def corrections_bytes(count: int, field_bits: int = 4) -> int:
    """Return the length in bytes of the encoded `Corrections` of `count` transfers: 40 + 16 (128/k) ceil(count/128)."""
    return HEADER_BYTES + 16 * (SECURITY // check_field_bits(field_bits)) * blocks_of(count)


def blocks_of(count: int) -> int:
    """Return how many blocks of 128 transfers hold `count` transfers."""
    return (check_count(count) + SECURITY - 1) // SECURITY


@dataclass(frozen=True, eq=False)
class BaseOffer:
    """First message of the base transfers: the sender's point A.

    Attributes:
        session: identifier of the set-up, 16 bytes.
        count: how many base transfers, 0 to 4096.
        point: A, 32 bytes; whether it is a point is checked by the step that uses it.
    """

    session: bytes
    count: int
    point: bytes

    def __post_init__(self) -> None:
        check_session(self.session)
        check_count(self.count, most=MAX_BASE, what="base transfers")
        if not isinstance(self.point, bytes) or len(self.point) != POINT_BYTES:
            _refuse("the point of a BaseOffer must be 32 bytes", type(self.point).__name__)

    def encode(self) -> bytes:
        """Return the message as 72 bytes."""
        return _HEADER.pack(b"OTA1", 0, 0, self.count, self.session) + self.point

    @classmethod
    def decode(cls, data: Buffer) -> BaseOffer:
        """Read the message back; raise TransferError unless every byte is as specified."""
        view, _, _, count, session = _open(data, b"OTA1")
        _check_size(view, HEADER_BYTES + POINT_BYTES)
        return cls(session, count, bytes(view[HEADER_BYTES:]))


@dataclass(frozen=True, eq=False)
class BaseChoices:
    """Second message of the base transfers: one point per transfer, uniform whatever the choice.

    Attributes:
        session: identifier of the set-up, 16 bytes.
        points: uint8, shape (count, 32).
    """

    session: bytes
    points: Bytes

    def __post_init__(self) -> None:
        check_session(self.session)
        _check_array(self.points, (None, POINT_BYTES), "the points of BaseChoices")
        check_count(len(self.points), most=MAX_BASE, what="base transfers")

    def encode(self) -> bytes:
        """Return the message as 40 + 32 count bytes."""
        return _HEADER.pack(b"OTR1", 0, 0, len(self.points), self.session) + self.points.tobytes()

    @classmethod
    def decode(cls, data: Buffer) -> BaseChoices:
        """Read the message back; raise TransferError unless every byte is as specified."""
        view, _, _, count, session = _open(data, b"OTR1")
        check_count(count, most=MAX_BASE, what="base transfers")
        _check_size(view, HEADER_BYTES + POINT_BYTES * count)
        points = np.frombuffer(view, dtype=np.uint8)[HEADER_BYTES:].reshape(count, POINT_BYTES)
        return cls(session, points.copy())


@dataclass(frozen=True, eq=False)
class TreeSums:
    """Third and last message of the set-up: what lets the peer grow all leaves of each tree but one.

    Attributes:
        session: identifier of the set-up, 16 bytes.
        field_bits: k, one of 1, 2, 4, 8.
        sums: uint8, shape (128/k, k - 1, 2, 16): per tree, per level below the first, the masked sum of the left
            nodes and that of the right nodes.
    """

    session: bytes
    field_bits: int
    sums: Bytes

    def __post_init__(self) -> None:
        check_session(self.session)
        k = check_field_bits(self.field_bits)
        _check_array(self.sums, (SECURITY // k, k - 1, 2, 16), "the sums of TreeSums")

    def encode(self) -> bytes:
        """Return the message as 40 + 32 (128/k) (k - 1) bytes."""
        return _HEADER.pack(b"OTT1", self.field_bits, 0, SECURITY, self.session) + self.sums.tobytes()

    @classmethod
    def decode(cls, data: Buffer) -> TreeSums:
        """Read the message back; raise TransferError unless every byte is as specified."""
        view, k, _, count, session = _open(data, b"OTT1")
        if count != SECURITY:
            _refuse(f"TreeSums must count {SECURITY} base transfers", count)
        _check_size(view, tree_sums_bytes(k))
        body = np.frombuffer(view, dtype=np.uint8)[HEADER_BYTES:].copy()
        return cls(session, k, body.reshape(SECURITY // k, k - 1, 2, 16))


@dataclass(frozen=True, eq=False)
class Corrections:
    """The one message of a batch: the receiver's choice bits, masked once per tree.

    Attributes:
        session: identifier of the set-up, 16 bytes.
        field_bits: k, one of 1, 2, 4, 8.
        position: first pseudorandom block of the batch.
        count: n, transfers in the batch, 0 to 2^26.
        rows: uint8, shape (ceil(n/128), 128/k, 16).
        frame: the whole message, header included, when `rows` is a view into it; spares a copy of a large batch.
    """

    session: bytes
    field_bits: int
    position: int
    count: int
    rows: Bytes
    frame: Bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_session(self.session)
        trees = SECURITY // check_field_bits(self.field_bits)
        blocks = blocks_of(self.count)
        check_position(self.position, blocks)
        _check_array(self.rows, (blocks, trees, 16), "the rows of Corrections")

    @classmethod
    def allocate(cls, session: bytes, field_bits: int, position: int, count: int) -> Corrections:
        """Return a message whose header is written and whose rows are zero, to be filled in place."""
        frame = np.zeros(corrections_bytes(count, field_bits), dtype=np.uint8)
        header = _HEADER.pack(b"OTC1", field_bits, position, count, session)
        frame[:HEADER_BYTES] = np.frombuffer(header, dtype=np.uint8)
        rows = frame[HEADER_BYTES:].reshape(blocks_of(count), SECURITY // field_bits, 16)
        return cls(session, field_bits, position, count, rows, frame)

    def encode(self) -> memoryview:
        """Return the message as a read-only view of 40 + 16 (128/k) ceil(n/128) bytes."""
        if self.frame is not None:
            return self.frame.data.toreadonly()
        header = _HEADER.pack(b"OTC1", self.field_bits, self.position, self.count, self.session)
        return memoryview(header + self.rows.tobytes())

    @classmethod
    def decode(cls, data: Buffer) -> Corrections:
        """Read the message back without copying it; raise TransferError unless every byte is as specified.

        The rows are a view of `data`, which must not change before the batch is computed.
        """
        view, k, position, count, session = _open(data, b"OTC1")
        check_count(count, most=MAX_BATCH)
        _check_size(view, corrections_bytes(count, k))
        frame = np.frombuffer(view, dtype=np.uint8)
        rows = frame[HEADER_BYTES:].reshape(blocks_of(count), SECURITY // k, 16)
        return cls(session, k, position, count, rows)


def check_position(position: int, blocks: int) -> None:
    """Raise TransferError unless blocks position ... position + blocks - 1 lie within one set-up's budget."""
    if not isinstance(position, int) or position < 0 or position + blocks > MAX_POSITION:
        raise TransferError(
            problem(
                f"one set-up serves at most {MAX_POSITION} blocks of 128 transfers",
                got=f"{blocks} blocks from {position!r} on",
                remedy="run a new set-up with fresh base transfers",
            )
        )


def _open(data: object, kind: bytes) -> tuple[memoryview, int, int, int, bytes]:
    """Split off and check the header; return the whole message, field bits, position, count, and session."""
    if not isinstance(data, bytes | bytearray | memoryview):
        _refuse("a message must be bytes, bytearray, or memoryview", type(data).__name__)
    try:
        view = memoryview(data).cast("B")
    except (TypeError, ValueError):
        _refuse("a message must be plain bytes in one piece of memory", "a view of another kind")
    if len(view) < HEADER_BYTES:
        _refuse(f"a message must have at least its {HEADER_BYTES}-byte header", f"{len(view)} bytes")
    got, field_bits, position, count, session = _HEADER.unpack_from(view)
    if got != kind:
        _refuse(f"the message must be of kind {kind.decode()}", got)
    if kind in (b"OTC1", b"OTT1"):
        check_field_bits(field_bits)
    elif field_bits:
        _refuse("a message of the base transfers has no field", field_bits)
    if position and kind != b"OTC1":
        _refuse("a message of the set-up has position 0", position)
    return view, field_bits, position, count, session


def _check_size(view: memoryview, size: int) -> None:
    if len(view) != size:
        _refuse(f"the message must have exactly {size} bytes", f"{len(view)} bytes")


def _check_array(array: object, shape: tuple[int | None, ...], what: str) -> None:
    """Raise TransferError unless `array` is contiguous uint8 of this shape; None stands for any length."""
    fits = (
        isinstance(array, np.ndarray)
        and array.dtype == np.uint8
        and array.ndim == len(shape)
        and all(want is None or have == want for have, want in zip(array.shape, shape, strict=True))
        and array.flags.c_contiguous
    )
    if not fits:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        _refuse(f"{what} must be a contiguous uint8 array of shape {shape}", got)


def _refuse(must: str, got: object) -> NoReturn:
    raise TransferError(
        problem(
            must,
            got=got,
            remedy="run the same version of deepreduce at both parties and start the session again",
            where="a message of the oblivious transfer",
        )
    )
