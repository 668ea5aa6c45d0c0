"""`deepreduce estimate`: what a private inference will cost."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import _options
from ._console import console, print_json
from ._private import at_least_one

_PROTOCOLS, _LINKS = ("ours", "delphi", "cheetah"), ("lan", "wan")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "network",
        metavar="RECIPE_OR_NETWORK",
        help="a file from deepreduce export, a recipe.json or its folder, a run folder, or NETWORK as for profile",
    )
    parser.add_argument("--protocol", choices=_PROTOCOLS, help="default: all, side by side")
    parser.add_argument("--link", choices=_LINKS, help="1 Gbit/s with 1 ms, or 100 Mbit/s with 40 ms (default: both)")
    _options.add_own_network(parser)
    parser.add_argument("--relus", type=int, metavar="N", help="largest number of ReLUs, for a run folder")
    parser.add_argument(
        "--cores", type=at_least_one, default=2, metavar="N", help="of each party, for our engine (default 2)"
    )
    parser.add_argument(
        "--together",
        type=at_least_one,
        default=1,
        metavar="N",
        help="images that our engine prepares for together (default 1); what comes before an image is then what each "
        "has of it",
    )
    group = parser.add_argument_group("for NETWORK")
    group.add_argument("--input", type=_options.size, metavar="CxHxW", help="size of one image, such as 3x32x32")
    group.add_argument("--classes", type=int, metavar="N", help="number of classes (default 100)")
    _options.add_base(group)
    _options.add_reduction(group)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from .. import estimate

    found = estimate(
        options.network,
        input=options.input,
        classes=options.classes,
        **_options.reduction(options),
        relus=options.relus,
        full=None if options.own_network is None else _options.own_network(options.own_network, Path(options.network)),
        protocols=_PROTOCOLS if options.protocol is None else (options.protocol,),
        links=_LINKS if options.link is None else (options.link,),
        cores=options.cores,
        together=options.together,
    )
    if options.json:
        print_json(found)
        return 0
    from ..report import estimate_notes, estimate_table

    screen = console()
    screen.print(estimate_table(found))
    for note in estimate_notes(found):
        screen.print(note, markup=False)
    return 0
