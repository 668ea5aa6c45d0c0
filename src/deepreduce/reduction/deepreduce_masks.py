"""Masks found within the training of the reduced network itself: ours.

SNL (`snl`) trains a slope for every ReLU under a Lasso penalty, rounds the slopes, and fine-tunes. As published the two
are trainings of their own, each with a learning rate that falls to zero. Here they are the first part and the rest of
one schedule: the learning rate does not end where the masks are found, it is still near its peak. So the weights that
are to do without their ReLUs have not settled when they lose them, and most of the epochs train the network as it will
be. The masks are ready after about a quarter of the schedule; what is left of the search trains on with them. At the
end of the search the momentum starts anew, and the order of the images.

Slopes and penalty are those of `snl`. Two things differ. Layers that would keep few ReLUs keep none, because each
costs a round trip in private inference: see `choose_in_few_layers`. And what takes the place of a removed ReLU is not
the identity everywhere: see `lines`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from .finding import MaskOrder, SlopedReLU
from .masks import Mask
from .selection import choose, choose_in_few_layers
from .snl import SNL

_SETTLED = 0.5  # share of the path after which the slopes tell layers apart


class DeepReDuceMasks(SNL):
    """Train a slope for every ReLU under a Lasso penalty, at the beginning of the schedule that trains the network."""

    one_schedule: ClassVar[bool] = True
    draws_lines: ClassVar[bool] = True
    limits_layers: ClassVar[bool] = True

    def __init__(self, slopes: Mapping[str, SlopedReLU], order: MaskOrder, *, steps: int, epochs: int) -> None:
        """See `MaskFinder`."""
        super().__init__(slopes, order, steps=steps, epochs=epochs)
        self.given_up: list[str] = []

    @torch.no_grad()
    def after_step(self) -> None:
        """See `SNL.after_step`; a layer that was given up stays without its ReLUs."""
        for name in self.given_up:
            self.slopes[name].alpha.zero_()
        super().after_step()

    def _look(self) -> None:
        """Give up layer after layer on the second half of the path, where their number is limited."""
        if self.order.most_layers is not None and not self.is_finished():
            left = max(0.0, 1 - self.progress()) / (1 - _SETTLED)
            many = len(self.slopes) - self.order.most_layers
            allowed = self.order.most_layers + math.ceil(many * min(1.0, left))
            self._give_up(allowed)
        super()._look()

    @torch.no_grad()
    def _give_up(self, allowed: int) -> None:
        """Take all ReLUs of the layers that would keep fewest, until so many are left."""
        while len(self.slopes) - len(self.given_up) > allowed:
            scores = {name: score for name, score in self.scores().items() if name not in self.given_up}
            masks = choose(scores, self.order.budget, self.order.granularity)
            fewest = min(masks, key=lambda name: int(masks[name].sum()))
            self.given_up.append(fewest)
            self.slopes[fewest].alpha.zero_()

    def state(self) -> dict[str, Any]:
        """See `MaskFinder.state`."""
        return {**super().state(), "given_up": self.given_up}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `MaskFinder.restore`."""
        self.given_up = list(state["given_up"])
        super().restore(state)

    def masks(self) -> dict[str, Mask]:
        """Keep the largest slopes, in few layers; see `SNL.masks`."""
        order = self.order
        scores = {name: score for name, score in self.scores().items() if name not in self.given_up}
        found = choose_in_few_layers(scores, order.budget, order.granularity, most_layers=order.most_layers)
        return {name: found.get(name, np.zeros(slope.shape, bool)) for name, slope in self.slopes.items()}
