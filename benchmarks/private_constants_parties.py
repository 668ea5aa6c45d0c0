"""Both parties in one process, as two threads over TLS on loopback, with bundles in memory."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deepreduce.private import wire
from deepreduce.private.deployment import About, make_model
from deepreduce.private.homomorphic import prepare_weights
from deepreduce.private.program import LinearEvaluator, Program, make_program
from deepreduce.private.protocol import (
    Layout,
    Material,
    answer_layers,
    draw_shares,
    prepare_client,
    prepare_server,
    setup_client,
    setup_server,
)


def chain(layers: int) -> Program:
    """Return a network of so many convolutions of 2x2x2 with ReLUs."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        convolution = nn.Conv2d(2, 2, 1, bias=False)
        nn.init.dirac_(convolution.weight)
        parts += [convolution, nn.ReLU()]
    network = nn.Sequential(*parts, nn.Flatten(), nn.Linear(8, 2)).eval()
    return make_program(network, torch.rand(64, 2, 2, 2, generator=torch.Generator().manual_seed(0)))


class Bundle(dict[str, Any]):
    """A bundle in memory; every section comes whole."""

    def write(self, section: str, offset: int, data: Any) -> None:
        """Keep a section."""
        assert offset == 0
        self[section] = np.array(data)

    def array(self, section: str) -> Any:
        """Return a section."""
        return self[section]


def bundles(program: Program, count: int) -> tuple[Layout, LinearEvaluator, list[tuple[Material, Material]]]:
    """Return a program's layout and evaluator, and so many bundles of client and server, each good for one image."""
    model = make_model(program, About("chain", program.public.relus, ("no", "yes"), (0.0, 0.0), (1.0, 1.0)))
    layout = model.client.layout
    weights = {}
    for job in layout.jobs:
        weight = program.weights[job.step.output].weight
        assert weight is not None
        weights[job.step.output] = prepare_weights(
            job.parameters, job.plan.plan, job.plan.fit_weights(weight), weight_bits=layout.weight_bits
        )
    owns, others = [[Bundle() for _ in range(count)] for _ in range(2)]
    starts: list[bytes] = []

    def prepare(channel: wire.Channel) -> None:
        session = setup_client(channel, layout, bytes(16))
        starts.append(session.start)
        for own in owns:
            shares = draw_shares(channel, layout, session)
            prepare_client(channel, layout, session, shares, lambda _, own=own: own, lambda _: None)

    def answer(channel: wire.Channel) -> None:
        session = setup_server(channel, layout, bytes(16))
        for other in others:
            shares = answer_layers(channel, layout, session, weights)
            prepare_server(channel, layout, session, shares, lambda _, other=other: other, lambda _: None)

    with ThreadPoolExecutor(2) as threads, channels() as (client, server):
        both(threads, partial(prepare, client), partial(answer, server))
    materials = [
        (Material(number, starts[0], own), Material(number, starts[0], other))
        for number, (own, other) in enumerate(zip(owns, others, strict=True))
    ]
    return layout, LinearEvaluator(program.public, program.weights), materials


def both(threads: ThreadPoolExecutor, client: Callable[[], Any], server: Callable[[], Any]) -> float:
    """Run both parties in two threads; the seconds of a processor that they took together."""

    def timed(work: Callable[[], Any]) -> float:
        begun = time.thread_time()
        work()
        return time.thread_time() - begun

    return sum(threads.map(timed, (client, server)))


@contextmanager
def channels() -> Iterator[tuple[wire.Channel, wire.Channel]]:
    """Connect client and server over TLS on loopback."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        cert, key = wire.self_signed(Path(folder), ["127.0.0.1"])
        with ThreadPoolExecutor(1) as pool:
            accepted = pool.submit(lambda: wire.accept(listener.accept()[0], wire.server_context(cert, key)))
            client = wire.connect(f"127.0.0.1:{listener.getsockname()[1]}", wire.client_context(cert))
            with client, accepted.result() as server:
                yield client, server
