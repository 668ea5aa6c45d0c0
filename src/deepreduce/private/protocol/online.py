"""The online phase: from images to labels, with one bundle per image.

    client                                              server
    INPUT   x - r, per image                         →
                                                        linear layers on its shares, in the clear
                                                     ←  LABELS  per image and unit of the round: its labels; of
                                                        lookups masked places, bits and values
    WORDS   result minus the next mask, per unit;    →  makes its share of the round's outputs
            of lookups also masked bits and a value
    ...
                                                     ←  LABELS  of the arg-max, RESULT  its decoding
    or, where logits are revealed:                   ←  RESULT  its share of the logits

What a party learns: the server sees x - r, words minus masks and masked bits, all uniform; the client sees one label
per wire, which shows nothing of its value, or masked places and values (`multiplexer`), and the result. The masks are
those of the bundle, used this once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import DeepReduceError, problem
from ..circuits import from_bits
from ..garbling import Tweak, decode_bits, decode_words, evaluate, garbler_labels, mask_words
from ..garbling.types import LABEL_BYTES
from ..program import LinearEvaluator, Step
from ..ring import Words, decode, drop_server, reconstruct, reduce, split
from ..wire import Channel, Kind
from . import sections
from .codec import read_question, read_reply, write_question, write_reply
from .layout import Layout
from .memory import KEPT_BYTES, RoundMemory, give_back, hold
from .multiplexer import Asked, ask, outputs, reply
from .packing import pack, unpack, word_type
from .sections import Source, client_part, numbered, server_masks, server_offsets
from .units import GarbledUnit, LookupUnit, OnlineRound, Unit

Octets = NDArray[np.uint8]
Reveal = Literal["label", "logits"]


@dataclass(frozen=True)
class Material:
    """One party's bundle with the names that the tweaks need.

    Attributes:
        number: of the bundle in its session.
        start: of the session's tweaks.
        source: the sections.
    """

    number: int
    start: bytes
    source: Source = field(repr=False)

    def tweak(self, unit: Unit) -> Tweak:
        """Return the tweak of a unit."""
        return Tweak(self.start, self.number, unit.number)

    def array(self, section: str, unit: Unit) -> NDArray[Any]:
        """Return a section of a unit."""
        return self.source.array(numbered(section, unit.number))


@dataclass
class Seconds:
    """Where the time of an online phase went at one party, in seconds.

    Attributes:
        linear: computing linear layers.
        circuits: labels and lookups at the server; evaluation and lookups at the client; their packing included.
        channel: sending and waiting for the other party.
    """

    linear: float = 0.0
    circuits: float = 0.0
    channel: float = 0.0

    @contextmanager
    def on(self, what: Literal["linear", "circuits", "channel"]) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + time.perf_counter() - start)


@dataclass(frozen=True, eq=False)
class Result:
    """What the client learns.

    Attributes:
        labels: the class of each image.
        logits: [images, classes] if they were revealed, else None. The labels are then their arg-max.
        seconds: where the time went.
    """

    labels: NDArray[np.int64]
    logits: NDArray[np.float64] | None
    seconds: Seconds


def infer_client(
    channel: Channel,
    layout: Layout,
    materials: Sequence[Material],
    values: Words,
    *,
    reveal: Reveal = "label",
    threads: int = 1,
) -> Result:
    """Run the client's side.

    Args:
        channel: to the server, which took its halves of the same bundles in the same order.
        layout: the program's.
        materials: one bundle per image.
        values: encoded images, [images, *shape], elements of the input's ring.
        reveal: what both parties agreed on.
        threads: for evaluating circuits: of the arg-max, and of ReLUs where they are garbled.

    Raises:
        DeepReduceError: the server does not follow the protocol. The bundles are spent nevertheless.
    """
    seconds, public = Seconds(), layout.public
    bits = public.input.ring_bits
    masks = np.stack([material.source.array(sections.INPUT) for material in materials]).astype(np.uint64)
    with seconds.on("channel"):
        channel.send(Kind.INPUT, pack(split(values, masks, bits), bits))
    for one in layout.rounds:
        replies: list[Octets] = []
        for material in materials:
            for unit in one.units:
                replies += _answer(channel, material, unit, seconds, threads)
        with seconds.on("channel"):
            channel.send(Kind.WORDS, *replies)
    count = len(materials)
    if reveal == "logits":
        form = public.tensors[public.logits]
        with seconds.on("channel"):
            message = channel.receive(Kind.RESULT, count * layout.logits_bytes)
        own = np.stack([material.source.array(sections.LOGITS) for material in materials]).astype(np.uint64)
        total = reconstruct(unpack(message, (count, form.size), form.ring_bits), own, form.ring_bits)
        logits = decode(total, fraction_bits=form.fraction_bits, bits=form.ring_bits)
        return Result(logits.argmax(axis=1).astype(np.int64), logits, seconds)
    colours = np.concatenate([_answer(channel, m, layout.ending, seconds, threads)[0] for m in materials])
    with seconds.on("channel"):
        message = channel.receive(Kind.RESULT, colours.size)
    decoding = np.frombuffer(message, np.uint8).reshape(colours.shape)
    labels = from_bits(decode_bits(colours, decoding)).astype(np.int64)
    if labels.max(initial=0) >= public.classes:
        raise DeepReduceError(
            problem(
                f"a class is below {public.classes}",
                got=int(labels.max()),
                remedy="prepare new bundles; if it happens again, the server does not follow the protocol",
            )
        )
    return Result(labels, None, seconds)


def infer_server(
    channel: Channel,
    layout: Layout,
    linear: LinearEvaluator,
    materials: Sequence[Material],
    *,
    reveal: Reveal = "label",
) -> Seconds:
    """Run the server's side. It takes at most `layout.memory.of(images)` bytes, see `memory`.

    Args:
        channel: to the client, which took its halves of the same bundles in the same order.
        layout: the program's.
        linear: evaluates the program with its weights; may be shared between threads.
        materials: one bundle per image.
        reveal: what both parties agreed on.

    Returns:
        Where the time went.

    Raises:
        DeepReduceError: the client does not follow the protocol. The bundles are spent nevertheless.
    """
    batch = _Batch(channel, layout, linear, materials)
    batch.take_input()
    for one, memory in zip(layout.rounds, layout.memory.rounds, strict=True):
        for piece in memory.pieces(len(materials)):
            batch.send_labels(one, memory, piece)
        batch.forget(memory)
        batch.take_words(one)
    batch.end(layout.memory.tail, reveal)
    return batch.seconds


def _answer(channel: Channel, material: Material, unit: Unit, seconds: Seconds, threads: int) -> list[Octets]:
    """Receive one image's labels or questions for a unit, and return what goes back; of the arg-max the colours."""
    message = np.empty(unit.labels_bytes, np.uint8)
    with seconds.on("channel"):
        channel.receive_into(Kind.LABELS, message)
    with seconds.on("circuits"):
        if isinstance(unit, GarbledUnit):
            return [_evaluate(material, unit, message, threads)]
        question, own = read_question(unit, message), client_part(unit, material.source)
        return write_reply(unit, reply(unit.op, question, own, unit.bits))


def _evaluate(material: Material, unit: GarbledUnit, labels: Octets, threads: int) -> Octets:
    """Evaluate a unit: return its words less the next masks, or the colours of the arg-max."""
    got = evaluate(
        unit.circuit,
        instances=unit.instances,
        tables=material.array(sections.TABLES, unit),
        garbler_labels=labels.reshape(unit.instances, -1, LABEL_BYTES),
        evaluator_labels=material.array(sections.LABELS, unit),
        tweak=material.tweak(unit),
        threads=threads,
    )
    if not unit.bits:
        return got.colours
    masks = material.array(sections.MASKS, unit).astype(np.uint64)
    return pack(mask_words(got.words, masks[:, None], unit.circuit), unit.bits)


class _Batch:
    """The server's side of one online phase; `memory` says what it holds and why it works on pieces of the batch."""

    def __init__(
        self, channel: Channel, layout: Layout, linear: LinearEvaluator, materials: Sequence[Material]
    ) -> None:
        self.seconds = Seconds()
        self._channel, self._layout, self._linear, self._materials = channel, layout, linear, materials
        self._tensors = layout.public.tensors
        self._shares: dict[int, NDArray[Any]] = {}
        self._bits: dict[int, NDArray[np.uint8]] = {}
        self._freed_bytes = 0

    def take_input(self) -> None:
        """Receive the masked images: they are the server's share of them."""
        layout, form = self._layout, self._layout.public.input
        message = self._receive(Kind.INPUT, layout.input_bytes)
        held = self._hold(0)
        for image, data in zip(held, message, strict=True):
            image[...] = unpack(data, form.shape, form.ring_bits)

    def send_labels(self, one: OnlineRound, memory: RoundMemory, piece: slice) -> None:
        """Compute a round's linear steps for a piece of the batch, and send the labels of its circuits."""
        own = self._compute(memory, piece)
        with self.seconds.on("circuits"):
            for step in memory.rest:
                self._keep_rest(step, own[step.inputs[0]], piece)
        for index in range(piece.start, piece.stop):
            for step, units in groupby(one.units, key=lambda unit: unit.step):
                self._send(index, list(units), own[step.inputs[0]][index - piece.start])
        del own
        self._freed(memory, piece)

    def forget(self, memory: RoundMemory) -> None:
        """Free the shares that nothing reads after a round."""
        for tensor in memory.forgets:
            self._shares.pop(tensor, None)  # outputs that this round alone reads were never held

    def take_words(self, one: OnlineRound) -> None:
        """Receive the client's words, and turn them into the server's shares of the round's outputs."""
        message = self._receive(Kind.WORDS, sum(unit.words_bytes for unit in one.units))
        with self.seconds.on("circuits"):
            held = {step.output: self._hold(step.output) for step in one.circuits}
            for index, data in enumerate(message):
                place = 0
                for unit in one.units:
                    end = place + unit.words_bytes
                    out = held[unit.step.output][index].reshape(-1)  # a view of what is held
                    out[unit.writes] = self._outputs(index, unit, data[place:end]).astype(out.dtype)
                    place = end
        self._bits.clear()

    def _outputs(self, index: int, unit: Unit, data: Octets) -> Words:
        """Return the server's shares of a unit's outputs of one image, from the client's words."""
        material = self._materials[index]
        if isinstance(unit, GarbledUnit):
            offsets = material.array(sections.OFFSETS, unit).astype(np.uint64)
            words = unpack(data, (unit.instances, 1), unit.bits)
            return decode_words(words, offsets[:, None], unit.circuit)[:, 0]
        asked, own = self._remembered(unit, index), server_offsets(unit, material.source)
        return outputs(unit.op, read_reply(unit, data), asked, own, unit.bits)

    def _remember(self, unit: LookupUnit, index: int, asked: Asked) -> None:
        """Keep what was asked until the reply: the product lies where the output will."""
        product, bits = self._asked_of(unit, index)
        product[unit.writes], bits[unit.writes] = asked.product.astype(product.dtype), asked.bits

    def _remembered(self, unit: LookupUnit, index: int) -> Asked:
        product, bits = self._asked_of(unit, index)
        return Asked(product[unit.writes], bits[unit.writes])

    def _asked_of(self, unit: LookupUnit, index: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        output = unit.step.output
        held = self._hold(output)
        if output not in self._bits:
            self._bits[output] = hold(held.shape, np.dtype(np.uint8))
        return held[index].reshape(-1), self._bits[output][index].reshape(-1)  # views of what is held

    def end(self, memory: RoundMemory, reveal: Reveal) -> None:
        """Compute the logits; send the labels of the arg-max and its decoding, or the server's share of the logits."""
        ending, public = self._layout.ending, self._layout.public
        results: list[Octets] = []
        for piece in memory.pieces(len(self._materials)):
            logits = self._compute(memory, piece)[public.logits]
            for index, share in enumerate(logits, piece.start):
                if reveal == "logits":
                    results.append(pack(share, self._tensors[public.logits].ring_bits))
                else:
                    self._send(index, [ending], share)
                    results.append(self._materials[index].array(sections.DECODING, ending))
            del logits, share
            self._freed(memory, piece)
        with self.seconds.on("channel"):
            self._channel.send(Kind.RESULT, *results)

    def _freed(self, memory: RoundMemory, piece: slice) -> None:
        """Count what a piece took and gave to the allocator, which gives it to the system from time to time."""
        self._freed_bytes += memory.image_bytes * (piece.stop - piece.start)
        if self._freed_bytes >= KEPT_BYTES:
            with self.seconds.on("linear"):
                give_back()
            self._freed_bytes = 0

    def _receive(self, kind: Kind, size: int) -> NDArray[np.uint8]:
        """Receive a message with `size` bytes for each image, [images, size]."""
        message = hold((len(self._materials), size), np.dtype(np.uint8))
        with self.seconds.on("channel"):
            self._channel.receive_into(kind, message)
        return message

    def _hold(self, tensor: int) -> NDArray[Any]:
        """Return the memory of a tensor's shares between two messages, [images, *shape]; zeros at first."""
        if tensor not in self._shares:
            form = self._tensors[tensor]
            self._shares[tensor] = hold((len(self._materials), *form.shape), word_type(form.ring_bits))
        return self._shares[tensor]

    def _compute(self, memory: RoundMemory, piece: slice) -> dict[int, Words]:
        """Compute a round's linear steps on a piece; with weights: W x_S + s + bias.

        Returns:
            What the round's circuits read, by tensor, [images of the piece, *shape]. What later rounds read is held.
        """
        own: dict[int, Words] = {}
        with self.seconds.on("linear"):
            for step, dropped in zip(memory.linear, memory.drops, strict=True):
                inputs = [self._read(tensor, own, piece) for tensor in step.inputs]
                out = own[step.output] = self._linear(step, inputs, side="server")
                if step.weighted:
                    self._add_shares(step, out, piece)
                if step.output in memory.keeps:
                    self._hold(step.output)[piece] = out
                for tensor in dropped:
                    del own[tensor]
                del inputs, out  # they would live on beside the next step
            for tensor in memory.reads:
                self._read(tensor, own, piece)
        return own

    def _read(self, tensor: int, own: dict[int, Words], piece: slice) -> Words:
        """Return the shares of a tensor for a piece; those that are held are widened once."""
        if tensor not in own:
            own[tensor] = self._shares[tensor][piece].astype(np.uint64)
        return own[tensor]

    def _add_shares(self, step: Step, out: Words, piece: slice) -> None:
        """Add the bundles' shares to W x_S, in place."""
        for image, material in zip(out, self._materials[piece], strict=True):
            image += material.source.array(numbered(sections.SHARE, step.output))
        out &= np.uint64((1 << self._tensors[step.output].ring_bits) - 1)

    def _keep_rest(self, step: Step, share: Words, piece: slice) -> None:
        """Hold what a circuit leaves out: the server's shares without their low bits."""
        op, form = step.circuit, self._tensors[step.output]
        assert op is not None
        dropped = drop_server(share, self._tensors[step.inputs[0]].ring_bits, op.dropped)
        self._hold(step.output)[piece] = reduce(dropped, form.ring_bits).reshape(-1, *form.shape)

    def _send(self, index: int, units: Sequence[Unit], share: Words) -> None:
        """Send one image's labels or questions for the units of a step; `share` is the server's of what it reads."""
        step = units[0].step
        assert step.circuit is not None
        with self.seconds.on("circuits"):
            dropped = drop_server(share, self._tensors[step.inputs[0]].ring_bits, step.circuit.dropped)
            entering = reduce(dropped, step.circuit.width).reshape(-1)
        for unit in units:
            with self.seconds.on("circuits"):
                parts = self._question(index, unit, entering)
            with self.seconds.on("channel"):
                self._channel.send(Kind.LABELS, *parts)

    def _question(self, index: int, unit: Unit, entering: Words) -> list[Octets]:
        """Return the labels, or the question, of one image and unit, from what enters of the server's share."""
        material = self._materials[index]
        if isinstance(unit, GarbledUnit):
            seed, delta = material.array(sections.SEED, unit), material.source.array(sections.DELTA)
            values = unit.garbler_values(entering)
            labels = garbler_labels(unit.circuit, values, seed=seed.tobytes(), delta=delta.tobytes())
            return [labels.reshape(-1)]
        question, asked = ask(unit.op, unit.entering(entering), server_masks(unit, material.source), unit.bits)
        self._remember(unit, index, asked)
        return write_question(unit, question)
