"""The Pareto front of accuracy against ReLU count."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def pareto_front(items: Iterable[T], *, relus: Callable[[T], float], accuracy: Callable[[T], float]) -> list[T]:
    """Return the items that no other item beats, by rising ReLU count.

    An item is beaten by another that has no more ReLUs and no less accuracy, and is better in one of them; of equal
    items the first stays.
    """
    front: list[T] = []
    for item in sorted(items, key=lambda item: (relus(item), -accuracy(item))):
        if not front or accuracy(item) > accuracy(front[-1]):
            front.append(item)
    return front
