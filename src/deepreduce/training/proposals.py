"""What a search will do: its jobs, its candidates and their counts, and whether the budget can be met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..census import Census
from ..errors import NetworkError, UsageError, problem
from ..reduction import (
    Base,
    Candidate,
    Criticality,
    MaskOrder,
    census_of,
    criticality_candidates,
    kept_layers,
    smallest_budget,
)
from .jobs import Job
from .mask_jobs import unknown_candidate
from .settings import SearchSettings


@dataclass(frozen=True)
class Proposal:
    """A candidate of the method, and whether it is trained.

    Attributes:
        candidate: what to keep.
        census: its counts; None if it cannot be built.
        reason: why it is skipped; empty if it is trained.
        search: metrics of the job that found its masks; None for a candidate without.
        start: folder of that job within the run folder, if it trained the network.
    """

    candidate: Candidate
    census: Census | None
    reason: str = ""
    search: dict[str, Any] | None = None
    start: str = ""


def propose(base: Base, criticality: tuple[Criticality, ...], settings: SearchSettings) -> tuple[Proposal, ...]:
    """Ask the method for candidates and say of each whether it will be trained.

    Skipped are candidates above the budget, those that cannot be built, those that remove nothing, and those that
    come out the same as an earlier one. A method that finds masks proposes nothing before they are found.
    """
    ask = settings.reducer().propose
    found = () if ask is None else ask(base.census, criticality, settings.asked_budgets())
    average = settings.average_pooling(base)
    found = tuple(replace(each, collapse=settings.collapse, average_pooling=average) for each in found)
    return weigh(base, found, budget=settings.budget)


def weigh(base: Base, candidates: Sequence[Candidate], *, budget: int | None = None) -> tuple[Proposal, ...]:
    """Count what each candidate keeps, and say whether it will be trained; see `propose`."""
    seen: dict[tuple[object, ...], str] = {}
    proposals = []
    for candidate in candidates:
        try:
            census = census_of(base, candidate)
        except (NetworkError, UsageError) as error:
            proposals.append(Proposal(candidate, None, str(error)))
            continue
        reason = ""
        masks = () if candidate.masks is None else candidate.masks.layers
        same = (*candidate.scales, candidate.average_pooling, masks, *sorted(kept_layers(base, candidate)))
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


def check_budget(base: Base, settings: SearchSettings) -> None:
    """Refuse a budget that nothing can meet, or that the full network meets already, before anything is trained.

    Args:
        base: the full network.
        settings: with budgets, or none.

    Raises:
        UsageError: if a budget is out of range.
    """
    if settings.budget is None:
        return
    if settings.budget >= base.census.relus:
        raise UsageError(
            problem(
                "the budget must be below the network's own ReLU count",
                got=f"{settings.budget:,}; {base.spec.name} has {base.census.relus:,}",
                remedy="lower the budget, or use the network as it is",
                where="--budget",
            )
        )
    budget = min(settings.asked_budgets())
    if settings.reducer().finds_masks:
        smallest = smallest_budget(base.census, settings.resolved_granularity())
    else:
        stages = base.census.stages
        proposals = [p for last in stages for p in propose(base, _most_critical(base.census, last.name), settings)]
        sizes = [p.census.relus for p in proposals if p.census is not None and p.census.relus]
        if not sizes:
            raise UsageError(
                problem(
                    "the method must have a candidate that can be built",
                    got=proposals[0].reason if proposals else "no candidate",
                    remedy="use another method: those that find masks, such as deepreduce-masks, scale nothing",
                    where="--method",
                )
            )
        smallest = min(sizes)
    if budget < smallest:
        raise UsageError(
            problem(
                "the budget must be met by some candidate",
                got=f"{budget:,}; the smallest candidate has {smallest:,} ReLUs",
                remedy="raise the budget, or start from a narrower network (--width, of a reference network)",
                where="--budget",
            )
        )


def _most_critical(census: Census, stage: str) -> tuple[Criticality, ...]:
    return tuple(Criticality(s.name, s.relus, 0.0, None, float(s.name == stage)) for s in census.stages)


def first_jobs(base: Base, settings: SearchSettings) -> tuple[list[Job], list[Job]]:
    """Return the teacher's jobs and the criticality jobs.

    A network with a single stage needs no criticality, nor does a method that does not ask for it.
    """
    teachers = [
        Job("teacher", None, seed, False, settings.training, given=bool(settings.trained))
        for seed in range(1 if settings.trained else settings.seeds)
    ]
    asked = settings.reducer().needs_criticality and len(base.census.stages) > 1
    stages = criticality_candidates(base.census) if asked else ()
    average = settings.average_pooling(base)
    kinds = (True, False) if settings.criticality_plain else (True,)
    critical = [
        Job("criticality", replace(candidate, average_pooling=average), 0, distilled, settings.criticality_config())
        for candidate in stages
        for distilled in kinds
    ]
    return teachers, critical


def remark(base: Base, settings: SearchSettings) -> str:
    """Return what is done to all reduced networks without being asked for; empty for nothing."""
    if not settings.average_pooling(base):
        return ""
    return (
        "average pooling takes the place of max pooling in the reduced networks; in private a maximum of 2x2 "
        "takes the round trips of two ReLU layers, of 3x3 those of four. --keep-max-pooling leaves it"
    )


def mask_jobs(base: Base, settings: SearchSettings) -> list[Job]:
    """Return the jobs that find masks, one for each budget; none for a method that needs none."""
    config = settings.search_config()
    return [Job("masks", None, 0, True, config, masks=order) for order in settings.mask_orders(base)]


def awaited_jobs(jobs: Sequence[Job], settings: SearchSettings) -> list[Job]:
    """Return what stands for the candidates whose masks these jobs are still to find."""
    orders: list[MaskOrder] = [job.masks for job in jobs if job.masks is not None]
    return [
        Job("candidate", unknown_candidate(order), seed, True, settings.candidate_config())
        for seed in range(settings.seeds)
        for order in orders
    ]


def candidate_jobs(proposals: Sequence[Proposal], settings: SearchSettings) -> list[Job]:
    """Return the jobs that train the proposals that are not skipped, the smallest networks first."""
    chosen = [(p.census.relus, p) for p in proposals if not p.reason and p.census is not None]
    return [
        Job("candidate", proposal.candidate, seed, True, settings.candidate_config(), start=proposal.start)
        for seed in range(settings.seeds)
        for _, proposal in sorted(chosen, key=lambda pair: pair[0])
    ]


def job_work(job: Job, base: Base, images: int) -> float:
    """Estimate the MACs of a job: forward and backward cost three forward passes, the teacher one more."""
    macs = base.census.macs if job.candidate is None else census_of(base, job.candidate).macs
    teaching = base.census.macs if job.teaches else 0
    return float((3 * macs + teaching) * images * job.epochs)
