"""Rank correlations against SciPy's definitions by hand, and halving on a table that one can follow."""

from __future__ import annotations

import pytest
from cheap_search import compare, front_of, halve, kendall, margin, ranks, spearman


def test_example_correlations() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == kendall([1, 2, 3], [1, 2, 3]) == 1
    assert spearman([1, 2, 3], [3, 2, 1]) == kendall([1, 2, 3], [3, 2, 1]) == -1
    # Worked by hand: ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * 2 / (4 * 15) and (5 - 1) / 6.
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert kendall([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)


def test_correlations_with_ties() -> None:
    assert ranks([5, 1, 5]) == [2.5, 1, 2.5]
    # Values of scipy.stats.spearmanr and kendalltau for these lists.
    assert spearman([1, 2, 2, 3], [1, 2, 3, 3]) == pytest.approx(0.8333333)
    assert kendall([1, 2, 2, 3], [1, 2, 3, 3]) == pytest.approx(0.8)
    assert spearman([1, 1], [1, 2]) is None and kendall([1, 1], [1, 2]) is None


RELUS = {"a": 10, "b": 20, "c": 20, "d": 40}
RUNS = {
    2: {"a": 0.5, "b": 0.6, "c": 0.4, "d": 0.7},
    8: {"a": 0.7, "b": 0.8, "c": 0.75, "d": 0.78},
}


def test_a_short_schedule_against_the_full_one() -> None:
    assert front_of(RUNS[8], RELUS) == {"a", "b"} and front_of(RUNS[2], RELUS) == {"a", "b", "d"}
    found = compare(RUNS, RELUS, 2)
    assert (found["cost"], found["front_found"], found["cost_with_front"]) == (0.25, 1.0, 1.0)
    assert found["spearman"] == pytest.approx(0.6) and found["kendall"] == pytest.approx(2 / 6)


def test_halving_keeps_what_stands_out_and_says_what_it_cost() -> None:
    assert margin("a", RUNS[2], RELUS) == 0.5 and margin("c", RUNS[2], RELUS) == pytest.approx(-0.2)
    found = halve(RUNS, RELUS)
    assert found["rungs"] == [{"epochs": 2, "candidates": 4}, {"epochs": 8, "candidates": 2}]
    assert found["cost"] == (4 * 2 + 2 * 8) / (4 * 8) and found["front_found"] in (0.5, 1.0)
    lost = halve({2: {"a": 0.1, "b": 0.2, "c": 0.9, "d": 0.95}, 8: RUNS[8]}, RELUS)
    assert lost["front_found"] == 0.5 and lost["largest_loss"] == pytest.approx(5.0)
