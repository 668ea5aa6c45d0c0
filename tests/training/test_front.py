"""The front as an object: asking it, reading it, refusing what is no front."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepreduce.errors import RunError, UsageError
from deepreduce.training import Front


def entry(name: str, relus: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {"id": name, "relus": relus, "validation": {"accuracy": accuracy, "runs": [accuracy]}, **more}


def content(**more: Any) -> dict[str, Any]:
    return {
        "format": "deepreduce.front",
        "version": 1,
        "teacher": entry("teacher", 100, 0.9),
        "candidates": [entry("S2", 50, 0.8), entry("S3", 10, 0.7), entry("S4", 60, 0.75)],
        "front": ["S3", "S2", "teacher"],
        **more,
    }


def test_example_the_best_network_within_a_budget() -> None:
    front = Front(content(), Path("run"))
    assert [e["id"] for e in front.entries] == ["S3", "S2", "teacher"]
    assert front.best(relus=50)["id"] == "S2" and front.best(relus=49)["id"] == "S3"
    assert front.best(relus=1000)["id"] == "teacher"
    with pytest.raises(UsageError, match="the smallest has 10 ReLUs"):
        front.best(relus=9)


def priced(lan: object, wan: object) -> dict[str, Any]:
    return {"private": {"online": {"seconds": {"lan": lan, "wan": wan}}}}


def in_seconds() -> Front:
    """S4 is off the front of ReLUs, and the best within a second over the wide link; S3 has no price."""
    entries = [entry("S2", 50, 0.8, **priced(0.1, 2.0)), entry("S4", 60, 0.75, **priced(0.2, 0.9))]
    entries += [entry("S3", 10, 0.7, private={"reason": "why not"}), entry("S1", 9, 0.1, **priced("1", float("nan")))]
    links = {"lan": {}, "wan": {}}
    teacher = entry("teacher", 100, 0.9, **priced(0.4, 4.0))
    return Front(content(teacher=teacher, candidates=entries, private={"links": links}), Path("run"))


def test_example_the_best_network_within_some_seconds() -> None:
    front = in_seconds()
    assert front.best(seconds=0.3)["id"] == "S2" and front.best(seconds=0.4)["id"] == "teacher"
    assert front.best(seconds=1.0, link="wan")["id"] == "S4"
    assert front.best(seconds=2.0, link="wan")["id"] == "S2"
    assert front.best(seconds=9.0, relus=60, link="wan")["id"] == "S2"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "chosen within a budget"),
        ({"seconds": 0.05}, r"the fastest takes 0\.1 s over lan"),
        ({"seconds": 1.0, "relus": 50, "link": "wan"}, "the smallest has 60 ReLUs"),
        ({"seconds": 1.0, "link": "moon"}, "choose one of lan, wan"),
    ],
)
def test_seconds_that_cannot_be_met_are_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        in_seconds().best(**asked)


def test_a_run_without_seconds_says_what_adds_them() -> None:
    with pytest.raises(UsageError, match=r"deepreduce\[private\]"):
        Front(content(), Path("run")).best(seconds=1.0)


def test_the_weights_are_those_of_the_best_seed() -> None:
    front = Front(content(), Path("run"))
    assert front.place(entry("S2", 1, 0.5)) == Path("run/candidate/S2/seed0")
    several = {"id": "teacher", "validation": {"runs": [0.1, 0.3, 0.2]}}
    assert front.place(several) == Path("run/teacher/seed1")


def test_reading_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "front.json").write_text(json.dumps(content()))
    assert Front.read(tmp_path).content == content()


def test_a_run_that_is_not_finished_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no front\.json.*deepreduce reduce"):
        Front.read(tmp_path)
    with pytest.raises(RunError, match="no such folder"):
        Front.read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"must exist\. Got: a file"):
        Front.read(tmp_path / "file")


def test_a_front_is_shown_by_its_folder() -> None:
    assert repr(Front(content(), Path("run"))) == f"Front(folder={Path('run')!r})"


@pytest.mark.parametrize(
    "damaged",
    [
        "{", "[]", json.dumps(content(version=2)), json.dumps(content(format="x")), json.dumps(content(front=["S9"])),
        json.dumps(content(candidates=5)), json.dumps(content(teacher={"id": "teacher"})),
        json.dumps(content(candidates=[entry("../../etc", 1, 0.5)], front=["../../etc"])),
        json.dumps(content(teacher=entry("teacher", 1, 0.5) | {"validation": None})),
    ],
)  # fmt: skip
def test_a_damaged_or_hostile_front_is_refused(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "front.json").write_text(damaged)
    with pytest.raises(RunError):
        Front.read(tmp_path)
