"""The wire: exact sizes, round trips, and nothing but a clear refusal for a stranger's bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.private.transfer import (
    MAX_BATCH,
    MAX_POSITION,
    BaseChoices,
    BaseOffer,
    Corrections,
    TransferError,
    TreeSums,
    base_choices_bytes,
    base_offer_bytes,
    corrections_bytes,
    tree_sums_bytes,
)

SESSION = bytes(range(16))
KINDS: list[Any] = [BaseOffer, BaseChoices, TreeSums, Corrections]


@pytest.fixture(scope="module")
def encoded(set_up: Callable[..., Any]) -> list[bytes]:
    """One honest message of each kind."""
    pair = set_up()
    return [*pair.wire, pair.batch(np.ones(200, np.uint8))[2]]


def test_example() -> None:
    message = Corrections(SESSION, 4, 7, 130, np.arange(1024, dtype=np.uint8).reshape(2, 32, 16))
    data = message.encode()
    assert len(data) == corrections_bytes(130) == 40 + 2 * 512
    again = Corrections.decode(data)
    assert (again.session, again.field_bits, again.position, again.count) == (SESSION, 4, 7, 130)
    assert np.array_equal(again.rows, message.rows)


def test_sizes(encoded: list[bytes]) -> None:
    sizes = [base_offer_bytes(), base_choices_bytes(), tree_sums_bytes(), corrections_bytes(200)]
    assert sizes == [len(data) for data in encoded] == [72, 4136, 3112, 40 + 1024]
    assert [tree_sums_bytes(k) for k in (1, 2, 4, 8)] == [40, 40 + 64 * 32, 40 + 32 * 96, 40 + 16 * 224]
    assert [corrections_bytes(128 * 10, k) - 40 for k in (1, 2, 4, 8)] == [20480, 10240, 5120, 2560]
    assert corrections_bytes(0) == 40
    assert corrections_bytes(MAX_BATCH) == 40 + 4 * MAX_BATCH
    for call in (lambda: corrections_bytes(MAX_BATCH + 1), lambda: corrections_bytes(-1), lambda: tree_sums_bytes(3)):
        with pytest.raises(TransferError):
            call()


def test_round_trips(encoded: list[bytes]) -> None:
    for kind, data in zip(KINDS, encoded, strict=True):
        for form in (data, bytearray(data), memoryview(data)):
            assert bytes(kind.decode(form).encode()) == data


def test_every_truncation_and_extension_is_refused(encoded: list[bytes]) -> None:
    for kind, data in zip(KINDS, encoded, strict=True):
        for length in [*range(48), len(data) - 16, len(data) - 1]:
            with pytest.raises(TransferError, match="must have"):
                kind.decode(data[:length])
        with pytest.raises(TransferError, match="exactly"):
            kind.decode(data + b"\0")


def test_messages_do_not_pass_for_each_other(encoded: list[bytes]) -> None:
    for place, kind in enumerate(KINDS):
        for other, data in enumerate(encoded):
            if other != place:
                with pytest.raises(TransferError, match="of kind"):
                    kind.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        None,
        "text",
        5,
        [1, 2],
        np.zeros(72, np.uint8),
        memoryview(bytes(200))[::2],
        memoryview(np.zeros(18, ">u4")),
        memoryview(np.zeros((0, 72), np.uint8)),
        memoryview(np.zeros(9, "u4,u4")),
    ],
)
def test_other_types_are_refused(data: Any) -> None:
    for kind in KINDS:
        with pytest.raises(TransferError, match="essage must"):
            kind.decode(data)


def test_headers_that_lie_reserve_nothing(encoded: list[bytes]) -> None:
    """Field bits, positions, and counts out of range, and counts that do not fit the body."""
    for kind, data in zip(KINDS, encoded, strict=True):
        name, k, position, count, session = struct.unpack("<4sIQQ16s", data[:40])
        lies = [(9, position, count), (0xFFFFFFFF, position, count), (k, 1 << 63, count), (k, MAX_POSITION, count)]
        if kind is not BaseOffer:
            lies += [(k, position, count + 128), (k, position, count - 128)]
        lies += [(k, position, value) for value in (MAX_BATCH + 1, 1 << 40, (1 << 64) - 1)]
        for bits, at, number in lies:
            if number < 0:
                continue
            with pytest.raises(TransferError):
                kind.decode(struct.pack("<4sIQQ16s", name, bits, at, number, session) + data[40:])


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200), kind=st.integers(0, 3), keep=st.integers(0, 40))
def test_random_bytes_raise_nothing_else(encoded: list[bytes], data: bytes, kind: int, keep: int) -> None:
    """Honest header up to a random place, noise behind it: a message, or a TransferError."""
    try:
        message = KINDS[kind].decode(encoded[kind][:keep] + data)
    except TransferError:
        return
    assert bytes(message.encode()) == encoded[kind][:keep] + data


@settings(max_examples=300, deadline=None)
@given(kind=st.integers(0, 3), place=st.integers(0, 39), flip=st.integers(1, 255))
def test_a_changed_header_is_another_message_or_none(encoded: list[bytes], kind: int, place: int, flip: int) -> None:
    data = bytearray(encoded[kind])
    data[place] ^= flip
    try:
        message = KINDS[kind].decode(data)
    except TransferError:
        return
    assert bytes(message.encode()) == data


def test_messages_built_by_hand_are_checked() -> None:
    for call in (
        lambda: BaseOffer(SESSION, 1, bytes(31)),
        lambda: BaseOffer(SESSION, -1, bytes(32)),
        lambda: BaseOffer(b"short", 1, bytes(32)),
        lambda: BaseChoices(SESSION, np.zeros((3, 31), np.uint8)),
        lambda: BaseChoices(SESSION, np.zeros((3, 32), np.int8)),
        lambda: BaseChoices(SESSION, np.zeros((5000, 32), np.uint8)),
        lambda: TreeSums(SESSION, 4, np.zeros((32, 4, 2, 16), np.uint8)),
        lambda: Corrections(SESSION, 4, 0, 129, np.zeros((1, 32, 16), np.uint8)),
        lambda: Corrections(SESSION, 4, -1, 1, np.zeros((1, 32, 16), np.uint8)),
        lambda: Corrections(SESSION, 4, 0.5, 1, np.zeros((1, 32, 16), np.uint8)),  # type: ignore[arg-type]
        lambda: Corrections(SESSION, 4, MAX_POSITION, 1, np.zeros((1, 32, 16), np.uint8)),
        lambda: Corrections(SESSION, 4, 0, 1, np.zeros((1, 32, 32), np.uint8)[:, :, ::2]),
    ):
        with pytest.raises(TransferError):
            call()
