"""What one private inference costs, before it is run: gates, bytes, round trips, seconds and storage.

    links.py     LAN, WAN, and the clock of two parties
    costs.py     what an estimate says
    ours.py      our engine, exact but for the seconds, from the layout of a program
    delphi.py    DELPHI, per ReLU and per MAC, from its published logs
    cheetah.py   Cheetah, likewise, from a run of OpenCheetah
    constants/   the measured numbers with unit and source; `benchmarks/private_constants.py` writes ours

Importing this needs neither numpy nor the extra `private`; our own estimate does, for the layout that it takes.
"""

from ._constants import Constants, constants_of
from .cheetah import cheetah_cost
from .costs import Cost, Counts, Phase
from .delphi import delphi_cost, delphi_online_seconds
from .links import LINKS, Link, link_of
from .ours import our_cost

PROTOCOLS = ("ours", "delphi", "cheetah")
"""Names of the protocols."""

__all__ = [
    "LINKS",
    "PROTOCOLS",
    "Constants",
    "Cost",
    "Counts",
    "Link",
    "Phase",
    "cheetah_cost",
    "constants_of",
    "delphi_cost",
    "delphi_online_seconds",
    "link_of",
    "our_cost",
]
