"""Where a ring is refreshed: the plan of a program.

A refresh in the middle gives up fraction bits and begins a new ring. It is put where the ring would otherwise be too
large, and where it saves AND gates in sum. There are two kinds. A truncation is free, but asks for a ring so large in
front of it that it almost never fails (`FormatSettings.failure_bits`). Where there is no room for that, a `rescale`
circuit does it exactly. What a choice of places means for the formats, and what it costs, says `formats`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...errors import NetworkError, problem
from .formats import EXCESS, FORBIDDEN, Formats, Ranges, choose, weight_fraction
from .graph import Graph, Input, Node
from .operations import RESCALE, Circuit, Convolution, Matrix, Truncation
from .refreshes import TRUNCATION, Refresh, candidates
from .settings import MOST_FAILURE_BITS, FormatSettings

_MOST_TRIMMED = 3
_TRIMMED = 200_000.0
"""What one bit less in the layers of a stretch is worth, in AND gates."""

_SURER = 4
"""By how many bits truncations are surer than they must be, where there is room for it without circuits."""

_MOST_SPARED = 4
_FREE = 1e-3
"""Share of the cost that is no reason against more bits."""


@dataclass
class Plan:
    """A choice of formats, and what it took.

    Attributes:
        formats: by node, for the graph with the inserted nodes in it.
        trimmed: by how many bits layers in too long stretches were made coarser.
        refreshes: what was inserted.
    """

    formats: Formats
    trimmed: int
    refreshes: list[Refresh]

    @property
    def cost(self) -> float:
        """AND gates, messages and lost bits together, in AND gates."""
        return self.formats.cost + _TRIMMED * self.trimmed

    @property
    def is_free(self) -> bool:
        """Whether all refreshes are truncations."""
        return all(refresh.kind == TRUNCATION for refresh in self.refreshes)

    def undo(self) -> None:
        """Take the inserted nodes out of the graph again."""
        for refresh in reversed(self.refreshes):
            refresh.undo()


def plan(
    graph: Graph,
    ranges: Ranges,
    settings: FormatSettings,
    *,
    fractions: dict[Node, int] | None = None,
    trim: bool = True,
) -> Plan:
    """Choose formats and insert the refreshes that pay or are needed; the graph is changed in place.

    Args:
        graph: folded and merged.
        ranges: of every node; inserted nodes are added.
        settings: see `FormatSettings`.
        fractions: `weight_fraction` of nodes where it is known; filled up.
        trim: whether layers of a stretch whose ring is too large may be up to three bits coarser, if that is cheaper
            than refreshing the ring.

    Raises:
        NetworkError: if no plan keeps the rings within `settings.max_ring_bits`.
    """
    known = {} if fractions is None else fractions
    for node in graph.order():
        if node not in known:
            known[node] = weight_fraction(node, settings)
    surer = replace(settings, failure_bits=min(MOST_FAILURE_BITS, settings.failure_bits + _SURER))
    best = _planned(graph, ranges, surer, known, trim)
    if surer != settings and (best.formats.excess or not best.is_free):
        best.undo()
        best = _planned(graph, ranges, settings, known, trim)
    if best.formats.excess:
        widest = max(graph.order(), key=lambda node: best.formats.ring[node])
        best.undo()
        raise NetworkError(
            problem(
                f"every ring of a private program has at most {settings.max_ring_bits} bits",
                got=f"{best.formats.ring[widest]} bits",
                remedy="lower weight_bits or activation_bits, or keep a ReLU layer in that stretch",
                where=widest.place,
            )
        )
    return best


def _planned(graph: Graph, ranges: Ranges, settings: FormatSettings, known: dict[Node, int], trim: bool) -> Plan:
    """Return the best plan, with its refreshes in the graph; its rings may still be too large."""
    first = choose(graph.order(), graph.output, ranges, known, settings)
    coarse = _too_long(graph, first, known, settings) if first.excess and trim else set()
    best: Plan | None = None
    for penalty in (EXCESS, FORBIDDEN):
        for bits in range(_MOST_TRIMMED + 1 if coarse else 1):
            trimmed = {n: f - bits * (n in coarse) for n, f in known.items()}
            trial = _refreshed(graph, ranges, trimmed, settings, penalty, bits)
            trial.undo()
            if best is None or (trial.formats.excess > 0, trial.cost) < (best.formats.excess > 0, best.cost):
                best = trial
        if best is not None and not best.formats.excess:
            break
    assert best is not None
    for refresh in best.refreshes:
        refresh.do()
    trimmed = {n: f - best.trimmed * (n in coarse) for n, f in known.items()}
    best.formats = _spared(graph, ranges, trimmed, settings, best.formats)
    return best


def _spared(
    graph: Graph, ranges: Ranges, fractions: dict[Node, int], settings: FormatSettings, formats: Formats
) -> Formats:
    """Let truncations keep more bits, one after the other, where the rings have room for them and no circuit pays."""
    order, spare, most = graph.order(), dict[Node, int](), (1 + _FREE) * formats.cost
    for node in order:
        if not isinstance(node.op, Truncation):
            continue
        for bits in range(_MOST_SPARED, 0, -1):
            trial = choose(order, graph.output, ranges, fractions, settings, spare={**spare, node: bits})
            if trial.excess <= formats.excess and trial.cost <= most:
                spare[node], formats = bits, trial
                break
    return formats


def _refreshed(
    graph: Graph,
    ranges: Ranges,
    fractions: dict[Node, int],
    settings: FormatSettings,
    penalty: float,
    trimmed: int,
) -> Plan:
    """Insert refreshes one by one, the one that saves most first, and take out what no longer pays, while it saves.

    First truncations alone: a circuit early on would stand where several truncations could.
    """

    def formats() -> Formats:
        return choose(graph.order(), graph.output, ranges, fractions, settings, penalty=penalty)

    done: list[Refresh] = []
    best = formats()
    kinds = [TRUNCATION]
    while True:
        found: tuple[Formats, Refresh] | None = None
        for refresh in [each for each in candidates(graph) if each.kind in kinds]:
            refresh.do()
            if refresh.fresh is not None:
                ranges[refresh.fresh], fractions[refresh.fresh] = ranges[refresh.node], 0
            trial = formats()
            refresh.undo()
            if trial.cost < (best if found is None else found[0]).cost:
                found = (trial, refresh)
        if found is None and RESCALE not in kinds:
            kinds.append(RESCALE)
            continue
        if found is None:
            return Plan(best, trimmed, done)
        best = found[0]
        done.append(found[1])
        found[1].do()
        for refresh in list(done[:-1]):
            kept = [other for other in done if other is not refresh]
            _swap(done, kept)
            trial = formats()
            if trial.cost < best.cost:
                best, done = trial, kept
            else:
                _swap(kept, done)


def _swap(old: list[Refresh], new: list[Refresh]) -> None:
    """Change the graph from one list of refreshes to another."""
    for refresh in reversed(old):
        refresh.undo()
    for refresh in new:
        refresh.do()


def _too_long(graph: Graph, made: Formats, fractions: dict[Node, int], settings: FormatSettings) -> set[Node]:
    """Return the layers (and the image) of the stretches in which a ring is too large."""
    readers = graph.readers()
    pending = [node for node in graph.order() if made.ring[node] > settings.max_ring_bits]
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        pending += [reader for reader in readers[node] if not isinstance(reader.op, Circuit)]
        if not isinstance(node.op, Circuit):
            pending += [before for before in node.inputs if not isinstance(before.op, Circuit)]
    small = 2 * _MOST_TRIMMED  # signs and other whole numbers have no bits to lose
    return {
        node
        for node in seen
        if isinstance(node.op, Input) or (isinstance(node.op, (Convolution, Matrix)) and fractions[node] >= small)
    }
