"""Our own method: DeepReDuce's structure first, and masks inside it down to the budget.

1. Importance. What every ReLU of the teacher is worth is measured without training: its second-order importance
   (`relupruner.importance`).
2. Structure. The stage that is worth least per ReLU is culled, then the layers are thinned, then the resolution is
   halved, as in DeepReDuce (section 3): a ladder of networks with fewer and fewer ReLUs (`ladder`). The last of them
   that still has as many ReLUs as the budget is taken. Channels stay as they are.
3. Masks. Every layer of it keeps the same share of its ReLUs, those of highest importance, so that the budget is met
   exactly.
4. Fading and distillation, over the whole schedule: the candidate trains as any other of DeepReDuce's does.

Why it should be better than either half: nothing of the schedule is spent on a search, so that the network has all of
it to learn to do without its ReLUs; and the structure puts the ReLUs where a network trains well with few of them. What
else was tried stands in docs/choices.md.

With the granularity `channel` whole channels stay or go, with `layer` whole layers. In this project's private inference
all granularities cost what they keep; other engines need whole channels or layers for that.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation

from ..census import Census
from ..errors import NetworkError, UsageError
from .candidate import Candidate
from .finding import MaskOrder
from .reduced import Base, census_of, kept_layers, scaled_census
from .selection import Array, Scores, choose, masked_candidate

_RHO = 0.5


def structured_masks(base: Base, worth: Scores, order: MaskOrder) -> Candidate:
    """Choose the structure for a budget, and the ReLUs inside it.

    Args:
        base: the full network.
        worth: of each of its ReLUs, by call site.
        order: granularity and budget; the name of the method is kept in the masks.

    Raises:
        UsageError: if nothing fits into the budget.
    """
    whole = Candidate(keep=tuple(stage.name for stage in base.census.stages))
    structure, layers = whole, {layer.name for layer in base.census.layers}
    for step in ladder(base.census, worth):
        try:
            fits = census_of(base, step).relus >= order.budget
        except (NetworkError, UsageError):
            continue  # this network cannot be thinned, or not be scaled
        if fits:
            structure, layers = step, kept_layers(base, step)
    census = scaled_census(base, structure)
    shapes = {layer.name: layer.shape for layer in census.layers}
    scores = {
        name: _resized(worth[name], shape) if name in layers else np.full(shape, -np.inf)
        for name, shape in shapes.items()
    }
    total = sum(math.prod(shapes[name]) for name in layers)
    share = {name: math.prod(shapes[name]) * order.budget // total if name in layers else 0 for name in shapes}
    kept = choose(scores, order.budget, order.granularity, share=share)
    found = masked_candidate(census, kept, method=order.method, granularity=order.granularity, budget=order.budget)
    return replace(found, rho=structure.rho)


def ladder(census: Census, worth: Scores) -> tuple[Candidate, ...]:
    """Return the structures, each with fewer ReLUs than the one before: culled, thinned, at half the resolution.

    A network with a single stage keeps it. What cannot be thinned or scaled is for the caller to pass over.
    """
    values = {
        stage.name: sum(float(np.sum(worth[layer.name])) for layer in stage.layers) / stage.relus
        for stage in census.stages
    }
    least = min(values, key=lambda name: values[name])
    culled = Candidate(keep=tuple(name for name in values if name != least) or (least,))
    thinned = replace(culled, thin=True)
    return culled, thinned, replace(thinned, rho=_RHO)


def _resized(worth: Array, shape: tuple[int, ...]) -> Array:
    """Return the importances of a layer at another resolution: each element gets the mean of those it stands for."""
    if worth.shape == shape:
        return worth
    if worth.ndim != 3:
        return np.full(shape, float(worth.mean()))  # of a vector that grows with the resolution nothing is known
    pooled = F.adaptive_avg_pool2d(torch.from_numpy(worth)[None], (shape[-2], shape[-1]))[0]
    return np.asarray(pooled.double().numpy())
