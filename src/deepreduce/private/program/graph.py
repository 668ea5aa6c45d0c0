"""A network in evaluation mode as a graph of few kinds of nodes, with float64 weights.

The graph is what conversion produces, folding and merging rewrite, and calibration runs. Its nodes carry the
operations of the program; formats come later.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from numpy.typing import NDArray
from torch import Tensor

from ...census.trace import layer_words
from .operations import (
    MAX,
    MAX_RELU,
    MAX_RELU6,
    RELU,
    RELU6,
    RESCALE,
    Circuit,
    Concatenate,
    Convolution,
    Gather,
    Matrix,
    Operation,
    Reshape,
    Sum,
    SumPool,
    Truncation,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Input:
    """The image."""


@dataclass(frozen=True)
class Affine:
    """Elementwise scale · x + bias: a batch norm, or a constant, before it is folded; `weight` holds the scale."""


NodeOperation = Operation | Input | Affine


@dataclass(eq=False, repr=False)
class Node:
    """One operation with its place in the user's network.

    Attributes:
        op: what it computes; formats in it (shifts, widths) are not chosen yet.
        inputs: nodes it reads.
        shape: of its output, for one image.
        name: unique in the user's words: module path or call site.
        source: `file.py:line` of the user's code, where known.
        weight: of a convolution or matrix; of an affine node the scale, broadcastable to `shape`.
        bias: broadcastable to `shape`; None is zero. On any linear node but a reshape, gather or concatenation.
        factor: of a pool: what the sum is multiplied by (1 / window for an average).
    """

    op: NodeOperation
    inputs: list[Node]
    shape: tuple[int, ...]
    name: str
    source: str = ""
    weight: Array | None = None
    bias: Array | None = None
    factor: float = 1.0

    def __repr__(self) -> str:
        return f"Node({type(self.op).__name__}, {self.name!r}, {self.shape})"

    @property
    def size(self) -> int:
        """Number of elements for one image."""
        return math.prod(self.shape)

    @property
    def place(self) -> str:
        """Where the user finds it."""
        name = layer_words(self.name)
        return f"{name} ({self.source})" if self.source else name


@dataclass
class Graph:
    """A network: one image in, one vector of logits out."""

    input: Node
    output: Node

    def order(self) -> list[Node]:
        """Return all nodes that the output needs, each after its inputs; the input node first."""
        seen: set[Node] = {self.input}
        order: list[Node] = [self.input]
        stack: list[tuple[Node, bool]] = [(self.output, False)]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((before, False) for before in reversed(node.inputs))
        return order

    def readers(self) -> dict[Node, list[Node]]:
        """Return the nodes that read each node; one that reads it twice stands twice."""
        order = self.order()
        readers: dict[Node, list[Node]] = {node: [] for node in order}
        for node in order:
            for before in node.inputs:
                readers[before].append(node)
        return readers

    def replace(self, old: Node, new: Node) -> None:
        """Let every reader of `old`, and the output, read `new`; `new` itself may read `old`."""
        for node in self.order():
            if node is not new:
                node.inputs = [new if before is old else before for before in node.inputs]
        if self.output is old:
            self.output = new

    def run(self, images: Tensor) -> dict[Node, Tensor]:
        """Compute every node, on float64 images [n, channels, height, width]."""
        values: dict[Node, Tensor] = {}
        with torch.no_grad():
            for node in self.order():
                values[node] = images if node is self.input else evaluate(node, [values[i] for i in node.inputs])
        return values


def side_by_side(parts: list[Node], axis: int, name: str, source: str) -> Node:
    """Return maps of one format one after another along an axis of their shape."""
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return Node(Concatenate(axis, (0,) * len(parts)), parts, tuple(shape), name, source)


def evaluate(node: Node, inputs: list[Tensor]) -> Tensor:
    """Compute one node on a batch, in the floating-point type of its inputs."""
    x = inputs[0]
    out = _evaluate(node, inputs)
    if node.bias is not None:
        out = out + torch.from_numpy(np.broadcast_to(node.bias, node.shape).copy()).to(x.dtype)
    return out


def _evaluate(node: Node, inputs: list[Tensor]) -> Tensor:
    op, x = node.op, inputs[0]
    batch = x.shape[0]
    weight = None if node.weight is None else torch.from_numpy(node.weight).to(x.dtype)
    match op:
        case Convolution():
            assert weight is not None
            top, bottom, left, right = op.padding
            return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, op.stride, 0, op.dilation, op.groups)
        case Matrix():
            assert weight is not None
            return x @ weight.T
        case Affine():
            assert weight is not None
            return x * weight
        case SumPool():
            top, bottom, left, right = op.padding
            padded = F.pad(x, (left, right, top, bottom))
            return F.avg_pool2d(padded, op.kernel, op.stride, divisor_override=1) * node.factor
        case Sum():
            return torch.stack([sign * each for sign, each in zip(op.signs, inputs, strict=True)]).sum(dim=0)
        case Concatenate():
            return torch.cat(inputs, dim=op.axis + 1)
        case Reshape():
            return x.reshape(batch, *node.shape)
        case Gather():
            flat = torch.cat([x.reshape(batch, -1), x.new_zeros(batch, 1)], dim=1)
            return flat[:, torch.from_numpy(op.index.astype(np.int64))].reshape(batch, *node.shape)
        case Truncation():
            return x
        case Circuit():
            return _circuit(op, x, node.shape)
        case _:
            raise AssertionError(f"{op} is not computed")


def _circuit(op: Circuit, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if op.windows is not None:
        flat = x.reshape(x.shape[0], -1)
        flat = torch.cat([flat, torch.full_like(flat[:, :1], -torch.inf)], dim=1)
        x = flat[:, torch.from_numpy(op.windows.astype(np.int64))].amax(dim=-1).reshape(-1, *shape)
    if op.kind in (MAX, RESCALE):
        return x
    result = x.clamp(0, 6) if op.kind in (RELU6, MAX_RELU6) else x.clamp_min(0)
    assert op.kind in (RELU, RELU6, MAX_RELU, MAX_RELU6), op.kind
    if op.kept is not None:
        chosen = torch.zeros(int(np.prod(shape)), dtype=torch.bool)
        chosen[torch.from_numpy(op.kept.astype(np.int64))] = True
        result = torch.where(chosen.reshape(shape), result, x)
    return result


def linear(nodes: Iterable[Node]) -> bool:
    """Tell whether all nodes are linear (up to a bias)."""
    return all(not isinstance(node.op, (Circuit, Input)) for node in nodes)
