"""Reshaping: fewer channels (alpha), smaller feature maps (rho) (DeepReDuce, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..candidate import Candidate

Scale = tuple[float, float]
DEFAULT_SCALES: tuple[Scale, ...] = ((0.5, 1.0), (1.0, 0.5), (0.5, 0.5))
"""(alpha, rho): each of the paper's scalings alone, then both."""


def reshape(candidate: Candidate, scales: Sequence[Scale] = DEFAULT_SCALES) -> tuple[Candidate, ...]:
    """Return the candidate at every scale (alpha, rho)."""
    return tuple(replace(candidate, alpha=alpha, rho=rho) for alpha, rho in scales)
