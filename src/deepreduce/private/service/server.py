"""The server: several clients at once, a thread for each, bounded in everything that a stranger decides."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import ipaddress
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from ssl import SSLContext
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from ...errors import DeepReduceError
from ..deployment import ServerModel
from ..homomorphic import PoolError, WeightsError, open_pool
from ..program import LinearEvaluator, weights_to_bytes
from ..protocol import (
    GROUP_BUNDLES,
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
from ..protocol import PROTOCOL as PROTOCOL_VERSION
from ..store import (
    Bundle,
    BundleDamaged,
    BundleGone,
    BundleName,
    BundleStore,
    BundleWriter,
    StoreError,
    StoreFull,
    room_for_files,
)
from ..wire import (
    BUSY,
    DEADLINE,
    INTERNAL,
    LIMIT,
    MODEL,
    POLICY,
    PROTOCOL,
    VERSION,
    Channel,
    Kind,
    PeerError,
    PeerGone,
    PeerTimeout,
    WireError,
    accept,
)
from .limits import ServerLimits
from .messages import MAX_SMALL_BYTES, Hello, Lost, Prepare, Ready, Start, Welcome
from .quota import Quota
from .strangers import Strangers
from .weights import PreparedFolder

log = logging.getLogger("deepreduce.server")
"""One line per connection, phase and refusal; never a share, a label or an image."""

_EXPIRE_SECONDS = 3600.0
"""How often a server removes bundles that have become too old."""

_MAKE_ROOM_SECONDS = 1.0
"""How long a new connection waits for one that was turned out to end, before it is turned away itself."""

_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses of IPv4 behind a translator (RFC 6052)."""

_END_SECONDS = 10.0
"""How long a server that was closed waits for its threads."""


class Server:
    """Serves one model.

        with Server(model, store, weights_folder=folder) as server:
            server.serve(listener, tls)

    Args:
        model: the server's file.
        store: where the server's halves of bundles lie.
        weights_folder: where the transformed weights are kept, about 130 KB per ciphertext product, see
            `weights.PreparedFolder`; they hold the model, so the folder is made for its owner alone, and refused if it
            is there and others can enter it.
        limits: what strangers get.
        workers: threads or processes for the homomorphic work, at least 1; other connections go on meanwhile.
        threads: for garbling.
        progress: called with (layer, layers) while weights are transformed, which the first start does once.

    Raises:
        RunError: the folder cannot be written, or is open to others.
    """

    def __init__(
        self,
        model: ServerModel,
        store: BundleStore,
        *,
        weights_folder: Path,
        limits: ServerLimits | None = None,
        workers: int = 1,
        threads: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._model, self._store, self._threads = model, store, threads
        self.limits = ServerLimits() if limits is None else limits
        self._layout = model.client.layout
        self._layout.compile()
        self._images = self._within_open_files(self._most_images())
        share_bytes = max(1, self._layout.server_share_bytes)
        self._together = max(1, min(self.limits.together, self.limits.batch_bytes // share_bytes))
        self._weights_digest = hashlib.sha256(weights_to_bytes(model.program)).hexdigest()
        self._linear = LinearEvaluator(model.client.public, model.program.weights)
        self._prepared = PreparedFolder(model, self._weights_digest, weights_folder, progress)
        self._pool = open_pool(workers)
        self._slots = threading.BoundedSemaphore(self.limits.clients)
        self._quota = Quota(self.limits.bundles_per_day)
        self._strangers = Strangers(self.limits.clients + 8)
        self._connections = threading.BoundedSemaphore(2 * self.limits.clients + 16)  # some are just ending
        self._stopping = threading.Event()
        self._channels: set[Channel] = set()
        self._lock = threading.Lock()

    def _most_images(self) -> int:
        """Return how many images of one online phase clients are told."""
        limits, memory = self.limits, self._layout.memory
        images = min(limits.images, memory.images(limits.batch_bytes))
        if images < limits.images:
            size = memory.of(images) / 2**20
            log.warning("images at once: %d, not %d: that takes %.1f MiB for each client", images, limits.images, size)
        if memory.of(images) > limits.batch_bytes:  # one image is always served
            log.warning("one image takes more than the limit of %.1f MiB", limits.batch_bytes / 2**20)
        return images

    def _within_open_files(self, images: int) -> int:
        """Return how many images of one online phase keep their bundles open, with all clients at work."""
        clients = self.limits.clients
        others = 2 * (2 * clients + 16) + 2 * len(self._layout.jobs)  # connections, and weights that are mapped
        room = room_for_files(clients * (images + 2 * GROUP_BUNDLES) + others)  # and those that are being written
        fitting = max(1, min(images, (room - others) // clients - 2 * GROUP_BUNDLES))
        if fitting < images:
            log.warning("images at once: %d, not %d: the system lets this process open no more files", fitting, images)
        return fitting

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all connections and workers. May be called twice."""
        self._stopping.set()
        with self._lock:
            channels = list(self._channels)
        for channel in channels:
            channel.abort()
        self._pool.close()
        self._prepared.close()

    def serve(self, listener: socket.socket, context: SSLContext) -> None:
        """Accept clients until `close` is called or the listener is closed.

        Args:
            listener: bound and listening; closed on return.
            context: from `wire.server_context`.
        """
        threads: list[threading.Thread] = []
        expired = time.monotonic()  # opening the store has just done it
        with listener:
            listener.settimeout(0.5)
            while not self._stopping.is_set():
                if time.monotonic() - expired > _EXPIRE_SECONDS:
                    expired = time.monotonic()
                    self._expire()
                try:
                    raw, address = listener.accept()
                except TimeoutError:
                    continue
                except OSError as error:
                    if self._stopping.is_set() or listener.fileno() < 0:
                        break
                    log.warning("accepting failed: %s", error)  # out of descriptors, or the client left again
                    self._stopping.wait(0.1)
                    continue
                threads = [thread for thread in threads if thread.is_alive()]
                thread = self._begin(raw, context, str(address[0]))
                if thread is not None:
                    threads.append(thread)
        end = time.monotonic() + _END_SECONDS
        for thread in threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))

    def _expire(self) -> None:
        try:
            removed = self._store.expire()
        except StoreError as error:
            log.error("removing old bundles failed: %s", error)
            return
        if removed:
            log.info("removed %d bundles that were too old", removed)

    def _begin(self, raw: socket.socket, context: SSLContext, peer: str) -> threading.Thread | None:
        """Start the thread of a connection, or close it where there is no room."""
        try:
            stranger = self._strangers.admit(raw, _host(peer))
        except OSError as error:
            log.warning("%s: not served: %s", peer, error)
            raw.close()
            return None
        # Whoever was turned out for it needs a moment to end.
        if self._connections.acquire(timeout=_MAKE_ROOM_SECONDS):
            thread = threading.Thread(target=self._greet, args=(raw, context, peer, stranger), daemon=True)
            try:
                thread.start()
                return thread
            except RuntimeError as error:  # the system gives no more threads
                log.warning("%s: not served: %s", peer, error)
                self._connections.release()
        self._strangers.leave(stranger)
        raw.close()
        return None

    def _greet(self, raw: socket.socket, context: SSLContext, peer: str, stranger: int) -> None:
        """Handshake with one client and serve it; the body of its thread."""
        try:
            limits = self.limits
            with accept(
                raw,
                context,
                handshake_seconds=limits.handshake_seconds,
                deadline_seconds=limits.deadline_seconds,
                name=peer,
            ) as channel:
                client = channel.certificate or _host(peer)
                self.handle(channel, peer=channel.name, client=client, stranger=stranger)
        except WireError as error:
            log.info("%s: no handshake: %s", peer, type(error).__name__)
        finally:
            self._strangers.leave(stranger)
            self._connections.release()

    def handle(
        self,
        channel: Channel,
        *,
        peer: str = "client",
        client: str = "",
        stranger: int = 0,
    ) -> None:
        """Serve one connected client until it leaves; whatever it sends, this returns.

        Args:
            channel: to the client; left closed after an error.
            peer: its name in the log.
            client: as whom its bundles are counted: its certificate, or its address.
            stranger: its number among those who have not greeted yet.
        """
        with self._lock:  # `close` aborts what is here, and what comes later sees that it stops
            if self._stopping.is_set():
                channel.close()
                return
            self._channels.add(channel)
        try:
            try:
                _Dialogue(self, channel, peer, client).run(functools.partial(self._strangers.greeted, stranger))
            finally:
                self._strangers.ending(stranger)
        except PeerError as error:
            log.info("%s: gave up: %s", peer, error.code)
        except PeerGone:
            log.info("%s: gone", peer)
        except PeerTimeout:
            log.info("%s: too slow", peer)
            channel.fail(DEADLINE, "the server waited too long for this client")
        except _Refused as error:
            log.info("%s: refused: %s", peer, error)
            channel.fail(error.code, str(error))
        except StoreFull as error:
            log.error("%s: %s", peer, error)
            channel.fail(
                LIMIT, "the server has no room for as many bundles; ask for fewer, use some, or try again later"
            )
        except (StoreError, PoolError, WeightsError) as error:
            log.error("%s: %s: %s", peer, type(error).__name__, error)
            channel.fail(INTERNAL, "the server failed; its log says why")
        except WireError as error:
            log.info("%s: broke the protocol: %s", peer, error)
            channel.fail(PROTOCOL, str(error))
        except DeepReduceError as error:
            # What a client sent can fail a check far inside; which one is for our eyes alone.
            log.warning("%s: %s: %s", peer, type(error).__name__, error)
            channel.fail(PROTOCOL, "the server could not go on with what it received")
        except Exception:
            log.exception("%s: failed", peer)
            channel.fail(INTERNAL, "the server failed; its log says why")
        finally:
            with self._lock:
                self._channels.discard(channel)


class _Refused(DeepReduceError):  # noqa: N818 - an answer, not a failure
    """A request that the server does not serve."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Dialogue:
    """One connection."""

    def __init__(self, server: Server, channel: Channel, peer: str, client: str) -> None:
        self._server, self._channel, self._peer, self._client = server, channel, peer, client
        self._identifier = secrets.token_bytes(16)
        self._session: ServerSession | None = None
        self._held: dict[BundleName, Bundle] = {}  # taken for a START of which others were lost
        self._made = 0

    def run(self, on_greeting: Callable[[], None]) -> None:
        """Greet, then serve requests until the client says goodbye."""
        server, channel, limits = self._server, self._channel, self._server.limits
        first = min(limits.handshake_seconds, limits.deadline_seconds)
        hello = Hello.decode(channel.receive_any({Kind.HELLO: MAX_SMALL_BYTES}, deadline_seconds=first)[1])
        if hello.protocol != PROTOCOL_VERSION:
            raise _Refused(VERSION, f"this server speaks version {PROTOCOL_VERSION}; install the same release")
        if hello.model != server._model.client.digest:
            raise _Refused(MODEL, "this server serves another model; take the client file that belongs to it")
        if not server._slots.acquire(blocking=False):
            raise _Refused(BUSY, f"this server has {limits.clients} clients; try again later")
        try:
            on_greeting()
            self._serve()
        finally:
            self._release(set())
            server._slots.release()

    def _serve(self) -> None:
        """Serve a client that holds a slot."""
        channel, server = self._channel, self._server
        limits, images, together = server.limits, server._images, server._together
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
        server, channel = self._server, self._channel
        if asked.bundles > server.limits.bundles:
            raise _Refused(LIMIT, f"at most {server.limits.bundles} bundles are prepared per request")
        if asked.together > server._together:
            raise _Refused(LIMIT, f"at most {server._together} bundles are prepared together")
        left = server._quota.left(self._client)
        if left is not None and left < asked.bundles:
            most = server.limits.bundles_per_day
            raise _Refused(LIMIT, f"at most {most} bundles a day are made for one client; {max(0, left)} are left now")
        channel.send(Kind.GO)
        if self._session is None:
            with channel.patience(server.limits.patience_seconds(setup_bytes(server._layout))):
                self._session = setup_server(channel, server._layout, self._identifier)
        before = self._made
        try:
            for bundles in asked.parts():
                self._prepare_together(self._session, bundles)
        finally:
            log.info("%s: prepared %d of %d bundles", self._peer, self._made - before, asked.bundles)

    def _prepare_together(self, session: ServerSession, bundles: int) -> None:
        """Make some bundles whose linear layers share ciphertexts."""
        server, left = self._server, bundles
        layout, limits = server._layout, server.limits
        # Shares of other weights would silently make nonsense of the answer.
        meta = {"start": session.start.hex(), "weights": server._weights_digest}
        server._store.check_room(bundles, server_sections(layout), meta)
        if not server._quota.take(self._client, bundles):  # another connection of this client was faster
            raise _Refused(LIMIT, "the bundles of this day are made; come again later")
        writers: dict[int, BundleWriter] = {}
        try:
            with self._channel.patience(limits.patience_seconds(layout.linear_bytes(bundles))):
                shares = answer_layers(
                    self._channel, layout, session, server._prepared.weights, bundles=bundles, pool=server._pool
                )
            patience = limits.patience_seconds(bundles * layout.units_bytes)
            with self._channel.patience(patience):

                def begin(number: int) -> BundleWriter:
                    name, sections = BundleName(session.identifier, number), server_sections(layout)
                    writers[number] = server._store.create(name, sections, meta)
                    return writers[number]

                def done(number: int) -> None:
                    nonlocal left
                    writers[number].finish()
                    writers[number].publish()
                    del writers[number]
                    self._channel.send(Kind.READY, Ready(number).encode())
                    left -= 1
                    self._made += 1

                prepare_server(self._channel, layout, session, shares, begin, done, threads=server._threads)
        except (StoreError, PoolError, WeightsError):  # our fault, not the client's
            server._quota.give_back(self._client, left)
            raise
        finally:
            for writer in writers.values():
                writer.abandon()

    def _infer(self, start: Start) -> None:
        """Take the bundles that the client names and run the online phase."""
        server, channel = self._server, self._channel
        if start.reveal not in server.limits.reveal:
            raise _Refused(POLICY, f"this server reveals {' or '.join(server.limits.reveal)}")
        if len(start.bundles) > server._images:
            raise _Refused(LIMIT, f"at most {server._images} images go at once")
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
            transferred = len(materials) * server._layout.online_bytes
            stack.enter_context(channel.patience(server.limits.patience_seconds(transferred)))
            channel.send(Kind.GO)
            seconds = infer_server(channel, server._layout, server._linear, materials, reveal=start.reveal)
        log.info("%s: images: %d, %s", self._peer, len(materials), _written(seconds))

    def _take(self, names: list[BundleName]) -> Lost | None:
        """Take bundles, which from here on exist in this thread alone, and hold them; tell which are not there."""
        self._release(set(names))
        lost, over = [], set()
        for place, name in enumerate(names):
            if name in self._held:
                continue
            bundle = self._taken(name)
            if bundle is not None and bundle.meta.get("weights") == self._server._weights_digest:
                self._held[name] = bundle
                continue
            lost.append(place)
            if bundle is not None:
                log.info("%s: bundle %s was prepared with other weights", self._peer, name)
                over.add(name.session)
                bundle.close()
        if not lost:
            return None
        there = self._server._store.sessions() | {name.session for name in self._held}
        over |= {names[place].session for place in lost} - there
        return Lost(tuple(lost), tuple(sorted(over)))

    def _taken(self, name: BundleName) -> Bundle | None:
        """Take a bundle and read all of it, now that another one can still take its place; None if that fails."""
        try:
            bundle = self._server._store.take(name)
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


def _host(address: str) -> str:
    """Return whom an address stands for: of IPv6 the network of 64 bits, in which one host has any address it likes."""
    if ":" not in address:
        return address
    own = ipaddress.IPv6Address(address.partition("%")[0])
    if own.ipv4_mapped is not None or own in _TRANSLATED:
        return str(ipaddress.IPv4Address(int(own) & 0xFFFFFFFF))
    return str(ipaddress.IPv6Network((own, 64), strict=False))


def _written(seconds: Seconds) -> str:
    return f"linear {seconds.linear:.3f} s, circuits {seconds.circuits:.3f} s, channel {seconds.channel:.3f} s"
