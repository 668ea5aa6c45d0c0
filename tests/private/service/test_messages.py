"""The small messages: their bytes, and that nothing else is taken for one."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.private.protocol import PROTOCOL
from deepreduce.private.service.messages import (
    MAX_IMAGES,
    MAX_SMALL_BYTES,
    MAX_TOGETHER,
    Hello,
    Lost,
    Prepare,
    Ready,
    Start,
    Welcome,
)
from deepreduce.private.wire import WireError

MODEL, SESSION = bytes(range(32)), bytes(range(16))
HEX = SESSION.hex()

GOLDEN = [
    (Hello(MODEL), b'{"protocol":7,"model":"' + MODEL.hex().encode() + b'"}'),
    (
        Welcome(SESSION, ("label", "logits"), 64, 1000, 128),
        b'{"protocol":7,"session":"000102030405060708090a0b0c0d0e0f","reveal":["label","logits"],"images":64,'
        b'"bundles":1000,"together":128}',
    ),
    (Prepare(3, 2), b'{"bundles":3,"together":2}'),
    (Ready(7), b'{"number":7}'),
    (
        Start(((SESSION, 0), (SESSION, 5)), "logits"),
        b'{"bundles":[["000102030405060708090a0b0c0d0e0f",0],["000102030405060708090a0b0c0d0e0f",5]],"reveal":"logits"}',
    ),
]
KINDS = [Hello, Welcome, Prepare, Ready, Start]
BASE = {type(message): json.loads(data) for message, data in GOLDEN}

sessions = st.binary(min_size=16, max_size=16)
numbers = st.integers(0, 2**48 - 1)


@pytest.mark.parametrize(("message", "data"), GOLDEN, ids=lambda value: type(value).__name__)
def test_example_the_bytes_are_these(message: Any, data: bytes) -> None:
    assert message.encode() == data
    assert type(message).decode(data) == message == type(message).decode(bytearray(data))


@given(
    st.lists(st.tuples(sessions, numbers), min_size=1, max_size=50, unique=True), st.sampled_from(["label", "logits"])
)
def test_a_start_comes_back(bundles: list[tuple[bytes, int]], reveal: Any) -> None:
    start = Start(tuple(bundles), reveal)
    assert Start.decode(start.encode()) == start


@given(sessions, st.integers(1, MAX_IMAGES), st.integers(1, 2**31), st.integers(1, MAX_TOGETHER), st.integers(0, 99))
def test_a_welcome_comes_back(session: bytes, images: int, bundles: int, together: int, protocol: int) -> None:
    welcome = Welcome(session, ("label",), images, bundles, together, protocol)
    assert Welcome.decode(welcome.encode()) == welcome


def test_the_largest_start_fits_a_small_frame() -> None:
    largest = Start(tuple((bytes([255]) * 16, 2**48 - 1 - number) for number in range(MAX_IMAGES)), "logits")
    assert len(largest.encode()) <= MAX_SMALL_BYTES
    assert Start.decode(largest.encode()) == largest


def test_what_was_lost_comes_back() -> None:
    other = bytes(16)
    start = Start(((SESSION, 0), (SESSION, 5), (other, 5)), "label")
    for lost in (Lost((0,)), Lost((0, 2), (other,)), Lost((0, 1, 2), (other, SESSION)), Lost((2,), (other,))):
        assert Lost.decode(lost.encode(), start) == lost
    assert Lost((0, 2), (other,)).encode() == b'{"bundles":[0,2],"sessions":["' + b"00" * 16 + b'"]}'
    largest = Start(tuple((number.to_bytes(16, "big"), number) for number in range(MAX_IMAGES)), "label")
    everything = Lost(tuple(range(MAX_IMAGES)), tuple(session for session, _ in largest.bundles))
    assert len(everything.encode()) <= MAX_SMALL_BYTES
    assert Lost.decode(everything.encode(), largest) == everything


@pytest.mark.parametrize(
    "wrong",
    [
        {"bundles": [], "sessions": []},
        {"bundles": [2], "sessions": []},
        {"bundles": [-1], "sessions": []},
        {"bundles": [1, 0], "sessions": []},
        {"bundles": [0, 0], "sessions": []},
        {"bundles": [True], "sessions": []},
        {"bundles": [0.0], "sessions": []},
        {"bundles": ["0"], "sessions": []},
        {"bundles": [[0]], "sessions": []},
        {"bundles": [0]},
        {"sessions": []},
        {"bundles": 0, "sessions": []},
        {"bundles": [0], "sessions": "00"},
        {"bundles": [0], "sessions": [HEX.upper()]},
        {"bundles": [0], "sessions": [["x"]]},
        {"bundles": [0], "sessions": ["00" * 16]},  # of a bundle that is not lost
    ],
    ids=str,
)
def test_a_server_cannot_say_that_other_bundles_are_lost(wrong: dict[str, Any]) -> None:
    with pytest.raises(WireError, match=r"LOST is the JSON.*Got: .*Do: "):
        Lost.decode(json.dumps(wrong).encode(), Start(((SESSION, 0), (bytes(16), 5)), "label"))


@given(st.integers(1, 3000), st.integers(1, MAX_TOGETHER))
def test_bundles_are_prepared_in_lots(bundles: int, together: int) -> None:
    lots = list(Prepare(bundles, together).parts())
    assert sum(lots) == bundles and lots == sorted(lots, reverse=True) and lots[0] <= together
    assert lots[0] > min(bundles, together) * 2 // 3 or lots[0] == min(bundles, together)
    assert all(f"{lot:b}"[2:].strip("0") == "" for lot in lots)  # so that there are few sizes


def test_keys_of_a_later_version_are_left_alone() -> None:
    assert Prepare.decode(b'{"bundles":3,"together":2,"colour":"blue"}') == Prepare(3, 2)
    assert Hello.decode(json.dumps(BASE[Hello] | {"protocol": PROTOCOL + 1}).encode()).protocol == PROTOCOL + 1


REFUSED = [
    (Hello, {"model": None}),
    (Hello, {"model": MODEL.hex()[:-2]}),
    (Hello, {"model": MODEL.hex() + "00"}),
    (Hello, {"model": MODEL.hex().upper()}),
    (Hello, {"model": " " + MODEL.hex()}),
    (Hello, {"model": "é" * 64}),
    (Hello, {"model": 5}),
    (Hello, {"protocol": "1"}),
    (Hello, {"protocol": True}),
    (Hello, {"protocol": 1.0}),
    (Welcome, {"session": HEX[:-1]}),
    (Welcome, {"session": HEX * 2}),
    (Welcome, {"reveal": []}),
    (Welcome, {"reveal": "label"}),
    (Welcome, {"reveal": ["label", 3]}),
    (Welcome, {"reveal": ["label", "\x1b]0;boo\x07"]}),
    (Welcome, {"images": 0}),
    (Welcome, {"images": MAX_IMAGES + 1}),
    (Welcome, {"images": -(2**70)}),
    (Welcome, {"bundles": 0}),
    (Welcome, {"bundles": 2**31 + 1}),
    (Welcome, {"bundles": 1e300}),
    (Welcome, {"together": 0}),
    (Welcome, {"together": MAX_TOGETHER + 1}),
    (Prepare, {"together": 0}),
    (Prepare, {"together": MAX_TOGETHER + 1}),
    (Prepare, {"bundles": 0}),
    (Prepare, {"bundles": -1}),
    (Prepare, {"bundles": 2**31 + 1}),
    (Prepare, {"bundles": 10**400}),
    (Prepare, {"bundles": True}),
    (Prepare, {"bundles": [1]}),
    (Ready, {"number": -1}),
    (Ready, {"number": 2**48}),
    (Ready, {"number": None}),
    (Start, {"bundles": []}),
    (Start, {"bundles": {}}),
    (Start, {"bundles": [HEX, 0]}),
    (Start, {"bundles": [[HEX]]}),
    (Start, {"bundles": [[HEX, 0, 0]]}),
    (Start, {"bundles": [[HEX, -1]]}),
    (Start, {"bundles": [[HEX, 2**48]]}),
    (Start, {"bundles": [[HEX, "0"]]}),
    (Start, {"bundles": [[HEX[:-2], 0]]}),
    (Start, {"bundles": [[0, 0]]}),
    (Start, {"bundles": [[HEX, 1], [HEX, 1]]}),
    (Start, {"bundles": [[HEX, number] for number in range(MAX_IMAGES + 1)]}),
    (Start, {"reveal": "weights"}),
    (Start, {"reveal": ["label"]}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_refused(kind: Any, change: dict[str, Any]) -> None:
    with pytest.raises(WireError, match=rf"{kind.__name__.upper()}.*Got: .*Do: ") as caught:
        kind.decode(json.dumps(BASE[kind] | change).encode())
    assert len(str(caught.value)) < 600 and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_missing_field_is_refused(kind: Any) -> None:
    for name in BASE[kind]:
        with pytest.raises(WireError):
            kind.decode(json.dumps({key: value for key, value in BASE[kind].items() if key != name}).encode())


BYTES = [
    b"", b"{", b"null", b"[]", b'"text"', b"3", b"\xff\xfe", b"{}", b"[" * 60_000, b'{"bundles":' * 9_000,
    b'{"bundles":NaN}', b'{"bundles":Infinity}', b'{"bundles":' + b"9" * 5_000 + b"}", bytes(1000),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", BYTES, ids=lambda data: repr(data[:12]))
def test_bytes_that_are_no_message_are_refused(kind: Any, data: bytes) -> None:
    with pytest.raises(WireError):
        kind.decode(data)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), st.data())
def test_any_json_is_a_message_or_refused(kind: Any, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(BASE[kind])))
    content = json.dumps(BASE[kind] | {name: data.draw(values)}).encode()
    try:
        message = kind.decode(content)
    except WireError:
        return
    assert kind.decode(message.encode()) == message


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), st.binary(max_size=80))
def test_any_bytes_are_a_message_or_refused(kind: Any, data: bytes) -> None:
    with contextlib.suppress(WireError):
        kind.decode(data)
