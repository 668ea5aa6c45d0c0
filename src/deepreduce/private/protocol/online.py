"""The online phase: from images to labels, with one bundle per image.

    client                                              server
    INPUT   x - r, per image                         →
                                                        linear layers on its shares, in the clear
                                                     ←  LABELS  of its share, per image and unit of the round
    WORDS   result minus the next mask, per unit     →  is its share of the round's outputs
    ...
                                                     ←  LABELS  of the arg-max, RESULT  its decoding
    or, where logits are revealed:                   ←  RESULT  its share of the logits

What a party learns: the server sees x - r and words minus masks, all uniform in their rings; the client sees one label
per wire, which shows nothing of its value, and the result. The masks are those of the bundle, used this once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import DeepReduceError, problem
from ..circuits import from_bits
from ..garbling import Tweak, decode_bits, decode_words, evaluate, garbler_labels, mask_words
from ..garbling.types import LABEL_BYTES
from ..program import LinearEvaluator
from ..ring import Words, decode, drop_server, reconstruct, reduce, split
from ..wire import Channel, Kind
from .layout import Layout, OnlineRound, Unit
from .packing import pack, packed_bytes, unpack

Reveal = Literal["label", "logits"]


class Source(Protocol):
    """A bundle that was taken: it exists nowhere else any more."""

    def array(self, section: str) -> NDArray[Any]:
        """Return a section."""


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


@dataclass
class Seconds:
    """Where the time of an online phase went at one party, in seconds.

    Attributes:
        linear: computing linear layers.
        circuits: labels at the server; evaluation at the client; their packing included.
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
        threads: for evaluation.

    Raises:
        DeepReduceError: the server does not follow the protocol. The bundles are spent nevertheless.
    """
    seconds, public = Seconds(), layout.public
    bits = public.input.ring_bits
    masks = np.stack([material.source.array("input") for material in materials]).astype(np.uint64)
    with seconds.on("channel"):
        channel.send(Kind.INPUT, pack(split(values, masks, bits), bits))
    for one in layout.rounds:
        replies: list[NDArray[np.uint8]] = []
        for material in materials:
            for unit in one.units:
                replies += _evaluate(channel, material, unit, seconds, threads)
        with seconds.on("channel"):
            channel.send(Kind.WORDS, *replies)
    count = len(materials)
    if reveal == "logits":
        form = public.tensors[public.logits]
        with seconds.on("channel"):
            message = channel.receive(Kind.RESULT, count * layout.logits_bytes)
        own = np.stack([material.source.array("logits") for material in materials]).astype(np.uint64)
        total = reconstruct(unpack(message, (count, form.size), form.ring_bits), own, form.ring_bits)
        logits = decode(total, fraction_bits=form.fraction_bits, bits=form.ring_bits)
        return Result(logits.argmax(axis=1).astype(np.int64), logits, seconds)
    colours = np.concatenate([_evaluate(channel, m, layout.ending, seconds, threads)[0] for m in materials])
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
    """Run the server's side.

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
    seconds, public, count = Seconds(), layout.public, len(materials)
    with seconds.on("channel"):
        message = channel.receive(Kind.INPUT, count * layout.input_bytes)
    shares: dict[int, Words] = {0: unpack(message, (count, *public.input.shape), public.input.ring_bits)}
    for one, done in zip(layout.rounds, layout.last_read, strict=True):
        with seconds.on("linear"):
            _linear(layout, linear, one.linear, materials, shares)
        for index, material in enumerate(materials):
            for unit in one.units:
                _send_labels(channel, layout, material, unit, shares, index, seconds)
        with seconds.on("channel"):
            message = channel.receive(Kind.WORDS, count * sum(unit.words_bytes for unit in one.units))
        with seconds.on("circuits"):
            _take_words(layout, one, materials, shares, message)
        for tensor in done:
            del shares[tensor]
    with seconds.on("linear"):
        _linear(layout, linear, layout.tail, materials, shares)
    if reveal == "logits":
        form = public.tensors[public.logits]
        with seconds.on("channel"):
            channel.send(Kind.RESULT, pack(shares[public.logits].reshape(count, -1), form.ring_bits))
        return seconds
    for index, material in enumerate(materials):
        _send_labels(channel, layout, material, layout.ending, shares, index, seconds)
    decoding = [material.source.array(f"decoding.{layout.ending.number}") for material in materials]
    with seconds.on("channel"):
        channel.send(Kind.RESULT, np.concatenate(decoding))
    return seconds


def _evaluate(
    channel: Channel, material: Material, unit: Unit, seconds: Seconds, threads: int
) -> list[NDArray[np.uint8]]:
    """Evaluate one unit; return what goes back, or the colours of the arg-max."""
    labels = np.empty((unit.instances, unit.circuit.wires_of("garbler"), LABEL_BYTES), np.uint8)
    with seconds.on("channel"):
        channel.receive_into(Kind.LABELS, labels)
    source, number = material.source, unit.number
    with seconds.on("circuits"):
        got = evaluate(
            unit.circuit,
            instances=unit.instances,
            tables=source.array(f"tables.{number}"),
            garbler_labels=labels,
            evaluator_labels=source.array(f"labels.{number}"),
            tweak=material.tweak(unit),
            threads=threads,
        )
        if not unit.circuit.words:
            return [got.colours]
        masks = source.array(f"masks.{number}").astype(np.uint64)[:, None]
        return [pack(mask_words(got.words, masks, unit.circuit), unit.circuit.words[0].bits)]


def _linear(
    layout: Layout,
    linear: LinearEvaluator,
    steps: Sequence[Any],
    materials: Sequence[Material],
    shares: dict[int, Words],
) -> None:
    """Compute the server's shares of some linear steps; with weights: W x_S + s + bias."""
    for step in steps:
        out = linear(step, [shares[tensor] for tensor in step.inputs], side="server")
        if step.weighted:
            own = np.stack([material.source.array(f"share.{step.output}") for material in materials])
            out = reconstruct(out, own.astype(np.uint64), layout.public.tensors[step.output].ring_bits)
        shares[step.output] = out


def _send_labels(
    channel: Channel,
    layout: Layout,
    material: Material,
    unit: Unit,
    shares: Mapping[int, Words],
    index: int,
    seconds: Seconds,
) -> None:
    """Send the labels of the server's share for one unit of one image."""
    with seconds.on("circuits"):
        op, tensor = unit.step.circuit, unit.step.inputs[0]
        assert op is not None
        dropped = drop_server(shares[tensor][index], layout.public.tensors[tensor].ring_bits, op.dropped)
        labels = garbler_labels(
            unit.circuit,
            unit.garbler_values(reduce(dropped, op.width).reshape(-1)),
            seed=material.source.array(f"seed.{unit.number}").tobytes(),
            delta=material.source.array("delta").tobytes(),
        )
    with seconds.on("channel"):
        channel.send(Kind.LABELS, labels)


def _take_words(
    layout: Layout,
    one: OnlineRound,
    materials: Sequence[Material],
    shares: dict[int, Words],
    message: bytearray,
) -> None:
    """Turn the client's words into the server's shares of the round's outputs."""
    for step in one.circuits:
        op, form, tensor = step.circuit, layout.public.tensors[step.output], step.inputs[0]
        assert op is not None
        out = np.zeros((len(materials), form.size), np.uint64)
        if op.kept is not None and not op.rest_in_circuit:
            before = layout.public.tensors[tensor].ring_bits
            out[:] = reduce(drop_server(shares[tensor], before, op.dropped), form.ring_bits).reshape(out.shape)
        shares[step.output] = out
    data, place = memoryview(message), 0
    for index, material in enumerate(materials):
        for unit in one.units:
            bits = unit.circuit.words[0].bits
            size = packed_bytes(unit.instances, bits)
            words = unpack(data[place : place + size], (unit.instances, 1), bits)
            offsets = material.source.array(f"offsets.{unit.number}").astype(np.uint64)[:, None]
            shares[unit.step.output][index, unit.writes] = decode_words(words, offsets, unit.circuit)[:, 0]
            place += size
    for step in one.circuits:
        shape = layout.public.tensors[step.output].shape
        shares[step.output] = shares[step.output].reshape(len(materials), *shape)
