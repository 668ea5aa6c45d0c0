"""What callers pass, looked at before anything is done with it: a wrong type is told in words of our own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, TypeGuard

from .errors import UsageError, problem

_KINDS: dict[type, str] = {
    str: "a text",
    Path: "a pathlib.Path",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    Real: "a number",
    dict: "a dictionary",
    NoneType: "None",
}
_LONGEST = 80


def is_whole(value: object) -> TypeGuard[int]:
    """Tell whether a value is a whole number, of Python or NumPy; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number, whole or not; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def as_plain(settings: Any) -> None:
    """Make the numbers of a frozen dataclass, and of its tuples, Python's own: NumPy's have no JSON."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, tuple):
            object.__setattr__(settings, field.name, tuple(map(_plain, value)))
        else:
            object.__setattr__(settings, field.name, _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float)) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def shown(value: object) -> str:
    """Return what came as an error shows it: as Python writes it, so that the text '1' is not taken for a number."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def check_type(name: str, value: object, *kinds: type, where: str | None = None) -> None:
    """Refuse an argument that is of none of some types.

    Args:
        name: of the argument.
        value: what came.
        kinds: types that it may have; `float` takes whole numbers too, and True and False go with `bool` alone.
        where: the option of the command line, or its word for an argument; None for `name`, where it has none.

    Raises:
        UsageError: naming what it may be.
    """
    fits = isinstance(value, kinds) or (float in kinds and is_number(value)) or (int in kinds and is_whole(value))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        words = list(dict.fromkeys(_KINDS.get(kind) or _named(kind) for kind in kinds))
        raise UsageError(
            problem(
                f"{name} must be {' or '.join([', '.join(words[:-1]), words[-1]] if len(words) > 1 else words)}",
                got=shown(value),
                remedy="pass one, or leave it out" if NoneType in kinds else "pass one",
                where=where or name,
            )
        )


def listed(name: str, values: Any, *, example: str, where: str | None = None) -> tuple[Any, ...]:
    """Return the values of a list, a tuple and the like; a text is refused: its letters are not what was meant.

    Raises:
        UsageError: with an example.
    """
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise UsageError(
            problem(
                f"{name} must be a list",
                got=shown(values),
                remedy=f"give one, such as {example}",
                where=where or name,
            )
        )
    return tuple(values)


def check_fields(
    settings: Any, *rules: tuple[str, bool, str], places: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuse the first setting of a dataclass that breaks its rule.

    Args:
        settings: the object.
        rules: of each a field's name, whether its value is fine, and what is allowed, in words.
        places: by name where the user set it, if that is not the option of the same name.

    Raises:
        UsageError: naming the setting, what is allowed, and its default.
    """
    defaults = {field.name: field.default for field in fields(settings)}
    for name, fine, allowed in rules:
        if not fine:
            default = defaults[name]
            leave = "leave it out" if default is None or default is MISSING else f"leave it out for {default}"
            raise UsageError(
                problem(
                    f"{name} must be {allowed}",
                    got=shown(getattr(settings, name)),
                    remedy=f"give such a value, or {leave}",
                    where=places.get(name, f"--{name.replace('_', '-')}"),
                )
            )


def _named(kind: type) -> str:
    root = kind.__module__.split(".")[0]
    return f"a {'torch.nn' if root == 'torch' else root}.{kind.__name__}"
