"""`deepreduce estimate` as it is typed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deepreduce
from deepreduce._estimate import _Reduction
from deepreduce.cli import estimate as command
from deepreduce.cli import main
from deepreduce.cli.estimate import _LINKS, _PROTOCOLS
from deepreduce.private.estimate import LINKS, PROTOCOLS

SMALL = ["estimate", "resnet18", "--input", "3x16x16", "--width", "0.125", "--classes", "10"]


def test_example_all_protocols_side_by_side(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*SMALL, "--keep", "S2,S3", "--thin"]) == 0
    shown = capsys.readouterr().out
    table = [line for line in shown.splitlines() if line.startswith("Over ")]
    assert [line.split()[1] for line in table] == ["LAN", "WAN"]
    for words in ("Ours", "DELPHI", "Cheetah", "offline", "online", "Round trips", "Stored at", "weights are random"):
        assert words in shown
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80


def test_one_protocol_over_one_link(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--protocol", "ours", "--link", "wan"]) == 0
    shown = capsys.readouterr().out
    assert "set-up" in shown and "Over WAN" in shown and "LAN" not in shown and "DELPHI" not in shown


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--protocol", "delphi", "--link", "lan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    online = found["protocols"]["delphi"]["online"]
    assert online["received_bytes"] == 1184 * found["relus"] and set(online["seconds"]) == {"lan"}


def test_images_that_are_prepared_for_together(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for together in ("1", "48"):
        typed = [*SMALL, "--protocol", "ours", "--link", "lan", "--together", together]
        assert main([*typed, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
        assert main(typed) == 0
        assert ("what each of 48 has that are prepared together" in capsys.readouterr().out) == (together == "48")
    alone, each = (one["protocols"]["ours"] for one in found)
    assert [one["together"] for one in found] == [1, 48] and each["online"] == alone["online"]
    assert 2 * each["offline"]["bytes"] < alone["offline"]["bytes"]


def test_average_pooling_sends_less_and_saves_round_trips(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["estimate", "vgg16", "--input", "3x32x32", "--width", "0.0625", "--keep", "S3,S4", "--json"]
    found = []
    for more in ([], ["--average-pooling"]):
        assert main([*typed, "--protocol", "ours", "--link", "lan", *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    before, after = (each["protocols"]["ours"]["online"] for each in found)
    assert found[0]["relus"] == found[1]["relus"] and after["round_trips"] < before["round_trips"]
    assert 3 * after["received_bytes"] < 2 * before["received_bytes"]


class Differences(nn.Module):
    """Subtracts, and has no maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Linear(144, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = torch.relu(self.first(x)), torch.relu(self.second(x))
        return self.fc((torch.relu(a - b) + a - b).flatten(1))


class Largest(Differences):
    """Has a maximum that it makes of a ReLU itself, as programs do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x), self.second(x)
        return self.fc((torch.relu(a - b) + b).flatten(1))


def pooled(activation: nn.Module, pool: nn.Module, side: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), activation, pool, nn.Flatten(), nn.Linear(4 * side**2, 3))


@pytest.mark.parametrize(
    ("make", "own", "there", "noted"),
    [
        (lambda: pooled(nn.ReLU(), nn.MaxPool2d(2), 4), 1, 3, True),
        (lambda: pooled(nn.ReLU(), nn.MaxPool2d(3, 2, 1), 4), 1, 4, True),
        (lambda: pooled(nn.ReLU6(), nn.AvgPool2d(2), 4), 1, 2, True),
        (lambda: pooled(nn.ReLU(), nn.AvgPool2d(2), 4), 1, 1, False),
        (Differences, 3, 3, False),
        (Largest, 1, 1, True),
    ],
)
def test_a_file_whose_maxima_are_made_of_relus_says_so(
    make: Callable[[], nn.Module], own: int, there: int, noted: bool, tmp_path: Path
) -> None:
    """Other protocols are priced by the ReLUs, and the note says of which of them the price is too high."""
    pytest.importorskip("seal")
    from deepreduce.private.deployment import About, make_model, save_model
    from deepreduce.private.program import FormatSettings, make_program

    torch.manual_seed(0)
    network = make().eval()
    program = make_program(network, 8 * torch.randn(32, 1, 8, 8), settings=FormatSettings(tolerance=1e9))
    about = About("small", program.public.relus, ("a", "b", "c"), (0.0,), (1.0,))
    _, client = save_model(make_model(program, about), tmp_path)
    asked = {"protocols": ("delphi", "cheetah"), "links": ("lan",)}
    itself = deepreduce.estimate(network, input=(1, 8, 8), classes=3, **asked)
    found = deepreduce.estimate(client, **asked)
    assert (itself["relu_layers"], found["relu_layers"]) == (own, there)
    assert any("maxima and ReLU6 are made of" in note for note in found["notes"]) is noted
    assert not any("maxima" in note for note in itself["notes"])


def test_what_is_refused_for_a_saved_network_are_options_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    assert main(["estimate", str(tmp_path), "--average-pooling", "--exchange-activations"]) == 2
    assert "Got: --average-pooling, --exchange-activations. " in capsys.readouterr().err
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    options = {name for action in parser._actions for name in action.option_strings}
    assert {f"--{field.name.replace('_', '-')}" for field in fields(_Reduction)} <= options


def test_the_choices_are_those_of_the_library() -> None:
    assert set(_LINKS) == set(LINKS) and _PROTOCOLS == PROTOCOLS


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["estimate"], "RECIPE_OR_NETWORK"),
        (["estimate", "resnet18"], "--input"),
        (["estimate", "resnet81", "--input", "3x32x32"], "did you mean resnet18"),
        (["estimate", "nowhere/run"], "must exist"),
        (["estimate", "demmo", "--relus", "5"], "'demmo'. Do: check the path, or name resnet18"),
        ([*SMALL, "--protocol", "crypten"], "--protocol"),
        ([*SMALL, "--link", "man"], "--link"),
        ([*SMALL, "--cores", "0"], "--cores"),
    ],
)
def test_wrong_usage_ends_with_2(
    typed: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(typed) == 2
    shown = capsys.readouterr()
    assert words in shown.err and "Traceback" not in shown.err and shown.out == ""
