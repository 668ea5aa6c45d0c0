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

    Every other ReLU layer goes. The layer behind an addition ends a residual block; counted back from there, that
    layer goes, the one before it stays, the next goes, and so on: in a block of two convolutions the ReLU between
    them stays, as in the released networks; in a bottleneck of three the one behind the wide convolution. Where no
    addition follows, the first layer stays, the next goes, and so on. A stage always keeps a layer.
    """
    kept: list[str] = []
    block: list[str] = []
    for layer in stage.layers:
        block.append(layer.name)
        if layer.after_addition:
            kept += reversed(block[-2::-2])
            block = []
    kept += block[::2]
    return tuple(kept or [layer.name for layer in stage.layers[::2]])
