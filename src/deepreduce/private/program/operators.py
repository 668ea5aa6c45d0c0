"""How each operator of PyTorch becomes graph nodes. What is not in these tables is refused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from .calls import Call, Unsupported
from .graph import Affine, Array, Node
from .movements import bordered, stack
from .operations import Concatenate, Convolution, Matrix, Sum
from .pooling import pair
from .windows import adaptive_average, adaptive_maximum, average, maximum, over_dimensions


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
            x, padding = bordered(call, x, m), (0, 0)
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
    if kernel.shape == (groups, 1, 1, 1) and groups == x.shape[0] and stride == (1, 1) and not any(sides):
        return call.node(Affine(), [x], x.shape, weight=kernel.reshape(-1, 1, 1), bias=_channel_bias(bias))
    op = Convolution(tuple(kernel.shape), stride, sides, dilation, int(groups))
    return call.node(op, [x], tuple(call.result.shape[1:]), weight=kernel, bias=_channel_bias(bias))


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
    own = None if bias is None else np.broadcast_to(_constant(bias, matrix.shape[:1]), matrix.shape[:1]).copy()
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
    nn.AvgPool2d: average,
    nn.AdaptiveAvgPool2d: adaptive_average,
    nn.MaxPool2d: maximum,
    nn.AdaptiveMaxPool2d: adaptive_maximum,
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
    torch.stack: stack,
    torch.mean: over_dimensions(mean=True),
    torch.sum: over_dimensions(mean=False),
    torch.matmul: _matrix_product,
    torch.mm: _matrix_product,
    operator.matmul: _matrix_product,
    torch.addmm: _matrix_product_and_sum,
    F.avg_pool2d: average,
    F.adaptive_avg_pool2d: adaptive_average,
    F.max_pool2d: maximum,
    F.max_pool2d_with_indices: maximum,
    torch.max_pool2d: maximum,
    F.adaptive_max_pool2d: adaptive_maximum,
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
    "mean": over_dimensions(mean=True),
    "sum": over_dimensions(mean=False),
    "matmul": _matrix_product,
    "mm": _matrix_product,
    "float": _same_place,
    "double": _same_place,
    "to": _same_place,
}
