"""The three messages of a homomorphic linear layer: public key, request, answer.

Every message begins with 40 bytes: `DRHE`, kind (1 key, 2 request, 3 answer), version, two zero bytes, 16 bytes that
name the parameters and 16 that name the plan (zeros in a key). What follows has a length that both parties compute from
parameters and plan, so a message is refused by its length before anything of it is read. Numbers are little endian.

* Key: NTT values of both polynomials of the public key, prime by prime, in as many bytes as the prime has.
* Request, per ciphertext: the seed of the second polynomial (32 bytes, `draws.expand`), then the NTT values of the
  first, prime by prime.
* Answer, per ciphertext: the high bits of the N coefficients of the second polynomial, then of those coefficients of
  the first that are results (`Plan.result`), all modulo the first prime, for rings beyond 43 bits modulo the product
  of the first two.

Bytes per number: `Parameters.word_bytes`, `Parameters.answer_bytes`. What `read_ciphertext` and `read_answer` return
are numbers below their primes and nothing else: SEAL never parses a byte that a stranger sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...errors import problem
from .draws import SEED_BYTES
from .errors import MessageError
from .packing import Plan, Words
from .parameters import Parameters
from .residues import cut, pack, restore, unpack
from .scheme import Keys, scheme

Indices = npt.NDArray[np.int32]

VERSION = 2
HEADER_BYTES = 40

_MAGIC = b"DRHE"
_KEY, _REQUEST, _ANSWER = 1, 2, 3
_NAMES = {_KEY: "public key", _REQUEST: "request", _ANSWER: "answer"}
_REMEDY = "check that both parties run the same version and the same network; otherwise drop the connection"


def key_size(parameters: Parameters) -> int:
    """Return the size of a public key message in bytes."""
    per_coefficient = sum(parameters.word_bytes) + -(-parameters.special_bits // 8)
    return HEADER_BYTES + 2 * parameters.degree * per_coefficient


def request_size(parameters: Parameters, plan: Plan) -> int:
    """Return the size of a request in bytes."""
    return HEADER_BYTES + plan.requests * _request_body(parameters)


def answer_size(parameters: Parameters, plan: Plan) -> int:
    """Return the size of an answer in bytes."""
    first, second = parameters.answer_bytes
    return HEADER_BYTES + plan.answers * parameters.degree * second + plan.outputs * first


@dataclass(frozen=True)
class PublicKey:
    """The client's public key, once per connection and parameters; the server blinds its answers with it.

    Attributes:
        parameters: the parameters.
        words: NTT values as SEAL holds them, 8 bytes each.
    """

    parameters: Parameters
    words: bytes = field(repr=False)

    @classmethod
    def of(cls, keys: Keys) -> PublicKey:
        """Return the public half of a client's keys."""
        return cls(keys.parameters, keys.public)

    def to_bytes(self) -> bytes:
        """Return the message."""
        n, sizes = self.parameters.degree, _key_sizes(self.parameters)
        lines = np.frombuffer(self.words, "<u8").reshape(2, len(sizes), n)
        body = b"".join(pack(line, size) for polynomial in lines for line, size in zip(polynomial, sizes, strict=True))
        return _header(_KEY, self.parameters, None) + body

    @classmethod
    def from_bytes(cls, parameters: Parameters, data: bytes) -> PublicKey:
        """Read the message.

        Raises:
            MessageError: it has another length, other parameters, or a word out of range.
        """
        body = _body(_KEY, parameters, None, data, key_size(parameters))
        n, sizes, place, words = parameters.degree, _key_sizes(parameters), 0, []
        for size, prime in [*zip(sizes, scheme(parameters).key_primes, strict=True)] * 2:
            words.append(unpack(body[place : place + n * size], size, prime, what="a public key")[0])
            place += n * size
        return cls(parameters, np.concatenate(words).astype("<u8", copy=False).tobytes())


@dataclass(frozen=True)
class Request:
    """The client's encrypted share of a layer's input.

    Attributes:
        parameters: the parameters.
        plan: the layer's plan.
        bodies: one encoded ciphertext per request of the plan; `read_ciphertext` checks and decodes it.
    """

    parameters: Parameters
    plan: Plan
    bodies: Sequence[bytes] = field(repr=False)

    def to_bytes(self) -> bytes:
        """Return the message."""
        return _header(_REQUEST, self.parameters, self.plan) + b"".join(self.bodies)

    @classmethod
    def from_bytes(cls, parameters: Parameters, plan: Plan, data: bytes) -> Request:
        """Read the message; its words are checked where they are expanded.

        Raises:
            MessageError: it has another length, parameters or plan.
        """
        body = _body(_REQUEST, parameters, plan, data, request_size(parameters, plan))
        size = _request_body(parameters)
        return cls(parameters, plan, [bytes(body[place : place + size]) for place in range(0, len(body), size)])


@dataclass(frozen=True)
class Answer:
    """The server's answer: the encrypted client's share of a layer's output.

    Attributes:
        parameters: the parameters.
        plan: the layer's plan.
        bodies: one encoded ciphertext per answer of the plan.
    """

    parameters: Parameters
    plan: Plan
    bodies: Sequence[bytes] = field(repr=False)

    def to_bytes(self) -> bytes:
        """Return the message."""
        return _header(_ANSWER, self.parameters, self.plan) + b"".join(self.bodies)

    @classmethod
    def from_bytes(cls, parameters: Parameters, plan: Plan, data: bytes) -> Answer:
        """Read the message; its words are checked where they are decrypted.

        Raises:
            MessageError: it has another length, parameters or plan.
        """
        body = _body(_ANSWER, parameters, plan, data, answer_size(parameters, plan))
        first, second = parameters.answer_bytes
        bodies, place = [], 0
        for answer in range(plan.answers):
            end = place + parameters.degree * second + plan.result_count(answer) * first
            bodies.append(bytes(body[place:end]))
            place = end
        return cls(parameters, plan, bodies)


def write_ciphertext(parameters: Parameters, first: Words, seed: bytes) -> bytes:
    """Return the body of a request: seed and words (prime, coefficient)."""
    primes, sizes = scheme(parameters).primes, parameters.word_bytes
    lines = zip(first[:, None], primes, sizes, strict=True)
    return seed + b"".join(cut(line, (prime,), drop=0, size=size) for line, prime, size in lines)


def read_ciphertext(parameters: Parameters, body: bytes) -> tuple[Words, bytes]:
    """Return words (prime, coefficient) and seed of the body of a request.

    Raises:
        MessageError: a word is not below its prime.
    """
    n, place, lines = parameters.degree, SEED_BYTES, []
    for size, prime in zip(parameters.word_bytes, scheme(parameters).primes, strict=True):
        lines.append(restore(body[place : place + n * size], (prime,), drop=0, size=size, what="a request")[0])
        place += n * size
    return np.stack(lines), body[:SEED_BYTES]


def write_answer(parameters: Parameters, words: Words, places: Indices) -> bytes:
    """Return the body of an answer: high bits of the second polynomial, and of the first at some coefficients.

    Args:
        parameters: the parameters.
        words: both polynomials modulo the primes that an answer keeps, shape (2, prime, coefficient).
        places: the coefficients that are results.
    """
    primes = scheme(parameters).answer_primes
    (first, second), (drop_first, drop_second) = _answer_numbers(parameters)
    high = cut(words[1], primes, drop=drop_second, size=second)
    return high + cut(words[0][:, places], primes, drop=drop_first, size=first)


def read_answer(parameters: Parameters, body: bytes, places: Indices) -> Words:
    """Return both polynomials of the body of an answer, shape (2, prime, coefficient); zero where nothing was sent.

    Raises:
        MessageError: a number is not below the modulus.
    """
    n, primes = parameters.degree, scheme(parameters).answer_primes
    (first, second), (drop_first, drop_second) = _answer_numbers(parameters)
    words = np.zeros((2, len(primes), n), np.uint64)
    for start, end, size, drop, line, where in (
        (0, n * second, second, drop_second, 1, slice(None)),
        (n * second, None, first, drop_first, 0, places),
    ):
        words[line][:, where] = restore(body[start:end], primes, drop=drop, size=size, what="an answer")
    return words


def _answer_numbers(parameters: Parameters) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return of both polynomials of an answer the bytes kept and the low bits dropped."""
    bits, (first, second) = sum(parameters.answer_prime_bits), parameters.answer_bytes
    dropped = max(0, bits - 8 * first), max(0, bits - 8 * second)
    return (first, second), dropped


def _key_sizes(parameters: Parameters) -> list[int]:
    return [*parameters.word_bytes, -(-parameters.special_bits // 8)]


def _request_body(parameters: Parameters) -> int:
    return SEED_BYTES + parameters.degree * sum(parameters.word_bytes)


def _header(kind: int, parameters: Parameters, plan: Plan | None) -> bytes:
    return _MAGIC + bytes([kind, VERSION, 0, 0]) + parameters.digest + (plan.digest if plan else bytes(16))


def _body(kind: int, parameters: Parameters, plan: Plan | None, data: bytes, size: int) -> memoryview:
    name = _NAMES[kind]
    if len(data) != size:
        raise MessageError(problem(f"a {name} must have {size:,} bytes", got=f"{len(data):,}", remedy=_REMEDY))
    expected = _header(kind, parameters, plan)
    for start, end, what in ((0, 4, "magic"), (4, 8, "kind and version"), (8, 24, "parameters"), (24, 40, "plan")):
        if data[start:end] != expected[start:end]:
            raise MessageError(
                problem(
                    f"a {name} must carry the {what} {expected[start:end].hex()}",
                    got=data[start:end].hex(),
                    remedy=_REMEDY,
                )
            )
    return memoryview(data)[HEADER_BYTES:]
