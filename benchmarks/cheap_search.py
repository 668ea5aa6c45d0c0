"""Does a short training rank candidates as the full schedule does, and what does the search that uses it miss?

Every candidate of DeepReDuce is trained for the full schedule, with as many seeds as asked for. Then the same search
runs with `--rank-epochs` in a folder of its own, from the same teacher: criticality and ranking are measured anew in
short trainings; candidates that are trained in full already are not trained again. Reported, on held-out images: the
rank correlation of the short training with the full schedule, which networks of the full front are dropped, how far
what is left lies below the front, and what the search cost. To hold it against: the ReLU count alone, and one seed of
the full schedule in place of the ranking. Small networks are worse anyway, so the correlation at a fixed count is given
too.

    python benchmarks/cheap_search.py --data uoft-cs/cifar100 --out runs/cheap_search --epochs 200 --rank-epochs 10,20

The result is a data file in results/, named by device and date. The script continues where it was cut off.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import device_of, public, results_path
from scipy import stats

import deepreduce
from deepreduce._files import write_json
from deepreduce.cli._console import Watcher
from deepreduce.reduction import pareto_front
from deepreduce.training import RunOptions, SearchSettings, TrainingConfig
from deepreduce.training.ranking import dropped

Accuracies = Mapping[str, float]
"""On held-out images, by id of the candidate, in [0, 1]."""


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
    parser.add_argument("--rank-epochs", default="10,20", help="of the short trainings: one search for each")
    parser.add_argument("--seeds", type=int, default=1, help="of the full schedule")
    parser.add_argument("--precision", default="auto", choices=["auto", "no", "bf16", "fp16"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)

    data = deepreduce.load_data(
        options.data, classes=options.classes, per_class=options.per_class, validation=options.validation
    )
    full = search(options, data, None)
    found = [search(options, data, epochs) for epochs in sorted(map(int, options.rank_epochs.split(",")))]
    entries = {e["id"]: e for front in (*found, full) for e in front["candidates"] if e["status"] == "done"}
    inside = {e["id"] for e in full["candidates"] if e["status"] == "done"}
    runs = {name: entries[name]["validation"]["runs"] for name in inside}
    environment = full["environment"]
    report = {
        "benchmark": "cheap_search",
        "network": full["network"],
        "data": {name: full["data"][name] for name in ("name", "fingerprint", "train", "validation", "test", "notes")},
        "settings": full["settings"],
        "environment": {**environment, "command": public(environment["command"])},
        "teacher": {name: full["teacher"][name] for name in ("relus", "epochs", "validation")},
        "full": {
            "seconds": spent(full["candidates"]),
            "front": sorted(front_of(means(runs), relus_of(full))),
            "between_seeds": between_seeds(runs, relus_of(full), full["data"]["validation"]),
            "by_relus": correlation(relus_of(full), means(runs), relus_of(full)),
            "finals_by_relus": finals(None, means(runs), relus_of(full), 1, stages=len(full["criticality"])),
        },
        "candidates": [
            {name: entry[name] for name in ("id", "label", "relus", "epochs", "seconds")}
            | {"accuracy": entry["validation"]["runs"]}
            for entry in sorted(entries.values(), key=lambda entry: entry["relus"])
        ],
        "searches": [compare(front, full) for front in found],
    }
    path = results_path(options.results, "cheap_search", device_of(environment), date=environment["date"])
    write_json(path, report)
    print(table(report))
    print(path)
    return 0


def search(options: argparse.Namespace, data: deepreduce.Dataset, rank_epochs: int | None) -> dict[str, Any]:
    """Run one search in its own folder and return its front; a cheap one takes over the full one's teacher."""
    full = options.out / "full"
    folder = full if rank_epochs is None else options.out / f"rank{rank_epochs}"
    training = TrainingConfig(epochs=options.epochs, precision=options.precision, flip=data.name != "digits")
    settings = SearchSettings(training=training, criticality_plain=False, seeds=options.seeds)
    if rank_epochs is not None:
        settings = replace(settings, seeds=1, rank_epochs=rank_epochs)
        # With test.json, so that no test image is looked at again for the same network.
        for part in ("run.json", "teacher", "candidate", "test.json"):
            if not (folder / part).exists():
                shutil.rmtree(folder / f".{part}", ignore_errors=True)  # of a copy that was cut off
                folder.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (full / part).is_dir() else shutil.copyfile
                copy(full / part, folder / f".{part}")
                (folder / f".{part}").rename(folder / part)
    running = RunOptions(workers=options.workers, threads=options.threads, private=False)
    with Watcher() as watcher:
        front = deepreduce.reduce(
            options.network,
            data,
            out=folder,
            settings=settings,
            width=options.width,
            options=running,
            progress=watcher,
        )
    return front.content


def relus_of(front: dict[str, Any]) -> dict[str, int]:
    """Return the ReLUs of every candidate that was trained in full."""
    return {e["id"]: e["relus"] for e in front["candidates"] if e["status"] == "done"}


def means(runs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean accuracy over the seeds."""
    return {name: statistics.fmean(values) for name, values in runs.items()}


def spent(entries: Sequence[dict[str, Any]]) -> float:
    """Return the seconds of training of one seed of these candidates."""
    return sum(e["seconds"] / len(e["validation"]["runs"]) for e in entries if e["status"] == "done")


def correlation(a: Mapping[str, float], b: Mapping[str, float], relus: Mapping[str, float]) -> dict[str, Any]:
    """Return rank correlations over the candidates that both sides have.

    Returns:
        `spearman`, Kendall's tau-b, and `given_relus`: Spearman's partial correlation with the ReLU count held fixed,
        which is what a ranking knows beyond counting. None where one side's values are all equal, or follow the count.
    """
    shared = sorted(a.keys() & b.keys())
    left, right, counts = ([values[name] for name in shared] for values in (a, b, relus))
    told = len(set(left)) > 1 and len(set(right)) > 1
    xy, xz, yz = (_spearman(*pair) for pair in ((left, right), (left, counts), (right, counts)))
    partial = None
    if xy is not None and xz is not None and yz is not None and max(abs(xz), abs(yz)) < 1 - 1e-9:
        partial = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    return {
        "candidates": len(shared),
        "spearman": xy,
        "kendall": float(stats.kendalltau(left, right).statistic) if told else None,
        "given_relus": partial,
    }


def _spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    return float(stats.spearmanr(a, b).statistic) if len(set(a)) > 1 and len(set(b)) > 1 else None


def between_seeds(runs: Mapping[str, Sequence[float]], relus: Mapping[str, int], n: int) -> list[dict[str, Any]]:
    """Return what one seed of the full schedule would do as the ranking for another.

    Args:
        runs: accuracies by id, one per seed.
        relus: of every candidate.
        n: held-out images.
    """
    count = min(len(values) for values in runs.values())
    found = []
    for first, second in itertools.permutations(range(count), 2):
        a, b = ({name: values[seed] for name, values in runs.items()} for seed in (first, second))
        kept = set(relus) - set(dropped(a, relus, n))
        found.append(
            {"seeds": [first, second], "kept": len(kept), **correlation(a, b, relus), **missed(kept, b, relus)}
        )
    return found


def front_of(accuracy: Accuracies, relus: Mapping[str, int]) -> set[str]:
    """Return the networks on the front of accuracy and ReLUs."""
    return set(pareto_front(accuracy, cost=lambda name: relus[name], accuracy=lambda name: accuracy[name]))


def missed(kept: set[str], accuracy: Accuracies, relus: Mapping[str, int]) -> dict[str, Any]:
    """Hold what a search keeps against the front of all candidates.

    Returns:
        `front_found`: the share of the front that is kept; `mean_loss` and `largest_loss`: how many points the best
        kept network lies below a network of the front, at its ReLU count.
    """
    wanted, kept = front_of(accuracy, relus), kept & accuracy.keys()
    losses = [
        max(0.0, accuracy[name] - max((accuracy[k] for k in kept if relus[k] <= relus[name]), default=0.0))
        for name in wanted
    ]
    return {
        "front_found": len(wanted & kept) / len(wanted),
        "mean_loss": 100 * statistics.fmean(losses),
        "largest_loss": 100 * max(losses),
    }


def finals(
    ranked: Accuracies | None,
    accuracy: Accuracies,
    relus: Mapping[str, int],
    n: int,
    share: float = 0.0,
    stages: int = 0,
    most: int = 3,
) -> list[dict[str, float]]:
    """Say what is lost, and saved, where only so many finalists are trained in full.

    Every candidate's ReLU count is a budget once, where there are more candidates within it than finalists.

    Args:
        ranked: accuracies of the ranking; None takes the largest networks, without any ranking.
        accuracy: of the full schedule.
        relus: of the same candidates.
        n: held-out images of the ranking.
        share: the epochs of the ranking as a share of the full schedule.
        stages: networks that measure criticality.
        most: finalists.

    Returns:
        For 1 finalist, 2, and so on: `finalists`, `budgets` (how many), `mean_loss` and `largest_loss` over them in
        points, `mean_cost` and `largest_cost` against a search without ranking within the same budget.
    """
    found = []
    for count in range(1, most + 1):
        losses, costs = [], []
        for budget in relus.values():
            within = {name: relus[name] for name in accuracy if relus[name] <= budget}
            if len(within) <= count:
                continue
            if ranked is None:
                chosen = sorted(within, key=lambda name: -within[name])[:count]
            else:
                short = {name: ranked[name] for name in within}
                chosen = [name for name in within if name not in dropped(short, within, n, finalists=count)]
            best, reached = (max(accuracy[name] for name in names) for names in (within, chosen))
            losses.append(100 * (best - reached))
            whole = stages + len(within)
            trained = stages if ranked is None else whole * share
            costs.append((trained + len(chosen)) / whole)
        found.append(
            {
                "finalists": count,
                "budgets": len(losses),
                "mean_loss": statistics.fmean(losses),
                "largest_loss": max(losses),
                "mean_cost": statistics.fmean(costs),
                "largest_cost": max(costs),
            }
        )
    return found


def compare(cheap: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    """Hold a cheap search against the full one.

    Costs are shares of the full search's epochs, those of criticality included on both sides: `cost` of criticality
    and ranking, `cost_with_front` with the full schedule of what was kept; `seconds` are those of the ranking.
    """
    relus = relus_of(full)
    runs = {e["id"]: e["validation"]["runs"] for e in full["candidates"] if e["status"] == "done"}
    accuracy, rows = means(runs), cheap["ranking"]
    order = [[c["stage"] for c in sorted(f["criticality"], key=lambda c: c["criticality"])] for f in (cheap, full)]
    epochs, whole = cheap["settings"]["rank_epochs"], full["settings"]["epochs"]
    before = len(cheap["criticality"])
    all_epochs = (before + len(relus)) * whole
    kept = {row["id"] for row in rows if row["kept"]}
    ranking = {row["id"]: row["accuracy"] for row in rows if row["accuracy"] is not None}
    shared = {name: accuracy[name] for name in ranking if name in accuracy}
    beyond = {e["id"]: e for e in cheap["candidates"] if e["status"] == "done"}
    known = {**accuracy, **{name: e["validation"]["accuracy"] for name, e in beyond.items() if name not in accuracy}}
    sizes = {**relus, **{name: e["relus"] for name, e in beyond.items()}}
    return {
        "rank_epochs": epochs,
        "cost": (before + len(rows)) * epochs / all_epochs,
        "cost_with_front": ((before + len(rows)) * epochs + len(kept) * whole) / all_epochs,
        "seconds": sum(row["seconds"] for row in rows),
        "same_order_of_culling": order[0] == order[1],
        **correlation(ranking, accuracy, relus),
        "kept": sorted(kept),
        "ranking": ranking,
        "finals": finals(
            ranking, shared, {name: relus[name] for name in shared}, full["data"]["validation"], epochs / whole, before
        ),
        **missed(kept, known, sizes),
    }


def table(report: dict[str, Any]) -> str:
    """Lay the figures out as text."""
    searches, full = report["searches"], report["full"]
    names = "  ".join(f"{'ranked, ' + str(found['rank_epochs']):>11}" for found in searches)
    lines = [f"{'ReLUs':>9}  {'full':>11}  {names}  network (+ on the full front, * kept)"]
    for candidate in report["candidates"]:
        accuracy = 100 * statistics.fmean(candidate["accuracy"])
        cells = "".join(
            f"  {100 * found['ranking'][candidate['id']]:>10.2f}{'*' if candidate['id'] in found['kept'] else ' '}"
            if candidate["id"] in found["ranking"]
            else f"  {'-':>11}"
            for found in searches
        )
        mark = "+" if candidate["id"] in full["front"] else " "
        lines.append(f"{candidate['relus']:>9,}  {accuracy:>10.2f}{mark}{cells}  {candidate['label']}")
    lines.append(f"the ReLU count alone: {_agreement(full['by_relus'])}")
    for found in full["between_seeds"]:
        first, second = found["seeds"]
        lines.append(f"seed {first} as the ranking for seed {second}: {found['kept']} kept, {_quality(found)}")
    for found in searches:
        lines.append(
            f"{found['rank_epochs']} epochs: {found['cost']:.0%} of the cost ({found['cost_with_front']:.0%} with the "
            f"training of the {len(found['kept'])} kept in full), {_quality(found)}"
        )
        lines += [f"    finalists {f['finalists']}: {_losses(f)}" for f in found["finals"]]
    lines += [
        f"no ranking, the largest {f['finalists']} within the budget: {_losses(f)}" for f in full["finals_by_relus"]
    ]
    return "\n".join(lines)


def _agreement(found: dict[str, Any]) -> str:
    names = ("spearman", "given_relus", "kendall")
    rho, partial, tau = ("-" if found[name] is None else f"{found[name]:.2f}" for name in names)
    return f"Spearman {rho} (given the ReLU count {partial}), Kendall {tau}"


def _quality(found: dict[str, Any]) -> str:
    below = f"{found['mean_loss']:.2f} points below it on average, {found['largest_loss']:.2f} at most"
    return f"{_agreement(found)}, {found['front_found']:.0%} of the front, {below}"


def _losses(found: dict[str, float]) -> str:
    cost = f"{found['mean_cost']:.0%} of the cost, {found['largest_cost']:.0%} at most"
    below = f"{found['mean_loss']:.2f} points below the best within the budget, {found['largest_loss']:.2f} at most"
    return f"{cost}, {below} ({found['budgets']} budgets)"


if __name__ == "__main__":
    sys.exit(main())
