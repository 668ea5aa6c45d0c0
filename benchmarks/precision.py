"""How many bits private inference needs: labels and accuracy of trained networks with fewer bits, beside their bytes.

    python benchmarks/precision.py --data DATA --saved "ours=RUN/candidate/ID/seed0" --saved "full=RUN/teacher/seed0"

Takes saved networks of runs of `reduce` or `reproduce.py` with this data and its default split (or that of
`--per-class`); another split is refused, because images that were trained on must not judge. Every network becomes a
program with each number of bits that leave a ReLU and that decide about its sign (`FormatSettings.activation_bits` and
`sign_bits`, the image one bit more than the first), whatever its error is, and `chosen`: with the bits that `export`
gives each layer. The program is run in plain integers (`twin`): what the two parties compute up to the last bit of each
rounding, without the images that a truncation spoils. Training images calibrate, held-out images judge; test images are
not read. Finished networks are kept in the data file; the same command continues, and with other options begins anew.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import results_path
from private import saved, saved_places, weights_of, write

import deepreduce
from deepreduce.data import Dataset, Split, load
from deepreduce.errors import NetworkError
from deepreduce.private.deployment import About, make_model
from deepreduce.private.estimate import our_cost
from deepreduce.private.program import FormatSettings, make_program
from deepreduce.private.twin import Twin, compare
from deepreduce.reduction.recipe import Recipe, load_network

_ANY_ERROR = 1e9
_CHOSEN = "chosen"
_BITS = f"{_CHOSEN},12/13,12/10,12/9,12/8,12/7,12/6,14/8,11/8,10/8"
_BATCH = 100


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--saved", action="append", type=saved, required=True, help="LABEL=FOLDER of a saved network")
    parser.add_argument("--bits", default=_BITS, help="values/signs, ...; or chosen")
    parser.add_argument("--per-class", type=int, help="as for reproduce.py")
    parser.add_argument("--calibration", type=int, default=256, help="training images")
    parser.add_argument("--images", type=int, default=2000, help="held-out images that judge")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    path = results_path(options.results, "precision", str(deepreduce.environment()["processor"]))
    asked = {
        "bits": options.bits,
        "per-class": options.per_class,
        "calibration": options.calibration,
        "images": options.images,
    }
    typed = [
        word
        for name, value in asked.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if result.get("options") != asked:
        result = {"networks": {}}
    result |= {
        "what": "trained networks in fixed point, with fewer and fewer bits behind every ReLU; no test images",
        "environment": deepreduce.environment(
            command=["python", "benchmarks/precision.py", "--data", "DATA", *typed, *saved_places(options.saved)]
        ),
        "options": asked,
        "seed": 0,
    }
    for label, folder in options.saved:
        weights = weights_of(folder)
        if result["networks"].get(label, {}).get("weights_sha256") == weights:
            continue
        network, recipe = load_network(folder)
        data = load(options.data, per_class=options.per_class)
        if len(data.classes) > len(recipe.classes):
            data = load(options.data, classes=len(recipe.classes), per_class=options.per_class)
        check_split(folder, data)
        rows = []
        for row in measure(network, recipe, data, options):
            print(line(label, row), flush=True)
            rows.append(row)
        result["networks"][label] = {"weights_sha256": weights, "data": data.name, "bits": rows}
        write(path, result)
    print(path)
    return 0


def check_split(folder: Path, data: Dataset) -> None:
    """Refuse images of another split than those of the run that a saved network lies in."""
    run = next((above / "run.json" for above in folder.resolve().parents if (above / "run.json").exists()), None)
    known = None if run is None else json.loads(run.read_text())["data"]["fingerprint"]
    if known != data.fingerprint:
        raise SystemExit(f"{folder}: its run has other data than {data.name}, or another split; held-out images differ")


def measure(
    network: torch.nn.Module, recipe: Recipe, data: Dataset, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Make programs of a network with each number of bits, and ask them and the network about the same images."""
    generator = torch.Generator().manual_seed(0)
    calibration, _ = drawn(data.train, options.calibration, recipe, generator)
    images, truth = drawn(data.validation, options.images, recipe, generator)
    with torch.no_grad():
        own = network.double()
        logits = np.concatenate([own(some.double()).numpy() for some in images.split(_BATCH)])
    network.float()
    for pair in options.bits.split(","):
        settings = FormatSettings()
        if pair != _CHOSEN:
            bits, signs = map(int, pair.split("/"))
            settings = replace(
                settings, activation_bits=bits, sign_bits=signs, input_bits=bits + 1, tolerance=_ANY_ERROR
            )
        try:
            program = make_program(network, calibration, settings=settings)
        except NetworkError as error:
            print(f"{pair}: {error}", flush=True)
            continue
        public = program.public
        about = About("precision", public.relus, recipe.classes, recipe.mean, recipe.std)
        cost = our_cost(make_model(program, about).client.layout, [])
        answers = Twin(program).run(images.double().numpy())
        agreement = compare(answers, logits, margin=settings.margin)
        assert program.report is not None
        yield {
            "asked": pair,
            "activation_bits": program.report.settings.activation_bits,
            "sign_bits": [step.circuit.tested for step in public.steps if step.circuit and step.circuit.kind == "relu"],
            "relus": public.relus,
            "online_bytes": cost.online.bytes,
            "offline_bytes": cost.offline.bytes,
            "error": agreement.rms_error / agreement.spread,
            "error_in_calibration": program.report.agreement.rms_error / program.report.agreement.spread,
            "same_label": agreement.same_label,
            "accuracy": float((answers.labels == truth).mean()),
            "accuracy_in_floating_point": float((logits.argmax(1) == truth).mean()),
            "left_range": int((answers.outside > 0).sum()),
            "failures": program.report.failures,
        }


def drawn(split: Split, count: int, recipe: Recipe, generator: torch.Generator) -> tuple[torch.Tensor, np.ndarray]:
    """Draw images, normalised as the network wants them, and their classes."""
    chosen = torch.randperm(len(split), generator=generator)[:count]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (recipe.mean, recipe.std))
    return (split.images[chosen].float() / 255 - mean) / std, split.labels[chosen].numpy()


def told(sign_bits: list[int]) -> str:
    """Say by how many bits layers decide; a garbled one, 0 in the list, by all."""
    found = sorted({bits for bits in sign_bits if bits})
    words = ["-".join(map(str, dict.fromkeys((found[0], found[-1]))))] if found else []
    return " and ".join([*words, *["all"] * (0 in sign_bits)]) or "no"


def line(label: str, row: dict[str, Any]) -> str:
    """Write one row of the table."""
    change = 100 * (row["accuracy"] - row["accuracy_in_floating_point"])
    return (
        f"{label:>28}  {row['asked']}: {row['activation_bits']}/{told(row['sign_bits'])} bits"
        f"  {row['online_bytes'] / max(1, row['relus']):.0f} bytes per ReLU, {row['offline_bytes'] / 1e6:.1f} MB before"
        f"  error {row['error']:.4f}"
        f"  same label {row['same_label']:.2%}  accuracy {row['accuracy']:.2%} ({change:+.2f})"
        f"  1 image in {math.inf if not row['failures'] else 1 / row['failures']:,.0f} fails"
    )


if __name__ == "__main__":
    raise SystemExit(main())
