"""The protocol: offline and online, two functions and one for either party, and what they agree on before.

    lookup.py       signs of sums of shares, from one-time tables
    multiplexer.py  from a sign that is shared to a ReLU that is shared
    units.py        ReLUs and circuits in portions, and the rounds that carry them
    layout.py       who does what in which order, and every size, from the public program alone
    session.py      the set-up of a connection: base transfers, offsets, keys
    sections.py     what each party keeps of a bundle, by name
    offline.py      prepare_client, prepare_server: bundles at each party
    linear.py       draw_shares, answer_layers: the encrypted part before that, of one bundle or several together
    online.py       infer_client, infer_server: images to labels, a bundle per image
    memory.py       what the server holds of a batch online, and the pieces in which it works on it
    codec.py        questions and replies of lookups as bytes
    packing.py      ring elements as bytes

Nothing here knows of files and sockets beyond a `wire.Channel`, and a place to which bundles are written. Of clocks
`online` alone knows, which tells where its seconds went.
"""

from .layout import GROUP_BUNDLES, Job, Layout, lots, make_layout
from .linear import Shares, answer_layers, draw_shares
from .offline import prepare_client, prepare_server
from .online import Material, Result, Reveal, Seconds, infer_client, infer_server
from .sections import Sections, Sink, Source, client_sections, server_sections
from .session import ClientSession, ServerSession, setup_bytes, setup_client, setup_server
from .units import GarbledUnit, LookupUnit, OnlineRound, Unit
from .version import PROTOCOL

__all__ = [
    "GROUP_BUNDLES",
    "PROTOCOL",
    "ClientSession",
    "GarbledUnit",
    "Job",
    "Layout",
    "LookupUnit",
    "Material",
    "OnlineRound",
    "Result",
    "Reveal",
    "Seconds",
    "Sections",
    "ServerSession",
    "Shares",
    "Sink",
    "Source",
    "Unit",
    "answer_layers",
    "client_sections",
    "draw_shares",
    "infer_client",
    "infer_server",
    "lots",
    "make_layout",
    "prepare_client",
    "prepare_server",
    "server_sections",
    "setup_bytes",
    "setup_client",
    "setup_server",
]
