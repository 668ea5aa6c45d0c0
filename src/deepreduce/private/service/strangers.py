"""Connections that have not said yet who they are, or are ending: bounded, and no address keeps the others out.

A stranger costs the server a thread until it has shaken hands and said HELLO, and so does who breaks the protocol later
until it has heard why. When there are too many, the one that has waited longest goes, of the address that has most of
them. So who opens connections and stays silent loses its own, and who shakes hands at once comes through.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections import Counter

_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses of IPv4 behind a translator (RFC 6052)."""


class Strangers:
    """The connections that are about to greet or to end, oldest first.

    Args:
        most: how many there may be at once, at least 1.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[str, socket.socket]] = {}
        self._served: dict[int, tuple[str, socket.socket]] = {}
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
            A number, for the other methods.

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

    def greeted(self, number: int) -> None:
        """A connection is served from now on, and counts no more."""
        with self._lock:
            if number in self._waiting:
                self._served[number] = self._waiting.pop(number)

    def ending(self, number: int) -> None:
        """A connection is served no more, and counts again until it has left."""
        with self._lock:
            if number in self._served:
                if len(self._waiting) >= self._most:
                    self._turn_out()
                self._waiting[number] = self._served.pop(number)

    def leave(self, number: int) -> None:
        """Forget a connection that has ended. May be called twice."""
        with self._lock:
            found = self._waiting.pop(number, None) or self._served.pop(number, None)
        if found is not None:
            found[1].close()

    def _turn_out(self) -> None:
        counts = Counter(address for address, _ in self._waiting.values())
        most = max(counts.values())
        number = next(number for number, (address, _) in self._waiting.items() if counts[address] == most)
        _, handle = self._waiting.pop(number)
        with contextlib.suppress(OSError):  # it may be gone already
            handle.shutdown(socket.SHUT_RDWR)  # its thread wakes up and ends
        handle.close()


def host_of(address: str) -> str:
    """Return whom an address stands for: of IPv6 the network of 64 bits, in which one host has any address it likes."""
    if ":" not in address:
        return address
    own = ipaddress.IPv6Address(address.partition("%")[0])
    if own.ipv4_mapped is not None or own in _TRANSLATED:
        return str(ipaddress.IPv4Address(int(own) & 0xFFFFFFFF))
    return str(ipaddress.IPv6Network((own, 64), strict=False))
