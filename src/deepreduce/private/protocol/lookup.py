"""From a carry that nobody knows to a shared bit: a one-time truth table for each ReLU. All functions are pure.

The sign of a sum of two shares hangs on one carry (`multiplexer`): whether u + v >= 2^L, where the server has u, the
client v, each of L bits. The client knows v before there is an image, so to it this is a table of 2^L bits,

    T[u] = 1 where u + v >= 2^L.

Offline the parties make shares of that table, permuted by an index a that the server draws:

    M_S[i] xor M_C[i] = T[i xor a],        online the server sends d = u xor a,        M_S[d] xor M_C[d] = T[u].

This is the one-time truth table of Ishai, Kushilevitz, Meldgaard, Orlandi and Paskin-Cherniavsky ("On the Power of
Correlated Randomness in Secure Computation", TCC 2013, section 3) with one input that is known beforehand: d alone
travels, and it is uniform, because a is used once.

How the shares are made: at first M_C = T, M_S = 0. For each bit j of a, from the highest, the table's halves (indices
with bit j 0 and 1) change places where a_j is 1. The server swaps its own share. For the client's share both need
a_j D in both halves, D being the XOR of the halves: one oblivious transfer of 2^(L - 1) bits, in which the server
chooses by a_j. With the pads h_0 and h_1 of the transfer, of which the server has the one that it chose,

    client → y_j = h_0 xor h_1 xor D;    M_C gets h_0 in both halves
    server   h_(a_j) xor a_j y_j = h_0 xor a_j D;   M_S, swapped if a_j is 1, gets that in both halves

The client never waits for an answer: it can make all y_j at once. Why it says nothing: y_j is masked by the pad that
the server has not; the client sees the corrections of the transfers, which hide a.

Tables lie in words of 64 bits, [n, 2^L / 64]: index i is bit i mod 64 of word i div 64. Pads, D and y_j have half as
many bits, and fill half as many words, but for tables of up to 64 bits, where they lie spread in one word.

The compiled `native/lookup.c`, if it is there, does the same as the numpy here.
"""

from __future__ import annotations

import numpy as np

from ..ring import Words

try:
    from . import _kernel
except ImportError:  # not built: no compiler at installation
    _kernel = None  # type: ignore[assignment]

_WORD_BITS, _INDEX_BITS = 64, 6
_KERNEL_BITS = 10
"""Longest index of a table that the kernel knows."""

_LOW = [np.uint64(sum(1 << i for i in range(_WORD_BITS) if not i >> j & 1)) for j in range(_INDEX_BITS)]
"""Of each bit of an index within a word: the places where it is 0."""


def default_backend() -> str:
    """Return what permutes tables here: "kernel" or "numpy"."""
    return "numpy" if _kernel is None else "kernel"


def table_words(index_bits: int) -> int:
    """Return how many words a table takes."""
    return max(1, (1 << index_bits) // _WORD_BITS)


def pad_words(index_bits: int) -> int:
    """Return how many words a pad takes."""
    return max(1, table_words(index_bits) // 2)


def carries(values: Words, index_bits: int) -> Words:
    """Return the client's table T.

    Args:
        values: v, [n], below 2^L.
        index_bits: L, from 1.

    Returns:
        [n, `table_words`].
    """
    if _kernel is not None and index_bits <= _KERNEL_BITS:
        found = np.empty((len(values), table_words(index_bits)), np.uint64)
        _kernel.carries(_words(values), index_bits, found)
        return found
    first = np.int64(1 << index_bits) - values.astype(np.int64)  # the lowest u with a carry
    starts = _WORD_BITS * np.arange(table_words(index_bits), dtype=np.int64)
    below = np.clip(first[:, None] - starts, 0, _WORD_BITS)
    ones = np.uint64(min(_WORD_BITS, 1 << index_bits))
    whole = ~np.uint64(0) >> (np.uint64(_WORD_BITS) - ones)
    shifted = whole << np.minimum(below, _WORD_BITS - 1).astype(np.uint64)
    return np.where(below < _WORD_BITS, shifted & whole, np.uint64(0))


def permute_client(table: Words, zeros: Words, ones: Words) -> tuple[Words, Words]:
    """Run the client's side.

    Args:
        table: T, [n, `table_words`].
        zeros, ones: h_0 and h_1, [L, n, `pad_words`]; of the transfer for bit j of the index, at place j.

    Returns:
        M_C, and y to send, as the pads.
    """
    if _kernel is not None and len(zeros) <= _KERNEL_BITS:
        share, sent = np.array(table, np.uint64, order="C"), np.empty(zeros.shape, np.uint64)
        _kernel.permute_client(share, _words(zeros), _words(ones), len(zeros), sent)
        return share, sent
    share, sent = table, np.empty_like(zeros)
    for j in reversed(range(len(zeros))):
        sent[j] = zeros[j] ^ ones[j] ^ _halves(share, j)
        share = share ^ _spread(zeros[j], j, share.shape[1])
    return share, sent


def permute_server(indices: Words, pads: Words, received: Words, index_bits: int) -> Words:
    """Run the server's side.

    Args:
        indices: a, [n].
        pads: those that the server chose, [L, n, `pad_words`].
        received: y, likewise.
        index_bits: L.

    Returns:
        M_S, [n, `table_words`].
    """
    words = table_words(index_bits)
    if _kernel is not None and index_bits <= _KERNEL_BITS:
        found = np.empty((len(indices), words), np.uint64)
        _kernel.permute_server(_words(indices), _words(pads), _words(received), index_bits, found)
        return found
    share = np.zeros((len(indices), words), np.uint64)
    for j in reversed(range(index_bits)):
        chosen = (np.uint64(0) - (indices >> np.uint64(j) & np.uint64(1)))[:, None]  # all ones where a_j is 1
        share ^= (share ^ _swapped(share, j)) & chosen
        share ^= _spread(pads[j] ^ (received[j] & chosen), j, words)
    return share


def look_up(table: Words, places: Words) -> Words:
    """Return one bit of each table, [n], at `places` [n]."""
    n, words = table.shape
    index = (places >> places.dtype.type(_INDEX_BITS)).astype(np.intp) + np.arange(0, n * words, words)
    chosen: Words = table.reshape(-1).take(index)
    return chosen >> (places & places.dtype.type(_WORD_BITS - 1)).astype(np.uint64) & np.uint64(1)


def _words(values: Words) -> Words:
    """Return words as the kernel reads them."""
    return np.ascontiguousarray(values, np.uint64)


def _halves(table: Words, j: int) -> Words:
    """Return the XOR of a table's halves by bit j, packed as pads are."""
    n, words = table.shape
    if j >= _INDEX_BITS:
        parts = table.reshape(n, -1, 2, 1 << (j - _INDEX_BITS))
        return (parts[:, :, 0] ^ parts[:, :, 1]).reshape(n, -1)
    shift = np.uint64(1 << j)
    both = (table ^ table >> shift) & _LOW[j]
    return both if words == 1 else both[:, : words // 2] | both[:, words // 2 :] << shift


def _spread(pad: Words, j: int, words: int) -> Words:
    """Return a table that has the pad in both halves by bit j."""
    if j >= _INDEX_BITS:
        parts = pad.reshape(len(pad), -1, 1, 1 << (j - _INDEX_BITS))
        return np.concatenate([parts, parts], axis=2).reshape(len(pad), words)
    shift = np.uint64(1 << j)
    half = pad & _LOW[j] if words == 1 else np.concatenate([pad & _LOW[j], pad >> shift & _LOW[j]], axis=1)
    return half | half << shift


def _swapped(table: Words, j: int) -> Words:
    """Return a table whose halves by bit j have changed places."""
    if j >= _INDEX_BITS:
        return table.reshape(len(table), -1, 2, 1 << (j - _INDEX_BITS))[:, :, ::-1].reshape(table.shape)
    shift = np.uint64(1 << j)
    return (table & _LOW[j]) << shift | table >> shift & _LOW[j]
