"""The settings of a whole search, and of the machine that carries it out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import UsageError, near_misses, problem
from ..reduction import DEFAULT_EXPONENT, Method, method
from .config import TrainingConfig

EXECUTORS = ("local", "ray")


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
        self.criticality_config()
        _check(
            self,
            ("seeds", 1 <= self.seeds <= 100, "from 1 to 100"),
            ("exponent", 0 <= self.exponent <= 10, "from 0 to 10"),
            ("budget", self.budget is None or self.budget >= 1, "at least 1"),
        )

    def criticality_config(self) -> TrainingConfig:
        """Return the training settings of the networks that measure criticality."""
        if self.criticality_epochs is None:
            return self.training
        _check(self, ("criticality_epochs", 1 <= self.criticality_epochs <= 100_000, "from 1 to 100,000"))
        return replace(self.training, epochs=self.criticality_epochs)

    def proposer(self) -> Method:
        """Return the method that proposes candidates."""
        return method(self.method)

    def to_json(self) -> dict[str, Any]:
        """Return the settings by name, those of training among them."""
        return {
            "method": self.method,
            "budget": self.budget,
            "seeds": self.seeds,
            "exponent": self.exponent,
            "criticality_epochs": self.criticality_config().epochs,
            "criticality_plain": self.criticality_plain,
            "trained": self.trained,
            **self.training.to_json(),
        }


@dataclass(frozen=True)
class RunOptions:
    """Where and how jobs run; on one machine none of it changes what comes out, but `threads` and `workers` change
    the last bits.

    Attributes:
        executor: `local` (this machine) or `ray` (a cluster; the run folder then lies on storage that all share).
        workers: jobs side by side, from 1 to 1024. One runs in this process; more run in processes of their own, and
            a script that asks for more must guard its top level with `if __name__ == "__main__"`.
        threads: processor threads of each job; None shares the cores out evenly. Sums of floating-point numbers
            depend on it: weights repeat bit for bit where it is the same.
        tracker: an experiment tracker that `accelerate` knows, such as `tensorboard`.
        checkpoint_seconds: how often the state of a running job is kept, at least 0 (after every epoch).
    """

    executor: str = "local"
    workers: int = 1
    threads: int | None = None
    tracker: str | None = None
    checkpoint_seconds: float = 20.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: naming what is out of range.
        """
        if self.executor not in EXECUTORS:
            raise UsageError(
                problem(
                    "the executor must be local or ray",
                    got=f"{self.executor!r}{near_misses(self.executor, list(EXECUTORS))}",
                    remedy="leave it out for this machine",
                    where="--executor",
                )
            )
        _check(
            self,
            ("workers", 1 <= self.workers <= 1024, "from 1 to 1024"),
            ("threads", self.threads is None or 1 <= self.threads <= 1024, "from 1 to 1024"),
            ("checkpoint_seconds", self.checkpoint_seconds >= 0, "at least 0"),
        )


def _check(settings: object, *rules: tuple[str, bool, str]) -> None:
    for name, fine, allowed in rules:
        if not fine:
            raise UsageError(
                problem(
                    f"{name} must be {allowed}",
                    got=getattr(settings, name),
                    remedy="correct the option",
                    where=f"--{name.replace('_', '-')}",
                )
            )
