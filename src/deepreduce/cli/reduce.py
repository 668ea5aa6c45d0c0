"""`deepreduce reduce`: the whole method."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import _options
from ._console import Watcher, console, print_json, say

if TYPE_CHECKING:
    from ..data import Dataset
    from ..training import SearchSettings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    _options.add_network(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="RUN", help="run folder; the same command continues it"
    )
    parser.add_argument(
        "--budget",
        type=_options.counts,
        metavar="N[,N]",
        help="train only networks with at most N ReLUs; several for methods that make a network for each",
    )
    parser.add_argument(
        "--method",
        default="deepreduce",
        metavar="NAME",
        help="deepreduce (default), deepreduce-masks, deepreduce-narrow, snl, senet, relupruner, or channel-pruning",
    )
    parser.add_argument(
        "--granularity",
        metavar="NAME",
        help="what methods that find masks keep or remove as a whole: element (default), channel or layer",
    )
    parser.add_argument(
        "--most-layers",
        type=int,
        metavar="N",
        help="for deepreduce-masks by element: at most N layers keep a ReLU; in private each costs a round trip",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="in place of --most-layers: as many as let one private inference take S seconds, as estimated beforehand "
        "for the largest --budget",
    )
    parser.add_argument(
        "--link",
        choices=("lan", "wan"),
        default="lan",
        help="of --seconds: 1 Gbit/s with 1 ms (default), or 100 Mbit/s with 40 ms",
    )
    parser.add_argument(
        "--search-epochs",
        type=int,
        metavar="N",
        help="epochs in which masks are found, before those of --epochs (default: as many); for deepreduce-masks the "
        "first of --epochs (default: two fifths)",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="train teacher and candidates N times (default 1)"
    )
    parser.add_argument("--exponent", type=float, metavar="W", help="w in the criticality C_k (default 0.07)")
    parser.add_argument(
        "--criticality-epochs", type=int, metavar="N", help="epochs of the networks that measure criticality"
    )
    parser.add_argument(
        "--rank-epochs",
        type=int,
        metavar="N",
        help="train candidates for N epochs first, and in full only those then on the front or near it: a tenth of "
        "--epochs finds nearly the same front",
    )
    parser.add_argument(
        "--finalists", type=int, metavar="N", help="of those, with a budget, train only the N most accurate in full"
    )
    parser.add_argument(
        "--collapse",
        action="store_true",
        help="make one convolution of what comes before the first ReLU that stays: much less work in private, a little "
        "less accurate",
    )
    parser.add_argument(
        "--keep-max-pooling",
        action="store_true",
        help="leave max pooling as it is (default: average pooling takes its place, which is free in private)",
    )
    parser.add_argument("--distilled-only", action="store_true", help="measure criticality with distillation alone")
    parser.add_argument("--weights", metavar="FILE", help="safetensors file with the network's trained weights")
    parser.add_argument("--trained", action="store_true", help="NETWORK brings its trained weights itself")
    parser.add_argument("--executor", default="local", metavar="NAME", help="local (default) or ray")
    parser.add_argument("--workers", type=int, metavar="N", help="jobs side by side (default: by this machine)")
    parser.add_argument("--no-private", action="store_true", help="do not estimate what each network costs privately")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and train nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _options.add_data(parser)
    _options.add_training(parser)
    _options.add_running(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from .. import plan_reduce, reduce
    from ..networks import check_name
    from ..reduction import DEFAULT_EXPONENT
    from ..training import default_workers

    settings = _options.search_settings(
        options,
        budget=max(options.budget) if options.budget else None,
        budgets=options.budget if options.budget and len(options.budget) > 1 else (),
        method=options.method,
        granularity=options.granularity,
        most_layers=options.most_layers,
        search_epochs=options.search_epochs,
        seeds=options.seeds,
        exponent=DEFAULT_EXPONENT if options.exponent is None else options.exponent,
        rank_epochs=options.rank_epochs,
        finalists=options.finalists,
        criticality_epochs=options.criticality_epochs,
        collapse=options.collapse,
        keep_max_pooling=options.keep_max_pooling,
        criticality_plain=not options.distilled_only,
        trained=options.trained or options.weights is not None,
    )
    running = _options.run_options(
        options,
        executor=options.executor,
        workers=default_workers() if options.workers is None else options.workers,
        private=not options.no_private,
    )
    weights = None if options.weights is None else _options.existing_file(options.weights)
    check_name(options.network)
    data = _options.load_data(options)
    settings = _within(settings, options, data)
    asked = {
        "out": options.out,
        "settings": settings,
        "width": options.width,
        "weights": weights,
        "exchange_activations": options.exchange_activations,
        "options": running,
    }
    if options.dry_run:
        plan = plan_reduce(options.network, data, **asked)
        if options.json:
            print_json(plan)
        else:
            from ..report import plan_table

            console().print(plan_table(plan))
        return 0
    with Watcher() as watcher:
        front = reduce(options.network, data, **asked, progress=watcher)
    if options.json:
        print_json(front.content)
        return 0
    from ..report import criticality_table, front_table

    screen = console()
    if front.content["criticality"]:
        screen.print(criticality_table(front.content))
    screen.print(front_table(front.content))
    screen.print(
        f"front: {options.out / 'front.json'}; deepreduce report {options.out} writes the page", soft_wrap=True
    )
    return 0


def _within(settings: SearchSettings, options: argparse.Namespace, data: Dataset) -> SearchSettings:
    """Return the settings with the number of layers that --seconds leaves."""
    from .. import layers_within
    from ..errors import UsageError, problem

    if options.seconds is None:
        return settings
    if settings.budget is None or settings.most_layers is not None:
        raise UsageError(
            problem(
                "a time goes with a budget of ReLUs, and in place of a number of layers",
                got="--most-layers" if settings.budget is not None else "no --budget",
                remedy="give --budget and leave out --most-layers",
                where="--seconds",
            )
        )
    replace(settings, most_layers=1)  # does the method keep to it? told before anything is estimated
    say("estimating in how many layers ReLUs may stay")
    layers = layers_within(
        options.seconds,
        options.network,
        input=data.input,
        budget=settings.budget,
        link=options.link,
        classes=len(data.classes),
        width=options.width,
        exchange_activations=options.exchange_activations,
        keep_max_pooling=options.keep_max_pooling,
    )
    at_most = "all layers" if layers is None else f"at most {layers} layer{'s' if layers > 1 else ''}"
    say(f"{at_most} may keep ReLUs, to answer within about {options.seconds:g} s ({options.link})")
    return replace(settings, most_layers=layers)
