"""Second-order Taylor importance in the manner of ReLUPruner, as a finder of masks.

What is known of the method: each ReLU gets an importance from a second-order Taylor expansion of the loss, layers are
weighted, and masks shrink progressively. Neither its formula nor its layer weights could be verified here, so what
follows is the textbook expansion, and layers are not weighted.

Linearising the ReLU of one element moves its activation by d = x - relu(x) = min(x, 0) and the loss by

    delta = g * d + d * H * d / 2,

with the gradient g of the loss with respect to the activation and the diagonal H of its Hessian. H is approximated by
the Fisher information of the teacher's kind of answers (labels drawn from the network's own answers at the
temperature of distillation), which for these losses is the Gauss-Newton matrix: d * H * d becomes (h * d)^2 with the
gradient h for a drawn label. The importance of an element is the mean of delta over training images. An element that
is never negative has importance 0.

Masks shrink in as many rounds as the search has epochs, geometrically: importances are measured, and while the network
is trained for an epoch, the least important ReLUs turn into the identity. Importances are those of the teacher, in
every round on other images. Measured on the network that has lost ReLUs already, they drift: the early layers look more
and more important, and at a small size the reduced networks were 4 to 12 points worse (docs/tried.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor

from ...census import evaluating
from .finding import MaskFinder, MaskOrder, SlopedReLU, Survey, kept, set_masks, watching
from .selection import Array, choose

_FADE = 0.8  # share of a round over which ReLUs turn into the identity


class ReLUPruner(MaskFinder):
    """Remove the ReLUs of least second-order importance, round by round."""

    def __init__(self, slopes: Mapping[str, SlopedReLU], order: MaskOrder, *, steps: int, epochs: int) -> None:
        """See `MaskFinder`."""
        super().__init__(slopes, order, steps=steps, epochs=epochs)
        self.step = 0
        self.goals: dict[str, Tensor] = {}
        self.leaving: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin_epoch(self, epoch: int, survey: Survey) -> None:
        """Choose the ReLUs that go in a round."""
        goal = round(self.total * (self.order.budget / self.total) ** ((epoch + 1) / self.epochs))
        scores = importance(replace(survey, network=survey.teacher, slopes=survey.teacher_slopes))
        current = kept(self.slopes)
        for name, mask in current.items():
            scores[name][~mask] = -np.inf
        chosen = choose(scores, max(goal, self.order.budget), self.order.granularity)
        before = {name: slope.alpha.clone() for name, slope in self.slopes.items()}
        set_masks(self.slopes, {name: chosen[name] & mask for name, mask in current.items()})
        self.step = 0
        self.goals = {name: slope.alpha.clone() for name, slope in self.slopes.items()}
        self.leaving = {name: before[name] - kept_slopes for name, kept_slopes in self.goals.items()}
        self._fade()

    def after_step(self) -> None:
        """Let the ReLUs of the round fade on."""
        self.step += 1
        self._fade()

    @torch.no_grad()
    def _fade(self) -> None:
        left = max(0.0, 1 - self.step / max(1.0, _FADE * self.steps))
        for name, slope in self.slopes.items():
            slope.alpha.copy_(torch.add(self.goals[name], self.leaving[name], alpha=left))


def importance(survey: Survey) -> dict[str, Array]:
    """Return the mean change of the loss when the ReLU of one element becomes the identity, by call site.

    Elements without a ReLU have the importance that theirs would have.
    """
    slopes = list(survey.slopes.values())
    sums: list[Tensor] = []
    count = 0
    with evaluating(survey.network), watching(survey.slopes):
        for images, labels in survey.batches():
            change = _changes(survey, slopes, images, labels)
            sums = [a + b for a, b in zip(sums, change, strict=True)] if sums else change
            count += len(images)
    means = [survey.mean(total / count).double().cpu().numpy() for total in sums]
    return dict(zip(survey.slopes, means, strict=True))


def _changes(survey: Survey, slopes: Sequence[SlopedReLU], images: Tensor, labels: Tensor) -> list[Tensor]:
    """Return the sums over a batch of delta, for every element of every layer."""
    with torch.no_grad():
        answers = survey.teacher(images).float()
    with torch.enable_grad():
        logits = survey.network(images.detach().requires_grad_()).float()  # so that a frozen one has gradients too
        activations = [slope.after for slope in slopes if slope.after is not None]
        softened = logits / survey.temperature
        drawn = torch.multinomial(softened.detach().softmax(1), 1)[:, 0]
        # Sums over the batch, so that each image's gradient is its own.
        loss = survey.loss(logits, answers, labels) * len(images)
        fisher = survey.temperature * F.cross_entropy(softened, drawn, reduction="sum")
        g = torch.autograd.grad(loss, activations, retain_graph=True)
        h = torch.autograd.grad(fisher, activations)
    with torch.no_grad():
        return [_change(slope, g_k, h_k) for slope, g_k, h_k in zip(slopes, g, h, strict=True)]


def _change(slope: SlopedReLU, g: Tensor, h: Tensor) -> Tensor:
    """Return the sum over the batch of delta, for every element of a layer."""
    assert slope.before is not None
    x = slope.before.float()
    d = x - slope.activation(x)
    return (g.float() * d + (h.float() * d).square() / 2).sum(0)
