"""Our own method: whole layers go first, as in DeepReDuce, then the best ReLUs of what is left stay.

1. Culling. What every ReLU is worth is measured on the teacher, without training: its second-order importance
   (`relupruner.importance`). Of all sets of layers with at most `ROOM` times the budget, the one worth most stays.
   Large early layers are worth little for their size, so they go first, as the stage S1 does in DeepReDuce (section 3).
2. Masks. In the layers that are left the ReLUs of highest importance stay.
3. Fading and distillation, over the whole schedule: the candidate trains as any other of DeepReDuce's does.

Why it should be better than either half: nothing of the schedule is spent on a search, so that the network has all of
it to learn to do without its ReLUs; and few layers with many ReLUs each serve better than many layers with few. Tried
and left, on a quarter of ResNet18's width and ten classes of CIFAR-100 (docs/choices.md): searching with SNL in the
layers that are left; masks without culling; importance measured when all ReLUs have faded half-way; random masks.

With the granularity `channel` whole channels stay or go. In this project's private inference all granularities cost
what they keep; other engines need whole channels or layers for that.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from .finding import MaskFinder, Survey, set_masks
from .relupruner import importance
from .selection import choose

ROOM = 3.0
"""The layers that culling leaves have at most so many times the budget."""


class CulledMasks(MaskFinder):
    """Cull layers by importance, then keep the most important ReLUs of the rest.

    Attributes:
        room: see `ROOM`.
    """

    trains = False
    survey_images = 4096
    room: ClassVar[float] = ROOM

    def begin_epoch(self, epoch: int, survey: Survey) -> None:
        """Choose the masks; there is nothing else to this search."""
        worth = importance(survey)
        budget, granularity = self.order.budget, self.order.granularity
        if granularity != "layer":  # where whole layers stay, the best of them that fit are the answer
            left = choose(worth, self.room_for(), "layer")
            span = 1 + max(float(value.max()) for value in worth.values()) - min(float(v.min()) for v in worth.values())
            worth = {name: np.where(left[name], value, value - span) for name, value in worth.items()}
        set_masks(self.slopes, choose(worth, budget, granularity))

    def room_for(self) -> int:
        """Return how many ReLUs the layers that are left may have: those of one layer at least."""
        return max(int(self.room * self.order.budget), min(math.prod(slope.shape) for slope in self.slopes.values()))
