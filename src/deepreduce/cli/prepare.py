"""`deepreduce prepare`: the offline phase, ahead of time."""

from __future__ import annotations

import argparse
from pathlib import Path

from ._console import console, print_json, say
from ._private import add_connection, at_least_one, connected


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the clients' file, from deepreduce export")
    parser.add_argument(
        "--bundles", type=at_least_one, default=1, metavar="N", help="how many, one per image to come (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_connection(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..private.deployment import load_client

    model = load_client(options.file)

    def progress(done: int) -> None:
        if options.bundles > 1:
            say(f"bundle {done} of {options.bundles}")

    def layers(done: int, total: int) -> None:
        if options.bundles > 1 and 10 * done // total > 10 * (done - 1) // total:
            say(f"linear layers of bundles that are prepared together: {100 * done // total} %")

    with connected(options, model) as client:
        made = client.prepare(options.bundles, progress=progress, layers=layers)
    value = {
        "bundles": made.bundles,
        "seconds": made.seconds,
        "sent_bytes": made.traffic.sent_bytes,
        "received_bytes": made.traffic.received_bytes,
        "stored_bytes": made.stored_bytes,
    }
    if options.json:
        print_json(value)
        return 0
    screen = console()
    screen.print(
        f"{made.bundles} bundle{'s' if made.bundles > 1 else ''} in {made.seconds:.1f} s: "
        f"{made.traffic.sent_bytes / 1e6:.1f} MB sent, {made.traffic.received_bytes / 1e6:.1f} MB received, "
        f"{made.stored_bytes / 1e6:.1f} MB kept per bundle"
    )
    return 0
