"""What the networks of a search cost when they run privately: asked once for each, and kept beside its weights.

How many ReLUs a network has does not decide its seconds alone: every layer that keeps one costs a round trip. So each
finished network is priced before the test images are looked at, and a network that is the best within some time is
looked at as one that is the best within some ReLUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from .._files import check_format, read_json, write_json
from ..errors import DeepReduceError
from ..reduction import Base, pareto_front
from ..reduction.recipe import load_network
from .batches import DeviceSplit
from .jobs import Context
from .outcome import Outcome
from .phases import Phases

_FILE, _FORMAT, _VERSION = "private.json", "deepreduce.price", 1

_IMAGES = 8
"""Training images that a price may look at."""


class Pricer(Protocol):
    """Who knows what a private inference costs.

    Attributes:
        signature: says how prices come about; those of another signature are asked for anew.
        links: names of the links over which it gives seconds.
    """

    signature: str
    links: tuple[str, ...]

    def __call__(self, network: fx.GraphModule, images: Float[Tensor, "batch channel height width"]) -> dict[str, Any]:
        """Return what one inference costs: `online` and `offline`, each with `seconds` by link, and what else is known.

        Args:
            network: a finished network with its weights.
            images: some training images, normalised.

        Raises:
            DeepReduceError: it cannot run privately; the text says why.
        """

    def objection(self, network: nn.Module, input: tuple[int, int, int]) -> str | None:
        """Return why a network cannot run privately whatever its weights are, None if nothing speaks against it.

        Args:
            network: the full network, before anything is trained.
            input: channels, height and width of one image.
        """


def warning(base: Base, pricer: Pricer | None) -> str:
    """Return what speaks against running a network privately, before hours are spent on it; empty for nothing."""
    why = None if pricer is None else pricer.objection(base.network, base.spec.input)
    return f"this network can be reduced, and not run privately as it is. {why}" if why else ""


def price_all(run: Phases, outcomes: Sequence[Outcome], pricer: Pricer) -> dict[str, dict[str, Any]]:
    """Price every finished network, or say why it has no price.

    Args:
        run: whose folder keeps the prices.
        outcomes: networks; those that failed have no price.
        pricer: who is asked. What it cannot price costs the search nothing: hours of training lie behind it.

    Returns:
        By id what `pricer` said, or `reason`.
    """
    finished = [outcome for outcome in outcomes if outcome.complete]
    found: dict[str, dict[str, Any]] = {}
    todo: list[Outcome] = []
    for outcome in finished:
        known = _read(run.context.folder / outcome.best_place / _FILE, outcome, pricer)
        if known is None:
            todo.append(outcome)
        else:
            found[outcome.job.id] = known
    images = _some_images(run.context)
    for done, outcome in enumerate(todo):
        run.watcher.step("Private cost", done, len(todo))
        found[outcome.job.id] = _ask(run, outcome, pricer, images)
    if todo:
        run.watcher.step("Private cost", len(todo), len(todo))
    return found


def fronts_in_seconds(
    outcomes: Sequence[Outcome], prices: Mapping[str, dict[str, Any]], links: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return by link the ids of the networks that no other beats in online seconds and held-out accuracy, the fastest
    first.
    """
    priced = [outcome for outcome in outcomes if outcome.complete and "online" in prices.get(outcome.job.id, {})]

    def front(link: str) -> tuple[str, ...]:
        found = pareto_front(
            priced,
            cost=lambda outcome: float(prices[outcome.job.id]["online"]["seconds"][link]),
            accuracy=lambda outcome: outcome.accuracy,
        )
        return tuple(outcome.job.id for outcome in found)

    return {link: front(link) for link in links}


def _read(path: Path, outcome: Outcome, pricer: Pricer) -> dict[str, Any] | None:
    """Return a price that is kept, if it is of these weights and came about as it would now."""
    if not path.exists():
        return None
    try:
        kept = read_json(path)
        check_format(kept, _FORMAT, _VERSION, path)
    except DeepReduceError:
        return None  # it is made again at once
    mine = {"signature": pricer.signature, "weights_sha256": outcome.best_run["weights_sha256"]}
    price = kept.get("price")
    current = mine == {key: kept.get(key) for key in mine}
    return price if current and isinstance(price, dict) and _is_price(price, pricer.links) else None


def _is_price(price: dict[str, Any], links: Sequence[str]) -> bool:
    if "online" not in price:
        return isinstance(price.get("reason"), str)
    try:
        seconds = [price["online"]["seconds"][link] for link in links]
    except (TypeError, KeyError):
        return False
    return all(isinstance(value, float | int) and value >= 0 for value in seconds)


def _ask(
    run: Phases, outcome: Outcome, pricer: Pricer, images: Float[Tensor, "batch channel height width"]
) -> dict[str, Any]:
    """Ask for the price of one network, and keep it."""
    context = run.context
    folder = context.folder / outcome.best_place
    try:
        network, _ = load_network(folder, context.full_network())
        price = pricer(network, images)
    except DeepReduceError as error:
        price = {"reason": str(error)}
    except Exception as error:  # whatever it is, the trained networks do not go down with it
        run.watcher.note(f"{outcome.job.label} has no private cost: {type(error).__name__}: {error}")
        return {"reason": f"{type(error).__name__}: {error}"}
    kept = {
        "format": _FORMAT,
        "version": _VERSION,
        "signature": pricer.signature,
        "weights_sha256": outcome.best_run["weights_sha256"],
        "price": price,
    }
    write_json(folder / _FILE, kept)
    return price


def _some_images(context: Context) -> Float[Tensor, "batch channel height width"]:
    """Return a few training images, normalised, the same for every network."""
    split = DeviceSplit.of(context.data.train, context.normalisation, torch.device("cpu"))
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:_IMAGES]
    return split.normalise(split.images[chosen])
