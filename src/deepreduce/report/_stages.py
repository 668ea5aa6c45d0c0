"""The stage map as data: one row per network, one group of bars per stage, one bar per ReLU layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from deepreduce.report._seconds import on_a_front
from deepreduce.report._words import number
from deepreduce.report.front import Json


@dataclass(frozen=True)
class Bar:
    """One ReLU layer.

    Attributes:
        name: the call site.
        relus: how many ReLUs the layer computes; for a removed layer, how many it would.
        kept: whether they are there.
    """

    name: str
    relus: float
    kept: bool


@dataclass(frozen=True)
class Stage:
    """The ReLU layers of one stage of one network; `relus` counts those that are there."""

    name: str
    relus: float
    bars: tuple[Bar, ...]

    @property
    def kept(self) -> int:
        """How many layers keep their ReLUs."""
        return sum(bar.kept for bar in self.bars)

    @property
    def words(self) -> str:
        """The stage in words, for those who do not see the bars."""
        if not self.bars:
            return f"{self.name}: no ReLU layer"
        return f"{self.name}: {self.kept} of {len(self.bars)} ReLU layers kept, {self.relus:,.0f} ReLUs"


def full_network(front: Json) -> tuple[Stage, ...]:
    """Return the network before any reduction, from the census."""
    return tuple(
        _stage(stage["name"], [Bar(layer["name"], number(layer["relus"]) or 0, True) for layer in stage["layers"]])
        for stage in front["census"]["stages"]
    )


def stages_of(front: Json, entry: Json) -> tuple[Stage, ...]:
    """Return the stages of one entry, in the order of the full network.

    A stage that the entry does not list is there without bars. A removed layer that says nothing about its size takes
    that of the same call site in the full network.
    """
    full = full_network(front)
    sizes = {(stage.name, bar.name): bar.relus for stage in full for bar in stage.bars}
    own = {stage["name"]: stage for stage in entry["stages"] or []}
    found = []
    for name in dict.fromkeys([*(stage.name for stage in full), *own]):
        layers = own[name]["layers"] if name in own else []
        bars = [
            Bar(
                layer["name"],
                number(layer["relus"]) or _from_shape(layer.get("shape")) or sizes.get((name, layer["name"]), 0),
                bool(layer.get("kept", True)),
            )
            for layer in layers
        ]
        found.append(_stage(name, bars))
    return tuple(found)


def map_rows(front: Json) -> list[tuple[Json, tuple[Stage, ...]]]:
    """Return the rows of the stage map: the full network (with the teacher's entry), then the fronts, largest first."""
    teacher = front["teacher"]
    return [
        (teacher, full_network(front) or stages_of(front, teacher)),
        *((entry, stages_of(front, entry)) for entry in on_a_front(front)),
    ]


@dataclass(frozen=True)
class Scale:
    """Height of a bar in (0, 1]: one equal step per factor of two, so that 65,536 and 1,024 can stand side by side."""

    smallest: float
    largest: float

    @classmethod
    def of(cls, rows: Iterable[tuple[Stage, ...]]) -> Scale:
        """Return the scale on which all bars of `rows` fit."""
        sizes = [bar.relus for stages in rows for stage in stages for bar in stage.bars if bar.relus > 0]
        return cls(min(sizes, default=1.0), max(sizes, default=1.0))

    def height(self, relus: float) -> float:
        """Return the height for a layer of `relus` ReLUs, from 0.2 for the smallest to 1 for the largest."""
        span = math.log2(self.largest / self.smallest)
        if span == 0:
            return 1.0
        position = math.log2(max(relus, self.smallest) / self.smallest) / span
        return 0.2 + 0.8 * min(1.0, position)


def _stage(name: str, bars: list[Bar]) -> Stage:
    return Stage(name, sum(bar.relus for bar in bars if bar.kept), tuple(bars))


def _from_shape(shape: object) -> float:
    if not isinstance(shape, list) or not shape or not all(number(side) for side in shape):
        return 0
    return float(math.prod(shape))
