"""The format of a frame, byte by byte."""

from __future__ import annotations

import json
import pickle
import re
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.errors import printable
from deepreduce.private.wire import CODES, MAX_ERROR_BYTES, Kind, PeerError, WireError
from deepreduce.private.wire.frames import decode_error, decode_header, encode_error, encode_header, flat_view


def test_example() -> None:
    header = encode_header(Kind.TABLES, 7, 65536)
    assert decode_header(header) == (Kind.TABLES, 7, 65536)


def test_golden_header() -> None:
    golden = "4452 01 09 04030201 0807060504030201"
    assert encode_header(Kind.CORRECTIONS, 0x01020304, 0x0102030405060708) == bytes.fromhex(golden)


def test_golden_error() -> None:
    assert encode_error("busy", 'try "later"') == b'{"code": "busy", "message": "try \\"later\\""}'


def test_errors_have_four_parts() -> None:
    for code in sorted(CODES):
        told = decode_error(encode_error(code, "so it is"), "[::1]:7000")
        assert (told.code, told.message, told.peer) == (code, "so it is", "[::1]:7000")
        assert re.fullmatch(rf"[A-Z].+\. Got: {code}: so it is\. Do: .+\. Where: \[::1\]:7000\.", str(told))
        again = pickle.loads(pickle.dumps(told))
        assert (str(again), again.code) == (str(told), code)
    assert "Got: news: so it is" in str(decode_error(encode_error("news", "so it is"), "peer"))  # of a newer version


def test_numbers_of_the_kinds() -> None:
    words = "HELLO WELCOME OFFER CHOICES SUMS KEY REQUEST ANSWER CORRECTIONS TABLES PREPARE READY START GO INPUT LABELS"
    words += " WORDS RESULT BYE LOST"
    assert {kind.name: kind.value for kind in Kind} == {
        **{word: number for number, word in enumerate(words.split(), 1)},
        "ERROR": 255,
    }


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"HT\1\1" + bytes(12), "begin with"),
        (b"DR\2\1" + bytes(12), "version 2"),
        (b"DR\1\0" + bytes(12), "kind 0"),
        (b"DR\1\x15" + bytes(12), "kind 21"),
        (b"DR\1\1" + bytes(11), "15 bytes"),
        (b"DR\1\1" + bytes(13), "17 bytes"),
    ],
)
def test_wrong_headers(header: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said):
        decode_header(header)


@given(st.binary(min_size=16, max_size=16))
def test_any_header_is_refused_or_comes_back(header: bytes) -> None:
    try:
        decoded = decode_header(header)
    except WireError:
        return
    assert encode_header(*decoded) == header


def test_no_sequence_number_comes_twice() -> None:
    encode_header(Kind.BYE, 2**32 - 1, 0)
    with pytest.raises(WireError, match="4,294,967,296 frames"):
        encode_header(Kind.BYE, 2**32, 0)


@given(st.sampled_from(sorted(CODES)), st.text(max_size=3000))
def test_errors_round_trip(code: str, message: str) -> None:
    body = encode_error(code, message)
    assert len(body) <= MAX_ERROR_BYTES
    error = decode_error(body, "peer")
    assert error.code == code
    assert error.message == error.message.strip()
    assert error.message.isprintable()
    if len(body) < MAX_ERROR_BYTES * 3 // 4:
        assert error.message == printable(message)


@pytest.mark.parametrize("message", ["\x00" * 5000, "\\" * 5000, "\U0001f600" * 5000, "\ud800", '"' * 5000])
def test_an_error_is_cut_to_fit(message: str) -> None:
    body = encode_error("limit", message)
    assert len(body) <= MAX_ERROR_BYTES
    assert decode_error(body, "peer").code == "limit"


def test_a_code_that_is_no_word_becomes_internal() -> None:
    assert json.loads(encode_error("No word!", "x"))["code"] == "internal"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"[" * 2048, b'"x"', b"1", b"{}", b'{"code": "busy"}', b'{"code": 1, "message": "x"}', b"\xff",
     b'{"code": "busy", "message": ["x"]}', b'{"code": "\\u001b[2J", "message": ""}',
     b'{"code": "busy", "message": "' + b"x" * 2048 + b'"}'],
)  # fmt: skip
def test_wrong_errors(body: bytes) -> None:
    with pytest.raises(WireError, match="ERROR frame") as caught:
        decode_error(body, "peer")
    assert not isinstance(caught.value, PeerError)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain — größer", "plain — größer"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x1b]52;c;cm0gLXJm", "a"),
        ("\x9b2Jgone", "gone"),
        ("\x1b\x1b[31m[31m", "[31m"),
        ("one\r\n\ttwo", "one two"),
        ("\u202eright to left\u2066", "right to left"),
        ("\ud800\x00\x7f", ""),
    ],
)
def test_what_a_terminal_gets(text: str, shown: str) -> None:
    assert printable(text) == shown


RECORD = np.dtype([("id", "<u2"), ("value", "<f8")])


@pytest.mark.parametrize(
    "part",
    [
        b"abc", bytearray(b"abc"), memoryview(b"abc"), memoryview(b"abcdef")[1:3], memoryview(np.arange(4.0)),
        np.arange(6, dtype=np.int64).reshape(2, 3), np.arange(3, dtype=">u4"), np.zeros(3, np.complex64),
        np.array(3, dtype=np.int16), np.ones(3, RECORD), np.array(["2020-01-01"], "datetime64[s]"), np.ones(5, bool),
        np.float16([1, 2]), np.arange(6)[2:4], memoryview(np.arange(6).reshape(2, 3)),
    ],
)  # fmt: skip
def test_memory_of_any_type(part: Any) -> None:
    view = flat_view(part)
    expected = part.tobytes() if isinstance(part, np.ndarray | memoryview) else bytes(part)
    assert view.tobytes() == expected
    assert (view.format, view.ndim, len(view)) == ("B", 1, len(expected))
    if isinstance(part, np.ndarray):
        assert np.shares_memory(np.frombuffer(view, np.uint8), part)


@pytest.mark.parametrize("part", [b"", bytearray(), memoryview(b""), np.empty((0, 3)), np.empty((3, 0), RECORD)])
def test_no_memory(part: Any) -> None:
    assert len(flat_view(part)) == 0


@pytest.mark.parametrize(
    "part",
    [
        "text",
        3,
        None,
        [1, 2],
        np.arange(6)[::2],
        np.arange(6).reshape(2, 3).T,
        np.array([object()]),
        memoryview(b"abcd")[::2],
    ],
)
def test_what_is_no_memory(part: Any) -> None:
    with pytest.raises(WireError, match="parts of a body"):
        flat_view(part)


def test_header_is_little_endian_and_16_bytes() -> None:
    assert struct.calcsize("<2sBBIQ") == 16 == len(encode_header(Kind.HELLO, 0, 0))
