"""Checkpoints: the whole state comes back, and nothing but the whole state of this job."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from deepreduce.errors import RunError
from deepreduce.training import Checkpoint

HISTORY = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]


def trained(seed: int = 0, width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.LazyLinear(2))
    network(torch.randn(2, 1, 5, 5))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.randn(2, 1, 5, 5)).sum().backward()
    optimizer.step()
    return network, optimizer


@pytest.fixture
def written(tmp_path: Path) -> Checkpoint:
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", "job")
    checkpoint.write(*trained(), HISTORY)
    return checkpoint


def test_example_weights_momentum_and_history_come_back(written: Checkpoint) -> None:
    network, optimizer = trained()
    other, other_optimizer = trained(seed=1)
    assert Checkpoint(written.path, "job").read(other, other_optimizer, epochs=3) == HISTORY
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        expected = optimizer.state[mine]["momentum_buffer"]
        assert torch.equal(other_optimizer.state[theirs]["momentum_buffer"], expected)


def test_without_a_file_there_is_nothing_to_continue(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "none", "job")
    assert checkpoint.read(*trained(), epochs=3) == [] and not checkpoint.damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def unpickle_me(path: Path) -> None:
    path.write_bytes(pickle.dumps({"epoch": 1}))


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def rewrite(**change: str) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        save_file(load_file(path), path, metadata={**metadata_of(path), **change})

    return act


def drop_momentum(path: Path) -> None:
    tensors = {name: value for name, value in load_file(path).items() if not name.startswith("momentum")}
    metadata = metadata_of(path)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    "damage",
    [
        truncate, flip_a_bit, unpickle_me, drop_momentum, lambda path: path.write_bytes(b""),
        rewrite(job="another"), rewrite(format="1"), rewrite(history="{"), rewrite(history="7"),
        rewrite(history=json.dumps([{"epoch": 2}])), rewrite(history=json.dumps([])), rewrite(history="[" * 100_000),
        rewrite(history=json.dumps([{"epoch": n} for n in (1, 2, 3)])), lambda path: save_file({}, path),
    ],
)  # fmt: skip
def test_anything_else_is_refused_and_kept_aside(written: Checkpoint, damage: Callable[[Path], Any]) -> None:
    damage(written.path)
    network, optimizer = trained(seed=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    checkpoint = Checkpoint(written.path, "job")
    assert checkpoint.read(network, optimizer, epochs=3) == []
    assert checkpoint.damage
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    checkpoint.move_damaged_aside()
    assert not written.path.exists() and written.path.with_name("checkpoint.safetensors.damaged-1").exists()


def test_other_settings_are_an_error_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    Checkpoint(path, "job", settings={"epochs": 3, "learning_rate": 0.1}).write(*trained(), HISTORY)
    before = path.read_bytes()
    other = Checkpoint(path, "other", settings={"epochs": 3, "learning_rate": 0.05})
    with pytest.raises(RunError, match=r"learning_rate 0\.1 there, 0\.05 here.*Where: .*checkpoint\.safetensors"):
        other.read(*trained(seed=1), epochs=3)
    other.move_damaged_aside()
    assert path.read_bytes() == before
    again = Checkpoint(path, "job", settings={"epochs": 3, "learning_rate": 0.1})
    assert again.read(*trained(seed=1), epochs=3) == HISTORY


def test_files_moved_aside_do_not_replace_each_other(written: Checkpoint) -> None:
    for number in (1, 2):
        written.path.write_bytes(b"%d" % number)
        checkpoint = Checkpoint(written.path, "job")
        checkpoint.read(*trained(), epochs=3)
        checkpoint.move_damaged_aside()
    kept = sorted(written.path.parent.glob("*.damaged-*"))
    assert [path.read_bytes() for path in kept] == [b"1", b"2"]


def test_the_state_of_another_shape_is_refused(written: Checkpoint) -> None:
    checkpoint = Checkpoint(written.path, "job")
    assert checkpoint.read(*trained(width=5), epochs=3) == [] and "another network" in checkpoint.damage


def test_a_full_disk_leaves_the_last_state_in_place(written: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    before = written.path.read_bytes()
    monkeypatch.setattr("deepreduce.training.checkpoint.save_file", no_space)
    with pytest.raises(RunError, match="no space is left"):
        written.write(*trained(seed=1), HISTORY)
    assert written.path.read_bytes() == before
    assert [path.name for path in written.path.parent.iterdir()] == ["checkpoint.safetensors"]


def test_it_is_due_after_its_interval(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "c", "job", every_seconds=0).is_due()
    assert not Checkpoint(tmp_path / "c", "job", every_seconds=1000).is_due()
