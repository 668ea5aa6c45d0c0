"""How operators that look at windows, or at whole dimensions, become graph nodes: averages, sums and maxima."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from .calls import Call, Unsupported
from .graph import Node
from .operations import Gather, Reshape
from .pooling import average_pool, max_pool, pair


def average(call: Call) -> Node:
    """Convert average pooling with a window of its own."""
    x = call.source_node
    m = call.module
    if isinstance(m, nn.AvgPool2d):
        args = (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override)
    else:
        args = tuple(
            call.bound(
                "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
                padding=0, ceil_mode=False, count_include_pad=True,
            )[1:]
        )  # fmt: skip
    kernel, stride, padding, ceil_mode, include, divisor = args
    return _pooled(call, x, *_windows(x, call, kernel, stride, padding, ceil_mode, include, divisor))


def _windows(
    x: Node, call: Call, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, include: bool, divisor: Any
) -> tuple[list[list[tuple[int, int]]], list[list[int]], float | None]:
    """Return per axis the window [start, end) of every output, cut to the padded map, and the length it counts as."""
    del ceil_mode  # the shape of PyTorch's own result says what it did
    kernels, pads = pair(kernel), pair(padding)
    strides = kernels if not stride else pair(stride)
    spans, counts = [], []
    for axis in range(2):
        size, k, s, p = x.shape[1 + axis], kernels[axis], strides[axis], pads[axis]
        starts = [i * s - p for i in range(call.result.shape[2 + axis])]
        spans.append([(max(a, 0), min(a + k, size)) for a in starts])
        counts.append([min(a + k, size + p) - a if include else min(a + k, size) - max(a, 0) for a in starts])
    return spans, counts, None if divisor is None else float(divisor)


def adaptive_average(call: Call) -> Node:
    """Convert average pooling to a size."""
    x = call.source_node
    spans = []
    for axis in range(2):
        size, outputs = x.shape[1 + axis], call.result.shape[2 + axis]
        spans.append([(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)])
    return _pooled(call, x, spans, [[b - a for a, b in axis] for axis in spans], None)


def over_dimensions(*, mean: bool) -> Callable[[Call], Node]:
    """Return what converts a sum, or a mean, over any dimensions but that of the batch."""

    def build(call: Call) -> Node:
        x, dims, _ = call.bound("input", "dim", "keepdim")
        dims = [dims] if isinstance(dims, int) else list(dims or [])
        if not isinstance(x, Node):
            raise Unsupported("a sum of something that is not the image's")
        if call.result.dtype not in (torch.float32, torch.float64):
            raise Unsupported(f"a sum as {call.result.dtype}", "leave out dtype")
        axes = sorted(dim % (len(x.shape) + 1) for dim in dims)
        if not axes or axes[0] == 0:
            raise Unsupported(f"a sum or mean over dimensions {dims}", "leave the batch as it is")
        shape = tuple(call.result.shape[1:])
        if not shape:
            raise Unsupported("a sum or mean that leaves no dimension of an image", "keep one: keepdim=True")
        if axes[-1] - axes[0] >= len(axes):  # they do not lie side by side: the others go in front
            order = [axis for axis in range(1, len(x.shape) + 1) if axis not in axes] + axes
            places = np.arange(x.size, dtype=np.int32).reshape(x.shape).transpose([axis - 1 for axis in order])
            index = np.ascontiguousarray(places).reshape(-1)
            x = Node(Gather(index), [x], places.shape, f"{call.name}:order", call.source)
            axes = list(range(len(x.shape) - len(axes) + 1, len(x.shape) + 1))
        divisor = None if mean else 1.0
        if axes == [2, 3] and len(x.shape) == 3:  # global pooling, as layers around it know it
            height, width = x.shape[1:]
            spans = [[(0, height)], [(0, width)]]
            total = average_pool(call.name, call.source, x, spans, [[height], [width]], divisor)
            return total if total.shape == shape else call.node(Reshape(), [total], shape)
        before, inside, after = (
            math.prod(x.shape[first:last])
            for first, last in ((0, axes[0] - 1), (axes[0] - 1, axes[-1]), (axes[-1], len(x.shape)))
        )
        flat = Node(Reshape(), [x], (before, inside, after), f"{call.name}:in", call.source)
        columns = [(place, place + 1) for place in range(after)]
        total = average_pool(call.name, call.source, flat, [[(0, inside)], columns], [[inside], [1] * after], divisor)
        return Node(Reshape(), [total], shape, f"{call.name}:out", call.source)

    return build


def _pooled(
    call: Call, x: Node, spans: list[list[tuple[int, int]]], counts: list[list[int]], divisor: float | None
) -> Node:
    if len(x.shape) != 3:
        raise Unsupported("pooling of something that is not a feature map")
    return average_pool(call.name, call.source, x, spans, counts, divisor)


def maximum(call: Call) -> Node:
    """Convert max pooling with a window of its own."""
    x = call.source_node
    m = call.module
    if isinstance(m, nn.MaxPool2d):
        args = [m.kernel_size, m.stride, m.padding, m.dilation, m.return_indices]
    else:
        args = call.bound(
            "input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices",
            padding=0, dilation=1, return_indices=False,
        )[1:]  # fmt: skip
        args = [*args[:4], args[5]]
    kernel, stride, padding, dilation, indices = args
    if indices or isinstance(call.result, tuple):
        raise Unsupported("max pooling that returns indices", "leave return_indices at False")
    if len(x.shape) != 3:
        raise Unsupported("pooling of something that is not a feature map")
    strides = pair(kernel) if not stride else pair(stride)
    rows, columns = (
        [
            [a for a in (i * s - p + t * d for t in range(k)) if 0 <= a < size]
            for i in range(call.result.shape[2 + axis])
        ]
        for axis, (k, s, p, d, size) in enumerate(
            zip(pair(kernel), strides, pair(padding), pair(dilation), x.shape[1:], strict=True)
        )
    )
    if not all(rows) or not all(columns):
        raise Unsupported("max pooling with a window that sees padding alone", "lower dilation or padding")
    return max_pool(call.name, call.source, x, rows, columns)


def adaptive_maximum(call: Call) -> Node:
    """Convert max pooling to a size."""
    if isinstance(call.result, tuple):
        raise Unsupported("max pooling that returns indices", "leave return_indices at False")
    x = call.source_node
    rows, columns = (
        [
            list(range(i * size // outputs, -(-(i + 1) * size // outputs)))
            for outputs in [call.result.shape[2 + axis]]
            for i in range(outputs)
        ]
        for axis, size in enumerate(x.shape[1:])
    )
    return max_pool(call.name, call.source, x, rows, columns)
