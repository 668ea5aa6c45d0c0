"""One connection of a server: greets, then prepares bundles and answers images until the client leaves."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ...errors import DeepReduceError
from ..deployment import ServerModel
from ..homomorphic import Pool, PoolError, PreparedWeights, WeightsError
from ..program import LinearEvaluator
from ..protocol import PROTOCOL as PROTOCOL_VERSION
from ..protocol import (
    Layout,
    Material,
    Seconds,
    ServerSession,
    answer_layers,
    infer_server,
    prepare_server,
    server_sections,
    setup_bytes,
    setup_server,
)
from ..store import Bundle, BundleDamaged, BundleGone, BundleName, BundleStore, BundleWriter, StoreError
from ..wire import BUSY, LIMIT, MODEL, POLICY, VERSION, Channel, Kind
from .limits import ServerLimits
from .messages import MAX_SMALL_BYTES, Hello, Lost, Prepare, Ready, Start, Welcome
from .quota import Quota

log = logging.getLogger("deepreduce.server")


@dataclass
class Service:
    """What all connections of a server share.

    Attributes:
        model: that is served.
        layout: of its program.
        store: where the server's halves of bundles lie.
        limits: what strangers get.
        images: most of one online phase.
        together: most bundles whose linear layers share ciphertexts.
        weights_digest: SHA-256 of the weights, in hexadecimal.
        weights: transformed, by the tensor that a layer makes.
        linear: evaluates the program with its weights.
        pool: for the homomorphic work.
        threads: for garbling.
        slots: one for each client that is served.
        quota: counts the bundles of each client.
    """

    model: ServerModel
    layout: Layout
    store: BundleStore
    limits: ServerLimits
    images: int
    together: int
    weights_digest: str
    weights: dict[int, PreparedWeights]
    linear: LinearEvaluator
    pool: Pool
    threads: int
    slots: threading.BoundedSemaphore
    quota: Quota


class Refused(DeepReduceError):  # noqa: N818 - an answer, not a failure
    """A request that the server does not serve."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Dialogue:
    """What a server says on one connection.

    Args:
        service: shared with the other connections.
        channel: to the client.
        peer: its name in the log.
        client: as whom its bundles are counted.
    """

    def __init__(self, service: Service, channel: Channel, peer: str, client: str) -> None:
        self._service, self._channel, self._peer, self._client = service, channel, peer, client
        self._identifier = secrets.token_bytes(16)
        self._session: ServerSession | None = None
        self._held: dict[BundleName, Bundle] = {}  # taken for a START of which others were lost
        self._made = 0

    def run(self, on_greeting: Callable[[], None]) -> None:
        """Greet, then serve requests until the client says goodbye.

        Args:
            on_greeting: called once it has said which model it wants, and is served.

        Raises:
            Refused: it asked for what it does not get.
            WireError, StoreError, PoolError, WeightsError, DeepReduceError: see `Server.handle`.
        """
        service, channel, limits = self._service, self._channel, self._service.limits
        first = min(limits.handshake_seconds, limits.deadline_seconds)
        hello = Hello.decode(channel.receive_any({Kind.HELLO: MAX_SMALL_BYTES}, deadline_seconds=first)[1])
        if hello.protocol != PROTOCOL_VERSION:
            raise Refused(VERSION, f"this server speaks version {PROTOCOL_VERSION}; install the same release")
        if hello.model != service.model.client.digest:
            raise Refused(MODEL, "this server serves another model; take the client file that belongs to it")
        if not service.slots.acquire(blocking=False):
            raise Refused(BUSY, f"this server has {limits.clients} clients; try again later")
        try:
            on_greeting()
            self._serve()
        finally:
            self._release(set())
            service.slots.release()

    def _serve(self) -> None:
        """Serve a client that holds a slot."""
        channel, service = self._channel, self._service
        limits, images, together = service.limits, service.images, service.together
        channel.send(Kind.WELCOME, Welcome(self._identifier, limits.reveal, images, limits.bundles, together).encode())
        while True:
            kind, message = channel.receive_any(
                {Kind.PREPARE: MAX_SMALL_BYTES, Kind.START: MAX_SMALL_BYTES, Kind.BYE: 0}
            )
            if kind == Kind.BYE:
                return
            if kind == Kind.PREPARE:
                self._prepare(Prepare.decode(message))
            else:
                self._infer(Start.decode(message))

    def _prepare(self, asked: Prepare) -> None:
        """Run the offline phase for some bundles."""
        service, channel = self._service, self._channel
        if asked.bundles > service.limits.bundles:
            raise Refused(LIMIT, f"at most {service.limits.bundles} bundles are prepared per request")
        if asked.together > service.together:
            raise Refused(LIMIT, f"at most {service.together} bundles are prepared together")
        left = service.quota.left(self._client)
        if left is not None and left < asked.bundles:
            most = service.limits.bundles_per_day
            raise Refused(LIMIT, f"at most {most} bundles a day are made for one client; {max(0, left)} are left now")
        channel.send(Kind.GO)
        if self._session is None:
            with channel.patience(service.limits.patience_seconds(setup_bytes(service.layout))):
                self._session = setup_server(channel, service.layout, self._identifier)
        before = self._made
        try:
            for bundles in asked.parts():
                self._prepare_together(self._session, bundles)
        finally:
            log.info("%s: prepared %d of %d bundles", self._peer, self._made - before, asked.bundles)

    def _prepare_together(self, session: ServerSession, bundles: int) -> None:
        """Make some bundles whose linear layers share ciphertexts."""
        service, left = self._service, bundles
        layout, limits = service.layout, service.limits
        # Shares of other weights would silently make nonsense of the answer.
        meta = {"start": session.start.hex(), "weights": service.weights_digest}
        service.store.check_room(bundles, server_sections(layout), meta)
        if not service.quota.take(self._client, bundles):  # another connection of this client was faster
            raise Refused(LIMIT, "the bundles of this day are made; come again later")
        writers: dict[int, BundleWriter] = {}
        try:
            with self._channel.patience(limits.patience_seconds(layout.linear_bytes(bundles))):
                shares = answer_layers(
                    self._channel, layout, session, service.weights, bundles=bundles, pool=service.pool
                )
            patience = limits.patience_seconds(bundles * layout.units_bytes)
            with self._channel.patience(patience):

                def begin(number: int) -> BundleWriter:
                    name, sections = BundleName(session.identifier, number), server_sections(layout)
                    writers[number] = service.store.create(name, sections, meta)
                    return writers[number]

                def done(number: int) -> None:
                    nonlocal left
                    writers[number].finish()
                    writers[number].publish()
                    del writers[number]
                    self._channel.send(Kind.READY, Ready(number).encode())
                    left -= 1
                    self._made += 1

                prepare_server(self._channel, layout, session, shares, begin, done, threads=service.threads)
        except (StoreError, PoolError, WeightsError):  # our fault, not the client's
            service.quota.give_back(self._client, left)
            raise
        finally:
            for writer in writers.values():
                writer.abandon()

    def _infer(self, start: Start) -> None:
        """Take the bundles that the client names and run the online phase."""
        service, channel = self._service, self._channel
        if start.reveal not in service.limits.reveal:
            raise Refused(POLICY, f"this server reveals {' or '.join(service.limits.reveal)}")
        if len(start.bundles) > service.images:
            raise Refused(LIMIT, f"at most {service.images} images go at once")
        names = [BundleName(session, number) for session, number in start.bundles]
        lost = self._take(names)
        if lost is not None:
            channel.send(Kind.LOST, lost.encode())
            return
        with contextlib.ExitStack() as stack:
            materials = []
            for name in names:
                bundle = stack.enter_context(self._held.pop(name))
                start_of_tweaks = bytes.fromhex(str(bundle.meta.get("start")))
                materials.append(Material(name.number, start_of_tweaks, _Checked(bundle)))
            transferred = len(materials) * service.layout.online_bytes
            stack.enter_context(channel.patience(service.limits.patience_seconds(transferred)))
            channel.send(Kind.GO)
            seconds = infer_server(channel, service.layout, service.linear, materials, reveal=start.reveal)
        log.info("%s: images: %d, %s", self._peer, len(materials), _written(seconds))

    def _take(self, names: list[BundleName]) -> Lost | None:
        """Take bundles, which from here on exist in this thread alone, and hold them; tell which are not there."""
        self._release(set(names))
        lost, over = [], set()
        for place, name in enumerate(names):
            if name in self._held:
                continue
            bundle = self._taken(name)
            if bundle is not None and bundle.meta.get("weights") == self._service.weights_digest:
                self._held[name] = bundle
                continue
            lost.append(place)
            if bundle is not None:
                log.info("%s: bundle %s was prepared with other weights", self._peer, name)
                over.add(name.session)
                bundle.close()
        if not lost:
            return None
        there = self._service.store.sessions() | {name.session for name in self._held}
        over |= {names[place].session for place in lost} - there
        return Lost(tuple(lost), tuple(sorted(over)))

    def _taken(self, name: BundleName) -> Bundle | None:
        """Take a bundle and read all of it, now that another one can still take its place; None if that fails."""
        try:
            bundle = self._service.store.take(name)
        except BundleGone:
            log.info("%s: no bundle %s", self._peer, name)
            return None
        except BundleDamaged as error:
            log.warning("%s: %s", self._peer, error)
            return None
        try:
            bundle.check()
        except BundleDamaged as error:
            log.warning("%s: %s", self._peer, error)
            bundle.close()
            return None
        return bundle

    def _release(self, kept: set[BundleName]) -> None:
        """Give up the bundles that are held, but for some."""
        for name in set(self._held) - kept:
            self._held.pop(name).close()


class _Checked:
    """A bundle whose sections are compared with their checksums when they are read, which each is once."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def array(self, section: str) -> NDArray[Any]:
        """Return a section."""
        return self._bundle.array(section, load=True)


def _written(seconds: Seconds) -> str:
    return f"linear {seconds.linear:.3f} s, circuits {seconds.circuits:.3f} s, channel {seconds.channel:.3f} s"
