"""`deepreduce prepare`: the offline phase, ahead of time."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError, problem
from ._console import console, print_json, say
from ._private import add_connection, at_least_one, client_store, connected

if TYPE_CHECKING:
    from ..private.deployment import ClientModel

_BETWEEN_LINES_SECONDS = 5.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the clients' file, from deepreduce export")
    parser.add_argument(
        "--bundles", type=at_least_one, default=1, metavar="N", help="how many more, one per image to come (default 1)"
    )
    parser.add_argument(
        "--count", action="store_true", help="say how many are there, and prepare none; this needs no server"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_connection(parser, required=False)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..private.deployment import load_client

    if not options.count and (options.connect is None or options.ca is None):
        raise UsageError(
            problem(
                "a bundle is prepared with the server",
                got="no --connect" if options.connect is None else "no --ca",
                remedy="give both, or --count to see how many bundles are there",
                where="prepare",
            )
        )
    model = load_client(options.file)
    return _count(options, model) if options.count else _prepare(options, model)


def _count(options: argparse.Namespace, model: ClientModel) -> int:
    there = client_store(options, model).count()
    if options.json:
        print_json({"bundles": there})
    else:
        console().print(f"bundles: {there}")
    return 0


def _prepare(options: argparse.Namespace, model: ClientModel) -> int:
    told, made_so_far = time.monotonic(), 0

    def progress(done: int) -> None:
        nonlocal told, made_so_far
        made_so_far = done
        if time.monotonic() - told > _BETWEEN_LINES_SECONDS:
            told = time.monotonic()
            say(f"bundle {done} of {options.bundles}")

    def layers(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > _BETWEEN_LINES_SECONDS:
            told = time.monotonic()
            say(f"linear layers of bundles that are prepared together: {100 * done // total} %")

    try:
        with connected(options, model) as client:
            made = client.prepare(options.bundles, progress=progress, layers=layers)
    except BaseException:
        if made_so_far:
            say(f"\n{made_so_far} of {options.bundles} bundles were prepared, and are kept")
        raise
    kept = client_store(options, model).count()
    if options.json:
        print_json(
            {
                "bundles": made.bundles,
                "seconds": made.seconds,
                "sent_bytes": made.traffic.sent_bytes,
                "received_bytes": made.traffic.received_bytes,
                "stored_bytes": made.stored_bytes,
                "kept": kept,
            }
        )
        return 0
    screen = console()
    screen.print(
        f"{made.bundles} bundle{'s' if made.bundles > 1 else ''} in {made.seconds:.1f} s: "
        f"{made.traffic.sent_bytes / 1e6:.1f} MB sent, {made.traffic.received_bytes / 1e6:.1f} MB received, "
        f"{made.stored_bytes / 1e6:.1f} MB kept per bundle; bundles there now: {kept}"
    )
    return 0
