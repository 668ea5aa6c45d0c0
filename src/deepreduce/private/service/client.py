"""The client: prepares bundles ahead and spends them on images."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from ssl import SSLContext
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError, problem
from ..deployment import ClientModel
from ..homomorphic import Pool, open_pool
from ..protocol import (
    PROTOCOL,
    ClientSession,
    Material,
    Result,
    Reveal,
    Seconds,
    Shares,
    client_sections,
    draw_shares,
    infer_client,
    prepare_client,
    setup_client,
)
from ..ring import Words, encode
from ..store import Bundle, BundleDamaged, BundleName, BundleStore, BundleWriter
from ..wire import Channel, Kind, Traffic, WireError, connect
from .messages import MAX_SMALL_BYTES, Hello, Lost, Prepare, Ready, Start, Welcome

log = logging.getLogger("deepreduce.client")
"""Warnings of bundles that were lost."""

_SECONDS, _TRAFFIC = (tuple(one.name for one in fields(kind)) for kind in (Seconds, Traffic))

_TOGETHER_BYTES = 1_000_000_000
"""Shares of the bundles that are prepared together take no more memory than this, but for a single one."""

_IN_MEMORY_BYTES = 2_000_000_000
"""Bundles of one online phase are read into memory before it, up to this; a single one that is larger is mapped."""

_MOST_REFILLS = 3
"""How often bundles are prepared for one online phase, if the server loses them each time."""


@dataclass(frozen=True, eq=False)
class Inference:
    """What the client has after an online phase.

    Attributes:
        labels: class index of each image.
        logits: [images, classes] if they were revealed, else None.
        seconds: from the first masked byte to the last answer.
        parts: where this party's time went.
        traffic: bytes and round trips of the online phase.
    """

    labels: NDArray[np.int64]
    logits: NDArray[np.float64] | None
    seconds: float
    parts: Seconds
    traffic: Traffic


@dataclass(frozen=True)
class Preparation:
    """What it took to prepare bundles: the offline phase, set-up of the connection included.

    Attributes:
        bundles: how many.
        seconds: in all.
        traffic: bytes and round trips.
        stored_bytes: of one bundle at this party.
    """

    bundles: int
    seconds: float
    traffic: Traffic
    stored_bytes: int


class Client:
    """One connection to a server.

        with Client.connect("host:7000", tls, model, store) as client:
            client.prepare(10)
            print(client.infer(images).labels)

    Args:
        channel: connected; it is closed with the client.
        model: the client's file.
        store: where bundles lie.
        workers: threads or processes for the homomorphic work; 0 does it in the calling thread. They start when they
            are needed.
        threads: for the evaluation of circuits.

    Raises:
        WireError: the server speaks another version, or does not follow the protocol.
        PeerError: the server refuses, because it serves another model or too many clients.
    """

    def __init__(
        self, channel: Channel, model: ClientModel, store: BundleStore, *, workers: int = 1, threads: int = 1
    ) -> None:
        self._channel, self._model, self._store = channel, model, store
        self._threads = threads
        self._pool: Pool | None = None
        self._session: ClientSession | None = None
        try:
            self._pool = open_pool(workers) if workers else None
            channel.send(Kind.HELLO, Hello(model.digest).encode())
            self._welcome = Welcome.decode(channel.receive_any({Kind.WELCOME: MAX_SMALL_BYTES})[1])
            if self._welcome.protocol != PROTOCOL:
                raise WireError(
                    problem(
                        f"both parties speak version {PROTOCOL} of the protocol",
                        got=f"the server speaks {self._welcome.protocol}",
                        remedy="install the same version of deepreduce at both parties",
                    )
                )
        except BaseException:
            self.close()
            raise

    @classmethod
    def connect(
        cls,
        address: str,
        context: SSLContext,
        model: ClientModel,
        store: BundleStore,
        *,
        workers: int = 1,
        threads: int = 1,
        deadline_seconds: float = 120.0,
        server_name: str | None = None,
    ) -> Client:
        """Connect over TLS.

        Args:
            address: HOST:PORT.
            context: from `wire.client_context`.
            model, store, workers, threads: see the class.
            deadline_seconds: longest wait for any one message.
            server_name: name in the server's certificate, if it is not the host.

        Raises:
            WireError: nobody listens, or the server's certificate is not trusted.
        """
        channel = connect(address, context, deadline_seconds=deadline_seconds, server_name=server_name)
        return cls(channel, model, store, workers=workers, threads=threads)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(politely=kind is None)

    def close(self, *, politely: bool = False) -> None:
        """End the connection and the workers. May be called twice."""
        if politely:
            with contextlib.suppress(WireError):  # the server may be gone already
                self._channel.send(Kind.BYE, deadline_seconds=1.0)
        self._channel.close()
        if self._pool is not None:
            self._pool.close()

    @property
    def traffic(self) -> Traffic:
        """Everything that travelled since the connection began."""
        return self._channel.snapshot()

    def prepare(
        self,
        bundles: int,
        *,
        progress: Callable[[int], None] | None = None,
        layers: Callable[[int, int], None] | None = None,
    ) -> Preparation:
        """Run the offline phase: bundles of one-time material, one per image to come.

        As many at a time as server and memory allow are prepared together, which takes less for each.

        Args:
            bundles: how many, at least 1.
            progress: called with the number of finished bundles.
            layers: called with the number of messages that linear layers have taken, and will take, for the bundles
                that are prepared together; from the beginning for each such lot.

        Raises:
            UsageError: the number is out of range.
            StoreFull: the disk or the store's limit has no room; bundles that `progress` has heard of stay.
            WireError: the server broke off, or does not follow the protocol; the same.
        """
        if bundles < 1:
            raise UsageError(problem("at least one bundle is prepared", got=bundles, remedy="ask for 1 or more"))
        begin, before = time.perf_counter(), self._channel.snapshot()
        layout, numbers = self._model.layout, itertools.count(1)
        left = bundles

        def finished() -> None:
            number = next(numbers)
            if progress is not None:
                progress(number)

        with self._whole_or_over():
            while left:
                asked = Prepare(min(left, self._welcome.bundles), self._most_together())
                left -= asked.bundles
                self._channel.send(Kind.PREPARE, asked.encode())
                self._channel.receive(Kind.GO, 0)
                if self._session is None:
                    self._session = setup_client(self._channel, layout, self._welcome.session)
                for count in asked.parts():
                    self._store.check_room(count, client_sections(layout), {"start": self._session.start.hex()})
                    lot = draw_shares(
                        self._channel, layout, self._session, bundles=count, pool=self._pool, progress=layers
                    )
                    self._prepare_together(self._session, lot, finished)
        stored = _bundle_bytes(self._model)
        return Preparation(bundles, time.perf_counter() - begin, self._channel.snapshot() - before, stored)

    @contextlib.contextmanager
    def _whole_or_over(self) -> Iterator[None]:
        """End the connection if a phase breaks off: the server waits for the rest of it, and nothing else fits."""
        try:
            yield
        except BaseException:
            self._channel.close()
            raise

    def _most_together(self) -> int:
        return max(1, min(self._welcome.together, _TOGETHER_BYTES // self._model.layout.client_share_bytes))

    def _prepare_together(self, session: ClientSession, lot: Sequence[Shares], finished: Callable[[], None]) -> None:
        """Make our halves of bundles whose shares are there."""
        layout, writers = self._model.layout, dict[int, BundleWriter]()

        def begin(number: int) -> BundleWriter:
            name, meta = BundleName(session.identifier, number), {"start": session.start.hex()}
            writers[number] = self._store.create(name, client_sections(layout), meta)
            return writers[number]

        def done(number: int) -> None:
            writers[number].finish()
            # The server has published its half when it says so: a half that lies here always has a partner there.
            ready = Ready.decode(self._channel.receive_any({Kind.READY: MAX_SMALL_BYTES})[1])
            if ready.number != number:
                raise WireError(
                    problem(
                        f"the server confirms bundle {number}",
                        got=ready.number,
                        remedy="connect again and prepare anew",
                    )
                )
            writers[number].publish()
            del writers[number]
            finished()

        try:
            prepare_client(self._channel, layout, session, lot, begin, done)
        finally:
            for writer in writers.values():
                writer.abandon()

    def encode(self, images: NDArray[np.uint8]) -> Words:
        """Return pixels as ring elements.

        Args:
            images: uint8 [n, channels, height, width].

        Raises:
            DataError: they have another shape.
        """
        form = self._model.public.input
        return encode(self._model.normalise(images), fraction_bits=form.fraction_bits, bits=form.ring_bits)

    def infer(self, images: NDArray[np.uint8], *, reveal: Reveal = "label") -> Inference:
        """Classify images privately; a bundle is spent on each, and missing ones are prepared first.

        A bundle that is damaged, or whose other half the server does not have, is dropped with a warning in the log
        `deepreduce.client`, and another one takes its place.

        Args:
            images: uint8 [n, channels, height, width], n at least 1. More than the server takes at once go in turns.
            reveal: "label" or, if the server allows it, "logits".

        Raises:
            DataError: the images have another shape.
            WireError: the server refuses or broke off. Bundles in use are spent then, too.
        """
        values = self.encode(images)
        if not len(values):
            raise UsageError(problem("at least one image is classified", got="none", remedy="pass images"))
        if reveal not in self._welcome.reveal:
            raise UsageError(
                problem(
                    f"the server reveals {' or '.join(self._welcome.reveal)}",
                    got=f"a request for {reveal}",
                    remedy="ask for what it reveals, or start it with another --reveal",
                    where="--reveal",
                )
            )
        # No more at once than the server takes, nor than fit into memory with their bundles.
        turn = max(1, min(self._welcome.images, _IN_MEMORY_BYTES // _bundle_bytes(self._model)))
        return _joined([self._infer(values[first : first + turn], reveal) for first in range(0, len(values), turn)])

    def _infer(self, values: Words, reveal: Reveal) -> Inference:
        self._model.layout.compile()
        load = len(values) * _bundle_bytes(self._model) <= _IN_MEMORY_BYTES
        ready: dict[BundleName, Material] = {}
        with contextlib.ExitStack() as stack:
            refills = 0
            while len(ready) < len(values):
                refills += self._fill(ready, len(values), load, stack)
                with self._whole_or_over():
                    if refills > _MOST_REFILLS:
                        raise WireError(
                            problem(
                                "the server must keep the bundles that it makes",
                                got=f"it lost some {_MOST_REFILLS} times in a row",
                                remedy="see the server's log and its disk",
                            )
                        )
                    self._start(ready, reveal)
            with self._whole_or_over():
                begin, before = time.perf_counter(), self._channel.snapshot()
                result: Result = infer_client(
                    self._channel,
                    self._model.layout,
                    list(ready.values()),
                    values,
                    reveal=reveal,
                    threads=self._threads,
                )
            seconds = time.perf_counter() - begin
            return Inference(result.labels, result.logits, seconds, result.seconds, self._channel.snapshot() - before)

    def _fill(self, ready: dict[BundleName, Material], count: int, load: bool, stack: contextlib.ExitStack) -> bool:
        """Take bundles until there are `count`; return whether some had to be prepared."""
        prepared = False
        short = count - len(ready) - self._store.count(count - len(ready))
        while missing := count - len(ready):
            if short > 0:  # before any is taken, so that a failure costs none
                self.prepare(short)
                prepared = True
            with self._whole_or_over():
                self._channel.check()  # a server that is gone costs none either
            taken: list[Bundle] = []
            with contextlib.suppress(BundleDamaged):  # `_warn` has heard of it
                taken = self._store.take_next(missing, damaged=_warn)  # from here on nobody can use them again
            for bundle in taken:
                stack.callback(bundle.close)
            for bundle in taken:
                try:
                    ready[bundle.name] = _material(bundle, load)
                except BundleDamaged as error:  # its header was whole, a section is not
                    _warn(error)
            short = missing - len(taken)  # another process took what we had prepared, or holds it
        return prepared

    def _start(self, ready: dict[BundleName, Material], reveal: Reveal) -> None:
        """Have the server take its halves of the bundles; those that it has not are taken out of `ready`."""
        start = Start(tuple((name.session, name.number) for name in ready), reveal)
        self._channel.send(Kind.START, start.encode())
        kind, message = self._channel.receive_any({Kind.GO: 0, Kind.LOST: MAX_SMALL_BYTES})
        if kind == Kind.GO:
            return
        lost = Lost.decode(message, start)
        names = list(ready)
        for place in lost.bundles:
            del ready[names[place]]
        more = sum(self._store.discard(session) for session in lost.sessions)
        log.warning(
            "prepared bundles that were lost at the server, or belong to other weights: %d; others take their place",
            len(lost.bundles) + more,
        )


def _warn(error: BundleDamaged) -> None:
    log.warning("a prepared bundle is lost, another takes its place: %s", error)


class _Loaded:
    """A bundle's sections in memory, each compared with its checksum."""

    def __init__(self, bundle: Bundle) -> None:
        self._arrays = {section: bundle.array(section, load=True) for section in bundle.sections}

    def array(self, section: str) -> NDArray[Any]:
        """Return a section."""
        return self._arrays[section]


def _bundle_bytes(model: ClientModel) -> int:
    """Return what one bundle holds at the client."""
    return sum(math.prod(shape) * kind.itemsize for kind, shape in client_sections(model.layout).values())


def _material(bundle: Bundle, load: bool) -> Material:
    """Return a bundle's material; read from the disk now, if it is not too much, and not when the image waits.

    What is only mapped is compared with its checksums all the same: a mask that the disk lost would hide nothing.

    Raises:
        BundleDamaged: a section is not what was written.
    """
    start = bytes.fromhex(str(bundle.meta.get("start")))
    if not load:
        bundle.check()
        return Material(bundle.name.number, start, bundle)
    loaded = _Loaded(bundle)
    bundle.close()  # everything is in memory: neither the disk nor a descriptor need hold it
    return Material(bundle.name.number, start, loaded)


def _joined(parts: Sequence[Inference]) -> Inference:
    """Join the turns of a large batch."""
    if len(parts) == 1:
        return parts[0]
    logits = [part.logits for part in parts if part.logits is not None]
    return Inference(
        labels=np.concatenate([part.labels for part in parts]),
        logits=np.concatenate(logits) if logits else None,
        seconds=sum(part.seconds for part in parts),
        parts=Seconds(**{name: sum(getattr(part.parts, name) for part in parts) for name in _SECONDS}),
        traffic=Traffic(**{name: sum(getattr(part.traffic, name) for part in parts) for name in _TRAFFIC}),
    )


def default_store(file: Path) -> Path:
    """Return where the bundles of a model's file lie unless the user names another folder."""
    return file.resolve().parent / "bundles"
