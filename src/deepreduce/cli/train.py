"""`deepreduce train`: the teacher."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import _options
from ._console import Watcher, console, print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    _options.add_network(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="RUN", help="run folder; reduce finds the teacher there"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="train it N times (default 1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _options.add_data(parser)
    _options.add_training(parser)
    _options.add_running(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    settings = _options.search_settings(options, seeds=options.seeds)
    from .. import train
    from ..networks import check_name
    from ..training import summarise

    check_name(options.network)
    data = _options.load_data(options)
    with Watcher() as watcher:
        outcome = train(
            options.network,
            data,
            out=options.out,
            settings=settings,
            width=options.width,
            exchange_activations=options.exchange_activations,
            options=_options.run_options(options),
            progress=watcher,
        )
    measured = summarise(outcome.accuracies, len(data.validation))
    if options.json:
        print_json({"validation": measured, "folder": str(options.out)})
    else:
        console().print(
            f"teacher: {100 * measured['accuracy']:.2f} % of {measured['n']:,} held-out images "
            f"(95 % interval {100 * measured['low']:.2f} to {100 * measured['high']:.2f}), in {options.out}"
        )
    return 0
