"""The part of the offline phase that is encrypted: the client's shares of all tensors, and the server's of the layers.

The client sends Enc(x_C) for each layer with weights, in the order of `Layout.jobs_together`, one message ahead: it
encrypts the next request while the server answers the one before, and sends it when that answer is there. Bundles that
are prepared together share ciphertexts here, and nothing else: every share is drawn for one of them alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np

from ..homomorphic import Answer, Pool, PreparedWeights, Request, receive, request, respond
from ..program import LinearEvaluator, Step
from ..ring import Words, drop_client, random_words, reduce
from ..wire import Channel, Kind
from .layout import Job, Layout
from .packing import word_type
from .session import ClientSession, ServerSession

Shares = Mapping[int, Words]
"""A party's shares of one bundle by tensor, [1, *shape]."""


def answer_layers(
    channel: Channel,
    layout: Layout,
    session: ServerSession,
    weights: Mapping[int, PreparedWeights],
    *,
    bundles: int = 1,
    pool: Pool | None = None,
) -> list[Shares]:
    """Answer the requests for all layers of bundles that are prepared together.

    Args:
        channel: to the client, after the set-up.
        layout: the program's.
        session: of this connection.
        weights: by tensor that the layer makes, from `prepare_weights`.
        bundles: how many.
        pool: workers for the homomorphic work.

    Returns:
        Of each bundle the server's shares of the layers' outputs. Secret.

    Raises:
        DeepReduceError: the client does not follow the protocol, or a worker died. The session is then unusable.
    """
    public = layout.public
    shares: dict[int, Words] = {}
    for job in layout.jobs_together(bundles):
        message = channel.receive(Kind.REQUEST, job.request_bytes)
        asked = Request.from_bytes(job.parameters, job.plan.plan, bytes(message))
        prepared = weights[job.step.output]
        own = prepared if job.plan.images == 1 else prepared.plain(job.plan.plan)
        response = respond(own, session.keys[job.parameters], asked, pool=pool)
        channel.send(Kind.ANSWER, response.answer.to_bytes())
        form = public.tensors[job.step.output]
        if job.step.output not in shares:
            shares[job.step.output] = np.empty((bundles, *form.shape), word_type(form.ring_bits))
        shares[job.step.output][job.bundles] = reduce(job.plan.fit_output(response.share), form.ring_bits)
    return _by_bundle(shares, bundles)


def draw_shares(
    channel: Channel,
    layout: Layout,
    session: ClientSession,
    *,
    bundles: int = 1,
    pool: Pool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Shares]:
    """Draw and compute the client's shares of all tensors, those of linear layers with the server.

    Args:
        channel: to the server, after the set-up.
        layout: the program's.
        session: of this connection.
        bundles: that are prepared together.
        pool: workers for the homomorphic work.
        progress: called with the number of answers that are there, and of all.

    Returns:
        Of each bundle the client's shares. Secret.

    Raises:
        DeepReduceError: the server does not follow the protocol, or a worker died. The session is then unusable.
    """
    public = layout.public
    linear = LinearEvaluator(public)
    jobs = layout.jobs_together(bundles)
    shares: dict[int, Words] = {0: random_words((bundles, *public.input.shape), public.input.ring_bits)}
    arriving: dict[int, Words] = {}
    waiting: Job | None = None
    there = itertools.count(1)

    def collect(job: Job, message: bytearray) -> None:
        answer = Answer.from_bytes(job.parameters, job.plan.plan, bytes(message))
        share = job.plan.fit_output(receive(session.keys[job.parameters], answer, pool=pool))
        output = job.step.output
        form = public.tensors[output]
        if output not in arriving:
            arriving[output] = np.empty((bundles, *form.shape), np.uint64)
        arriving[output][job.bundles] = reduce(share, form.ring_bits)
        if job.bundles.stop == bundles:
            shares[output] = arriving.pop(output)
        if progress is not None:
            progress(next(there), len(jobs))

    for step in layout.schedule:
        if waiting is not None and any(tensor not in shares for tensor in step.inputs):
            collect(waiting, channel.receive(Kind.ANSWER, waiting.answer_bytes))
            waiting = None
        if step.circuit is not None:
            shares[step.output] = _circuit_share(layout, step, shares)
        elif not step.weighted:
            shares[step.output] = linear(step, [shares[tensor] for tensor in step.inputs], side="client")
        for job in (one for one in jobs if one.step is step):
            share = _lifted(shares[step.inputs[0]][job.bundles], public.tensors[step.output].ring_bits, job)
            message = request(session.keys[job.parameters], job.plan.plan, share, pool=pool).to_bytes()
            answer = None if waiting is None else channel.receive(Kind.ANSWER, waiting.answer_bytes)
            channel.send(Kind.REQUEST, message)
            if waiting is not None and answer is not None:
                collect(waiting, answer)
            waiting = job
    if waiting is not None:
        collect(waiting, channel.receive(Kind.ANSWER, waiting.answer_bytes))
    return _by_bundle(shares, bundles)


def _by_bundle(shares: Mapping[int, Words], bundles: int) -> list[Shares]:
    return [{tensor: share[number : number + 1] for tensor, share in shares.items()} for number in range(bundles)]


def _lifted(share: Words, bits: int, job: Job) -> Words:
    """Return the layer's input in the ring of the encryption, with random bits above its own ring.

    They change the answer by multiples of 2^bits, which the parties drop, and keep the plaintext uniform, as
    `homomorphic.noise` wants it.
    """
    own = reduce(share, bits)
    more = job.parameters.ring_bits - bits
    if more:
        own = own | (random_words(own.shape, more) << np.uint64(bits))
    return job.plan.fit_input(own)


def _circuit_share(layout: Layout, step: Step, shares: Mapping[int, Words]) -> Words:
    """Return the client's share of a circuit's output: fresh, but where the parties keep the shares that they have."""
    op, form = step.circuit, layout.public.tensors[step.output]
    assert op is not None
    bundles = len(shares[0])
    fresh = random_words((bundles, form.size), form.ring_bits)
    if op.kept is not None and not op.rest_in_circuit:
        before = layout.public.tensors[step.inputs[0]].ring_bits
        own = reduce(drop_client(shares[step.inputs[0]], before, op.dropped), form.ring_bits).reshape(bundles, -1)
        own[:, op.kept] = fresh[:, op.kept]
        fresh = own
    return fresh.reshape(bundles, *form.shape)
