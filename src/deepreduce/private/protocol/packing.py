"""Ring elements on the wire and on disk: whole bytes, as few as the ring needs. And messages of several parts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import DeepReduceError, problem
from ..ring import Words

_Data = TypeVar("_Data", bytes, NDArray[np.uint8])

_WHOLE = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that `count` elements of a ring of `bits` bits take: whole bytes each, little endian."""
    return count * -(-bits // 8)


def pack(values: Words, bits: int) -> NDArray[np.uint8]:
    """Write ring elements, row-major.

    Args:
        values: any shape, each below 2^bits.
        bits: of the ring, 1 to 64.

    Returns:
        `packed_bytes` bytes.
    """
    width = -(-bits // 8)
    if width in _WHOLE:  # an element is a number of the machine's
        return np.ascontiguousarray(values).astype(_WHOLE[width], copy=False).reshape(-1).view(np.uint8)
    flat = np.ascontiguousarray(values, dtype="<u8").reshape(-1).view(np.uint8).reshape(-1, 8)
    return np.ascontiguousarray(flat[:, :width]).reshape(-1)


def unpack(data: NDArray[np.uint8] | bytes | bytearray | memoryview, shape: tuple[int, ...], bits: int) -> Words:
    """Read what `pack` wrote; bits beyond the ring, which an honest sender leaves 0, are cleared.

    Returns:
        Words of 64 bits.

    Raises:
        DeepReduceError: the length does not fit the shape.
    """
    return unpack_narrow(data, shape, bits).astype(np.uint64, copy=False)


def unpack_narrow(
    data: NDArray[np.uint8] | bytes | bytearray | memoryview, shape: tuple[int, ...], bits: int
) -> NDArray[np.unsignedinteger]:
    """Do as `unpack`, but return the words as they lie in the message where that is a type of the machine's."""
    raw = np.frombuffer(data, np.uint8)
    width, count = -(-bits // 8), int(np.prod(shape, dtype=np.int64))
    if raw.size != packed_bytes(count, bits):
        raise DeepReduceError(
            problem(
                f"{count} elements of {bits} bits take {packed_bytes(count, bits)} bytes",
                got=raw.size,
                remedy="both parties must use the same program",
            )
        )
    if width in _WHOLE:
        whole: NDArray[np.unsignedinteger] = raw.view(_WHOLE[width]).reshape(shape)
        return whole & whole.dtype.type((1 << bits) - 1)
    wide = np.zeros((count, 8), np.uint8)
    wide[:, :width] = raw.reshape(count, width)
    values: Words = wide.view("<u8").reshape(shape) & np.uint64((1 << bits) - 1)
    return values


def word_type(bits: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest unsigned type that holds a ring of `bits` bits."""
    return np.dtype(next(kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if kind().itemsize * 8 >= bits))


def cut(data: _Data, sizes: Sequence[int]) -> list[_Data]:
    """Cut bytes into parts of the given sizes."""
    return [data[start:end] for start, end in pairwise(accumulate(sizes, initial=0))]
