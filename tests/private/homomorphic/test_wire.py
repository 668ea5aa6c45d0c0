"""Messages: sizes and golden bytes, and what happens to those that a stranger made up."""

from __future__ import annotations

import contextlib
import hashlib
import math
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
from deepreduce.private.homomorphic.products import read_inputs
from deepreduce.private.homomorphic.residues import pack, unpack
from deepreduce.private.homomorphic.scheme import scheme
from deepreduce.private.homomorphic.wire import HEADER_BYTES, read_answer, write_answer

from .exact import CALM, layer

SHAPE = layer(2, 3, 8)
PLAN = plan_layer(SHAPE)
PARAMETERS = Parameters(27, (56, 56))
GOLDEN = ("97e99f0bdae0be900d0e0ffc45ef653b", "bed3b8e0bbea9e56555ed8aac5ebf9b0")
"""SHA-256 of 'deepreduce bfv 1 N=8192 t=2^27 q=(56, 56) P=30' and of the plan, cut to 16 bytes."""

ANSWERS = {
    (2, (56, 56)): "8ed0f38bf80995f285526cb66a69a06a",
    (27, (56, 56)): "d1424953bf34f54a4077129ba0dca62f",
    (39, (56, 56)): "819d5e915a1f47397155fb0b4460b176",
    (43, (60, 60)): "d319d17eec58cd3a69a4de30f0567ef4",
    (43, (60, 48, 48)): "44efb475a3dfc189fd5ebc7110b66892",
    (35, (56, 40, 40)): "ddd923c218b814f2ad89e6042e37b0d9",
    (44, (56, 40, 40)): "496b3b031bfe7987644aa28177370699",
    (47, (60, 60)): "2fa342b310035eee0678669ba233e617",
    (59, (60, 48, 48)): "93db5bbd800a85224776cf8d3d6da8d8",
    (59, (60, 60, 60)): "ee2d3e1b21a74f2b696d33027fcf54e6",
}
"""SHA-256, cut to 16 bytes, of the body of the answer of `some_words`; one prime, then two."""

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
    assert len(messages["request"]) == request_size(PARAMETERS, PLAN) == 40 + 32 + n * 14
    assert len(messages["answer"]) == answer_size(PARAMETERS, PLAN) == 40 + n * 6 + outputs * 4


def test_golden_headers(messages: dict[str, bytes]) -> None:
    names = {kind: messages[kind][:HEADER_BYTES].hex() for kind in KINDS}
    parameters, plan = GOLDEN
    assert names == {
        "key": "44524845" + "01020000" + parameters + "00" * 16,
        "request": "44524845" + "02020000" + parameters + plan,
        "answer": "44524845" + "03020000" + parameters + plan,
    }


def some_words(parameters: Parameters) -> np.ndarray:
    """Return both polynomials of an answer, many residues close to zero and to the prime."""
    rng, lines = np.random.default_rng(parameters.ring_bits), []
    for prime in scheme(parameters).answer_primes:
        words = rng.integers(0, prime, (2, parameters.degree), dtype=np.uint64)
        words[:, ::7] = prime - 1 - rng.integers(0, 1 << 12, words[:, ::7].shape, dtype=np.uint64)
        words[:, :3] = [0, 1, prime - 1]
        lines.append(words)
    return np.stack(lines, 1)


@pytest.mark.parametrize("of", ANSWERS, ids=str)
def test_golden_answers(of: tuple[int, tuple[int, ...]]) -> None:
    parameters = Parameters(*of)
    body = write_answer(parameters, some_words(parameters), PLAN.results[0][0])
    assert hashlib.sha256(body).hexdigest()[:32] == ANSWERS[of]


@pytest.mark.parametrize(
    "of", [(27, (56, 56)), (44, (56, 40, 40)), (47, (60, 60)), (48, (60, 48, 48)), (59, (60, 60, 60))], ids=str
)
def test_answers_come_back_but_for_their_low_bits(of: tuple[int, tuple[int, ...]]) -> None:
    """The bytes of every coefficient, and the sizes, by integers without limbs."""
    parameters = Parameters(*of)
    primes, rng, places = scheme(parameters).answer_primes, np.random.default_rng(8), PLAN.results[0][0]
    modulus = math.prod(primes)
    words = np.stack([rng.integers(0, prime, (2, parameters.degree), dtype=np.uint64) for prime in primes], 1)
    for column, value in enumerate((0, 1, modulus - 1, modulus // 2, primes[0], modulus - primes[-1])):
        words[:, :, places[column]] = [value % prime for prime in primes]
    body = write_answer(parameters, words, places)
    back = read_answer(parameters, body, places)
    first, second = parameters.answer_bytes
    sizes = (-(-(of[0] + 4) // 8), -(-(of[0] + 17) // 8))
    assert (first, second) == sizes and len(body) == 8192 * second + len(places) * first
    at = 0
    for line, size, where in ((1, second, np.arange(8192)), (0, first, places)):
        drop = max(0, modulus.bit_length() - 8 * size)
        half = (1 << drop) >> 1
        for place in where:
            sent = int.from_bytes(body[at : at + size], "little")
            at += size
            value, found = (_chinese(kind[line, :, place].tolist(), primes) for kind in (words, back))
            assert found == sent << drop
            assert (found - value + half) % modulus <= 2 * half
    assert not np.delete(back[0], places, axis=1).any()


def _chinese(residues: list[int], primes: tuple[int, ...]) -> int:
    """Return the number below the product of the primes that has these residues."""
    modulus = math.prod(primes)
    parts = (r * (modulus // p) * pow(modulus // p, -1, p) for r, p in zip(residues, primes, strict=True))
    return sum(parts) % modulus


def test_a_wide_ring_takes_longer_numbers_and_no_second_set_of_them() -> None:
    plan = plan_layer(layer(64, 64, 32))
    outputs, wide = 64 * 32 * 32, Parameters(59, (60, 60, 60))
    assert answer_size(wide, plan) == 40 + plan.answers * 8192 * 10 + outputs * 8
    assert request_size(wide, plan) == 40 + plan.requests * (32 + 8192 * 24)
    assert answer_size(Parameters(44, (56, 40, 40)), plan) == answer_size(Parameters(43, (60, 48, 48)), plan)


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
    start = HEADER_BYTES + (32 if kind == "request" else 0)
    prime = scheme(PARAMETERS).primes[0]
    for value, good in ((prime - 1, True), (prime, False), ((1 << 56) - 1, False)):
        data = bytearray(messages[kind])
        data[start : start + 7] = value.to_bytes(7, "little")
        with contextlib.nullcontext() if good else pytest.raises(MessageError, match="below its modulus"):
            message = read(kind, bytes(data))
            if isinstance(message, Request):
                read_inputs(PARAMETERS, dict(enumerate(message.bodies)))


@pytest.mark.parametrize("of", [(39, (56, 56)), (44, (56, 40, 40)), (59, (60, 60, 60))], ids=str)
def test_words_of_an_answer_that_are_not_below_the_prime(of: tuple[int, tuple[int, ...]]) -> None:
    parameters = Parameters(*of)  # of the first, nothing of the second polynomial is dropped
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
    assert unpack(data, size, 1 << 64, what="a test")[0].tolist() == [v % (1 << 8 * size) for v in values]


def test_keys_show_no_secret_and_survive_a_worker(keys: Keys) -> None:
    assert "secret" not in repr(keys) and "words" not in repr(PublicKey.of(keys))
    assert pickle.loads(pickle.dumps(keys)) == keys
    assert generate_keys(PARAMETERS).secret != keys.secret
