"""The offline phase: one bundle for each party, before any image is known.

    client                                              server
    shares x_C of everything, at random
    REQUEST  Enc(x_C), per linear layer              →
                                                     ←  ANSWER  Enc(W x_C - s): s becomes its share of the layer
    CORRECTIONS  of its transfers, per unit          →
                                                     ←  TABLES  of circuits, garbled with the labels of the transfers
                                                        or, of lookups, CORRECTIONS  of its own transfers
    TABLES  of lookups: what permutes them           →

Requests go in the order of `Layout.jobs_together` (`linear`), for several bundles at once if these are prepared
together. The others go bundle by bundle, in the order of `Layout.units`. The client works one message ahead: it sends
the corrections of a unit before what permutes the tables of the unit before, and the server answers when both are
there. So neither party ever writes while the other one does.

What a party learns: the server sees encryptions, corrections and masked halves of tables, which look random without the
client's keys, seeds and pads; the client sees blinded answers (`homomorphic.noise`), garbled tables and corrections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..circuits import chosen_multiple, input_bits
from ..garbling import Tweak, evaluate, garble, receiver_to_labels, sender_to_zero_labels
from ..garbling.types import LABEL_BYTES
from ..program import Step
from ..ring import Words, drop_client, random_words, reduce
from ..transfer import Corrections, extend_receiver, extend_sender
from ..wire import Channel, Kind
from . import sections
from .layout import Layout
from .linear import Shares
from .lookup import permute_client, permute_server
from .multiplexer import client_carries, client_highest
from .sections import Sink, numbered, write_words
from .session import ClientSession, ServerSession
from .units import WORD_BITS, GarbledUnit, LookupUnit

_AnyUnit = TypeVar("_AnyUnit", GarbledUnit, LookupUnit)


def prepare_client(
    channel: Channel, layout: Layout, session: ClientSession, number: int, shares: Shares, sink: Sink
) -> None:
    """Make the client's bundle of its shares.

    Args:
        channel: to the server, after the set-up.
        layout: the program's.
        session: of this connection.
        number: of the bundle, from `session.numbers`; never twice in a session.
        shares: of this bundle, from `draw_shares`; they are used up.
        sink: takes the sections that `client_sections` lists.

    Raises:
        DeepReduceError: the server does not follow the protocol. The session is then unusable.
    """
    write_words(sink, sections.INPUT, shares[0][0], layout.public.input.ring_bits)
    logits = layout.public.logits
    write_words(sink, sections.LOGITS, shares[logits], layout.public.tensors[logits].ring_bits)
    bundle = _Bundle(session.start, session.reverse_start, number, sink)
    _units_client(channel, layout, session, bundle, shares)


def prepare_server(
    channel: Channel,
    layout: Layout,
    session: ServerSession,
    number: int,
    shares: Shares,
    sink: Sink,
    *,
    threads: int = 1,
) -> None:
    """Make the server's bundle of its shares.

    Args:
        channel: to the client, after the set-up.
        layout: the program's.
        session: of this connection.
        number: of the bundle, from `session.numbers`; never twice in a session.
        shares: of this bundle, from `answer_layers`; they are used up.
        sink: takes the sections that `server_sections` lists.
        threads: for garbling, and for hashing the transfers of lookups.

    Raises:
        DeepReduceError: the client does not follow the protocol. The session is then unusable.
    """
    sink.write(sections.DELTA, 0, session.delta)
    for tensor, share in shares.items():
        write_words(sink, numbered(sections.SHARE, tensor), share[0], layout.public.tensors[tensor].ring_bits)
    bundle = _Bundle(session.start, session.reverse_start, number, sink, threads)
    _units_server(channel, layout, session, bundle)


@dataclass(frozen=True)
class _Bundle:
    """What units of a bundle have in common.

    Attributes:
        start, reverse_start: of the session's tweaks.
        number: of the bundle.
        sink: of its sections.
        threads: for garbling and hashing.
    """

    start: bytes
    reverse_start: bytes
    number: int
    sink: Sink
    threads: int = 1


@dataclass(frozen=True)
class _Task(Generic[_AnyUnit]):
    """A unit that is prepared, of a bundle."""

    bundle: _Bundle
    unit: _AnyUnit

    def tweak(self, *, reverse: bool = False) -> Tweak:
        """Return the tweak of the unit's hashes."""
        bundle = self.bundle
        return Tweak(bundle.reverse_start if reverse else bundle.start, bundle.number, self.unit.number)

    def write(self, section: str, values: NDArray[Any], bits: int) -> None:
        """Write a section of the unit's: values modulo 2^bits, or whole words."""
        kept = values if bits == WORD_BITS else reduce(values, bits)
        write_words(self.bundle.sink, numbered(section, self.unit.number), kept, bits)

    def write_bytes(self, section: str, values: NDArray[np.uint8]) -> None:
        """Write a section of the unit's as it is."""
        self.bundle.sink.write(numbered(section, self.unit.number), 0, values)


def _units_server(channel: Channel, layout: Layout, session: ServerSession, bundle: _Bundle) -> None:
    """Prepare circuits and lookups at the server."""
    pending: PendingTables | None = None
    for unit in layout.units:
        message = channel.receive(Kind.CORRECTIONS, unit.corrections_bytes)
        session.transfers, zeros = extend_sender(session.transfers, Corrections.decode(message), unit.transfers)
        following: PendingTables | None = None
        if isinstance(unit, GarbledUnit):
            kind, answer = Kind.TABLES, _garble(_Task(bundle, unit), session.delta, zeros).data
        else:
            kind = Kind.CORRECTIONS
            answer, following = _look_up_server(_Task(bundle, unit), session, zeros)
        permuting = None if pending is None else pending.receive(channel)
        channel.send(kind, answer)
        if pending is not None and permuting is not None:
            pending.finish(permuting)
        pending = following
    assert pending is None  # the arg-max, which is garbled, comes last


def _garble(task: _Task[GarbledUnit], delta: NDArray[np.uint8], zeros: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Garble a unit at the server, write its sections and return the tables."""
    unit = task.unit
    made = garble(
        unit.circuit,
        instances=unit.instances,
        delta=delta,
        tweak=task.tweak(),
        evaluator_zero_labels=sender_to_zero_labels(zeros.reshape(unit.instances, -1, LABEL_BYTES)),
        threads=task.bundle.threads,
    )
    task.write_bytes(sections.SEED, np.frombuffer(made.seed, np.uint8))
    if unit.bits:
        task.write(sections.OFFSETS, made.offsets[:, 0], unit.bits)
    if unit.circuit.output_bits:
        task.write_bytes(sections.DECODING, made.decoding)
    return made.tables


@dataclass(frozen=True, eq=False, repr=False)
class PendingTables:
    """Lookups at the server, of which the client's message that permutes the tables is still to come.

    Attributes:
        task: the unit.
        indices: a, [n].
        pads: those that the server chose for the bits of a, [L, n, words].
    """

    task: _Task[LookupUnit]
    indices: Words
    pads: Words

    def receive(self, channel: Channel) -> bytearray:
        """Receive that message."""
        return channel.receive(Kind.TABLES, self.task.unit.permuting_bytes)

    def finish(self, permuting: bytearray) -> None:
        """Permute and write the server's shares of the tables."""
        received = np.frombuffer(permuting, "<u8").astype(np.uint64).reshape(self.pads.shape)
        tables = permute_server(self.indices, self.pads, received, self.task.unit.index_bits)
        self.task.write(sections.TABLE, tables, WORD_BITS)


def _look_up_server(
    task: _Task[LookupUnit], session: ServerSession, zeros: NDArray[np.uint8]
) -> tuple[memoryview, PendingTables]:
    """Prepare lookups at the server: return its corrections, and what is still to come."""
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
        task.write(sections.UPPER_FACTORS, factors[1:, :, 0], unit.upper_bits)
        task.write(sections.UPPER_OFFSETS, offsets[2, :, 0], unit.upper_bits)
    task.write(sections.CONSTANTS, constants, unit.bits)
    task.write(sections.FACTORS, factors[0, :, 0], unit.bits)
    task.write(sections.OFFSETS, offsets[0, :, 0], unit.bits)
    task.write(sections.CHOICES, indices | coins << np.uint64(length), length + 1)
    return corrections.encode(), PendingTables(task, indices, pads[:length])


def _chosen(
    task: _Task[LookupUnit],
    choices: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    words: int,
    *,
    reverse: bool = False,
) -> Words:
    """Hash what a party chose: [lines, n, words] for choices [lines, n] and labels [lines n, 16]."""
    found = evaluate(
        chosen_multiple(WORD_BITS, words),
        instances=choices.size,
        tables=np.zeros(0, np.uint8),
        garbler_labels=np.zeros((choices.size, 0, LABEL_BYTES), np.uint8),
        evaluator_labels=receiver_to_labels(labels[:, None], choices.reshape(-1, 1)),
        tweak=task.tweak(reverse=reverse),
        threads=task.bundle.threads,
    )
    return found.words.reshape(*choices.shape, words)


def _offered(
    task: _Task[LookupUnit],
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
        threads=task.bundle.threads,
    )
    shape = (lines, -1, words)
    return made.offsets.reshape(shape), made.factors.reshape(shape)


def _units_client(
    channel: Channel, layout: Layout, session: ClientSession, bundle: _Bundle, shares: Mapping[int, Words]
) -> None:
    """Prepare circuits and lookups at the client."""
    room = np.empty(max(unit.answer_bytes for unit in layout.units), np.uint8)
    pending: PendingCircuit | PendingLookup | None = None
    for unit in layout.units:
        share = dropped_share(layout, unit.step, shares)
        masks = shares[unit.step.output].reshape(-1)[unit.writes] if unit.bits else np.zeros(0, np.uint64)
        following: PendingCircuit | PendingLookup
        if isinstance(unit, GarbledUnit):
            corrections, following = _choose_inputs(_Task(bundle, unit), session, share, masks)
        else:
            corrections, following = _choose_products(_Task(bundle, unit), session, unit.entering(share), masks)
        answer = None if pending is None else pending.receive(channel, room)
        channel.send(Kind.CORRECTIONS, corrections)
        if pending is not None and answer is not None:
            permuting = pending.finish(answer)
            if permuting is not None:
                channel.send(Kind.TABLES, permuting)
        pending = following
    assert isinstance(pending, PendingCircuit)  # the arg-max is always there, and garbled
    pending.finish(pending.receive(channel, room))


@dataclass(frozen=True, eq=False, repr=False)
class PendingCircuit:
    """A unit of circuits at the client, of which the tables are still to come.

    Attributes:
        task: the unit.
        labels: of the client's input bits, [n, wires, 16].
        masks: r, [n]; nothing for the arg-max.
    """

    task: _Task[GarbledUnit]
    labels: NDArray[np.uint8]
    masks: Words

    def receive(self, channel: Channel, room: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Receive the tables, into a part of `room`."""
        tables = room[: self.task.unit.answer_bytes]
        channel.receive_into(Kind.TABLES, tables)
        return tables

    def finish(self, tables: NDArray[np.uint8]) -> None:
        """Write the unit's sections. There is nothing to send."""
        self.task.write_bytes(sections.LABELS, self.labels)
        self.task.write_bytes(sections.TABLES, tables)
        if self.task.unit.bits:
            self.task.write(sections.MASKS, self.masks, self.task.unit.bits)


@dataclass(frozen=True, eq=False, repr=False)
class PendingLookup:
    """A unit of lookups at the client, of which the server's corrections are still to come.

    Attributes:
        task: the unit.
        session: of this connection.
        share: the client's of what is looked up, [n] mod 2^width.
        masks: r, [n].
        products: what it got in the transfers in which it chooses, [1 or 3, n].
        coins: what it chose at random there.
    """

    task: _Task[LookupUnit]
    session: ClientSession
    share: Words
    masks: Words
    products: Words
    coins: Words

    def receive(self, channel: Channel, room: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Receive the corrections, into a part of `room`."""
        corrections = room[: self.task.unit.answer_bytes]
        channel.receive_into(Kind.CORRECTIONS, corrections)
        return corrections

    def finish(self, corrections: NDArray[np.uint8]) -> bytes:
        """Write the unit's sections, and return what permutes the server's tables."""
        task, session = self.task, self.session
        unit, length = task.unit, task.unit.index_bits
        session.reverse, zeros = extend_sender(session.reverse, Corrections.decode(corrections.data), unit.choices)
        lower, factors = _offered(task, session.reverse.delta, zeros, length + 1, unit.pad_words, reverse=True)
        upper = lower + factors
        table, sent = permute_client(client_carries(unit.op, self.share), lower[:length], upper[:length])
        task.write(sections.TABLE, table, WORD_BITS)
        task.write(sections.VALUES, self.share, unit.op.width)
        task.write(sections.COINS, self.coins, 2)
        task.write(sections.PADS, np.stack([lower[length, :, 0], upper[length, :, 0]]), unit.bits)
        task.write(sections.PRODUCTS, self.products[0], unit.bits)
        if unit.upper_bits:
            task.write(sections.WRAPS, self.products[1:], unit.upper_bits)
        task.write(sections.MASKS, self.masks, unit.bits)
        return sent.astype("<u8").tobytes()


def _choose_inputs(
    task: _Task[GarbledUnit], session: ClientSession, share: Words, masks: Words
) -> tuple[memoryview, PendingCircuit]:
    """Choose the labels of a unit's inputs, by the client's share [elements]: return the corrections to send."""
    bits = input_bits(task.unit.circuit, "evaluator", task.unit.evaluator_values(share))
    session.transfers, corrections, labels = extend_receiver(session.transfers, bits.reshape(-1))
    own = receiver_to_labels(labels.reshape(*bits.shape, LABEL_BYTES), bits)
    return corrections.encode(), PendingCircuit(task, own, masks)


def _choose_products(
    task: _Task[LookupUnit], session: ClientSession, share: Words, masks: Words
) -> tuple[memoryview, PendingLookup]:
    """Choose in the products of a unit, by the client's share [n]: return the corrections to send."""
    unit = task.unit
    coins = random_words((unit.instances,), 2)
    lines = [coins & np.uint64(1), client_highest(unit.op, share), coins >> np.uint64(1)]
    choices = np.stack(lines[: unit.chosen_products]).astype(np.uint8)
    session.transfers, corrections, labels = extend_receiver(session.transfers, choices.reshape(-1))
    products = _chosen(task, choices, labels, 1)[..., 0]
    return corrections.encode(), PendingLookup(task, session, share, masks, products, coins)


def dropped_share(layout: Layout, step: Step, shares: Mapping[int, Words]) -> Words:
    """Return what of the client's share enters a circuit, [elements]."""
    op = step.circuit
    assert op is not None
    bits = layout.public.tensors[step.inputs[0]].ring_bits
    return reduce(drop_client(shares[step.inputs[0]], bits, op.dropped), op.width).reshape(-1)
