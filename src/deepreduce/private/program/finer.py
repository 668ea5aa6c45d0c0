"""More bits for a program whose logits are off: for the signs of some layers, or for all numbers.

Rounding and unsure signs both move the logits, and their errors add up by squares. A bit more for all numbers halves
the first error and costs little, unless rings are full. The second is shared out by layers, see `signs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ...errors import NetworkError, problem
from .formats import Formats, Ranges
from .graph import Graph, Node
from .plan import plan
from .program import Agreement
from .settings import FormatSettings
from .signs import EXACT, SignErrors, lookup_bytes, share_bits, total

_MORE_BITS = 6
"""How many bits a network that needs them may get beyond its settings."""

_ROUNDING = 0.8
"""Share of the tolerance that rounding may take; the signs then have three fifths of it."""

_SAFE = 0.9
"""Share of what rounding leaves that the signs are given, in squares: their error is an estimate."""

_GATE_BYTES = 16
"""What an AND gate weighs beside a table, as in `formats.gates`."""


@dataclass(frozen=True)
class Measured:
    """A program whose error was measured.

    Attributes:
        settings: with which it was planned.
        formats: of its plan.
        agreement: what came out.
        exact: what comes out with exact signs: rounding alone.
        errors: of signs, for any number of bits.
    """

    settings: FormatSettings
    formats: Formats
    agreement: Agreement
    exact: Agreement
    errors: SignErrors

    @property
    def rounding(self) -> float:
        """Square error of the logits from rounding, over that which is allowed."""
        return self.exact.rms_error**2 / self.allowed

    @property
    def worse(self) -> float:
        """How many times the square error of the signs is what was estimated, if it is more."""
        estimated = total(self.errors, self.formats.tested)
        measured = self.agreement.rms_error**2 - self.exact.rms_error**2
        return max(1.0, measured / estimated) if estimated else 1.0

    @property
    def allowed(self) -> float:
        """Square error that the settings allow."""
        return (self.settings.tolerance * max(self.agreement.spread, 1e-300)) ** 2


def finer(
    graph: Graph, ranges: Ranges, first: FormatSettings, last: Measured, *, trim: bool
) -> tuple[FormatSettings, dict[Node, int]]:
    """Return settings and bits of signs for a smaller error of the logits.

    All numbers get as many bits as they need, or one more where that makes the tables of the signs smaller than what
    it costs.

    Args:
        graph: as the program was planned from; not changed.
        ranges: of every node.
        first: settings from which all began.
        last: the program that was not good enough.
        trim: as for `plan`.

    Returns:
        Settings, and of ReLU layers by how many bits at least they decide their signs.

    Raises:
        NetworkError: if no bits are left to give, or no plan has room for them.
    """
    rounding = last.rounding
    needed = 0
    if not math.isfinite(rounding):
        needed = _MORE_BITS + 1
    elif rounding > _ROUNDING**2:
        needed = math.ceil(math.log2(rounding) / 2 - math.log2(_ROUNDING))
    found: list[tuple[float, FormatSettings, dict[Node, int]]] = []
    refused: NetworkError | None = None
    for more in (needed, needed + 1):
        try:
            settings = _with_more(last, first, more)
            made = plan(graph, ranges, settings, trim=trim)
        except NetworkError as error:
            refused = refused or error
            continue
        made.undo()
        left = max(0.0, 1 - rounding / 4**more)
        target = _SAFE * left * last.allowed / last.worse
        signs = share_bits(last.errors, last.formats, made.formats.width, target)
        changed = more or any(bits != (last.formats.tested[node] or EXACT) for node, bits in signs.items())
        if changed:
            found.append((made.cost + lookup_bytes(signs) / _GATE_BYTES, settings, signs))
    if not found:
        assert refused is not None  # with a bit more there was a change
        raise refused
    _, settings, signs = min(found, key=lambda option: option[0])
    return settings, signs


def _with_more(last: Measured, first: FormatSettings, more: int) -> FormatSettings:
    """Return the last settings with more bits for all numbers.

    Raises:
        NetworkError: if they may not have so many.
    """
    used, agreement = last.settings, last.agreement
    weight_bits, activation_bits = used.weight_bits + more, used.activation_bits + more
    if weight_bits > min(first.weight_bits + _MORE_BITS, 20) or activation_bits > 30:
        raise NetworkError(
            problem(
                f"the logits of a program differ from the network's by at most {used.tolerance:g} of their spread",
                got=f"{agreement.rms_error:.3g} at a spread of {agreement.spread:.3g}, "
                f"with weight_bits {used.weight_bits} and activation_bits {used.activation_bits}",
                remedy="raise tolerance if the labels agree well enough, or start from more bits",
            )
        )
    return replace(
        used, weight_bits=weight_bits, activation_bits=activation_bits, input_bits=min(30, used.input_bits + more)
    )
