"""More bits for a program whose logits are off: for the signs of some layers, or for all numbers.

Rounding and unsure signs both move the logits, and their errors add up by squares. A bit more for all numbers halves
the first error and costs little, unless rings are full. The second is shared out by layers, see `signs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ...errors import NetworkError, problem
from .formats import Ranges
from .graph import Graph, Node
from .plan import Plan, plan
from .program import Agreement
from .settings import FormatSettings
from .signs import EXACT, SignErrors, lookup_bytes, online_bytes, share_bits, total

_MORE_BITS = 6
"""How many bits a network that needs them may get beyond its settings."""

_ROUNDING = 0.8
"""Share of the tolerance up to which rounding leaves enough for the signs: three fifths."""

_SAFE = 0.9
"""Share of what rounding leaves that the signs are given, in squares: their error is an estimate."""

_GATE_BYTES, _ONLINE = 16, 20
"""What an AND gate weighs beside a table, as in `formats.gates`, and a byte online beside one before the image."""


@dataclass(frozen=True)
class Measured:
    """A program whose error was measured.

    Attributes:
        settings: with which it was planned.
        plan: of it, undone.
        agreement: what came out.
        exact: what comes out with exact signs: rounding alone.
        errors: of signs, for any number of bits.
    """

    settings: FormatSettings
    plan: Plan
    agreement: Agreement
    exact: Agreement
    errors: SignErrors

    @property
    def bound(self) -> float:
        """Root mean square error of the logits that the settings allow."""
        return self.settings.tolerance * max(self.agreement.spread, 1e-300)

    @property
    def rounding(self) -> float:
        """Square error of the logits from rounding, over that which is allowed."""
        error = self.exact.rms_error / self.bound
        return error * error

    @property
    def worse(self) -> float:
        """How many times the square error of the signs is what was estimated, if it is more."""
        error, formats = self.agreement.rms_error / self.bound, self.plan.formats
        estimated = total(self.errors, formats.tested, formats.width) / self.bound / self.bound
        return max(1.0, (error * error - self.rounding) / estimated) if estimated else 1.0


def finer(
    graph: Graph, ranges: Ranges, first: FormatSettings, last: Measured, *, trim: bool
) -> tuple[FormatSettings, dict[Node, int]]:
    """Return settings and bits of signs for a smaller error of the logits.

    Several numbers of bits are planned: from those with which rounding is just good enough to one more than leaves
    enough for the signs. The cheapest plan is taken; one whose signs do not reach their target, or that trims layers,
    only if there is no other.

    Args:
        graph: as the program was planned from; not changed.
        ranges: of every node.
        first: settings from which all began.
        last: the program that was not good enough.
        trim: as for `plan`.

    Returns:
        Settings, and of ReLU layers by how many bits at least they decide their signs.

    Raises:
        NetworkError: if no bits are left to give, or no plan has room for them; or if the last plan trimmed layers, and
            rounding alone is too much for it.
    """
    if last.plan.trimmed and not last.rounding < 1:
        raise _refusal(last)
    found: list[tuple[bool, bool, float, FormatSettings, dict[Node, int]]] = []
    refused = _refusal(last)
    for more in _choices(last, first):
        settings = replace(
            last.settings,
            weight_bits=last.settings.weight_bits + more,
            activation_bits=last.settings.activation_bits + more,
            input_bits=min(30, last.settings.input_bits + more),
        )
        try:
            made = plan(graph, ranges, settings, trim=trim)
        except NetworkError as error:
            refused = error
            continue
        made.undo()
        left = 1 - last.rounding / 4.0 ** (more + last.plan.trimmed - made.trimmed)
        target = _SAFE * max(0.0, left) / last.worse * last.bound * last.bound
        signs = share_bits(last.errors, last.plan.formats, made.formats.width, target)
        if not more and all(bits == (last.plan.formats.tested[node] or EXACT) for node, bits in signs.items()):
            continue
        reached = total(last.errors, signs, made.formats.width) <= target
        cost = made.cost + (lookup_bytes(signs) + _ONLINE * online_bytes(signs, made.formats)) / _GATE_BYTES
        found.append((not reached, made.trimmed > 0, cost, settings, signs))
    if not found:
        raise refused
    *_, settings, signs = min(found, key=lambda option: option[:3])
    return settings, signs


def _choices(last: Measured, first: FormatSettings) -> list[int]:
    """Return by how many bits all numbers may grow: as many as they need, or as they may have."""
    room = min(first.weight_bits + _MORE_BITS, 20) - last.settings.weight_bits
    room = min(room, 30 - last.settings.activation_bits)
    if not math.isfinite(last.rounding):
        return []
    short = math.log2(last.rounding) / 2 if last.rounding else -math.inf
    fewest = 0 if short < 0 else math.floor(short) + 1
    enough = max(0, math.ceil(short - math.log2(_ROUNDING))) if math.isfinite(short) else 0
    return [more for more in range(fewest, enough + 2) if more <= room] or ([room] if room > 0 else [])


def _refusal(last: Measured) -> NetworkError:
    used, agreement = last.settings, last.agreement
    return NetworkError(
        problem(
            f"the logits of a program differ from the network's by at most {used.tolerance:g} of their spread",
            got=f"{agreement.rms_error:.3g}, of which {last.exact.rms_error:.3g} by rounding, at a spread of "
            f"{agreement.spread:.3g}, with weight_bits {used.weight_bits} and activation_bits {used.activation_bits}",
            remedy="raise tolerance if the labels agree well enough, or start from more bits",
        )
    )
