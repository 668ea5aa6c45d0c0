"""The server: several clients at once, a thread for each, bounded in everything that a stranger decides."""

from __future__ import annotations

import functools
import hashlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from ssl import SSLContext
from types import TracebackType

from ...errors import DeepReduceError
from ..deployment import ServerModel
from ..homomorphic import PoolError, WeightsError, open_pool
from ..program import LinearEvaluator, weights_to_bytes
from ..protocol import (
    GROUP_BUNDLES,
    Layout,
)
from ..store import (
    BundleStore,
    StoreError,
    StoreFull,
    room_for_files,
)
from ..wire import (
    DEADLINE,
    INTERNAL,
    LIMIT,
    PROTOCOL,
    Channel,
    PeerError,
    PeerGone,
    PeerTimeout,
    WireError,
    accept,
)
from .dialogue import Dialogue, Refused, Service
from .limits import ServerLimits
from .quota import Quota
from .strangers import Strangers, host_of
from .weights import PreparedFolder

log = logging.getLogger("deepreduce.server")
"""One line per connection, phase and refusal; never a share, a label or an image."""

_EXPIRE_SECONDS = 3600.0
"""How often a server removes bundles that have become too old."""

_MAKE_ROOM_SECONDS = 1.0
"""How long a new connection waits for one that was turned out to end, before it is turned away itself."""

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
        self._store = store
        self.limits = ServerLimits() if limits is None else limits
        layout = model.client.layout
        layout.compile()
        images = self._within_open_files(self._most_images(layout), layout)
        share_bytes = max(1, layout.server_share_bytes)
        digest = hashlib.sha256(weights_to_bytes(model.program)).hexdigest()
        self._prepared = PreparedFolder(model, digest, weights_folder, progress)
        self._service = Service(
            model=model,
            layout=layout,
            store=store,
            limits=self.limits,
            images=images,
            together=max(1, min(self.limits.together, self.limits.batch_bytes // share_bytes)),
            weights_digest=digest,
            weights=self._prepared.weights,
            linear=LinearEvaluator(model.client.public, model.program.weights),
            pool=open_pool(workers),
            threads=threads,
            slots=threading.BoundedSemaphore(self.limits.clients),
            quota=Quota(self.limits.bundles_per_day),
        )
        self._strangers = Strangers(self.limits.clients + 8)
        self._connections = threading.BoundedSemaphore(2 * self.limits.clients + 16)  # some are just ending
        self._stopping = threading.Event()
        self._channels: set[Channel] = set()
        self._lock = threading.Lock()

    def _most_images(self, layout: Layout) -> int:
        """Return how many images of one online phase clients are told."""
        limits, memory = self.limits, layout.memory
        images = min(limits.images, memory.images(limits.batch_bytes))
        if images < limits.images:
            size = memory.of(images) / 2**20
            log.warning("images at once: %d, not %d: that takes %.1f MiB for each client", images, limits.images, size)
        if memory.of(images) > limits.batch_bytes:  # one image is always served
            log.warning("one image takes more than the limit of %.1f MiB", limits.batch_bytes / 2**20)
        return images

    def _within_open_files(self, images: int, layout: Layout) -> int:
        """Return how many images of one online phase keep their bundles open, with all clients at work."""
        clients = self.limits.clients
        others = 2 * (2 * clients + 16) + 2 * len(layout.jobs)  # connections, and weights that are mapped
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
        self._service.pool.close()
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
            stranger = self._strangers.admit(raw, host_of(peer))
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
                client = channel.certificate or host_of(peer)
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
                Dialogue(self._service, channel, peer, client).run(functools.partial(self._strangers.greeted, stranger))
            finally:
                self._strangers.ending(stranger)
        except PeerError as error:
            log.info("%s: gave up: %s", peer, error.code)
        except PeerGone:
            log.info("%s: gone", peer)
        except PeerTimeout:
            log.info("%s: too slow", peer)
            channel.fail(DEADLINE, "the server waited too long for this client")
        except Refused as error:
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
