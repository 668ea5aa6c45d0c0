"""What `--exchange-activations` costs: networks with gates and other activations, as they are and with ReLUs alone.

Four variants of a quarter-width ResNet18: with SiLU and squeeze-and-excitation, with ReLU and squeeze-and-excitation,
with group norms, and plain. Each is trained as it is, and then as long again from those weights. All but the plain one
are also exchanged and trained as long again from the same weights, and that network is reduced with `deepreduce-masks`.

    python benchmarks/exchanging.py --data ../shared/data/cifar100 --out runs/exchanging

The result is a data file in results/, named by processor and date. The script continues where it was cut off. Nothing
is chosen by the test images; each network reads them once.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from machine import public, results_path
from safetensors.torch import load_file
from torch import Tensor, nn

import deepreduce
from deepreduce.cli._console import Watcher
from deepreduce.data import Dataset
from deepreduce.training import RunOptions, SearchSettings, TrainingConfig
from deepreduce.training.batches import DeviceSplit, Normalisation
from deepreduce.training.loop import count_correct

WIDTHS = (16, 32, 64, 128)
GROUPS = 4
VARIANTS = ("silu-gates", "relu-gates", "group-norms", "plain")


class Gate(nn.Module):
    """Squeeze-and-excitation (Hu, Shen, Sun, CVPR 2018): a factor for each channel, from its mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the map times its gate."""
        return x * torch.sigmoid(self.excite(self.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """A basic block of ResNet, with a gate behind its second batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int, variant: str) -> None:
        super().__init__()
        activation = activation_of(variant)
        gate = [Gate(outputs)] if variant.endswith("-gates") else []
        self.inside = nn.Sequential(
            *convolution(inputs, outputs, 3, stride, variant), activation(),
            *convolution(outputs, outputs, 3, 1, variant), *gate,
        )  # fmt: skip
        self.around: nn.Module = nn.Identity()
        if inputs != outputs:
            self.around = nn.Sequential(*convolution(inputs, outputs, 1, stride, variant))
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of both ways together."""
        y: Tensor = self.activation(self.inside(x) + self.around(x))
        return y


def activation_of(variant: str) -> type[nn.Module]:
    """Return the kind of activation that a variant has."""
    return nn.SiLU if variant == "silu-gates" else nn.ReLU


def convolution(inputs: int, outputs: int, kernel: int, stride: int, variant: str) -> tuple[nn.Module, nn.Module]:
    """Return a convolution and the norm behind it."""
    norm = nn.GroupNorm(GROUPS, outputs) if variant == "group-norms" else nn.BatchNorm2d(outputs)
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), norm


def make(variant: str, classes: int) -> nn.Module:
    """Build a network of `VARIANTS`; its weights depend on the seed of PyTorch."""
    layers: list[nn.Module] = [*convolution(3, WIDTHS[0], 3, 1, variant), activation_of(variant)()]
    inputs = WIDTHS[0]
    for number, outputs in enumerate(WIDTHS):
        for stride in (1 if number == 0 else 2, 1):
            layers.append(Block(inputs, outputs, stride, variant))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-100, or uoft-cs/cifar100")
    parser.add_argument("--out", type=Path, default=Path("runs/exchanging"), help="folder of the run folders")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the data file")
    parser.add_argument("--classes", type=int, default=20, help="use the first N classes alone")
    parser.add_argument("--per-class", type=int, help="use N training images of each class")
    parser.add_argument("--epochs", type=int, default=20, help="of each training")
    parser.add_argument("--budgets", default="28672,7168", help="ReLUs of the reduced networks, comma-separated")
    parser.add_argument("--seeds", default="0,1", help="of the first weights, comma-separated")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="which of the networks, comma-separated")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    data = deepreduce.load_data(options.data, classes=options.classes, per_class=options.per_class, validation=0.1)
    budgets = tuple(sorted((int(budget) for budget in options.budgets.split(",")), reverse=True))
    settings = SearchSettings(
        training=TrainingConfig(epochs=options.epochs, precision="bf16"),
        method="deepreduce-masks",
        budgets=budgets,
        budget=budgets[0],
        trained=False,
        test_all=True,
    )
    path = results_path(options.results, "exchanging", str(deepreduce.environment()["processor"]))
    report: dict[str, Any] = {
        "benchmark": "exchanging",
        "network": "ResNet18 at a quarter of the width, see the script",
        "data": f"{data.name}, first {options.classes} classes: {len(data.train):,} training, "
        f"{len(data.validation):,} held-out, {len(data.test):,} test images",
        "epochs of each training": options.epochs,
        "environment": deepreduce.environment(command=public(" ".join(["python", *sys.argv])).split()),
        "rows": [],
    }
    with Watcher() as watcher:
        for seed in map(int, options.seeds.split(",")):
            run = Run(data, options.out / f"seed{seed}", settings, RunOptions(threads=options.threads), watcher)
            for variant in options.variants.split(","):
                report["rows"] += [{"seed": seed, **row} for row in run.rows(variant, seed)]
                path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report["rows"]))
    print(path)
    return 0


class Run:
    """All trainings that begin with one seed, each in a run folder of its own, where it is found again."""

    def __init__(
        self, data: Dataset, out: Path, settings: SearchSettings, options: RunOptions, watcher: Watcher
    ) -> None:
        self.data, self.out, self.settings, self.options, self.watcher = data, out, settings, options, watcher

    def rows(self, variant: str, seed: int) -> list[dict[str, Any]]:
        """Train a variant in all ways, and return what each came to."""
        torch.manual_seed(seed)
        network = make(variant, len(self.data.classes))
        rows = [self._as_it_is(network, variant, "as it is")]
        rows.append(self._as_it_is(_load(network, self.out / variant), f"{variant}-again", "as it is, as long again"))
        if variant != "plain":
            rows += self._exchanged(_load(network, self.out / variant), f"{variant}-exchanged")
        return [{"variant": variant, **row} for row in rows]

    def _as_it_is(self, network: nn.Module, name: str, what: str) -> dict[str, Any]:
        """Train a network with what it has, and count the test images that it gets right, once."""
        folder = self.out / name
        outcome = deepreduce.train(
            network, self.data, out=folder, settings=self.settings, options=self.options, progress=self.watcher
        )
        kept = folder / "test_of_the_benchmark.json"
        if not kept.exists():
            own = _load(copy.deepcopy(network), folder)
            normalisation = Normalisation(self.data.mean, self.data.std)
            split = DeviceSplit.of(self.data.test, normalisation, torch.device("cpu"))
            kept.write_text(json.dumps(count_correct(own, split)))
        right = json.loads(kept.read_text()) / len(self.data.test)
        return {"what": what, "relus": None, "validation": outcome.accuracy, "test": right}

    def _exchanged(self, network: nn.Module, name: str) -> list[dict[str, Any]]:
        """Exchange, train and reduce a network."""
        front = deepreduce.reduce(
            network,
            self.data,
            out=self.out / name,
            settings=self.settings,
            exchange_activations=True,
            options=self.options,
            progress=self.watcher,
        )
        entries = [front.content["teacher"], *front.content["candidates"]]
        return [
            {
                "what": "exchanged" if entry["id"] == "teacher" else "exchanged and reduced",
                "relus": entry["relus"],
                "validation": entry["validation"]["accuracy"],
                "test": entry["test"]["accuracy"],
            }
            for entry in entries
        ]


def _load(network: nn.Module, folder: Path) -> nn.Module:
    """Give a network the weights of the one that was trained in a run folder."""
    tensors = load_file(folder / "teacher" / "seed0" / "weights.safetensors")
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    return network


def table(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out as text: test accuracies in %, the mean over the seeds and each of them."""
    lines = []
    for variant, what, relus in dict.fromkeys((row["variant"], row["what"], row["relus"]) for row in rows):
        runs = [
            100 * row["test"] for row in rows if (row["variant"], row["what"], row["relus"]) == (variant, what, relus)
        ]
        each = ", ".join(f"{run:.1f}" for run in runs)
        count = "" if relus is None else f"{relus:,}"
        lines.append(f"{variant:12}  {what:24}  {count:>8}  {statistics.fmean(runs):5.1f}  ({each})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
