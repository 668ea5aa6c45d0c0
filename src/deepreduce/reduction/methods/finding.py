"""Finding masks by training: what the rivals of DeepReDuce have in common.

A finder drives the search of one method. Every ReLU of the network has a slope in its place (`SlopedReLU`); the loop
in `deepreduce.training.mask_search` trains the network, and asks the finder before and after every epoch and step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, fx, nn

from ...census import Census, on_line
from ...errors import UsageError, near_misses, problem
from ..masks import GRANULARITIES, Mask, mask_label
from ..surgery import SEARCH_PREFIX, first_lines, replace_relus
from .selection import Array, group_shape


@dataclass(frozen=True)
class MaskOrder:
    """Which masks to find.

    Attributes:
        method: name of a method that finds masks.
        granularity: `element`, `channel` or `layer`: what is kept or removed as a whole.
        budget: ReLUs to keep at most.
        most_layers: how many layers may keep a ReLU; None for any number.
        average_pooling: whether average pooling takes the place of max pooling.
    """

    method: str
    granularity: str
    budget: int
    most_layers: int | None = None
    average_pooling: bool = False

    @property
    def id(self) -> str:
        """Short name, fit for a folder."""
        limit = "" if self.most_layers is None else f"-l{self.most_layers}"
        pooling = "-p" if self.average_pooling else ""
        return f"{self.method}-{self.granularity}-{self.budget}{limit}{pooling}"

    @property
    def label(self) -> str:
        """What a person reads."""
        pooling = ", average pooling" if self.average_pooling else ""
        return mask_label(self.method, self.granularity, self.budget, self.most_layers) + pooling


def check_granularity(name: str) -> None:
    """Refuse a granularity that there is not.

    Raises:
        UsageError: naming those that there are.
    """
    if name not in GRANULARITIES:
        raise UsageError(
            problem(
                "the granularity must be known",
                got=f"{name!r}{near_misses(name, list(GRANULARITIES))}",
                remedy=f"use one of {', '.join(GRANULARITIES)}",
                where="--granularity",
            )
        )


class SlopedReLU(nn.Module):
    """A ReLU with a slope for each element, channel or layer: f(x) = alpha * relu(x) + (1 - alpha) * x.

    With a line, slope * x + intercept by channel takes the place of the last x.

    Attributes:
        kind: `relu` or `relu6`.
        alpha: 1 is the ReLU, 0 the identity; of the group's shape with a batch dimension, broadcast over the layer.
        shape: of the layer's output for one image.
        site: the call site.
        line: [2, channels]: slopes and intercepts; None for the identity.
        watched: whether the last input and output are kept in `before` and `after`.
    """

    def __init__(
        self, kind: str, shape: tuple[int, ...], granularity: str, site: str, line: Tensor | None = None
    ) -> None:
        super().__init__()
        self.kind = kind
        self.shape = shape
        self.site = site
        self.alpha = nn.Parameter(torch.ones(1, *group_shape(shape, granularity)), requires_grad=False)
        self.line = None if line is None else nn.Parameter(line.detach().clone(), requires_grad=False)
        self.watched = False
        self.before: Tensor | None = None
        self.after: Tensor | None = None

    @property
    def group(self) -> int:
        """How many elements share a slope."""
        return math.prod(self.shape) // self.alpha.numel()

    def activation(self, x: Tensor) -> Tensor:
        """Return what the full ReLU gives."""
        return F.relu6(x) if self.kind == "relu6" else F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the blend of ReLU and identity, or line."""
        other = x if self.line is None else on_line(x, self.line)
        out = torch.lerp(other, self.activation(x), self.alpha.to(x.dtype))
        if self.watched:
            self.before, self.after = x, out
        return out

    @torch.no_grad()
    def set_mask(self, mask: Mask) -> None:
        """Set the slopes to 1 where the mask keeps, else to 0; a mask is constant over elements that share a slope."""
        first = tuple(slice(0, n) for n in self.alpha.shape[1:])
        self.alpha.copy_(torch.from_numpy(mask[first].astype(np.float32)).unsqueeze(0))

    def slopes(self) -> Array:
        """Return the slope of every element."""
        return self.spread(self.alpha)

    def spread(self, alpha: Tensor) -> Array:
        """Return the value of every element from one of the shape of `alpha`."""
        values = alpha.detach()[0].double().cpu().numpy()
        return np.ascontiguousarray(np.broadcast_to(values, self.shape), dtype=np.float64)


def with_slopes(
    network: fx.GraphModule,
    census: Census,
    granularity: str,
    *,
    draws_lines: bool = False,
) -> tuple[fx.GraphModule, dict[str, SlopedReLU]]:
    """Return a copy of a traced network with a slope in place of every ReLU of its census, and the slopes by name.

    Args:
        network: not changed.
        census: of it.
        granularity: of the slopes.
        draws_lines: whether lines take the place of ReLUs where they are free, see `lines`; elsewhere the identity
            does.
    """
    lines = first_lines(network) if draws_lines else {}
    shapes = {layer.name: layer.shape for layer in census.layers}
    own, made = replace_relus(
        network,
        list(shapes),
        lambda site: SlopedReLU(site.kind, shapes[site.name], granularity, site.name, lines.get(site.name)),
    )
    return own, {name: module for name, module in made.items() if isinstance(module, SlopedReLU)}


def is_slope(name: str) -> bool:
    """Tell whether an entry of the state dictionary of such a network is a slope, and not one of the user's."""
    return name.startswith(f"{SEARCH_PREFIX}_")


def watch(slopes: Mapping[str, SlopedReLU], watched: bool) -> None:
    """Keep inputs and outputs of every slope from now on, or let go of them."""
    for slope in slopes.values():
        slope.watched = watched
        if not watched:
            slope.before = slope.after = None


@contextmanager
def watching(*slopes: Mapping[str, SlopedReLU]) -> Iterator[None]:
    """Keep inputs and outputs of every slope for a while."""
    for each in slopes:
        watch(each, True)
    try:
        yield
    finally:
        for each in slopes:
            watch(each, False)


@dataclass(frozen=True)
class Survey:
    """What a finder may look at between training steps.

    Attributes:
        network: with slopes.
        slopes: of it, by call site.
        teacher: the full network, also with slopes, which stay at 1.
        teacher_slopes: of it.
        batches: gives images and labels of training images, without augmentation; every call the same ones.
        loss: of logits against the teacher's logits and the labels.
        temperature: of that loss.
        mean: over all processes that train together.
    """

    network: fx.GraphModule
    slopes: Mapping[str, SlopedReLU]
    teacher: fx.GraphModule
    teacher_slopes: Mapping[str, SlopedReLU]
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    temperature: float
    mean: Callable[[Tensor], Tensor]


class MaskFinder:
    """The search of one method: a subclass says what happens between the steps of training.

    Attributes:
        trains_slopes: whether the optimiser changes the slopes.
        matches_teacher: whether the loss needs the teacher's activations.
        one_schedule: whether the search is the beginning of the schedule that trains the network. Otherwise it has a
            schedule of its own.
        draws_lines: whether lines take the place of removed ReLUs where that costs nothing, see `lines`.
        limits_layers: whether it can keep to `MaskOrder.most_layers`.
    """

    trains_slopes: ClassVar[bool] = False
    one_schedule: ClassVar[bool] = False
    matches_teacher: ClassVar[bool] = False
    draws_lines: ClassVar[bool] = False
    limits_layers: ClassVar[bool] = False

    def __init__(self, slopes: Mapping[str, SlopedReLU], order: MaskOrder, *, steps: int, epochs: int) -> None:
        """Begin a search.

        Args:
            slopes: of the network, by call site; all at 1.
            order: what to find.
            steps: of one epoch.
            epochs: of the search.
        """
        self.slopes = slopes
        self.order = order
        self.steps = steps
        self.epochs = epochs
        self.total = sum(math.prod(slope.shape) for slope in slopes.values())

    def begin_epoch(self, epoch: int, survey: Survey) -> None:
        """An epoch, counted from 0, is about to begin."""

    def extra_loss(self, survey: Survey) -> Tensor | None:
        """Return what is added to the loss of the last batch."""
        return None

    def slope_rate(self, momentum: float) -> float:
        """Return the learning rate of the slopes, where the optimiser changes them."""
        return 0.0

    def before_step(self) -> None:
        """Gradients are there, and are about to be applied."""

    def after_step(self) -> None:
        """The optimiser has changed weights and slopes."""

    def end_epoch(self, epoch: int, survey: Survey) -> None:
        """An epoch, counted from 0, is over."""

    def is_finished(self) -> bool:
        """Tell whether the masks are found before the last epoch; the weights then train on with them."""
        return False

    def relus(self) -> int:
        """Return how many ReLUs there are as things stand, for people to see."""
        return sum(int(mask.sum()) for mask in kept(self.slopes).values())

    def state(self) -> dict[str, Any]:
        """Return what a search that was interrupted needs besides the slopes, as JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""

    def masks(self) -> dict[str, Mask]:
        """Return the masks as things stand; once the search is over they are within the budget."""
        return kept(self.slopes)


def set_masks(slopes: Mapping[str, SlopedReLU], masks: Mapping[str, Mask]) -> None:
    """Set all slopes to their masks."""
    for name, slope in slopes.items():
        slope.set_mask(masks[name])


def kept(slopes: Mapping[str, SlopedReLU]) -> dict[str, Mask]:
    """Return where the slopes are above one half."""
    return {name: slope.slopes() > 0.5 for name, slope in slopes.items()}
