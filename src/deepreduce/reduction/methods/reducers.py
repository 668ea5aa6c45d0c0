"""The methods behind `--method`: each a way to find candidates, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...census import Census
from ...errors import UsageError, near_misses, problem
from ..candidate import Candidate
from .algorithm import deepreduce
from .channel_pruning import channel_pruning
from .criticality import Criticality
from .deepreduce_masks import DeepReDuceMasks
from .finding import MaskFinder
from .narrowing import narrowing
from .relupruner import ReLUPruner
from .senet import SENet
from .snl import SNL

Propose = Callable[[Census, tuple[Criticality, ...], Sequence[int]], tuple[Candidate, ...]]
"""From the census, the measured criticality and the budgets, if any, to candidates."""


@dataclass(frozen=True)
class Reducer:
    """A way to find candidates.

    Attributes:
        name: as in `--method`.
        title: what a person reads.
        propose: gives the candidates from the census, the measured criticality and the budgets; None for a method
            that finds masks.
        finder: of a method that finds masks.
        needs_criticality: whether criticality is measured first.
    """

    name: str
    title: str
    propose: Propose | None = None
    finder: type[MaskFinder] | None = None
    needs_criticality: bool = False

    @property
    def finds_masks(self) -> bool:
        """Whether it makes a network with masks for each budget."""
        return self.finder is not None


REDUCERS: dict[str, Reducer] = {
    reducer.name: reducer
    for reducer in (
        Reducer("deepreduce", "DeepReDuce", propose=deepreduce, needs_criticality=True),
        Reducer("deepreduce-narrow", "DeepReDuce's culling and thinning, then narrow blocks (ours)", propose=narrowing),
        Reducer("deepreduce-masks", "masks found at the beginning of the training (ours)", finder=DeepReDuceMasks),
        Reducer("snl", "selective network linearisation (SNL)", finder=SNL),
        Reducer("senet", "sensitivity-budgeted masks (in the manner of SENet)", finder=SENet),
        Reducer("relupruner", "second-order importance (in the manner of ReLUPruner)", finder=ReLUPruner),
        Reducer("channel-pruning", "channel pruning (torch-pruning)", propose=channel_pruning),
    )
}


def find_reducer(name: str) -> Reducer:
    """Return the method of this name.

    Raises:
        UsageError: if there is none.
    """
    if name not in REDUCERS:
        raise UsageError(
            problem(
                "the method must be known",
                got=f"{name!r}{near_misses(name, list(REDUCERS))}",
                remedy=f"use one of {', '.join(REDUCERS)}",
                where="--method",
            )
        )
    return REDUCERS[name]
