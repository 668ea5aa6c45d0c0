"""Selective network linearisation (Cho, Joshi, Reagen, Garg, Hegde: "Selective Network Linearization for Efficient
Private Inference", ICML 2022), as a finder of masks.

What the paper describes: every ReLU gets a trainable slope, f(x) = alpha * relu(x) + (1 - alpha) * x, which begins
at 1. Weights and slopes are trained together on the loss plus lambda * sum |alpha|. Where the number of slopes above
a threshold does not fall fast enough, lambda is raised. Once it has come down to the budget, the slopes are rounded to
0 or 1 and frozen, and the network is fine-tuned with distillation.

What is our own, because the paper's settings are not known here or do not fit a short search:

* The slopes take steps of SGD on their gradient in units of its root mean square (of one element, in the first step),
  so that lambda and the learning rate mean the same in every network. Slopes are held in [0, 1].
* "Not fast enough" is: the mean slope is above a straight line that reaches the budget's share after three fifths of
  the search. While it is, lambda is raised by a tenth at every look.
* At the end the `budget` largest slopes stay, not all above the threshold, so that the budget is met exactly. The
  weights then train on for what is left of the search, so that it costs what was asked for.
* Fine-tuning is the training of any other candidate, from the weights that the search leaves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..masks import Mask
from .finding import MaskFinder, MaskOrder, SlopedReLU, Survey
from .selection import Array, choose

THRESHOLD = 0.01
"""A slope below it counts as the identity."""

_FIRST_STRENGTH = 0.5  # lambda, in units of the gradient's root mean square
_RAISE = 1.1
_CHECK_EVERY = 5  # steps between looks at the slopes: each look waits for the device
_PATH = 0.6  # share of the search in which the mean slope is to come down
_STRONGEST = 1e6


class SNL(MaskFinder):
    """Train a slope for every ReLU under a Lasso penalty."""

    trains_slopes = True

    def __init__(self, slopes: Mapping[str, SlopedReLU], order: MaskOrder, *, steps: int, epochs: int) -> None:
        """See `MaskFinder`."""
        super().__init__(slopes, order, steps=steps, epochs=epochs)
        self.strength = _FIRST_STRENGTH
        self.scale = 0.0
        self.step = 0
        self.active = self.total
        self._earlier = self._alphas()

    def slope_rate(self, momentum: float) -> float:
        """Return a rate at which a slope without any gradient falls from 1 to 0 in the search, at a lambda of 1."""
        return (1 - momentum) / max(1.0, _PATH * self.steps * self.epochs)

    def before_step(self) -> None:
        """Bring the slopes' gradients to one scale and add the penalty's: it is lambda, since no slope is negative."""
        gradients = [(slope.group, slope.alpha.grad) for slope in self.slopes.values() if slope.alpha.grad is not None]
        if self.scale == 0:
            squares = sum(float((gradient.double() / group).square().sum()) for group, gradient in gradients)
            if not math.isfinite(squares):
                return  # fp16 has overflowed; this step is not taken, and the next one may do
            self.scale = (squares / sum(gradient.numel() for _, gradient in gradients)) ** 0.5 or 1.0
        for group, gradient in gradients:
            gradient.div_(group * self.scale).add_(self.strength)

    @torch.no_grad()
    def after_step(self) -> None:
        """Hold the slopes in [0, 1], and now and then look how far they are."""
        for slope in self.slopes.values():
            slope.alpha.clamp_(0, 1)
        self.step += 1
        if self.step % _CHECK_EVERY == 0:
            self._look()

    def end_epoch(self, epoch: int, survey: Survey) -> None:
        """Look at the slopes, so that a search that is continued here goes on alike."""
        self._look()

    @torch.no_grad()
    def _look(self) -> None:
        counts = [(slope.alpha > THRESHOLD).sum() * slope.group for slope in self.slopes.values()]
        sums = [slope.alpha.double().sum() * slope.group for slope in self.slopes.values()]
        active, total = torch.stack([torch.stack(counts).sum().double(), torch.stack(sums).sum()]).tolist()
        self.active = int(active)
        if self.is_finished():
            return
        self._earlier = self._alphas()
        share = self.order.budget / self.total
        progress = min(1.0, self.step / (_PATH * self.steps * self.epochs))
        if total / self.total > 1 - (1 - share) * progress:
            self.strength = min(self.strength * _RAISE, _STRONGEST)

    def is_finished(self) -> bool:
        """Tell whether no more slopes than the budget are above the threshold."""
        return self.active <= self.order.budget

    def relus(self) -> int:
        """Return how many slopes are above the threshold."""
        return self.active

    def state(self) -> dict[str, Any]:
        """See `MaskFinder.state`."""
        return {"strength": self.strength, "scale": self.scale, "step": self.step, "active": self.active}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `MaskFinder.restore`."""
        self.strength, self.scale = float(state["strength"]), float(state["scale"])
        self.step, self.active = int(state["step"]), int(state["active"])
        self._earlier = self._alphas()

    def masks(self) -> dict[str, Mask]:
        """Keep the largest slopes; of those that have fallen since the last look, the ones that were larger then."""
        return choose(self.scores(), self.order.budget, self.order.granularity)

    def scores(self) -> dict[str, Array]:
        """Return the order in which the slopes stay, by call site."""
        scores = {}
        for name, slope in self.slopes.items():
            now, earlier = slope.slopes(), slope.spread(self._earlier[name])
            scores[name] = np.where(now > THRESHOLD, 1 + now, earlier)
        return scores

    def _alphas(self) -> dict[str, Tensor]:
        """Return copies of the slopes as they are, on their device."""
        return {name: slope.alpha.detach().clone() for name, slope in self.slopes.items()}
