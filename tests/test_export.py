"""`deepreduce.export`: which network it takes, and which images calibrate it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deepreduce
from deepreduce.errors import UsageError
from deepreduce.private.deployment import load_client, load_server


class Net(nn.Module):
    """Two ReLU layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        return self.fc(self.relu2(self.conv2(self.relu1(self.conv1(x)))).flatten(1))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> deepreduce.Front:
    data = deepreduce.load_data("digits", per_class=20)
    settings = deepreduce.SearchSettings(
        training=deepreduce.TrainingConfig(epochs=1, flip=False), criticality_plain=False, trained=True
    )
    options = deepreduce.RunOptions(threads=1)
    return deepreduce.reduce(Net(), data, out=tmp_path_factory.mktemp("run"), settings=settings, options=options)


def test_example_the_full_network_by_its_id(run: deepreduce.Front, tmp_path: Path) -> None:
    made = deepreduce.export(run, entry="teacher", out=tmp_path, images=64, network=Net())
    assert made.entry["id"] == "teacher"
    client, server = load_client(made.client), load_server(made.server)
    assert client.about.relus == made.entry["relus"] == 4 * 64 + 4 * 16
    assert client.digest == server.client.digest
    assert made.private_relus == made.entry["relus"]
    assert made.agreement["same_label"] > 0.9
    assert made.server.stat().st_mode & 0o777 == 0o600
    assert client.about.network == "network, teacher"
    assert repr(made) == f"Exported(server={made.server!r}, client={made.client!r})"  # formats are secret


def test_relu6_is_counted_once_and_computed_twice(tmp_path: Path) -> None:
    """As ReLU6 in the first layer, whose values exceed 6, and as a clamp in the second, whose values stay below."""
    network = Net()
    network.relu1, network.relu2 = nn.ReLU6(), nn.Hardtanh(0, 6)  # type: ignore[assignment]
    with torch.no_grad():
        network.conv1.weight.mul_(30)
        network.conv2.weight.mul_(0.1)
    base = deepreduce.profile(network, input=(1, 8, 8), classes=10)
    assert base["notes"] == ["320 of the ReLUs are ReLU6: each counts once here, and takes up to two in private"]
    data = deepreduce.load_data("digits", per_class=20)
    settings = deepreduce.SearchSettings(
        training=deepreduce.TrainingConfig(epochs=1, flip=False), criticality_plain=False, trained=True
    )
    options = deepreduce.RunOptions(threads=1, private=False)
    run = deepreduce.reduce(network, data, out=tmp_path / "run", settings=settings, options=options)
    made = deepreduce.export(run, entry="teacher", out=tmp_path / "out", images=64, network=network)
    assert made.entry["relus"] == base["relus"] == 4 * 64 + 4 * 16
    assert made.private_relus == load_client(made.client).about.relus == 2 * 4 * 64 + 4 * 16


def test_names_of_the_owners_code_reach_no_client(run: deepreduce.Front, tmp_path: Path) -> None:
    made = deepreduce.export(run, entry="teacher", out=tmp_path, images=32, network=Net(), name="digits of ours")
    content = made.client.read_bytes()
    for name in (b"conv1", b"relu1", b"fc", b"Net", b"test_export"):
        assert name not in content
    assert load_client(made.client).about.network == "digits of ours, teacher"
    assert [step.name for step in load_client(made.client).public.steps][:2] == ["convolution 1", "circuit 2"]


def test_a_budget_or_a_network_is_named(run: deepreduce.Front, tmp_path: Path) -> None:
    for both in ({}, {"relus": 10_000, "entry": "teacher"}):
        with pytest.raises(UsageError, match=r"[Aa].* network is (named|chosen).*Got: .*Do: "):
            deepreduce.export(run, out=tmp_path, network=Net(), **both)
    with pytest.raises(UsageError, match=r"trained in the run.*'S9'.*teacher"):
        deepreduce.export(run, entry="S9", out=tmp_path, network=Net())
    with pytest.raises(UsageError, match="Where: network"):
        deepreduce.export(run, entry="teacher", out=tmp_path, network="nets:Net")  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


def test_a_run_knows_what_the_exported_network_costs(run: deepreduce.Front, tmp_path: Path) -> None:
    """The run's estimate is that of the file which clients get: formats may differ by the images that calibrate."""
    made = deepreduce.export(run, seconds=1.0, link="wan", out=tmp_path, images=64, network=Net())
    assert made.entry == run.best(seconds=1.0, link="wan")
    own = made.entry["private"]
    exact = deepreduce.estimate(made.client, protocols=("ours",))["protocols"]["ours"]
    assert own["online"]["round_trips"] == exact["online"]["round_trips"]
    assert own["and_gates"] == pytest.approx(exact["online"]["and_gates"], rel=0.1)
    for phase in ("online", "offline"):
        assert own[phase]["bytes"] == pytest.approx(exact[phase]["bytes"], rel=0.1)
        assert own[phase]["seconds"]["wan"] == pytest.approx(exact[phase]["seconds"]["wan"], rel=0.1)
    assert run.content["private"]["links"]["wan"] == {"bits_per_second": 1e8, "round_trip_seconds": 0.04}
    with pytest.raises(UsageError, match="the fastest takes"):
        deepreduce.export(run, seconds=1e-6, out=tmp_path, network=Net())


def test_images_that_are_not_found_by_their_name_are_asked_for(run: deepreduce.Front, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    content = json.loads((folder / "front.json").read_text())
    content["data"]["name"] = "a-folder-elsewhere"
    (folder / "front.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="'a-folder-elsewhere'.*--data"):
        deepreduce.export(folder, entry="teacher", out=tmp_path / "out", network=Net())
    assert deepreduce.export(folder, entry="teacher", out=tmp_path / "out", network=Net(), data="digits", images=32)
