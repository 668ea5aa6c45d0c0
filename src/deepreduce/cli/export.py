"""`deepreduce export`: a network of the front as a server's file and a clients' file."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import _options
from ._console import console, print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run folder of a finished reduce")
    parser.add_argument("--relus", type=int, metavar="N", help="largest number of ReLUs")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="longest time from an image to its class, as estimated in the run; beside --relus or in its place",
    )
    parser.add_argument(
        "--link",
        choices=("lan", "wan"),
        default="lan",
        help="over which: 1 Gbit/s with 1 ms (default), or 100 Mbit/s with 40 ms",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the two files")
    _options.add_own_network(parser)
    parser.add_argument("--data", metavar="DATA", help="images that calibrate (default: those of the run)")
    parser.add_argument("--images", type=int, default=512, metavar="N", help="how many of them (default 512)")
    parser.add_argument(
        "--margin",
        type=float,
        default=2.0,
        metavar="X",
        help="how far beyond the largest value seen a value may go (default 2)",
    )
    parser.add_argument(
        "--failure-bits",
        type=int,
        default=16,
        metavar="N",
        help="numbers are shortened without a circuit where that spoils one image in 2^N at most, 8 to 40 (default 16)",
    )
    parser.add_argument(
        "--name",
        metavar="TEXT",
        help="what clients see as the network's name (default: that of a reference network, or 'network')",
    )
    parser.add_argument("--replace", action="store_true", help="put the files in the place of another network's")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from .. import export
    from ..private.program import FormatSettings

    made = export(
        options.run_folder,
        network=None if options.own_network is None else _options.own_network(options.own_network, options.run_folder),
        relus=options.relus,
        seconds=options.seconds,
        link=options.link,
        out=options.out,
        data=options.data,
        images=options.images,
        settings=FormatSettings(margin=options.margin, failure_bits=options.failure_bits),
        name=options.name,
        replace=options.replace,
    )
    relus, agreement, failures = made.entry["relus"], made.agreement, made.formats["failures"]
    if options.json:
        print_json(
            {
                "server": str(made.server),
                "client": str(made.client),
                "relus": relus,
                "private_relus": made.private_relus,
                "agreement": agreement,
                "failures": failures,
            }
        )
        return 0
    screen = console()
    more = f"; {made.private_relus:,} in private, for ReLU6 and maxima take more" if made.private_relus > relus else ""
    screen.print(f"{made.entry['label']}: {relus:,} ReLUs{more}", markup=False)
    online = (made.entry.get("private") or {}).get("online")
    if online is not None:
        times = ", ".join(f"{seconds:.2g} s over {link}" for link, seconds in online["seconds"].items())
        screen.print(f"estimated from an image to its class: {times}", markup=False)
    screen.print(
        f"fixed point gives the same class on {agreement['same_label']:.1%} of {agreement['images']} images",
        markup=False,
    )
    if failures:
        screen.print(f"truncated shares spoil about one image in {1 / failures:,.0f}", markup=False)
    screen.print(f"for the server, secret: {made.server}", soft_wrap=True)
    screen.print(f"for its clients, public: {made.client}", soft_wrap=True)
    return 0
