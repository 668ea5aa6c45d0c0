"""The offline phase: one bundle for each party, before any image is known.

    client                                              server
    shares x_C of everything, at random
    REQUEST  Enc(x_C), per linear layer              →
                                                     ←  ANSWER  Enc(W x_C - s): s becomes its share of the layer
    CORRECTIONS  of its transfers, per unit          →
                                                     ←  TABLES  of circuits, garbled with the labels of the transfers
                                                        or, of lookups, CORRECTIONS  of its own transfers
    TABLES  of lookups: what permutes them           →

Requests go in the order of `Layout.jobs`, the others in that of `Layout.units`. The client works one message ahead: it
encrypts the next request while the server answers the one before, and sends it when that answer is there. Likewise it
sends the corrections of a unit before what permutes the tables of the unit before, and the server answers when both are
there. So neither party ever writes while the other one does.

What a party learns: the server sees encryptions, corrections and masked halves of tables, which look random without the
client's keys, seeds and pads; the client sees blinded answers (`homomorphic.noise`), garbled tables and corrections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from .lookup import permute_client, permute_server
from .multiplexer import client_carries, client_highest
from .packing import word_type
from .session import ClientSession, ServerSession
from .units import WORD_BITS, Unit

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
        n, number, circuit = unit.instances, unit.number, unit.circuit
        if unit.bits:
            found[f"masks.{number}"] = (unit.word_type, (n,))
        if circuit is not None:
            found[f"labels.{number}"] = (byte, (n, circuit.wires_of("evaluator"), LABEL_BYTES))
            found[f"tables.{number}"] = (byte, (unit.answer_bytes,))
            continue
        found[f"table.{number}"] = (np.dtype(np.uint64), (n, unit.table_words))
        found[f"values.{number}"] = (word_type(unit.op.width), (n,))
        found[f"coins.{number}"] = (byte, (n,))
        found[f"products.{number}"] = (unit.word_type, (n,))
        found[f"pads.{number}"] = (unit.word_type, (2, n))
        if unit.upper_bits:
            found[f"wraps.{number}"] = (word_type(unit.upper_bits), (2, n))
    return found


def server_sections(layout: Layout) -> Sections:
    """Return names, types and shapes of what the server keeps of a bundle."""
    byte = np.dtype(np.uint8)
    found: Sections = {"delta": (byte, (LABEL_BYTES,))}
    for job in layout.jobs:
        form = layout.public.tensors[job.step.output]
        found[f"share.{job.step.output}"] = (word_type(form.ring_bits), form.shape)
    for unit in layout.units:
        n, number, circuit = unit.instances, unit.number, unit.circuit
        if circuit is not None:
            found[f"seed.{number}"] = (byte, (LABEL_BYTES,))
            if unit.bits:
                found[f"offsets.{number}"] = (unit.word_type, (n,))
            if circuit.output_bits:
                found[f"decoding.{number}"] = (byte, (n, circuit.output_bits))
            continue
        found[f"table.{number}"] = (np.dtype(np.uint64), (n, unit.table_words))
        found[f"choices.{number}"] = (word_type(unit.index_bits + 1), (n,))
        for name in ("factors", "offsets", "constants"):
            found[f"{name}.{number}"] = (unit.word_type, (n,))
        if unit.upper_bits:
            found[f"upper_factors.{number}"] = (word_type(unit.upper_bits), (2, n))
            found[f"upper_offsets.{number}"] = (word_type(unit.upper_bits), (n,))
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
    _units_client(channel, layout, session, number, shares, sink)
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
    finish: Callable[[bytearray], None] | None = None
    permuting_bytes = 0
    for unit in layout.units:
        message = channel.receive(Kind.CORRECTIONS, unit.corrections_bytes)
        session.transfers, zeros = extend_sender(session.transfers, Corrections.decode(message), unit.transfers)
        task = _Task(session.start, session.reverse_start, number, unit, sink, threads)
        after: Callable[[bytearray], None] | None = None
        if unit.circuit is not None:
            kind, answer = Kind.TABLES, _garble(task, session.delta, zeros).data
        else:
            kind = Kind.CORRECTIONS
            answer, after = _look_up_server(task, session, zeros)
        permuting = None if finish is None else channel.receive(Kind.TABLES, permuting_bytes)
        channel.send(kind, answer)
        if finish is not None and permuting is not None:
            finish(permuting)
        finish, permuting_bytes = after, unit.permuting_bytes
    assert finish is None  # the arg-max, which is garbled, comes last


@dataclass(frozen=True)
class _Task:
    """A unit of a bundle: what its names and places are.

    Attributes:
        start, reverse_start: of the session's tweaks.
        number: of the bundle.
        unit: that is prepared.
        sink: of its sections.
        threads: for garbling.
    """

    start: bytes
    reverse_start: bytes
    number: int
    unit: Unit
    sink: Sink
    threads: int = 1

    def tweak(self, *, reverse: bool = False) -> Tweak:
        """Return the tweak of the unit's hashes."""
        return Tweak(self.reverse_start if reverse else self.start, self.number, self.unit.number)

    def write(self, section: str, values: NDArray[Any], bits: int) -> None:
        """Write a section of the unit's: values modulo 2^bits, or whole words."""
        kept = values if bits == WORD_BITS else reduce(values, bits)
        _write(self.sink, f"{section}.{self.unit.number}", kept, bits)


def _garble(task: _Task, delta: NDArray[np.uint8], zeros: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Garble a unit at the server, write its sections and return the tables."""
    unit, number = task.unit, task.unit.number
    made = garble(
        unit.garbled,
        instances=unit.instances,
        delta=delta,
        tweak=task.tweak(),
        evaluator_zero_labels=sender_to_zero_labels(zeros.reshape(unit.instances, -1, LABEL_BYTES)),
        threads=task.threads,
    )
    task.sink.write(f"seed.{number}", 0, np.frombuffer(made.seed, np.uint8))
    if unit.bits:
        task.write("offsets", made.offsets[:, 0], unit.bits)
    if unit.garbled.output_bits:
        task.sink.write(f"decoding.{number}", 0, made.decoding)
    return made.tables


def _look_up_server(
    task: _Task, session: ServerSession, zeros: NDArray[np.uint8]
) -> tuple[memoryview, Callable[[bytearray], None]]:
    """Prepare lookups at the server: return its corrections, and what is to be done with what permutes the tables."""
    unit = task.unit
    n, length = unit.instances, unit.index_bits
    offsets, factors = _offered(task, session.delta, zeros, unit.chosen_products, 1)
    indices, coins = random_words((n,), length), random_words((n,), 1)
    lines = [*(indices >> np.uint64(j) & np.uint64(1) for j in range(length)), coins]
    chosen = np.stack(lines).astype(np.uint8)
    session.reverse, corrections, labels = extend_receiver(session.reverse, chosen.reshape(-1))
    pads = _chosen(task, chosen, labels, unit.pad_words, reverse=True)
    constants = pads[length, :, 0]
    if unit.upper_bits:
        constants = constants - (offsets[1, :, 0] << np.uint64(unit.op.width))
        task.write("upper_factors", factors[1:, :, 0], unit.upper_bits)
        task.write("upper_offsets", offsets[2, :, 0], unit.upper_bits)
    task.write("constants", constants, unit.bits)
    task.write("factors", factors[0, :, 0], unit.bits)
    task.write("offsets", offsets[0, :, 0], unit.bits)
    task.write("choices", indices | coins << np.uint64(length), length + 1)

    def finish(permuting: bytearray) -> None:
        received = np.frombuffer(permuting, "<u8").astype(np.uint64).reshape(length, n, unit.pad_words)
        task.write("table", permute_server(indices, pads[:length], received, length), WORD_BITS)

    return corrections.encode(), finish


def _look_up_client(
    task: _Task,
    session: ClientSession,
    share: Words,
    masks: Words,
    products: Words,
    coins: Words,
    corrections: Corrections,
) -> bytes:
    """Prepare lookups at the client, and return what permutes the server's tables.

    Args:
        task: the unit.
        session: of this connection.
        share: the client's of what is looked up, [n] mod 2^width.
        masks: r, [n].
        products: what it got in the transfers in which it chooses, [1 or 3, n].
        coins: what it chose at random there.
        corrections: of the server's.
    """
    unit, length = task.unit, task.unit.index_bits
    session.reverse, zeros = extend_sender(session.reverse, corrections, unit.choices)
    lower, factors = _offered(task, session.reverse.delta, zeros, length + 1, unit.pad_words, reverse=True)
    upper = lower + factors
    table, sent = permute_client(client_carries(unit.op, share), lower[:length], upper[:length])
    task.write("table", table, WORD_BITS)
    task.write("values", share, unit.op.width)
    task.write("coins", coins, 2)
    task.write("pads", np.stack([lower[length, :, 0], upper[length, :, 0]]), unit.bits)
    task.write("products", products[0], unit.bits)
    if unit.upper_bits:
        task.write("wraps", products[1:], unit.upper_bits)
    task.write("masks", masks, unit.bits)
    return sent.astype("<u8").tobytes()


def _chosen(
    task: _Task, choices: NDArray[np.uint8], labels: NDArray[np.uint8], words: int, *, reverse: bool = False
) -> Words:
    """Hash what a party chose: [lines, n, words] for choices [lines, n] and labels [lines n, 16]."""
    found = evaluate(
        chosen_multiple(WORD_BITS, words),
        instances=choices.size,
        tables=np.zeros(0, np.uint8),
        garbler_labels=np.zeros((choices.size, 0, LABEL_BYTES), np.uint8),
        evaluator_labels=receiver_to_labels(labels[:, None], choices.reshape(-1, 1)),
        tweak=task.tweak(reverse=reverse),
        threads=task.threads,
    )
    return found.words.reshape(*choices.shape, words)


def _offered(
    task: _Task,
    delta: bytes | NDArray[np.uint8],
    zeros: NDArray[np.uint8],
    lines: int,
    words: int,
    *,
    reverse: bool = False,
) -> tuple[Words, Words]:
    """Hash what the other party chooses of: [lines, n, words] for the choice 0, and what the choice 1 adds."""
    made = garble(
        chosen_multiple(WORD_BITS, words),
        instances=len(zeros),
        delta=delta,
        tweak=task.tweak(reverse=reverse),
        evaluator_zero_labels=sender_to_zero_labels(zeros[:, None]),
        threads=task.threads,
    )
    shape = (lines, -1, words)
    return made.offsets.reshape(shape), made.factors.reshape(shape)


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


def _units_client(
    channel: Channel, layout: Layout, session: ClientSession, number: int, shares: Mapping[int, Words], sink: Sink
) -> None:
    """Prepare circuits and lookups at the client."""
    tables = np.empty(max(unit.answer_bytes for unit in layout.units), np.uint8)
    collect: Callable[[], Callable[[], bytes | None]] | None = None
    for unit in layout.units:
        task = _Task(session.start, session.reverse_start, number, unit, sink)
        corrections, following = _begin(channel, task, session, layout, shares, tables)
        keep = None if collect is None else collect()
        channel.send(Kind.CORRECTIONS, corrections)
        permuting = None if keep is None else keep()
        if permuting is not None:
            channel.send(Kind.TABLES, permuting)
        collect = following
    assert collect is not None  # the arg-max is always there, and garbled
    collect()()


def _begin(
    channel: Channel,
    task: _Task,
    session: ClientSession,
    layout: Layout,
    shares: Mapping[int, Words],
    tables: NDArray[np.uint8],
) -> tuple[memoryview, Callable[[], Callable[[], bytes | None]]]:
    """Choose in the transfers of a unit.

    Returns:
        The corrections to send; and what receives the server's answer, which returns what is then left to do: that
        returns what is to be sent, or None.
    """
    unit = task.unit
    share = dropped_share(layout, unit.step, shares)
    masks = shares[unit.step.output].reshape(-1)[unit.writes] if unit.bits else None
    if unit.circuit is not None:
        bits = input_bits(unit.circuit, "evaluator", unit.evaluator_values(share))
        session.transfers, corrections, labels = extend_receiver(session.transfers, bits.reshape(-1))
        own = receiver_to_labels(labels.reshape(*bits.shape, LABEL_BYTES), bits)

        def collect() -> Callable[[], bytes | None]:
            answer = tables[: unit.answer_bytes]
            channel.receive_into(Kind.TABLES, answer)

            def keep() -> None:
                task.sink.write(f"labels.{unit.number}", 0, own)
                task.sink.write(f"tables.{unit.number}", 0, answer)
                if masks is not None:
                    task.write("masks", masks, unit.bits)

            return keep

        return corrections.encode(), collect

    assert masks is not None
    entering = share[unit.reads[:, 0]]
    coins = random_words((unit.instances,), 2)
    lines = [coins & np.uint64(1), client_highest(unit.op, entering), coins >> np.uint64(1)]
    choices = np.stack(lines[: unit.chosen_products]).astype(np.uint8)
    session.transfers, corrections, labels = extend_receiver(session.transfers, choices.reshape(-1))
    products = _chosen(task, choices, labels, 1)[..., 0]

    def collect_corrections() -> Callable[[], bytes | None]:
        theirs = Corrections.decode(channel.receive(Kind.CORRECTIONS, unit.answer_bytes))
        return lambda: _look_up_client(task, session, entering, masks, products, coins, theirs)

    return corrections.encode(), collect_corrections


def dropped_share(layout: Layout, step: Step, shares: Mapping[int, Words]) -> Words:
    """Return what of the client's share enters a circuit, [elements]."""
    op = step.circuit
    assert op is not None
    bits = layout.public.tensors[step.inputs[0]].ring_bits
    return reduce(drop_client(shares[step.inputs[0]], bits, op.dropped), op.width).reshape(-1)


def _write(sink: Sink, section: str, values: Words, bits: int) -> None:
    sink.write(section, 0, np.ascontiguousarray(values, dtype=word_type(bits)))
