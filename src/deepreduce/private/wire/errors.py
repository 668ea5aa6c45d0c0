"""What can go wrong between two parties, and the codes that an ERROR frame carries."""

from __future__ import annotations

from deepreduce.errors import DeepReduceError, printable

BUSY = "busy"
"""The server serves as many clients as it may; try again later."""

VERSION = "version"
"""The two parties run versions that do not understand each other."""

MODEL = "model"
"""The two parties hold different networks, or the server does not serve this one."""

BUNDLE = "bundle"
"""A bundle of one-time material is unknown, consumed, or belongs to someone else."""

PROTOCOL = "protocol"
"""The peer sent something that the protocol does not allow."""

DEADLINE = "deadline"
"""The peer took too long."""

LIMIT = "limit"
"""The peer asked for more than it may have."""

POLICY = "policy"
"""The peer asked for something that the server does not reveal or do."""

INTERNAL = "internal"
"""The party that sends this failed by its own fault."""

CODES = frozenset({BUSY, VERSION, MODEL, BUNDLE, PROTOCOL, DEADLINE, LIMIT, POLICY, INTERNAL})
"""Every code that this version sends; a newer peer may know others."""


class WireError(DeepReduceError):
    """The peer, or the caller, did something that the wire does not allow; the connection is of no more use."""


class PeerTimeout(WireError):  # noqa: N818 - a deadline passed; who is at fault is not known
    """The peer did not send, take, or answer in time."""


class PeerGone(WireError):  # noqa: N818 - the peer may have ended on purpose
    """Nobody is there: the connection ended, or was never made."""


class TlsError(WireError):
    """A certificate or key is wrong, or the two parties could not agree on a connection both trust."""


class PeerError(WireError):
    """The peer gave up and said why.

    What a stranger wrote is made harmless here: no control characters and no escape sequences reach a terminal.

    Attributes:
        code: one of `CODES`, or a word that only a newer peer knows.
        message: one line of printable text.
        about: the thing that the code is about, in a form that a program can read: of a bundle its session in
            hexadecimal; empty where nothing was named.
    """

    def __init__(self, code: str, message: str, about: str = "") -> None:
        self.code = printable(code)
        self.message = printable(message)
        self.about = printable(about)
        super().__init__(f"The peer gave up ({self.code}): {self.message}")

    def __reduce__(self) -> tuple[type[PeerError], tuple[str, str, str]]:
        return type(self), (self.code, self.message, self.about)
