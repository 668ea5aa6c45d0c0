"""What names a network: a reference name, a user's own function, or a model of timm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, problem


@dataclass(frozen=True)
class NetworkSpec:
    """The full-ReLU network that everything is compared with.

    Attributes:
        name: a reference name, `package.module:function`, or `timm:NAME`.
        input: channels, height and width of one image.
        classes: number of classes, at least 2.
        width: width multiplier of the base network; only reference networks take one other than 1.
    """

    name: str
    input: tuple[int, int, int]
    classes: int
    width: float = 1.0

    def __post_init__(self) -> None:
        """Check the numbers; the name is checked when the network is built.

        Raises:
            UsageError: if a number is out of range.
        """
        if len(self.input) != 3 or any(not isinstance(n, int) or not 1 <= n <= 4096 for n in self.input):
            raise UsageError(
                problem(
                    "the input is channels x height x width, each from 1 to 4096",
                    got="x".join(map(str, self.input)),
                    remedy="write it like 3x32x32",
                    where="--input",
                )
            )
        if not 2 <= self.classes <= 1_000_000:
            raise UsageError(
                problem(
                    "a classifier has at least 2 classes",
                    got=self.classes,
                    remedy="give the number of classes of the data",
                    where="--classes",
                )
            )
        if not 0 < self.width <= 16:
            raise UsageError(
                problem(
                    "the width multiplier is above 0 and at most 16",
                    got=self.width,
                    remedy="leave it at 1 for the published network",
                    where="--width",
                )
            )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, as in a recipe."""
        return {"name": self.name, "input": list(self.input), "classes": self.classes, "width": self.width}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> NetworkSpec:
        """Rebuild a spec from `to_json`'s form."""
        channels, height, width = (int(n) for n in value["input"])
        return cls(str(value["name"]), (channels, height, width), int(value["classes"]), float(value["width"]))
