"""The paper's tables and its rivals', trained here beside the published figures: one command, resumable, no network.

    python benchmarks/reproduce.py pack --data DATA --out PIECES     # to carry the images to a machine without network
    python benchmarks/reproduce.py run --pieces PIECES --runs RUNS   # or --data DATA; the same command continues
    python benchmarks/reproduce.py table RUNS RESULTS.json           # paper beside ours, results file, plot

Every network of a run has one teacher, which all methods share. Held-out training images choose; the test images are
looked at once for each network of a table. `--epochs` is the whole cost of each reduced network: methods that find
masks spend `--search-share` of it on the search. Besides the methods of `deepreduce reduce --method` there is
`published`: the networks that the paper's authors released, trained here. `table` takes run folders and results files
alike, so that a table can grow over several machines of which only these files are left.
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import signal
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pieces import MOST_BYTES, join, pack
from reproduction import PUBLISHED, load_published, load_results, reproduction, same_data, write_results
from reproduction_private import all_private, load_private
from throughput import OurLoop, PlainLoop

import deepreduce
from deepreduce._files import read_json, write_json
from deepreduce.cli._console import Watcher
from deepreduce.errors import DeepReduceError, Interrupted, TrainingError, UsageError, problem
from deepreduce.reduction import REDUCERS, Candidate, Criticality, Reducer, census_of, make_base
from deepreduce.training import RunOptions, SearchSettings, TrainingConfig, make_accelerator
from deepreduce.training.batches import DeviceSplit, Normalisation

METHOD_NAMES = ("published", "deepreduce-masks", "deepreduce-narrow", "snl", "senet", "relupruner", "channel-pruning")
BUDGETS = (12_288, 24_900, 49_600, 100_000, 180_000)
"""Of methods that make a network for each budget, at width 1: those of the published rows."""

PRUNING_BUDGETS = (311_700, 184_000)
"""The ReLUs of the paper's channel-pruning row, and the ReLUs at which channel pruning has about its MACs."""


def main(arguments: list[str] | None = None) -> int:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="cut a folder into pieces that can travel")
    packing.add_argument("--data", type=Path, required=True, help="folder of images, or of anything else")
    packing.add_argument("--out", type=Path, required=True, help="folder for the pieces")
    packing.add_argument("--most-mib", type=float, default=MOST_BYTES / 2**20, help="of one piece (default 53)")
    joining = commands.add_parser("join", help="put a packed folder together again (`run --pieces` does it itself)")
    joining.add_argument("--pieces", type=Path, required=True)
    joining.add_argument("--out", type=Path, required=True)
    _add_run(commands.add_parser("run", help="train what is not trained yet, then print the table"))
    table = commands.add_parser("table", help="print and draw what is there")
    table.add_argument("runs", type=Path, nargs="+", help="folders of `run`, and results files of others")
    _add_results(table)
    options = parser.parse_args(arguments)
    try:
        return {"pack": _pack, "join": _join, "run": run, "table": table_of}[options.command](options)
    except DeepReduceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _add_run(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pieces", type=Path, help="folder that `pack` wrote")
    source.add_argument("--data", help="folder of images, digits, or OWNER/NAME on the hub")
    parser.add_argument("--runs", type=Path, required=True, help="folder for everything that is trained")
    parser.add_argument("--networks", type=_words, default=("resnet18",), help="reference networks, comma-separated")
    parser.add_argument("--methods", type=_words, default=METHOD_NAMES, help=f"default {','.join(METHOD_NAMES)}")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--budgets", type=_counts, help="ReLUs of masks (default: the published ones, times the width)")
    parser.add_argument("--granularity", choices=["element", "channel", "layer"], help="default: element")
    parser.add_argument("--most-layers", type=int, help="layers in which deepreduce-masks may keep ReLUs")
    parser.add_argument(
        "--keep-max-pooling", action="store_true", help="of networks that have it, as `deepreduce reduce` does"
    )
    parser.add_argument(
        "--as-released", action="store_true", help="`published`: the released networks of up to --width, not narrowed"
    )
    parser.add_argument("--epochs", type=int, default=200, help="of each reduced network, its search included")
    parser.add_argument("--teacher-epochs", type=int, help="default: those of --epochs")
    parser.add_argument("--search-share", type=float, default=0.4, help="of the epochs, for finding masks")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", default="auto", choices=["auto", "no", "bf16", "fp16"])
    parser.add_argument("--compile", default="auto", choices=["auto", "on", "off"], help="default auto: on a GPU")
    parser.add_argument("--classes", type=int, help="use the first N classes alone")
    parser.add_argument("--per-class", type=int, help="use N training images of each class")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training images that chooses")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="networks trained side by side")
    parser.add_argument("--threads", type=int, help="processor threads of each")
    parser.add_argument(
        "--minutes",
        type=float,
        help="stop after so long, with the step then under way; the same command continues. Leave two more on a GPU: "
        "the first step of a network compiles it",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what is to be trained, and train nothing")
    parser.add_argument("--no-times", action="store_true", help="do not compare epoch times with a plain loop")
    _add_results(parser)


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, help="folder for results file and plot (default: the run's)")
    parser.add_argument("--name", default="reproduce", help="what their names begin with")
    parser.add_argument("--private", type=Path, help="results file of private.py, for networks that it has run")
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="the published figures")


def _pack(options: argparse.Namespace) -> int:
    manifest = pack(options.data, options.out, most_bytes=int(options.most_mib * 2**20))
    for piece in manifest["pieces"]:
        print(f"{piece['name']}  {piece['bytes']:>12,} bytes  {piece['sha256'][:16]}")
    print(f"{len(manifest['files'])} files in {len(manifest['pieces'])} pieces; carry them with manifest.json")
    return 0


def _join(options: argparse.Namespace) -> int:
    print(join(options.pieces, options.out))
    return 0


def run(options: argparse.Namespace) -> int:
    """Train what is missing, as far as time allows, and print the table."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in what runs behind it
    limit = threading.Timer(60 * (options.minutes or 0), _thread.interrupt_main)
    limit.daemon = True
    if options.minutes is not None:
        limit.start()
    failures: list[str] = []
    _require_packages()
    _require_use(options)
    try:
        source = options.data if options.pieces is None else str(join(options.pieces, options.runs / "data"))
        data = deepreduce.load_data(
            source, classes=options.classes, per_class=options.per_class, validation=options.validation
        )
        published = load_published(options.published)
        for network in options.networks:
            if options.dry_run:
                print_plan(network, data, options, published)
                continue
            if not options.no_times and data.input[0] == 3:  # the plain loop is one for colour images
                try:
                    epoch_times(network, data, options)
                except (RuntimeError, OSError) as error:  # the networks do not wait for this
                    print(f"{network}: no times of an epoch: {error}", file=sys.stderr, flush=True)
            with Watcher() as watcher:
                try:
                    train_all(network, data, options, published, watcher, failures)
                except TrainingError as error:  # its teacher: other networks have their own
                    failures.append("teacher")
                    print(f"{network}: {error}", file=sys.stderr, flush=True)
    except (Interrupted, KeyboardInterrupt):
        print("stopped; the same command continues", file=sys.stderr)
        if options.minutes is None:
            return 1
    finally:
        limit.cancel()
    if not options.dry_run and any(list(options.runs.glob(f"{kind}/*.json")) for kind in ("fronts", "times")):
        options.runs = [options.runs]
        table_of(options)
    return 1 if failures else 0


def _require_packages() -> None:
    """Refuse to begin on a machine that lacks what a later network will need."""
    missing = [name for name in ("torch_pruning", "safetensors", "accelerate") if find_spec(name) is None]
    if missing:
        raise UsageError(
            problem(
                "the packages of deepreduce are installed",
                got=f"no {', '.join(missing)}",
                remedy="carry their wheels here and pip install --no-index them",
                where="this machine's Python",
            )
        )


def _require_use(options: argparse.Namespace) -> None:
    """Refuse a limit of layers that none of the methods keeps to."""
    finders = [REDUCERS[name].finder for name in options.methods if name in REDUCERS]
    if options.most_layers is not None and not any(finder and finder.limits_layers for finder in finders):
        raise UsageError(
            problem(
                "a number of layers is for a method that can keep to it",
                got=f"--most-layers {options.most_layers} for {', '.join(options.methods)}",
                remedy="add deepreduce-masks to --methods, or leave it out",
                where="--most-layers",
            )
        )


def train_all(
    network: str,
    data: deepreduce.Dataset,
    options: argparse.Namespace,
    published: dict[str, Any],
    watcher: Watcher,
    failures: list[str],
) -> None:
    """Train the teacher and then every method's candidates of one network; a method that fails is passed over.

    What is finished is written network by network, front and results file, so that a machine that goes away takes the
    rest alone.
    """
    teaching, methods = settings_of(network, data, options, published)
    place, running = options.runs / network, RunOptions(workers=options.workers, threads=options.threads, private=False)
    more = {"out": place, "width": options.width, "options": running, "progress": watcher}
    deepreduce.train(network, data, settings=teaching, **more)
    for name, settings in methods.items():
        print(f"{network}: {name}", file=sys.stderr, flush=True)
        limit = "" if settings.most_layers is None else f"-l{settings.most_layers}"
        limit += "-max" if settings.keep_max_pooling else ""
        finished = options.runs / "fronts" / f"{network}-{name}{limit}.json"
        partial = finished.with_suffix(".part.json")  # an earlier front of fewer seeds stays until all are trained
        parts = parts_of(settings, options.workers, networks_of(network, data, options, settings))
        failed: set[int] = set()  # budgets whose network cannot be trained here
        whole, before = True, set[int]()
        while parts:
            part = parts.pop(0)
            asked = tuple(budget for budget in part.budgets if budget not in failed)
            if part.budgets and not asked:
                continue
            own = replace(part, budget=max(asked), budgets=asked) if part.budgets else part
            new, before = set(part.budgets) - before, set(part.budgets)
            try:
                front = deepreduce.reduce(network, data, settings=own, **more)
            except Interrupted:
                raise
            except DeepReduceError as error:
                failures.append(name)
                print(f"{network}: {name} failed: {error}", file=sys.stderr, flush=True)
                whole = False
                failed |= new if isinstance(error, TrainingError) else set()
                continue
            if any(entry["status"] == "failed" for entry in front.content["candidates"]):
                failed |= new if options.workers == 1 else set()
                parts = parts if part.budgets else parts[-1:]  # without budgets it is tried again each time: once more
            write_json(partial, front.content)
            with contextlib.suppress(OSError, DeepReduceError):  # all is written again at the end, and told then
                save_results(options)
        if whole:
            partial.replace(finished)


def parts_of(settings: SearchSettings, workers: int, networks: Sequence[int] = ()) -> list[SearchSettings]:
    """Return the same settings for the first networks, for some more, and so on to all; as many at once as workers.

    Args:
        settings: with budgets, one for each network, or none.
        workers: networks trained side by side.
        networks: without budgets, the ReLUs of each network.
    """
    budgets, sizes = settings.budgets, sorted(networks)
    if not budgets:
        limits = [sizes[end - 1] for end in range(workers, len(sizes), workers) if sizes[end - 1] < sizes[end]]
        return [*(replace(settings, budget=limit) for limit in limits), settings]
    ends = [*range(workers, len(budgets), workers), len(budgets)]
    return [replace(settings, budget=max(budgets[:end]), budgets=budgets[:end]) for end in ends]


def networks_of(
    network: str, data: deepreduce.Dataset, options: argparse.Namespace, settings: SearchSettings
) -> list[int]:
    """Return the ReLUs of what a method proposes without being asked for budgets.

    Where criticality decides, which is measured later, those of every stage as the most critical one; the smallest of
    them are left out, so that within each there is a network, whichever stage it will be.
    """
    reducer = settings.reducer()
    if settings.budgets or reducer.propose is None:
        return []
    base = make_base(deepreduce.NetworkSpec(network, data.input, len(data.classes), options.width))
    stages = base.census.stages
    orders = [
        tuple(Criticality(stage.name, stage.relus, 0.0, None, float(stage.name == first.name)) for stage in stages)
        for first in stages
    ]
    proposed = []
    for order in orders if reducer.needs_criticality else [()]:
        relus = []
        for candidate in reducer.propose(base.census, order, ()):
            with contextlib.suppress(DeepReduceError):  # the run itself says why it cannot be built
                relus.append(census_of(base, candidate).relus)
        proposed.append(relus)
    smallest = max((min(relus) for relus in proposed if relus), default=0)
    return [size for relus in proposed for size in relus if size >= smallest]


def print_plan(network: str, data: deepreduce.Dataset, options: argparse.Namespace, published: dict[str, Any]) -> None:
    """Print what is still to be trained of one network, and roughly how long that takes on this machine."""
    teaching, methods = settings_of(network, data, options, published)
    running = RunOptions(workers=options.workers, threads=options.threads)
    print(f"{network:<17}{'networks':>10}{'epochs':>10}{'hours':>10}")
    totals = [0.0, 0.0, 0.0]
    more = {"out": options.runs / network, "width": options.width, "options": running}
    for name, settings in {"teacher": teaching, **methods}.items():
        plan_of = deepreduce.plan_train if name == "teacher" else deepreduce.plan_reduce
        try:
            plan = plan_of(network, data, settings=settings, **more)
        except DeepReduceError as error:
            print(f"{name:<17}cannot run: {error}")
            continue
        kinds = ("teacher",) if name == "teacher" else ("masks", "criticality", "candidate")
        jobs = [job for job in plan["jobs"] if job["status"] == "to do" and job["kind"] in kinds]
        trained = [job for job in jobs if job["kind"] != "masks"]
        row = [
            sum(job["unfinished"] for job in trained),
            sum(job["unfinished"] * job["epochs"] for job in jobs),
            sum(job["hours"] for job in jobs),
        ]
        totals = [total + value for total, value in zip(totals, row, strict=True)]
        print(f"{name:<17}{row[0]:>10,}{row[1]:>10,}{row[2]:>10.2f}", flush=True)
    print(f"{'all, one by one':<17}{totals[0]:>10,.0f}{totals[1]:>10,.0f}{totals[2]:>10.2f}")
    print("Hours come from a few steps of each shape of network here, without compilation.\n", flush=True)


def settings_of(
    network: str, data: deepreduce.Dataset, options: argparse.Namespace, published: dict[str, Any]
) -> tuple[SearchSettings, dict[str, SearchSettings]]:
    """Return the settings of a network's teacher, and of every method that has something to do."""
    relus = deepreduce.profile(network, input=data.input, classes=len(data.classes), width=options.width)["relus"]
    training = TrainingConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        precision=options.precision,
        compile=options.compile,
        flip=data.name != "digits",
    )
    settings = SearchSettings(
        training=training,
        criticality_plain=False,
        seeds=options.seeds,
        test_all=True,
        keep_max_pooling=options.keep_max_pooling,
    )
    teaching = replace(settings, training=replace(training, epochs=options.teacher_epochs or options.epochs))
    released = published_candidates(published, network, data.name, options)
    found = {name: settings_for(name, relus, settings, options, released) for name in options.methods}
    return teaching, {name: own for name, own in found.items() if own is not None}


def settings_for(
    name: str,
    relus: int,
    settings: SearchSettings,
    options: argparse.Namespace,
    released: tuple[Candidate, ...],
) -> SearchSettings | None:
    """Return the settings of one method, None where it has nothing to do.

    Args:
        name: of the method.
        relus: of the full network.
        settings: what all methods share.
        options: of the command.
        released: candidates of the method `published`.
    """
    if name == "published":
        REDUCERS[name] = Reducer(name, "the paper's own networks", propose=lambda *_: released)
        return replace(settings, method=name) if released else None
    reducer = deepreduce.reduction.find_reducer(name)
    asked = None if name == "channel-pruning" else options.budgets
    published_budgets = PRUNING_BUDGETS if name == "channel-pruning" else BUDGETS
    budgets = asked or [int(budget * options.width) for budget in published_budgets]
    budgets = tuple(budget for budget in budgets if budget < relus)
    if reducer.needs_criticality:
        return replace(settings, method=name)
    if not budgets:
        return None
    own = replace(settings, method=name, budget=max(budgets), budgets=budgets)
    if not reducer.finds_masks:
        return own
    if reducer.finder is not None and reducer.finder.one_schedule:  # its epochs are those of the training
        limit = options.most_layers if reducer.finder.limits_layers else None
        return replace(own, granularity=options.granularity, most_layers=limit)
    search = min(options.epochs - 1, max(1, round(options.search_share * options.epochs)))
    training = replace(settings.training, epochs=options.epochs - search)
    return replace(own, training=training, search_epochs=search, granularity=options.granularity)


def published_candidates(
    published: dict[str, Any], network: str, data: str, options: argparse.Namespace
) -> tuple[Candidate, ...]:
    """Return the networks released for these images; with budgets, of each the largest network within it.

    `--width` narrows them as well. With `--as-released` they are what they are, and those that are wider are left out.
    """
    width = 1 if options.as_released else options.width
    rows = [row for row in published["rows"] if "candidate" in row and row["network"] == network]
    rows = [row for row in rows if same_data(data, row["data"])]
    if options.as_released:
        rows = [row for row in rows if row["candidate"]["alpha"] <= options.width]
    if options.budgets:
        sizes = [[row for row in rows if row["relus"] * width <= budget] for budget in options.budgets]
        rows = [max(fitting, key=lambda row: row["relus"]) for fitting in sizes if fitting]
    found = [Candidate.from_json({**row["candidate"], "drop": []}) for row in rows]
    return tuple(dict.fromkeys(replace(one, alpha=one.alpha * width / options.width) for one in found))


def epoch_times(
    network: str, data: deepreduce.Dataset, options: argparse.Namespace, *, turns: int = 3, seconds: float | None = None
) -> None:
    """Measure an epoch of our loop and of a plain PyTorch loop, in turns, on the same network and images; once.

    Both train the full network on labels. Beside that stands our loop with a teacher, as reduced networks train.

    Args:
        network: its name.
        data: its images.
        options: of the command.
        turns: of either loop.
        seconds: of one turn; by default 5, on a GPU 2.
    """
    path = options.runs / "times" / f"{network}.json"
    if path.exists():
        return
    seconds = seconds or (2.0 if torch.cuda.is_available() else 5.0)
    config = TrainingConfig(
        epochs=100_000, batch_size=options.batch_size, precision=options.precision, compile=options.compile
    )
    accelerator = make_accelerator(config)
    device = accelerator.device
    spec = deepreduce.NetworkSpec(network, data.input, len(data.classes), options.width)
    plain = PlainLoop(deepreduce.build(spec), data.train.images, data.train.labels, options.batch_size, device)
    split = DeviceSplit.of(data.train, Normalisation(data.mean, data.std), device)
    ours = OurLoop(deepreduce.build(spec), split, config)
    plain.run(seconds / 2)
    rates = ours.in_turns(seconds, turns, lambda: plain.run(seconds))
    taught = OurLoop(deepreduce.build(spec), split, config, teacher=deepreduce.build(spec))
    ((_, with_teacher),) = taught.in_turns(seconds, 1, lambda: None)
    images = len(data.train)
    slow, fast = (images / statistics.median(rate) for rate in zip(*rates, strict=True))
    write_json(
        path,
        {
            "network": spec.to_json(),
            "images": images,
            "batch_size": options.batch_size,
            "precision": {"ours": accelerator.mixed_precision, "plain": "no"},
            "plain_epoch_seconds": slow,
            "our_epoch_seconds": fast,
            "our_distilled_epoch_seconds": images / with_teacher,
            "ratio": slow / fast,
            "turns": [{"plain": plain_rate, "ours": our_rate} for plain_rate, our_rate in rates],
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "processor",
            "measured_at": time.strftime("%Y-%m-%dT%H:%M:%S"),
        },
    )
    taught_seconds = images / with_teacher
    print(
        f"{network}: an epoch takes {fast:.2f} s, {taught_seconds:.2f} s with a teacher, {slow:.2f} s in a plain loop"
    )


def table_of(options: argparse.Namespace) -> int:
    """Print the tables of run folders and results files, and write the results file and the plot."""
    content, text = results_of(options, options.runs)
    print(text)
    folder = options.results or next((place for place in options.runs if place.is_dir()), Path())
    for path in write_results(content, folder, options.name):
        print(path)
    return 0


def save_results(options: argparse.Namespace) -> None:
    """Write the results file of what a run has finished so far."""
    content, _ = results_of(options, [options.runs])
    write_results(content, options.results or options.runs, options.name, plot=False)


def results_of(options: argparse.Namespace, places: Sequence[Path]) -> tuple[dict[str, Any], str]:
    """Return what stands in a results file of run folders and earlier results files, and the tables."""
    fronts, times, private = [], [], []
    for place in places:
        if place.is_dir():
            fronts += [read_json(path) for path in sorted(place.glob("fronts/*.json"))]
            times += [read_json(path) for path in sorted(place.glob("times/*.json"))]
        else:
            earlier = load_results(place)
            fronts += earlier["fronts"]
            times += earlier["epoch_times"]
            private += [earlier["private"]] if earlier.get("private") else []
    if options.private is not None:
        private.append(load_private(options.private))
    return reproduction(load_published(options.published), fronts, times, all_private(private))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(word.replace("_", "")) for word in _words(text))


if __name__ == "__main__":
    sys.exit(main())
