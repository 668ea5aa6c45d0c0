"""`deepreduce demo`: the whole method on handwritten digits, in a few minutes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import write_json
from ._console import Watcher, console, print_json, say

if TYPE_CHECKING:
    from ..data import Dataset
    from ..training import Front

_WIDTH = 0.25
_EPOCHS = 24


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="RUN", help="run folder (default demo)")
    parser.add_argument("--epochs", type=int, default=_EPOCHS, metavar="N", help=f"default {_EPOCHS}")
    parser.add_argument(
        "--images", type=int, default=10, metavar="N", help="test digits to classify privately at the end (default 10)"
    )
    parser.add_argument("--no-private", action="store_true", help="leave private inference out")
    parser.add_argument("--json", action="store_true", help="print the front as JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from .. import load_data, reduce, write_figures, write_page
    from ..report import criticality_table, front_table, private_table
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
    private = {} if options.no_private else _privately(front, data, options.out, options.images)
    code = 0 if all(run["equal_to_twin"] == run["images"] for run in private.values()) else 1
    if options.json:
        print_json({**front.content, "private": private})
        return code
    screen = console()
    screen.print(criticality_table(front.content))
    screen.print(front_table(front.content))
    if private:
        screen.print(private_table(private))
    screen.print(f"Open this page: {page.resolve()}", soft_wrap=True)
    return code


def _privately(front: Front, data: Dataset, folder: Path, images: int) -> dict[str, dict[str, Any]]:
    """Run the full network and a reduced one privately on test digits; what it took, by network."""
    from .. import export
    from ..report import headline
    from ._rehearsal import rehearse

    pixels = data.test.images[:images].numpy()
    found = {}
    for entry in (front.content["teacher"], headline(front.content).entry):
        if entry is None:
            continue
        digits = "1 test digit" if len(pixels) == 1 else f"{len(pixels)} test digits"
        say(f"Two parties classify {digits} with {entry['label']}: {entry['relus']:,} ReLUs.")
        place = folder / "private" / str(entry["id"])
        files = export(front, entry=str(entry["id"]), out=place, data=data, replace=True)
        run = rehearse(files, pixels, folder=place)
        found[str(entry["label"])] = run.to_json()
    write_json(folder / "private" / "rehearsal.json", found)
    return found
