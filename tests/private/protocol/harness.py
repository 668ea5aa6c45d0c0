"""Both parties of the protocol in one process over a socket pair: what the tests of the protocol share."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from deepreduce.private.homomorphic import PreparedWeights, prepare_weights
from deepreduce.private.program import LinearEvaluator, Program, make_program
from deepreduce.private.protocol import (
    Layout,
    Material,
    Shares,
    answer_layers,
    client_sections,
    draw_shares,
    infer_client,
    infer_server,
    make_layout,
    prepare_client,
    prepare_server,
    server_sections,
    setup_client,
    setup_server,
)
from deepreduce.private.protocol.online import Result, Reveal
from deepreduce.private.ring import Words
from deepreduce.private.service.messages import Ready
from deepreduce.private.twin import Twin
from deepreduce.private.wire import Channel, Kind

from ..program.small import images, settle


@dataclass
class Memory:
    """A bundle in memory."""

    sections: dict[str, tuple[Any, tuple[int, ...]]]
    data: dict[str, np.ndarray] = field(default_factory=dict)

    def write(self, section: str, offset: int, data: Any) -> None:
        kind, shape = self.sections[section]
        whole = self.data.setdefault(section, np.zeros(shape, kind))
        flat = whole.reshape(-1).view(np.uint8)
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        flat[offset : offset + raw.size] = raw

    def array(self, section: str) -> np.ndarray:
        assert self.data[section].shape == self.sections[section][1]
        return self.data[section]


@dataclass
class Run:
    """What came out of both phases."""

    result: Result
    client: list[Memory]
    server: list[Memory]
    shares: list[Shares]
    offline: tuple[Any, Any]
    online: tuple[Any, Any]


def prepared(program: Program, layout: Layout) -> dict[int, PreparedWeights]:
    return {
        job.step.output: prepare_weights(
            job.parameters,
            job.plan.plan,
            job.plan.fit_weights(program.weights[job.step.output].weight),
            weight_bits=layout.weight_bits,
        )
        for job in layout.jobs
    }


def weight_bits(program: Program) -> int:
    return 2 + max(int(np.abs(w.weight).max()).bit_length() for w in program.weights.values() if w.weight is not None)


def both(server: Callable[[Channel], Any], client: Callable[[Channel], Any]) -> tuple[Any, Any]:
    """Run both parties in threads; the first error wins."""
    a, b = socket.socketpair()
    results: dict[str, Any] = {}

    def party(name: str, sock: socket.socket, work: Callable[[Channel], Any]) -> None:
        with Channel(sock, deadline_seconds=60, name=name) as channel:
            try:
                results[name] = work(channel)
            except BaseException as error:
                results[name] = error

    threads = [
        threading.Thread(target=party, args=("server", a, server)),
        threading.Thread(target=party, args=("client", b, client)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("server", "client"):
        if isinstance(results[name], BaseException):
            raise results[name]
    return results["server"], results["client"]


def lots(sinks: Sequence[Memory], together: int) -> list[Sequence[Memory]]:
    """Return them in lots of so many."""
    return [sinks[first : first + together] for first in range(0, len(sinks), together)]


def begins(sinks: Sequence[Memory]) -> Callable[[int], Memory]:
    """Return what gives one of them to each bundle that begins."""
    left = iter(sinks)
    return lambda number: next(left)


def say_ready(channel: Channel, number: int) -> None:
    """Say what a server says when a bundle is written."""
    channel.send(Kind.READY, Ready(number).encode())


def hear_ready(channel: Channel, number: int) -> None:
    """Hear it."""
    _, message = channel.receive_any({Kind.READY: 100})
    assert Ready.decode(message).number == number


def ignored(number: int) -> None:
    """Do nothing about a bundle that is written."""


def run(program: Program, values: Words, *, reveal: Reveal = "label", together: int = 1) -> Run:
    """Prepare bundles, so many together, and infer with them."""
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    weights, linear = prepared(program, layout), LinearEvaluator(program.public, program.weights)
    count = len(values)
    client = [Memory(client_sections(layout)) for _ in range(count)]
    server = [Memory(server_sections(layout)) for _ in range(count)]

    def at_server(channel: Channel) -> Any:
        session = setup_server(channel, layout, bytes(range(16)))
        for sinks in lots(server, together):
            bundles = answer_layers(channel, layout, session, weights, bundles=len(sinks))
            prepare_server(channel, layout, session, bundles, begins(sinks), partial(say_ready, channel))
        offline = channel.snapshot()
        materials = [Material(number, session.start, sink) for number, sink in enumerate(server)]
        infer_server(channel, layout, linear, materials, reveal=reveal)
        return offline, channel.snapshot() - offline

    def at_client(channel: Channel) -> Any:
        session = setup_client(channel, layout, bytes(range(16)))
        shares: list[Shares] = []
        for sinks in lots(client, together):
            bundles = draw_shares(channel, layout, session, bundles=len(sinks))
            prepare_client(channel, layout, session, bundles, begins(sinks), partial(hear_ready, channel))
            shares += bundles
        offline = channel.snapshot()
        materials = [Material(number, session.start, sink) for number, sink in enumerate(client)]
        result = infer_client(channel, layout, materials, values, reveal=reveal)
        return shares, result, offline, channel.snapshot() - offline

    (server_offline, server_online), (shares, result, client_offline, client_online) = both(at_server, at_client)
    return Run(result, client, server, shares, (client_offline, server_offline), (client_online, server_online))


def replayed(program: Program, values: Words, shares: Sequence[Shares]) -> dict[int, Words]:
    """All tensors of the twin with the masks of the run."""
    joined = {tensor: np.concatenate([one[tensor] for one in shares]) for tensor in shares[0]}
    return Twin(program).trace(values, client_shares=joined)[0]


class Residual(nn.Module):
    """Two ReLU layers, a shortcut, max pooling with a cut border, global pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8)
        self.short = nn.Conv2d(8, 8, 1, stride=2)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.b1(self.c1(x)))
        x = F.relu(self.b2(self.c2(x)) + self.short(x))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def residual(size: int = 8) -> Program:
    """Return its program with random weights."""
    torch.manual_seed(0)
    network = settle(Residual(), images(64, 3, size, size))
    return make_program(network, images(64, 3, size, size))
