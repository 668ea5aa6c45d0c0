"""One moment after which nothing on a socket waits any longer."""

from __future__ import annotations

import math
import socket
import time

from deepreduce.errors import UsageError, problem

_REARM_SECONDS = 0.05  # a deadline is kept to within this; setting the timeout before every record would cost more
_LONGEST_SECONDS = 10.0**7  # far below what the operating systems take


class Deadline:
    """A moment after which a socket no longer waits, however slowly its bytes trickle."""

    __slots__ = ("_began", "_ends", "_rearm", "_sock")

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._sock = sock
        self._rearm = -math.inf
        self._began = time.monotonic()
        self._ends = self._began + check_deadline(seconds)

    @property
    def spent(self) -> float:
        """Seconds since it was set."""
        return time.monotonic() - self._began

    def arm(self) -> None:
        """Let the next call on the socket wait no longer than is left; raise TimeoutError if nothing is left."""
        now = time.monotonic()
        if now >= self._rearm:
            left = self._ends - now
            if left <= 0:
                raise TimeoutError("the deadline has passed")
            self._sock.settimeout(left)
            self._rearm = min(now + _REARM_SECONDS, self._ends)


def check_deadline(seconds: float) -> float:
    """Return `seconds` if it is a time that one can wait, else raise UsageError."""
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise UsageError(
            problem("a deadline must be a positive number of seconds", got=seconds, remedy="give 60, for example")
        )
    return seconds
