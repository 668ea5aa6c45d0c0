"""The DeepReDuce algorithm: cull, thin, reshape."""

from __future__ import annotations

from collections.abc import Sequence

from ...census import Census
from ..candidate import Candidate, thinned_layers
from .criticality import Criticality, least_critical_first
from .culling import cull
from .reshaping import DEFAULT_SCALES, Scale, reshape
from .thinning import thin


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
