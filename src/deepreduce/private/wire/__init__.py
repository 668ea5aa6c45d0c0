"""The wire: what travels between the two parties, and how long either waits for it.

    frames.py       the frame: 16 bytes of header, then the body; its specification
    channel.py      frames over a connected socket, with bounds, deadlines, and counters
    deadline.py     one moment after which nothing waits any longer
    tls.py          TLS 1.3: contexts, connecting, accepting
    address.py      HOST:PORT
    certificate.py  a self-signed certificate
    errors.py       what can go wrong, and the codes that a peer may send

    server                                                  client
    context = server_context(cert, key)                     context = client_context(ca)
    channel = accept(listener.accept()[0], context)    ←    channel = connect("HOST:PORT", context)
    channel.receive(Kind.INPUT, size)                  ←    channel.send(Kind.INPUT, header, array)
    channel.fail("busy", "try again later")            →    PeerError

A frame has the kind and the size that the receiver expects, or the call raises a `WireError`; so does a peer that is
silent, slow, or gone. What the bodies mean is the business of the rooms that make them.
"""

from .address import parse_address
from .certificate import self_signed
from .channel import Channel, Traffic
from .errors import (
    BUSY,
    CODES,
    DEADLINE,
    INTERNAL,
    LIMIT,
    MODEL,
    POLICY,
    PROTOCOL,
    VERSION,
    PeerError,
    PeerGone,
    PeerTimeout,
    TlsError,
    WireError,
)
from .frames import HEADER_BYTES, MAX_ERROR_BYTES, WIRE_VERSION, Buffer, Kind
from .tls import accept, client_context, connect, server_context

__all__ = [
    "BUSY",
    "CODES",
    "DEADLINE",
    "HEADER_BYTES",
    "INTERNAL",
    "LIMIT",
    "MAX_ERROR_BYTES",
    "MODEL",
    "POLICY",
    "PROTOCOL",
    "VERSION",
    "WIRE_VERSION",
    "Buffer",
    "Channel",
    "Kind",
    "PeerError",
    "PeerGone",
    "PeerTimeout",
    "TlsError",
    "Traffic",
    "WireError",
    "accept",
    "client_context",
    "connect",
    "parse_address",
    "self_signed",
    "server_context",
]
