"""`deepreduce demo`: the whole method on handwritten digits, in a few minutes."""

from __future__ import annotations

import argparse
from pathlib import Path

from ._console import Watcher, console, print_json, say

_WIDTH = 0.25
_EPOCHS = 24


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="RUN", help="run folder (default demo)")
    parser.add_argument("--epochs", type=int, default=_EPOCHS, metavar="N", help=f"default {_EPOCHS}")
    parser.add_argument("--json", action="store_true", help="print the front as JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from .. import load_data, reduce, write_figures, write_page
    from ..report import criticality_table, front_table
    from ..training import RunOptions, SearchSettings, TrainingConfig, default_workers

    settings = SearchSettings(training=TrainingConfig(epochs=options.epochs, flip=False))
    data = load_data("digits", validation=0.2)  # so few images that a tenth could not tell networks apart
    say(
        f"A quarter-width ResNet18 learns {len(data.train):,} handwritten digits of 8x8 pixels. "
        "Then its ReLUs are removed, step by step."
    )
    running = RunOptions(workers=default_workers())
    with Watcher() as watcher:
        front = reduce(
            "resnet18", data, out=options.out, settings=settings, width=_WIDTH, options=running, progress=watcher
        )
    page = options.out / "report.html"
    write_page(front.content, page)
    write_figures(front.content, options.out / "figures")
    if options.json:
        print_json(front.content)
        return 0
    screen = console()
    screen.print(criticality_table(front.content))
    screen.print(front_table(front.content))
    screen.print(f"Open this page: {page.resolve()}", soft_wrap=True)
    return 0
