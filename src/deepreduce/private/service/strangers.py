"""Connections that have not said yet who they are: bounded, and no address keeps the others out.

A stranger costs the server a thread until it has shaken hands and said HELLO. When there are too many, the one that
has waited longest goes, of the address that has most of them. So who opens connections and stays silent loses its own,
and who shakes hands at once comes through.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter


class Strangers:
    """The connections that are about to greet, oldest first.

    Args:
        most: how many there may be at once, at least 1.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[str, socket.socket]] = {}
        self._next = 0

    def __len__(self) -> int:
        with self._lock:
            return len(self._waiting)

    def admit(self, connection: socket.socket, address: str) -> int:
        """Take in a connection, if need be in place of another, which is shut down.

        Args:
            connection: that was accepted; it stays the caller's.
            address: where it comes from.

        Returns:
            A number, for `leave`.

        Raises:
            OSError: if the system gives no more file descriptors.
        """
        handle = connection.dup()  # TLS takes the socket itself away
        with self._lock:
            if len(self._waiting) >= self._most:
                self._turn_out()
            self._next += 1
            self._waiting[self._next] = (address, handle)
            return self._next

    def leave(self, number: int) -> None:
        """Forget a connection: it has greeted, or has ended. May be called twice."""
        with self._lock:
            _, handle = self._waiting.pop(number, ("", None))
        if handle is not None:
            handle.close()

    def _turn_out(self) -> None:
        counts = Counter(address for address, _ in self._waiting.values())
        most = max(counts.values())
        number = next(number for number, (address, _) in self._waiting.items() if counts[address] == most)
        _, handle = self._waiting.pop(number)
        with contextlib.suppress(OSError):  # it may be gone already
            handle.shutdown(socket.SHUT_RDWR)  # its thread wakes up and ends
        handle.close()
