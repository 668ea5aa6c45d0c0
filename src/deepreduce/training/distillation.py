"""Knowledge distillation (Hinton, Vinyals, Dean, 2015), which DeepReDuce uses for every reduced network."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from jaxtyping import Float, Int64
from torch import Tensor


def distillation_loss(
    student: Float[Tensor, "n classes"],
    teacher: Float[Tensor, "n classes"],
    labels: Int64[Tensor, " n"],
    *,
    weight: float,
    temperature: float,
) -> Float[Tensor, ""]:
    """Return (1 - weight) * cross entropy + weight * T^2 * KL(teacher || student) at temperature T.

    T^2 keeps the gradient's size the same at every temperature (section 2 of the paper).

    Args:
        student: logits.
        teacher: logits for the same images.
        labels: true classes.
        weight: of the teacher's answers, in [0, 1].
        temperature: T, above 0.
    """
    soft = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    hard = F.cross_entropy(student, labels)
    return (1 - weight) * hard + weight * temperature**2 * soft
