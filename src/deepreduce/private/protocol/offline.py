"""The offline phase: one bundle for each party, before any image is known.

    client                                              server
    shares x_C of everything, at random
    REQUEST  Enc(x_C), per linear layer              →
                                                     ←  ANSWER  Enc(W x_C - s): s becomes its share of the layer
    CORRECTIONS  of the transfers, per unit          →
                                                     ←  TABLES  garbled with the labels that the transfers define
                                                     ←  CORRECTIONS  of the reverse transfers, where there are any

Requests go in the order of `Layout.jobs`, corrections in that of `Layout.units`. The client works one message ahead: it
encrypts the next request while the server answers the one before, and sends it when that answer is there, so that
neither party ever writes while the other one does.

What a party learns: the server sees encryptions and corrections, both of which look random without the client's keys
and seeds; the client sees blinded answers (`homomorphic.noise`) and garbled tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..circuits import chosen_multiple, input_bits
from ..garbling import Tweak, evaluate, garble, receiver_to_labels, sender_to_zero_labels
from ..garbling.types import LABEL_BYTES
from ..homomorphic import Answer, Pool, PreparedWeights, Request, receive, request, respond
from ..program import LinearEvaluator, Step
from ..ring import Words, drop_client, random_words, reduce
from ..transfer import Corrections, extend_receiver, extend_sender
from ..wire import Channel, Kind
from .layout import Job, Layout
from .multiplexer import client_value
from .packing import word_type
from .session import ClientSession, ServerSession
from .units import Unit

Sections = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


class Sink(Protocol):
    """Where the parts of a bundle go."""

    def write(self, section: str, offset: int, data: Any) -> None:
        """Write bytes of a section from a byte offset on."""


def client_sections(layout: Layout) -> Sections:
    """Return names, types and shapes of what the client keeps of a bundle."""
    public, byte = layout.public, np.dtype(np.uint8)
    logits = public.tensors[public.logits]
    found: Sections = {
        "input": (word_type(public.input.ring_bits), public.input.shape),
        "logits": (word_type(logits.ring_bits), (logits.size,)),
    }
    for unit in layout.units:
        wires = unit.circuit.wires_of("evaluator")
        found[f"labels.{unit.number}"] = (byte, (unit.instances, wires, LABEL_BYTES))
        found[f"tables.{unit.number}"] = (byte, (unit.tables_bytes,))
        if unit.circuit.words:
            found[f"masks.{unit.number}"] = (unit.word_type, (unit.instances,))
        if unit.multiplexed:
            found[f"values.{unit.number}"] = (word_type(unit.op.width - 1), (unit.instances,))
            found[f"factors.{unit.number}"] = (unit.word_type, (unit.instances,))
    return found


def server_sections(layout: Layout) -> Sections:
    """Return names, types and shapes of what the server keeps of a bundle."""
    byte = np.dtype(np.uint8)
    found: Sections = {"delta": (byte, (LABEL_BYTES,))}
    for job in layout.jobs:
        form = layout.public.tensors[job.step.output]
        found[f"share.{job.step.output}"] = (word_type(form.ring_bits), form.shape)
    for unit in layout.units:
        found[f"seed.{unit.number}"] = (byte, (LABEL_BYTES,))
        if unit.circuit.words:
            found[f"offsets.{unit.number}"] = (unit.word_type, (unit.instances,))
        if unit.multiplexed:
            found[f"factors.{unit.number}"] = (unit.word_type, (unit.instances,))
        if unit.circuit.output_bits:
            found[f"decoding.{unit.number}"] = (byte, (unit.instances, unit.circuit.output_bits))
    return found


def prepare_client(
    channel: Channel, layout: Layout, session: ClientSession, number: int, sink: Sink, *, pool: Pool | None = None
) -> dict[int, Words]:
    """Make the client's bundle.

    Args:
        channel: to the server, after the set-up.
        layout: the program's.
        session: of this connection.
        number: of the bundle, from `session.numbers`; never twice in a session.
        sink: takes the sections that `client_sections` lists.
        pool: workers for the homomorphic work.

    Returns:
        The client's shares by tensor, [1, *shape]: secret, and of use to a test that replays the run; they may be
        dropped.

    Raises:
        DeepReduceError: the server does not follow the protocol, or a worker died. The session is then unusable.
    """
    shares = _linear_client(channel, layout, session, pool)
    _write(sink, "input", shares[0][0], layout.public.input.ring_bits)
    logits = layout.public.logits
    _write(sink, "logits", shares[logits], layout.public.tensors[logits].ring_bits)
    _garbled_client(channel, layout, session, number, shares, sink)
    return shares


def prepare_server(
    channel: Channel,
    layout: Layout,
    session: ServerSession,
    number: int,
    weights: Mapping[int, PreparedWeights],
    sink: Sink,
    *,
    pool: Pool | None = None,
    threads: int = 1,
) -> None:
    """Make the server's bundle.

    Args:
        channel: to the client, after the set-up.
        layout: the program's.
        session: of this connection.
        number: of the bundle, from `session.numbers`; never twice in a session.
        weights: by tensor that the layer makes, from `prepare_weights`.
        sink: takes the sections that `server_sections` lists.
        pool: workers for the homomorphic work.
        threads: for garbling.

    Raises:
        DeepReduceError: the client does not follow the protocol, or a worker died. The session is then unusable.
    """
    sink.write("delta", 0, session.delta)
    for job in layout.jobs:
        message = channel.receive(Kind.REQUEST, job.request_bytes)
        asked = Request.from_bytes(job.parameters, job.plan.plan, bytes(message))
        response = respond(weights[job.step.output], session.keys[job.parameters], asked, pool=pool)
        channel.send(Kind.ANSWER, response.answer.to_bytes())
        bits = layout.public.tensors[job.step.output].ring_bits
        _write(sink, f"share.{job.step.output}", reduce(job.plan.fit_output(response.share), bits), bits)
    for unit in layout.units:
        message = channel.receive(Kind.CORRECTIONS, unit.corrections_bytes)
        session.transfers, zeros = extend_sender(session.transfers, Corrections.decode(message), unit.transfers)
        made = garble(
            unit.circuit,
            instances=unit.instances,
            delta=session.delta,
            tweak=Tweak(session.start, number, unit.number),
            evaluator_zero_labels=sender_to_zero_labels(zeros.reshape(unit.instances, -1, LABEL_BYTES)),
            threads=threads,
        )
        channel.send(Kind.TABLES, made.tables)
        sink.write(f"seed.{unit.number}", 0, np.frombuffer(made.seed, np.uint8))
        offsets = made.offsets
        if unit.multiplexed:
            offsets = offsets - _choose(channel, session, number, unit, made.decoding, threads)
            sink.write(f"factors.{unit.number}", 0, _words(unit, made.factors))
        if unit.circuit.words:
            sink.write(f"offsets.{unit.number}", 0, _words(unit, offsets))
        if unit.circuit.output_bits:
            sink.write(f"decoding.{unit.number}", 0, made.decoding)


def _choose(
    channel: Channel, session: ServerSession, number: int, unit: Unit, decoding: NDArray[np.uint8], threads: int
) -> Words:
    """Run the server's side of a unit's reverse transfers, chosen by decoding bits [n, 1]; return h + p f, [n, 1]."""
    session.reverse, corrections, labels = extend_receiver(session.reverse, decoding.reshape(-1))
    channel.send(Kind.CORRECTIONS, corrections.encode())
    return evaluate(
        chosen_multiple(unit.circuit.words[0].bits),
        instances=unit.instances,
        tables=np.zeros(0, np.uint8),
        garbler_labels=np.zeros((unit.instances, 0, LABEL_BYTES), np.uint8),
        evaluator_labels=receiver_to_labels(labels[:, None], decoding),
        tweak=Tweak(session.reverse_start, number, unit.number),
        threads=threads,
    ).words


def _offered(session: ClientSession, number: int, unit: Unit, corrections: Corrections) -> tuple[Words, Words]:
    """Run the client's side of a unit's reverse transfers; return h and f, [n, 1] each."""
    session.reverse, zeros = extend_sender(session.reverse, corrections, unit.choices)
    made = garble(
        chosen_multiple(unit.circuit.words[0].bits),
        instances=unit.instances,
        delta=session.reverse.delta,
        tweak=Tweak(session.reverse_start, number, unit.number),
        evaluator_zero_labels=sender_to_zero_labels(zeros[:, None]),
    )
    return made.offsets, made.factors


def _words(unit: Unit, words: Words) -> NDArray[Any]:
    """Return words [n, 1] in the ring of the unit's, in the type in which they are kept."""
    return reduce(words[:, 0], unit.circuit.words[0].bits).astype(unit.word_type)


def _linear_client(channel: Channel, layout: Layout, session: ClientSession, pool: Pool | None) -> dict[int, Words]:
    """Draw and compute the client's shares of all tensors; the homomorphic part of the offline phase."""
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


def _garbled_client(
    channel: Channel, layout: Layout, session: ClientSession, number: int, shares: Mapping[int, Words], sink: Sink
) -> None:
    """Transfer the client's input bits and take the tables; the garbled part of the offline phase."""
    tables = np.empty(max(unit.tables_bytes for unit in layout.units), np.uint8)
    before: Unit | None = None

    def collect(unit: Unit) -> Callable[[], None]:
        """Receive what the server sends for a unit; return what is left to do with it."""
        own = tables[: unit.tables_bytes]
        channel.receive_into(Kind.TABLES, own)
        corrections = channel.receive(Kind.CORRECTIONS, unit.choices_bytes) if unit.multiplexed else None

        def keep() -> None:
            sink.write(f"tables.{unit.number}", 0, own)
            if not unit.circuit.words:
                return
            masks = shares[unit.step.output].reshape(-1)[unit.writes, None]
            if corrections is not None:
                offsets, factors = _offered(session, number, unit, Corrections.decode(corrections))
                masks = masks + offsets
                values = client_value(unit.op, dropped_share(layout, unit.step, shares)[unit.reads[:, 0]])
                _write(sink, f"values.{unit.number}", values, unit.op.width - 1)
                sink.write(f"factors.{unit.number}", 0, _words(unit, factors))
            sink.write(f"masks.{unit.number}", 0, _words(unit, masks))

        return keep

    for unit in layout.units:
        bits = input_bits(unit.circuit, "evaluator", unit.evaluator_values(dropped_share(layout, unit.step, shares)))
        session.transfers, corrections, labels = extend_receiver(session.transfers, bits.reshape(-1))
        keep = None if before is None else collect(before)
        channel.send(Kind.CORRECTIONS, corrections.encode())
        if keep is not None:
            keep()
        own = receiver_to_labels(labels.reshape(*bits.shape, LABEL_BYTES), bits)
        sink.write(f"labels.{unit.number}", 0, own)
        before = unit
    assert before is not None  # the arg-max is always there
    collect(before)()


def dropped_share(layout: Layout, step: Step, shares: Mapping[int, Words]) -> Words:
    """Return what of the client's share enters a circuit, [elements]."""
    op = step.circuit
    assert op is not None
    bits = layout.public.tensors[step.inputs[0]].ring_bits
    return reduce(drop_client(shares[step.inputs[0]], bits, op.dropped), op.width).reshape(-1)


def _write(sink: Sink, section: str, values: Words, bits: int) -> None:
    sink.write(section, 0, np.ascontiguousarray(values, dtype=word_type(bits)))
