"""Fields of JSON that anyone may have written."""

from __future__ import annotations

from typing import Any

import pytest

from deepreduce._json import json_field, json_list


def test_an_example() -> None:
    value = {"name": "resnet18", "input": [3, 32, 32], "width": 1, "thin": False, "inner": {"a": 1}}
    assert json_field(value, "name", str) == "resnet18"
    assert json_list(value, "input", int, length=3) == [3, 32, 32]
    assert isinstance(json_field(value, "width", float), float)
    assert json_field(value, "thin", bool) is False
    assert json_field(value, "inner", dict) == {"a": 1}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1", int),
        (1.0, int),
        (True, int),
        (None, int),
        (True, float),
        ("0.5", float),
        (float("nan"), float),
        (float("-inf"), float),
        (10**400, float),
        (1, bool),
        (0, str),
        (["a"], str),
        ([], dict),
    ],
)
def test_another_type_is_refused_and_the_field_is_named(value: Any, kind: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"the field 'x' must be .*, not") as caught:
        json_field({"x": value}, "x", kind)
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match=r"the field 'x' must be .*, not"):
        json_list({"x": [value]}, "x", kind)


@pytest.mark.parametrize("value", [[1, 2], (1, 2, 3), "123", {"0": 1}, None, 3])
def test_a_list_of_the_right_length(value: Any) -> None:
    with pytest.raises(ValueError, match="the field 'x' must"):
        json_list({"x": value}, "x", int, length=3)


def test_what_is_missing_or_no_object() -> None:
    with pytest.raises(ValueError, match="'x' is missing"):
        json_field({}, "x", int)
    for value in (None, [], "x", 3):
        with pytest.raises(ValueError, match="object"):
            json_field(value, "x", int)
        with pytest.raises(ValueError, match="must be a list"):
            json_list(value, "x", int)
