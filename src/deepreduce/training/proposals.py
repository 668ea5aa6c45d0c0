"""What a search will do: its jobs, its candidates and their counts, and whether the budget can be met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..census import Census
from ..errors import NetworkError, UsageError, problem
from ..reduction import Base, Candidate, Criticality, Method, census_of, criticality_candidates, kept_layers
from .jobs import Job
from .settings import SearchSettings


@dataclass(frozen=True)
class Proposal:
    """A candidate of the method, and whether it is trained.

    Attributes:
        candidate: what to keep.
        census: its counts; None if it cannot be built.
        reason: why it is skipped; empty if it is trained.
    """

    candidate: Candidate
    census: Census | None
    reason: str = ""


def propose(
    base: Base, criticality: tuple[Criticality, ...], method: Method, *, budget: int | None = None
) -> tuple[Proposal, ...]:
    """Ask a method for candidates and say of each whether it will be trained.

    Skipped are candidates above the budget, those that cannot be built, those that remove nothing, and those that
    come out the same as an earlier one.
    """
    seen: dict[tuple[object, ...], str] = {}
    proposals = []
    for candidate in method(base.census, criticality):
        try:
            census = census_of(base, candidate)
        except (NetworkError, UsageError) as error:
            proposals.append(Proposal(candidate, None, str(error)))
            continue
        reason = ""
        same = (candidate.alpha, candidate.rho, *sorted(kept_layers(base, candidate)))
        if census.relus == 0:
            reason = "no ReLU would remain"
        elif budget is not None and census.relus > budget:
            reason = f"above the budget of {budget:,} ReLUs"
        elif same in seen:
            reason = f"the same network as {seen[same]}"
        else:
            seen[same] = candidate.id
        proposals.append(Proposal(candidate, census, reason))
    return tuple(proposals)


def assumed_criticality(census: Census) -> tuple[Criticality, ...]:
    """Stand in for criticality before it is measured: stages with more ReLUs are taken for less critical."""
    most = max(stage.relus for stage in census.stages)
    return tuple(Criticality(s.name, s.relus, 0.0, None, 1 - s.relus / most) for s in census.stages)


def check_budget(base: Base, method: Method, budget: int | None) -> None:
    """Refuse a budget that nothing can meet, or that the full network meets already, before anything is trained.

    Args:
        base: the full network.
        method: proposes candidates.
        budget: number of ReLUs, or None.

    Raises:
        UsageError: if the budget is out of range.
    """
    if budget is None:
        return
    if budget >= base.census.relus:
        raise UsageError(
            problem(
                "the budget must be below the network's own ReLU count",
                got=f"{budget:,}; {base.spec.name} has {base.census.relus:,}",
                remedy="lower the budget, or use the network as it is",
                where="--budget",
            )
        )
    smallest = min(
        (
            proposal.census.relus
            for last in base.census.stages
            for proposal in propose(base, _most_critical(base.census, last.name), method)
            if proposal.census is not None and not proposal.reason
        ),
        default=None,
    )
    if smallest is None or budget < smallest:
        raise UsageError(
            problem(
                "the budget must be met by some candidate",
                got=f"{budget:,}; "
                + ("there is no candidate" if smallest is None else f"the smallest candidate has {smallest:,} ReLUs"),
                remedy="raise the budget, or start from a narrower network with --width",
                where="--budget",
            )
        )


def _most_critical(census: Census, stage: str) -> tuple[Criticality, ...]:
    return tuple(Criticality(s.name, s.relus, 0.0, None, float(s.name == stage)) for s in census.stages)


def first_jobs(base: Base, settings: SearchSettings) -> tuple[list[Job], list[Job]]:
    """Return the teacher's jobs and the criticality jobs; a network with a single stage needs no criticality."""
    teachers = [
        Job("teacher", None, seed, False, settings.training, given=settings.trained)
        for seed in range(1 if settings.trained else settings.seeds)
    ]
    stages = criticality_candidates(base.census) if len(base.census.stages) > 1 else ()
    kinds = (True, False) if settings.criticality_plain else (True,)
    critical = [
        Job("criticality", candidate, 0, distilled, settings.criticality_config())
        for candidate in stages
        for distilled in kinds
    ]
    return teachers, critical


def candidate_jobs(proposals: Sequence[Proposal], settings: SearchSettings) -> list[Job]:
    """Return the jobs that train the proposals that are not skipped, the smallest networks first."""
    chosen = [(p.census.relus, p.candidate) for p in proposals if not p.reason and p.census is not None]
    return [
        Job("candidate", candidate, seed, True, settings.training)
        for seed in range(settings.seeds)
        for _, candidate in sorted(chosen, key=lambda pair: pair[0])
    ]


def job_work(job: Job, base: Base, images: int) -> float:
    """Estimate the MACs of a job: forward and backward cost three forward passes, the teacher one more."""
    if job.given:
        return 0.0
    macs = base.census.macs if job.candidate is None else census_of(base, job.candidate).macs
    teaching = base.census.macs if job.teaches else 0
    return float((3 * macs + teaching) * images * job.config.epochs)
