"""`deepreduce estimate` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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


def test_average_pooling_sends_less_and_saves_round_trips(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["estimate", "vgg16", "--input", "3x32x32", "--width", "0.0625", "--keep", "S3,S4", "--json"]
    found = []
    for more in ([], ["--average-pooling"]):
        assert main([*typed, "--protocol", "ours", "--link", "lan", *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    before, after = (each["protocols"]["ours"]["online"] for each in found)
    assert found[0]["relus"] == found[1]["relus"] and after["round_trips"] < before["round_trips"]
    assert 3 * after["received_bytes"] < 2 * before["received_bytes"]


def test_the_choices_are_those_of_the_library() -> None:
    assert set(_LINKS) == set(LINKS) and _PROTOCOLS == PROTOCOLS


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["estimate"], "RECIPE_OR_NETWORK"),
        (["estimate", "resnet18"], "--input"),
        (["estimate", "resnet81", "--input", "3x32x32"], "did you mean resnet18"),
        (["estimate", "nowhere/run"], "must exist"),
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
