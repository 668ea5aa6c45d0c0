"""Fraction bits, widths and rings of a graph whose circuits and truncations are given, and what they cost.

Forwards, fraction bits add up: a layer's output has the fraction bits of its input and of its weights. Backwards, a
tensor needs the ring that its readers need: `width + dropped` for a circuit, the ring of the output for a linear
step, less the shift where it is multiplied by a power of two. What leaves a circuit carries the larger ring of its
readers, so a long branch without a circuit is paid for by the ReLUs in front of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from ..ring import UNIFORM_BITS, magnitude_bits
from .graph import Array, Input, Node
from .masking import Masking, masked_by
from .operations import (
    ARGMAX,
    RELU,
    RESCALE,
    Circuit,
    Concatenate,
    Convolution,
    Matrix,
    Sum,
    SumPool,
    Truncation,
)
from .settings import MOST_TABLE_BITS, FormatSettings

EXCESS, FORBIDDEN = 1e3, 1e9
"""Penalties per element and bit above the largest ring: what weighs against refreshes, and what none outweighs.

The first finds better places. In small tensors it is less than a refresh and its message cost, so a plan that leaves a
ring too large is made again with the second.
"""

_TRUNCATION = 1_000.0
"""What one truncation costs, in AND gates: it saves some, or it is not made."""

_MESSAGE = 100_000.0
"""What one more message each way costs, in AND gates: 0.2 ms of work at each side, without the link's latency."""

_DEAD_BITS = 16
"""Outputs whose weights are so many bits below the largest are dead: weight decay leaves them at 1e-20 or so."""


@dataclass(frozen=True)
class Range:
    """What calibration saw of a node.

    Attributes:
        largest: magnitude of any value.
        mean: magnitude of a value on average, over all elements and images.
        channels: magnitude of any value of each channel.
        images: how many were seen.
    """

    largest: float
    mean: float
    channels: Array = field(default_factory=lambda: np.zeros(1))
    images: int = 1


Ranges = dict[Node, Range]


@dataclass
class Formats:
    """Formats by node.

    Attributes:
        fraction: fraction bits of what a node gives.
        weight_fraction: fraction bits of a layer's weights or a pool's factor.
        ring: ring bits of what a node gives.
        width: of circuits.
        tested: of ReLUs: how many upper bits decide about the sign, 0 for all of them.
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
    tested: dict[Node, int] = field(default_factory=dict)
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
    if is_exact(node):
        return 0
    rows = np.sqrt(np.mean(np.square(node.weight.reshape(node.weight.shape[0], -1)), axis=1))
    if not rows.any():
        return 0
    rows = rows[rows > 2.0**-_DEAD_BITS * rows.max()]
    magnitudes = np.log2(rows)  # folded batch norms spread them; the small ones must not drown in rounding
    return math.ceil(settings.weight_bits - float(magnitudes.mean() - magnitudes.std()))


def is_exact(node: Node) -> bool:
    """Tell whether weights are signs and the like: small whole numbers, exact as they are."""
    weight = node.weight
    return (
        weight is not None and bool((weight == np.rint(weight)).all()) and float(np.abs(weight).max(initial=0)) < 2**16
    )


def range_bits(limit: float, settings: FormatSettings) -> int:
    """Return e so that values stay below 2^e with the margin; a tensor that is always zero gets 2^-20."""
    return magnitude_bits(max(limit * settings.margin, 2.0**-20) * (1 + 2.0**-20))


def usable(settings: FormatSettings) -> float:
    """Return the part of a ReLU's range in which its sign is looked up rightly: at the ends there lacks a carry."""
    return 1 - 2.0**-settings.sign_bits


def doubt(seen: Range, settings: FormatSettings) -> float:
    """Return how much further than what was seen single channels may go, as a factor."""
    return 1 + settings.doubt / seen.images


def filled(seen: Range, settings: FormatSettings) -> float:
    """Return the part of a power of two that the largest input of a ReLU may take in calibration."""
    return usable(settings) / settings.margin / doubt(seen, settings) * (1 - 2.0**-18)


def choose(
    order: list[Node],
    output: Node,
    ranges: Ranges,
    fractions: dict[Node, int],
    settings: FormatSettings,
    *,
    penalty: float = EXCESS,
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
            limit = ranges[node.inputs[0]].largest
            if op.kind == RELU:
                limit /= usable(settings)
                limit *= doubt(ranges[node.inputs[0]], settings) if settings.equalise else 1
            used = magnitude_bits(op.below) if op.below else None
            made.width[node], made.dropped[node] = _narrow(
                f[node.inputs[0]], limit, settings.activation_bits, settings, used=used
            )
            finer = 0 if used is None else max(0, range_bits(limit, settings) - used)  # as in the range that matters
            tested = min(settings.sign_bits + finer, made.width[node]) if op.kind == RELU else 0
            made.tested[node] = tested if tested <= MOST_TABLE_BITS else 0
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


def gates(n: int, kind: str, width: int, ring: int, *, tested: int = 0) -> int:
    """Estimate the AND gates of a circuit layer, to weigh one plan against another.

    An adder of w bits, a comparison and a selection cost one AND gate a bit each. The words that come out cost about a
    third of one per bit, twice that in a large ring; the size of the ring does not matter otherwise. A ReLU whose sign
    is looked up has none: what counts is the size of its table.
    """
    if kind == ARGMAX:
        return n * (width + 2 * width)
    if tested:
        tables = (tested - 1) << max(0, tested - 7)  # bytes before the image, in those of AND gates
        return n * (tables // 4 + (2 if ring <= 32 else 3))
    words = width // 3 * (1 if ring <= 32 else 2)
    return n * (width + words)


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
                cost += gates(node.size, node.op.kind, width, ring, tested=made.tested[node])
            else:
                cost += gates(len(node.op.kept), node.op.kind, width, ring, tested=made.tested[node])
                if node.op.rest_in_circuit:
                    cost += gates(node.size - len(node.op.kept), RESCALE, width, ring)
    made.cost = cost + _MESSAGE * max(depth.values())
