"""The methods that propose candidates, behind one interface, and the DeepReDuce algorithm itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..census import Census
from ..errors import UsageError, near_misses, problem
from .candidate import Candidate
from .channel_pruning import channel_pruning
from .criticality import Criticality, least_critical_first
from .culling import cull
from .finding import MaskFinder
from .narrowing import narrowing
from .one_schedule import OneSchedule
from .relupruner import ReLUPruner
from .reshaping import DEFAULT_SCALES, Scale, reshape
from .senet import SENet
from .snl import SNL
from .thinning import thin, thinned_layers

Method = Callable[[Census, tuple[Criticality, ...], Sequence[int]], tuple[Candidate, ...]]
"""From the census, the measured criticality and the budgets, if any, to candidates."""


def deepreduce(
    census: Census,
    criticality: tuple[Criticality, ...],
    budgets: Sequence[int] = (),
    *,
    scales: Sequence[Scale] = DEFAULT_SCALES,
) -> tuple[Candidate, ...]:
    """Propose the networks of the DeepReDuce algorithm (section 3): cull, then thin, then reshape.

    For each culling step: the culled network, the thinned one, and the thinned one at every scale. A network with a
    single stage cannot be culled, so there the full network is thinned and reshaped. Where every stage left has one
    ReLU layer, thinning would change nothing and is left out.

    Args:
        census: of the full network.
        criticality: one value per stage.
        budgets: not asked for: the candidates are those of the paper, and the search leaves out what is too large.
        scales: (alpha, rho) of the reshaping step.

    Returns:
        The candidates, each once.
    """
    culled = cull(census, least_critical_first(criticality))
    proposed: list[Candidate] = []
    for step in culled or (Candidate(keep=tuple(stage.name for stage in census.stages)),):
        thinned = thin(step) if _thinning_removes(census, step) else step
        if culled:
            proposed.append(step)
        if thinned != step:
            proposed.append(thinned)
        proposed.extend(reshape(thinned, scales))
    return tuple(dict.fromkeys(proposed))


def _thinning_removes(census: Census, candidate: Candidate) -> bool:
    stages = [stage for stage in census.stages if stage.name in candidate.keep]
    return any(len(thinned_layers(stage)) < len(stage.layers) for stage in stages)


def prune_channels(
    census: Census, criticality: tuple[Criticality, ...], budgets: Sequence[int] = ()
) -> tuple[Candidate, ...]:
    """Propose the networks of the baseline `channel_pruning`; criticality is not asked for."""
    return channel_pruning(census, budgets)


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
    propose: Method | None = None
    finder: type[MaskFinder] | None = None
    needs_criticality: bool = False

    @property
    def finds_masks(self) -> bool:
        """Whether it makes a network with masks for each budget."""
        return self.finder is not None


METHODS: dict[str, Reducer] = {
    reducer.name: reducer
    for reducer in (
        Reducer("deepreduce", "DeepReDuce", propose=deepreduce, needs_criticality=True),
        Reducer("deepreduce-narrow", "DeepReDuce's culling and thinning, then narrow blocks (ours)", propose=narrowing),
        Reducer("deepreduce-masks", "masks found at the beginning of the training (ours)", finder=OneSchedule),
        Reducer("snl", "selective network linearisation (SNL)", finder=SNL),
        Reducer("senet", "sensitivity-budgeted masks (in the manner of SENet)", finder=SENet),
        Reducer("relupruner", "second-order importance (in the manner of ReLUPruner)", finder=ReLUPruner),
        Reducer("channel-pruning", "channel pruning (torch-pruning)", propose=prune_channels),
    )
}


def method(name: str) -> Reducer:
    """Return the method of this name.

    Raises:
        UsageError: if there is none.
    """
    if name not in METHODS:
        raise UsageError(
            problem(
                "the method must be known",
                got=f"{name!r}{near_misses(name, list(METHODS))}",
                remedy=f"use one of {', '.join(METHODS)}",
                where="--method",
            )
        )
    return METHODS[name]
