"""Cheap search: short training ranks the candidates, and the full schedule is spent on those near the front alone.

The paper trains every candidate for the full schedule. Here every candidate, and every network that measures
criticality, is first trained for `SearchSettings.rank_epochs`, all of them distilled by the one teacher. A candidate
goes on if its short training leaves it on the front of ReLUs and accuracy, or so little below it that the held-out
images cannot tell (two standard errors). With a budget, `SearchSettings.finalists` of the most accurate go on. The
others are skipped, with what dropped them as the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import TrainingError, problem
from .jobs import Job
from .outcome import Result, outcomes_of
from .proposals import Proposal
from .settings import SearchSettings


@dataclass(frozen=True)
class Ranked:
    """One candidate after its short training.

    Attributes:
        id: of the candidate.
        relus: that it keeps.
        accuracy: on held-out images, in [0, 1]; None if the short training failed.
        kept: whether it goes on to the full schedule.
        seconds: of the short training.
    """

    id: str
    relus: int
    accuracy: float | None
    kept: bool
    seconds: float


def ranking_jobs(proposals: Sequence[Proposal], settings: SearchSettings) -> list[Job]:
    """Return the short trainings of all proposals that are not skipped, the smallest networks first.

    None without `rank_epochs`, and none for a single proposal, which there is nothing to rank against.
    """
    config = settings.ranking_config()
    chosen = [(p.census.relus, p) for p in proposals if not p.reason and p.census is not None]
    if config is None or len(chosen) < 2:
        return []
    return [
        Job("ranking", proposal.candidate, 0, True, config) for _, proposal in sorted(chosen, key=lambda pair: pair[0])
    ]


def rank(
    results: Sequence[Result], proposals: tuple[Proposal, ...], settings: SearchSettings
) -> tuple[tuple[Proposal, ...], tuple[Ranked, ...]]:
    """Skip what the short trainings drop; see `short_list`.

    Args:
        results: of the short trainings; none leave the proposals as they are.
        proposals: of the method.
        settings: of the search.

    Raises:
        TrainingError: if all of them failed.
    """
    outcomes = outcomes_of(results, {p.candidate.id: p for p in proposals})
    failures = {o.job.id: o.failure for o in outcomes if o.failure is not None}
    if outcomes and len(failures) == len(outcomes):
        first = str(outcomes[0].failure).rstrip(".")
        raise TrainingError(
            problem(
                "a candidate must come through the short training that ranks",
                got=f"none of the {len(outcomes)} candidates could be ranked; the first: {first}",
                remedy="do what that says: the same command keeps what was finished, other settings of training need "
                "a new --out",
                where=outcomes[0].job.place,
            )
        )
    if not outcomes:
        return proposals, ()
    measured = {o.job.id: o for o in outcomes if o.failure is None}
    n = next(int(o.runs[0]["validation"]["n"]) for o in measured.values())
    accuracy = {name: o.accuracy for name, o in measured.items()}
    left = short_list(proposals, accuracy, n, failures, finalists=settings.finalists)
    kept = {p.candidate.id for p in left if not p.reason}
    ranked = tuple(
        Ranked(
            id=o.job.id,
            relus=o.proposal.census.relus,
            accuracy=measured[o.job.id].accuracy if o.job.id in measured else None,
            kept=o.job.id in kept,
            seconds=sum(float(run["seconds"]) for run in o.runs),
        )
        for o in outcomes
        if o.proposal is not None and o.proposal.census is not None
    )
    return left, ranked


def short_list(
    proposals: Sequence[Proposal],
    accuracy: Mapping[str, float],
    n: int,
    failures: Mapping[str, str],
    *,
    finalists: int | None = None,
) -> tuple[Proposal, ...]:
    """Give those that the ranking drops a reason, so that they are skipped.

    Args:
        proposals: of the method.
        accuracy: after the short training, in [0, 1], by id; of those that were ranked.
        n: held-out images that it was measured on.
        failures: of the short trainings that failed, why, by id.
        finalists: see `dropped`.

    Returns:
        The proposals, in their order.
    """
    relus = {p.candidate.id: p.census.relus for p in proposals if p.candidate.id in accuracy and p.census is not None}
    labels = {p.candidate.id: p.candidate.label for p in proposals}
    beaten = dropped(accuracy, relus, n, finalists=finalists)
    found = []
    for proposal in proposals:
        name, reason = proposal.candidate.id, proposal.reason
        if name in failures:
            reason = f"its short training failed: {failures[name]}"
        elif name in beaten and beaten[name] is None:
            reason = f"ranked behind the best {finalists}"
        elif name in beaten:
            best = str(beaten[name])
            points = 100 * (accuracy[best] - accuracy[name])
            reason = f"ranked {points:.1f} points below {labels[best]}, which has no more ReLUs"
        found.append(replace(proposal, reason=reason))
    return tuple(found)


def dropped(
    accuracy: Mapping[str, float], relus: Mapping[str, int], n: int, *, finalists: int | None = None
) -> dict[str, str | None]:
    """Say which candidates a ranking drops, and for whom.

    Args:
        accuracy: after the short training, in [0, 1], by id.
        relus: of the same candidates.
        n: held-out images that the accuracy was measured on.
        finalists: how many go on at most, the most accurate ones; of equal ones those with fewer ReLUs.

    Returns:
        By id: the best network with no more ReLUs, which is better by more than the `tolerance`; None for those behind
        the finalists.
    """
    found: dict[str, str | None] = {}
    for name in relus:
        rivals = [other for other in relus if other != name and relus[other] <= relus[name]]
        best = max(rivals, key=lambda other: accuracy[other], default=name)
        if accuracy[best] - accuracy[name] > tolerance(accuracy[best], accuracy[name], n):
            found[name] = best
    left = sorted((name for name in relus if name not in found), key=lambda name: (-accuracy[name], relus[name]))
    return found | dict.fromkeys(left[len(left) if finalists is None else finalists :])


def tolerance(a: float, b: float, n: int) -> float:
    """Return two standard errors of the difference of two accuracies, in [0, 1], each measured on n images."""
    return 2 * math.sqrt((a * (1 - a) + b * (1 - b)) / n)
