"""One linear map in place of a region of the graph, exact at the borders too.

A region is a set of linear nodes that lead into one node, its output; its entries are the nodes it reads from
outside. Seen from one entry it is a linear map, and where a row of the output depends on no zero padding *inside* the
region, that map is a convolution of the entry (padded with zeros, if need be). Two padded convolutions in a row are
not a convolution near the border: there the rows and columns that an inner padding reaches ("unclean" ones) get
kernels of their own. So a map to feature maps is put together from at most nine pieces: interior, four edges, four
corners. All kernels come from propagating windows of derivatives backwards through the region, clipped where the
padding lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor

from .graph import Array, Node, evaluate
from .operations import Concatenate, Convolution, Gather, Matrix, Reshape, Sum, SumPool

_PORTION = 1 << 23
"""Most elements of a map times the unit vectors that go through it together."""


@dataclass(frozen=True)
class Region:
    """A region of the graph.

    Attributes:
        output: its last node.
        inside: all its nodes in order, the output last.
        entries: the nodes outside that it reads.
    """

    output: Node
    inside: tuple[Node, ...]
    entries: tuple[Node, ...]


@dataclass(frozen=True)
class _Axis:
    """How the rows (or columns) of one node depend on those of an entry.

    Row i reads entry rows i·stride + low .. i·stride + high, if the entry were zero-padded without end and no other
    padding existed. `first` .. `last` are the rows where that padded value can be other than zero; `clean` says of
    each actual row whether it equals that value.
    """

    stride: int
    low: int
    high: int
    first: int
    last: int
    clean: tuple[bool, ...]

    def behind(self, kernel: int, stride: int, dilation: int, before: int, outputs: int) -> _Axis:
        """Return the dependence after a window operation with `before` padded rows in front."""
        size = len(self.clean)
        reach = dilation * (kernel - 1)

        def holds(row: int) -> bool:
            return self.clean[row] if 0 <= row < size else not self.first <= row <= self.last

        clean = tuple(all(holds(i * stride - before + dilation * tap) for tap in range(kernel)) for i in range(outputs))
        return _Axis(
            self.stride * stride,
            self.low - before * self.stride,
            self.high + (reach - before) * self.stride,
            -(-(self.first + before - reach) // stride),
            (self.last + before) // stride,
            clean,
        )

    def groups(self) -> list[tuple[int, int, bool]] | None:
        """Return runs (start, end, clean) of rows, at most unclean, clean, unclean; None if there are more."""
        runs: list[tuple[int, int, bool]] = []
        for row, clean in enumerate(self.clean):
            if runs and runs[-1][2] == clean:
                runs[-1] = (runs[-1][0], row + 1, clean)
            else:
                runs.append((row, row + 1, clean))
        return runs if sum(clean for _, _, clean in runs) <= 1 else None


def _join(axes: Sequence[_Axis]) -> _Axis | None:
    if len({axis.stride for axis in axes}) > 1 or len({len(axis.clean) for axis in axes}) > 1:
        return None
    return _Axis(
        axes[0].stride,
        min(axis.low for axis in axes),
        max(axis.high for axis in axes),
        min(axis.first for axis in axes),
        max(axis.last for axis in axes),
        tuple(map(all, zip(*(axis.clean for axis in axes), strict=True))),
    )


def _stack(axes: Sequence[_Axis]) -> _Axis | None:
    """Return the dependence of parts of a map one behind the other: as in the longest, and unclean in the others.

    So it is with averages, whose windows are cut short at the border and divide by less there.
    """
    sizes = [len(axis.clean) for axis in axes]
    starts = [sum(sizes[:index]) for index in range(len(axes))]
    main = _main(sizes)
    stride = axes[main].stride
    if any(axis.stride != stride and len(axis.clean) > 1 for axis in axes):
        return None
    clean = [index == main and own for index, axis in enumerate(axes) for own in axis.clean]
    return _Axis(
        stride,
        min(axis.low - start * stride for axis, start in zip(axes, starts, strict=True)),
        max(axis.high - start * stride for axis, start in zip(axes, starts, strict=True)),
        axes[main].first + starts[main],
        axes[main].last + starts[main],
        tuple(clean),
    )


def _main(sizes: Sequence[int]) -> int:
    """Return which of a map's parts clean rows are of: the longest, the first of several."""
    return sizes.index(max(sizes))


def dependence(region: Region, entry: Node) -> tuple[_Axis, _Axis] | None:
    """Return how rows and columns of the output depend on an entry; None if not by a convolution anywhere."""
    if len(entry.shape) != 3 or len(region.output.shape) != 3:
        return None
    found: dict[Node, tuple[_Axis, _Axis]] = {}
    own = [_Axis(1, 0, 0, 0, size - 1, (True,) * size) for size in entry.shape[1:]]
    found[entry] = (own[0], own[1])
    for node in region.inside:
        reached = [found[before] for before in node.inputs if before in found]
        if not reached:
            continue
        op = node.op
        if isinstance(op, (Convolution, SumPool)):
            kernel = op.kernel if isinstance(op, SumPool) else op.weight_shape[2:]
            dilation = (1, 1) if isinstance(op, SumPool) else op.dilation
            rows, columns = (
                reached[0][a].behind(kernel[a], op.stride[a], dilation[a], op.padding[2 * a], node.shape[1 + a])
                for a in range(2)
            )
        elif isinstance(op, Sum) or (isinstance(op, Concatenate) and op.axis == 0):
            joined = [_join([pair[a] for pair in reached]) for a in range(2)]
            if joined[0] is None or joined[1] is None:
                return None
            rows, columns = joined[0], joined[1]
        elif isinstance(op, Concatenate) and len(reached) == len(node.inputs):
            along = op.axis - 1
            stacked = _stack([pair[along] for pair in reached])
            across = _join([pair[1 - along] for pair in reached])
            if stacked is None or across is None:
                return None
            rows, columns = (across, stacked) if along else (stacked, across)
        else:
            return None
        found[node] = (rows, columns)
    return found.get(region.output)


@dataclass(frozen=True)
class Piece:
    """A rectangle of output positions with one kernel (interior), or a kernel each (edges and corners).

    Attributes:
        rows, columns: of the output: start, end, and whether they share a kernel.
        op: the convolution that computes it; its outputs are (channel, own row, own column) of unshared positions.
        origin: entry row and column at which the kernel of the first position begins.
    """

    rows: tuple[int, int, bool]
    columns: tuple[int, int, bool]
    op: Convolution
    origin: tuple[int, int]


def plan(region: Region, entry: Node) -> list[list[Piece]] | None:
    """Return bands of pieces for the map from an entry to feature maps; None if a matrix is what it takes."""
    axes = dependence(region, entry)
    if axes is None:
        return None
    groups = [axis.groups() for axis in axes]
    if groups[0] is None or groups[1] is None or not any(clean for each in groups for _, _, clean in each or []):
        return None
    outputs, bands = region.output.shape[0], []
    for rows in groups[0]:
        band = []
        for columns in groups[1]:
            spans = []
            channels = outputs
            for axis, (start, end, clean), size in zip(axes, (rows, columns), entry.shape[1:], strict=True):
                low, high = start * axis.stride + axis.low, (end - 1) * axis.stride + axis.high
                if clean:
                    spans.append((low, axis.high - axis.low + 1, axis.stride, -low, high + 1 - size))
                else:
                    low, high = max(low, 0), min(high, size - 1)
                    if high < low:  # it sees padding alone
                        low, high = 0, 0
                    spans.append((low, high - low + 1, 1, -low, high + 1 - size))
                    channels *= end - start
            (top, height, down, above, below), (left, width, right, before, after) = spans
            op = Convolution((channels, entry.shape[0], height, width), (down, right), (above, below, before, after))
            band.append(Piece(rows, columns, op, (top, left)))
        bands.append(band)
    return bands


@dataclass
class _Window:
    """Derivatives of some outputs with respect to a patch of a feature map, [outputs, channels, height, width]."""

    values: Tensor
    top: int
    left: int


def _clip(window: _Window, shape: tuple[int, ...], rows: bool, columns: bool) -> _Window | None:
    values, top, left = window.values, window.top, window.left
    if rows:
        low, high = max(top, 0), min(top + values.shape[2], shape[1])
        if high <= low:
            return None
        values, top = values[:, :, low - top : high - top], low
    if columns:
        low, high = max(left, 0), min(left + values.shape[3], shape[2])
        if high <= low:
            return None
        values, left = values[:, :, :, low - left : high - left], low
    return _Window(values, top, left)


def _whole(window: _Window, shape: tuple[int, ...]) -> Tensor:
    values = window.values
    out = values.new_zeros(values.shape[0], *shape)
    out[:, :, window.top : window.top + values.shape[2], window.left : window.left + values.shape[3]] = values
    return out


def _union(a: _Window | None, b: _Window) -> _Window:
    if a is None:
        return b
    top, left = min(a.top, b.top), min(a.left, b.left)
    bottom = max(a.top + a.values.shape[2], b.top + b.values.shape[2])
    right = max(a.left + a.values.shape[3], b.left + b.values.shape[3])
    total = a.values.new_zeros(*a.values.shape[:2], bottom - top, right - left)
    for each in (a, b):
        rows, columns = each.top - top, each.left - left
        height, width = each.values.shape[2:]
        total[:, :, rows : rows + height, columns : columns + width] += each.values
    return _Window(total, top, left)


def _backward(node: Node, window: _Window, clipped: tuple[bool, bool]) -> list[_Window | None]:
    """Return the derivatives with respect to each input of a node, before clipping; vectors are (n, 1, 1).

    Parts of a map have those of their own rows and columns. Where those of the window are not `clipped` they are
    clean: all of them, also beyond the map, are of the part that `_stack` goes by, as if it had no end.
    """
    op, values = node.op, window.values
    if isinstance(op, (Convolution, SumPool)):
        channels = node.inputs[0].shape[0]
        if isinstance(op, Convolution):
            assert node.weight is not None
            weight, groups, dilation = torch.from_numpy(node.weight), op.groups, op.dilation
        else:
            weight = torch.full((channels, 1, *op.kernel), node.factor, dtype=torch.float64)
            groups, dilation = channels, (1, 1)
        out = F.conv_transpose2d(values, weight, None, op.stride, 0, 0, groups, dilation)
        return [_Window(out, window.top * op.stride[0] - op.padding[0], window.left * op.stride[1] - op.padding[2])]
    if isinstance(op, Matrix):
        assert node.weight is not None
        return [_Window((values.flatten(1) @ torch.from_numpy(node.weight))[:, :, None, None], 0, 0)]
    if isinstance(op, Sum):
        return [_Window(values * sign, window.top, window.left) for sign in op.signs]
    if isinstance(op, Reshape):
        whole = _whole(window, _planes(node.shape))
        return [_Window(whole.reshape(whole.shape[0], *_planes(node.inputs[0].shape)), 0, 0)]
    if isinstance(op, Gather):
        whole = _whole(window, _planes(node.shape)).flatten(1)
        inside = torch.from_numpy(np.flatnonzero(op.index >= 0))
        back = whole.new_zeros(whole.shape[0], node.inputs[0].size)
        back.index_add_(1, torch.from_numpy(op.index[op.index >= 0].astype(np.int64)), whole[:, inside])
        return [_Window(back.reshape(whole.shape[0], *_planes(node.inputs[0].shape)), 0, 0)]
    assert isinstance(op, Concatenate), op
    sizes = [before.shape[op.axis] for before in node.inputs]
    start, parts = 0, list[_Window | None]()
    for number, size in enumerate(sizes):
        if op.axis == 0:
            parts.append(_Window(values[:, start : start + size], window.top, window.left))
        elif clipped[op.axis - 1] or number == _main(sizes):
            down, right = (start, 0) if op.axis == 1 else (0, start)
            parts.append(_Window(values, window.top - down, window.left - right))
        else:
            parts.append(None)
        start += size
    return parts


def _planes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) == 3 else (*shape, 1, 1)


def _derivatives(region: Region, entry: Node, start: _Window, *, rows: bool, columns: bool) -> _Window | None:
    """Propagate derivatives from the output back to an entry, clipped to the actual maps along the given axes."""
    pending: dict[Node, _Window] = {region.output: start}
    for node in reversed(region.inside):
        window = pending.pop(node, None)
        if window is None:
            continue
        for before, back in zip(node.inputs, _backward(node, window, (rows, columns)), strict=True):
            clipped = None if back is None else _clip(back, _planes(before.shape), rows, columns)
            if clipped is not None:
                pending[before] = _union(pending.get(before), clipped)
    return pending.get(entry)


def piece_weight(region: Region, entry: Node, piece: Piece) -> Array:
    """Return the kernel of a piece, `piece.op.weight_shape`."""
    outputs = region.output.shape[0]
    own_rows = [piece.rows[0]] if piece.rows[2] else list(range(*piece.rows[:2]))
    own_columns = [piece.columns[0]] if piece.columns[2] else list(range(*piece.columns[:2]))
    height, width = piece.op.weight_shape[2:]
    kernel = torch.zeros(outputs, len(own_rows), len(own_columns), entry.shape[0], height, width, dtype=torch.float64)
    for r, row in enumerate(own_rows):
        for c, column in enumerate(own_columns):
            start = _Window(torch.eye(outputs, dtype=torch.float64)[:, :, None, None], row, column)
            found = _derivatives(region, entry, start, rows=not piece.rows[2], columns=not piece.columns[2])
            if found is None:
                continue
            top, left = found.top - piece.origin[0], found.left - piece.origin[1]
            h, w = found.values.shape[2:]
            kernel[:, r, c, :, top : top + h, left : left + w] = found.values
    return np.ascontiguousarray(kernel.reshape(piece.op.weight_shape).numpy())


def matrix_weight(region: Region, entry: Node) -> Array:
    """Return the whole map as a matrix, [elements of the output, elements of the entry].

    Unit vectors go through the region from its smaller end, a portion at a time: all of them at once would take
    gigabytes.
    """
    outputs, inputs = region.output.size, entry.size
    portion = max(1, _PORTION // max(node.size for node in (entry, *region.inside)))
    weight = np.zeros((outputs, inputs))
    for start in range(0, min(outputs, inputs), portion):
        part = slice(start, min(start + portion, outputs, inputs))
        if inputs < outputs:
            weight[:, part] = _answers(region, entry, _units(part, inputs)).T
            continue
        unit = _units(part, outputs).reshape(-1, *_planes(region.output.shape))
        found = _derivatives(region, entry, _Window(unit, 0, 0), rows=True, columns=True)
        if found is not None:
            weight[part] = _whole(found, _planes(entry.shape)).flatten(1).numpy()
    return weight


def _units(part: slice, size: int) -> Tensor:
    """Return some rows of the identity matrix."""
    rows = torch.zeros(part.stop - part.start, size, dtype=torch.float64)
    rows[:, part].fill_diagonal_(1.0)
    return rows


def _answers(region: Region, entry: Node, vectors: Tensor) -> Array:
    """Return what the region makes of vectors at one entry, [n, elements of the output], without its biases."""
    batch = len(vectors)
    values = {other: vectors.new_zeros(batch, *other.shape) for other in region.entries}
    values[entry] = vectors.reshape(batch, *entry.shape)
    for node in region.inside:
        values[node] = evaluate(replace(node, bias=None), [values[before] for before in node.inputs])
    return values[region.output].flatten(1).numpy()


def constant(region: Region) -> Array:
    """Return what the region gives when all its entries are zero: its bias, of the shape of the output."""
    values = {entry: torch.zeros(1, *entry.shape, dtype=torch.float64) for entry in region.entries}
    for node in region.inside:
        values[node] = evaluate(node, [values[before] for before in node.inputs])
    return values[region.output][0].numpy().copy()


def arm_sign(region: Region, entry: Node) -> int | None:
    """Return the sign of an entry that reaches the output through sums alone and once; None otherwise."""
    sign, node = 1, entry
    while node is not region.output:
        readers = [n for n in region.inside for before in n.inputs if before is node]
        if len(readers) != 1 or not isinstance(readers[0].op, Sum):
            return None
        reader = readers[0]
        assert isinstance(reader.op, Sum)
        sign *= reader.op.signs[reader.inputs.index(node)]
        node = reader
    return sign
