"""How a folder names its splits, shared by parquet files and image folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from deepreduce.errors import DataError, problem

ROLES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
}
"""Names of splits and what they stand for."""

_STEM = re.compile(rf"^({'|'.join(ROLES)})(?:[-_.]?\d.*)?$", re.IGNORECASE)

T = TypeVar("T")


def split_of_stem(stem: str) -> str | None:
    """Return the split that a file's name without suffix gives ('train-00000-of-00002' → 'train'), or None."""
    match = _STEM.match(stem)
    return match.group(1).lower() if match else None


@dataclass(frozen=True)
class Chosen(Generic[T]):
    """Which splits of a folder are read.

    Attributes:
        train_name: the training split as the folder names it.
        train: its files.
        test_name: the split that serves as the test split, if there is one.
        test: its files.
        notes: what a user should know of the choice.
    """

    train_name: str
    train: T
    test_name: str | None
    test: T | None
    notes: tuple[str, ...]


def choose(found: Mapping[str, T], *, folder: str) -> Chosen[T]:
    """Choose the training and the test split among those found.

    Args:
        found: per split name (a key of `ROLES`) its files.
        folder: name for errors.

    Raises:
        DataError: there is no training split, or two names stand for one role.
    """
    by_role: dict[str, str] = {}
    for name in sorted(found):
        role = ROLES[name]
        if role in by_role:
            raise DataError(
                problem(
                    f"a folder must have one {role} split",
                    got=f"two: {by_role[role]} and {name}",
                    remedy="remove or rename one of them",
                    where=f"folder {folder}",
                )
            )
        by_role[role] = name
    if "train" not in by_role:
        raise DataError(
            problem(
                "a folder must have a training split: train-*.parquet or train/CLASS/*.png",
                got=f"the splits {', '.join(sorted(found))}" if found else "no split at all",
                remedy="put the training images there, or name the subfolder that holds the splits",
                where=f"folder {folder}",
            )
        )
    test = by_role.get("test")
    validation = by_role.get("validation")
    notes: tuple[str, ...] = ()
    if test is None and validation is not None:
        test = validation
        notes = (f"the source has no test split: its {validation} split serves as the test split",)
    elif validation is not None:
        notes = (f"the source's own {validation} split is not used: validation images come from its training split",)
    train = by_role["train"]
    return Chosen(train, found[train], test, None if test is None else found[test], notes)
