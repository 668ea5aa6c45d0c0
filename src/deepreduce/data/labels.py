"""Labels of a source as class indices, checked row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from deepreduce.errors import DataError, near_misses, problem


@dataclass(frozen=True)
class Column:
    """The labels of one split as the source holds them.

    Attributes:
        split: name of the split in the source ("train", "valid").
        values: integers, or strings; None stands for a missing label.
        where: file and row of an index, for errors.
    """

    split: str
    values: Sequence[Any] | np.ndarray
    where: Callable[[int], str]


def encode(
    train: Column, test: Column | None, names: tuple[str, ...] | None
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " m"] | None, tuple[str, ...]]:
    """Turn labels into class indices.

    Args:
        train: labels of the training split.
        test: labels of the test split, or None.
        names: the classes that the source names, in the order of their indices; None: strings become classes sorted
            by name, integers become the classes "0", "1", ....

    Returns:
        Training labels and test labels in [0, classes), and the names of the classes.

    Raises:
        DataError: a label is missing, not an integer, out of range, or names an unknown class.
    """
    values = _checked(train)
    if names is not None and (len(set(names)) != len(names) or not all(names)):
        raise DataError(
            problem(
                "class names must be distinct and not empty",
                got=f"{len(names)} names, {len(set(names))} of them distinct",
                remedy="rename the classes of the source",
            )
        )
    if isinstance(values, list):
        classes = names if names is not None else tuple(sorted(set(values)))
    else:
        classes = names if names is not None else _numbered(values, train)
    encoded = _indices(values, train, classes)
    return encoded, None if test is None else _indices(_checked(test), test, classes), classes


def _checked(column: Column) -> Int64[np.ndarray, " n"] | list[str]:
    """Return integers as int64, or a list of strings."""
    values = column.values
    if len(values) == 0:
        raise DataError(
            problem(
                f"the {column.split} split must have images",
                got="zero rows",
                remedy="add images, or remove the files of the split",
                where=f"{column.split} split",
            )
        )
    if isinstance(values, np.ndarray) and values.dtype.kind == "U" and values.ndim == 1:
        values = values.tolist()
    if isinstance(values, np.ndarray) and values.dtype != object:
        if values.ndim != 1:
            raise DataError(
                problem(
                    "labels must be one number per image",
                    got=f"an array of shape {list(values.shape)}",
                    remedy="give class indices of shape [n], not one-hot rows",
                    where=f"{column.split} split",
                )
            )
        if values.dtype.kind not in "iu":
            raise _not_integer(column, f"labels of type {values.dtype}", 0)
        if values.dtype == np.uint64 and len(values) and values.max() > np.iinfo(np.int64).max:
            row = int(values.argmax())
            raise _out_of_range(column, values[row], row, 1, "a number of 63 bits")
        return values.astype(np.int64, copy=False)
    values = list(values)
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        raise DataError(
            problem(
                "every image must have a label",
                got=f"no label (null) for {len(missing)} of {len(values)} images",
                remedy="drop these rows, or name another column with label_column",
                where=f"{column.split} split, {column.where(missing[0])}",
            )
        )
    if all(isinstance(value, str) for value in values):
        return values
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise _not_integer(column, repr(value), row)
    return np.asarray(values, dtype=np.int64)


def _not_integer(column: Column, got: str, row: int) -> DataError:
    return DataError(
        problem(
            "labels must be integers, or strings that name classes",
            got=got,
            remedy="store class indices as int64, or name another column with label_column",
            where=f"{column.split} split, {column.where(row)}",
        )
    )


def _out_of_range(column: Column, label: object, row: int, count: int, allowed: str) -> DataError:
    return DataError(
        problem(
            f"every label of the {column.split} split must be {allowed}",
            got=f"{label!s} ({count} labels out of range in all)",
            remedy="correct the labels, or name another column with label_column",
            where=f"{column.split} split, {column.where(row)}",
        )
    )


def _numbered(values: Int64[np.ndarray, " n"], column: Column) -> tuple[str, ...]:
    """Name the classes of unnamed integer labels by their numbers, without ever building a list of wild length."""
    bad = np.flatnonzero(values < 0)
    if len(bad):
        raise _out_of_range(column, values[bad[0]], int(bad[0]), len(bad), "0 or more")
    present = np.unique(values)
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if len(gaps):
        # The first row beyond the gap is the most useful one to look at.
        beyond = int(np.flatnonzero(values == present[gaps[0]])[0])
        raise DataError(
            problem(
                "every class must have a training image, and classes count from 0 without a gap",
                got=f"no image of class {int(gaps[0])}, yet a label {int(present[gaps[0]])}",
                remedy="number the classes 0, 1, 2, ..., or give labels as strings",
                where=f"{column.split} split, {column.where(beyond)}",
            )
        )
    return tuple(str(k) for k in range(len(present)))


def _indices(
    values: Int64[np.ndarray, " n"] | list[str], column: Column, classes: tuple[str, ...]
) -> Int64[np.ndarray, " n"]:
    """Return `values` as indices into `classes`."""
    if isinstance(values, list):
        index = {name: k for k, name in enumerate(classes)}
        for row, value in enumerate(values):
            if value not in index:
                raise DataError(
                    problem(
                        f"every label of the {column.split} split must be one of the {len(classes)} known classes",
                        got=f"{value!r}{near_misses(value, list(classes))}",
                        remedy="correct the label, or add training images of the class",
                        where=f"{column.split} split, {column.where(row)}",
                    )
                )
        return np.asarray([index[value] for value in values], dtype=np.int64)
    missing = np.flatnonzero(values == -1)
    if len(missing):
        raise DataError(
            problem(
                "every image must have a label",
                got=f"the label -1, which stands for none, on {len(missing)} of {len(values)} images",
                remedy="use a split whose labels are published: without its test files, a folder's validation split "
                "serves as the test split",
                where=f"{column.split} split, {column.where(int(missing[0]))}",
            )
        )
    bad = np.flatnonzero((values < 0) | (values >= len(classes)))
    if len(bad):
        allowed = f"in [0, {len(classes) - 1}], as there are {len(classes)} classes"
        raise _out_of_range(column, values[bad[0]], int(bad[0]), len(bad), allowed)
    return values
