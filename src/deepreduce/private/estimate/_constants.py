"""The measured constants: one data file per protocol, in `constants/`.

A file has `protocol`, `title`, `source`, `hardware` and `date` of all its numbers, `not_accounted` (what an estimate
leaves out, a sentence each) and `constants`: by name a `value`, its `unit`, and `how` it came about. One that was
measured later than the others has a `date`, a `load_average` and a `command` of its own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Constants:
    """One data file.

    Attributes:
        title: of the protocol, for people.
        source: where the numbers come from.
        hardware, date: of the measurement.
        not_accounted: what an estimate leaves out.
        values: by name.
    """

    title: str
    source: str
    hardware: str
    date: str
    not_accounted: tuple[str, ...]
    values: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Constants:
        """Read the form of the files."""
        return cls(
            title=content["title"],
            source=content["source"],
            hardware=content["hardware"],
            date=content["date"],
            not_accounted=tuple(content["not_accounted"]),
            values={name: float(entry["value"]) for name, entry in content["constants"].items()},
        )


@functools.cache
def constants_of(protocol: str) -> Constants:
    """Return the constants of `ours`, `delphi` or `cheetah`."""
    file = resources.files(__package__) / "constants" / f"{protocol}.json"
    return Constants.from_json(json.loads(file.read_text(encoding="utf-8")))
