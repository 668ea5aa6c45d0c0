"""Channels that fill their ReLU's range: a layer's channels are scaled up, and what reads them is scaled down.

A ReLU decides about a sign by a few upper bits of its range, and the range is the layer's: a channel whose values are a
quarter as large as another's is decided two bits more coarsely. relu(c x) = c relu(x) for c > 0, so a channel may have
any scale, as long as every layer that reads it takes it back: the weights in front of the ReLU take c, those behind it
1 / c. Additions, pools and concatenations carry the scale on; branches that are added have one scale. Layers whose
weights are whole numbers keep them. Nothing of it can be seen from outside, because formats are chosen for layers as a
whole. It is the cross-layer equalisation of Nagel, van Baalen, Blankevoort, Welling ("Data-Free Quantization Through
Weight Equalization and Bias Correction", ICCV 2019), with ranges of calibration images in place of weights.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .formats import Ranges, filled, is_exact
from .graph import Affine, Array, Graph, Node
from .operations import (
    RELU,
    RESCALE,
    Circuit,
    Concatenate,
    Convolution,
    Gather,
    Matrix,
    Reshape,
    Sum,
    SumPool,
    Truncation,
)
from .settings import FormatSettings

MOST_BOOST = 1.5
"""How much more than the layer's largest channel another may be scaled up. More gains little, and a channel of its own
goes further beyond what calibration saw of it than a layer does beyond its largest channel."""

_ROUNDING = 1e-9
"""A range that is full already does not become twice as large for its last bit."""

_Labels = NDArray[np.int64]


def equalise(graph: Graph, ranges: Ranges, settings: FormatSettings) -> None:
    """Scale channels so that the inputs of ReLUs fill their ranges; what the graph computes stays the same.

    Args:
        graph: folded and merged; changed in place.
        ranges: of every node; they must be measured anew afterwards.
        settings: say how far beyond what was seen a value may go.
    """
    order = graph.order()
    classes = _Classes()
    labels: dict[Node, _Labels] = {}
    for node in order:
        labels[node] = _labels(node, [labels[before] for before in node.inputs], classes)
    classes.fix(labels[graph.output])
    scale = np.full(classes.count, math.inf)
    for node in order:
        if not (isinstance(node.op, Circuit) and node.op.kind == RELU):
            continue
        seen = ranges[node.inputs[0]]
        own, most = seen.channels, float(seen.channels.max())
        if most > 0:
            part = filled(seen, settings)
            room = math.ldexp(part, math.ceil(math.log2(most / part) - _ROUNDING))
            np.minimum.at(scale, classes.of(labels[node]), room / np.maximum(own, most / MOST_BOOST))
    scale[~np.isfinite(scale)] = 1.0
    scale[classes.of(np.fromiter(classes.fixed, np.int64, len(classes.fixed)))] = 1.0
    for node in order:
        _apply(node, *(scale[classes.of(labels[each])] for each in (node, *node.inputs[:1])))


class _Classes:
    """Channels that have one scale: a union of labels."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self.fixed: set[int] = set()

    @property
    def count(self) -> int:
        """How many labels there are."""
        return len(self._parent)

    def new(self, channels: int) -> _Labels:
        """Return a label for each channel."""
        first = len(self._parent)
        self._parent += range(first, first + channels)
        return np.arange(first, first + channels)

    def join(self, one: _Labels, other: _Labels) -> None:
        """Give channels the same scales."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            self._parent[self._root(a)] = self._root(b)

    def fix(self, labels: _Labels) -> None:
        """Leave channels as they are."""
        self.fixed |= set(labels.tolist())

    def of(self, labels: _Labels) -> _Labels:
        """Return what stands for the class of each label."""
        return np.array([self._root(label) for label in labels.tolist()], np.int64)

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label


def _labels(node: Node, inputs: list[_Labels], classes: _Classes) -> _Labels:
    """Return the labels of a node's channels; a channel of a vector is an element."""
    op, channels = node.op, node.shape[0]
    source: _Labels | None = None
    match op:
        case Convolution() | Matrix():
            if not is_exact(node):
                return classes.new(channels)
            if isinstance(op, Convolution) and op.weight_shape[1] == 1:  # depthwise
                source = np.arange(channels) // (channels // op.groups)
        case Sum() | Concatenate() if isinstance(op, Sum) or op.axis != 0:
            for each in inputs[1:]:
                classes.join(inputs[0], each)
            return inputs[0]
        case Concatenate():
            return np.concatenate(inputs)
        case SumPool() | Truncation() | Affine():
            return inputs[0]
        case Circuit() if op.kind in (RELU, RESCALE) and not op.below:
            return inputs[0]
        case Gather():
            source = _sources(op.index.reshape(channels, -1), node.inputs[0])
        case Reshape():
            source = _sources(np.arange(node.size).reshape(channels, -1), node.inputs[0])
        case _:
            pass
    if source is not None:
        return inputs[0][source]
    own = classes.new(channels)
    for each in (own, *inputs):
        classes.fix(each)
    return own


def _sources(index: NDArray[np.integer], before: Node) -> _Labels | None:
    """Return the one input channel that each row of flat indices reads (-1 is nothing), None if a row reads several."""
    plane = before.size // before.shape[0]
    channel = index // plane
    last = channel.max(axis=1)
    if bool(((channel != last[:, None]) & (index >= 0)).any()):
        return None
    found: _Labels = np.maximum(last, 0).astype(np.int64)
    return found  # a row that reads nothing is zero, whatever its scale


def _apply(node: Node, own: Array, *before: Array) -> None:
    """Scale a node's weights and bias: its output by `own`, where its first input comes scaled by `before`."""
    column = own.reshape(-1, *(1,) * (len(node.shape) - 1))
    if node.bias is not None:
        node.bias = node.bias * column
    if isinstance(node.op, Matrix):
        assert node.weight is not None
        node.weight = node.weight * own[:, None] / before[0]
    if isinstance(node.op, Convolution):
        assert node.weight is not None
        groups = node.op.groups
        read = np.repeat(before[0].reshape(groups, -1), node.weight.shape[0] // groups, axis=0)
        node.weight = node.weight * own[:, None, None, None] / read[:, :, None, None]
