"""Reading JSON that anyone may have written: no key twice, the right types, finite numbers; or an error says so."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T", bool, int, float, str, dict[str, Any])

_WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", dict: "an object"}


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: if it is none, is not UTF-8, holds a NaN or an infinity, or a key twice in one object.
        RecursionError: if it is nested too deeply.
    """
    decoded = text.decode("utf-8") if isinstance(text, bytes) else text
    return json.loads(decoded, object_pairs_hook=_distinct, parse_constant=_refuse_constant)


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


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
