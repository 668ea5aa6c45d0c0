"""The paper's comparison with channel pruning: accuracy, MACs and ReLUs of both methods, in one table.

Both start from one teacher and train every network alike. For each network that channel pruning gives, the table shows
DeepReDuce's most accurate one, by held-out images, with no more MACs. The paper's channel pruner chooses a share for
each layer; the one here prunes all alike (torch-pruning, smallest weight norms first).

    python benchmarks/channel_pruning.py --data uoft-cs/cifar100 --out runs/channel_pruning

The result is a data file in results/, named by processor and date. The script continues where it was cut off.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import public, results_path

import deepreduce
from deepreduce.cli._console import Watcher
from deepreduce.training import RunOptions, SearchSettings, TrainingConfig

COLUMNS = ("method", "network", "baseline", "pruned", "change", "macs", "relus")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="digits, a folder, or OWNER/NAME on the hub")
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--classes", type=int, help="use the first N classes alone")
    parser.add_argument("--per-class", type=int, help="use N training images of each class")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training images that chooses")
    parser.add_argument("--out", type=Path, default=Path("runs/channel_pruning"), help="run folder")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the data file")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of each job; default: the cores, shared out evenly")
    options = parser.parse_args()

    data = deepreduce.load_data(
        options.data, classes=options.classes, per_class=options.per_class, validation=options.validation
    )
    training = TrainingConfig(epochs=options.epochs, flip=options.data != "digits")
    settings = SearchSettings(training=training, criticality_plain=False)
    fronts: dict[str, dict[str, Any]] = {}
    with Watcher() as watcher:
        for method in ("deepreduce", "channel-pruning"):
            front = deepreduce.reduce(
                options.network,
                data,
                out=options.out,
                settings=replace(settings, method=method),
                width=options.width,
                options=RunOptions(workers=options.workers, threads=options.threads, private=False),
                progress=watcher,
            )
            fronts[method] = front.content
    rows = compare(fronts["deepreduce"], fronts["channel-pruning"])
    environment = fronts["deepreduce"]["environment"]
    path = results_path(options.results, "channel_pruning", environment["processor"], date=environment["date"])
    report = {
        "benchmark": "channel_pruning",
        "network": fronts["deepreduce"]["network"],
        "data": fronts["deepreduce"]["data"],
        "settings": {method: content["settings"] for method, content in fronts.items()},
        "environment": {**environment, "command": public(" ".join(["python", *sys.argv]))},
        "rows": rows,
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    print(path)
    return 0


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each pruned network, and after it one for ours with no more MACs."""
    rows = []
    for pruned in (entry for entry in theirs["candidates"] if entry["status"] == "done"):
        rows.append(comparison_row(theirs, pruned))
        fitting = [e for e in ours["candidates"] if e["status"] == "done" and e["macs"] <= pruned["macs"]]
        if fitting:
            rows.append(comparison_row(ours, max(fitting, key=lambda e: e["validation"]["accuracy"])))
    return rows


def comparison_row(front: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the paper's comparison of methods.

    Args:
        front: content of a `front.json`.
        entry: one of its entries that was trained.

    Returns:
        `data`, `method`, `network`, `split` (whose images), `baseline`, `pruned`, `change` (accuracies, in percent and
        points), `macs` and `relus`. The paper's column "FLOPs" counts multiply-accumulates, as `macs` does.
    """
    split = "test" if entry["test"] and front["teacher"]["test"] else "validation"
    baseline, pruned = (100 * which[split]["accuracy"] for which in (front["teacher"], entry))
    return {
        "data": front["data"]["name"],
        "method": front["settings"]["method"],
        "network": entry["label"],
        "split": split,
        "baseline": baseline,
        "pruned": pruned,
        "change": pruned - baseline,
        "macs": entry["macs"],
        "relus": entry["relus"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out as text; accuracies in %, the change in points."""
    lines = ["  ".join(f"{name:>24}" if name == "network" else f"{name:>16}" for name in COLUMNS)]
    for row in rows:
        cells = [
            f"{row['method']:>16}",
            f"{row['network'][:24]:>24}",
            *(f"{row[name]:>16.2f}" for name in ("baseline", "pruned")),
            f"{row['change']:>+16.2f}",
            *(f"{row[name]:>16,}" for name in ("macs", "relus")),
        ]
        lines.append("  ".join(cells) + f"  {row['split']} images")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
