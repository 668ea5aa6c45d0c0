"""Merging neighbouring linear layers where that is exact and cheaper.

A ReLU that was removed leaves convolution behind convolution. Each of them costs the server multiplications online,
homomorphic products offline, and its fraction bits in the ring of everything before it. One map in their place
(`compose`) is exact over the reals; whether it is cheaper is decided by cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .compose import (
    Piece,
    Region,
    arm_sign,
    constant,
    matrix_weight,
    piece_weight,
    plan,
)
from .fold import compact, simplify
from .graph import Graph, Node, linear, side_by_side
from .operations import Convolution, Gather, Matrix, Reshape, Sum, SumPool, Weighted

PRODUCT = 3.3
"""Cost, in MACs, of one input element times one output channel under encryption.

A homomorphic product of 8,192 coefficients takes 0.04 ms, a MAC online 0.075 ns; one second offline counts as a
twentieth of one online: 0.04 ms / 20 / 0.075 ns / 8192.
"""

CIPHERTEXT = 2.1e6
"""Cost, in MACs, of one ciphertext: 0.9 ms of encryption and decryption, and 2.3 ms for 90 KB over 316 Mbit/s, midway
between the links of 100 Mbit/s and 1 Gbit/s; weighed the same way."""

SLOTS = 8192
LARGEST_WEIGHTS = 1 << 26
"""No more weights than these come out of one merging."""

LARGEST_WORK = 1e11
"""No more work than this goes into computing the weights in place of one region: up to 50 s of one core.

In MACs of a matrix's unit vectors, which are slow: they go through small maps with many channels.
"""

_WINDOWED = 4.0
"""How much faster MACs are that compute the kernels of pieces: windows of many outputs go through together."""


_LAYERS = (*Weighted, SumPool)
"""What has a map of its own: a pool behind a convolution is a convolution of longer stride."""


@dataclass(frozen=True)
class Cost:
    """What a linear layer costs, for one image.

    Attributes:
        macs: online.
        total: MACs and homomorphic work together, in MACs.
        weights: how many.
        work: MACs to compute the weights with, once, where they come out of merging.
    """

    macs: float = 0.0
    total: float = 0.0
    weights: int = 0
    work: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs, self.total + other.total, self.weights + other.weights, self.work + other.work
        )


def _cost(macs: float, pairs: float, weights: int) -> Cost:
    """Return the cost of a layer with `pairs` = input elements times output channels that see them."""
    ciphertexts = 2 * math.sqrt(max(1.0, pairs / SLOTS))
    return Cost(macs, macs + PRODUCT * pairs + CIPHERTEXT * ciphertexts, weights)


def convolution_cost(op: Convolution, input: tuple[int, ...], output: tuple[int, ...]) -> Cost:
    """Return the cost of a convolution from feature maps of shape `input` to `output`."""
    pairs = op.weight_shape[0] * op.weight_shape[1]
    for axis in range(2):  # rows, then columns that are read
        reach = (output[1 + axis] - 1) * op.stride[axis] + op.dilation[axis] * (op.weight_shape[2 + axis] - 1) + 1
        pairs *= min(input[1 + axis], max(1, reach - max(0, op.padding[2 * axis])))
    return _cost(math.prod(output) * math.prod(op.weight_shape[1:]), pairs, math.prod(op.weight_shape))


def matrix_cost(outputs: int, inputs: int) -> Cost:
    """Return the cost of a matrix product."""
    return _cost(outputs * inputs, outputs * inputs, outputs * inputs)


def node_cost(node: Node) -> Cost:
    """Return the cost of one node; what is local is free."""
    if isinstance(node.op, Convolution):
        return convolution_cost(node.op, node.inputs[0].shape, node.shape)
    if isinstance(node.op, Matrix):
        return matrix_cost(*node.op.weight_shape)
    return Cost()


def merge(graph: Graph) -> None:
    """Merge regions of a folded graph in place, the one that saves most first, until nothing is saved any more."""
    simplify(graph)
    while True:
        best: tuple[float, Region] | None = None
        for region in regions(graph):
            before = sum((node_cost(node) for node in region.inside), Cost())
            after = merged_cost(region)
            saved = before.total - after.total
            small = after.weights <= max(LARGEST_WEIGHTS, before.weights) and after.work <= LARGEST_WORK
            if small and saved > 0.02 * before.total and (best is None or saved > best[0]):
                best = (saved, region)
        if best is None:
            return
        graph.replace(best[1].output, compose(best[1]))
        simplify(graph)


def regions(graph: Graph) -> list[Region]:
    """Return, for every linear node, the nested regions that grow backwards from it."""
    order = graph.order()
    position = {node: index for index, node in enumerate(order)}
    readers = graph.readers()
    found = []
    for output in order:
        if not linear([output]):
            continue
        inside, layers = {output}, int(isinstance(output.op, _LAYERS))
        while True:
            members = [node for node in order if node in inside]
            entries = list(dict.fromkeys(before for node in members for before in node.inputs if before not in inside))
            if layers > 1 and _in_a_row(members):
                found.append(Region(output, tuple(members), tuple(entries)))
            absorbable = [
                entry
                for entry in entries
                if linear([entry]) and entry is not graph.output and all(r in inside for r in readers[entry])
            ]
            if not absorbable:
                break
            chosen = max(absorbable, key=lambda node: position[node])
            inside.add(chosen)
            layers += isinstance(chosen.op, _LAYERS)
    return found


def _in_a_row(members: list[Node]) -> bool:
    """Tell whether one layer of a region leads to another, of which at least one has weights."""
    behind: set[Node] = set()  # any layer
    weighted: set[Node] = set()  # one with weights
    for node in members:
        own = isinstance(node.op, Weighted)
        if isinstance(node.op, _LAYERS) and any(each in weighted or (own and each in behind) for each in node.inputs):
            return True
        if isinstance(node.op, _LAYERS) or any(each in behind for each in node.inputs):
            behind.add(node)
        if own or any(each in weighted for each in node.inputs):
            weighted.add(node)
    return False


def merged_cost(region: Region) -> Cost:
    """Return what a region would cost as one map."""
    total = Cost()
    macs = sum((node_cost(node) for node in region.inside), Cost()).macs
    for entry in region.entries:
        if arm_sign(region, entry) is not None:
            continue
        bands = plan(region, entry)
        if bands is None:
            total += matrix_cost(region.output.size, entry.size)
            total += Cost(work=macs * min(region.output.size, entry.size))
        else:
            total += sum((_piece_cost(piece, entry, macs) for band in bands for piece in band), Cost())
    return total


def _piece_cost(piece: Piece, entry: Node, macs: float) -> Cost:
    """Return the cost of a piece; what it sees of the entry is about what its derivatives see of the region's MACs."""
    outputs, _, height, width = piece.op.weight_shape
    seen = min(1.0, height * width / math.prod(entry.shape[1:]))
    return convolution_cost(piece.op, entry.shape, _raw_shape(piece)) + Cost(work=outputs * macs * seen / _WINDOWED)


def _raw_shape(piece: Piece) -> tuple[int, int, int]:
    """Return the shape that a piece's convolution gives, before its own rows and columns are unfolded."""
    height, width = (end - start if shared else 1 for start, end, shared in (piece.rows, piece.columns))
    return (piece.op.weight_shape[0], height, width)


def compose(region: Region, *, empty: bool = False) -> Node:
    """Build the nodes that take a region's place.

    Args:
        region: what they stand for.
        empty: leave weights and bias out: to plan with, not to compute with.
    """
    output = region.output
    arms: list[Node] = []
    signs: list[int] = []
    for entry in region.entries:
        sign = arm_sign(region, entry)
        signs.append(1 if sign is None else sign)
        if sign is not None:
            arms.append(entry)
            continue
        bands = plan(region, entry)
        name = _name(region) + (f" of {entry.name}" if len(region.entries) > 1 else "")
        if bands is None:
            arms.append(_as_matrix(region, entry, name, empty))
        else:
            arms.append(_as_pieces(region, entry, bands, name, empty))
    bias = None if empty else compact(constant(region))
    if len(arms) == 1 and isinstance(arms[0].op, Weighted) and signs == [1]:
        arms[0].bias = bias
        return arms[0]
    if len(arms) == 1 and bias is None and signs == [1]:
        return arms[0]
    return Node(Sum((0,) * len(arms), tuple(signs)), arms, output.shape, _name(region), output.source, bias=bias)


def _name(region: Region) -> str:
    """Name a region by its first and last layer with weights; if it has but one, by its own ends."""
    names = [node.name for node in region.inside if isinstance(node.op, Weighted)]
    if len(names) == 1:
        names = [region.inside[0].name, region.output.name]
    return f"{names[0]}..{names[-1]}"


def _as_matrix(region: Region, entry: Node, name: str, empty: bool) -> Node:
    output, source = region.output, region.output.source
    x = entry
    if len(entry.shape) != 1:
        x = Node(Reshape(), [entry], (entry.size,), f"{name}:flat", source)
    weight = None if empty else matrix_weight(region, entry)
    product = Node(Matrix((output.size, entry.size)), [x], (output.size,), name, source, weight)
    if len(output.shape) == 1:
        return product
    return Node(Reshape(), [product], output.shape, f"{name}:map", source)


def _as_pieces(region: Region, entry: Node, bands: list[list[Piece]], name: str, empty: bool) -> Node:
    output, source = region.output, region.output.source
    channels = output.shape[0]
    several = len(bands) > 1 or len(bands[0]) > 1
    made = []
    for i, band in enumerate(bands):
        pieces = []
        for j, piece in enumerate(band):
            own = f"{name}[{i},{j}]" if several else name
            raw = _raw_shape(piece)
            weight = None if empty else piece_weight(region, entry, piece)
            node = Node(piece.op, [entry], raw, own, source, weight)
            shape = (channels, piece.rows[1] - piece.rows[0], piece.columns[1] - piece.columns[0])
            pieces.append(_unfold(node, piece, shape))
        made.append(side_by_side(pieces, 2, f"{name}[{i}]", source))
    return side_by_side(made, 1, name, source)


def _unfold(node: Node, piece: Piece, shape: tuple[int, int, int]) -> Node:
    """Bring outputs (channel, own row, own column) x (shared row, shared column) into the order of a feature map."""
    if node.shape == shape:
        return node
    channels, rows, columns = shape
    own_rows, shared_rows = (1, rows) if piece.rows[2] else (rows, 1)
    own_columns, shared_columns = (1, columns) if piece.columns[2] else (columns, 1)
    index = np.arange(node.size, dtype=np.int32).reshape(channels, own_rows, own_columns, shared_rows, shared_columns)
    index = index.transpose(0, 1, 3, 2, 4).reshape(-1)
    if np.array_equal(index, np.arange(node.size)):
        return Node(Reshape(), [node], shape, f"{node.name}:map", node.source)
    return Node(Gather(np.ascontiguousarray(index)), [node], shape, f"{node.name}:map", node.source)
