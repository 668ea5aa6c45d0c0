"""The extension's arithmetic in numpy over OpenSSL's AES: the twin of `native/transfer.c`, byte for byte.

It is what runs where the compiled kernel is missing, and what the kernel is tested against. Shapes and meanings are
those of `Backend` in `_backends.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepreduce.errors import missing_extra

from ._errors import Bytes

try:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CTR
except ImportError as error:
    raise missing_extra("cryptography", "private", purpose="oblivious transfer") from error

_CHUNK = 1024
"""Blocks of 128 transfers per round: 16 KiB per leaf, so that the leaves of a tree stay in the second-level cache."""

# Transposing 8 by 8 bits inside a 64-bit word: swap single bits, then pairs, then fours, across the diagonal.
_SWAPS = ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0))


def expand(keys: Bytes, nonces: Bytes, start: int, blocks: int) -> Bytes:
    """Return the blocks AES(keys[m], nonces[m] || start + b), uint8, shape (len(keys), 16 blocks)."""
    out = np.empty((len(keys), 16 * blocks), dtype=np.uint8)
    zeros = bytes(16 * blocks)
    for row, key, nonce in zip(out, keys, nonces, strict=True):
        counter = nonce.tobytes() + start.to_bytes(8, "big")
        Cipher(AES(key.tobytes()), CTR(counter)).encryptor().update_into(zeros, row.data)
    return out


def extend_receiver(
    field_bits: int, keys: Bytes, nonces: Bytes, start: int, choices: Bytes, corrections: Bytes, labels: Bytes
) -> None:
    """Write the receiver's corrections and labels; see `Backend`."""
    trees, blocks = len(keys), len(choices)
    for first in range(0, blocks, _CHUNK):
        part = slice(first, min(first + _CHUNK, blocks))
        size = part.stop - part.start
        rows = np.empty((128, 16 * size), dtype=np.uint8)
        for tree in range(trees):
            leaves = expand(keys[tree], nonces[tree : tree + 1].repeat(1 << field_bits, axis=0), start + first, size)
            total = _fold(leaves, rows[tree * field_bits : (tree + 1) * field_bits])
            corrections[part, tree] = total.reshape(size, 16) ^ choices[part]
        labels[128 * part.start : 128 * part.stop] = transpose(rows)


def extend_sender(
    field_bits: int, keys: Bytes, nonces: Bytes, start: int, delta: Bytes, corrections: Bytes, labels: Bytes
) -> None:
    """Write the sender's labels; see `Backend`."""
    trees, blocks = len(keys), len(corrections)
    masks = np.unpackbits(delta, bitorder="little") * np.uint8(255)
    for first in range(0, blocks, _CHUNK):
        part = slice(first, min(first + _CHUNK, blocks))
        size = part.stop - part.start
        rows = np.empty((128, 16 * size), dtype=np.uint8)
        for tree in range(trees):
            leaves = np.zeros((1 << field_bits, 16 * size), dtype=np.uint8)
            known = nonces[tree : tree + 1].repeat((1 << field_bits) - 1, axis=0)
            leaves[1:] = expand(keys[tree, 1:], known, start + first, size)
            own = slice(tree * field_bits, (tree + 1) * field_bits)
            _fold(leaves, rows[own])
            rows[own] ^= masks[own, None] & corrections[part, tree].reshape(1, 16 * size)
        labels[128 * part.start : 128 * part.stop] = transpose(rows)


def transpose(rows: Bytes) -> Bytes:
    """Transpose a bit matrix of 128 rows.

    Args:
        rows: uint8, shape (128, 16 blocks); bit m of row j is bit m % 8 of byte m // 8.

    Returns:
        uint8, shape (128 blocks, 16); bit j of row m is bit m of row j.
    """
    columns = rows.shape[1]
    tiles = np.ascontiguousarray(rows.reshape(16, 8, columns).transpose(2, 0, 1)).reshape(columns, 128)
    words: NDArray[np.uint64] = tiles.view("<u8")
    for shift, mask in _SWAPS:
        step, keep = np.uint64(shift), np.uint64(mask)
        swap = (words ^ (words >> step)) & keep
        words ^= swap
        words ^= swap << step
    return np.ascontiguousarray(tiles.reshape(columns, 16, 8).transpose(0, 2, 1)).reshape(8 * columns, 16)


def _fold(leaves: Bytes, rows: Bytes) -> Bytes:
    """Overwrite rows[j] with the sum of the leaves whose number has bit j set; return the sum of all leaves."""
    words: NDArray[np.uint64] = leaves.view(np.uint64)
    for row in rows:
        row[:] = np.bitwise_xor.reduce(words[1::2], axis=0).view(np.uint8)
        words = words[0::2] ^ words[1::2]
    total: Bytes = words[0].view(np.uint8)
    return total
