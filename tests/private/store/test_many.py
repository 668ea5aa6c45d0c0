"""A store with many bundles: what one more, or one less, costs does not grow with them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deepreduce.private.store import BundleName, BundleStore, StoreFull
from deepreduce.private.store import store as store_module

from .conftest import PROGRAM, SESSION

Put = Callable[..., BundleName]


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each reading of a folder with their sizes and times has found."""
    seen: list[int] = []
    read = store_module.regular_files

    def recorded(directory: int) -> list[tuple[str, os.stat_result]]:
        found = read(directory)
        seen.append(len(found))
        return found

    monkeypatch.setattr(store_module, "regular_files", recorded)
    return seen


def size_of(folder: Path) -> int:
    (one,) = folder.rglob("*.bundle")
    return one.stat().st_size


def test_a_bundle_more_does_not_look_at_the_others(
    folder: Path, store: BundleStore, put: Put, listings: list[int]
) -> None:
    put(store, 0)
    store.limit_bytes = 50 * size_of(folder)
    listings.clear()
    for number in range(1, 50):
        put(store, number)
    assert len(listings) == 1
    with pytest.raises(StoreFull):
        put(store, 50)
    assert len(listings) == 2  # it looked before it refused
    numbers(store, 20)
    listings.clear()
    for number in range(50, 70):
        put(store, number)
    assert len(listings) == 1
    with pytest.raises(StoreFull):
        put(store, 70)


def test_the_limit_holds_for_all_who_use_the_folder(folder: Path, store: BundleStore, put: Put) -> None:
    put(store, 0)
    limit = 10 * size_of(folder)
    stores = [
        store,
        BundleStore(folder, program=PROGRAM, role="client"),
        BundleStore(folder, program=PROGRAM, role="server"),
    ]
    for one in stores:
        one.limit_bytes = limit
    for number in range(1, 10):
        put(stores[number % 3], number)
    for one in stores:
        with pytest.raises(StoreFull):
            put(one, 10)


def numbers(store: BundleStore, count: int) -> list[int]:
    """Take some bundles, and tell which they were."""
    taken = store.take_next(count)
    for bundle in taken:
        bundle.close()
    return [bundle.name.number for bundle in taken]


def test_bundles_are_taken_without_reading_the_folder_for_each(
    store: BundleStore, put: Put, listings: list[int]
) -> None:
    for number in range(30):
        put(store, number)
    listings.clear()
    taken = [number for _ in range(6) for number in numbers(store, 4)]
    put(store, 30)
    taken += [number for _ in range(3) for number in numbers(store, 4)]
    assert taken == list(range(31)) and store.take_next() == []
    assert len(listings) <= 4


def test_what_others_took_is_passed_over_and_what_they_made_is_found(
    folder: Path, store: BundleStore, put: Put
) -> None:
    for number in range(4):
        put(store, number)
    other = BundleStore(folder, program=PROGRAM, role="client")
    assert numbers(store, 1) == [0]
    assert numbers(other, 3) == [1, 2, 3]
    put(other, 4)
    assert numbers(store, 2) == [4]


def test_counting_stops_where_it_is_told(store: BundleStore, put: Put, place: Path) -> None:
    for number in range(5):
        put(store, number)
    (place / "note.txt").write_text("no bundle")
    (place / BundleName(bytes(16), 9).file_name).mkdir()
    assert store.sessions() == {SESSION, bytes(16)}  # a name is enough where nothing is taken
    assert [store.count(), store.count(3), store.count(5), store.count(9), store.count(0)] == [5, 3, 5, 5, 0]
