"""Holding rows out. `test_a_tenth_of_every_class` is the example to read first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.data.splits import Purpose, chance, check_fraction, check_seed, hold_out, keep_per_class

from .small import misuse, refusal


def names(count: int) -> tuple[str, ...]:
    return tuple(f"class{k}" for k in range(count))


def held(labels: np.ndarray, *, fraction: float = 0.1, seed: int = 0, rows: np.ndarray | None = None) -> np.ndarray:
    chosen = np.arange(len(labels)) if rows is None else rows
    classes = names(labels[chosen].max() + 1)
    return hold_out(labels, chosen, fraction=fraction, seed=seed, purpose=Purpose.VALIDATION, classes=classes)[1]


def test_a_tenth_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 50])
    assert np.bincount(labels[held(labels)]).tolist() == [1, 2, 5]


def test_the_choice_is_pinned() -> None:
    # These are the raw words of PCG64; were they to change, every published validation split would change with them.
    assert chance(3, seed=0, purpose=Purpose.VALIDATION).tolist() == [
        16509333102296552351,
        15871844912512222221,
        5928319099393986110,
    ]
    assert held(np.arange(30) % 3).tolist() == [8, 25, 27]


@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=8),
    fraction=st.floats(0.01, 0.5),
    seed=st.integers(0, 2**70),
)
def test_laws_of_the_hold_out(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = np.arange(len(labels))
    stay, out = hold_out(
        labels, rows, fraction=fraction, seed=seed, purpose=Purpose.VALIDATION, classes=names(len(counts))
    )
    assert np.array_equal(np.union1d(stay, out), rows)
    assert len(np.intersect1d(stay, out)) == 0
    assert (np.diff(out) > 0).all()
    for k, count in enumerate(counts):
        given_away = int((labels[out] == k).sum())
        assert 1 <= given_away < count
        assert abs(given_away - fraction * count) < 1


@given(st.integers(0, 1000))
def test_a_class_is_divided_the_same_when_others_are_left_out(seed: int) -> None:
    labels = np.arange(60) % 4
    rows = np.flatnonzero(labels < 2)
    whole, part = held(labels, seed=seed), held(labels, seed=seed, rows=rows)
    assert part.tolist() == [row for row in whole if labels[row] < 2]


def test_the_seed_decides() -> None:
    labels = np.zeros(200, dtype=np.int64)
    assert held(labels, seed=1).tolist() == held(labels, seed=1).tolist()
    assert held(labels, seed=1).tolist() != held(labels, seed=2).tolist()


def test_every_row_is_held_out_by_some_seed() -> None:
    # A choice by row order would always take the same rows.
    labels = np.zeros(20, dtype=np.int64)
    assert len(set().union(*(held(labels, seed=seed).tolist() for seed in range(60)))) == 20


@given(small=st.integers(1, 5), more=st.integers(0, 5), seed=st.integers(0, 99))
def test_subsets_are_nested(small: int, more: int, seed: int) -> None:
    labels = np.arange(30) % 3
    rows = np.arange(30)
    a = keep_per_class(labels, rows, count=small, seed=seed, classes=names(3))
    b = keep_per_class(labels, rows, count=small + more, seed=seed, classes=names(3))
    assert set(a.tolist()) <= set(b.tolist())
    assert np.bincount(labels[b]).tolist() == [small + more] * 3


def test_a_class_with_one_image_is_named() -> None:
    message = refusal(lambda: held(np.array([0, 0, 1, 2, 2])))
    assert "class1 (1)" in message
    assert "validation split" in message


def test_many_short_classes_are_counted() -> None:
    assert "class4 (1) and 3 more" in refusal(lambda: held(np.arange(8)))


def test_more_per_class_than_there_are_is_refused() -> None:
    labels = np.repeat([0, 1], [5, 3])
    message = misuse(lambda: keep_per_class(labels, np.arange(8), count=4, seed=0, classes=names(2)))
    assert "class1 (3)" in message
    assert "ask for 3 or fewer" in message and message.endswith("Where: --per-class.")


@pytest.mark.parametrize("count", [0, -1, True, 1.5])
def test_a_senseless_count_per_class_is_refused(count: int) -> None:
    labels = np.array([0, 0, 1, 1])
    misuse(lambda: keep_per_class(labels, np.arange(4), count=count, seed=0, classes=names(2)))


@pytest.mark.parametrize("fraction", [0, -0.1, 0.51, 1, float("nan"), True, "0.1", None])
def test_a_senseless_fraction_is_refused(fraction: float) -> None:
    message = misuse(lambda: check_fraction(fraction))
    assert "(0, 0.5]" in message and message.endswith("Where: --validation.")


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None, True])
def test_a_senseless_seed_is_refused(seed: int) -> None:
    assert "at least 0" in misuse(lambda: check_seed(seed))


def test_numpy_integers_are_seeds() -> None:
    assert check_seed(np.int64(3)) == 3  # type: ignore[arg-type]
