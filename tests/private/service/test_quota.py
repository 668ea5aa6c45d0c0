"""Bundles of a day: counted for each client, forgotten after a day, and bounded in memory."""

from __future__ import annotations

import pytest

from deepreduce.private.service import quota
from deepreduce.private.service.quota import DAY_SECONDS, Quota


class Clock:
    now = 1e6

    def __call__(self) -> float:
        return self.now


def test_example_three_a_day() -> None:
    clock = Clock()
    counted = Quota(3, clock=clock)
    assert [counted.take("ann") for _ in range(4)] == [True, True, True, False]
    assert counted.left("ann") == 0 and counted.left("bob") == 3
    assert counted.take("bob") and counted.left("bob") == 2
    clock.now += DAY_SECONDS + 600
    assert counted.left("ann") == 3 and counted.take("ann")


def test_a_day_is_any_day() -> None:
    """What was made an hour ago counts whatever the date is, and goes a day after it was made."""
    clock = Clock()
    counted = Quota(2, clock=clock)
    assert counted.take("ann")
    clock.now += DAY_SECONDS / 2
    assert counted.take("ann") and not counted.take("ann")
    clock.now += DAY_SECONDS / 2 + 600
    assert counted.left("ann") == 1
    clock.now += DAY_SECONDS / 2
    assert counted.left("ann") == 2


def test_without_a_limit_nothing_is_counted() -> None:
    counted = Quota(None)
    assert all(counted.take("ann") for _ in range(1000)) and counted.left("ann") is None and not counted._made


def test_clients_without_end_take_no_memory_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "_MOST_CLIENTS", 10)
    clock = Clock()
    counted = Quota(1_000_000, clock=clock)
    for number in range(100):
        counted.take(str(number))
    assert len(counted._made) == 10 and counted.left("99") == 999_999
    for _ in range(10_000):
        clock.now += 60
        counted.take("99")
    assert len(counted._made["99"]) <= DAY_SECONDS / 600 + 2


def test_several_are_counted_and_given_back() -> None:
    clock = Clock()
    counted = Quota(5, clock=clock)
    assert counted.take("ann", 2)
    clock.now += 1200
    assert counted.take("ann", 3) and not counted.take("ann", 1)
    counted.give_back("ann", 4)
    assert counted.left("ann") == 4
    assert not counted.take("ann", 5) and counted.take("ann", 4)
    counted.give_back("bob", 3)
    counted.give_back("ann", 99)
    assert counted.left("bob") == counted.left("ann") == 5
