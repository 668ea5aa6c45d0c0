"""What the private benchmark is asked for, before anything runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import private
import pytest
from machine import results_path

import deepreduce


def test_example_a_saved_network_is_a_label_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    assert private.saved(f"ours 7,168={tmp_path}") == ("ours 7,168", tmp_path)
    for wrong in (str(tmp_path), f"={tmp_path}", f"ours={tmp_path / 'nowhere'}"):
        with pytest.raises(argparse.ArgumentTypeError, match="LABEL=FOLDER"):
            private.saved(wrong)


def test_commands_in_results_name_no_folder_of_this_machine() -> None:
    assert private._public("ours 7,168=/home/me/run/candidate/ID/seed0") == "ours 7,168=ID/seed0"
    assert private._public("--saved=ours=/home/me/ID/seed0") == "ours=ID/seed0"
    assert private._public("/home/me/work") == "work"
    assert private._public("--links=lan,wan") == "--links=lan,wan"


def test_trained_networks_need_a_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["private.py", "--saved", f"ours={tmp_path}"])
    with pytest.raises(SystemExit):
        private.main()
    assert "--saved needs --name" in capsys.readouterr().err


def test_networks_of_another_size_need_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = results_path(tmp_path, "private-mine", str(deepreduce.environment()["processor"]))
    path.write_text(json.dumps({"network": "resnet18, 3x32x32, 100 classes, random weights", "cases": {}}))
    typed = ["private.py", "--input", "3x64x64", "--name", "mine", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", typed)
    with pytest.raises(SystemExit, match="holds other networks"):
        private.main()
