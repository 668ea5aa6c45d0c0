"""Trained networks privately on test images: the accuracy of private, twin and float side by side.

    python benchmarks/cifar100_small.py --data DATA --runs RUNS      # trains them
    python benchmarks/private_accuracy.py RUNS/front --data DATA --images 200

Takes the full network of a run folder and the reduced one that its report leads with, exports both, and classifies the
first test images of each class privately: two processes over TLS on this machine, every image with its own bundle. The
weights come from the run folder; the data file names them by hash. Of a folder without front.json, as
`reproduce.py` leaves it, --entries names what is in `teacher` and `candidate`. Finished images are kept; the same
command continues.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import results_path

import deepreduce
from deepreduce._cores import available_cores
from deepreduce.cli._rehearsal import new_certificate, serving
from deepreduce.data import Dataset, load
from deepreduce.private.deployment import load_server
from deepreduce.private.service import Client
from deepreduce.private.store import BundleStore
from deepreduce.private.twin import Twin
from deepreduce.private.wire import client_context
from deepreduce.reduction import Candidate
from deepreduce.report import headline
from deepreduce.training import Front

_AT_ONCE = 10


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument(
        "--entries", help="ids of the networks, comma-separated; default: the full and the headline one"
    )
    parser.add_argument("--name", default="private_accuracy", help="of the data file")
    parser.add_argument("--work", type=Path, default=Path("build/private-accuracy"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    front = front_of(options.run_folder, (options.entries or "teacher").split(","))
    classes = len(front.content["data"]["classes"])
    data = load(options.data, classes=classes)
    if options.entries:
        names = options.entries.split(",")
    else:
        best = headline(front.content).entry
        names = ["teacher", str(best["id"]) if best else "teacher"]
    path = results_path(options.results, options.name, str(deepreduce.environment()["processor"]))
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"networks": {}}
    typed = ["--images", str(options.images), "--entries", ",".join(names), "--name", options.name]
    result |= {
        "what": "the same test images by the float network, by its twin in integers, and privately",
        "data": f"CIFAR-100, first {classes} classes, {options.images} test images, the same number of each class",
        "environment": deepreduce.environment(
            command=["python", "benchmarks/private_accuracy.py", "RUN", "--data", "DATA", *typed]
        ),
    }
    options.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in dict.fromkeys(names):
        if name not in result["networks"]:
            result["networks"][name] = measure(front, name, data, options)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        row = result["networks"][name]
        shown = {key: f"{row['accuracy'][key]:.1%}" for key in ("float", "twin", "private")}
        print(f"{row['label']}: {row['relus']:,} ReLUs, {shown}, private equals twin on {row['private_equals_twin']}")
    print(path)
    return 0


def front_of(folder: Path, names: list[str]) -> Front:
    """Return the front of a run folder, or one of these networks in it."""
    if (folder / "front.json").exists():
        return Front.read(folder)
    entries = {}
    for name in names:
        recipe = json.loads(
            (folder / ("" if name == "teacher" else "candidate") / name / "seed0/recipe.json").read_text()
        )
        accuracy = recipe["extra"]["validation_accuracy"]
        label = "all ReLUs" if name == "teacher" else Candidate.from_json(recipe["candidate"]).label
        entries[name] = {
            "id": name,
            "label": label,
            "relus": recipe["relus"],
            "validation": {"accuracy": accuracy, "runs": [accuracy]},
        }
        classes = recipe["classes"]
    teacher = entries.pop("teacher", {"id": "teacher", "validation": None})
    return Front({"teacher": teacher, "candidates": [*entries.values()], "data": {"classes": classes}}, folder)


def measure(front: Front, name: str, data: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """Classify the images three times."""
    folder = options.work / name
    files = deepreduce.export(front, entry=name, out=folder, data=data, replace=True)
    network, recipe = front.load(files.entry)
    chosen = first_of_each_class(data.test.labels.numpy(), options.images)
    pixels, truth = data.test.images.numpy()[chosen], data.test.labels.numpy()[chosen]
    model = load_server(files.server)
    normalised = model.client.normalise(pixels)
    with torch.no_grad():
        own = network.double().eval()(torch.from_numpy(normalised)).argmax(1).numpy()
    twin = Twin(model.program).run(normalised)
    done = folder / "private.json"
    known: dict[str, Any] = json.loads(done.read_text()) if done.exists() else {}
    if known.get("model") != model.client.digest.hex():
        known = {"model": model.client.digest.hex(), "labels": [], "offline_seconds": 0.0, "online_seconds": []}
    certificate, key = new_certificate(folder)
    store = BundleStore(folder / "bundles", program=model.client.digest, role="client")
    with serving(files.server, certificate, key, folder) as address:
        context = client_context(certificate)
        with Client.connect(address, context, model.client, store, workers=available_cores()) as client:
            while len(known["labels"]) < len(pixels):
                start = len(known["labels"])
                some = pixels[start : start + _AT_ONCE]
                known["offline_seconds"] += client.prepare(len(some)).seconds
                answer = client.infer(some)
                known["labels"] += answer.labels.tolist()
                known["online_seconds"].append(answer.seconds / len(some))
                done.write_text(json.dumps(known))
                print(f"{name}: {len(known['labels'])} of {len(pixels)}", file=sys.stderr, flush=True)
    private = np.array(known["labels"])
    return {
        "label": files.entry["label"],
        "relus": recipe.relus,
        "weights_sha256": json.loads((front.place(files.entry) / "recipe.json").read_text())["weights_sha256"],
        "images": len(pixels),
        "accuracy": {
            "float": float((own == truth).mean()),
            "twin": float((twin.labels == truth).mean()),
            "private": float((private == truth).mean()),
        },
        "twin_equals_float": int((twin.labels == own).sum()),
        "private_equals_twin": int((private == twin.labels).sum()),
        "left_range": int((twin.outside > 0).sum()),
        "offline_seconds_per_image": known["offline_seconds"] / len(pixels),
        "online_seconds_per_image_in_batches_of_ten": float(np.median(known["online_seconds"])),
        "agreement_in_calibration": files.agreement,
    }


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the first images of each class, the same number of each."""
    classes = np.unique(labels)
    each = -(-count // len(classes))
    return np.concatenate([np.flatnonzero(labels == label)[:each] for label in classes])[:count]


if __name__ == "__main__":
    raise SystemExit(main())
