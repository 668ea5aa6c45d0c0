"""Choosing fraction bits, widths and rings, and where a ring is refreshed.

Forwards, fraction bits add up: a layer's output has the fraction bits of its input and of its weights. Backwards, a
tensor needs the ring that its readers need: `width + dropped` for a circuit, the ring of the output for a linear
step, less the shift where it is multiplied by a power of two. What leaves a circuit carries the larger ring of its
readers, so a long branch without a circuit is paid for by the ReLUs in front of it. A refresh in the middle gives up
fraction bits and begins a new ring. It is put where the ring would otherwise be too large, and where it saves AND gates
in sum. There are two kinds. A truncation is free, but asks for a ring so large in front of it that it almost never
fails (`FormatSettings.failure_bits`). Where there is no room for that, a `rescale` circuit does it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from ...errors import NetworkError, problem
from ..ring import UNIFORM_BITS, magnitude_bits
from .graph import Graph, Input, Node
from .masking import Masking, masked_by
from .operations import (
    ARGMAX,
    MAX_RELU6,
    RELU6,
    RESCALE,
    Circuit,
    Concatenate,
    Convolution,
    Matrix,
    Sum,
    SumPool,
    Truncation,
)
from .settings import MOST_FAILURE_BITS, FormatSettings

_EXCESS, _FORBIDDEN = 1e3, 1e9
"""Penalties per element and bit above the largest ring: what weighs against refreshes, and what none outweighs.

The first finds better places. In small tensors it is less than a refresh and its message cost, so a plan that leaves a
ring too large is made again with the second.
"""


_TRUNCATION = 1_000.0
"""What one truncation costs, in AND gates: it saves some, or it is not made."""

_SIX_BITS = 3
"""What leaves a ReLU6 is below 2^3."""

TRUNCATION = "truncation"

_DEAD_BITS = 16
"""Outputs whose weights are so many bits below the largest are dead: weight decay leaves them at 1e-20 or so."""

_MESSAGE = 100_000.0
"""What one more message each way costs, in AND gates: 0.2 ms of work at each side, without the link's latency."""


_MOST_TRIMMED = 3
_TRIMMED = 200_000.0
"""What one bit less in the layers of a stretch is worth, in AND gates."""


_SURER = 4
"""By how many bits truncations are surer than they must be, where there is room for it without circuits."""

_MOST_SPARED = 4
_FREE = 1e-3
"""Share of the cost that is no reason against more bits."""


@dataclass(frozen=True)
class Range:
    """What calibration saw of a node.

    Attributes:
        largest: magnitude of any value.
        mean: magnitude of a value on average, over all elements and images.
    """

    largest: float
    mean: float


Ranges = dict[Node, Range]


@dataclass
class Formats:
    """Formats by node.

    Attributes:
        fraction: fraction bits of what a node gives.
        weight_fraction: fraction bits of a layer's weights or a pool's factor.
        ring: ring bits of what a node gives.
        width: of circuits.
        dropped: of circuits and truncations.
        failures: of truncations: how many elements of an image are wrong, on average.
        logits: width and dropped bits of the arg-max.
        cost: estimated AND gates, with a penalty for rings that are too large.
        excess: bits by which the largest ring is too large.
    """

    fraction: dict[Node, int] = field(default_factory=dict)
    weight_fraction: dict[Node, int] = field(default_factory=dict)
    ring: dict[Node, int] = field(default_factory=dict)
    width: dict[Node, int] = field(default_factory=dict)
    dropped: dict[Node, int] = field(default_factory=dict)
    failures: dict[Node, float] = field(default_factory=dict)
    logits: tuple[int, int] = (2, 0)
    cost: float = 0.0
    excess: int = 0


def weight_fraction(node: Node, settings: FormatSettings) -> int:
    """Return the fraction bits of a node's weights (or of a pool's factor); 0 for the image and for other nodes."""
    if isinstance(node.op, SumPool):
        mantissa, exponent = math.frexp(node.factor)
        return 1 - exponent if mantissa == 0.5 else settings.weight_bits + 1 - exponent
    if not isinstance(node.op, (Convolution, Matrix)):
        return 0
    if node.weight is None:  # planned, not yet computed
        return settings.weight_bits + 4
    if bool((node.weight == np.rint(node.weight)).all()) and float(np.abs(node.weight).max()) < 2**16:
        return 0  # signs and the like are exact as they are
    rows = np.sqrt(np.mean(np.square(node.weight.reshape(node.weight.shape[0], -1)), axis=1))
    if not rows.any():
        return 0
    rows = rows[rows > 2.0**-_DEAD_BITS * rows.max()]
    magnitudes = np.log2(rows)  # folded batch norms spread them; the small ones must not drown in rounding
    return math.ceil(settings.weight_bits - float(magnitudes.mean() - magnitudes.std()))


def range_bits(limit: float, settings: FormatSettings) -> int:
    """Return e so that values stay below 2^e with the margin; a tensor that is always zero gets 2^-20."""
    return magnitude_bits(max(limit * settings.margin, 2.0**-20) * (1 + 2.0**-20))


def choose(
    order: list[Node],
    output: Node,
    ranges: Ranges,
    fractions: dict[Node, int],
    settings: FormatSettings,
    *,
    penalty: float = _EXCESS,
    spare: Mapping[Node, int] = MappingProxyType({}),
) -> Formats:
    """Choose all formats of a graph whose circuits are given.

    Args:
        order: all nodes in order, the input first.
        output: the logits.
        ranges: of every node.
        fractions: `weight_fraction` of every node.
        settings: see `FormatSettings`.
        penalty: for each element and bit above the largest ring.
        spare: of truncations, how many bits more than those of a circuit's output they keep.
    """
    made = Formats(weight_fraction=fractions)
    f = made.fraction
    for node in order:
        op = node.op
        if isinstance(op, Input):
            f[node] = settings.input_bits + fractions[node] - range_bits(ranges[node].largest, settings)
        elif isinstance(op, Circuit):
            used = _SIX_BITS if op.kind in (RELU6, MAX_RELU6) else None
            made.width[node], made.dropped[node] = _narrow(
                f[node.inputs[0]], ranges[node.inputs[0]].largest, settings.activation_bits, settings, used=used
            )
            f[node] = f[node.inputs[0]] - made.dropped[node]
        elif isinstance(op, Truncation):
            before = node.inputs[0]
            bits = settings.activation_bits + spare.get(node, 0)
            _, made.dropped[node] = _narrow(f[before], ranges[before].largest, bits, settings)
            f[node] = f[before] - made.dropped[node]
        elif isinstance(op, (Sum, Concatenate)):
            f[node] = max(f[before] for before in node.inputs)
        else:
            f[node] = f[node.inputs[0]] + fractions[node]
    made.logits = _narrow(f[output], ranges[output].largest, settings.logit_bits, settings)
    _rings(made, order, output, ranges, settings)
    _count(made, order, settings, penalty)
    if _is_uneven(made, order):
        made.cost = math.inf
    return made


def _narrow(
    fraction: int, limit: float, bits: int, settings: FormatSettings, *, used: int | None = None
) -> tuple[int, int]:
    """Return the width that enters a circuit and how many low bits are dropped before, for values up to `limit`.

    What leaves the circuit has `bits` magnitude bits; it stays below 2^used if that is given, however large it entered.
    """
    top = range_bits(limit, settings)
    dropped = max(0, fraction - (bits - (top if used is None else min(top, used))))
    return max(2, top + fraction - dropped + 1), dropped


def _rings(made: Formats, order: list[Node], output: Node, ranges: Ranges, settings: FormatSettings) -> None:
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
        elif isinstance(op, Truncation):
            before = node.inputs[0]
            fits = range_bits(ranges[before].largest, settings) + made.fraction[before] + 1
            rare = math.ceil(math.log2(_wrong_shares(made, node, ranges))) + settings.failure_bits
            sure = own + made.dropped[node]  # then it never fails
            need(before, min(max(fits, rare, UNIFORM_BITS + made.dropped[node]), sure))
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
    for node in made.dropped:
        if isinstance(node.op, Truncation):
            bits = ring[node.inputs[0]]
            exact = bits >= ring[node] + made.dropped[node]
            made.failures[node] = 0.0 if exact else math.ldexp(_wrong_shares(made, node, ranges), -bits)
    made.excess = max(0, max(ring.values()) - settings.max_ring_bits)


def _wrong_shares(made: Formats, node: Node, ranges: Ranges) -> float:
    """Return for how many shares of the client a truncation fails, on average, added up over its elements."""
    before = node.inputs[0]
    return node.size * (math.ldexp(ranges[before].mean, made.fraction[before]) + 1)


def gates(n: int, kind: str, width: int, ring: int, window: int = 1) -> int:
    """Estimate the AND gates of a circuit layer, to weigh one plan against another.

    An adder of w bits, a comparison and a selection cost one AND gate a bit each. The words that come out cost about a
    third of one per bit, twice that in a large ring; the size of the ring does not matter otherwise.
    """
    if kind == ARGMAX:
        return n * (width + 2 * width)
    words = width // 3 * (1 if ring <= 32 else 2)
    total = n * (window * width + (window - 1) * 2 * width + words)
    return total + n * (width - 1) if kind.endswith("6") else total


def _is_uneven(made: Formats, order: list[Node]) -> bool:
    """Tell whether a share is truncated that is not known to be uniform: no such plan is taken."""
    known: dict[Node, Masking] = {}
    if not any(isinstance(node.op, Truncation) for node in order):
        return False
    for number, node in enumerate(order):
        inputs = [known[before] for before in node.inputs]
        if isinstance(node.op, Truncation) and not inputs[0].uniform:
            return True
        shifts = [made.fraction[node] - made.fraction[before] for before in node.inputs]
        known[node] = masked_by(node.op, inputs, 1 << number, shifts)
    return False


def _count(made: Formats, order: list[Node], settings: FormatSettings, penalty: float) -> None:
    cost = 0.0
    depth: dict[Node, int] = {}
    for node in order:
        depth[node] = max((depth[before] for before in node.inputs), default=0) + isinstance(node.op, Circuit)
        ring = made.ring[node]
        cost += penalty * node.size * max(0, ring - settings.max_ring_bits) + _TRUNCATION * isinstance(
            node.op, Truncation
        )
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
    refreshes: list[_Refresh]

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
    for penalty in (_EXCESS, _FORBIDDEN):
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

    done: list[_Refresh] = []
    best = formats()
    kinds = [TRUNCATION]
    while True:
        found: tuple[Formats, _Refresh] | None = None
        for refresh in [each for each in _candidates(graph) if each.kind in kinds]:
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


def _swap(old: list[_Refresh], new: list[_Refresh]) -> None:
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


def _candidates(graph: Graph) -> Iterable[_Refresh]:
    """Return the possible refreshes: behind layers and sums, and at masked ReLU layers whose rest stays outside."""
    readers = graph.readers()
    for node in graph.order():
        op = node.op
        if isinstance(op, Circuit):
            if op.kept is not None and not op.rest_in_circuit:
                yield _Refresh(graph, node, RESCALE)
        elif isinstance(op, (Convolution, Matrix, Sum, SumPool, Concatenate)) and node is not graph.output:
            behind = readers[node]
            served = any(isinstance(reader.op, Truncation) for reader in behind)
            if not served and not all(isinstance(reader.op, Circuit) and reader.op.kept is None for reader in behind):
                yield _Refresh(graph, node, RESCALE)
                if not isinstance(op, SumPool):  # what a pool gives is never uniform, see `masking`
                    yield _Refresh(graph, node, TRUNCATION)


class _Refresh:
    """One refresh of a ring: a `rescale` circuit or a truncation behind a node, or the rest of a masked ReLU layer in
    the circuit.

    ReLUs that read the node itself go on reading it: they refresh on their own.
    """

    def __init__(self, graph: Graph, node: Node, kind: str) -> None:
        self.node = node
        self.kind = kind
        self._op = node.op
        self._moved: list[Node] = []
        self.fresh: Node | None = None
        if not isinstance(node.op, Circuit):
            op = Truncation(0) if kind == TRUNCATION else Circuit(RESCALE, 0, 0)
            self.fresh = Node(op, [node], node.shape, f"{node.name}:{kind}", node.source)
            self._moved = [
                reader
                for reader in dict.fromkeys(graph.readers()[node])
                if not (isinstance(reader.op, Circuit) and reader.op.kept is None)
            ]

    def do(self) -> None:
        """Change the graph."""
        if isinstance(self._op, Circuit):
            self.node.op = replace(self._op, rest_in_circuit=True)
        if self.fresh is not None:
            self._redirect(self.node, self.fresh)

    def undo(self) -> None:
        """Change it back."""
        self.node.op = self._op
        if self.fresh is not None:
            self._redirect(self.fresh, self.node)

    def _redirect(self, old: Node, new: Node) -> None:
        for reader in self._moved:
            reader.inputs = [new if before is old else before for before in reader.inputs]
