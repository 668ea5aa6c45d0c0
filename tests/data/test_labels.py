"""Labels to class indices. `test_names_of_the_source_keep_their_order` is the example to read first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from deepreduce.data.labels import Column, encode

from .small import refusal


def column(values: Sequence[Any] | np.ndarray, split: str = "train") -> Column:
    return Column(split, values, lambda row: f"row {row}")


def test_names_of_the_source_keep_their_order() -> None:
    train, test, classes = encode(column(np.array([1, 0])), column(np.array([0]), "test"), ("eel", "cat"))
    assert classes == ("eel", "cat")
    assert train.tolist() == [1, 0]
    assert test is not None
    assert test.tolist() == [0]


def test_unnamed_integers_are_named_by_their_numbers() -> None:
    assert encode(column(np.array([2, 0, 1], dtype=np.uint8)), None, None)[2] == ("0", "1", "2")


def test_strings_are_sorted_by_name() -> None:
    train, _, classes = encode(column(["b", "a", "B"]), None, None)
    assert classes == ("B", "a", "b")
    assert train.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("values", "names", "words"),
    [
        ([0, None, 1, None], None, ["(null) for 2 of 4", "row 1"]),
        (["a", None], None, ["(null) for 1 of 2", "row 1"]),
        (np.array([0.0, 1.0]), None, ["must be integers", "float64"]),
        (np.array([True, False]), None, ["must be integers", "bool"]),
        ([0, True], None, ["must be integers", "True", "row 1"]),
        ([0, "a"], None, ["must be integers", "'a'", "row 1"]),
        ([0, 2.5], None, ["2.5", "row 1"]),
        (np.array([b"a", b"b"]), None, ["must be integers"]),
        (np.eye(3, dtype=np.int64), None, ["one number per image", "[3, 3]", "one-hot"]),
        (np.array([0, -2, 1]), None, ["0 or more", "-2", "row 1"]),
        (np.array([0, -2, 1]), ("a", "b"), ["in [0, 1]", "-2", "row 1"]),
        (np.array([0, 1, 5, 5]), ("a", "b"), ["in [0, 1]", "5 (2 labels", "row 2"]),
        (np.array([0, 1, -1, -1]), ("a", "b"), ["label -1, which stands for none, on 2 of 4"]),
        (np.array([0, 1, 3]), None, ["no image of class 2, yet a label 3", "row 2"]),
        (np.array([0, 2**62]), None, ["no image of class 1", "row 1"]),
        (np.array([0, 2**64 - 1], dtype=np.uint64), None, ["63 bits", "row 1"]),
        (np.array([], dtype=np.int64), None, ["zero rows"]),
        ([], None, ["zero rows"]),
        (["a", "b"], ("a", "c"), ["'b'", "2 known classes", "row 1"]),
        ([0, 1], ("a", "a"), ["distinct"]),
        ([0, 1], ("a", ""), ["not empty"]),
    ],
)
def test_wrong_labels_are_refused(values: Any, names: tuple[str, ...] | None, words: list[str]) -> None:
    message = refusal(lambda: encode(column(values), None, names))
    for word in words:
        assert word in message


def test_a_test_split_without_labels_is_refused_with_a_remedy() -> None:
    message = refusal(lambda: encode(column(np.array([0, 1])), column(np.array([-1, -1]), "test"), ("a", "b")))
    assert "on 2 of 2 images" in message
    assert "test split, row 0" in message
    assert "validation split serves" in message


def test_a_test_label_without_training_images_is_refused() -> None:
    message = refusal(lambda: encode(column(["cat", "dog"]), column(["cat", "dogs"], "test"), None))
    assert "'dogs' (did you mean dog?)" in message
    assert "test split, row 1" in message
    refusal(lambda: encode(column(np.array([0, 1])), column(np.array([2]), "test"), None))
