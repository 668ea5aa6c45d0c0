"""The server's side of a homomorphic linear layer: weights prepared once per model, answers blinded every time.

The steps of an answer, in order: sum of products, minus a uniform s on all N coefficients through a fresh public-key
encryption, plus the flood, switch to the smallest modulus, drop what the client does not read. `noise.py` says why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import problem
from .encryption import Blinder
from .errors import MessageError
from .packing import Words
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
        pool: worker processes; without one this process does the work. Prepared weights that lie in a file are read
            there by the workers; others are sent to them with every job.

    Returns:
        The answer and the server's share.

    Raises:
        MessageError: key, request and weights do not belong together, or a word is out of range.
        PoolError: a worker died.
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
    order = sorted(range(plan.answers), key=lambda answer: requests_of(plan, answer))  # equal inputs side by side
    jobs = []
    for part in shares(plan.answers, pool):
        answers = order[part.start : part.stop]
        needed = {number for answer in answers for number in requests_of(plan, answer)}
        jobs.append((prepared, public_key, {number: request.bodies[number] for number in needed}, answers))
    share = np.zeros(plan.outputs, np.uint64)
    bodies: list[bytes] = [b""] * plan.answers
    for some in run(pool, _answer, jobs):
        for answer, body, mask in some:
            bodies[answer] = body
            share[plan.result(answer)[1]] = mask
    return Response(Answer(prepared.parameters, plan, bodies), share.reshape(plan.out_shape))


def _answer(
    prepared: PreparedWeights | PlainWeights, public_key: PublicKey, bodies: dict[int, bytes], answers: list[int]
) -> list[tuple[int, bytes, Words]]:
    """Make some answers: number, body and the server's share of its results; one worker's job."""
    plan, parameters = prepared.plan, prepared.parameters
    form: Form = "transformed"
    sums: Callable[[Sequence[int]], Iterable[Words | None]]
    if isinstance(prepared, PlainWeights):
        gatherer = Gatherer(prepared, bodies)
        sums, form = gatherer.sums, gatherer.form
    else:
        sums = functools.partial(multiply, prepared, read_inputs(parameters, bodies))
    blinder, found = Blinder(public_key), []
    for first in range(0, len(answers), TOGETHER):
        some = answers[first : first + TOGETHER]
        for answer, product in zip(some, sums(some), strict=True):
            blinded, mask = blinder.blind(product, form)
            places, _ = plan.result(answer)
            found.append((answer, write_answer(parameters, blinder.switch(blinded), places), mask[places]))
    return found
