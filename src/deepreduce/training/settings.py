"""The settings of a whole search."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import UsageError, problem
from ..reduction import DEFAULT_EXPONENT, method
from .config import TrainingConfig


@dataclass(frozen=True)
class SearchSettings:
    """What shapes a search.

    Attributes:
        training: how teacher and candidates are trained.
        criticality_epochs: epochs of the networks that measure criticality; None takes those of `training`.
        criticality_plain: measure criticality without distillation too (it is reported, and not used).
        exponent: w in C_k, at least 0.
        method: name of the method that proposes candidates.
        seeds: how many times teacher and candidates are trained, at least 1.
        budget: ReLUs that a candidate may have; None trains all.
        trained: the network comes with its weights and is not trained again.
    """

    training: TrainingConfig = field(default_factory=TrainingConfig)
    criticality_epochs: int | None = None
    criticality_plain: bool = True
    exponent: float = DEFAULT_EXPONENT
    method: str = "deepreduce"
    seeds: int = 1
    budget: int | None = None
    trained: bool = False

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: naming what is out of range.
        """
        method(self.method)
        for name, fine, allowed in (
            ("seeds", 1 <= self.seeds <= 100, "from 1 to 100"),
            ("exponent", 0 <= self.exponent <= 10, "from 0 to 10"),
            ("budget", self.budget is None or self.budget >= 1, "at least 1"),
            ("criticality_epochs", self.criticality_epochs is None or self.criticality_epochs >= 1, "at least 1"),
        ):
            if not fine:
                raise UsageError(
                    problem(
                        f"{name} must be {allowed}",
                        got=getattr(self, name),
                        remedy="correct the option",
                        where=f"--{name.replace('_', '-')}",
                    )
                )

    def criticality_config(self) -> TrainingConfig:
        """Return the training settings of the networks that measure criticality."""
        return replace(self.training, epochs=self.criticality_epochs or self.training.epochs)

    def to_json(self) -> dict[str, Any]:
        """Return the settings by name, those of training among them."""
        return {
            "method": self.method,
            "budget": self.budget,
            "seeds": self.seeds,
            "exponent": self.exponent,
            "criticality_epochs": self.criticality_epochs or self.training.epochs,
            "criticality_plain": self.criticality_plain,
            "trained": self.trained,
            **self.training.to_json(),
        }
