"""What a cheap search is held against: correlations, fronts and losses on tables that one can follow; one real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cheap_search import between_seeds, compare, correlation, finals, front_of, main, missed

RELUS = {"a": 10, "b": 20, "c": 20, "d": 40}
FULL = {"a": 0.7, "b": 0.8, "c": 0.75, "d": 0.78}


def test_example_correlations() -> None:
    # Worked by hand: ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * 2 / (4 * 15) and (5 - 1) / 6.
    a, b = {"a": 1, "b": 2, "c": 3, "d": 4}, {"d": 9, "b": 7, "c": 6, "a": 5, "other": 1}
    found = correlation(a, b, {"a": 4, "b": 1, "c": 2, "d": 3})
    # The counts' ranks 4 1 2 3 correlate by -0.2 with 1 2 3 4, and by -0.4 with 1 3 2 4.
    partial = (0.8 - 0.2 * 0.4) / (0.96 * 0.84) ** 0.5
    assert found == {
        "candidates": 4,
        "spearman": pytest.approx(0.8),
        "kendall": pytest.approx(4 / 6),
        "given_relus": pytest.approx(partial),
    }
    assert correlation(RELUS, {name: -value for name, value in RELUS.items()}, a)["kendall"] == pytest.approx(-1)
    assert correlation(a, b, a)["given_relus"] is None  # it follows the count
    flat = correlation(RELUS, dict.fromkeys(RELUS, 0.5), a)
    assert flat == {"candidates": 4, "spearman": None, "kendall": None, "given_relus": None}


def test_what_a_search_misses() -> None:
    assert front_of(FULL, RELUS) == {"a", "b"}
    assert missed({"a", "b", "d"}, FULL, RELUS) == {"front_found": 1.0, "mean_loss": 0.0, "largest_loss": 0.0}
    lost = missed({"a", "c"}, FULL, RELUS)
    assert lost["front_found"] == 0.5
    assert lost["largest_loss"] == pytest.approx(5.0) and lost["mean_loss"] == pytest.approx(2.5)
    assert missed({"d"}, FULL, RELUS)["largest_loss"] == pytest.approx(80.0)  # nothing as small is left


def test_one_seed_in_place_of_the_ranking() -> None:
    runs = {"a": [0.5, 0.6], "b": [0.7, 0.7], "c": [0.6, 0.8], "d": [0.9, 0.9]}
    first, second = between_seeds(runs, RELUS, 10**6)
    assert first["seeds"] == [0, 1] and first["spearman"] == pytest.approx(0.8) and first["kept"] == 3
    assert first["front_found"] == pytest.approx(2 / 3) and first["largest_loss"] == pytest.approx(10.0)
    assert second["seeds"] == [1, 0] and between_seeds(runs, RELUS, 10)[0]["kept"] == 4  # ten images tell nothing apart


def test_finalists_within_every_budget() -> None:
    # Budgets 20, 20, 40 (within 10 there is one candidate): the ranking picks c, c, d; the best are b, b, b.
    ranked = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    one, two, three = finals(ranked, FULL, RELUS, 10, 0.1, 2)
    assert one["mean_loss"] == pytest.approx((5 + 5 + 2) / 3) and one["largest_loss"] == pytest.approx(5)
    assert one["mean_cost"] == pytest.approx((2 * (0.5 + 1) / 5 + (0.6 + 1) / 6) / 3) and one["budgets"] == 3
    assert two["mean_loss"] == pytest.approx((0 + 0 + 2) / 3) and two["finalists"] == 2
    assert three["largest_loss"] == 0 and three["budgets"] == 1
    (largest, *_) = finals(None, FULL, RELUS, 1, stages=2)
    assert largest["mean_loss"] == pytest.approx((0 + 0 + 2) / 3)
    assert largest["largest_cost"] == pytest.approx(3 / 5)
    # What is clearly below a smaller network is no finalist, however many may go on.
    assert finals(ranked | {"b": 0.0}, FULL, RELUS, 10**6)[1]["largest_loss"] == pytest.approx(5)


def entry(name: str, accuracy: float | None) -> dict[str, Any]:
    done = accuracy is not None
    return {
        "id": name,
        "relus": RELUS.get(name, 15),
        "status": "done" if done else "skipped",
        "validation": {"accuracy": accuracy, "runs": [accuracy]} if done else None,
    }


def test_a_cheap_search_against_the_full_one() -> None:
    stages = [{"stage": "S1", "criticality": 0.0}, {"stage": "S2", "criticality": 1.0}]
    full = {
        "criticality": stages,
        "settings": {"epochs": 20},
        "data": {"validation": 100},
        "candidates": [entry(name, accuracy) for name, accuracy in FULL.items()],
    }
    short = {"a": 0.3, "b": 0.5, "c": 0.2, "d": 0.55}
    cheap = {
        "criticality": stages,
        "settings": {"epochs": 20, "rank_epochs": 2},
        "candidates": [entry("a", 0.7), entry("b", 0.8), entry("c", None), entry("d", 0.78)],
        "ranking": [
            {"id": name, "relus": RELUS[name], "accuracy": value, "kept": name != "c", "seconds": 1.5}
            for name, value in short.items()
        ],
    }
    found = compare(cheap, full)
    assert found["cost"] == 0.1 and found["cost_with_front"] == 0.1 + 3 * 20 / (6 * 20)
    assert found["finals"][2]["largest_cost"] == pytest.approx(0.1 + 3 / 6)
    assert found["same_order_of_culling"] and found["kept"] == ["a", "b", "d"] and found["seconds"] == 6.0
    assert found["spearman"] == pytest.approx(0.6) and found["front_found"] == 1.0


def test_the_benchmark_runs_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (
        f"--data digits --network mobilenet_v1 --width 0.125 --classes 3 --per-class 40 --validation 0.25 "
        f"--out {tmp_path / 'runs'} --results {tmp_path} --epochs 2 --rank-epochs 1 --threads 1"
    ).split()
    assert main(asked) == 0
    report = json.loads(next(tmp_path.glob("cheap_search-*.json")).read_text())
    assert report["full"]["between_seeds"] == [] and report["searches"][0]["rank_epochs"] == 1
    text = capsys.readouterr().out
    assert "of the cost" in text and "the ReLU count alone" in text
    assert main(asked) == 0  # nothing is trained again
    again = json.loads(next(tmp_path.glob("cheap_search-*.json")).read_text())
    assert again["searches"] == report["searches"] and again["candidates"] == report["candidates"]
