"""Messages: sizes and golden bytes, and what happens to those that a stranger made up."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.private.homomorphic import (
    Answer,
    Keys,
    MessageError,
    Parameters,
    PublicKey,
    Request,
    answer_size,
    draw_share,
    generate_keys,
    key_size,
    plan_layer,
    prepare_weights,
    receive,
    request,
    request_size,
    respond,
)
from deepreduce.private.homomorphic.scheme import pack, scheme, unpack
from deepreduce.private.homomorphic.wire import HEADER_BYTES

from .exact import CALM, layer

SHAPE = layer(2, 3, 8)
PLAN = plan_layer(SHAPE)
PARAMETERS = Parameters(27, (56, 56))
GOLDEN = ("97e99f0bdae0be900d0e0ffc45ef653b", "da265e9635f8415410da01dcfac37296")
"""SHA-256 of 'deepreduce bfv 1 N=8192 t=2^27 q=(56, 56) P=30' and of the plan, cut to 16 bytes."""

OTHERS = [Parameters(28, (56, 56)), Parameters(27, (60, 60)), Parameters(27, (56, 40, 40))]


@pytest.fixture(scope="module")
def keys() -> Keys:
    return generate_keys(PARAMETERS)


@pytest.fixture(scope="module")
def messages(keys: Keys) -> dict[str, bytes]:
    prepared = prepare_weights(PARAMETERS, PLAN, np.ones(SHAPE.weight_shape, np.int64), weight_bits=8)
    sent = request(keys, PLAN, draw_share(PARAMETERS, SHAPE.in_shape))
    answer = respond(prepared, PublicKey.of(keys), sent).answer
    return {"key": PublicKey.of(keys).to_bytes(), "request": sent.to_bytes(), "answer": answer.to_bytes()}


def read(kind: str, data: bytes, parameters: Parameters = PARAMETERS, plan=PLAN):
    if kind == "key":
        return PublicKey.from_bytes(parameters, data)
    return (Request if kind == "request" else Answer).from_bytes(parameters, plan, data)


KINDS = ("key", "request", "answer")


def test_example_messages_come_back_as_they_went(keys: Keys, messages: dict[str, bytes]) -> None:
    for kind in KINDS:
        assert read(kind, messages[kind]).to_bytes() == messages[kind]
    assert read("key", messages["key"]) == PublicKey.of(keys)


def test_sizes_are_what_the_protocol_says(messages: dict[str, bytes]) -> None:
    n, outputs = 8192, 3 * 8 * 8
    assert (PLAN.requests, PLAN.answers) == (1, 1)
    assert len(messages["key"]) == key_size(PARAMETERS) == 40 + 2 * n * (7 + 7 + 4)
    assert len(messages["request"]) == request_size(PARAMETERS, PLAN) == 40 + 64 + n * 14
    assert len(messages["answer"]) == answer_size(PARAMETERS, PLAN) == 40 + n * 6 + outputs * 4


def test_golden_headers(messages: dict[str, bytes]) -> None:
    names = {kind: messages[kind][:HEADER_BYTES].hex() for kind in KINDS}
    parameters, plan = GOLDEN
    assert names == {
        "key": "44524845" + "01010000" + parameters + "00" * 16,
        "request": "44524845" + "02010000" + parameters + plan,
        "answer": "44524845" + "03010000" + parameters + plan,
    }


def test_an_answer_is_at_most_half_of_what_seal_would_send() -> None:
    plan = plan_layer(layer(64, 64, 32))
    assert answer_size(PARAMETERS, plan) / plan.answers < 65_536
    assert request_size(PARAMETERS, plan) / plan.requests < 115_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [0, 1, 39, 40, 41, 1000, -1])
def test_truncated(kind: str, cut: int, messages: dict[str, bytes]) -> None:
    with pytest.raises(MessageError, match=r"must have .* bytes"):
        read(kind, messages[kind][:cut])


@pytest.mark.parametrize("kind", KINDS)
def test_oversized(kind: str, messages: dict[str, bytes]) -> None:
    with pytest.raises(MessageError, match=r"must have .* bytes"):
        read(kind, messages[kind] + b"\0")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 3, 4, 5, 6, 8, 23])
def test_foreign_header(kind: str, place: int, messages: dict[str, bytes]) -> None:
    data = bytearray(messages[kind])
    data[place] ^= 1
    with pytest.raises(MessageError, match="must carry"):
        read(kind, bytes(data))


@pytest.mark.parametrize("kind", ["request", "answer"])
def test_other_plan_of_the_same_size(kind: str, messages: dict[str, bytes]) -> None:
    other = plan_layer(layer(2, 3, 8, 5))
    assert request_size(PARAMETERS, other) == request_size(PARAMETERS, PLAN)
    with pytest.raises(MessageError, match="plan"):
        read(kind, messages[kind], plan=other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_other_parameters(kind: str, other: Parameters, messages: dict[str, bytes]) -> None:
    with pytest.raises(MessageError):
        read(kind, messages[kind], other)


@pytest.mark.parametrize("kind", ["key", "request"])
def test_words_that_are_not_below_their_prime(kind: str, messages: dict[str, bytes]) -> None:
    start = HEADER_BYTES + (64 if kind == "request" else 0)
    prime = scheme(PARAMETERS).primes[0]
    for value, good in ((prime - 1, True), (prime, False), ((1 << 56) - 1, False)):
        data = bytearray(messages[kind])
        data[start : start + 7] = value.to_bytes(7, "little")
        if good:
            read(kind, bytes(data))
        else:
            with pytest.raises(MessageError, match="below its modulus"):
                read(kind, bytes(data))


def test_words_of_an_answer_that_are_not_below_the_prime(keys: Keys) -> None:
    parameters = Parameters(39, (56, 56))  # here nothing of the second polynomial is dropped
    owner = generate_keys(parameters)
    size = answer_size(parameters, PLAN)
    header = Answer(parameters, PLAN, []).to_bytes()
    data = header + b"\xff" * (size - HEADER_BYTES)
    with pytest.raises(MessageError, match="below its modulus"):
        receive(owner, Answer.from_bytes(parameters, PLAN, data))


@settings(CALM, max_examples=40)
@given(st.data())
def test_fuzzed_bytes_are_decrypted_or_refused_but_never_crash(keys: Keys, messages, data) -> None:
    """Also a hostile request in good form is answered, and a hostile answer in good form decrypted, to garbage."""
    kind = data.draw(st.sampled_from(KINDS))
    content = bytearray(messages[kind])
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=30)
    ):
        content[place] = value
    start = data.draw(st.integers(0, len(content)))
    length = data.draw(st.sampled_from([0, 100, 10_000]))
    content[start : start + length] = os.urandom(len(content[start : start + length]))
    prepared = prepare_weights(PARAMETERS, PLAN, np.ones(SHAPE.weight_shape, np.int64), weight_bits=8)
    try:
        message = read(kind, bytes(content))
        if kind == "answer":
            receive(keys, message)
        elif kind == "request":
            respond(prepared, PublicKey.of(keys), message)
        else:
            respond(prepared, message, read("request", messages["request"]))
    except MessageError as error:
        assert "Do:" in str(error)


@CALM
@given(st.integers(1, 8), st.lists(st.integers(0, (1 << 64) - 1), max_size=20))
def test_packing_keeps_the_low_bytes(size: int, values: list[int]) -> None:
    words = np.array(values, np.uint64)
    data = pack(words, size)
    assert data == b"".join((v % (1 << 8 * size)).to_bytes(size, "little") for v in values)
    assert unpack(data, size, 1 << 64, what="a test").tolist() == [v % (1 << 8 * size) for v in values]


def test_keys_show_no_secret_and_survive_a_worker(keys: Keys) -> None:
    assert "secret" not in repr(keys) and "words" not in repr(PublicKey.of(keys))
    assert pickle.loads(pickle.dumps(keys)) == keys
    assert generate_keys(PARAMETERS).secret != keys.secret
