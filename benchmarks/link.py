"""A relay that makes loopback as slow as a network: bits per second and delay, in both directions.

Where the kernel has `netem`, a network namespace does the same; this needs nothing. Each direction is a pipe: a byte
leaves when the bytes before it have passed at the given rate, and arrives half a round trip later.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from types import TracebackType

_PIECE = 32_768
_WAITING_PIECES = 256
"""What a direction holds at most, 8 MB: more than bandwidth times delay of the links here."""


class Relay:
    """Listens on loopback and passes every connection on to a port, paced and delayed.

    Args:
        target: port of the server on loopback.
        bits_per_second: of each direction.
        round_trip_seconds: half of it is added in each direction.
    """

    def __init__(self, target: int, bits_per_second: float, round_trip_seconds: float) -> None:
        self._target, self._rate, self._delay = target, bits_per_second / 8, round_trip_seconds / 2
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for one, other in ((near, far), (far, near)):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    waiting: queue.Queue[tuple[float, bytes]] = queue.Queue(_WAITING_PIECES)
                    threading.Thread(target=self._take, args=(one, waiting), daemon=True).start()
                    threading.Thread(target=self._give, args=(other, waiting), daemon=True).start()

    def _take(self, sock: socket.socket, waiting: queue.Queue[tuple[float, bytes]]) -> None:
        """Read, and decide when each piece arrives."""
        free = time.monotonic()  # when the line is free again
        data = b"."
        while data:
            try:
                data = sock.recv(_PIECE)
            except OSError:
                data = b""
            free = max(free, time.monotonic()) + len(data) / self._rate
            waiting.put((free + self._delay, data))

    def _give(self, sock: socket.socket, waiting: queue.Queue[tuple[float, bytes]]) -> None:
        """Wait for each piece's time, and write it."""
        with contextlib.suppress(OSError):
            while True:
                when, data = waiting.get()
                pause = when - time.monotonic()
                if pause > 0:
                    time.sleep(pause)
                if not data:
                    sock.shutdown(socket.SHUT_WR)
                    return
                sock.sendall(data)
