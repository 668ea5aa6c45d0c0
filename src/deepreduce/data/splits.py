"""Which rows go where: stratified hold-out and subsets, the same on every machine.

Chance comes from the raw 64-bit words of NumPy's PCG64 (NEP 19 promises that a bit generator's words never change,
which it does not for `permutation` and `choice`). Every training row of the source gets one word; within a class the
rows with the smallest words are chosen. So a choice depends on the seed, the purpose and the row's own index alone:
never on the test split, and not on which classes are kept.
"""

from __future__ import annotations

import operator
from enum import IntEnum

import numpy as np
from jaxtyping import Int64, UInt64

from deepreduce._arguments import is_number, is_whole, shown
from deepreduce.errors import DataError, UsageError, problem

_Rows = Int64[np.ndarray, " rows"]


class Purpose(IntEnum):
    """What a choice is for; each purpose has its own stream of chance, so that no choice disturbs another."""

    TEST = 1
    SUBSET = 2
    VALIDATION = 3


def check_seed(seed: int) -> int:
    """Return `seed` as a plain int; a negative number or a non-integer raises UsageError."""
    try:
        value = operator.index(seed)
    except TypeError:
        value = -1
    if value < 0 or isinstance(seed, bool):
        raise UsageError(
            problem(
                "the seed must be an integer of at least 0", got=shown(seed), remedy="leave it out for 0", where="seed"
            )
        )
    return value


def check_fraction(fraction: float) -> float:
    """Return `fraction` if it lies in (0, 0.5]; anything else raises UsageError."""
    if not is_number(fraction) or not 0 < fraction <= 0.5:
        raise UsageError(
            problem(
                "the validation fraction must lie in (0, 0.5]",
                got=shown(fraction),
                remedy="hold out a tenth of the training images with 0.1",
                where="--validation",
            )
        )
    return float(fraction)


def chance(count: int, *, seed: int, purpose: Purpose) -> UInt64[np.ndarray, " count"]:
    """Return one random 64-bit word per row of the source.

    Args:
        count: rows of the source's training split.
        seed: any integer of at least 0.
        purpose: which stream.
    """
    stream = np.random.PCG64(np.random.SeedSequence([seed, int(purpose)]))
    return np.asarray(stream.random_raw(count), dtype=np.uint64)


def hold_out(
    labels: _Rows, rows: _Rows, *, fraction: float, seed: int, purpose: Purpose, classes: tuple[str, ...]
) -> tuple[_Rows, _Rows]:
    """Hold a fraction of every class out.

    Of a class with n rows, `fraction * n` rounded half up are held out, and never less than one, so every class is
    within one image of its share.

    Args:
        labels: class index of every training row of the source.
        rows: the rows to divide, ascending.
        fraction: in (0, 0.5].
        seed: of the choice.
        purpose: TEST or VALIDATION; names the hold-out in errors, too.
        classes: names, for errors.

    Returns:
        The rows that stay and the rows held out, both ascending; together they are `rows`.

    Raises:
        DataError: a class has fewer than two images.
    """
    counts = np.bincount(labels[rows], minlength=len(classes))
    few = [f"{classes[k]} ({counts[k]})" for k in np.flatnonzero(counts < 2)]
    if few:
        raise DataError(
            problem(
                f"every class must have at least two images, to give one to the {purpose.name.lower()} split",
                got=f"too few in {_listed(few)}",
                remedy="add images to these classes, or leave the classes out",
                where="training split",
            )
        )
    held = [
        chosen[: max(1, int(np.floor(fraction * len(chosen) + 0.5)))]
        for chosen in _by_class(labels, rows, seed=seed, purpose=purpose, classes=len(classes))
    ]
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(rows, out, assume_unique=True), out


def keep_per_class(labels: _Rows, rows: _Rows, *, count: int, seed: int, classes: tuple[str, ...]) -> _Rows:
    """Keep `count` rows of every class, chosen by the seed; a smaller count keeps a part of what a larger one keeps.

    Args:
        labels: class index of every training row of the source.
        rows: the rows to choose from, ascending.
        count: images to keep per class, at least 1.
        seed: of the choice.
        classes: names, for errors.

    Returns:
        The kept rows, ascending.

    Raises:
        UsageError: `count` is below 1, or a class has fewer than `count` images.
    """
    if not is_whole(count) or count < 1:
        raise UsageError(
            problem(
                "images per class must be an integer of at least 1",
                got=shown(count),
                remedy="give 100, or leave it out for all",
                where="--per-class",
            )
        )
    sizes = np.bincount(labels[rows], minlength=len(classes))
    few = [f"{classes[k]} ({sizes[k]})" for k in np.flatnonzero(sizes < count)]
    if few:
        raise UsageError(
            problem(
                f"every class must have the {count} training images that are asked for",
                got=f"fewer in {_listed(few)}",
                remedy=f"ask for {int(sizes.min())} or fewer, or leave it out for all",
                where="--per-class",
            )
        )
    groups = _by_class(labels, rows, seed=seed, purpose=Purpose.SUBSET, classes=len(classes))
    return np.sort(np.concatenate([chosen[:count] for chosen in groups]))


def _by_class(labels: _Rows, rows: _Rows, *, seed: int, purpose: Purpose, classes: int) -> list[_Rows]:
    """Return the rows of each class in the order of their random words."""
    words = chance(len(labels), seed=seed, purpose=purpose)
    ordered = rows[np.lexsort((words[rows], labels[rows]))]
    borders = np.searchsorted(labels[ordered], np.arange(1, classes))
    return np.split(ordered, borders)


def _listed(names: list[str]) -> str:
    """Return the first five names and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
