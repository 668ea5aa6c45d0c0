"""What each party sees, recorded, and the tests that hold two views against each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare, ks_2samp, kstest, norm
from torch import nn

from deepreduce.private.homomorphic import Keys
from deepreduce.private.program import LinearEvaluator, Program, make_program
from deepreduce.private.protocol import (
    Layout,
    Material,
    answer_layers,
    client_sections,
    draw_shares,
    infer_client,
    infer_server,
    make_layout,
    online,
    prepare_client,
    prepare_server,
    server_sections,
    setup_client,
    setup_server,
)
from deepreduce.private.protocol.codec import read_question, read_reply
from deepreduce.private.protocol.multiplexer import Question, Reply
from deepreduce.private.protocol.packing import unpack
from deepreduce.private.ring import Words
from deepreduce.private.wire import Channel, Kind
from deepreduce.private.wire.frames import flat_view

from ..program.small import Lambda, images, settle
from .harness import Memory, begins, both, ignored, prepared

CERTAIN, CHANCE = 1e-30, 1e-18
"""Below the first a test has seen a difference; above the second it has not, but for one run in 10^12 or fewer."""

WEIGHT_BITS = 12
SIZE = 8


def network() -> Program:
    """One convolution, 128 ReLUs, one matrix, three classes, for images of 1x8x8."""
    torch.manual_seed(5)
    layers = {"conv": nn.Conv2d(1, 2, 1), "relu": nn.ReLU(), "fc": nn.Linear(2 * SIZE**2, 3)}
    made = settle(Lambda(lambda net, x: net.fc(net.relu(net.conv(x)).flatten(1)), **layers), images(64, 1, SIZE, SIZE))
    return make_program(made, images(64, 1, SIZE, SIZE))


def with_weights(program: Program, scale: int, *, seed: int) -> Program:
    """The same public program with other weights, of which the bias makes the last class win."""
    random = np.random.default_rng(seed)
    weights = {}
    for tensor, own in program.weights.items():
        drawn = random.choice([-scale, scale], own.weight.shape) if scale else np.zeros(own.weight.shape, np.int64)
        bias = np.zeros_like(own.bias)
        if tensor == program.public.logits:
            bias[..., -1] = 1 << (program.public.tensors[tensor].ring_bits - 3)
        weights[tensor] = replace(own, weight=drawn, bias=bias)
    return replace(program, weights=weights)


@dataclass
class View:
    """Everything of one run, at both parties."""

    layout: Layout
    client: list[Memory]
    server: list[Memory]
    sessions: list[Any] = field(default_factory=list)
    keys: dict[Any, Keys] = field(default_factory=dict)
    shares: list[dict[int, Words]] = field(default_factory=list)
    evaluated: list[Any] = field(default_factory=list)
    outputs: list[Words] = field(default_factory=list)
    frames: dict[tuple[str, Kind], list[bytes]] = field(default_factory=lambda: defaultdict(list))
    order: list[tuple[str, Kind, int]] = field(default_factory=list)
    labels: NDArray[np.int64] | None = None

    def seen_by(self, party: str, kind: Kind) -> list[bytes]:
        """The bodies of a kind that a party received."""
        return self.frames["client" if party == "server" else "server", kind]

    def inputs(self) -> Words:
        """Masked images, [images, elements]."""
        form = self.layout.public.input
        (message,) = self.seen_by("server", Kind.INPUT)
        return unpack(message, (len(self.client), form.size), form.ring_bits)

    def servers_shares(self) -> Words:
        """What the server makes of WORDS, [images, elements]: all that it learns of ReLUs' outputs."""
        return np.stack(self.outputs)

    def questions(self) -> list[Question]:
        """What the client sees of the ReLUs' inputs, by image."""
        (unit,) = self.layout.rounds[0].units
        return [
            read_question(unit, np.frombuffer(body, np.uint8))
            for body in self.seen_by("client", Kind.LABELS)[: len(self.client)]
        ]

    def replies(self) -> list[Reply]:
        """What the server sees of their outputs, by image."""
        (unit,) = self.layout.rounds[0].units
        (message,) = self.seen_by("server", Kind.WORDS)
        bodies = np.frombuffer(message, np.uint8).reshape(len(self.client), -1)
        return [read_reply(unit, body) for body in bodies]


def record(program: Program, values: Words, *, same_bundle: bool = False, online_too: bool = True) -> View:
    """Run both phases and record them.

    Args:
        program: to run.
        values: encoded images.
        same_bundle: use the first bundle for all images, which no program of ours can do.
        online_too: or the offline phase alone.
    """
    layout = make_layout(program.public, weight_bits=WEIGHT_BITS)
    weights, linear = prepared(program, layout), LinearEvaluator(program.public, program.weights)
    count = len(values)
    view = View(
        layout,
        [Memory(client_sections(layout)) for _ in range(count)],
        [Memory(server_sections(layout)) for _ in range(count)],
    )

    def materials(start: bytes, memories: Sequence[Memory]) -> list[Material]:
        numbers = [0] * count if same_bundle else range(count)
        return [Material(number, start, memories[number]) for number in numbers]

    def at_server(channel: Channel) -> None:
        state = setup_server(channel, layout, bytes(range(16)))
        view.sessions.append(state)
        for sink in view.server:
            own = answer_layers(channel, layout, state, weights)
            prepare_server(channel, layout, state, own, begins([sink]), ignored)
        if online_too:
            infer_server(channel, layout, linear, materials(state.start, view.server))

    def at_client(channel: Channel) -> None:
        state = setup_client(channel, layout, bytes(range(16)))
        view.sessions.append(state)
        view.keys = dict(state.keys)
        for sink in view.client:
            view.shares += draw_shares(channel, layout, state)
            prepare_client(channel, layout, state, view.shares[-1:], begins([sink]), ignored)
        if online_too:
            view.labels = infer_client(channel, layout, materials(state.start, view.client), values).labels

    send, evaluate, outputs = Channel.send, online.evaluate, online.outputs

    def sending(channel: Channel, kind: Kind, *parts: Any, **options: Any) -> None:
        body = b"".join(bytes(flat_view(part)) for part in parts)
        view.frames[channel.name, kind].append(body)
        view.order.append((channel.name, kind, len(body)))
        send(channel, kind, *parts, **options)

    def evaluating(*arguments: Any, **options: Any) -> Any:
        view.evaluated.append(evaluate(*arguments, **options))
        return view.evaluated[-1]

    def giving(*arguments: Any) -> Any:
        view.outputs.append(outputs(*arguments))
        return view.outputs[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Channel, "send", sending)
        patch.setattr(online, "outputs", giving)
        patch.setattr(online, "evaluate", evaluating)
        both(at_server, at_client)
    return view


def octets(bodies: Sequence[bytes], skip: int = 0) -> NDArray[np.uint8]:
    """Bodies of equal length as [bodies, bytes], without their first bytes."""
    return np.stack([np.frombuffer(body, np.uint8)[skip:] for body in bodies])


def uniform_octets(sample: NDArray[np.uint8]) -> float:
    """The chance that uniform bytes are as uneven as these, by a chi-square test."""
    return float(chisquare(np.bincount(sample.reshape(-1), minlength=256)).pvalue)


def uniform(values: Any, bits: int) -> float:
    """The chance that uniform elements of a ring are as uneven as these, by their size or by their low bits."""
    flat = np.asarray(values, np.uint64).reshape(-1)
    size = float(kstest(flat / 2.0**bits, "uniform").pvalue)
    low = min(8, bits, max(1, (flat.size // 8).bit_length() - 1))  # of fewer values in a class the test knows little
    counts = np.bincount((flat & np.uint64((1 << low) - 1)).astype(np.int64), minlength=1 << low)
    return min(size, float(chisquare(counts).pvalue))


def alike(one: Any, other: Any) -> float:
    """The chance that two samples of one distribution are as different as these."""
    return float(ks_2samp(np.asarray(one, np.float64).reshape(-1), np.asarray(other, np.float64).reshape(-1)).pvalue)


def alike_by_place(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """The same for bytes [samples, places], place by place; the smallest chance, times the places."""
    means = one.mean(axis=0) - other.mean(axis=0)
    deviation = np.sqrt((256**2 - 1) / 12 * (1 / len(one) + 1 / len(other)))
    return float(min(1.0, 2 * norm.sf(np.abs(means / deviation).max()) * means.size))
