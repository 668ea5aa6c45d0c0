"""One-time truth tables against tables that are written out."""

from __future__ import annotations

import numpy as np
import pytest

from deepreduce.private.protocol import lookup
from deepreduce.private.protocol.lookup import carries, look_up, pad_words, permute_client, permute_server, table_words
from deepreduce.private.ring import random_words

SIZES = range(1, 13)
"""The kernel knows tables of up to ten bits."""

needs_kernel = pytest.mark.skipif(lookup._kernel is None, reason="the kernel is not built")


@pytest.fixture(params=["kernel", "numpy"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(lookup, "_kernel", None)
    elif lookup._kernel is None:
        pytest.skip("the kernel is not built")
    return str(request.param)


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


@needs_kernel
@pytest.mark.parametrize("index_bits", range(1, 11))
@pytest.mark.parametrize("n", [1, 257])
def test_kernel_and_numpy_give_the_same_words(n: int, index_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values, a = (random_words((n,), index_bits) for _ in range(2))
    zeros, ones, chosen, received = (whole(index_bits, n, pad_words(index_bits)) for _ in range(4))
    found = []
    for kernel in (lookup._kernel, None):
        monkeypatch.setattr(lookup, "_kernel", kernel)
        table = carries(values, index_bits)
        before = table.copy()
        found.append([table, *permute_client(table, zeros, ones), permute_server(a, chosen, received, index_bits)])
        assert np.array_equal(table, before)
    assert all(np.array_equal(own, other) for own, other in zip(*found, strict=True))


@needs_kernel
def test_the_kernel_checks_every_size(way: str) -> None:
    kernel = lookup._kernel
    if way == "numpy":
        pytest.skip("it is not asked there")
    n, bits = 5, 8
    one = np.zeros(n, np.uint64)
    tables, pads = np.zeros((n, 4), np.uint64), np.zeros((bits, n, 2), np.uint64)
    sent = np.zeros_like(pads)
    kernel.carries(one, bits, tables)
    kernel.permute_client(tables, pads, pads, bits, sent)
    kernel.permute_server(one, pads, pads, bits, tables)
    for odd in (0, 7, 9, 11, -1, 1 << 20):
        for function, *given in (
            (kernel.carries, one, odd, tables),
            (kernel.permute_client, tables, pads, pads, odd, sent),
            (kernel.permute_server, one, pads, pads, odd, tables),
        ):
            with pytest.raises(ValueError, match="sizes are in range"):
                function(*given)
    for function, *given in (
        (kernel.carries, one[:4], bits, tables),
        (kernel.carries, tables.reshape(-1)[:n], bits, tables),  # it would write over what it reads
        (kernel.permute_client, tables[:4], pads, pads, bits, sent),
        (kernel.permute_client, tables, pads[:7], pads, bits, sent),
        (kernel.permute_client, tables, pads, pads[:7], bits, sent),
        (kernel.permute_client, tables, pads, pads, bits, sent[:7]),
        (kernel.permute_client, tables, pads, pads, bits, pads),
        (kernel.permute_server, one[:4], pads, pads, bits, tables),
        (kernel.permute_server, one, pads[:7], pads, bits, tables),
        (kernel.permute_server, one, pads, pads[:7], bits, tables),
        (kernel.permute_server, one, pads, pads, bits, tables[:4]),
    ):
        with pytest.raises(ValueError, match="sizes are in range"):
            function(*given)


def test_words_of_other_types_are_words() -> None:
    for kind in (">u8", "<u4"):
        assert np.array_equal(carries(np.array([1, 7], kind), 3), carries(np.array([1, 7], np.uint64), 3))
