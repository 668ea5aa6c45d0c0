"""What names a network: a reference name, a user's own function, or a model of timm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .._arguments import check_type, is_number, is_whole, shown
from .._json import json_field, json_list
from ..errors import UsageError, problem


@dataclass(frozen=True)
class NetworkSpec:
    """The full-ReLU network that everything is compared with.

    Attributes:
        name: a reference name, `package.module:function`, or `timm:NAME`.
        input: channels, height and width of one image.
        classes: number of classes, at least 2.
        width: width multiplier of the base network; only reference networks take one other than 1.
        exchange_activations: whether what runs privately takes the place of other activations, gates and norms, see
            `deepreduce.reduction.exchange_activations`.
    """

    name: str
    input: tuple[int, int, int]
    classes: int
    width: float = 1.0
    exchange_activations: bool = False

    def __post_init__(self) -> None:
        """Check the types and the numbers; whether there is such a network is found out when it is built.

        Raises:
            UsageError: if something is of another type, or a number is out of range.
        """
        check_type("the network's name", self.name, str, where="NETWORK")
        check_type("exchange_activations", self.exchange_activations, bool, where="--exchange-activations")
        object.__setattr__(self, "input", size_of(self.input))
        if not is_whole(self.classes) or not 2 <= self.classes <= 1_000_000:
            raise UsageError(
                problem(
                    "a classifier has from 2 to 1,000,000 classes",
                    got=shown(self.classes),
                    remedy="give the number of classes of the data",
                    where="--classes",
                )
            )
        if not is_number(self.width) or not 0 < self.width <= 16:
            raise UsageError(
                problem(
                    "the width multiplier is a number above 0 and at most 16",
                    got=shown(self.width),
                    remedy="leave it at 1 for the published network",
                    where="--width",
                )
            )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, as in a recipe."""
        named = {"name": self.name, "input": list(self.input), "classes": self.classes, "width": self.width}
        return {**named, **({"exchange_activations": True} if self.exchange_activations else {})}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> NetworkSpec:
        """Rebuild a spec from `to_json`'s form.

        Raises:
            ValueError: if a field is missing, of another type, or not finite.
            UsageError: if a number is out of range.
        """
        channels, height, width = json_list(value, "input", int, length=3)
        return cls(
            json_field(value, "name", str),
            (channels, height, width),
            json_field(value, "classes", int),
            json_field(value, "width", float),
            json_field(value, "exchange_activations", bool) if "exchange_activations" in value else False,
        )


def size_of(input: object) -> tuple[int, int, int]:
    """Return the size of an image as three whole numbers.

    Raises:
        UsageError: if it is none.
    """
    sizes = () if isinstance(input, str) or not isinstance(input, Iterable) else tuple(input)
    if len(sizes) != 3 or not all(is_whole(n) and 1 <= n <= 4096 for n in sizes):
        raise UsageError(
            problem(
                "the input is channels x height x width, each a whole number from 1 to 4096",
                got=shown(input),
                remedy="write it like 3x32x32, from Python (3, 32, 32)",
                where="--input",
            )
        )
    channels, height, width = sizes
    return channels, height, width
