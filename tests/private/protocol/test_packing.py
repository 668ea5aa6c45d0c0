"""Ring elements as bytes and back, in whole bytes of every number."""

from __future__ import annotations

import numpy as np
import pytest

from deepreduce.errors import DeepReduceError
from deepreduce.private.protocol.packing import pack, packed_bytes, unpack
from deepreduce.private.ring import random_words


@pytest.mark.parametrize("bits", [1, 8, 9, 16, 17, 24, 28, 32, 33, 40, 53, 62])
def test_what_is_packed_comes_back(bits: int) -> None:
    values = random_words((7, 5), bits)
    raw = pack(values, bits)
    assert raw.dtype == np.uint8 and raw.size == packed_bytes(35, bits) == 35 * -(-bits // 8)
    back = unpack(raw, (7, 5), bits)
    assert back.dtype == np.uint64 and np.array_equal(back, values)
    assert np.array_equal(pack(values.T, bits), pack(np.ascontiguousarray(values.T), bits))


def test_example_the_bytes_are_little_endian() -> None:
    values = np.array([0x0102, 0x030405], np.uint64)
    assert pack(values, 24).tolist() == [2, 1, 0, 5, 4, 3]
    assert pack(values, 32).tolist() == [2, 1, 0, 0, 5, 4, 3, 0]


@pytest.mark.parametrize("bits", [4, 12, 20, 28])
def test_bits_beyond_the_ring_are_cleared(bits: int) -> None:
    raw = np.full(packed_bytes(3, bits), 255, np.uint8)
    assert unpack(raw, (3,), bits).tolist() == [2**bits - 1] * 3


def test_another_length_is_refused() -> None:
    with pytest.raises(DeepReduceError, match=r"Got: 11.*Do: "):
        unpack(np.zeros(11, np.uint8), (3,), 28)
