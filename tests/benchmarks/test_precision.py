"""The benchmark of how many bits are needed judges by images that no network was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import precision
import pytest

from deepreduce.data import load


def test_images_of_another_split_do_not_judge(tmp_path: Path) -> None:
    data, folder = load("digits"), tmp_path / "candidate" / "S1" / "seed0"
    folder.mkdir(parents=True)
    with pytest.raises(SystemExit, match="held-out images differ"):  # it lies in no run
        precision.check_split(folder, data)
    run = tmp_path / "run.json"
    run.write_text(json.dumps({"data": {"fingerprint": data.fingerprint}}))
    precision.check_split(folder, data)
    run.write_text(json.dumps({"data": {"fingerprint": load("digits", validation=0.2).fingerprint}}))
    with pytest.raises(SystemExit, match="held-out images differ"):
        precision.check_split(folder, data)


def test_bits_of_signs_are_told_by_their_range() -> None:
    assert precision.told([8, 9, 8]) == "8-9"
    assert precision.told([8]) == "8"
    assert precision.told([9, 0, 12]) == "9-12 and all"
    assert precision.told([0]) == "all"
    assert precision.told([]) == "no"
