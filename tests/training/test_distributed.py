"""Several processes on one network: the same training as in one, and one voice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepreduce.cli import main
from deepreduce.training import distributed

NET = """
import torch
from torch import nn

class Net(nn.Module):  # without batch norm, which sees the part of a process alone
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(in_channels, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.relu2(self.conv2(self.relu1(self.conv1(x))))), 1))
"""
TRAIN = [
    "-m", "deepreduce", "train", "network_of_several:Net", "--data", "digits", "--per-class", "40", "--epochs", "2",
    "--batch-size", "64", "--threads", "1", "--out",
]  # fmt: skip


REDUCE = [
    "-m", "deepreduce", "reduce", "network_of_several:Net", "--data", "digits", "--per-class", "40", "--epochs", "30",
    "--method", "deepreduce-masks", "--budget", "200", "--batch-size", "64", "--threads", "1", "--out",
]  # fmt: skip


def test_example_alone_a_process_decides_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.process_count() == 1 and distributed.is_first()
    assert distributed.agree(lambda: [1, 2]) == [1, 2]
    monkeypatch.setenv("WORLD_SIZE", "4")  # a batch system's variable, without torchrun
    assert distributed.process_count() == 1 and distributed.is_first()


def test_under_torchrun_only_the_first_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LOCAL_RANK", "1"), ("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert distributed.process_count() == 2 and not distributed.is_first()
    assert distributed.on_processors() is not torch.accelerator.is_available()


LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return what runs Python in a folder that has the network."""
    (tmp_path / "network_of_several.py").write_text(NET)
    source = Path(distributed.__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{source}{os.pathsep}{tmp_path}"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )

    return run


@pytest.mark.slow
def test_two_processes_search_together_and_train_on_with_what_they_found(tmp_path: Path, run: Run) -> None:
    both = run(*LAUNCH, *REDUCE, "both")
    assert both.returncode == 0, both.stderr
    text = (tmp_path / "both/masks/deepreduce-masks-element-200/seed0/history.jsonl").read_text()
    history = [json.loads(line) for line in text.splitlines()]
    assert len(history) == 12 and len({line["steps"] for line in history}) == 1
    assert history[-2]["state"]["active"] <= 200  # found before the last epoch, which trains with the masks
    (entry,) = json.loads((tmp_path / "both/front.json").read_text())["candidates"]
    assert entry["status"] == "done" and entry["relus"] == 200 and entry["epochs"] == 30


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    both = run(*LAUNCH, *TRAIN, "both")
    assert both.returncode == 0, both.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main([*TRAIN[2:], "alone"]) == 0
    assert both.stdout.count("teacher:") == 1 and both.stderr.count("1/1 teacher") == 1
    history = (tmp_path / "both/teacher/seed0/history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in history] == [1, 2]
    first, second = (load_file(tmp_path / name / "teacher/seed0/weights.safetensors") for name in ("both", "alone"))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-4)
    again = run(*LAUNCH, *TRAIN, "both")  # finished, and all processes agree on that
    assert again.returncode == 0 and "already finished" in again.stderr
