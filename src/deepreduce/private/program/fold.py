"""Folding batch norms, constants and pooling divisors into their neighbours; joining max pooling with its ReLU.

Every rewriting is exact over the reals:

* a scale and shift behind a convolution or matrix go into its weights and bias;
* in front of convolutions and matrices they go into those; the shift meets zero padding, so it becomes a bias per
  element there;
* in front of a ReLU, relu(g·x + b) = |g|·relu(sign(g)·x + b/|g|): only signs and a shift stay, |g| goes into what
  reads the ReLU. Else a depthwise multiplication would add its fraction bits to the ring of the whole branch;
* a pool's divisor goes into the layer behind it, so that the pool is a plain sum;
* max and ReLU commute, because both are monotone;
* a masked ReLU layer whose removed elements lie on lines, read by one convolution: that reads each channel that has
  both kinds of elements twice, and the slope goes into the second set of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...errors import NetworkError, problem
from .graph import Affine, Array, Graph, Node, evaluate
from .operations import (
    MAX,
    MAX_RELU,
    MAX_RELU6,
    RELU,
    RELU6,
    Circuit,
    Concatenate,
    Convolution,
    Gather,
    Matrix,
    Reshape,
    Sum,
    SumPool,
)

_MOST_DIMENSIONS = 3

_LARGEST_GROWTH = 4.0
"""How much of the format's precision the sign trick in front of a ReLU may cost: two bits."""


def fold(graph: Graph, images: Tensor) -> None:
    """Rewrite a graph in place until no affine node and no movable pool divisor is left.

    Args:
        graph: as converted.
        images: calibration images, float64; they decide only whether the sign trick is worth its precision.
    """
    _join_max_and_relu(graph)
    _until_stable(graph, _line_into_reader)
    for step in (_into_producer, _into_readers):
        _until_stable(graph, step)
    values = graph.run(images)
    _until_stable(graph, lambda g, n: _before_relu(g, n, values))
    _until_stable(graph, _into_producer)
    for node in graph.order():
        if isinstance(node.op, Affine):
            _lower(graph, node)
    _until_stable(graph, _into_producer_sum)
    _until_stable(graph, _pool_divisor)


def _until_stable(graph: Graph, step: Callable[[Graph, Node], bool]) -> None:
    changed = True
    while changed:
        changed = False
        for node in graph.order():
            if node in set(graph.order()) and step(graph, node):
                changed = True


def _only_reader(graph: Graph, node: Node) -> Node | None:
    readers = graph.readers()[node]
    return readers[0] if len(readers) == 1 and node is not graph.output else None


def _join_max_and_relu(graph: Graph) -> None:
    def join(graph: Graph, node: Node) -> bool:
        if not isinstance(node.op, Circuit) or not isinstance(node.inputs[0].op, Circuit):
            return False
        before, op = node.inputs[0], node.op
        first = before.op
        assert isinstance(first, Circuit)
        if _only_reader(graph, before) is not node:
            return False
        if first.kind in (RELU, RELU6) and first.kept is None and op.kind == MAX:
            kind, windows, name = first.kind, op.windows, before
        elif first.kind == MAX and op.kind in (RELU, RELU6) and op.kept is None:
            kind, windows, name = op.kind, first.windows, node
        else:
            return False
        joined = Circuit(MAX_RELU if kind == RELU else MAX_RELU6, 0, 0, windows=windows)
        graph.replace(node, Node(joined, before.inputs, node.shape, name.name, name.source))
        return True

    _until_stable(graph, join)


def _flat(array: Array, shape: tuple[int, ...]) -> Array | None:
    """Return one number per leading channel if the array is constant over the rest, else None."""
    full = np.broadcast_to(array, shape).reshape(shape[0], -1)
    return full[:, 0].copy() if bool((full == full[:, :1]).all()) else None


def _bias(affine: Node) -> Array:
    return np.zeros((1,) * len(affine.shape)) if affine.bias is None else affine.bias


def _into_producer(graph: Graph, node: Node) -> bool:
    """Fold an affine node into the convolution, matrix or affine node that only it reads."""
    if not isinstance(node.op, Affine):
        return False
    before = node.inputs[0]
    if not isinstance(before.op, (Convolution, Matrix, Affine)) or _only_reader(graph, before) is not node:
        return False
    assert node.weight is not None and before.weight is not None
    bias = _bias(before) * node.weight + _bias(node)
    if isinstance(before.op, Affine):
        weight = before.weight * node.weight
    else:
        scale = _flat(node.weight, node.shape)
        if scale is None:
            return False
        weight = before.weight * scale.reshape(-1, *[1] * (before.weight.ndim - 1))
    merged = Node(before.op, before.inputs, before.shape, before.name, before.source, weight, bias)
    graph.replace(node, merged)
    return True


def _into_producer_sum(graph: Graph, node: Node) -> bool:
    """Move the bias of a one-armed sum into the linear node before it."""
    if not isinstance(node.op, Sum) or len(node.inputs) != 1 or node.op.signs != (1,):
        return False
    before = node.inputs[0]
    if not isinstance(before.op, (Convolution, Matrix, Sum)) or _only_reader(graph, before) is not node:
        return False
    before.bias = _bias(before) + _bias(node)
    graph.replace(node, before)
    return True


def _into_readers(graph: Graph, node: Node) -> bool:
    """Fold an affine node into all the convolutions and matrices that read it."""
    if not isinstance(node.op, Affine) or node is graph.output:
        return False
    readers = graph.readers()[node]
    if not readers or not all(isinstance(reader.op, (Convolution, Matrix)) for reader in readers):
        return False
    assert node.weight is not None
    scale = _flat(node.weight, node.shape)
    if scale is None:
        return False
    for reader in dict.fromkeys(readers):
        if node.bias is not None:
            constant = torch.from_numpy(np.broadcast_to(node.bias, node.shape).copy())[None]
            without = replace_bias(reader, None)
            reader.bias = compact(_bias(reader) + evaluate(without, [constant])[0].numpy())
        reader.weight = _scale_inputs(reader, scale)
        reader.inputs = [node.inputs[0]]
    return True


def _line_into_reader(graph: Graph, node: Node) -> bool:
    """Let a convolution read the ReLUs of a masked layer and what lies on lines as channels of their own."""
    if not isinstance(node.op, Convolution) or node.op.groups != 1:
        return False
    both = node.inputs[0]  # as `convert` makes it
    if not isinstance(both.op, Sum) or both.bias is not None or _only_reader(graph, both) is not node:
        return False
    if len(both.inputs) != 2 or both.op.signs != (1, 1) or node.weight is None:
        return False
    kept, removed = both.inputs
    if not isinstance(kept.op, Gather) or not isinstance(removed.op, Gather):
        return False
    layer, line = kept.inputs[0], removed.inputs[0]
    if not isinstance(line.op, Affine) or line.inputs[0] is not layer or line.weight is None:
        return False
    own = np.arange(both.size)  # every element at its place, in one of the two
    if layer.shape != both.shape or not np.array_equal(np.maximum(kept.op.index, removed.op.index), own):
        return False
    if not np.array_equal(np.minimum(kept.op.index, removed.op.index), np.full(both.size, -1)):
        return False
    slope = _flat(line.weight, line.shape)
    if slope is None:
        return False
    channels = node.weight.shape[1]
    parts = [part.reshape(channels, *both.shape[1:]) for part in (kept.op.index, removed.op.index)]
    first, second = ((part >= 0).reshape(channels, -1).any(axis=1) for part in parts)
    index = np.concatenate([parts[0][first], parts[1][second]])
    constant = np.where(parts[1] >= 0, np.broadcast_to(_bias(line), both.shape), 0.0)
    shift = evaluate(replace_bias(node, None), [torch.from_numpy(constant)[None]])[0].numpy()
    weight = np.concatenate([node.weight[:, first], node.weight[:, second] * slope[second][:, None, None]], axis=1)
    split = Node(Gather(index.reshape(-1)), [layer], index.shape, f"{layer.name}:split", layer.source)
    op = replace(node.op, weight_shape=weight.shape)
    bias = compact(_bias(node) + shift)
    graph.replace(node, Node(op, [split], node.shape, node.name, node.source, weight, bias))
    return True


def replace_bias(node: Node, bias: Array | None) -> Node:
    """Return a copy of a node with another bias."""
    return Node(node.op, node.inputs, node.shape, node.name, node.source, node.weight, bias, node.factor)


def compact(bias: Array) -> Array | None:
    """Return a bias map as one number per channel where that is what it is, and None where it is zero."""
    if not bias.any():
        return None
    if bias.ndim == 3 and bool((bias == bias[:, :1, :1]).all()):
        return bias[:, :1, :1].copy()
    return bias


def _scale_inputs(node: Node, scale: Array) -> Array:
    """Return a node's weights for inputs that come without their scale."""
    assert node.weight is not None
    if isinstance(node.op, Matrix):
        return node.weight * scale
    assert isinstance(node.op, Convolution)
    outputs, per_group = node.weight.shape[:2]
    groups = node.op.groups
    by_output = np.repeat(scale.reshape(groups, per_group), outputs // groups, axis=0)
    return node.weight * by_output[:, :, None, None]


def _before_relu(graph: Graph, node: Node, values: dict[Node, Tensor]) -> bool:
    """Leave only signs and a shift of an affine node in front of a ReLU; its readers take the magnitudes."""
    if not isinstance(node.op, Affine) or node.weight is None or node not in values:
        return False
    relu = _only_reader(graph, node)
    if (
        relu is None
        or not isinstance(relu.op, Circuit)
        or relu.op.kind not in (RELU, MAX_RELU)
        or relu.op.kept is not None
    ):
        return False
    scale = _flat(node.weight, node.shape)
    if (
        scale is None
        or bool(np.isin(np.abs(scale), (0, 1)).all())
        or (relu.op.kind == MAX_RELU and bool((scale <= 0).any()))
    ):
        return False
    size = np.where(scale == 0, 1.0, np.abs(scale))
    form = (-1, *[1] * (len(node.shape) - 1))
    before = values.get(node.inputs[0])
    if before is None:
        return False
    shift = np.broadcast_to(_bias(node), node.shape) / size.reshape(form)
    reached = float((before * torch.from_numpy(np.sign(scale).reshape(form)) + torch.from_numpy(shift)).abs().max())
    if reached * float(size.max()) > _LARGEST_GROWTH * float(values[node].abs().max()):
        return False
    if not _absorb(graph, relu, size, apply=False):
        return False
    _absorb(graph, relu, size, apply=True)
    node.weight, node.bias = np.sign(scale).reshape(form), compact(shift)
    return True


def _absorb(graph: Graph, node: Node, scale: Array, *, apply: bool) -> bool:
    """Let everything that reads `node` take a factor per channel; tell whether all of it can."""
    readers = list(dict.fromkeys(graph.readers()[node]))
    if node is graph.output or not readers:
        return False
    for reader in readers:
        if isinstance(reader.op, (Convolution, Matrix)):
            if apply:
                reader.weight = _scale_inputs(reader, scale)
        elif isinstance(reader.op, SumPool) or (isinstance(reader.op, Circuit) and reader.op.kind in (MAX, MAX_RELU)):
            if not _absorb(graph, reader, scale, apply=apply):
                return False
        elif isinstance(reader.op, Reshape) and len(reader.shape) == 1:
            if not _absorb(graph, reader, np.repeat(scale, reader.size // len(scale)), apply=apply):
                return False
        else:
            return False
    return True


def _lower(graph: Graph, node: Node) -> None:
    """Turn what is left of an affine node into a depthwise convolution and a sum with a bias."""
    assert node.weight is not None
    x = node.inputs[0]
    if not bool((node.weight == 1).all()):
        own = tuple(node.shape)
        scale = _flat(node.weight, own)
        if scale is None or len(own) not in (1, 3):  # one number per element
            plane, scale = (node.size, 1, 1), np.broadcast_to(node.weight, own).reshape(-1).copy()
        else:
            plane = own if len(own) == 3 else (own[0], 1, 1)
        channels = plane[0]
        if plane != own:
            x = Node(Reshape(), [x], plane, f"{node.name}:in", node.source)
        op = Convolution((channels, 1, 1, 1), groups=channels)
        x = Node(op, [x], plane, node.name, node.source, scale.reshape(-1, 1, 1, 1))
        if plane != own:
            x = Node(Reshape(), [x], own, f"{node.name}:out", node.source)
    if node.bias is not None and bool(node.bias.any()):
        x = Node(Sum((0,), (1,)), [x], node.shape, f"{node.name}:bias", node.source, bias=node.bias)
    graph.replace(node, x)


def _pool_divisor(graph: Graph, node: Node) -> bool:
    """Move a pool's divisor into the convolutions and matrices behind it."""
    if not isinstance(node.op, SumPool) or node.factor == 1:
        return False
    readers = _weighted_readers(graph, node)
    if readers is None:
        return False
    for reader in readers:
        assert reader.weight is not None
        reader.weight = reader.weight * node.factor
    node.factor = 1.0
    return True


def _weighted_readers(graph: Graph, node: Node) -> list[Node] | None:
    """Return the weighted nodes behind a node if nothing else reads it, seen through moves of elements."""
    found: list[Node] = []
    readers = list(dict.fromkeys(graph.readers()[node]))
    if node is graph.output or not readers:
        return None
    for reader in readers:
        if isinstance(reader.op, (Convolution, Matrix)):
            found.append(reader)
        elif isinstance(reader.op, (Reshape, Gather)):
            behind = _weighted_readers(graph, reader)
            if behind is None:
                return None
            found += behind
        else:
            return None
    return found


def simplify(graph: Graph) -> None:
    """Join sums of sums, concatenations along one axis, and what only moves elements, if nothing else reads the inner
    one.
    """

    def join(graph: Graph, node: Node) -> bool:
        for position, before in enumerate(node.inputs):
            if isinstance(node.op, Gather) and isinstance(before.op, Reshape):
                node.inputs = list(before.inputs)  # it takes elements by their number, whatever the shape
                return True
            if _only_reader(graph, before) is not node:
                continue
            if isinstance(node.op, Sum) and isinstance(before.op, Sum):
                signs = tuple(node.op.signs[position] * sign for sign in before.op.signs)
                node.bias = compact_sum(node.bias, before.bias, node.op.signs[position])
                node.op = Sum(
                    (0,) * (len(node.inputs) - 1 + len(signs)),
                    node.op.signs[:position] + signs + node.op.signs[position + 1 :],
                )
            elif isinstance(node.op, Concatenate) and before.op == node.op and before.bias is None:
                node.op = replace(node.op, shifts=(0,) * (len(node.inputs) - 1 + len(before.inputs)))
            elif isinstance(node.op, Reshape) and isinstance(before.op, Reshape):
                pass
            elif isinstance(node.op, Reshape) and isinstance(before.op, Gather):
                node.op = before.op
            elif isinstance(node.op, Gather) and isinstance(before.op, Gather):
                index = np.append(before.op.index, np.int32(-1))  # -1, which is a zero, stays one
                node.op = Gather(index[node.op.index])
            else:
                continue
            node.inputs = node.inputs[:position] + before.inputs + node.inputs[position + 1 :]
            return True
        return False

    _until_stable(graph, join)


def check_shapes(graph: Graph) -> None:
    """Refuse a simplified graph in which an operation needs more than channels, height and width.

    Raises:
        NetworkError: with the place.
    """
    for node in graph.order():
        if len(node.shape) > _MOST_DIMENSIONS:
            raise NetworkError(
                problem(
                    f"a feature map to run privately has at most {_MOST_DIMENSIONS} dimensions beside the batch",
                    got="x".join(map(str, node.shape)),
                    remedy="keep channels, height and width; views that are taken back at once may have more",
                    where=node.place,
                )
            )


def compact_sum(a: Array | None, b: Array | None, sign: int) -> Array | None:
    """Return a + sign · b, where None is zero."""
    if b is None:
        return a
    return sign * b if a is None else a + sign * b
