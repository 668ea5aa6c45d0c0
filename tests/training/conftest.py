"""A network and images so small that a job takes a tenth of a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepreduce.data import Dataset, from_arrays
from deepreduce.networks import NetworkSpec
from deepreduce.training import Context, SearchSettings, TrainingConfig, estimate, executors


class Small(nn.Module):
    """Two stages: 8x8 with two ReLU layers, 4x4 with two."""

    def __init__(self, classes: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu3, self.drop = nn.ReLU(), nn.Dropout(dropout)
        self.conv4, self.bn4, self.relu4 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        x = self.relu4(self.bn4(self.conv4(self.drop(self.relu3(self.bn3(self.conv3(x)))))))
        return self.fc(torch.flatten(self.pool(x), 1))


class OneStage(nn.Module):
    """A single stage, so there is nothing to cull."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.relu2(self.conv2(self.relu1(self.conv1(x))))), 1))


def images_of(count: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright stripe whose height says the class."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = random.integers(0, 90, (count, 8, 8)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 1] += 120
    return images, labels


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a plan gain from more, which times small networks."""
    monkeypatch.setattr(executors, "available_cores", lambda: 1)
    monkeypatch.setattr(estimate, "_MEASURE_SECONDS", 0.05)


@pytest.fixture
def data() -> Dataset:
    return from_arrays(*images_of(150, 0), *images_of(60, 1), validation=0.2, name="stripes")


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(7)
    return Small()


@pytest.fixture
def one_stage() -> nn.Module:
    torch.manual_seed(7)
    return OneStage()


@pytest.fixture
def config() -> TrainingConfig:
    return TrainingConfig(epochs=2, batch_size=32, learning_rate=0.05, flip=False)


@pytest.fixture
def settings(config: TrainingConfig) -> SearchSettings:
    return SearchSettings(training=config)


@pytest.fixture
def context(tmp_path: Path, data: Dataset, network: nn.Module) -> Context:
    spec = NetworkSpec("Small", (1, 8, 8), 3)
    return Context(spec, network, data, tmp_path / "run", threads=1, checkpoint_seconds=0.0)


class Watch:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.begun: list[list[tuple[str, bool]]] = []
        self.ended: dict[str, str | None] = {}
        self.notes: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def begin(self, jobs: Any) -> None:
        self.begun.append([(job.place, finished) for job, _, finished in jobs])

    def update(self, job: Any, epochs: int) -> None:
        pass

    def end(self, job: Any, failure: str | None) -> None:
        self.ended[job.place] = failure

    def step(self, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def variant() -> Callable[..., SearchSettings]:
    """Change training settings of a search."""

    def change(settings: SearchSettings, **training: Any) -> SearchSettings:
        return replace(settings, training=replace(settings.training, **training))

    return change
