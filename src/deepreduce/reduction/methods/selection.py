"""From a score for every ReLU to masks within a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...census import Census
from ...errors import UsageError, problem
from ..candidate import Candidate
from ..masks import Mask, Masks, split

_MOST_CELLS = 20_000_000
_FEW = 0.5  # of an equal part of the budget

Array = NDArray[np.float64]
Scores = Mapping[str, Array]
"""By call site, how much the ReLU of each element is worth; of the shape of the layer's output for one image."""


def group_shape(shape: tuple[int, ...], granularity: str) -> tuple[int, ...]:
    """Return the shape of one number for each element, channel or layer, broadcastable to the layer's shape."""
    if granularity == "element":
        return shape
    return (shape[0] if granularity == "channel" else 1, *(1 for _ in shape[1:]))


def choose(
    scores: Scores, budget: int, granularity: str = "element", *, share: Mapping[str, int] | None = None
) -> dict[str, Mask]:
    """Keep the ReLUs of highest score.

    Elements and channels are taken by falling mean score for as long as they fit; of equal ones the first in the
    order of `scores`. One that does not fit is passed over, and smaller ones after it may still be taken. Layers are
    few and of very different sizes: of all sets that fit, the one of largest total score is taken.

    Args:
        scores: by call site; minus infinity for what must not be kept where anything else is left.
        budget: ReLUs to keep at most.
        granularity: `element`, `channel` or `layer`: what is kept or removed as a whole.
        share: for elements and channels, a budget for each call site besides. What whole channels leave of it is
            spent on the best ones that remain, of any layer.

    Returns:
        A mask for each call site; all together keep at most `budget` elements.
    """
    names = list(scores)
    shapes = {name: np.shape(scores[name]) for name in names}
    groups = {name: group_shape(shapes[name], granularity) for name in names}
    if granularity == "layer":
        sums = [float(np.sum(scores[name])) for name in names]
        best = fill(sums, [math.prod(shapes[name]) for name in names], budget)
        return {name: np.full(shapes[name], index in best) for index, name in enumerate(names)}
    size = np.array([math.prod(shapes[name]) // math.prod(groups[name]) for name in names])
    owner = np.concatenate([np.full(math.prod(groups[name]), index) for index, name in enumerate(names)])
    means = np.concatenate([_mean(np.asarray(scores[name], np.float64), groups[name]).ravel() for name in names])
    order = np.argsort(-means, kind="stable")
    taken = np.zeros(len(owner), bool)
    unlimited = dict.fromkeys(names, budget)
    for allowed in [unlimited] if share is None else [dict(share), unlimited]:
        left = budget - int(size[owner[taken]].sum())
        own = np.array([min(allowed[name], left) for name in names])
        rest = order[~taken[order]]
        if granularity == "element":
            taken[rest[_rank_within(owner[rest]) < own[owner[rest]]][:left]] = True
            continue
        for group in rest:
            index = owner[group]
            if size[index] <= min(left, own[index]):
                taken[group] = True
                left -= int(size[index])
                own[index] -= size[index]
    chosen = {name: taken[owner == index].reshape(groups[name]) for index, name in enumerate(names)}
    return {name: np.broadcast_to(chosen[name], shapes[name]).copy() for name in names}


def choose_in_few_layers(
    scores: Scores, budget: int, granularity: str = "element", *, most_layers: int | None = None
) -> dict[str, Mask]:
    """Keep the ReLUs of highest score, in those layers alone that get a good part of the budget.

    A layer costs a round trip, however few ReLUs it keeps. One that would keep fewer than half an equal part of the
    budget, and fewer than half of its own, is passed over; the others get what it leaves. That is asked layer by layer,
    the one that keeps fewest first. Of a layer that is passed over, single elements stay only where the others have no
    room for them, and whole channels never: what is too little for a channel of another layer is not spent.

    Args:
        scores: as for `choose`, not minus infinity.
        budget: likewise.
        granularity: likewise. Whole layers are never few.
        most_layers: how many layers may keep an element, at least 1; for elements alone. Once none is few, further
            layers are passed over: the one first that keeps fewest for the square root of its size, so that of two
            which keep as many the smaller stays. A layer is spared if without it so many layers would have no room
            for the budget. Where they have none anyway, less than the budget is kept.

    Returns:
        As `choose`.
    """
    own = {name: np.asarray(score, np.float64) for name, score in scores.items()}
    lower = 1.0 + max(float(score.max()) for score in own.values()) - min(float(score.min()) for score in own.values())
    passed_over: set[str] = set()

    def room(names: Iterable[str]) -> int:
        """Return how much the limited number of these layers can keep at most."""
        return sum(sorted((own[name].size for name in names), reverse=True)[:most_layers])

    while True:
        masks = choose(own, budget, granularity)
        kept = {name: int(mask.sum()) for name, mask in masks.items() if mask.any() and name not in passed_over}
        few = [name for name, n in kept.items() if n < min(_FEW * budget / len(scores), masks[name].size / 2)]
        if len(kept) == 1:
            break
        if few:
            least = min(few, key=lambda name: kept[name])
        elif most_layers is not None and len(kept) > most_layers:
            enough = min(budget, room(kept))
            spare = [name for name in kept if room(kept.keys() - {name}) >= enough]
            least = min(spare, key=lambda name: kept[name] / math.sqrt(masks[name].size))
        else:
            break
        own[least] = own[least] - lower  # behind all others, and in its own order
        passed_over.add(least)
    too_many = most_layers is not None and sum(bool(mask.any()) for mask in masks.values()) > most_layers
    if granularity == "channel" or too_many:
        masks |= {name: np.zeros_like(masks[name]) for name in passed_over}
    return masks


def fill(values: Sequence[float], sizes: Sequence[int], budget: int) -> set[int]:
    """Return which items to take, so that their sizes fit into a budget and their total value is largest.

    Args:
        values: of the items; what is below 0 counts a little above nothing, so that it is taken where room is left,
            and minus infinity is never taken.
        sizes: of the items, at least 1. With very many items and a large budget they are rounded up a little.
        budget: for the sum of the sizes.
    """
    finite = [value for value in values if math.isfinite(value)]
    least = max([*finite, 0.0]) * 1e-9 / max(sizes) or 1e-9
    unit = max(math.gcd(*sizes), math.ceil(budget * len(sizes) / _MOST_CELLS))
    room = budget // unit
    best = np.zeros(room + 1)
    taken = np.zeros((len(sizes), room + 1), bool)
    for index, (value, size) in enumerate(zip(values, sizes, strict=True)):
        units = -(-size // unit)
        if units > room or value == -math.inf:
            continue
        with_it = best[: room + 1 - units] + max(value, 0.0) + least * size
        taken[index, units:] = with_it > best[units:]
        best[units:] = np.maximum(best[units:], with_it)
    found: set[int] = set()
    for index in reversed(range(len(sizes))):
        if taken[index, room]:
            found.add(index)
            room -= -(-sizes[index] // unit)
    return found


def _mean(score: Array, group: tuple[int, ...]) -> Array:
    axes = tuple(axis for axis, (mine, whole) in enumerate(zip(group, score.shape, strict=True)) if mine != whole)
    return np.asarray(score.mean(axis=axes)) if axes else score


def _rank_within(owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each item how many items of the same owner come before it."""
    order = np.argsort(owner, kind="stable")
    rank = np.empty(len(owner), np.int64)
    rank[order] = np.arange(len(owner)) - np.searchsorted(owner[order], owner[order])
    return rank


def masked_candidate(
    census: Census,
    kept: Mapping[str, Mask],
    *,
    method: str,
    granularity: str,
    budget: int,
    lines: bool = False,
    most_layers: int | None = None,
    average_pooling: bool = False,
) -> Candidate:
    """Return the candidate that keeps the ReLUs of these masks and no other.

    Args:
        census: of the full network.
        kept: a mask for each of its call sites.
        method: name of the method that found them.
        granularity: of the masks.
        budget: that was asked for.
        lines: see `Masks`.
        most_layers: that was asked for.
        average_pooling: see `Candidate`.

    Raises:
        UsageError: if the masks keep nothing, or are not those of the network's call sites.
    """
    shapes = {layer.name: layer.shape for layer in census.layers}
    if {name: mask.shape for name, mask in kept.items()} != shapes:
        raise UsageError(
            problem(
                "there is one mask for every ReLU layer, of its shape",
                got=f"{len(kept)} masks for {len(shapes)} layers, or other shapes",
                remedy="find the masks for this network",
            )
        )
    if not any(mask.any() for mask in kept.values()):
        raise UsageError(
            problem(
                "the masks must keep a ReLU",
                got=f"none within a budget of {budget:,}, by {granularity}",
                remedy="raise the budget, or take a finer granularity",
                where="--budget",
            )
        )
    gone, partial = split(kept)
    stages = tuple(stage.name for stage in census.stages if any(layer.name not in gone for layer in stage.layers))
    stage_of = census.stage_of()
    return Candidate(
        keep=stages,
        drop=tuple(name for name in gone if stage_of[name] in stages),
        masks=Masks(method, granularity, budget, partial, lines, most_layers),
        average_pooling=average_pooling,
    )


def smallest_budget(census: Census, granularity: str) -> int:
    """Return the smallest budget that can keep anything."""
    return min(math.prod(layer.shape) // math.prod(group_shape(layer.shape, granularity)) for layer in census.layers)
