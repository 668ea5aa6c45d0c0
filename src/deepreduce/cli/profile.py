"""`deepreduce profile`: count."""

from __future__ import annotations

import argparse

from . import _options
from ._console import console, print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    _options.add_network(parser)
    parser.add_argument(
        "--input", type=_options.size, required=True, metavar="CxHxW", help="size of one image, such as 3x32x32"
    )
    parser.add_argument("--classes", type=int, default=100, metavar="N", help="number of classes (default 100)")
    _options.add_reduction(parser)
    parser.add_argument("--layers", action="store_true", help="show every ReLU layer with its place in the source")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from .. import profile

    counted = profile(
        options.network,
        input=options.input,
        classes=options.classes,
        **_options.reduction(options),
    )
    if options.json:
        print_json(counted)
        return 0
    from ..report import profile_table

    console().print(profile_table(counted, layers=options.layers))
    return 0
