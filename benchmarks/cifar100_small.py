"""The whole method on real images, small enough for a CPU: which of our choices pay?

A quarter-width ResNet18 on the first 20 classes of CIFAR-100: teacher, criticality of the four stages, the front;
then the same front once more with each choice undone: without distillation, without warm start, and with fading
instead of removal at once. At most two hours on two cores. The script continues where it was cut off.

    python benchmarks/cifar100_small.py --data ../shared/data/cifar100 --out runs/cifar100_small

The result is a data file in results/, named by processor and date. All figures are on held-out images; the test set
is read once, for the front.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import results_path

import deepreduce
from deepreduce.cli._console import Watcher
from deepreduce.reduction import Candidate, make_base
from deepreduce.training import Context, Job, SearchSettings, TrainingConfig, summarise
from deepreduce.training.executors import make_executor
from deepreduce.training.run_folder import RunFolder

CLASSES, WIDTH, VALIDATION = 20, 0.25, 0.2


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-100, or uoft-cs/cifar100")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar100_small"), help="run folder")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the data file")
    parser.add_argument("--epochs", type=int, default=8, help="of every student")
    parser.add_argument(
        "--teacher-epochs", type=int, default=30, help="more, so that a student's start is no head start"
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    begun = time.time()
    data = deepreduce.load_data(options.data, classes=CLASSES, validation=VALIDATION)
    # bf16 on the CPU: twice as fast here, and what a GPU would use.
    training = TrainingConfig(epochs=options.epochs, precision="bf16")
    settings = SearchSettings(training=training)
    spec = deepreduce.NetworkSpec("resnet18", data.input, CLASSES, WIDTH)
    with Watcher() as watcher:
        schooling = replace(settings, training=replace(training, epochs=options.teacher_epochs))
        deepreduce.train("resnet18", data, out=options.out / "front", settings=schooling, width=WIDTH, progress=watcher)
        front = deepreduce.reduce(
            "resnet18",
            data,
            out=options.out / "front",
            settings=settings,
            width=WIDTH,
            workers=options.workers,
            progress=watcher,
        )
    chosen = [entry for entry in front.entries if entry["id"] != "teacher"]
    candidates = [Candidate.from_json(entry["recipe"]) for entry in chosen]
    other_fade = 0.0 if training.fade else 0.4
    variants: dict[str, tuple[TrainingConfig, bool]] = {
        "without distillation": (training, False),
        "without warm start": (replace(training, warm_start=False), True),
        f"fade {other_fade:g} instead of {training.fade:g}": (replace(training, fade=other_fade), True),
    }
    accuracy = {"as shipped": {entry["id"]: entry["validation"]["accuracy"] for entry in chosen}}
    for name, (config, distilled) in variants.items():
        print(f"{name}: {len(candidates)} networks", file=sys.stderr, flush=True)
        folder = options.out / re.sub(r"[^a-z0-9.]+", "-", name)
        accuracy[name] = train_all(
            Context(spec, None, data, folder),
            [Job("candidate", candidate, 0, distilled, config) for candidate in candidates],
            teacher=options.out / "front" / "teacher",
            workers=options.workers,
        )
    report = summary(front, chosen, accuracy, len(data.validation), time.time() - begun)
    environment = front.content["environment"]
    path = results_path(options.results, "cifar100_small", environment["processor"], date=environment["date"])
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))
    print(path)
    return 0


def train_all(context: Context, jobs: list[Job], *, teacher: Path, workers: int) -> dict[str, float]:
    """Train the jobs that are not finished in a folder of their own, with the given teacher; return accuracies."""
    with RunFolder(context.folder) as folder:
        folder.claim(context, make_base(context.spec).census)
        if not (context.folder / "teacher").exists():
            shutil.copytree(teacher, context.folder / "teacher")
        pending = [job for job in jobs if folder.metrics(job) is None]
        if pending:
            executor = make_executor("local", context, min(workers, len(pending)))
            try:
                futures = [executor.submit(job) for job in pending]
                wait(futures)
                for future in futures:
                    future.result()
            except KeyboardInterrupt:
                executor.stop()
                raise
            executor.close()
        found: dict[str, float] = {}
        for job in jobs:
            metrics = folder.metrics(job)
            assert metrics is not None
            found[job.id] = metrics["validation"]["correct"] / metrics["validation"]["n"]
        return found


def summary(
    front: deepreduce.Front,
    chosen: list[dict[str, Any]],
    accuracy: dict[str, dict[str, float]],
    images: int,
    seconds: float,
) -> dict[str, Any]:
    """Put the figures together; differences are in points, over the same networks and the same images."""
    content = front.content
    shipped = accuracy["as shipped"]
    criticality = {c["stage"]: c for c in content["criticality"]}
    ranked = sorted(criticality, key=lambda stage: -criticality[stage]["criticality"])
    return {
        "benchmark": "cifar100_small",
        "network": content["network"],
        "data": {**content["data"], "subset": f"the first {CLASSES} classes"},
        "settings": content["settings"],
        "environment": {**content["environment"], "command": " ".join(["python", *sys.argv])},
        "seconds_of_training": content["seconds"],
        "seconds_of_this_call": seconds,
        "teacher": {k: content["teacher"][k] for k in ("relus", "epochs", "validation", "test")},
        "criticality": content["criticality"],
        "most_critical_first": ranked,
        "front": [{k: e[k] for k in ("id", "label", "relus", "macs", "validation", "test")} for e in front.entries],
        "candidates": [
            {k: e[k] for k in ("id", "label", "relus", "status", "reason", "validation")} for e in content["candidates"]
        ],
        "ablation": {
            name: {
                "accuracy": values,
                "mean": sum(values.values()) / len(values),
                "points_against_shipped": 100 * sum(values[key] - shipped[key] for key in values) / len(values),
                "interval_of_one": summarise([sum(values.values()) / len(values)], images),
            }
            for name, values in accuracy.items()
        },
        "order": [entry["id"] for entry in chosen],
    }


def table(report: dict[str, Any]) -> str:
    """Lay the ablation out as text: one row per network, one column per variant."""
    names = list(report["ablation"])
    lines = [f"{'ReLUs':>8}  " + "  ".join(f"{name:>22}" for name in names)]
    relus = {entry["id"]: entry["relus"] for entry in report["front"]}
    for key in report["order"]:
        cells = "  ".join(f"{100 * report['ablation'][name]['accuracy'][key]:>20.2f} %" for name in names)
        lines.append(f"{relus[key]:>8,}  {cells}")
    cells = "  ".join(f"{report['ablation'][name]['points_against_shipped']:>+15.2f} points" for name in names)
    lines.append(f"{'mean':>8}  {cells}")
    lines.append(f"stages, most critical first: {', '.join(report['most_critical_first'])}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
