"""Our own method: DeepReDuce's structure first, and masks inside it down to the budget.

1. Importance. What every ReLU of the teacher is worth is measured without training: its second-order importance
   (`relupruner.importance`).
2. Structure. The stage that is worth least per ReLU is culled, then the layers are thinned, then the resolution is
   halved, as in DeepReDuce (section 3): a ladder of networks with fewer and fewer ReLUs (`ladder`). The last of them
   in which the budget can be spent (see `ENOUGH`) is taken. Channels stay as they are.
3. Layers. In it the whole layers that are worth most together stay, within the budget.
4. Fading and distillation, over the whole schedule: the candidate trains as any other of DeepReDuce's does.

Why it should be better than either half: nothing of the schedule is spent on a search, so that the network has all of
it to learn to do without its ReLUs; and the structure puts the ReLUs where a network trains well with few of them. What
else was tried stands in docs/choices.md.

With the granularity `element` or `channel` the budget is met (nearly) exactly: every layer of the structure keeps the
same share of its ReLUs, those of highest importance. In private inference that costs more than it looks: where a part
of a layer stays, the rest of its elements must be brought back to few bits by circuits too, so that the layer costs
about as much as a whole one (docs/choices.md). Hence whole layers are the default.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation

from ..census import Census
from ..errors import NetworkError, UsageError
from .candidate import Candidate
from .finding import MaskOrder
from .masks import Mask
from .reduced import Base, census_of, kept_layers, scaled_census
from .selection import Array, Scores, choose, masked_candidate

_RHO = 0.5

ENOUGH = {"element": 1.0, "channel": 0.75, "layer": 0.75}
"""A structure will do if so much of the budget is used: whole layers seldom come out even."""


def structured_masks(base: Base, worth: Scores, order: MaskOrder) -> Candidate:
    """Choose the structure for a budget, and the ReLUs inside it.

    Args:
        base: the full network.
        worth: of each of its ReLUs, by call site, of the layer's shape for one image; see `importance`.
        order: granularity and budget; the name of the method is kept in the masks.

    Raises:
        UsageError: if nothing fits into the budget.
    """
    whole = Candidate(keep=tuple(stage.name for stage in base.census.stages))
    filled: list[tuple[int, float, dict[str, Mask]]] = []
    for structure in (*filter(partial(_can_be_built, base), reversed(ladder(base.census, worth))), whole):
        kept = _fill(base, structure, worth, order)
        filled.append((sum(int(mask.sum()) for mask in kept.values()), structure.rho, kept))
        if filled[-1][0] >= ENOUGH[order.granularity] * order.budget:
            break
    _, rho, kept = max(filled, key=lambda entry: entry[0])
    census = scaled_census(base, replace(whole, rho=rho))
    found = masked_candidate(census, kept, method=order.method, granularity=order.granularity, budget=order.budget)
    return replace(found, rho=rho)


def _can_be_built(base: Base, structure: Candidate) -> bool:
    """Tell whether a structure removes something and this network can be thinned and scaled so."""
    try:
        census_of(base, structure)
    except (NetworkError, UsageError):
        return False
    return True


def _fill(base: Base, structure: Candidate, worth: Scores, order: MaskOrder) -> dict[str, Mask]:
    """Choose the ReLUs of a structure within the budget: of elements and channels an equal share in each layer."""
    layers = kept_layers(base, structure)
    shapes = {layer.name: layer.shape for layer in scaled_census(base, structure).layers}
    scores = {name: _resized(worth[name], shapes[name]) for name in shapes if name in layers}
    total = sum(math.prod(shapes[name]) for name in scores)
    budget = min(order.budget, total)
    share = {name: math.prod(shapes[name]) * budget // total for name in scores}
    kept = choose(scores, budget, order.granularity, share=share)
    return {name: kept[name] if name in kept else np.zeros(shape, bool) for name, shape in shapes.items()}


def ladder(census: Census, worth: Scores) -> tuple[Candidate, ...]:
    """Return the structures, each with fewer ReLUs than the one before: culled, thinned, at half the resolution.

    Culled is the stage that is worth least per ReLU; a network with a single stage keeps it. What cannot be thinned or
    scaled is for the caller to pass over.
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
