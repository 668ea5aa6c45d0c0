"""Thinning: drop alternate ReLU layers of the stages that remain (DeepReDuce, section 3)."""

from __future__ import annotations

from dataclasses import replace

from ..census import Stage
from .candidate import Candidate


def thin(candidate: Candidate) -> Candidate:
    """Return the candidate with every stage it keeps thinned."""
    return replace(candidate, thin=True)


def thinned_layers(stage: Stage) -> tuple[str, ...]:
    """Return the call sites of a stage that stay when it is thinned.

    Every other ReLU layer goes. Of the two ways to alternate the one is taken that removes more ReLU layers behind
    an addition: in a residual block the ReLU between the convolutions stays (as in the released networks). Where
    both remove as many, the first layer stays.
    """
    layers = stage.layers

    def removed_after_addition(first_kept: int) -> int:
        return sum(layer.after_addition for index, layer in enumerate(layers) if index % 2 != first_kept)

    first_kept = 1 if len(layers) > 1 and removed_after_addition(1) > removed_after_addition(0) else 0
    return tuple(layer.name for index, layer in enumerate(layers) if index % 2 == first_kept)
