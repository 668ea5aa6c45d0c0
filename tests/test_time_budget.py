"""In how many layers ReLUs may stay within a time: what is said holds when that many are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepreduce
from deepreduce import _time_budget
from deepreduce._time_budget import _spread
from deepreduce.cli import main
from deepreduce.errors import UsageError

SHAPES = [(4, 8, 8), (4, 8, 8), (8, 4, 4), (8, 4, 4), (16, 2, 2)]


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each layer takes 50 ms, and everything else 80; it is noted which numbers of layers are asked for."""
    asked: list[int] = []

    def seconds(base: Any, budget: int, layers: int, *_: Any, **__: Any) -> float:
        asked.append(layers)
        return 0.08 + 0.05 * layers

    monkeypatch.setattr(_time_budget, "_seconds", seconds)
    return asked


def within(seconds: float, **more: Any) -> int | None:
    return deepreduce.layers_within(seconds, "resnet18", input=(1, 8, 8), budget=100, width=0.0625, **more)


@pytest.mark.parametrize(
    ("seconds", "layers"), [(0.13, 1), (0.20, 2), (0.379, 5), (0.381, 6), (0.92, 16), (0.94, None)]
)
def test_example_the_most_layers_that_fit(seconds: float, layers: int | None, priced: list[int]) -> None:
    assert within(seconds) == layers
    assert len(priced) <= 5


def test_a_time_that_no_network_keeps_is_refused(priced: list[int]) -> None:
    with pytest.raises(
        UsageError, match=r"Got: 0.1 s, where one takes about 0.130 s over wan\. Do: .* Where: --seconds"
    ):
        within(0.1, link="wan")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"seconds": 0}, "seconds must be"), ({"seconds": "1"}, "seconds must be"), ({"seconds": float("nan")}, "above 0 and finite"), ({"seconds": float("inf")}, "above 0 and finite"),
     ({"budget": 0}, "at least 1"), ({"budget": 1.5}, "a whole number"), ({"link": 3}, "link must be"), ({"network": 3}, "network must be")],
)  # fmt: skip
def test_wrong_arguments_are_named(change: dict[str, Any], words: str) -> None:
    asked: dict[str, Any] = {"seconds": 1.0, "network": "resnet18", "input": (1, 8, 8), "budget": 100, **change}
    with pytest.raises(UsageError, match=f"(?i){words}.*Got: .*Do: "):
        deepreduce.layers_within(asked.pop("seconds"), asked.pop("network"), **asked)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("budget", [5, 70, 300, 10_000])
def test_a_budget_is_spread_over_so_many_layers(layers: int, budget: int) -> None:
    masks = _spread(SHAPES, budget, layers)
    kept = [int(mask.sum()) for mask in masks]
    assert [mask.shape for mask in masks] == SHAPES and sum(count > 0 for count in kept) == layers
    room = sum(mask.size for mask, count in zip(masks, kept, strict=True) if count)
    assert sum(kept) == min(budget, room) or budget < layers


def test_more_layers_take_longer_and_the_network_stays() -> None:
    """With real estimates, of a network with its own weights."""
    network = deepreduce.build(deepreduce.NetworkSpec("resnet18", (3, 8, 8), 10, 0.0625)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    few = deepreduce.layers_within(0.2, network, input=(3, 8, 8), budget=60, link="wan", classes=10)
    assert few is not None and 2 <= few <= 5  # a round trip of 40 ms each, and one more
    assert all(np.array_equal(before[name], value) for name, value in network.state_dict().items())


def test_the_command_sets_the_number_of_layers(
    tmp_path: Path, priced: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "reduce",
        "resnet18",
        "--data",
        "digits",
        "--out",
        str(tmp_path / "run"),
        "--width",
        "0.0625",
        "--dry-run",
    ]
    masks = ["--method", "deepreduce-masks"]
    assert main([*command, *masks, "--budget", "100", "--seconds", "0.2", "--link", "wan"]) == 0
    said = capsys.readouterr()
    assert "at most 2 layers may keep ReLUs, to answer within about 0.2 s (wan)" in said.err
    for wrong, words in (
        ([*masks, "--seconds", "0.2"], "no --budget"),
        ([*masks, "--seconds", "0.2", "--budget", "100", "--most-layers", "3"], "--most-layers"),
        (["--method", "snl", "--seconds", "0.2", "--budget", "100"], "can keep to it"),
    ):
        assert main([*command, *wrong]) == 2
        assert words in capsys.readouterr().err
