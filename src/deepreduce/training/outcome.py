"""What comes out of jobs: networks with all their seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .config import TrainingConfig
from .jobs import Job
from .proposals import Proposal

Result = tuple[Job, dict[str, Any] | None, str | None]
"""A job, its metrics if it is finished, and why it failed if it did."""


@dataclass(frozen=True)
class Outcome:
    """One network of the search, over all its seeds.

    Attributes:
        job: of the first seed.
        proposal: its candidate and counts; None for the teacher.
        runs: metrics by seed.
        failure: why it failed, if it did.
    """

    job: Job
    proposal: Proposal | None
    runs: tuple[dict[str, Any], ...]
    failure: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every seed is finished."""
        return bool(self.runs) and self.failure is None

    @property
    def best_run(self) -> dict[str, Any]:
        """Metrics of the seed that is best on held-out images, the first of equal ones; the network is `complete`."""
        return self.runs[self._best]

    @property
    def best_place(self) -> str:
        """Folder of that seed within the run folder."""
        return self.places[self._best]

    @property
    def _best(self) -> int:
        return max(range(len(self.runs)), key=lambda index: self.accuracies[index])

    @property
    def accuracies(self) -> list[float]:
        """Accuracy on held-out images, one per seed, in [0, 1]."""
        return [run["validation"]["correct"] / run["validation"]["n"] for run in self.runs]

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the seeds."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def places(self) -> list[str]:
        """Folder of each seed within the run folder."""
        return [replace(self.job, seed=run["seed"]).place for run in self.runs]


def outcomes_of(results: Sequence[Result], proposals: dict[str, Proposal]) -> list[Outcome]:
    """Put the seeds of each network together.

    Args:
        results: of a phase.
        proposals: by id; networks that are not among them have none.
    """
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result[0].id, []).append(result)
    return [
        Outcome(
            job=group[0][0],
            proposal=proposals.get(name),
            runs=tuple(metrics for _, metrics, _ in group if metrics is not None),
            failure=next((failure for _, _, failure in group if failure is not None), None),
        )
        for name, group in grouped.items()
    ]


def slowed(metrics: dict[str, Any]) -> str:
    """Say of a finished job that its training diverged at first, and with which learning rate it did not; or nothing.

    Args:
        metrics: of the job; those of earlier releases do not hold the learning rate.
    """
    asked = TrainingConfig.from_json(dict(metrics["config"])).learning_rate
    rate = metrics.get("learning_rate", asked)
    return f"trained with learning rate {rate:g}, for it diverged with {asked:g}" if rate < asked else ""
