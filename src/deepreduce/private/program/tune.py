"""Merging layers for the sake of the rings: where one map costs more work than its layers, but saves refreshes.

Every weighted layer on a branch adds its fraction bits to the ring. Where the sum grows too large, `plan` inserts
`rescale` circuits, which cost the client and the link as much as ReLUs do. One merged layer has fraction bits once.
"""

from __future__ import annotations

from ...errors import NetworkError
from .compose import Region
from .fold import simplify
from .formats import Ranges, weight_fraction
from .graph import Graph, Node
from .merge import LARGEST_WEIGHTS, LARGEST_WORK, Cost, compose, merged_cost, node_cost, regions
from .operations import RESCALE, Circuit
from .plan import plan
from .settings import FormatSettings

GATE = 400.0
"""Cost of one AND gate, in MACs: a ReLU of 20 gates takes about 0.6 us online, a MAC 0.075 ns."""

_LEAST = 0.02
"""Share of the whole cost that a merging must save, because the plan behind it is an estimate."""


def tune(graph: Graph, ranges: Ranges, settings: FormatSettings, *, trim: bool = True) -> bool:
    """Merge regions that end where a circuit refreshes a ring, while that saves more than it costs.

    Args:
        graph: merged; changed in place.
        ranges: of every node; they must be measured anew where the graph changed.
        settings: see `FormatSettings`.
        trim: as for `plan`.

    Returns:
        Whether the graph changed.
    """
    fractions = {node: weight_fraction(node, settings) for node in graph.order()}
    changed = False
    while True:
        spots, score = _score(graph, ranges, settings, fractions, trim)
        best: tuple[float, Region] | None = None
        for region in regions(graph) if spots else []:
            if region.output not in spots:
                continue
            before = sum((node_cost(node) for node in region.inside), Cost())
            after = merged_cost(region)
            if after.weights > LARGEST_WEIGHTS or after.work > LARGEST_WORK:
                continue
            if after.total - before.total > GATE * spots[region.output]:
                continue
            trial = _trial(graph, region, ranges, settings, fractions, trim)
            if trial < (1 - _LEAST) * score and (best is None or trial < best[0]):
                best = (trial, region)
        if best is None:
            return changed
        changed = True
        region = best[1]
        merged = compose(region)
        _carry(merged, region, ranges)
        graph.replace(region.output, merged)
        simplify(graph)


def _score(
    graph: Graph, ranges: Ranges, settings: FormatSettings, fractions: dict[Node, int], trim: bool
) -> tuple[dict[Node, float], float]:
    """Return where rings are refreshed, each with the gates of all refreshes, and the cost of everything."""
    made = plan(graph, ranges, settings, fractions=dict(fractions), trim=trim)
    order = graph.order()
    inserted = [node for node in order if isinstance(node.op, Circuit) and node.op.kind == RESCALE]
    bits = sum(node.size * (made.formats.width[node] + made.formats.ring[node]) for node in inserted)
    spots = {node.inputs[0]: float(bits) for node in inserted}
    linear = sum((node_cost(node) for node in order), Cost()).total
    made.undo()
    return spots, linear + GATE * made.cost


def _trial(
    graph: Graph,
    region: Region,
    ranges: Ranges,
    settings: FormatSettings,
    fractions: dict[Node, int],
    trim: bool,
) -> float:
    """Return what everything would cost with a region merged."""
    merged = compose(region, empty=True)
    _carry(merged, region, ranges)
    graph.replace(region.output, merged)
    try:
        return _score(graph, ranges, settings, fractions, trim)[1]
    except NetworkError:
        return float("inf")
    finally:
        graph.replace(merged, region.output)


def _carry(merged: Node, region: Region, ranges: Ranges) -> None:
    """Give the nodes of a merged map the range of what they stand for."""
    pending = [merged]
    while pending:
        node = pending.pop()
        if node not in region.entries:
            ranges[node] = ranges[region.output]
            pending += node.inputs
