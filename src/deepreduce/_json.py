"""Reading fields of JSON that anyone may have written: the right type and finite, or an error that names the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T", bool, int, float, str, dict[str, Any])

_WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", dict: "an object"}


def json_field(value: Any, name: str, kind: type[T]) -> T:
    """Return a field of a JSON object.

    Args:
        value: the object.
        name: of the field.
        kind: `bool`, `int`, `float` (takes whole numbers too), `str` or `dict`.

    Raises:
        ValueError: if `value` is not an object, or the field is missing, of another type, or not finite.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{type(value).__name__} where an object with {name!r} belongs")
    if name not in value:
        raise ValueError(f"the field {name!r} is missing")
    return _checked(value[name], name, kind)


def json_list(value: Any, name: str, kind: type[T], *, length: int | None = None) -> list[T]:
    """Return a field that is a list of values of one type; `length` fixes how many.

    Raises:
        ValueError: as `json_field`, or if there are more or fewer.
    """
    items = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(items, list):
        raise ValueError(f"the field {name!r} must be a list")
    if length is not None and len(items) != length:
        raise ValueError(f"the field {name!r} must have {length} values, not {len(items)}")
    return [_checked(item, name, kind) for item in items]


def _checked(value: Any, name: str, kind: type[T]) -> T:
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float and not isinstance(value, bool) and isinstance(value, (int, float)):
        fits = abs(value) <= 2**53 if isinstance(value, int) else math.isfinite(value)
    if not fits:
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge number"
        raise ValueError(f"the field {name!r} must be {_WORDS[kind]}, not {text[:80]}")
    return kind(value)
