"""The server's side of a homomorphic linear layer: weights prepared once per model, answers blinded every time.

The steps of an answer, in order: sum of products, minus a uniform s on all N coefficients through a fresh public-key
encryption, plus the flood, switch to the smallest modulus, drop what the client does not read. `noise.py` says why.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np

from ...errors import problem
from .encryption import Blinder
from .errors import MessageError
from .packing import Plan, Words
from .pool import Pool, run, shares
from .products import TOGETHER, multiply, read_inputs, requests_of
from .scheme import Form
from .taps import Gatherer
from .weights import PlainWeights, PreparedWeights
from .wire import Answer, PublicKey, Request, write_answer


@dataclass(frozen=True)
class Response:
    """What an answer leaves with the server.

    Attributes:
        answer: the message for the client.
        share: s, shape `plan.out_shape`, numbers below 2^k; the server adds it to W x_S online. Secret, and good for
            one inference, or for one of each image.
    """

    answer: Answer
    share: Words = field(repr=False)


def respond(
    prepared: PreparedWeights | PlainWeights, public_key: PublicKey, request: Request, *, pool: Pool | None = None
) -> Response:
    """Multiply a client's encrypted share by the layer's weights, subtract a fresh random share, and blind the result.

    Args:
        prepared: the layer's weights; for a plan of several images `PreparedWeights.plain`.
        public_key: the client's public key.
        request: the client's message.
        pool: workers; without one this thread does the work. Of processes prepared weights that lie in a file are read
            there; others are sent to them with every job.

    Returns:
        The answer and the server's share.

    Raises:
        MessageError: key, request and weights do not belong together, or a word is out of range.
        PoolError: a worker died, or the pool was closed.
        WeightsError: the weights are not as they were prepared.
    """
    plan = prepared.plan
    if not prepared.parameters == public_key.parameters == request.parameters or plan != request.plan:
        raise MessageError(
            problem(
                "weights, public key and request must have the same parameters and plan",
                got=f"{prepared.parameters}, {public_key.parameters}, {request.parameters}",
                remedy="answer a request with the weights of the layer that it names",
            )
        )
    if pool is None or pool.in_this_process:
        found = _answer_here(prepared, public_key, request.bodies, pool)
    else:
        order, jobs = sorted(range(plan.answers), key=lambda answer: requests_of(plan, answer)), []
        for part in shares(plan.answers, pool):
            answers = order[part.start : part.stop]
            needed = {number: request.bodies[number] for answer in answers for number in requests_of(plan, answer)}
            jobs.append((prepared, public_key, needed, answers))
        found = pool.map(_answer_apart, jobs)
    share = np.zeros(plan.outputs, np.uint64)
    bodies: list[bytes] = [b""] * plan.answers
    for answer, body, mask in itertools.chain.from_iterable(found):
        bodies[answer] = body
        share[plan.result(answer)[1]] = mask
    return Response(Answer(prepared.parameters, plan, bodies), share.reshape(plan.out_shape))


@dataclass(frozen=True)
class _Sums:
    """What answers add up: the sums of some of them, and their form."""

    plan: Plan
    of_answers: Callable[[Sequence[int]], Iterable[Words | None]]
    form: Form

    @classmethod
    def of(cls, prepared: PreparedWeights | PlainWeights, bodies: dict[int, bytes], pool: Pool | None) -> _Sums:
        """Read the ciphertexts that the answers need."""
        if isinstance(prepared, PlainWeights):
            gatherer = Gatherer(prepared, bodies, pool=pool)
            return cls(prepared.plan, gatherer.sums, gatherer.form)
        inputs = read_inputs(prepared.parameters, bodies, pool=pool)
        return cls(prepared.plan, functools.partial(multiply, prepared, inputs), "transformed")


def _answer_here(
    prepared: PreparedWeights | PlainWeights, public_key: PublicKey, bodies: Sequence[bytes], pool: Pool | None
) -> list[list[tuple[int, bytes, Words]]]:
    """Make all answers in this process."""
    workers = 1 if pool is None else pool.workers
    with nullcontext() if pool is None else pool.turn():
        if isinstance(prepared, PreparedWeights):
            prepared.check_file()
        sums, blinder = _Sums.of(prepared, dict(enumerate(bodies)), pool), Blinder(public_key)
        parts = _parts(prepared.plan, range(prepared.plan.answers), workers)
        return run(pool, _answer, [(sums, blinder, answers) for answers in parts])


def _answer_apart(
    prepared: PreparedWeights | PlainWeights, public_key: PublicKey, bodies: dict[int, bytes], answers: Sequence[int]
) -> list[tuple[int, bytes, Words]]:
    """Make some answers in another process; one worker's job."""
    sums, blinder = _Sums.of(prepared, bodies, None), Blinder(public_key)
    return [one for part in _parts(prepared.plan, answers, 1) for one in _answer(sums, blinder, part)]


def _parts(plan: Plan, answers: Sequence[int], workers: int) -> list[list[int]]:
    """Cut answers into parts of up to `TOGETHER` that add up the same requests; smaller ones where answers are few."""
    most = max(1, min(TOGETHER, -(-len(answers) // workers)))
    found = []
    asked = functools.partial(requests_of, plan)
    for _, group in itertools.groupby(sorted(answers, key=asked), key=asked):
        some = list(group)
        count = -(-len(some) // most)
        found += [some[len(some) * part // count : len(some) * (part + 1) // count] for part in range(count)]
    return found


def _answer(sums: _Sums, blinder: Blinder, answers: list[int]) -> list[tuple[int, bytes, Words]]:
    """Make up to `TOGETHER` answers: number, body and the server's share of its results."""
    found = []
    for answer, product in zip(answers, sums.of_answers(answers), strict=True):
        blinded, mask = blinder.blind(product, sums.form)
        places, _ = sums.plan.result(answer)
        found.append((answer, write_answer(blinder.parameters, blinder.switch(blinded), places), mask[places]))
    return found
