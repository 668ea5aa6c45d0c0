"""Maxima and ReLU6 as ReLUs and sums: a ReLU is looked up, all else would have to be garbled.

    max(a, b) = b + relu(a - b)            min(max(x, 0), 6) = relu(x) - relu(x - 6)

The maximum of a window is a tournament: along its rows first, whose winners are shared by the windows that overlap,
then over the rows. Each level is a round trip, and every match a ReLU: with windows of 2x2 three for each output in two
levels, with 3x3 at a stride of two six in four. Where a ReLU comes with the maximum, zero takes part in the tournament:
at a place that is free anyway, or else in a level of its own. (In the first case what the maximum reads keeps its
fraction bits, and rings behind it are larger than behind a ReLU of its own: a round trip saved, for some bytes.) A
match that is decided wrongly, because both are nearly alike, gives the other of the two.

A ReLU6 takes two ReLUs of one round. What comes out lies between 0 and 6 however large x is, so their formats are those
of such numbers, and signs are told as finely (`Circuit.below`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from .graph import Graph, Node
from .operations import MAX_RELU, MAX_RELU6, RELU, RELU6, RESCALE, SIX, Circuit, Concatenate, Gather, Reshape, Sum

_Indices = NDArray[np.int64]

_NOTHING, _ZERO = -1, -2
"""Places of a tournament that nobody takes, and that zero takes."""


def lower(graph: Graph, largest: Mapping[Node, float] = MappingProxyType({})) -> None:
    """Rewrite a graph in place until no circuit but ReLUs and refreshes is left.

    Args:
        graph: folded and merged.
        largest: magnitudes that nodes reach, with a margin, where they are known: a ReLU6 of less than 6 is a ReLU.
    """
    known = dict(largest)
    for node in graph.order():
        if not isinstance(node.op, Circuit) or node.op.kind in (RELU, RESCALE):
            continue
        kind = node.op.kind
        if kind in (RELU6, MAX_RELU6) and known.get(node.inputs[0], math.inf) < SIX:
            kind = RELU if kind == RELU6 else MAX_RELU
        if kind == RELU:
            node.op = replace(node.op, kind=RELU)
            continue
        if kind == RELU6:
            found = _clipped(node, node.inputs[0])
        else:
            found = _largest(node, rectified=kind == MAX_RELU)
            if kind == MAX_RELU6:
                found.name = f"{node.name}:largest"
                found = _clipped(node, found)
        known[found] = known.get(node, math.inf)
        graph.replace(node, found)


def _relu(node: Node, x: Node, suffix: str, op: Circuit | None = None) -> Node:
    return Node(op or Circuit(RELU, 0, 0), [x], x.shape, f"{node.name}{suffix}", node.source)


def _clipped(node: Node, x: Node) -> Node:
    """Return min(max(x, 0), 6), of the kept elements if the node has such."""
    assert isinstance(node.op, Circuit)
    kept, inside = node.op.kept, x
    if kept is not None:
        inside = Node(Gather(kept), [x], (len(kept),), f"{node.name}:kept", node.source)
    less = np.full((inside.shape[0], *(1,) * (len(inside.shape) - 1)), -float(SIX))
    above = Node(Sum((0,), (1,)), [inside], inside.shape, f"{node.name}:above", node.source, bias=less)
    over = _relu(node, above, ":over", Circuit(RELU, 0, 0, below=SIX))
    if kept is not None:
        places = np.full(x.size, -1, dtype=np.int32)
        places[kept] = np.arange(len(kept), dtype=np.int32)
        over = Node(Gather(places), [over], x.shape, f"{node.name}:back", node.source)
    op = Circuit(RELU, 0, 0, kept=kept, rest_in_circuit=node.op.rest_in_circuit, below=SIX)
    first = _relu(node, x, ":positive", op)
    return Node(Sum((0, 0), (1, -1)), [first, over], x.shape, node.name, node.source)


def _largest(node: Node, *, rectified: bool) -> Node:
    """Return the maxima of a node's windows, or with `rectified` the ReLUs of them."""
    assert isinstance(node.op, Circuit) and node.op.windows is not None
    x, windows = node.inputs[0], node.op.windows.astype(np.int64)
    planes, pattern = _pattern(windows, x, node.shape)
    plane = x.size // planes
    width = x.shape[2] if len(x.shape) == 3 and planes == x.shape[0] else plane
    rows = _rows(pattern, width)  # [outputs, rows, columns]
    outputs, height, length = rows.shape
    groups, of = np.unique(rows.reshape(-1, length), axis=0, return_inverse=True)
    of = of.reshape(outputs, height)
    free = height & (height - 1) > 0  # a place of the tournament over rows stays empty
    along = rectified and not free and length & (length - 1) > 0
    zero = np.full((len(groups), 1), _ZERO)
    tournament = _Tournament(node, planes)
    winners = tournament.play(x, plane, np.concatenate([groups, zero], axis=1) if along else groups)
    empty = (groups == _NOTHING).all(axis=1)
    own = np.where(empty[of], _NOTHING, of)
    if rectified and not along:  # after the rows, at a free place or in a level of its own
        own = np.concatenate([own, np.full((outputs, 1), _ZERO)], axis=1)
    return tournament.finish(tournament.play(winners, len(groups), own), len(own))


def _pattern(windows: _Indices, x: Node, shape: tuple[int, ...]) -> tuple[int, _Indices]:
    """Return how many planes have the same windows, and those of one plane."""
    channels = shape[0]
    if len(x.shape) == 3 and len(shape) == 3 and x.shape[0] == channels and len(windows) % channels == 0:
        plane = x.size // channels
        parts = windows.reshape(channels, -1, windows.shape[1])
        moved = np.where(parts < 0, parts, parts - plane * np.arange(channels)[:, None, None])
        if bool((moved == moved[:1]).all()):
            return channels, moved[0]
    return 1, windows


def _rows(pattern: _Indices, width: int) -> _Indices:
    """Return windows [outputs, rows, columns] from flat ones, -1 where there is nothing."""
    found: list[list[list[int]]] = []
    for window in pattern.tolist():
        rows: dict[int, list[int]] = {}
        for element in window:
            if element >= 0:
                rows.setdefault(element // width, []).append(element)
        found.append(list(rows.values()))
    height, length = max(map(len, found)), max(len(row) for rows_of in found for row in rows_of)
    out = np.full((len(found), height, length), _NOTHING, dtype=np.int64)
    for number, rows_of in enumerate(found):
        for place, row in enumerate(rows_of):
            out[number, place, : len(row)] = row
    return out


class _Tournament:
    """Matches between elements of planes that are all alike; every map is [planes, elements, 1]."""

    def __init__(self, node: Node, planes: int) -> None:
        self._node, self._planes, self._level = node, planes, 0

    def play(self, x: Node, plane: int, groups: _Indices) -> Node:
        """Return the winners of groups [groups, places] of elements of planes of a size."""
        while groups.shape[1] > 1:
            x, plane, groups = self._round(x, plane, groups)
        elements = groups[:, 0]
        if len(elements) == plane and np.array_equal(elements, np.arange(plane)):
            return x
        return self._gather(x, plane, elements, "winners")

    def finish(self, x: Node, outputs: int) -> Node:
        """Return the result in the shape of the node that it stands for."""
        node = self._node
        assert x.size == self._planes * outputs
        return Node(Reshape(), [x], node.shape, node.name, node.source)

    def _round(self, x: Node, plane: int, groups: _Indices) -> tuple[Node, int, _Indices]:
        """Play one level: neighbours meet. Each match is played once, whoever asks for its result."""
        self._level += 1
        if groups.shape[1] % 2:
            groups = np.concatenate([groups, np.full((len(groups), 1), _NOTHING)], axis=1)
        pairs = groups.reshape(-1, 2)
        pairs = np.where((pairs[:, :1] == _ZERO), pairs[:, ::-1], pairs)  # zero comes second
        met = (pairs[:, 0] >= 0) & (pairs[:, 1] != _NOTHING)
        alone = (pairs[:, 0] >= 0) & ~met
        matches, of = np.unique(pairs[met], axis=0, return_inverse=True)
        carried, place = np.unique(pairs[alone, 0], return_inverse=True)
        result = np.full(len(pairs), _NOTHING)
        result[(pairs[:, 0] < 0) & (pairs[:, 1] == _ZERO)] = _ZERO
        result[met] = of.reshape(-1)
        result[alone] = len(matches) + place.reshape(-1)
        parts = []
        if len(matches):
            parts.append(self._match(x, plane, matches))
        if len(carried):
            parts.append(self._gather(x, plane, carried, "carried"))
        size = len(matches) + len(carried)
        joined = parts[0]
        if len(parts) > 1:
            joined = self._make(Concatenate(1, (0,) * len(parts)), parts, size, "all")
        return joined, size, result.reshape(len(groups), -1)

    def _match(self, x: Node, plane: int, matches: _Indices) -> Node:
        """Return b + relu(a - b) for pairs of elements, where zero is no element."""
        first = self._gather(x, plane, matches[:, 0], "first")
        against = np.where(matches[:, 1] == _ZERO, -1, matches[:, 1])
        if bool((against < 0).all()):
            return _relu(self._node, first, f":level{self._level}")
        second = self._gather(x, plane, against, "second")
        ahead = self._make(Sum((0, 0), (1, -1)), [first, second], len(matches), "ahead")
        won = _relu(self._node, ahead, f":level{self._level}")
        return self._make(Sum((0, 0), (1, 1)), [won, second], len(matches), "won")

    def _gather(self, x: Node, plane: int, elements: _Indices, what: str) -> Node:
        starts = plane * np.arange(self._planes)[:, None]
        index = np.where(elements < 0, -1, starts + elements).astype(np.int32)
        return self._make(Gather(index.reshape(-1)), [x], len(elements), what)

    def _make(self, op: Gather | Sum | Concatenate, inputs: list[Node], size: int, what: str) -> Node:
        name = f"{self._node.name}:{what}{self._level}"
        return Node(op, inputs, (self._planes, size, 1), name, self._node.source)
