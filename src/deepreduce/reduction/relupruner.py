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

Masks shrink in as many rounds as the search has epochs, geometrically: importances are measured, the least important
ReLUs go, and the network is trained for an epoch.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor

from .finding import MaskFinder, SlopedReLU, Survey, kept, set_masks, watch
from .selection import Array, choose


class ReLUPruner(MaskFinder):
    """Remove the ReLUs of least second-order importance, round by round."""

    def begin_epoch(self, epoch: int, survey: Survey) -> None:
        """Remove the ReLUs of a round."""
        goal = round(self.total * (self.order.budget / self.total) ** ((epoch + 1) / self.epochs))
        scores = importance(survey)
        current = kept(self.slopes)
        for name, mask in current.items():
            scores[name][~mask] = -np.inf
        chosen = choose(scores, max(goal, self.order.budget), self.order.granularity)
        set_masks(self.slopes, {name: chosen[name] & mask for name, mask in current.items()})


def importance(survey: Survey) -> dict[str, Array]:
    """Return the mean change of the loss when the ReLU of one element becomes the identity, by call site.

    Elements without a ReLU have the importance that theirs would have.
    """
    network, slopes = survey.network, list(survey.slopes.values())
    was_training = network.training
    network.eval()
    watch(survey.slopes, True)
    sums: list[Tensor] = []
    count = 0
    for images, labels in survey.batches():
        with torch.no_grad():
            answers = survey.teacher(images).float()
        with torch.enable_grad():
            logits = network(images).float()
            activations = [slope.after for slope in slopes if slope.after is not None]
            softened = logits / survey.temperature
            drawn = torch.multinomial(softened.detach().softmax(1), 1)[:, 0]
            # Sums over the batch, so that each image's gradient is its own.
            loss = survey.loss(logits, answers, labels) * len(images)
            fisher = survey.temperature * F.cross_entropy(softened, drawn, reduction="sum")
            g = torch.autograd.grad(loss, activations, retain_graph=True)
            h = torch.autograd.grad(fisher, activations)
        with torch.no_grad():
            change = [_change(slope, g_k, h_k) for slope, g_k, h_k in zip(slopes, g, h, strict=True)]
            sums = [a + b for a, b in zip(sums, change, strict=True)] if sums else change
        count += len(images)
    watch(survey.slopes, False)
    network.train(was_training)
    means = [survey.mean(total / count).double().cpu().numpy() for total in sums]
    return dict(zip(survey.slopes, means, strict=True))


def _change(slope: SlopedReLU, g: Tensor, h: Tensor) -> Tensor:
    """Return the sum over the batch of delta, for every element of a layer."""
    assert slope.before is not None
    x = slope.before.float()
    d = x - slope.activation(x)
    return (g.float() * d + (h.float() * d).square() / 2).sum(0)
