"""The derived figures: headline, change of accuracy, and what is refused."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest

from deepreduce.errors import RunError
from deepreduce.report import check_front, headline
from deepreduce.report._stages import Scale, map_rows, stages_of
from deepreduce.report.front import change, front_entries, holds


def test_headline_is_the_smallest_network_without_measurable_loss(front):
    found = headline(front)
    assert found.entry["relus"] == 114_688
    assert found.holds
    assert found.split == "test"
    assert found.change[0] == pytest.approx(0.26)
    assert found.change[1] < 0 < found.change[2]


def test_change_has_newcombes_interval(measure):
    # Newcombe 1998, table II, example (a), method 10: 56/70 against 48/80 gives 0.2000, interval 0.0524 to 0.3339.
    found = change(measure(48 / 80, 80), measure(56 / 70, 70))
    assert found == pytest.approx((20.0, 5.24, 33.39), abs=0.005)
    assert change(None, measure(0.5, 10)) is None


def test_no_measurable_loss_implies_overlapping_intervals(front, measure):
    for step in range(60):
        reduced = {"validation": measure(0.7464 - step / 1000, 5000), "test": None}
        if holds(front["teacher"], reduced):
            assert reduced["validation"]["high"] >= front["teacher"]["validation"]["low"]
            last = step
    assert 5 < last < 40


def test_test_images_take_the_claim_back_and_choose_nothing(front, measure):
    chosen = headline(front).entry
    chosen["test"] = measure(0.60, 10000)
    refuted = headline(front)
    assert refuted.entry is chosen
    assert refuted.refuted
    assert not refuted.holds
    chosen["validation"] = measure(0.60, 5000)
    chosen["test"] = measure(0.80, 10000)
    other = headline(front)
    assert other.entry["relus"] == 196_608
    assert other.holds
    assert not other.refuted


def test_a_teacher_that_guesses_is_named(front, measure):
    assert front["network"]["classes"] == 100 and not headline(front).guessing
    for accuracy, guessing in ((0.005, True), (0.012, True), (0.015, False)):  # about 0.3 points either way
        front["teacher"]["validation"] = measure(accuracy, 5000)
        assert headline(front).guessing == guessing


def test_a_teacher_that_one_stage_alone_beats_is_named(front, measure):
    assert headline(front).above is None
    front["teacher"]["validation"] = measure(0.69, 5000)  # S3 alone has 69.21, within the interval
    assert headline(front).above is None
    front["teacher"]["validation"] = measure(0.66, 5000)
    assert headline(front).above["stage"] == "S3"


def test_where_all_lose_the_most_accurate_is_named(front, measure):
    front["teacher"]["validation"] = measure(0.99, 5000)
    found = headline(front)
    assert not found.holds
    assert found.entry["relus"] == 229_376


def test_nothing_measured_gives_no_headline(front):
    front["front"] = ["teacher"]
    assert headline(front).entry is None
    assert front_entries(front) == []


@pytest.mark.parametrize(
    ("key", "value"), [("format", "deepreduce.recipe"), ("version", 2), ("version", True), ("version", "1")]
)
def test_foreign_format_or_version_is_refused(front, key, value):
    front[key] = value
    with pytest.raises(RunError, match=rf"(?s)must be .*Got: .*Do: .*Where: front\.json, {key}"):
        check_front(front)


KEYS = ["format", "version", "network", "data", "settings", "census", "teacher", "criticality", "exponent"]


@pytest.mark.parametrize("key", [*KEYS, "candidates", "front", "environment", "seconds"])
def test_missing_key_is_named(front, key):
    del front[key]
    with pytest.raises(RunError, match=rf"{key}.*Got: .*Do: .*Where: "):
        check_front(front)


@pytest.mark.parametrize("key", ["id", "label", "recipe", "relus", "stages", "status", "validation", "test"])
def test_missing_key_of_an_entry_is_named_with_its_place(front, key):
    del front["candidates"][3][key]
    with pytest.raises(RunError, match=rf"Where: front\.json, candidates\[3\]\.{key}"):
        check_front(front)


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (lambda f: f["front"].append("nobody"), r"front\[9\]"),
        (lambda f: f["candidates"][2]["validation"].pop("high"), r"candidates\[2\]\.validation\.high"),
        (lambda f: f["candidates"][2].update(status="perhaps"), r"candidates\[2\]\.status"),
        (lambda f: f["candidates"][2].update(latency=3.0), r"candidates\[2\]\.latency"),
        (lambda f: f["candidates"][2].update(private=3.0), r"candidates\[2\]\.private"),
        (lambda f: f.update(private=[]), "private"),
        (lambda f: f.update(private={"links": {"lan": 3}}), r"private\.links\.lan"),
        (lambda f: f.update(fronts_in_seconds=[]), "fronts_in_seconds"),
        (lambda f: f.update(fronts_in_seconds={"lan": 3}), r"fronts_in_seconds\.lan"),
        (lambda f: f.update(fronts_in_seconds={"lan": ["nobody"]}), r"fronts_in_seconds\.lan\[0\]"),
        (
            lambda f: f["candidates"][2]["stages"][1]["layers"][0].pop("name"),
            r"candidates\[2\]\.stages\[1\]\.layers\[0\]",
        ),
        (lambda f: f["census"].pop("stages"), r"census\.stages"),
        (lambda f: f["criticality"][1].pop("stage"), r"criticality\[1\]\.stage"),
        (lambda f: f.update(candidates={}), "candidates"),
    ],
)
def test_damage_is_named_with_its_place(front, damage, where):
    damage(front)
    with pytest.raises(RunError, match=where):
        check_front(front)


@pytest.mark.parametrize("value", [None, [], "front", 3])
def test_something_else_than_an_object_is_refused(value):
    with pytest.raises(RunError, match=r"JSON object.* Where: front\.json\.$"):
        check_front(value)


def test_stage_map_starts_with_the_full_network(front):
    rows = map_rows(front)
    assert rows[0][0]["id"] == "teacher"
    assert [len(stage.bars) for stage in rows[0][1]] == [5, 4, 4, 4]
    assert sum(stage.relus for stage in rows[0][1]) == 557_056
    for entry, stages in rows:
        assert sum(stage.relus for stage in stages) == entry["relus"]


def test_removed_layer_without_a_size_takes_that_of_the_full_network(front):
    entry = front["candidates"][0]
    for layer in entry["stages"][0]["layers"]:
        layer.update(relus=0, shape=None)
    bars = stages_of(front, entry)[0].bars
    assert [bar.relus for bar in bars] == [65_536] * 5
    assert not any(bar.kept for bar in bars)


def test_bar_heights_step_by_factors_of_two():
    scale = Scale(1024, 65_536)
    heights = [scale.height(2**power) for power in range(10, 17)]
    assert heights[0] == pytest.approx(0.2)
    assert heights[-1] == pytest.approx(1.0)
    steps = [after - before for before, after in itertools.pairwise(heights)]
    assert steps == pytest.approx([0.8 / 6] * 6)
    assert Scale(4, 4).height(4) == 1.0
    assert math.isfinite(Scale.of([]).height(0))


def test_import_loads_no_heavy_package():
    code = (
        "import sys, deepreduce; before = set(sys.modules); import deepreduce.report as r; dir(r); "
        "heavy = {'torch', 'plotly', 'jinja2', 'matplotlib', 'rich'}; "
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"


def test_every_exported_name_exists():
    import deepreduce.report as report

    assert all(callable(getattr(report, name)) for name in report.__all__)
    with pytest.raises(AttributeError):
        _ = report.nothing
