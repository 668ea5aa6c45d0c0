"""Our own method: whole layers go first, as in DeepReDuce, and masks are searched in what is left, as in SNL.

1. Culling. What the ReLUs of each layer are worth is measured on the teacher, without training: the sum of their
   second-order importances (`relupruner.importance`). Of all sets of layers with at most `ROOM` times the budget, the
   one worth most stays. Large early layers are worth little for their size, so they go first, as the stage S1 does in
   DeepReDuce (section 3). (Making one layer at a time linear, as `senet.measure_sensitivity` does, ranked the first
   layer highest on CIFAR-100: it cannot see what training makes up for.)
2. Fading. The culled layers turn into the identity over the first part of the search, as a culled candidate's do.
3. Masks. From then on the search is that of SNL, with slopes in the layers that are left alone.
4. Fine-tuning with distillation is the training of any other candidate, from the weights that the search leaves.

Why it should be better than either half: a search over all ReLUs spends its short time on pushing down hundreds of
thousands of slopes that culling removes at once, and the network learns to do without them from the beginning; culling
alone removes whole layers although a part of one would be worth more than all of another.

With the granularity `channel` whole channels stay or go. In this project's private inference all granularities cost
what they keep; other engines need whole channels or layers for that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from .finding import MaskFinder, MaskOrder, SlopedReLU, Survey, kept
from .masks import Mask
from .relupruner import importance
from .selection import choose
from .snl import SNL

ROOM = 3.0
"""The layers that culling leaves have at most so many times the budget."""

_FADE = 0.2  # share of the search over which culled layers turn into the identity


class CulledMasks(MaskFinder):
    """Cull layers by importance, then search masks in the rest.

    Attributes:
        inner: the finder for the layers that are left.
        room: see `ROOM`.
    """

    inner: ClassVar[type[MaskFinder]] = SNL
    room: ClassVar[float] = ROOM
    trains_slopes = SNL.trains_slopes

    def __init__(self, slopes: Mapping[str, SlopedReLU], order: MaskOrder, *, steps: int, epochs: int) -> None:
        """See `MaskFinder`."""
        super().__init__(slopes, order, steps=steps, epochs=epochs)
        self.step = 0
        self._leave(list(slopes))

    def _leave(self, names: list[str]) -> None:
        """Search in these layers alone."""
        self.left = {name: slope for name, slope in self.slopes.items() if name in names}
        self.culled = {name: slope for name, slope in self.slopes.items() if name not in names}
        self.finder = self.inner(self.left, self.order, steps=self.steps, epochs=self.epochs)

    def _narrowed(self, survey: Survey) -> Survey:
        teacher_slopes = {name: survey.teacher_slopes[name] for name in self.left}
        return replace(survey, slopes=self.left, teacher_slopes=teacher_slopes)

    def begin_epoch(self, epoch: int, survey: Survey) -> None:
        """Before the first epoch, choose the layers that are left."""
        if epoch == 0:
            worth = choose(importance(survey), self.room_for(), "layer")
            self._leave([name for name, mask in worth.items() if mask.any()])
        self.finder.begin_epoch(epoch, self._narrowed(survey))

    def room_for(self) -> int:
        """Return how many ReLUs the layers that are left may have: those of one layer at least."""
        return max(int(self.room * self.order.budget), min(math.prod(slope.shape) for slope in self.slopes.values()))

    def slope_rate(self, momentum: float) -> float:
        """See `MaskFinder.slope_rate`."""
        return self.finder.slope_rate(momentum)

    def before_step(self) -> None:
        """Leave culled slopes to the fading alone."""
        for slope in self.culled.values():
            slope.alpha.grad = None  # the optimiser passes over it
        self.finder.before_step()

    @torch.no_grad()
    def after_step(self) -> None:
        """Let culled layers fade on."""
        self.step += 1
        for slope in self.culled.values():
            slope.alpha.fill_(max(0.0, 1 - self._faded()))
        self.finder.after_step()

    def _faded(self) -> float:
        return min(1.0, self.step / max(1.0, _FADE * self.steps * self.epochs))

    def end_epoch(self, epoch: int, survey: Survey) -> None:
        """See `MaskFinder.end_epoch`."""
        self.finder.end_epoch(epoch, self._narrowed(survey))

    def is_finished(self) -> bool:
        """Tell whether culled layers have faded and the inner search has come to its end."""
        return self.finder.is_finished() and (not self.culled or self._faded() >= 1)

    def state(self) -> dict[str, Any]:
        """See `MaskFinder.state`."""
        return {"left": list(self.left), "step": self.step, "inner": self.finder.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `MaskFinder.restore`."""
        self._leave([str(name) for name in state["left"]])
        self.step = int(state["step"])
        self.finder.restore(state["inner"])

    def masks(self) -> dict[str, Mask]:
        """Return the inner finder's masks, and empty ones for culled layers."""
        found = self.finder.masks()
        gone = {name: np.zeros(slope.shape, bool) for name, slope in self.culled.items()}
        return {name: found[name] if name in found else gone[name] for name in kept(self.slopes)}
