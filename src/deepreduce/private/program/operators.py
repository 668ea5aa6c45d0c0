"""How each operator of PyTorch becomes graph nodes. What is not in these tables is refused."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from .graph import Affine, Array, Node
from .operations import Concatenate, Convolution, Gather, Matrix, Reshape, Sum
from .pooling import average_pool, max_pool, pair


class Unsupported(Exception):  # noqa: N818 - becomes a NetworkError with its place
    """What does not convert, and what to do if that is not the general remedy."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


@dataclass(frozen=True)
class Call:
    """One call in the user's network.

    Attributes:
        name, source: its place.
        args, kwargs: as called, with graph nodes in place of the tensors that depend on the image.
        module: that was called, or None for a function or method.
        result: what PyTorch computed for a pair of blank images.
    """

    name: str
    source: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: nn.Module | None
    result: Any

    def node(self, op: Any, inputs: list[Node], shape: tuple[int, ...], **rest: Any) -> Node:
        """Make a node at this place."""
        return Node(op, inputs, shape, self.name, self.source, **rest)

    def bound(self, *names: str, **defaults: Any) -> list[Any]:
        """Return arguments by position or name, in the order of `names`."""
        values = dict(zip(names, self.args, strict=False)) | dict(self.kwargs)
        return [values.get(name, defaults.get(name)) for name in names]

    @property
    def source_node(self) -> Node:
        """The first argument, which must depend on the image."""
        first = self.args[0] if self.args else next(iter(self.kwargs.values()))
        if not isinstance(first, Node):
            raise Unsupported("an operator whose first argument does not depend on the image")
        return first


def _array(value: Any, what: str) -> Array:
    if isinstance(value, Node):
        raise Unsupported(f"{what} that depends on the image")
    return np.ascontiguousarray(
        value.detach().double().numpy() if isinstance(value, Tensor) else value, dtype=np.float64
    )


def _same_place(call: Call) -> Node:
    return call.source_node


def _convolution(call: Call) -> Node:
    if call.module is not None:
        m = call.module
        assert isinstance(m, nn.Conv2d)
        x, weight, bias = call.source_node, m.weight, m.bias
        stride, padding, dilation, groups = m.stride, m.padding, m.dilation, m.groups
        if m.padding_mode != "zeros":
            x, padding = _bordered(call, x, m), (0, 0)
    else:
        x, weight, bias, stride, padding, dilation, groups = call.bound(
            "input",
            "weight",
            "bias",
            "stride",
            "padding",
            "dilation",
            "groups",
            stride=1,
            padding=0,
            dilation=1,
            groups=1,
        )
    kernel = _array(weight, "a weight")
    stride, dilation = pair(stride), pair(dilation)
    if padding == "valid":
        sides = (0, 0, 0, 0)
    elif padding == "same":  # the odd one goes to the far side, as in PyTorch
        total = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
        sides = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    else:
        high, wide = pair(padding)
        sides = (high, high, wide, wide)
    if not isinstance(x, Node) or len(x.shape) != 3:
        raise Unsupported("a convolution of something that is not a feature map")
    op = Convolution(tuple(kernel.shape), stride, sides, dilation, int(groups))
    return call.node(op, [x], tuple(call.result.shape[1:]), weight=kernel, bias=_channel_bias(bias))


def _bordered(call: Call, x: Node, convolution: nn.Conv2d) -> Node:
    """Return a feature map with the border of its own elements that a convolution pads it with."""
    numbers = torch.arange(1, x.size + 1, dtype=torch.float64).reshape(1, *x.shape)
    border = convolution._reversed_padding_repeated_twice
    moved = F.pad(numbers, border, mode=convolution.padding_mode)[0]
    index = (moved.reshape(-1).long().numpy() - 1).astype(np.int32)
    return Node(Gather(index), [x], tuple(moved.shape), f"{call.name}:border", call.source)


def _channel_bias(bias: Any) -> Array | None:
    return None if bias is None else _array(bias, "a bias").reshape(-1, 1, 1)


def _linear(call: Call) -> Node:
    if call.module is not None:
        assert isinstance(call.module, nn.Linear)
        x, weight, bias = call.source_node, call.module.weight, call.module.bias
    else:
        x, weight, bias = call.bound("input", "weight", "bias")
    if not isinstance(x, Node):
        raise Unsupported("a linear layer of something that is not the image's")
    matrix = _array(weight, "a weight")
    if len(x.shape) == 1:
        own = None if bias is None else _array(bias, "a bias")
        return call.node(Matrix(tuple(matrix.shape)), [x], tuple(call.result.shape[1:]), weight=matrix, bias=own)
    raise Unsupported(
        f"a linear layer over tensors of shape {x.shape}",
        "flatten to (batch, features) first, or use a 1x1 convolution",
    )


def _matrix_product(call: Call) -> Node:
    x, weight = call.bound("input", "other") if call.kwargs.get("mat2") is None else call.bound("input", "mat2")
    return _times(call, x, weight, None)


def _matrix_product_and_sum(call: Call) -> Node:
    bias, x, weight = call.bound("input", "mat1", "mat2")
    if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("beta", 1) != 1:
        raise Unsupported("addmm with alpha or beta other than 1", "multiply first")
    return _times(call, x, weight, bias)


def _times(call: Call, x: Any, weight: Any, bias: Any) -> Node:
    """Return x @ weight + bias for the features of an image and a constant matrix."""
    if isinstance(x, Node) and isinstance(weight, Node):
        raise Unsupported("the product of two tensors that depend on the image", "attention has no linear form")
    if not isinstance(x, Node) or len(x.shape) != 1 or np.ndim(weight) != 2:
        raise Unsupported(
            "a matrix product other than of (batch, features) with a constant matrix behind it", "use a linear layer"
        )
    matrix = np.ascontiguousarray(_array(weight, "a weight").T)
    own = None if bias is None else np.broadcast_to(_array(bias, "a bias").reshape(-1), matrix.shape[:1]).copy()
    return call.node(
        Matrix((matrix.shape[0], matrix.shape[1])), [x], tuple(call.result.shape[1:]), weight=matrix, bias=own
    )


def _batch_norm(call: Call) -> Node:
    m = call.module
    if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)):
        x, mean, var, gamma, beta, eps = call.source_node, m.running_mean, m.running_var, m.weight, m.bias, m.eps
    else:
        x, mean, var, gamma, beta, training, _, eps = call.bound(
            "input",
            "running_mean",
            "running_var",
            "weight",
            "bias",
            "training",
            "momentum",
            "eps",
            training=False,
            eps=1e-5,
        )
        if training and m is None:
            raise Unsupported("batch norm with training=True", "pass training=self.training")
    if mean is None or var is None:
        raise Unsupported("batch norm without running statistics", "train with track_running_stats=True")
    assert isinstance(x, Node)
    scale = 1 / np.sqrt(_array(var, "a variance") + eps)
    if gamma is not None:
        scale = scale * _array(gamma, "a weight")
    shift = -_array(mean, "a mean") * scale
    if beta is not None:
        shift = shift + _array(beta, "a bias")
    form = (-1, *[1] * (len(x.shape) - 1))
    return call.node(Affine(), [x], x.shape, weight=scale.reshape(form), bias=shift.reshape(form))


def _constant(value: Any, shape: tuple[int, ...]) -> Array:
    """Return a constant operand in a form that broadcasts to one image's shape."""
    array = _array(value, "an operand")
    if array.ndim > len(shape):
        if array.shape[0] != 1:
            raise Unsupported("a constant with a batch dimension", "give it the shape of one image")
        array = array.reshape(array.shape[1:])
    array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if np.broadcast_shapes(array.shape, shape) != shape:
        raise Unsupported(f"a constant of shape {array.shape} that enlarges {shape}", "expand the tensor first")
    return array


def _addition(sign: int) -> Callable[[Call], Node]:
    def build(call: Call) -> Node:
        a, b = call.bound("input", "other")
        if call.kwargs.get("alpha", 1) != 1:
            raise Unsupported("an addition with alpha other than 1", "multiply first")
        if isinstance(a, Node) and isinstance(b, Node):
            if a.shape != b.shape:
                raise Unsupported(f"the sum of shapes {a.shape} and {b.shape}", "give both branches the same shape")
            return call.node(Sum((0, 0), (1, sign)), [a, b], a.shape)
        x, constant = (a, b) if isinstance(a, Node) else (b, a)
        assert isinstance(x, Node)
        own, other = (1, sign) if x is a else (sign, 1)
        form = (1,) * len(x.shape)
        return call.node(
            Affine(), [x], x.shape, weight=np.full(form, float(own)), bias=other * _constant(constant, x.shape)
        )

    return build


def _product(call: Call) -> Node:
    a, b = call.bound("input", "other")
    if isinstance(a, Node) and isinstance(b, Node):
        raise Unsupported(
            "the product of two tensors that depend on the image",
            "gates such as squeeze-and-excitation have no linear form",
        )
    x, constant = (a, b) if isinstance(a, Node) else (b, a)
    return call.node(Affine(), [x], x.shape, weight=_constant(constant, x.shape))


def _quotient(call: Call) -> Node:
    a, b = call.bound("input", "other")
    if not isinstance(a, Node) or isinstance(b, Node):
        raise Unsupported("a division by something that depends on the image")
    return call.node(Affine(), [a], a.shape, weight=1 / _constant(b, a.shape))


def _negation(call: Call) -> Node:
    x = call.source_node
    return call.node(Affine(), [x], x.shape, weight=np.full((1,) * len(x.shape), -1.0))


def _concatenation(call: Call) -> Node:
    tensors, axis = call.bound("tensors", "dim", dim=0)
    if not all(isinstance(each, Node) for each in tensors):
        raise Unsupported("a concatenation with a constant", "add it after the network's first layer")
    axis = axis if axis >= 0 else axis + len(tensors[0].shape) + 1
    if axis == 0:
        raise Unsupported("a concatenation of images along the batch")
    return call.node(Concatenate(axis - 1, (0,) * len(tensors)), list(tensors), tuple(call.result.shape[1:]))


def _stack(call: Call) -> Node:
    tensors, axis = call.bound("tensors", "dim", dim=0)
    if not all(isinstance(each, Node) for each in tensors):
        raise Unsupported("a stack with a constant", "add it after the network's first layer")
    shape = tuple(call.result.shape[1:])
    axis = axis % (len(shape) + 1)
    if axis == 0:
        raise Unsupported("a stack of images along the batch")
    # Side by side as vectors, and then in their places: a shape of many dimensions goes with what reads it.
    size = tensors[0].size
    flat = [Node(Reshape(), [x], (size,), f"{call.name}:{i}", call.source) for i, x in enumerate(tensors)]
    vector = call.node(Concatenate(0, (0,) * len(flat)), flat, (size * len(flat),))
    places = np.arange(size * len(flat), dtype=np.int32).reshape(len(flat), *tensors[0].shape)
    index = np.ascontiguousarray(np.moveaxis(places, 0, axis - 1)).reshape(-1)
    return Node(Gather(index), [vector], shape, f"{call.name}:stack", call.source)


def _average(call: Call) -> Node:
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


def _adaptive(call: Call) -> Node:
    x = call.source_node
    spans = []
    for axis in range(2):
        size, outputs = x.shape[1 + axis], call.result.shape[2 + axis]
        spans.append([(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)])
    return _pooled(call, x, spans, [[b - a for a, b in axis] for axis in spans], None)


def _over_dimensions(*, mean: bool) -> Callable[[Call], Node]:
    def build(call: Call) -> Node:
        x, dims, _ = call.bound("input", "dim", "keepdim")
        dims = [dims] if isinstance(dims, int) else list(dims or [])
        if not isinstance(x, Node):
            raise Unsupported("a sum of something that is not the image's")
        axes = sorted(dim % (len(x.shape) + 1) for dim in dims)
        if not axes or axes[0] == 0:
            raise Unsupported(f"a sum or mean over dimensions {dims}", "leave the batch as it is")
        shape = tuple(call.result.shape[1:])
        if axes[-1] - axes[0] >= len(axes):  # they do not lie side by side: the others go in front
            order = [axis for axis in range(1, len(x.shape) + 1) if axis not in axes] + axes
            places = np.arange(x.size, dtype=np.int32).reshape(x.shape).transpose([axis - 1 for axis in order])
            index = np.ascontiguousarray(places).reshape(-1)
            x = Node(Gather(index), [x], places.shape, f"{call.name}:order", call.source)
            axes = list(range(len(x.shape) - len(axes) + 1, len(x.shape) + 1))
        before, inside, after = (
            math.prod(x.shape[first:last])
            for first, last in ((0, axes[0] - 1), (axes[0] - 1, axes[-1]), (axes[-1], len(x.shape)))
        )
        flat = Node(Reshape(), [x], (before, inside, after), f"{call.name}:in", call.source)
        columns = [(place, place + 1) for place in range(after)]
        divisor = None if mean else 1.0
        total = average_pool(call.name, call.source, flat, [[(0, inside)], columns], [[inside], [1] * after], divisor)
        return Node(Reshape(), [total], shape, f"{call.name}:out", call.source)

    return build


def _pooled(
    call: Call, x: Node, spans: list[list[tuple[int, int]]], counts: list[list[int]], divisor: float | None
) -> Node:
    if len(x.shape) != 3:
        raise Unsupported("pooling of something that is not a feature map")
    return average_pool(call.name, call.source, x, spans, counts, divisor)


def _max(call: Call) -> Node:
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


def _adaptive_max(call: Call) -> Node:
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


def movement(source: Node, moved: Tensor, call: Call) -> Node:
    """Make the node of an operation that only moves elements.

    Args:
        source: what it reads.
        moved: its result on two images whose elements are numbered from 1; 0 is a padded zero.
        call: its place.

    Raises:
        Unsupported: if elements of one image reach another, or anything but a zero was put in.
    """
    first, second = (
        moved[0].reshape(-1).long().numpy(),
        moved[1].reshape(-1).long().numpy() if len(moved) == 2 else None,
    )
    agrees = second is not None and np.array_equal(second, np.where(first > 0, first + source.size, first))
    if not agrees or first.min(initial=0) < 0 or first.max(initial=0) > source.size:
        raise Unsupported("an operation that mixes images or fills in values other than zero")
    shape = tuple(moved.shape[1:])
    index = (first - 1).astype(np.int32)
    if np.array_equal(index, np.arange(source.size)):
        return source if shape == source.shape else call.node(Reshape(), [source], shape)
    return call.node(Gather(index), [source], shape)


SHAPE_MODULES = (
    nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d,
    nn.UpsamplingNearest2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
)  # fmt: skip
SHAPE_FUNCTIONS: set[Any] = {
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.chunk,
    torch.split, operator.getitem, F.pad, F.pixel_shuffle, F.channel_shuffle, torch.unflatten, torch.flip, torch.roll,
    torch.movedim, torch.swapaxes, torch.unbind, torch.narrow, torch.select, torch.index_select, torch.tile,
    torch.repeat_interleave, torch.tensor_split, F.pixel_unshuffle,
}  # fmt: skip
SHAPE_METHODS = {
    "flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "chunk", "split", "contiguous",
    "unflatten", "clone", "flip", "view_as", "reshape_as", "roll", "movedim", "swapaxes", "unbind", "narrow", "select",
    "index_select", "tile", "repeat", "expand", "repeat_interleave", "tensor_split",
}  # fmt: skip
NEAREST = ("nearest", "nearest-exact")
"""Modes of resizing that only copy elements."""

MODULES: dict[type[nn.Module], Callable[[Call], Node]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.Identity: _same_place,
    nn.Dropout: _same_place,
    nn.Dropout1d: _same_place,
    nn.Dropout2d: _same_place,
    nn.AlphaDropout: _same_place,
    nn.AvgPool2d: _average,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.MaxPool2d: _max,
    nn.AdaptiveMaxPool2d: _adaptive_max,
}

TRACED_MODULES: dict[str, Callable[[Call], Node]] = {
    "FunctionalBatchNorm": _batch_norm,
    "FunctionalDropout": _same_place,
}
"""By class name: what tracing puts in place of functions that obey the training mode."""

FUNCTIONS: dict[Any, Callable[[Call], Node]] = {
    torch.conv2d: _convolution,
    F.conv2d: _convolution,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    torch.add: _addition(1),
    operator.add: _addition(1),
    operator.iadd: _addition(1),
    torch.sub: _addition(-1),
    operator.sub: _addition(-1),
    operator.isub: _addition(-1),
    torch.mul: _product,
    operator.mul: _product,
    operator.imul: _product,
    torch.div: _quotient,
    operator.truediv: _quotient,
    operator.itruediv: _quotient,
    torch.neg: _negation,
    operator.neg: _negation,
    torch.cat: _concatenation,
    torch.concat: _concatenation,
    torch.stack: _stack,
    torch.mean: _over_dimensions(mean=True),
    torch.sum: _over_dimensions(mean=False),
    torch.matmul: _matrix_product,
    torch.mm: _matrix_product,
    operator.matmul: _matrix_product,
    torch.addmm: _matrix_product_and_sum,
    F.avg_pool2d: _average,
    F.adaptive_avg_pool2d: _adaptive,
    F.max_pool2d: _max,
    F.max_pool2d_with_indices: _max,
    torch.max_pool2d: _max,
    F.adaptive_max_pool2d: _adaptive_max,
    F.dropout: _same_place,
    F.dropout2d: _same_place,
}

METHODS: dict[str, Callable[[Call], Node]] = {
    "add": _addition(1),
    "add_": _addition(1),
    "sub": _addition(-1),
    "sub_": _addition(-1),
    "mul": _product,
    "mul_": _product,
    "div": _quotient,
    "div_": _quotient,
    "neg": _negation,
    "mean": _over_dimensions(mean=True),
    "sum": _over_dimensions(mean=False),
    "matmul": _matrix_product,
    "mm": _matrix_product,
    "float": _same_place,
    "double": _same_place,
    "to": _same_place,
}
