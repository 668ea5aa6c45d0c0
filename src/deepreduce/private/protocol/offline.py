"""The offline phase: bundles for each party, before any image is known.

    client                                              server
    shares x_C of everything, at random
    REQUEST  Enc(x_C), per linear layer              →
                                                     ←  ANSWER  Enc(W x_C - s): s becomes its share of the layer
    CORRECTIONS  of its transfers, per unit          →
                                                     ←  TABLES  of circuits, garbled with the labels of the transfers
                                                        or, of lookups, CORRECTIONS  of its own transfers
    TABLES  of lookups: what permutes them           →

Requests go in the order of `Layout.jobs_together` (`linear`), for several bundles at once if these are prepared
together. The others go in the groups of `Layout.groups`, bundle by bundle and in each in the order of its units: what
is an arrow above are the frames of a whole group, so that small units do not wait for one another. The client works one
group ahead: it sends the corrections of a group before what permutes the tables of the group before, and the server
answers when both are there. So neither party ever writes while the other one does, but for the few bytes that say that
the server's half of a bundle is finished.

What a party learns: the server sees encryptions, corrections and masked halves of tables, which look random without the
client's keys, seeds and pads; the client sees blinded answers (`homomorphic.noise`), garbled tables and corrections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from .layout import GROUP_BYTES, Layout
from .linear import Shares
from .lookup import permute_client, permute_server
from .multiplexer import client_carries, client_highest
from .sections import Sink, numbered, write_words
from .session import ClientSession, ServerSession
from .units import WORD_BITS, GarbledUnit, LookupUnit

_AnyUnit = TypeVar("_AnyUnit", GarbledUnit, LookupUnit)


def prepare_client(
    channel: Channel,
    layout: Layout,
    session: ClientSession,
    shares: Sequence[Shares],
    begin: Callable[[int], Sink],
    done: Callable[[int], None],
) -> None:
    """Make the client's halves of some bundles of its shares.

    Args:
        channel: to the server, after the set-up.
        layout: the program's.
        session: of this connection; every bundle takes one of its numbers.
        shares: of each bundle, from `draw_shares`; they are used up.
        begin: called with the number of each bundle, in order; it returns what takes the sections that
            `client_sections` lists.
        done: called with the number once they are written, and when the server has nothing else to say than that its
            half is finished, too.

    Raises:
        DeepReduceError: the server does not follow the protocol. The session is then unusable.
    """
    room = np.empty(max(GROUP_BYTES, *(unit.answer_bytes for unit in layout.units)), np.uint8)
    bundles = _bundles_client(layout, session, shares, begin)
    pending: list[_PendingAtClient] = []
    written: deque[tuple[int, int]] = deque()  # groups, and numbers of bundles that ended there
    last = -1
    for last, tasks in enumerate(_grouped(layout, bundles, len(shares))):
        chosen = [_choose(task, session, layout) for task in tasks]
        answers = _receive_all(channel, pending, room)
        for corrections, _ in chosen:
            channel.send(Kind.CORRECTIONS, corrections)
        written += [(last - 1, number) for number in _finish_all(channel, layout, pending, answers)]
        # What ended in the group before that one the server finishes after these answers, and before the next ones.
        _confirm(written, last - 1, done)
        pending = [following for _, following in chosen]
    answers = _receive_all(channel, pending, room)
    written += [(last, number) for number in _finish_all(channel, layout, pending, answers)]
    _confirm(written, last + 1, done)


def _confirm(written: deque[tuple[int, int]], before: int, done: Callable[[int], None]) -> None:
    """Call `done` for the bundles that ended in a group before this one."""
    while written and written[0][0] < before:
        done(written.popleft()[1])


def prepare_server(
    channel: Channel,
    layout: Layout,
    session: ServerSession,
    shares: Sequence[Shares],
    begin: Callable[[int], Sink],
    done: Callable[[int], None],
    *,
    threads: int = 1,
) -> None:
    """Make the server's halves of some bundles of its shares.

    Args:
        channel: to the client, after the set-up.
        layout: the program's.
        session: of this connection; every bundle takes one of its numbers.
        shares: of each bundle, from `answer_layers`; they are used up.
        begin: called with the number of each bundle, in order; it returns what takes the sections that
            `server_sections` lists.
        done: called with the number once they are written; it may say so to the client in few bytes.
        threads: for garbling, and for hashing the transfers of lookups.

    Raises:
        DeepReduceError: the client does not follow the protocol. The session is then unusable.
    """
    bundles = _bundles_server(layout, session, shares, begin, threads)
    before: list[_Task[Any]] = []
    pending: list[PendingTables] = []
    for tasks in _grouped(layout, bundles, len(shares)):
        answers = [_answer(channel, task, session) for task in tasks]
        permuting = [one.receive(channel) for one in pending]
        for kind, answer, _ in answers:
            channel.send(kind, answer)
        _permute_all(layout, before, pending, permuting, done)
        before, pending = tasks, [following for *_, following in answers if following is not None]
    _permute_all(layout, before, pending, [one.receive(channel) for one in pending], done)


def _permute_all(
    layout: Layout,
    tasks: list[_Task[Any]],
    pending: list[PendingTables],
    permuting: list[bytearray],
    done: Callable[[int], None],
) -> None:
    """End a group at the server, and the bundles that end in it."""
    for one, message in zip(pending, permuting, strict=True):
        one.finish(message)
    for number in _ended(layout, tasks):
        done(number)


@dataclass(frozen=True)
class _Bundle:
    """What units of a bundle have in common.

    Attributes:
        start, reverse_start: of the session's tweaks.
        number: of the bundle.
        shares: the party's.
        sink: of its sections.
        threads: for garbling and hashing.
    """

    start: bytes
    reverse_start: bytes
    number: int
    shares: Shares
    sink: Sink
    threads: int = 1


def _bundles_client(
    layout: Layout, session: ClientSession, shares: Sequence[Shares], begin: Callable[[int], Sink]
) -> Iterator[_Bundle]:
    """Begin one bundle after the other at the client."""
    logits = layout.public.logits
    for own in shares:
        number = session.numbers.take()
        sink = begin(number)
        write_words(sink, sections.INPUT, own[0][0], layout.public.input.ring_bits)
        write_words(sink, sections.LOGITS, own[logits], layout.public.tensors[logits].ring_bits)
        yield _Bundle(session.start, session.reverse_start, number, own, sink)


def _bundles_server(
    layout: Layout, session: ServerSession, shares: Sequence[Shares], begin: Callable[[int], Sink], threads: int
) -> Iterator[_Bundle]:
    """Begin one bundle after the other at the server."""
    for own in shares:
        number = session.numbers.take()
        sink = begin(number)
        sink.write(sections.DELTA, 0, session.delta)
        for tensor, share in own.items():
            write_words(sink, numbered(sections.SHARE, tensor), share[0], layout.public.tensors[tensor].ring_bits)
        yield _Bundle(session.start, session.reverse_start, number, own, sink, threads)


def _grouped(layout: Layout, bundles: Iterator[_Bundle], count: int) -> Iterator[list[_Task[Any]]]:
    """Yield the units of all bundles in groups; a bundle begins with the group of its first unit."""
    begun: dict[int, _Bundle] = {}
    for group in layout.groups(count):
        for place, _ in group:
            if place not in begun:
                begun[place] = next(bundles)
        yield [_Task(begun[place], unit) for place, unit in group]
        last = group[-1][0]
        begun = {last: begun[last]}  # the others have ended


def _ended(layout: Layout, tasks: Sequence[_Task[Any]]) -> list[int]:
    """Return the numbers of the bundles that end in a group."""
    return [task.bundle.number for task in tasks if task.unit is layout.ending]


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


def _answer(
    channel: Channel, task: _Task[Any], session: ServerSession
) -> tuple[Kind, NDArray[np.uint8] | memoryview, PendingTables | None]:
    """Receive the corrections of a unit at the server; return the answer, and what is still to come."""
    unit = task.unit
    message = channel.receive(Kind.CORRECTIONS, unit.corrections_bytes)
    session.transfers, zeros = extend_sender(session.transfers, Corrections.decode(message), unit.transfers)
    if isinstance(unit, GarbledUnit):
        return Kind.TABLES, _garble(task, session.delta, zeros).data, None
    return Kind.CORRECTIONS, *_look_up_server(task, session, zeros)


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


def _choose(task: _Task[Any], session: ClientSession, layout: Layout) -> tuple[memoryview, _PendingAtClient]:
    """Choose in the transfers of a unit at the client: return the corrections to send, and what is still to come."""
    unit, shares = task.unit, task.bundle.shares
    share = dropped_share(layout, unit.step, shares)
    masks = shares[unit.step.output].reshape(-1)[unit.writes] if unit.bits else np.zeros(0, np.uint64)
    if isinstance(unit, GarbledUnit):
        return _choose_inputs(task, session, share, masks)
    return _choose_products(task, session, unit.entering(share), masks)


def _receive_all(
    channel: Channel, pending: Sequence[_PendingAtClient], room: NDArray[np.uint8]
) -> list[NDArray[np.uint8]]:
    """Receive the answers of a group, side by side into `room`."""
    answers, place = list[NDArray[np.uint8]](), 0
    for one in pending:
        answers.append(one.receive(channel, room[place:]))
        place += one.task.unit.answer_bytes
    return answers


def _finish_all(
    channel: Channel, layout: Layout, pending: Sequence[_PendingAtClient], answers: Sequence[NDArray[np.uint8]]
) -> list[int]:
    """End a group at the client; return the bundles that end in it."""
    for one, answer in zip(pending, answers, strict=True):
        permuting = one.finish(answer)
        if permuting is not None:
            channel.send(Kind.TABLES, permuting)
    return _ended(layout, [one.task for one in pending])


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


_PendingAtClient = PendingCircuit | PendingLookup


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
