"""Does a short schedule rank candidates as the full one does, and what does a search that uses it cost?

Every candidate is trained for the full schedule and for several short ones, from one teacher. Reported, on held-out
images: the rank correlation of each short schedule with the full one (Spearman's rho and Kendall's tau-b), which
networks of the full schedule's front the short one finds, and what both would cost; and the same for successive
halving over the schedules, from the shortest to the full one.

    python benchmarks/cheap_search.py --data uoft-cs/cifar100 --out runs/cheap_search --epochs 200 --short 10,20,40

The result is a data file in results/, named by device and date. The script continues where it was cut off.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reproduction import public

import deepreduce
from deepreduce._files import write_json
from deepreduce.cli._console import Watcher
from deepreduce.reduction import pareto_front
from deepreduce.training import RunOptions, SearchSettings, TrainingConfig

Runs = Mapping[int, Mapping[str, float]]
"""Accuracy by epochs of the schedule and id of the candidate."""


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="digits, a folder, or OWNER/NAME on the hub")
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--classes", type=int, help="use the first N classes alone")
    parser.add_argument("--per-class", type=int, help="use N training images of each class")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training images that chooses")
    parser.add_argument("--out", type=Path, default=Path("runs/cheap_search"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the data file")
    parser.add_argument("--epochs", type=int, default=200, help="of the full schedule")
    parser.add_argument("--short", default="10,20,40", help="epochs of the short schedules")
    parser.add_argument("--teacher-epochs", type=int, help="default: those of --epochs")
    parser.add_argument("--precision", default="auto", choices=["auto", "no", "bf16", "fp16"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)

    data = deepreduce.load_data(
        options.data, classes=options.classes, per_class=options.per_class, validation=options.validation
    )
    schedules = sorted({*map(int, options.short.split(",")), options.epochs})
    fronts = {epochs: train(options, data, epochs) for epochs in reversed(schedules)}
    full = fronts[options.epochs]
    done = [{e["id"]: e for e in front["candidates"] if e["status"] == "done"} for front in fronts.values()]
    shared = [name for name in done[0] if all(name in entries for entries in done)]
    entries = {e["id"]: e for e in full["candidates"]}
    runs = {
        epochs: {name: found[name]["validation"]["accuracy"] for name in shared}
        for epochs, found in zip(fronts, done, strict=True)
    }
    relus = {name: entries[name]["relus"] for name in shared}
    environment = full["environment"]
    report = {
        "benchmark": "cheap_search",
        "network": full["network"],
        "data": {name: full["data"][name] for name in ("name", "fingerprint", "train", "validation", "test", "notes")},
        "settings": full["settings"],
        "environment": {**environment, "command": public(environment["command"])},
        "teacher": {name: full["teacher"][name] for name in ("relus", "epochs", "validation")},
        "candidates": [
            {
                "id": name,
                "label": entries[name]["label"],
                "relus": relus[name],
                "accuracy": {str(epochs): runs[epochs][name] for epochs in sorted(runs)},
            }
            for name in sorted(shared, key=lambda name: relus[name])
        ],
        "seconds": {str(epochs): fronts[epochs]["seconds"] for epochs in sorted(fronts)},
        "schedules": [compare(runs, relus, epochs) for epochs in schedules[:-1]],
        "halving": halve(runs, relus),
    }
    device = environment["devices"][0] if environment["devices"] else environment["processor"]
    name = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-").lower()
    path = options.results / f"cheap_search-{name}-{environment['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)
    print(table(report))
    print(path)
    return 0


def train(options: argparse.Namespace, data: deepreduce.Dataset, epochs: int) -> dict[str, Any]:
    """Train every candidate of DeepReDuce for one schedule; the order of culling and the teacher are the full one's."""
    folder, first = options.out / f"epochs{epochs}", options.out / f"epochs{options.epochs}"
    training = TrainingConfig(epochs=epochs, precision=options.precision, flip=data.name != "digits")
    settings = SearchSettings(training=training, criticality_plain=False, criticality_epochs=options.epochs)
    more: dict[str, Any] = {
        "width": options.width,
        "options": RunOptions(workers=options.workers, threads=options.threads),
    }
    with Watcher() as watcher:
        if epochs == options.epochs:
            schooling = replace(training, epochs=options.teacher_epochs or epochs)
            taught = replace(settings, training=schooling)
            deepreduce.train(options.network, data, out=folder, settings=taught, progress=watcher, **more)
        else:
            for part in ("run.json", "teacher", "criticality"):
                if not (folder / part).exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    copy = shutil.copytree if (first / part).is_dir() else shutil.copyfile
                    copy(first / part, folder / part)
        front = deepreduce.reduce(options.network, data, out=folder, settings=settings, progress=watcher, **more)
    return front.content


def compare(runs: Runs, relus: Mapping[str, int], epochs: int) -> dict[str, Any]:
    """Hold one short schedule against the longest.

    Returns:
        `epochs`, `cost` (of training all candidates so, as a share of the full schedule), `spearman`, `kendall`,
        `front_found` (share of the full schedule's front that the short one's front has), and `cost_with_front` (of
        the short schedule for all, and the full one for its front alone).
    """
    full = max(runs)
    names = list(relus)
    short, long = ([runs[which][name] for name in names] for which in (epochs, full))
    wanted, found = (front_of(runs[which], relus) for which in (full, epochs))
    cost = epochs / full
    return {
        "epochs": epochs,
        "cost": cost,
        "spearman": spearman(short, long),
        "kendall": kendall(short, long),
        "front_found": len(wanted & found) / len(wanted),
        "cost_with_front": cost + len(found) / len(names),
    }


def front_of(accuracy: Mapping[str, float], relus: Mapping[str, int]) -> set[str]:
    """Return the networks on the front of accuracy and ReLUs."""
    return set(pareto_front(accuracy, relus=lambda name: relus[name], accuracy=lambda name: accuracy[name]))


def margin(name: str, accuracy: Mapping[str, float], relus: Mapping[str, int]) -> float:
    """Return by how much a network is more accurate than every other one with no more ReLUs."""
    others = [accuracy[other] for other in relus if other != name and relus[other] <= relus[name]]
    return accuracy[name] - max(others, default=0.0)


def halve(runs: Runs, relus: Mapping[str, int]) -> dict[str, Any]:
    """Simulate successive halving: after each schedule the half with the largest margin goes on to the next.

    Returns:
        `rungs[]{epochs, candidates}`, `cost` as a share of the full schedule for all, `front_found`, and
        `largest_loss`: how many points the survivors' front lies below the true one where it is furthest below it.
    """
    names = list(relus)
    rungs, spent = [], 0
    for number, epochs in enumerate(sorted(runs)):
        if number:
            earlier = {name: runs[rungs[-1]["epochs"]][name] for name in names}
            sizes = {name: relus[name] for name in names}
            names = sorted(names, key=lambda name: -margin(name, earlier, sizes))[: math.ceil(len(names) / 2)]
        rungs.append({"epochs": epochs, "candidates": len(names)})
        spent += epochs * len(names)
    full = runs[max(runs)]
    wanted = front_of(full, relus)
    losses = [
        full[target] - max((full[name] for name in names if relus[name] <= relus[target]), default=0.0)
        for target in wanted
    ]
    return {
        "rungs": rungs,
        "cost": spent / (max(runs) * len(relus)),
        "front_found": len(wanted & set(names)) / len(wanted),
        "largest_loss": 100 * max(0.0, *losses),
    }


def ranks(values: Sequence[float]) -> list[float]:
    """Return ranks from 1, equal values with their mean rank."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None where all values of one side are equal."""
    x, y = ranks(a), ranks(b)
    middle = (len(x) + 1) / 2
    spread = math.sqrt(sum((v - middle) ** 2 for v in x) * sum((v - middle) ** 2 for v in y))
    return sum((v - middle) * (w - middle) for v, w in zip(x, y, strict=True)) / spread if spread else None


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Kendall's tau-b; None where all values of one side are equal."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    signs = [(_sign(a[i] - a[j]), _sign(b[i] - b[j])) for i, j in pairs]
    spread = math.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))
    return sum(x * y for x, y in signs) / spread if spread else None


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def table(report: dict[str, Any]) -> str:
    """Lay the figures out as text."""
    epochs = [str(number) for number in sorted(map(int, report["candidates"][0]["accuracy"]))]
    lines = [f"{'ReLUs':>9}  " + "  ".join(f"{number + ' epochs':>11}" for number in epochs) + "  network"]
    for candidate in report["candidates"]:
        cells = "  ".join(f"{100 * candidate['accuracy'][number]:>11.2f}" for number in epochs)
        lines.append(f"{candidate['relus']:>9,}  {cells}  {candidate['label']}")
    for row in report["schedules"]:
        tied = [("-" if row[name] is None else f"{row[name]:.2f}") for name in ("spearman", "kendall")]
        lines.append(
            f"{row['epochs']} epochs: {row['cost']:.0%} of the cost, Spearman {tied[0]}, Kendall {tied[1]}, "
            f"{row['front_found']:.0%} of the front"
        )
    halving = report["halving"]
    steps = ", ".join(f"{rung['candidates']} for {rung['epochs']}" for rung in halving["rungs"])
    lines.append(
        f"successive halving ({steps} epochs): {halving['cost']:.0%} of the cost, {halving['front_found']:.0%} of the "
        f"front, at most {halving['largest_loss']:.2f} points below it"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
