"""Training images per second: our loop beside a plain PyTorch loop with a DataLoader, in one run.

Both train the same network from the same weights with the same batch size, optimiser and augmentation. They take
turns, so that a busy machine slows both. The perfect run is one that does nothing but the network's multiplications
at the rate of a large matrix product, which is measured between the turns.

    python benchmarks/throughput.py --network resnet18 --width 0.25

The result is a data file in results/, named by processor and date.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from machine import device_of, results_path
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import deepreduce
from deepreduce.census import trace
from deepreduce.errors import Interrupted
from deepreduce.training import TrainingConfig, make_accelerator, train
from deepreduce.training.batches import DeviceSplit, Normalisation

Other = TypeVar("Other")

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class PlainImages(Dataset[tuple[Tensor, int]]):
    """Images one by one, each cropped, flipped and normalised on its own, as tutorials do."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.mean, self.std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one augmented image and its label."""
        image = self.images[index].float().div(255)
        size = image.shape[1]
        border = size // 8
        image = F.pad(image[None], (border,) * 4, mode="reflect")[0]
        top, left = random.randrange(2 * border + 1), random.randrange(2 * border + 1)
        image = image[:, top : top + size, left : left + size]
        if random.random() < 0.5:
            image = image.flip(2)
        return (image - self.mean) / self.std, int(self.labels[index])


class PlainLoop:
    """The loop of a tutorial; it trains on for a while at every turn."""

    def __init__(
        self, network: nn.Module, images: Tensor, labels: Tensor, batch_size: int, device: torch.device
    ) -> None:
        self.network = network.to(device).train()
        workers = 2 if device.type == "cpu" else 8
        self.loader = DataLoader(
            PlainImages(images, labels),
            batch_size,
            shuffle=True,
            num_workers=workers,
            drop_last=True,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self.device = device
        self.batches = self._forever()

    def _forever(self):
        while True:
            yield from self.loader

    def run(self, seconds: float) -> float:
        """Train for about this long and return images per second."""
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            images, labels = next(self.batches)
            loss = F.cross_entropy(self.network(images.to(self.device)), labels.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()
            count += len(labels)
        return count / (time.perf_counter() - begun)


class OurLoop:
    """`deepreduce.training.train`; set-up and compilation are not counted."""

    def __init__(
        self, network: nn.Module, split: DeviceSplit, config: TrainingConfig, *, teacher: nn.Module | None = None
    ) -> None:
        self.network, self.split, self.config = trace(network), split, config
        self.teacher = None if teacher is None else trace(teacher)
        self.accelerator = make_accelerator(config)

    def in_turns(self, seconds: float, turns: int, other: Callable[[], Other]) -> list[tuple[Other, float]]:
        """Train in turns with something else: one training, compiled once, that waits while the other runs.

        Args:
            seconds: of each turn of ours, about.
            turns: how many.
            other: runs before each turn of ours.

        Returns:
            For each turn what `other` returned, and our images per second.
        """
        cuda = self.split.images.device.type == "cuda"
        warm_up, every = (20, 20) if cuda else (3, 1)  # steps; a look at the clock waits for the device
        found: list[tuple[Other, float]] = []
        begun, steps = 0.0, -warm_up
        before: tuple[Other] | None = None

        def enough() -> bool:
            """Asked before every step; what lies before step 0 is warm-up."""
            nonlocal begun, steps, before
            steps += 1
            if steps < 0 or steps % every:
                return False
            if cuda:
                torch.cuda.synchronize()
            now = time.perf_counter()
            if steps and now - begun > seconds:
                assert before is not None
                found.append((before[0], self.config.batch_size * steps / (now - begun)))
                steps = 0
            if steps == 0 and len(found) < turns:
                before = (other(),)
                begun = time.perf_counter()
            return len(found) == turns

        with contextlib.suppress(Interrupted):
            train(
                self.network,
                self.split,
                self.split,
                self.config,
                accelerator=self.accelerator,
                teacher=self.teacher,
                should_stop=enough,
            )
        return found


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Measure the multiply-accumulates per second of a large square matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(2):
        a @ b
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        for _ in range(4):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        count += 4
    return count * size**3 / (time.perf_counter() - begun)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--images", type=int, default=20_000, help="random images to train on")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", default="auto", choices=["auto", "no", "bf16"])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()

    config = TrainingConfig(epochs=100_000, batch_size=options.batch_size, precision=options.precision)
    accelerator = make_accelerator(config)
    device = accelerator.device
    spec = deepreduce.NetworkSpec(options.network, (3, 32, 32), 100, options.width)
    macs = deepreduce.profile(options.network, input=(3, 32, 32), width=options.width)["macs"]
    random_images = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.images, 3, 32, 32), dtype=torch.uint8, generator=random_images)
    labels = torch.randint(0, 100, (options.images,), generator=random_images)
    torch.manual_seed(0)
    plain = PlainLoop(deepreduce.build(spec), images, labels, options.batch_size, device)
    torch.manual_seed(0)
    split = DeviceSplit(images.to(device), labels.to(device), Normalisation(MEAN, STD))
    ours = OurLoop(deepreduce.build(spec), split, config)
    mixed = accelerator.mixed_precision == "bf16"
    plain.run(options.seconds / 2)

    def others() -> dict[str, float]:
        kind = torch.bfloat16 if mixed else torch.float32
        return {
            "plain": plain.run(options.seconds),
            "matrix_macs_per_second": matrix_rate(device, kind, options.seconds / 5),
        }

    turns = []
    for found, rate in ours.in_turns(options.seconds, options.turns, others):
        turn = {**found, "ours": rate}
        turn["ratio"] = turn["ours"] / turn["plain"]
        # Forward, gradient of inputs and gradient of weights: three passes of the network's MACs.
        turn["share_of_perfect"] = turn["ours"] * 3 * macs / turn["matrix_macs_per_second"]
        turns.append(turn)
        print({name: round(value, 3) for name, value in turn.items()}, file=sys.stderr, flush=True)
    environment = deepreduce.environment(command=["python", *sys.argv])
    report = {
        "benchmark": "throughput",
        "network": spec.to_json(),
        "macs": macs,
        "batch_size": options.batch_size,
        "precision": {"ours": accelerator.mixed_precision, "plain": "no"},
        "environment": environment,
        "threads": torch.get_num_threads(),
        "median": {name: statistics.median(turn[name] for turn in turns) for name in turns[0]},
        "turns": turns,
    }
    path = results_path(options.results, "throughput", device_of(environment), date=environment["date"])
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["median"], indent=1))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
