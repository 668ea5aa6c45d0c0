"""The client's side of a homomorphic linear layer: it owns the keys, encrypts its share and decrypts its answer.

Offline, per inference and layer, with x = x_C + x_S the layer's input in Z_2^k:

    client                                             server
    x_C, fresh and uniform                             W
    `request`: Enc(x_C)               ------------>    `respond`: draws s
    `receive`: y_C = W x_C - s        <------------    Enc(W x_C - s), blinded (`noise.py`)

so that online the server alone computes y_S = W x_S + s, and y_C + y_S = W x. One input may be sent once and used by
several layers of the same geometry only if they are one layer with more output channels; otherwise each has its own.
"""

from __future__ import annotations

import numpy as np

from ...errors import problem
from .encryption import Decryptor, Encryptor
from .errors import LayerError
from .packing import Plan, Words
from .parameters import Parameters
from .pool import Pool, run, shares
from .scheme import Keys, scheme
from .wire import Answer, Indices, Request, read_answer, write_ciphertext


def generate_keys(parameters: Parameters) -> Keys:
    """Draw fresh keys from the operating system's randomness.

    Args:
        parameters: what both parties agreed on; one pair of keys per set of parameters.

    Returns:
        The keys; `PublicKey.of(keys)` is the message for the server.
    """
    return scheme(parameters).keys()


def request(keys: Keys, plan: Plan, share: Words, *, pool: Pool | None = None) -> Request:
    """Encrypt the client's share of a layer's input. Every share must be fresh: `noise.py` relies on it.

    Args:
        keys: the client's keys.
        plan: the layer's plan.
        share: x_C, shape `plan.in_shape`, numbers below 2^k.
        pool: workers; without one this thread does the work.

    Returns:
        The message for the server.

    Raises:
        LayerError: the share has another shape, or a number is out of the ring.
        PoolError: a worker died, or the pool was closed.
    """
    if share.dtype != np.uint64 or (share.size and int(share.max()) >> keys.parameters.ring_bits):
        raise LayerError(
            problem(
                f"a share must hold unsigned 64-bit numbers below 2^{keys.parameters.ring_bits}",
                got=f"{share.dtype}, up to {share.max()}",
                remedy="reduce it modulo 2^k",
            )
        )
    polynomials = plan.encode_input(share)
    jobs = [(keys, polynomials[part.start : part.stop]) for part in shares(plan.requests, pool)]
    bodies = [body for part in run(pool, _encrypt, jobs) for body in part]
    return Request(keys.parameters, plan, bodies)


def receive(keys: Keys, answer: Answer, *, pool: Pool | None = None) -> Words:
    """Decrypt the client's share of a layer's output.

    Args:
        keys: the keys that made the request.
        answer: the server's message.
        pool: workers; without one this thread does the work.

    Returns:
        y_C, shape `plan.out_shape`, numbers below 2^k.

    Raises:
        MessageError: the answer has words out of range.
        PoolError: a worker died, or the pool was closed.
    """
    plan = answer.plan
    found = np.zeros(plan.outputs, np.uint64)
    places, indices = zip(*map(plan.result, range(plan.answers)), strict=True)
    jobs = [
        (keys, answer.bodies[part.start : part.stop], places[part.start : part.stop])
        for part in shares(plan.answers, pool)
    ]
    values = [one for part in run(pool, _decrypt, jobs) for one in part]
    for where, some in zip(indices, values, strict=True):
        found[where] = some
    return found.reshape(plan.out_shape)


def _encrypt(keys: Keys, polynomials: Words) -> list[bytes]:
    """Encrypt some polynomials; one worker's job."""
    encryptor = Encryptor(keys)
    return [write_ciphertext(keys.parameters, *encryptor.encrypt(one)) for one in polynomials]


def _decrypt(keys: Keys, bodies: list[bytes], places: list[Indices]) -> list[Words]:
    """Decrypt some answers and return their results in the order of `Plan.result`; one worker's job."""
    decryptor = Decryptor(keys)
    return [
        decryptor.decrypt(read_answer(keys.parameters, body, place))[place]
        for body, place in zip(bodies, places, strict=True)
    ]
