"""A served model and its clients in one process, over TLS on loopback: what the tests of the service share."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from socket import create_server
from typing import Any

import numpy as np
import torch
from torch import nn

from deepreduce.private.deployment import About, ServerModel, make_model
from deepreduce.private.homomorphic import open_pool
from deepreduce.private.program import make_program
from deepreduce.private.service import Client, Server, ServerLimits
from deepreduce.private.store import BundleStore
from deepreduce.private.twin import Twin
from deepreduce.private.wire import client_context, self_signed, server_context

from ..program.small import Lambda, images, settle
from ..protocol.harness import residual

MEAN, STD = 0.5, 0.25


def tiny_network(seed: int = 0) -> nn.Module:
    """One convolution, eight ReLUs, one matrix, three classes, for images of 1x2x2."""
    torch.manual_seed(seed)
    layers = {"conv": nn.Conv2d(1, 2, 1), "relu": nn.ReLU(), "fc": nn.Linear(8, 3)}
    return settle(Lambda(lambda net, x: net.fc(net.relu(net.conv(x)).flatten(1)), **layers), images(64, 1, 2, 2))


@functools.cache
def tiny() -> ServerModel:
    """The smallest network that goes through every message."""
    program = make_program(tiny_network(), normalised(pixels(64, 1, 2, seed=9)))
    return make_model(program, About("tiny", program.public.relus, ("ant", "bee", "cat"), (MEAN,), (STD,)))


@functools.cache
def small() -> ServerModel:
    """A network with a shortcut and pooling, for images of 3x8x8, ten classes."""
    program = residual()
    names = tuple(f"class {number}" for number in range(10))
    return make_model(program, About("residual", program.public.relus, names, (MEAN,) * 3, (STD,) * 3))


def pixels(count: int, channels: int, size: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size)).astype(np.uint8)


def normalised(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((images / 255.0 - MEAN) / STD).float()


def sure(model: ServerModel, count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class does not hang on the rounding of a truncation, and the twin's labels."""
    channels, size, _ = model.client.public.input.shape
    drawn = pixels(6 * count + 20, channels, size, seed=seed)
    answers = Twin(model.program).run(model.client.normalise(drawn))
    ordered = np.sort(answers.logits, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    chosen = np.flatnonzero((margin > np.quantile(margin, 0.3)) & (answers.outside == 0))[:count]
    assert len(chosen) == count
    return drawn[chosen], answers.labels[chosen]


def wait_for(what: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something is so; only a defect takes that long."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


class InProcess:
    """Stands where a server's workers are; the connection's thread does their work."""

    workers = 1
    in_this_process = True

    def __init__(self, workers: int) -> None:
        pass

    def turn(self) -> AbstractContextManager[object]:
        return nullcontext()

    def map(self, function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> list[Any]:
        return [function(*arguments) for arguments in jobs]

    def close(self) -> None:
        pass


@dataclass
class Party:
    """A server that serves, and how to become its client."""

    model: ServerModel
    server: Server
    store: BundleStore
    address: str
    certificate: tuple[Path, Path]
    folder: Path
    opened: list[Client] = field(default_factory=list)

    def client_store(self, name: str = "client") -> BundleStore:
        return BundleStore(self.folder / name, program=self.model.client.digest, role="client")

    def client(self, name: str = "client", *, deadline_seconds: float = 120.0, **options: Any) -> Client:
        """Connect; the client is closed with the server if the test does not do it."""
        context = client_context(self.certificate[0])
        options = {"workers": 0, "store": self.client_store(name), "model": self.model.client, **options}
        made = Client.connect(self.address, context, deadline_seconds=deadline_seconds, **options)
        self.opened.append(made)
        return made


@contextmanager
def serving(
    model: ServerModel,
    folder: Path,
    certificate: tuple[Path, Path],
    *,
    limits: ServerLimits | None = None,
    workers: Any = InProcess,
    limit_bytes: int | None = None,
) -> Iterator[Party]:
    """Serve a model in a thread of this process.

    Args:
        model: to serve.
        folder: of the stores; it may be that of an earlier server.
        certificate: of the server, and its key.
        limits: of the server.
        workers: makes them: `InProcess`, `open_pool`, or `ProcessPool`.
        limit_bytes: of the server's store.
    """
    store = BundleStore(folder / "server", program=model.client.digest, role="server", limit_bytes=limit_bytes)
    limits = ServerLimits(deadline_seconds=120.0) if limits is None else limits
    server = Server(model, store, weights_folder=folder / "server" / "weights", limits=limits)
    if workers is not open_pool:
        server._service.pool.close()
        server._service.pool = workers(1)
    listener = create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.serve, args=(listener, server_context(*certificate)))
    thread.start()
    party = Party(model, server, store, address, certificate, folder)
    try:
        yield party
    finally:
        for client in party.opened:
            client.close()
        server.close()
        thread.join(timeout=120)
        assert not thread.is_alive()


@functools.cache
def certificate_in(folder: Path) -> tuple[Path, Path]:
    return self_signed(folder, ["localhost", "127.0.0.1"])
