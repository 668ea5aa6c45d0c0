"""Hostile files in a run folder, and processes that die in the middle."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepreduce.cli import main

NET = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(in_channels, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, num_classes)

    def forward(self, x):
        x = self.relu3(self.conv3(self.relu2(self.conv2(self.relu1(self.conv1(x))))))
        return self.fc(torch.flatten(self.pool(x), 1))
'''  # fmt: skip
REDUCE = [
    "reduce", "attacked_network:Net", "--data", "digits", "--per-class", "40", "--epochs", "8", "--threads", "1",
    "--checkpoint-seconds", "0", "--distilled-only", "--out",
]  # fmt: skip


class Bomb:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    (tmp_path / "attacked_network.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("attacked_network", None)


def weights(folder: str) -> dict[str, str]:
    root = Path(folder)
    found = [path for path in root.rglob("weights.safetensors") if "damaged" not in str(path)]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_example_nothing_in_a_run_folder_is_ever_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["train", "attacked_network:Net", "--data", "digits", "--per-class", "10", "--epochs", "2", "--out", "run"]
    typed += ["--threads", "1"]
    mark = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(mark))
    folder = tmp_path / "run" / "teacher" / "seed0"
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(bomb)
    (folder / "history.jsonl").write_bytes(bomb)
    (folder / "failed.json").write_bytes(bomb)
    assert main(typed) == 0
    assert "checkpoint could not be used" in capsys.readouterr().err
    for name in ("weights.safetensors", "recipe.json", "metrics.json"):
        (folder / name).write_bytes(bomb)
        assert main(typed) == 0
    for name in ("run.json", "front.json"):
        (tmp_path / "run" / name).write_bytes(bomb)
    assert main(typed) == 1 and main(["report", "run"]) == 1
    assert main(["reduce", *typed[1:-4], "--out", "other", "--weights", str(folder / "history.jsonl")]) == 1
    assert not mark.exists()


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_was_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REDUCE, "whole", "--workers", "1"]) == 0
    for _ in range(3):
        killed = subprocess.Popen(
            [sys.executable, "-m", "deepreduce", *REDUCE, "killed", "--workers", "1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        end, progress = time.monotonic() + 600, lines_of("killed")
        while killed.poll() is None and lines_of("killed") < progress + 5 and time.monotonic() < end:
            time.sleep(0.05)
        killed.kill()
        killed.wait()
    assert main([*REDUCE, "killed", "--workers", "1"]) == 0
    assert weights("killed") == weights("whole")
    for history in Path("killed").rglob("history.jsonl"):
        epochs = [json.loads(line)["epoch"] for line in history.read_text().splitlines()]
        assert epochs == list(range(1, 9))
    left = [path.name for path in Path("killed").rglob("*") if "checkpoint" in path.name or path.name.startswith(".w")]
    assert left == []


def lines_of(folder: str) -> int:
    return sum(path.read_bytes().count(b"\n") for path in Path(folder).rglob("history.jsonl"))


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in listed.read_text().split()] if listed.exists() else []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_workers_end_with_the_main_process_and_a_dead_worker_ends_the_run(tmp_path: Path) -> None:
    long = [*REDUCE, "run", "--workers", "2"]
    long[long.index("--epochs") + 1] = "5000"
    assert main(["train", *long[1 : long.index("--distilled-only")], "--out", "run", "--epochs", "1"]) == 0

    def begun() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "deepreduce", *long], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        before, end = lines_of("run"), time.monotonic() + 600
        while lines_of("run") < before + 4:
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.05)
        return process

    process = begun()
    workers = [pid for pid in children(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1 and "S1 alone, distilled" in said and "fewer --workers" in said
    assert not any(alive(pid) for pid in workers)

    process = begun()  # the lock of the last one is gone, too
    workers = children(process.pid)
    process.kill()
    process.communicate()
    end = time.monotonic() + 300
    while any(alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)
