"""`deepreduce report`: the page and the plots of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from ._console import console, print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run folder of a finished reduce")
    parser.add_argument("--json", action="store_true", help="print the names of the files as JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..report import write_figures, write_page
    from ..training import Front

    front = Front.read(options.run_folder)
    page = options.run_folder / "report.html"
    write_page(front.content, page)
    figures = write_figures(front.content, options.run_folder / "figures")
    if options.json:
        print_json({"page": str(page), "figures": [str(path) for path in figures]})
        return 0
    screen = console()
    screen.print(f"page: {page}", soft_wrap=True)
    for path in figures:
        screen.print(f"plot: {path}", soft_wrap=True)
    return 0
