"""The Pareto front of accuracy against ReLUs, or against whatever else a network costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def pareto_front(items: Iterable[T], *, cost: Callable[[T], float], accuracy: Callable[[T], float]) -> list[T]:
    """Return the items that no other item beats, by rising cost.

    An item is beaten by another that costs no more and has no less accuracy, and is better in one of them; of equal
    items the first stays.
    """
    front: list[T] = []
    for item in sorted(items, key=lambda item: (cost(item), -accuracy(item))):
        if not front or accuracy(item) > accuracy(front[-1]):
            front.append(item)
    return front
