"""`deepreduce env`: versions, processor features, devices."""

from __future__ import annotations

import argparse

from ._console import console, print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from .. import environment

    found = environment()
    if options.json:
        print_json(found)
        return 0
    screen = console()
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{package} {version}" for package, version in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        screen.print(f"{name}: {value}", markup=False)
    return 0
