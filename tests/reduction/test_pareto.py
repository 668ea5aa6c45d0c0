"""The front against its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deepreduce.reduction import pareto_front

Point = tuple[int, float]


def front(points: list[Point]) -> list[Point]:
    return pareto_front(points, cost=lambda p: p[0], accuracy=lambda p: p[1])


def test_an_example() -> None:
    assert front([(100, 0.9), (50, 0.8), (60, 0.7), (50, 0.6), (10, 0.1)]) == [(10, 0.1), (50, 0.8), (100, 0.9)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9).map(float))))
def test_exactly_the_points_that_no_other_beats(points: list[Point]) -> None:
    def beats(one: Point, other: Point) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    found = front(points)
    assert set(found) == {p for p in points if not any(beats(q, p) for q in points)}
    assert found == sorted(set(found))


def test_of_equal_items_the_first_stays() -> None:
    items = [("a", 5, 0.5), ("b", 5, 0.5)]
    assert pareto_front(items, cost=lambda i: i[1], accuracy=lambda i: i[2]) == [("a", 5, 0.5)]


def test_nothing_in_nothing_out() -> None:
    assert front([]) == []
