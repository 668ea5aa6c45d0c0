"""One-time truth tables against tables that are written out."""

from __future__ import annotations

import numpy as np
import pytest

from deepreduce.private.protocol.lookup import carries, look_up, pad_words, permute_client, permute_server, table_words
from deepreduce.private.ring import random_words

SIZES = range(1, 11)


def whole(*shape: int) -> np.ndarray:
    """Random words of 64 bits."""
    return random_words(shape, 60) << np.uint64(4) | random_words(shape, 4)


def written(table: np.ndarray, index_bits: int) -> np.ndarray:
    """The bits of tables, [n, 2^L]."""
    return np.unpackbits(table.view(np.uint8), axis=1, bitorder="little")[:, : 1 << index_bits]


@pytest.mark.parametrize("index_bits", SIZES)
def test_a_table_of_carries(index_bits: int) -> None:
    every = np.arange(1 << index_bits, dtype=np.uint64)
    table = carries(every, index_bits)
    assert table.shape == (len(every), table_words(index_bits))
    assert np.array_equal(written(table, index_bits), every[:, None] + every >= 1 << index_bits)
    for u in every[:: max(1, len(every) // 16)]:
        assert np.array_equal(look_up(table, np.full(len(every), u)), (every + u >= 1 << index_bits).astype(np.uint64))


@pytest.mark.parametrize("index_bits", SIZES)
def test_the_shares_give_the_permuted_table(index_bits: int) -> None:
    n = 300
    table = whole(n, table_words(index_bits))
    a = random_words((n,), index_bits)
    zeros, ones = (whole(index_bits, n, pad_words(index_bits)) for _ in range(2))
    own, sent = permute_client(table, zeros, ones)
    chosen = np.where(
        (a >> np.arange(index_bits, dtype=np.uint64)[:, None] & np.uint64(1))[..., None] == 1, ones, zeros
    )
    theirs = permute_server(a, chosen, sent, index_bits)
    places = np.arange(1 << index_bits) ^ a[:, None].astype(np.int64)
    expected = np.take_along_axis(written(table, index_bits), places, axis=1)
    assert np.array_equal(written(own, index_bits) ^ written(theirs, index_bits), expected)
    # neither share alone is the table, and what travels is not the difference of the halves
    assert (written(own, index_bits) != written(table, index_bits)).any()
    assert (written(theirs, index_bits) != expected).any()
    u = random_words((n,), index_bits)
    assert np.array_equal(look_up(own, u ^ a) ^ look_up(theirs, u ^ a), look_up(table, u))
