"""The description of a network survives JSON and refuses what is out of range."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.errors import UsageError
from deepreduce.networks import NetworkSpec

sides = st.integers(1, 4096)


def test_an_example() -> None:
    spec = NetworkSpec("resnet18", (3, 32, 32), 100)
    assert spec.to_json() == {"name": "resnet18", "input": [3, 32, 32], "classes": 100, "width": 1.0}


@given(
    name=st.text(),
    input=st.tuples(sides, sides, sides),
    classes=st.integers(2, 10**6),
    width=st.floats(0, 16, exclude_min=True),
)
def test_json_gives_the_same_spec_back(name: str, input: tuple[int, int, int], classes: int, width: float) -> None:
    spec = NetworkSpec(name, input, classes, width)
    again = NetworkSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert hash(again) == hash(spec)


@pytest.mark.parametrize(
    "size", [(3, 32), (3, 32, 32, 1), (0, 8, 8), (3, 4097, 8), (3, -8, 8), (3, 8.0, 8), (True, 8, 8)]
)
def test_refuses_a_size_that_is_none(size: Any) -> None:
    with pytest.raises(UsageError, match="channels x height x width"):
        NetworkSpec("resnet18", size, 10)


@pytest.mark.parametrize("classes", [1, 0, -5, 10.0, 10**9, True])
def test_refuses_a_number_of_classes_that_is_none(classes: Any) -> None:
    with pytest.raises(UsageError, match="classes"):
        NetworkSpec("resnet18", (3, 8, 8), classes)


@pytest.mark.parametrize("width", [0, -1, 17, float("nan"), float("inf"), "1"])
def test_refuses_a_width_out_of_range(width: Any) -> None:
    with pytest.raises(UsageError, match="width"):
        NetworkSpec("resnet18", (3, 8, 8), 10, width)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"name": None},
        {"input": "3x8x8"},
        {"input": [3, 8]},
        {"input": [3, 8, 8.0]},
        {"input": [3, 8, True]},
        {"input": {"0": 3}},
        {"classes": "10"},
        {"classes": 10.0},
        {"classes": None},
        {"width": "1"},
        {"width": float("nan")},
        {"width": 10**400},
        {"width": True},
    ],
)
def test_refuses_json_of_another_type(change: dict[str, Any]) -> None:
    value = {**NetworkSpec("resnet18", (3, 8, 8), 10).to_json(), **change}
    with pytest.raises(ValueError, match=next(iter(change))):
        NetworkSpec.from_json(value)


@pytest.mark.parametrize("missing", ["name", "input", "classes", "width"])
def test_refuses_json_with_a_field_missing(missing: str) -> None:
    value = NetworkSpec("resnet18", (3, 8, 8), 10).to_json()
    del value[missing]
    with pytest.raises(ValueError, match=missing):
        NetworkSpec.from_json(value)
    with pytest.raises(ValueError, match="input"):
        NetworkSpec.from_json([value])  # type: ignore[arg-type]
