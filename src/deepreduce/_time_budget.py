"""In how many layers ReLUs may stay so that one private inference takes no longer than somebody wants to wait."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ._api import network_of
from ._arguments import check_type, is_number, is_whole, shown
from ._pricing import CALIBRATION_IMAGES, CORES, SETTLE_IMAGES, layout_of, random_images, settle
from .errors import UsageError, problem
from .private.estimate import Link, link_of, our_cost
from .reduction import Base, build_candidate, has_max_pooling, make_base, masked_candidate


def layers_within(
    seconds: float,
    network: str | nn.Module,
    *,
    input: tuple[int, int, int],
    budget: int,
    link: str | Link = "lan",
    classes: int = 100,
    width: float = 1.0,
    exchange_activations: bool = False,
    keep_max_pooling: bool = False,
) -> int | None:
    """Say in how many layers a network may keep its ReLUs to answer within some seconds: for `most_layers`.

    Every layer that keeps a ReLU costs a round trip, and mostly more time than its ReLUs. So before anything is
    trained, networks that keep the budget in few layers are estimated, with layers spread over the depth and random
    weights. A trained one may take some percent more or less; its own estimate stands in the front.

    Args:
        seconds: from the image to its class, above 0.
        network: a reference name, `package.module:function`, `timm:NAME`, or a module.
        input: channels, height and width of one image.
        budget: ReLUs that stay, at least 1.
        link: between the parties, as for `deepreduce.estimate`.
        classes, width, exchange_activations: as for `deepreduce.profile`.
        keep_max_pooling: as of `SearchSettings`.

    Returns:
        The largest number of layers, at least 1; None where all may keep some.

    Raises:
        UsageError: an argument is out of range, or one layer takes longer.
        NetworkError: the network cannot be traced, or cannot run privately.
    """
    check_type("seconds", seconds, float, where="--seconds")
    check_type("network", network, str, nn.Module, where="NETWORK")
    check_type("link", link, str, Link, where="--link")
    for name, fine, allowed, value in (
        ("seconds", is_number(seconds) and 0 < seconds < math.inf, "a number above 0 and finite", seconds),
        ("budget", is_whole(budget) and budget >= 1, "a whole number of at least 1", budget),
    ):
        if not fine:
            raise UsageError(
                problem(f"{name} must be {allowed}", got=shown(value), remedy="give such a number", where=f"--{name}")
            )
    spec, module = network_of(network, input, classes, width, exchange_activations)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same answer whenever a run is continued
        base = make_base(spec, module)
    budget = int(budget)
    average = has_max_pooling(base.network) and not keep_max_pooling
    over = link_of(link) if isinstance(link, str) else link
    largest = len(base.census.layers)

    def taken(layers: int) -> float:
        return _seconds(base, budget, layers, over, average=average, trained=module is not None)

    most = taken(largest)
    if most <= seconds:
        return None
    least = taken(1)
    if least > seconds:
        raise UsageError(
            problem(
                "one layer with ReLUs must fit into the time",
                got=f"{seconds:g} s, where one takes about {least:.3f} s over {over.name}",
                remedy="give more seconds, a smaller budget, a narrower network or a faster link",
                where="--seconds",
            )
        )
    low, high = 1, largest  # the one fits, the other does not; in between time rises almost evenly
    while high - low > 1:
        guess = low + int((seconds - least) / (most - least) * (high - low))
        middle = min(max(guess, low + 1), high - 1)
        found = taken(middle)
        if found <= seconds:
            low, least = middle, found
        else:
            high, most = middle, found
    return low


def _seconds(base: Base, budget: int, layers: int, link: Link, *, average: bool, trained: bool) -> float:
    """Estimate the online seconds of a network that keeps a budget in so many layers."""
    masks = _spread([layer.shape for layer in base.census.layers], budget, layers)
    kept = {layer.name: mask for layer, mask in zip(base.census.layers, masks, strict=True)}
    whole = all(mask.all() for mask in masks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module
        if whole:
            network = copy.deepcopy(base.network)
        else:
            candidate = masked_candidate(
                base.census,
                kept,
                method="deepreduce-masks",
                granularity="element",
                budget=budget,
                average_pooling=average,
            )
            network = build_candidate(base, candidate)
        if not trained:
            settle(network, random_images(SETTLE_IMAGES, base.spec.input))
        layout, _ = layout_of(network, random_images(CALIBRATION_IMAGES, base.spec.input), any_error=True)
    return our_cost(layout, [link], cores=CORES).online.seconds[link.name]


def _spread(shapes: list[tuple[int, ...]], budget: int, layers: int) -> list[NDArray[np.bool_]]:
    """Return masks that keep a budget, as far as there is room, in so many layers, evenly over the depth."""
    chosen = {round((number + 0.5) * len(shapes) / layers - 0.5) for number in range(layers)}
    sizes = {index: int(np.prod(shapes[index])) for index in chosen}
    masks = [np.zeros(int(np.prod(shape)), bool) for shape in shapes]
    left = budget
    generator = np.random.default_rng(0)
    for done, index in enumerate(sorted(chosen, key=lambda index: sizes[index])):
        share = min(sizes[index], max(1, left // (len(chosen) - done)))
        masks[index][generator.permutation(sizes[index])[:share]] = True
        left -= share
    return [mask.reshape(shape) for mask, shape in zip(masks, shapes, strict=True)]
