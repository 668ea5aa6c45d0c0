"""Choosing fraction bits, widths and rings, and where a ring is refreshed.

Forwards, fraction bits add up: a layer's output has the fraction bits of its input and of its weights. Backwards, a
tensor needs the ring that its readers need: `width + dropped` for a circuit, the ring of the output for a linear
step, less the shift where it is multiplied by a power of two. What leaves a circuit carries the larger ring of its
readers, so a long branch without a circuit is paid for by the ReLUs in front of it. A `rescale` circuit refreshes
the ring in the middle. It is put where it saves AND gates in sum, or where the ring would otherwise be too large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from ...errors import NetworkError, problem
from ..ring import magnitude_bits
from .graph import Graph, Input, Node
from .operations import (
    ARGMAX,
    RESCALE,
    Circuit,
    Concatenate,
    Convolution,
    Matrix,
    Sum,
    SumPool,
)
from .settings import FormatSettings

_EXCESS = 1000.0
"""Penalty per element and bit above the largest ring: far beyond what a refresh costs."""


_MESSAGE = 100_000.0
"""What one more message each way costs, in AND gates: 0.2 ms of work at each side, without the link's latency."""


@dataclass
class Formats:
    """Formats by node.

    Attributes:
        fraction: fraction bits of what a node gives.
        weight_fraction: fraction bits of a layer's weights or a pool's factor.
        ring: ring bits of what a node gives.
        width, dropped: of circuits.
        logits: width and dropped bits of the arg-max.
        cost: estimated AND gates, with a penalty for rings that are too large.
        excess: bits by which the largest ring is too large.
    """

    fraction: dict[Node, int] = field(default_factory=dict)
    weight_fraction: dict[Node, int] = field(default_factory=dict)
    ring: dict[Node, int] = field(default_factory=dict)
    width: dict[Node, int] = field(default_factory=dict)
    dropped: dict[Node, int] = field(default_factory=dict)
    logits: tuple[int, int] = (2, 0)
    cost: float = 0.0
    excess: int = 0


def weight_fraction(node: Node, settings: FormatSettings) -> int:
    """Return the fraction bits of a node's weights (or of a pool's factor)."""
    if isinstance(node.op, SumPool):
        mantissa, exponent = math.frexp(node.factor)
        return 1 - exponent if mantissa == 0.5 else settings.weight_bits + 1 - exponent
    if not isinstance(node.op, (Convolution, Matrix)):
        return 0
    assert node.weight is not None
    if bool((node.weight == np.rint(node.weight)).all()) and float(np.abs(node.weight).max()) < 2**16:
        return 0  # signs and the like are exact as they are
    rows = np.sqrt(np.mean(np.square(node.weight.reshape(node.weight.shape[0], -1)), axis=1))
    rows = rows[rows > 0]
    if not rows.size:
        return 0
    magnitudes = np.log2(rows)  # folded batch norms spread them; the small ones must not drown in rounding
    return math.ceil(settings.weight_bits - float(magnitudes.mean() - magnitudes.std()))


def range_bits(limit: float, settings: FormatSettings) -> int:
    """Return e so that values stay below 2^e with the margin; a tensor that is always zero gets 2^-20."""
    return magnitude_bits(max(limit * settings.margin, 2.0**-20) * (1 + 2.0**-20))


def choose(
    order: list[Node], output: Node, ranges: dict[Node, float], fractions: dict[Node, int], settings: FormatSettings
) -> Formats:
    """Choose all formats of a graph whose circuits are given.

    Args:
        order: all nodes in order, the input first.
        output: the logits.
        ranges: largest magnitude of every node in calibration.
        fractions: `weight_fraction` of every node.
        settings: see `FormatSettings`.
    """
    made = Formats(weight_fraction=fractions)
    f = made.fraction
    for node in order:
        op = node.op
        if isinstance(op, Input):
            f[node] = settings.input_bits - range_bits(ranges[node], settings)
        elif isinstance(op, Circuit):
            narrowed = _narrow(f[node.inputs[0]], ranges[node.inputs[0]], settings.activation_bits, settings)
            made.width[node], made.dropped[node] = narrowed
            f[node] = f[node.inputs[0]] - made.dropped[node]
        elif isinstance(op, (Sum, Concatenate)):
            f[node] = max(f[before] for before in node.inputs)
        else:
            f[node] = f[node.inputs[0]] + fractions[node]
    made.logits = _narrow(f[output], ranges[output], settings.logit_bits, settings)
    _rings(made, order, output, settings)
    _count(made, order, settings)
    return made


def _narrow(fraction: int, limit: float, bits: int, settings: FormatSettings) -> tuple[int, int]:
    """Return the width that enters a circuit and how many low bits are dropped before, for values up to `limit`."""
    top = range_bits(limit, settings)
    dropped = max(0, fraction - (bits - top))
    return max(2, top + fraction - dropped + 1), dropped


def _rings(made: Formats, order: list[Node], output: Node, settings: FormatSettings) -> None:
    ring = dict.fromkeys(order, 1)

    def need(node: Node, bits: int) -> None:
        ring[node] = max(ring[node], bits)

    need(output, sum(made.logits))
    for node in reversed(order):
        own = ring[node]
        op = node.op
        if isinstance(op, Circuit):
            own = max(own, made.width[node])  # its values without ambiguity
            ring[node] = own
            before = node.inputs[0]
            need(before, made.width[node] + made.dropped[node])
            if op.kept is not None and not op.rest_in_circuit:
                need(before, own + made.dropped[node])
        elif isinstance(op, (Sum, Concatenate)):
            for before in node.inputs:
                need(before, own - (made.fraction[node] - made.fraction[before]))
        elif isinstance(op, Input):
            # the image itself must fit, whatever its readers keep of it
            own = max(own, settings.input_bits + 1)
            ring[node] = own
        else:
            for before in node.inputs:
                need(before, own)
    made.ring = ring
    made.excess = max(0, max(ring.values()) - settings.max_ring_bits)


def gates(n: int, kind: str, width: int, ring: int, window: int = 1) -> int:
    """Estimate the AND gates of a circuit layer, to weigh one plan against another.

    An adder of w bits, a comparison, a selection and a subtraction mod 2^k cost one AND gate a bit each.
    """
    if kind == ARGMAX:
        return n * (width + 2 * width)
    total = n * (window * width + (window - 1) * 2 * width + ring)
    return total if kind == RESCALE else total + n * (width - 1) * (2 if kind.endswith("6") else 1)


def _count(made: Formats, order: list[Node], settings: FormatSettings) -> None:
    cost = 0.0
    depth: dict[Node, int] = {}
    for node in order:
        depth[node] = max((depth[before] for before in node.inputs), default=0) + isinstance(node.op, Circuit)
        ring = made.ring[node]
        cost += _EXCESS * node.size * max(0, ring - settings.max_ring_bits)
        if isinstance(node.op, Circuit):
            width = made.width[node]
            if node.op.kept is None:
                window = 1 if node.op.windows is None else node.op.windows.shape[1]
                cost += gates(node.size, node.op.kind, width, ring, window)
            else:
                cost += gates(len(node.op.kept), node.op.kind, width, ring)
                if node.op.rest_in_circuit:
                    cost += gates(node.size - len(node.op.kept), RESCALE, width, ring)
    made.cost = cost + _MESSAGE * max(depth.values())


def plan(graph: Graph, ranges: dict[Node, float], settings: FormatSettings) -> tuple[Formats, Callable[[], None]]:
    """Choose formats and insert the `rescale` circuits that pay or are needed; the graph is changed in place.

    Args:
        graph: folded and merged.
        ranges: largest magnitude of every node in calibration; inserted nodes are added.
        settings: see `FormatSettings`.

    Returns:
        The formats, and what takes the inserted circuits out again.

    Raises:
        NetworkError: if no plan keeps the rings within `settings.max_ring_bits`.
    """
    fractions = {node: weight_fraction(node, settings) for node in graph.order()}
    best = choose(graph.order(), graph.output, ranges, fractions, settings)
    done: list[_Undo] = []
    while True:
        found: tuple[Formats, Node] | None = None
        for node in _candidates(graph):
            undo = _refresh(graph, node, ranges, fractions)
            trial = choose(graph.order(), graph.output, ranges, fractions, settings)
            if trial.cost < best.cost and (found is None or trial.cost < found[0].cost):
                found = (trial, node)
            undo()
        if found is None:
            break
        done.append(_refresh(graph, found[1], ranges, fractions))
        best = choose(graph.order(), graph.output, ranges, fractions, settings)
    if best.excess:
        widest = max(graph.order(), key=lambda node: best.ring[node])
        raise NetworkError(
            problem(
                f"every ring of a private program has at most {settings.max_ring_bits} bits",
                got=f"{best.ring[widest]} bits",
                remedy="lower weight_bits or activation_bits, or keep a ReLU layer in that stretch",
                where=widest.place,
            )
        )

    def undo_all() -> None:
        for undo in reversed(done):
            undo()

    return best, undo_all


def _candidates(graph: Graph) -> Iterable[Node]:
    """Return where a refresh can go: behind layers and sums, and at masked ReLU layers whose rest stays outside."""
    readers = graph.readers()
    for node in graph.order():
        if isinstance(node.op, Circuit):
            if node.op.kept is not None and not node.op.rest_in_circuit:
                yield node
        elif isinstance(node.op, (Convolution, Matrix, Sum, SumPool, Concatenate)) and node is not graph.output:
            behind = readers[node]
            if not all(isinstance(reader.op, Circuit) and reader.op.kept is None for reader in behind):
                yield node


def _refresh(graph: Graph, node: Node, ranges: dict[Node, float], fractions: dict[Node, int]) -> _Undo:
    """Refresh the ring behind a node (or in a masked ReLU layer); returns what takes it back.

    ReLUs that read the node itself go on reading it: they refresh on their own.
    """
    op = node.op
    if isinstance(op, Circuit):
        node.op = Circuit(op.kind, 0, 0, kept=op.kept, rest_in_circuit=True)
        return _Undo(node, op, None, [])
    moved = [
        reader
        for reader in dict.fromkeys(graph.readers()[node])
        if not (isinstance(reader.op, Circuit) and reader.op.kept is None)
    ]
    fresh = Node(Circuit(RESCALE, 0, 0), [node], node.shape, f"{node.name}:rescale", node.source)
    for reader in moved:
        reader.inputs = [fresh if before is node else before for before in reader.inputs]
    ranges[fresh] = ranges[node]
    fractions[fresh] = 0
    return _Undo(node, None, fresh, moved)


@dataclass
class _Undo:
    """Takes one refresh back."""

    node: Node
    op: Circuit | None
    fresh: Node | None
    moved: list[Node]

    def __call__(self) -> None:
        """Restore the graph."""
        if self.op is not None:
            self.node.op = self.op
        for reader in self.moved:
            reader.inputs = [self.node if before is self.fresh else before for before in reader.inputs]
