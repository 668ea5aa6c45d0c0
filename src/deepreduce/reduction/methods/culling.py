"""Culling: remove all ReLUs of the least critical stage, then of the next (DeepReDuce, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

from ...census import Census
from ...errors import UsageError, problem
from ..candidate import Candidate


def cull(census: Census, order: Sequence[str]) -> tuple[Candidate, ...]:
    """Return one candidate per culling step.

    Args:
        census: of the full network, with D stages.
        order: all stages, least critical first.

    Returns:
        D - 1 candidates: the first lacks the least critical stage, the last keeps the most critical one alone.

    Raises:
        UsageError: if the order does not name every stage once.
    """
    names = [stage.name for stage in census.stages]
    if sorted(order) != sorted(names):
        raise UsageError(
            problem(
                "the order of culling names every stage once",
                got=", ".join(order) or "none",
                remedy=f"order the stages {', '.join(names)}",
            )
        )
    steps = []
    for count in range(1, len(names)):
        gone = set(order[:count])
        steps.append(Candidate(keep=tuple(name for name in names if name not in gone)))
    return tuple(steps)
