"""What can go wrong between two parties, and the codes that an ERROR frame carries."""

from __future__ import annotations

from deepreduce.errors import DeepReduceError, printable, problem

BUSY = "busy"
"""The server serves as many clients as it may; try again later."""

VERSION = "version"
"""The two parties run versions that do not understand each other."""

MODEL = "model"
"""The two parties hold different networks, or the server does not serve this one."""

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

CODES = frozenset({BUSY, VERSION, MODEL, PROTOCOL, DEADLINE, LIMIT, POLICY, INTERNAL})
"""Every code that this version sends; a newer peer may know others."""


_MEANING = {
    BUSY: ("the server must have a place for one more client", "try again later"),
    VERSION: ("both parties must speak the same version", "install the same version of deepreduce at both"),
    MODEL: ("both parties must hold files of one network", "take the client's file that was made with the server's"),
    PROTOCOL: (
        "both parties must follow the protocol",
        "connect again; if it happens again, install the same version of deepreduce at both",
    ),
    DEADLINE: (
        "what the other side waits for must come within its deadline",
        "connect again; if it happens again, let it wait longer with --deadline",
    ),
    LIMIT: ("a request must stay within what the server gives", "ask for less, or later"),
    POLICY: ("a request must be one that the server's owner allows", "ask for what it reveals"),
    INTERNAL: ("the other side must be able to go on", "see its log, then connect again"),
}
"""Of each code, what must hold and what to do."""


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
        peer: how error messages call it.
    """

    def __init__(self, code: str, message: str, peer: str) -> None:
        self.code = printable(code)
        self.message = printable(message)
        self.peer = peer
        must, remedy = _MEANING.get(self.code, _MEANING[INTERNAL])
        super().__init__(problem(must, got=f"{self.code}: {self.message}", remedy=remedy, where=peer))

    def __reduce__(self) -> tuple[type[PeerError], tuple[str, str, str]]:
        return type(self), (self.code, self.message, self.peer)
