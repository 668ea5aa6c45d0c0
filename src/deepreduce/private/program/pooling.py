"""Average and max pooling over windows of any size, as nodes of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import Node, side_by_side
from .operations import MAX, Circuit, SumPool

Span = tuple[int, int]


def pair(value: Any) -> tuple[int, int]:
    """Return (vertical, horizontal) of PyTorch's one number or two."""
    if isinstance(value, (tuple, list)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))


@dataclass(frozen=True)
class _Run:
    """Neighbouring outputs whose windows have one length, one step and one divisor."""

    start: int
    length: int
    step: int
    outputs: int
    count: int


def average_pool(
    name: str, source: str, x: Node, spans: list[list[Span]], counts: list[list[int]], divisor: float | None
) -> Node:
    """Make the nodes of an average over windows.

    Windows cut short at the border, or uneven ones of adaptive pooling, divide by other numbers than the rest: the
    map is put together from pieces of even windows.

    Args:
        name, source: the place in the user's network.
        x: a feature map.
        spans: per axis (rows, columns) the window [start, end) of each output, within the map.
        counts: per axis the length that each window counts as; the divisor is the product over both axes.
        divisor: fixed divisor instead.
    """
    rows, columns = _runs(spans[0], counts[0]), _runs(spans[1], counts[1])
    channels, height, width = x.shape
    bands = []
    for r in rows:
        pieces = []
        for c in columns:
            op = SumPool(
                (r.length, c.length),
                (r.step, c.step),
                (-r.start, _end(r) - height, -c.start, _end(c) - width),
            )
            factor = 1 / (divisor if divisor is not None else r.count * c.count)
            shape = (channels, r.outputs, c.outputs)
            pieces.append(Node(op, [x], shape, _piece(name, len(rows) * len(columns), r, c), source, factor=factor))
        bands.append(side_by_side(pieces, 2, f"{name}[{r.start}:]", source))
    return side_by_side(bands, 1, name, source)


def _piece(name: str, pieces: int, r: _Run, c: _Run) -> str:
    return name if pieces == 1 else f"{name}[{r.start}:, {c.start}:]"


def _end(run: _Run) -> int:
    """Return where the last window of a run ends."""
    return run.start + (run.outputs - 1) * run.step + run.length


def _runs(spans: list[Span], counts: list[int]) -> list[_Run]:
    runs: list[_Run] = []
    for (start, end), count in zip(spans, counts, strict=True):
        length = end - start
        if runs and runs[-1].length == length and runs[-1].count == count:
            last = runs[-1]
            step = start - (last.start + (last.outputs - 1) * last.step)
            if (last.outputs == 1 and step > 0) or (last.outputs > 1 and step == last.step):
                runs[-1] = _Run(last.start, length, step, last.outputs + 1, count)
                continue
        runs.append(_Run(start, length, 1, 1, count))
    return runs


def max_pool(name: str, source: str, x: Node, rows: list[list[int]], columns: list[list[int]]) -> Node:
    """Make the node of a maximum over windows.

    Args:
        name, source: the place in the user's network.
        x: a feature map.
        rows, columns: per output row and column, the input rows and columns of its window, padding left out; none
            may be empty.
    """
    channels, height, width = x.shape
    longest = max(map(len, rows)) * max(map(len, columns))
    windows = np.full((channels, len(rows), len(columns), longest), -1, dtype=np.int32)
    planes = np.arange(channels, dtype=np.int32)[:, None] * (height * width)
    for i, own_rows in enumerate(rows):
        for j, own_columns in enumerate(columns):
            inside = np.array([r * width + c for r in own_rows for c in own_columns], dtype=np.int32)
            windows[:, i, j, : len(inside)] = planes + inside
    op = Circuit(MAX, width=0, dropped=0, windows=windows.reshape(-1, longest))
    return Node(op, [x], (channels, len(rows), len(columns)), name, source)
