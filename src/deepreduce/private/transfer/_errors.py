"""The one exception of oblivious transfer, and the checks that raise it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreduce.errors import DeepReduceError, problem

Bytes = NDArray[np.uint8]

SESSION_BYTES = 16
"""Length of a session identifier."""

FIELD_BITS = (1, 2, 4, 8)
"""The small fields F_{2^k} that the extension knows; k = 1 is IKNP."""

MAX_BATCH = 1 << 26
"""Most transfers in one batch: 1 GiB of labels on either side."""


class TransferError(DeepReduceError):
    """An oblivious transfer was called wrongly, or the peer sent something that no honest peer sends."""


def check_session(session: object) -> bytes:
    """Return `session` if it is 16 bytes, else raise TransferError."""
    if not isinstance(session, bytes) or len(session) != SESSION_BYTES:
        got = f"{len(session)} bytes" if isinstance(session, bytes) else f"a {type(session).__name__}"
        raise TransferError(
            problem(
                f"a session identifier must be bytes of length {SESSION_BYTES}",
                got=got,
                remedy="use new_session() at one party and send the identifier to the other",
            )
        )
    return session


def check_field_bits(field_bits: object) -> int:
    """Return `field_bits` if it is 1, 2, 4, or 8, else raise TransferError."""
    if isinstance(field_bits, bool) or not isinstance(field_bits, int) or field_bits not in FIELD_BITS:
        raise TransferError(
            problem(
                "the field of the OT extension must have 1, 2, 4, or 8 bits",
                got=repr(field_bits),
                remedy="leave field_bits at 4; 8 halves the traffic at an eighth of the speed",
            )
        )
    return field_bits


def check_count(count: object, *, least: int = 0, most: int = MAX_BATCH, what: str = "transfers in a batch") -> int:
    """Return `count` if it is an integer in [least, most], else raise TransferError."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not least <= count <= most:
        raise TransferError(
            problem(
                f"the number of {what} must be an integer from {least} to {most}",
                got=repr(count),
                remedy="split the work into several batches; one set-up serves all of them",
            )
        )
    return int(count)


def check_bits(bits: Any, *, most: int = MAX_BATCH) -> Bytes:
    """Return choice bits as a contiguous uint8 vector of zeros and ones.

    Args:
        bits: one-dimensional array of dtype bool or uint8 whose values are 0 and 1.
        most: the largest length allowed.

    Raises:
        TransferError: another type, shape, length, or value. The message never repeats the bits.
    """
    if not isinstance(bits, np.ndarray) or bits.dtype not in (np.dtype(np.uint8), np.dtype(np.bool_)) or bits.ndim != 1:
        got = f"{bits.dtype} {bits.shape}" if isinstance(bits, np.ndarray) else f"a {type(bits).__name__}"
        raise TransferError(
            problem(
                "choice bits must be a one-dimensional numpy array of dtype uint8 or bool",
                got=got,
                remedy="convert with numpy.asarray(bits, dtype=numpy.uint8)",
            )
        )
    check_count(bits.size, most=most)
    vector = np.ascontiguousarray(bits).view(np.uint8)
    if vector.size and int(vector.max()) > 1:
        raise TransferError(
            problem(
                "choice bits must be 0 or 1", got="a larger value", remedy="pass one bit per element, not packed bytes"
            )
        )
    return vector


def check_block(block: Any, what: str) -> Bytes:
    """Return `block` as a private copy of 16 uint8 values, else raise TransferError (without the values)."""
    if not isinstance(block, np.ndarray) or block.dtype != np.uint8 or block.shape != (16,):
        got = f"{block.dtype} {block.shape}" if isinstance(block, np.ndarray) else f"a {type(block).__name__}"
        raise TransferError(
            problem(f"{what} must be a numpy array of 16 uint8 values", got=got, remedy="draw it with new_delta()")
        )
    return np.array(block, dtype=np.uint8, order="C")
