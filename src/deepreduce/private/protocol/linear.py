"""The part of the offline phase that is encrypted: the client's shares of all tensors, and the server's of the layers.

The client sends Enc(x_C) for each layer with weights, in the order of `Layout.jobs`, one message ahead: it encrypts the
next request while the server answers the one before, and sends it when that answer is there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..homomorphic import Answer, Pool, PreparedWeights, Request, receive, request, respond
from ..program import LinearEvaluator, Step
from ..ring import Words, drop_client, random_words, reduce
from ..wire import Channel, Kind
from . import sections
from .layout import Job, Layout
from .sections import Sink, numbered, write_words
from .session import ClientSession, ServerSession


def answer_layers(
    channel: Channel,
    layout: Layout,
    session: ServerSession,
    weights: Mapping[int, PreparedWeights],
    sink: Sink,
    pool: Pool | None,
) -> None:
    """Answer the requests for all layers, and write the server's shares of them."""
    for job in layout.jobs:
        message = channel.receive(Kind.REQUEST, job.request_bytes)
        asked = Request.from_bytes(job.parameters, job.plan.plan, bytes(message))
        response = respond(weights[job.step.output], session.keys[job.parameters], asked, pool=pool)
        channel.send(Kind.ANSWER, response.answer.to_bytes())
        bits = layout.public.tensors[job.step.output].ring_bits
        share = reduce(job.plan.fit_output(response.share), bits)
        write_words(sink, numbered(sections.SHARE, job.step.output), share, bits)


def draw_shares(channel: Channel, layout: Layout, session: ClientSession, pool: Pool | None) -> dict[int, Words]:
    """Draw and compute the client's shares of all tensors, those of linear layers with the server."""
    public = layout.public
    linear = LinearEvaluator(public)
    jobs = {job.step.output: job for job in layout.jobs}
    shares: dict[int, Words] = {0: random_words((1, *public.input.shape), public.input.ring_bits)}
    waiting: Job | None = None

    def collect(job: Job, message: bytearray) -> None:
        answer = Answer.from_bytes(job.parameters, job.plan.plan, bytes(message))
        share = job.plan.fit_output(receive(session.keys[job.parameters], answer, pool=pool))
        shares[job.step.output] = reduce(share, public.tensors[job.step.output].ring_bits)[None]

    for step in layout.schedule:
        if waiting is not None and any(tensor not in shares for tensor in step.inputs):
            collect(waiting, channel.receive(Kind.ANSWER, waiting.answer_bytes))
            waiting = None
        if step.circuit is not None:
            shares[step.output] = _circuit_share(layout, step, shares)
        elif not step.weighted:
            shares[step.output] = linear(step, [shares[tensor] for tensor in step.inputs], side="client")
        else:
            job = jobs[step.output]
            share = _lifted(shares[step.inputs[0]][0], public.tensors[step.output].ring_bits, job)
            message = request(session.keys[job.parameters], job.plan.plan, share, pool=pool).to_bytes()
            answer = None if waiting is None else channel.receive(Kind.ANSWER, waiting.answer_bytes)
            channel.send(Kind.REQUEST, message)
            if waiting is not None and answer is not None:
                collect(waiting, answer)
            waiting = job
    if waiting is not None:
        collect(waiting, channel.receive(Kind.ANSWER, waiting.answer_bytes))
    return shares


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
    fresh = random_words((1, form.size), form.ring_bits)
    if op.kept is not None and not op.rest_in_circuit:
        before = layout.public.tensors[step.inputs[0]].ring_bits
        own = reduce(drop_client(shares[step.inputs[0]], before, op.dropped), form.ring_bits).reshape(1, -1)
        own[:, op.kept] = fresh[:, op.kept]
        fresh = own
    return fresh.reshape(1, *form.shape)
