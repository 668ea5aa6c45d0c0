"""The protocol: four functions, offline and online, client and server, and what they agree on before.

    lookup.py       signs of sums of shares, from one-time tables
    multiplexer.py  from a sign that is shared to a ReLU that is shared
    units.py        ReLUs and circuits in portions, and the rounds that carry them
    layout.py       who does what in which order, and every size, from the public program alone
    session.py      the set-up of a connection: base transfers, offsets, keys
    offline.py      prepare_client, prepare_server: one bundle at each party
    online.py       infer_client, infer_server: images to labels, a bundle per image
    memory.py       what the server holds of a batch online, and the pieces in which it works on it
    packing.py      ring elements as bytes

Nothing here knows of files, sockets or clocks beyond a `wire.Channel`, and a place to which bundles are written.
"""

from .layout import Job, Layout, make_layout
from .offline import Sections, Sink, client_sections, prepare_client, prepare_server, server_sections
from .online import Material, Result, Reveal, Seconds, Source, infer_client, infer_server
from .session import ClientSession, ServerSession, setup_client, setup_server
from .units import OnlineRound, Unit

__all__ = [
    "ClientSession",
    "Job",
    "Layout",
    "Material",
    "OnlineRound",
    "Result",
    "Reveal",
    "Seconds",
    "Sections",
    "ServerSession",
    "Sink",
    "Source",
    "Unit",
    "client_sections",
    "infer_client",
    "infer_server",
    "make_layout",
    "prepare_client",
    "prepare_server",
    "server_sections",
    "setup_client",
    "setup_server",
]
