"""Thinning: drop alternate ReLU layers of the stages that remain (DeepReDuce, section 3)."""

from __future__ import annotations

from dataclasses import replace

from ..candidate import Candidate


def thin(candidate: Candidate) -> Candidate:
    """Return the candidate with every stage it keeps thinned."""
    return replace(candidate, thin=True)
