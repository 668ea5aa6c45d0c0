"""Criticality: how much accuracy the ReLUs of one stage are worth (DeepReDuce, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...census import Census
from ...errors import UsageError, problem
from ..candidate import Candidate

DEFAULT_EXPONENT = 0.07
"""w of C_k. The value is taken over from secondary reports of the paper, so it stays a parameter."""


@dataclass(frozen=True)
class Criticality:
    """The worth of one stage.

    Attributes:
        stage: its name.
        relus: its ReLUs in the full network.
        accuracy: of the network with ReLUs in this stage alone, distilled, on held-out images, in [0, 1]; None if its
            training diverged, so that it counts as chance in C_k.
        accuracy_plain: the same network trained without distillation; None if it was not trained.
        value: C_k; 0 for the stage whose ReLUs are worth least.
        reason: why its network was not trained as asked; empty as a rule.
    """

    stage: str
    relus: int
    accuracy: float | None
    accuracy_plain: float | None
    value: float
    reason: str = ""


def criticality_candidates(census: Census) -> tuple[Candidate, ...]:
    """Return, stage by stage, the network that has ReLUs in that stage alone."""
    return tuple(Candidate(keep=(stage.name,)) for stage in census.stages)


def measure_criticality(
    census: Census,
    accuracy: Mapping[str, float],
    *,
    accuracy_plain: Mapping[str, float] | None = None,
    exponent: float = DEFAULT_EXPONENT,
) -> tuple[Criticality, ...]:
    """Compute C_k for every stage k.

        C_k = (Acc_k - min_j Acc_j) / ReLUs_k ** w,  with accuracies in percent

    Args:
        census: of the full network.
        accuracy: by stage, of the network with ReLUs in that stage alone, trained with distillation, in [0, 1].
        accuracy_plain: the same without distillation; reported, and not used in C_k.
        exponent: w, at least 0; 0 ranks by accuracy alone.

    Returns:
        One value per stage, in the order of the stages.

    Raises:
        UsageError: if a stage has no accuracy, an accuracy is not in [0, 1], or the exponent is negative.
    """
    for stage in census.stages:
        if not 0 <= accuracy.get(stage.name, -1) <= 1:
            raise UsageError(
                problem(
                    "every stage needs an accuracy from 0 to 1",
                    got=f"{accuracy.get(stage.name, 'none')} for {stage.name}",
                    remedy="train the network with ReLUs in that stage alone",
                )
            )
    if not 0 <= exponent < math.inf:
        raise UsageError(
            problem(
                "the exponent of C_k is at least 0", got=exponent, remedy=f"use {DEFAULT_EXPONENT}", where="exponent"
            )
        )
    least = min(accuracy[stage.name] for stage in census.stages)
    return tuple(
        Criticality(
            stage=stage.name,
            relus=stage.relus,
            accuracy=accuracy[stage.name],
            accuracy_plain=None if accuracy_plain is None else accuracy_plain.get(stage.name),
            value=100 * (accuracy[stage.name] - least) / stage.relus**exponent,
        )
        for stage in census.stages
    )


def least_critical_first(criticality: tuple[Criticality, ...]) -> tuple[str, ...]:
    """Order the stages for culling; of equally critical stages the one with more ReLUs goes first."""
    return tuple(c.stage for c in sorted(criticality, key=lambda c: (c.value, -c.relus)))
