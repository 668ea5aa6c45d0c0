"""Our own method: DeepReDuce's culling and thinning, then only the layers that keep their ReLUs become smaller.

1. Culling, the stages of the largest feature maps first: there every channel costs the most ReLUs.
2. Thinning, so that in a residual block the ReLU between the convolutions is left, and what goes around it is linear.
3. Trimming: in the first stages that stay, the insides of the blocks work on the middle of the feature map (`trim`).
4. Narrowing: the layers in front of the ReLUs that are left keep as many channels as the budget allows (`beta`), later
   stages more than earlier ones. All other layers keep their width and their resolution.
5. Bypassing: linear layers beside these blocks take the place of what they lost (`bypass`). Only with the smallest
   budgets, for which two stages are left: elsewhere they gain little, and take half as much training again.

The last three are where it leaves the paper. Reshaping makes the whole network narrow or coarse, although only its
ReLUs are counted; here the insides of the blocks shrink, and the linear rest, which is cheap online, stays. It needs
no search: a budget gives one network, which trains like any candidate of DeepReDuce's, from the teacher's
weights, with fading and distillation. What was measured stands in docs/choices.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ...census import Census, ReluLayer
from ..candidate import Candidate, thinned_layers
from .criticality import Criticality

ENOUGH = 0.9
"""A structure will do if so much of the budget can be spent in it."""

ROOM = 0.85
"""Where maps are trimmed, only if the budget is at most so much of its ReLUs: else larger maps are the better use."""

DEFAULT_BUDGETS = (4, 8, 16, 32, 64)
"""Of the network's ReLUs, divided by these, where no budget is given."""

GROWTH = 2
"""How many times the ReLUs of a stage the next one gets: there a channel costs a quarter of them."""

LARGEST_TRIM = 1 / 8
"""Of the side of a feature map, on each side of it; one position where that is less."""

_LEAST_STAGES = 2
_SMALLEST_SIDE = 4  # of a map that is trimmed: it leaves 2x2
_DIMENSIONS = 3  # of a feature map: channels, height, width
_ROUNDING = 10_000
_BISECTIONS = 50


def narrowing(
    census: Census, criticality: tuple[Criticality, ...] = (), budgets: Sequence[int] = ()
) -> tuple[Candidate, ...]:
    """Propose one network for every budget.

    Of the structures the one with the fewest ReLUs is taken that will do (`ENOUGH`, `ROOM`), and then narrowed to the
    budget. Where nothing goes around a ReLU nothing is trimmed.

    Args:
        census: of the full network.
        criticality: not asked for.
        budgets: numbers of ReLUs; none gives the network's own divided by `DEFAULT_BUDGETS`.

    Returns:
        The candidates, each once. One is above its budget if even a single channel per layer is. Where layers are tied
        it may be further below, or above, and where no layer can become narrow the candidate cannot be built.
    """
    asked = budgets or [census.relus // divisor for divisor in DEFAULT_BUDGETS]
    return tuple(dict.fromkeys(_within(census, budget) for budget in asked))


def _within(census: Census, budget: int) -> Candidate:
    """Return the network for one budget."""
    steps = structures(census)
    fitting = [step for step in steps if _relus(census, step) <= budget] or steps[:1]
    enough = [step for step in fitting if _relus(census, step, 1.0) >= (1 / ROOM if step.trim else ENOUGH) * budget]
    structure = enough[0] if enough else fitting[-1]
    bypass = bool(structure.trim) and len(structure.keep) <= _LEAST_STAGES  # trimmed, so something goes around
    return replace(structure, beta=_betas(census, structure, budget), bypass=bypass)


def structures(census: Census) -> list[Candidate]:
    """Return what is to be narrowed, by rising number of ReLUs: which stages are kept, thinned and trimmed.

    The last two stages thinned and trimmed; the last three with the first layer of the first of them alone, all three
    trimmed, then all but the last; and with all layers of the first, all but the last trimmed, and so on until none is;
    in the same way the last four, and all but the first. All stages thinned. All stages but the first, and all stages,
    also without thinning: to leave a ReLU behind an addition pays only where no further stage can have one in its
    place.
    """
    stages = census.stages
    steps = []
    for first in range(max(1, len(stages) - _LEAST_STAGES + 1)):
        keep = tuple(stage.name for stage in stages[first:])
        whole, thinned = Candidate(keep), Candidate(keep, thin=True)
        if first < _LEAST_STAGES:
            steps.append(whole)
        if _relus(census, thinned, 1.0) < _relus(census, whole, 1.0):
            whole = thinned
        if first == 0:
            steps.append(whole)
            continue
        trimmed = _trims(census, whole)
        if len(keep) <= _LEAST_STAGES:
            steps += trimmed[:1] if first > 1 and any(trimmed[0].trim) else trimmed
            continue
        lead = tuple(layer.name for layer in _layers(census, whole)[0][1:]) if any(trimmed[0].trim) else ()
        steps += _trims(census, replace(whole, drop=lead))[:2] if lead else []
        steps += trimmed[1 if lead else 0 :]
    return sorted(dict.fromkeys(steps), key=lambda step: _relus(census, step, 1.0))


def _trims(census: Census, structure: Candidate) -> list[Candidate]:
    """Return a structure with all its stages trimmed as far as they may be, all but the last, and so on to none."""
    most = [_largest_trim(layers) for layers in _layers(census, structure)]
    return [
        replace(structure, trim=tuple(size if place < trimmed else 0 for place, size in enumerate(most)))
        for trimmed in range(len(most), -1, -1)
    ]


def _largest_trim(layers: Sequence[ReluLayer]) -> int:
    """Return how many positions may go on each side of a stage's maps: an eighth, at least one where any are left."""
    sides = [min(layer.shape[1:]) for layer in layers if layer.has_skip and len(layer.shape) == _DIMENSIONS]
    side = min(sides, default=0)
    return max(1, int(side * LARGEST_TRIM)) if side >= _SMALLEST_SIDE else 0


def _layers(census: Census, structure: Candidate) -> list[list[ReluLayer]]:
    """Return the layers that keep their ReLUs, by stage, of the sizes that they have when they are trimmed."""
    found = []
    for place, name in enumerate(structure.keep):
        stage = next(stage for stage in census.stages if stage.name == name)
        names = set(thinned_layers(stage) if structure.thin else [layer.name for layer in stage.layers])
        names -= set(structure.drop)
        trim = structure.trim[place] if structure.trim else 0
        found.append([_trimmed(layer, trim) for layer in stage.layers if layer.name in names])
    return found


def _trimmed(layer: ReluLayer, trim: int) -> ReluLayer:
    if not layer.has_skip or trim == 0:
        return layer
    return replace(layer, shape=(layer.shape[0], *(size - 2 * trim for size in layer.shape[1:])))


def _relus(census: Census, structure: Candidate, beta: float = 0.0) -> int:
    """Return how many ReLUs a structure has at one beta for all stages; at 0 with one channel in each layer."""
    return sum(_of_stage(layers, beta) for layers in _layers(census, structure))


def _of_stage(layers: Sequence[ReluLayer], beta: float) -> int:
    return sum(max(1, int(layer.shape[0] * beta + 1e-9)) * math.prod(layer.shape[1:]) for layer in layers)


def _betas(census: Census, structure: Candidate, budget: int) -> tuple[float, ...]:
    """Share a budget among the stages of a structure: each gets `GROWTH` times as many ReLUs as the one before.

    A stage that cannot use its share leaves it to the others. What is left over because channels are whole is spent on
    the last stage that has use for it, and so on.
    """
    stages = _layers(census, structure)
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
