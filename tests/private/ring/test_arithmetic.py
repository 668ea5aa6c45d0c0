from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.errors import DataError, UsageError
from deepreduce.private.ring import (
    MAX_RING_BITS,
    decode,
    drop_client,
    drop_server,
    encode,
    magnitude_bits,
    random_words,
    reconstruct,
    reduce,
    shift_left,
    signed,
    split,
    truncate_client,
    truncate_server,
    unsigned,
)


def words(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def test_shares_give_the_value_back() -> None:
    values = unsigned(np.array([-5, 0, 7]), 20)
    client = random_words((3,), 20)
    assert np.array_equal(signed(reconstruct(split(values, client, 20), client, 20), 20), [-5, 0, 7])


def test_exhaustive_truncation_of_shares_is_floor_or_ceil_and_unbiased() -> None:
    bits, dropped = 7, 3
    for y in range(-(1 << 6), 1 << 6):
        value = unsigned(np.full(1 << bits, y), bits)
        client = np.arange(1 << bits, dtype=np.uint64)
        left = bits - dropped
        total = reduce(
            drop_server(split(value, client, bits), bits, dropped) + drop_client(client, bits, dropped), left
        )
        floor = y >> dropped
        upper = reduce(unsigned(np.array([floor + 1]), left), left)[0]
        lower = unsigned(np.array([floor]), left)[0]
        assert set(total.tolist()) <= {int(lower), int(upper)}
        # over the uniform share the upper value comes with probability (y mod 8) / 8: exact values stay exact
        assert int((total == upper).sum()) == (y % 8) * (1 << bits) // 8


@given(st.integers(2, MAX_RING_BITS), st.data())
def test_truncation_against_python_integers(bits: int, data: st.DataObject) -> None:
    dropped = data.draw(st.integers(0, bits - 1))
    y = data.draw(st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1))
    share = data.draw(st.integers(0, (1 << bits) - 1))
    server = split(unsigned(np.array([y]), bits), words(share), bits)
    got = int((drop_server(server, bits, dropped) + drop_client(words(share), bits, dropped))[0])
    low = 1 << dropped
    expected = ((y - share + low - 1) % (1 << bits) // low + share // low) % (1 << (bits - dropped))
    assert got % (1 << (bits - dropped)) == expected
    assert expected in {(y // low) % (1 << (bits - dropped)), -(-y // low) % (1 << (bits - dropped))}


@pytest.mark.parametrize("to", [2, 4, 5, 9, 62])
def test_exhaustive_truncation_within_a_ring_fails_for_the_stated_shares_alone(to: int) -> None:
    bits, dropped = 7, 3
    client = np.arange(1 << bits, dtype=np.uint64)
    for y in range(-30, 31):
        server = split(unsigned(np.full(1 << bits, y), bits), client, bits)
        total = truncate_server(server, bits, dropped, to) + truncate_client(client, bits, dropped, to)
        lower, upper = (unsigned(np.array([y // 8 + more]), to)[0] for more in (0, 1))
        got = reduce(total, to)
        right = (got == lower) | ((got == upper) & (y % 8 > 0))
        own = client.astype(np.int64)
        failing = own <= y if y >= 0 else own > (1 << bits) + y
        if to <= bits - dropped:  # what is wrong is a multiple of 2^(bits - dropped)
            failing[:] = False
        assert np.array_equal(right, ~failing)
        assert failing.sum() <= abs(y) + 1
        if not failing.any():
            assert (got == upper).sum() == (y % 8) * (1 << bits) // 8  # unbiased


@given(st.integers(2, MAX_RING_BITS), st.integers(1, MAX_RING_BITS), st.data())
def test_truncation_within_a_ring_against_python_integers(bits: int, to: int, data: st.DataObject) -> None:
    dropped = data.draw(st.integers(0, bits - 1))
    y = data.draw(st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1))
    share = data.draw(st.integers(0, (1 << bits) - 1))
    server = split(unsigned(np.array([y]), bits), words(share), bits)
    got = int(truncate_server(server, bits, dropped, to)[0] + truncate_client(words(share), bits, dropped, to)[0])
    low = 1 << dropped
    expected = ((y - share) % (1 << bits) + low - 1) // low + share // low - (1 << (bits - dropped))
    assert got % (1 << to) == expected % (1 << to)
    if (share > y) if y >= 0 else (share <= (1 << bits) + y):
        assert expected in (y // low, -(-y // low))


@given(st.integers(1, MAX_RING_BITS), st.integers(-(2**63), 2**63 - 1))
def test_signed_and_unsigned_agree_with_python(bits: int, value: int) -> None:
    element = unsigned(np.array([value]), bits)
    assert int(element[0]) == value % (1 << bits)
    back = int(signed(element, bits)[0])
    assert -(1 << (bits - 1)) <= back < 1 << (bits - 1)
    assert (back - value) % (1 << bits) == 0


@given(st.integers(1, MAX_RING_BITS), st.integers(0, MAX_RING_BITS), st.integers(0, 2**62 - 1))
def test_shift_needs_only_the_smaller_ring(bits: int, shift: int, value: int) -> None:
    full = shift_left(words(value), shift, bits)
    assert int(full[0]) == (value << shift) % (1 << bits)
    if bits > shift:
        assert np.array_equal(shift_left(reduce(words(value), bits - shift), shift, bits), full)


@given(st.floats(-7.9, 7.9), st.integers(0, 20))
def test_encoding_is_nearest(value: float, fraction_bits: int) -> None:
    element = encode(np.array([value]), fraction_bits=fraction_bits, bits=30)
    assert abs(decode(element, fraction_bits=fraction_bits, bits=30)[0] - value) <= 2.0 ** -(fraction_bits + 1)


def test_the_edges_of_a_ring_encode_and_what_is_beyond_is_refused() -> None:
    edge = encode(np.array([-8.0, 7.75]), fraction_bits=2, bits=6)
    assert np.array_equal(signed(edge, 6), [-32, 31])
    for beyond in (8.0, -8.26, float("nan"), float("inf")):
        with pytest.raises(DataError, match="calibrate with a larger margin"):
            encode(np.array([beyond]), fraction_bits=2, bits=6)


def test_magnitude_bits() -> None:
    assert [magnitude_bits(x) for x in (1.0, 1.1, 2.0, 0.5, 0.6, 3.0)] == [0, 1, 1, -1, 0, 2]


@pytest.mark.parametrize("bits", [0, 63, -1])
def test_rings_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match="from 1 to 62"):
        reduce(words(1), bits)


def test_a_drop_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="At least one bit"):
        drop_client(words(1), 5, 5)


def test_random_words_fill_the_ring() -> None:
    drawn = random_words((4, 1000), 9)
    assert drawn.shape == (4, 1000)
    assert drawn.max() < 512
    assert len(np.unique(drawn)) > 480
    assert not np.array_equal(drawn, random_words((4, 1000), 9))
