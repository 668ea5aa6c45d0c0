"""Our own method: DeepReDuce's culling and thinning, then narrow only the layers that keep their ReLUs.

1. Culling, the stages of the largest feature maps first: there every channel costs the most ReLUs.
2. Thinning, so that in a residual block the ReLU between the convolutions is left, and what goes around it is linear.
3. Narrowing: the layers in front of the ReLUs that are left keep as many channels as the budget allows (`beta`), later
   stages more than earlier ones. All other layers keep their width and their resolution.

The last is where it leaves the paper. Reshaping makes the whole network narrow or coarse, although only its ReLUs
are counted; here the blocks become bottlenecks, and the linear rest, which is cheap online, stays as wide as it was. It
needs no search: a budget gives one network, which trains like any candidate of DeepReDuce's, from the teacher's
weights, with fading and distillation. What was measured stands in docs/choices.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..census import Census, ReluLayer
from .candidate import Candidate
from .criticality import Criticality
from .thinning import thinned_layers

ENOUGH = 0.75
"""A structure will do if so much of the budget can be spent in it."""

DEFAULT_BUDGETS = (4, 8, 16, 32, 64)
"""Of the network's ReLUs, divided by these, where no budget is given."""

GROWTH = 2
"""How many times the ReLUs of a stage the next one gets: there a channel costs a quarter of them."""

_LEAST_STAGES = 2
_ROUNDING = 10_000
_BISECTIONS = 50


def narrowing(
    census: Census, criticality: tuple[Criticality, ...] = (), budgets: Sequence[int] = ()
) -> tuple[Candidate, ...]:
    """Propose one network for every budget.

    Of the structures the one with the fewest ReLUs is taken in which `ENOUGH` of the budget can be spent, and then
    narrowed to the budget.

    Args:
        census: of the full network.
        criticality: not asked for.
        budgets: numbers of ReLUs; none gives the network's own divided by `DEFAULT_BUDGETS`.

    Returns:
        The candidates, each once. One is above its budget if even a single channel per layer is, and may be further
        below it where layers of two stages are tied.
    """
    asked = budgets or [census.relus // divisor for divisor in DEFAULT_BUDGETS]
    return tuple(dict.fromkeys(_within(census, budget) for budget in asked))


def _within(census: Census, budget: int) -> Candidate:
    """Return the network for one budget."""
    steps = structures(census)
    fitting = [step for step in steps if _relus(census, step) <= budget] or steps[:1]
    enough = [step for step in fitting if _relus(census, step, 1.0) >= ENOUGH * budget]
    keep, thin = structure = enough[0] if enough else fitting[-1]
    return Candidate(keep=keep, thin=thin, beta=_betas(census, structure, budget))


_Structure = tuple[tuple[str, ...], bool]


def structures(census: Census) -> list[_Structure]:
    """Return stages to keep and whether they are thinned, by rising number of ReLUs.

    The last two stages thinned, the last three thinned, and so on; all stages but the first, and all stages, also as
    they are: to leave a ReLU behind an addition pays only where no further stage can have one in its place.
    """
    names = [stage.name for stage in census.stages]
    kept = [tuple(names[first:]) for first in range(max(1, len(names) - _LEAST_STAGES + 1))]
    steps = [(keep, False) for keep in kept[:2]]
    for keep in kept:
        if _relus(census, (keep, True), 1.0) < _relus(census, (keep, False), 1.0):
            steps.append((keep, True))
        elif (keep, False) not in steps:
            steps.append((keep, False))
    return sorted(steps, key=lambda step: _relus(census, step, 1.0))


def _layers(census: Census, keep: Sequence[str], thin: bool) -> list[list[ReluLayer]]:
    """Return the layers that keep their ReLUs, by stage."""
    found = []
    for stage in census.stages:
        names = thinned_layers(stage) if thin else [layer.name for layer in stage.layers]
        if stage.name in keep:
            found.append([layer for layer in stage.layers if layer.name in names])
    return found


def _relus(census: Census, structure: _Structure, beta: float = 0.0) -> int:
    """Return how many ReLUs a structure has at one beta for all stages; at 0 with one channel in each layer."""
    return sum(_of_stage(layers, beta) for layers in _layers(census, *structure))


def _of_stage(layers: Sequence[ReluLayer], beta: float) -> int:
    return sum(max(1, int(layer.shape[0] * beta + 1e-9)) * math.prod(layer.shape[1:]) for layer in layers)


def _betas(census: Census, structure: _Structure, budget: int) -> tuple[float, ...]:
    """Share a budget among the stages of a structure: each gets `GROWTH` times as many ReLUs as the one before.

    A stage that cannot use its share leaves it to the others. What is left over because channels are whole is spent on
    the last stage that has use for it, and so on.
    """
    stages = _layers(census, *structure)
    steps = [_steps(layers) for layers in stages]

    def spent(share: float) -> list[float]:
        """Return the betas where the first stage may have so many ReLUs."""
        return [
            max((beta for beta in own if _of_stage(layers, beta) <= share * GROWTH**place), default=own[0])
            for place, (layers, own) in enumerate(zip(stages, steps, strict=True))
        ]

    def total(betas: Sequence[float]) -> int:
        return sum(_of_stage(layers, beta) for layers, beta in zip(stages, betas, strict=True))

    low, high = 0.0, float(budget)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if total(spent(middle)) <= budget else (low, middle)
    betas = spent(low)
    for place in reversed(range(len(stages))):
        for beta in steps[place]:
            larger = [*betas[:place], beta, *betas[place + 1 :]]
            betas = larger if beta > betas[place] and total(larger) <= budget else betas
    return tuple(betas)


def _steps(layers: Sequence[ReluLayer]) -> list[float]:
    """Return the betas at which a channel more stays in some layer, of few digits where that is the same."""
    exact = {kept / layer.shape[0] for layer in layers for kept in range(1, layer.shape[0] + 1)}
    short = {beta: min(1.0, math.ceil(beta * _ROUNDING) / _ROUNDING) for beta in exact}
    return sorted(short[b] if _of_stage(layers, short[b]) == _of_stage(layers, b) else b for b in exact)
