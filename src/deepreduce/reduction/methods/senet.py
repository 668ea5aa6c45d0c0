"""Sensitivity-budgeted masks in the manner of SENet (Kundu, Lu, Zhang, Liu, Beerel: "Learning to Linearize Deep Neural
Networks for Secure and Efficient Private Inference", ICLR 2023), as a finder of masks.

What the paper describes: the sensitivity of each layer to the loss of its ReLUs gives it a part of the budget; within
it the ReLUs are chosen for which the network with all ReLUs and the one with few differ most, while the latter is
trained with distillation and a penalty on the mismatch of activations, until the masks come to rest; then the network
is fine-tuned.

What is our own, because the paper's definitions could not be verified here:

* The sensitivity of a layer is measured directly: the Kullback-Leibler divergence from the teacher's answers when this
  layer alone is linear and batch norms use the statistics of the batch. (The paper derives it from how sensitive the
  layer's weights are to pruning.) Budgets are in proportion to it, at most the whole layer.
* The mismatch of an element is the mean absolute difference between the teacher's activation and the student's
  pre-activation: what linearising it would get wrong.
* The penalty is the mean over layers of |a_student - a_teacher|^2 / |a_teacher|^2, with weight 1.
* Fine-tuning is the training of any other candidate, from the weights that the search leaves, without that penalty.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from ...census import evaluating
from .finding import MaskFinder, MaskOrder, SlopedReLU, Survey, kept, set_masks, watching
from .selection import Array, choose

_AT_REST = 0.01  # share of the kept ReLUs that change in an epoch
_SENSITIVITY_BATCHES = 4


class SENet(MaskFinder):
    """Give each layer a budget by its sensitivity, and find masks within it by the mismatch of activations."""

    matches_teacher = True

    def __init__(self, slopes: Mapping[str, SlopedReLU], order: MaskOrder, *, steps: int, epochs: int) -> None:
        """See `MaskFinder`."""
        super().__init__(slopes, order, steps=steps, epochs=epochs)
        self.sensitivity: dict[str, float] = {}
        self.share: dict[str, int] = {}
        self.changed = 1.0

    def begin_epoch(self, epoch: int, survey: Survey) -> None:
        """Before the first epoch, share out the budget and choose the first masks."""
        if epoch > 0:
            return
        self._share_out(measure_sensitivity(survey))
        self._choose(survey)

    def extra_loss(self, survey: Survey) -> Tensor:
        """Return the mismatch of activations over the last batch."""
        losses = []
        for name, slope in survey.slopes.items():
            teacher = survey.teacher_slopes[name].after
            assert slope.after is not None and teacher is not None
            wanted = teacher.detach().float()
            losses.append(F.mse_loss(slope.after.float(), wanted) / wanted.square().mean().clamp_min(1e-12))
        return torch.stack(losses).mean()

    def end_epoch(self, epoch: int, survey: Survey) -> None:
        """Choose the masks anew, unless the search ends here: then those that were trained stay."""
        if epoch < self.epochs - 1:
            self._choose(survey)

    def _choose(self, survey: Survey) -> None:
        before = kept(self.slopes)
        if self.order.granularity == "layer":  # whole layers: where a ReLU is worth most
            worth = {name: self.sensitivity[name] / math.prod(slope.shape) for name, slope in self.slopes.items()}
            scores = {name: np.full(slope.shape, worth[name]) for name, slope in self.slopes.items()}
            masks = choose(scores, self.order.budget, "layer")
        else:
            masks = choose(mismatch(survey), self.order.budget, self.order.granularity, share=self.share)
        set_masks(self.slopes, masks)
        now = sum(int(mask.sum()) for mask in masks.values())
        self.changed = sum(int((mask & ~before[name]).sum()) for name, mask in masks.items()) / max(1, now)
        if all(mask.all() for mask in before.values()):
            self.changed = 1.0  # the first masks

    def is_finished(self) -> bool:
        """Tell whether the masks have come to rest."""
        return self.changed < _AT_REST

    def _share_out(self, sensitivity: Mapping[str, float]) -> None:
        self.sensitivity = dict(sensitivity)
        sizes = {name: math.prod(slope.shape) for name, slope in self.slopes.items()}
        self.share = layer_budgets(sensitivity, sizes, self.order.budget)

    def state(self) -> dict[str, Any]:
        """See `MaskFinder.state`."""
        return {"sensitivity": self.sensitivity, "changed": self.changed}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `MaskFinder.restore`."""
        self._share_out({name: float(value) for name, value in state["sensitivity"].items()})
        self.changed = float(state["changed"])


def layer_budgets(sensitivity: Mapping[str, float], sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """Share a budget out in proportion to sensitivity; what a layer is too small for goes to the others.

    Args:
        sensitivity: by call site, at least 0.
        sizes: number of elements by call site.
        budget: of all together, below the sum of the sizes.

    Returns:
        Whole numbers that add up to the budget.
    """
    weight = {name: max(value, 1e-12) for name, value in sensitivity.items()}
    share: dict[str, int] = {}
    left = budget
    waiting = list(weight)
    while waiting:
        total = sum(weight[name] for name in waiting)
        full = [name for name in waiting if left * weight[name] >= sizes[name] * total]
        if not full:
            break
        for name in full:
            share[name] = min(sizes[name], left)
            left -= share[name]
        waiting = [name for name in waiting if name not in full]
    total = sum(weight[name] for name in waiting)
    exact = {name: left * weight[name] / total for name in waiting}
    share.update({name: int(value) for name, value in exact.items()})
    missing = left - sum(share[name] for name in waiting)
    for name in sorted(waiting, key=lambda name: int(exact[name]) - exact[name])[:missing]:
        share[name] += 1
    return {name: share[name] for name in sensitivity}


@torch.no_grad()
def measure_sensitivity(survey: Survey) -> dict[str, float]:
    """Return the divergence from the teacher's answers when one layer alone is linear, by call site.

    Batch norms take the statistics of the batch, as they would after a short training, and are not changed.
    """
    network = copy.deepcopy(survey.teacher).eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = 0.0
    slopes = {module.site: module for module in network.modules() if isinstance(module, SlopedReLU)}
    found = dict.fromkeys(survey.slopes, 0.0)
    for number, (images, _) in enumerate(survey.batches()):
        if number == _SENSITIVITY_BATCHES:
            break
        answers = F.log_softmax(network(images).float() / survey.temperature, dim=1)
        for name, slope in slopes.items():
            slope.alpha.zero_()
            logits = F.log_softmax(network(images).float() / survey.temperature, dim=1)
            slope.alpha.fill_(1)
            found[name] += float(F.kl_div(logits, answers, reduction="batchmean", log_target=True))
    means = survey.mean(torch.tensor(list(found.values()), device=next(network.parameters()).device))
    return {name: max(0.0, float(value)) for name, value in zip(found, means, strict=True)}


@torch.no_grad()
def mismatch(survey: Survey) -> dict[str, Array]:
    """Return the mean over images of |teacher's activation - student's pre-activation|, by call site."""
    sums: dict[str, Tensor] = {}
    images_seen = 0
    with evaluating(survey.network), watching(survey.slopes, survey.teacher_slopes):
        for images, _ in survey.batches():
            survey.network(images)
            survey.teacher(images)
            images_seen += len(images)
            for name, slope in survey.slopes.items():
                teacher = survey.teacher_slopes[name].after
                assert slope.before is not None and teacher is not None
                missed = (teacher.float() - slope.before.float()).abs().sum(0)
                sums[name] = missed if name not in sums else sums[name] + missed
    return {name: survey.mean(value / images_seen).double().cpu().numpy() for name, value in sums.items()}
