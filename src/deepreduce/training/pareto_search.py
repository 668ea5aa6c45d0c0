"""The search: teacher, criticality or masks, candidates, front; and one look at the test set at the end."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import NetworkError, RunError, TrainingError, problem
from ..reduction import Base, Candidate, Criticality, measure_criticality, pareto_front
from ..reduction.recipe import load_network
from .batches import DeviceSplit
from .distributed import agree
from .intervals import wilson_interval
from .jobs import Context, Job
from .loop import count_correct, make_accelerator
from .mask_jobs import read_masks, unknown_candidate
from .outcome import Outcome, Result, outcomes_of, slowed
from .phases import Phases
from .pricing import Pricer, fronts_in_seconds, price_all, warning
from .progress import Progress
from .proposals import (
    Proposal,
    assumed_criticality,
    candidate_jobs,
    check_budget,
    first_jobs,
    mask_jobs,
    propose,
    remark,
    weigh,
)
from .ranking import Ranked, rank, ranking_jobs
from .settings import RunOptions, SearchSettings


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        base: the full network.
        settings: of the search.
        teacher: the full network's outcome.
        criticality: by stage; empty for a network with one stage, and for methods that do not ask for it.
        outcomes: of all candidates that were to be trained.
        skipped: candidates that were not.
        ranking: every candidate after its short training, by ReLUs; empty without `rank_epochs`.
        front: ids of the outcomes on the Pareto front (`teacher` among them if it is), by ReLUs.
        prices: by id what a finished network costs privately, or `reason`; empty where nobody was asked.
        fronts_in_seconds: by link, ids of the outcomes on the front of online seconds and accuracy, the fastest first.
        test: number of correct test images by place.
        seconds: of training, all jobs together.
    """

    base: Base
    settings: SearchSettings
    teacher: Outcome
    criticality: tuple[Criticality, ...]
    outcomes: tuple[Outcome, ...]
    skipped: tuple[Proposal, ...]
    ranking: tuple[Ranked, ...]
    front: tuple[str, ...]
    prices: dict[str, dict[str, Any]]
    fronts_in_seconds: dict[str, tuple[str, ...]]
    test: dict[str, Any]
    seconds: float


def search(
    context: Context,
    settings: SearchSettings,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    progress: Progress | None = None,
    pricer: Pricer | None = None,
) -> Search:
    """Find the Pareto front of ReLUs and accuracy of a network.

    In this order: the teacher; for DeepReDuce the networks that measure criticality, for methods that find masks the
    searches for them; with `rank_epochs` short trainings that rank; the candidates; what each costs privately; and one
    look at the test images, for the networks on a front.

    Args:
        context: network, images and run folder. A folder that holds an earlier part of the same run is continued.
        settings: how to train and what to propose.
        options: where jobs run, and how many side by side.
        progress: who watches.
        pricer: who knows what a network costs privately; None asks nobody.

    Raises:
        RunError: if the folder belongs to another run, or cannot be written.
        TrainingError: if the teacher, a criticality network, or every candidate cannot be trained. A criticality
            network whose training diverges, with a smaller learning rate too, ends nothing: its stage counts as chance.
        UsageError: if a setting or the budget is out of range.
        Interrupted: on Ctrl-C; the same call continues.
    """
    run = Phases(context, settings, options, progress)
    check_budget(run.base, settings)
    with run.folder:
        run.claim()
        if said := agree(lambda: warning(run.base, pricer)):
            run.watcher.note(said)
        if said := remark(run.base, settings):
            run.watcher.note(said)
        teachers, critical = first_jobs(run.base, settings)
        teacher = outcomes_of(run.carry_out(teachers), {})[0]
        _require(teacher)
        _warn_of_guessing(teacher, run)
        criticality = criticality_of(run.carry_out(critical), run.base, settings, run.diverged)
        for stage in criticality:
            if stage.accuracy is None:
                run.watcher.note(f"{stage.stage} alone, distilled: {stage.reason}")
        ranking = criticality or assumed_criticality(run.base.census)
        searched = run.carry_out(mask_jobs(run.base, settings))
        proposals = propose(run.base, ranking, settings) + _found(run, searched)
        proposals, ranked = rank(run.carry_out(ranking_jobs(proposals, settings)), proposals, settings)
        jobs = candidate_jobs(proposals, settings)
        _require_candidates(jobs, proposals, settings)
        outcomes = outcomes_of(run.carry_out(jobs), {p.candidate.id: p for p in proposals})
        if all(outcome.failure is not None for outcome in outcomes):
            raise _failed(
                "a candidate must be trained to its end",
                got=f"none of the {len(outcomes)} candidates could be trained; the first: {outcomes[0].failure}",
                where=outcomes[0].job.place,
            )
        front = _front(teacher, outcomes)
        everything = (teacher, *outcomes)
        prices = {} if pricer is None else agree(lambda: price_all(run, everything, pricer))
        quick = {} if pricer is None else fronts_in_seconds(everything, prices, pricer.links)
        chosen = {"teacher", *front, *(name for names in quick.values() for name in names)}
        shown = [outcome for outcome in everything if outcome.job.id in chosen or settings.test_all]
        test = agree(lambda: _look_at_test(run, shown))
        seconds = sum(float(metrics["seconds"]) for metrics in run.seen.values())
    return Search(
        base=run.base,
        settings=settings,
        teacher=teacher,
        criticality=criticality,
        outcomes=tuple(outcomes),
        skipped=tuple(p for p in proposals if p.reason),
        ranking=ranked,
        front=front,
        prices=prices,
        fronts_in_seconds=quick,
        test=test,
        seconds=seconds,
    )


def train_teacher(
    context: Context,
    settings: SearchSettings,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    progress: Progress | None = None,
) -> Outcome:
    """Train the full network alone; a later `search` in the same folder finds it there.

    The test images are not looked at: that is done once, at the end of a search.

    Raises:
        as `search`.
    """
    run = Phases(context, settings, options, progress)
    with run.folder:
        run.claim()
        outcome = outcomes_of(run.carry_out(first_jobs(run.base, settings)[0]), {})[0]
        _require(outcome)
    return outcome


def _found(run: Phases, searched: Sequence[Result]) -> tuple[Proposal, ...]:
    """Return the candidates whose masks were found, with what the search cost; failed searches with their reason."""
    proposals: list[Proposal] = []
    candidates: list[Candidate] = []
    searches: list[tuple[str, dict[str, Any]]] = []
    for job, metrics, failure in searched:
        assert job.masks is not None
        if metrics is None:
            proposals.append(Proposal(unknown_candidate(job.masks), None, failure or "no masks were found"))
        else:
            candidates.append(read_masks(run.context.folder / job.place, job.masks))
            searches.append((job.place, metrics))
    if searched and not candidates:
        raise _failed(
            "a search for masks must come to its end",
            got=f"none of the {len(searched)} searches did; the first: {proposals[0].reason}",
            where=searched[0][0].place,
        )
    weighed = zip(weigh(run.base, candidates), searches, strict=True)
    return (*(replace(proposal, search=metrics, start=place) for proposal, (place, metrics) in weighed), *proposals)


def _require(outcome: Outcome) -> None:
    if outcome.failure is not None:
        raise _failed(
            f"the {outcome.job.kind} network must be trained, for others need it",
            got=f"{outcome.job.label} could not be: {outcome.failure}",
            where=outcome.job.place,
        )


def _failed(must: str, *, got: str, where: str) -> TrainingError:
    """Return the error for jobs that failed, each for the reason that ends what came; `where` is in the run folder."""
    remedy = "do what that says: the same command keeps what was finished, other settings of training need a new --out"
    return TrainingError(problem(must, got=got.rstrip("."), remedy=remedy, where=where))


def _warn_of_guessing(teacher: Outcome, run: Phases) -> None:
    """Say at once where a network that came trained is no better than chance: everything else learns from it."""
    if not run.settings.trained:
        return
    measured, classes = teacher.runs[0]["validation"], run.context.spec.classes
    if wilson_interval(teacher.accuracies[0], measured["n"])[0] <= 1 / classes:
        run.watcher.note(
            f"the network as it came is right on {measured['correct']} of {measured['n']} held-out images, no better "
            f"than chance with {classes} classes. Are its weights loaded? Are the pixels normalised as it learned them "
            "(--mean, --std; without them the mean of these images is taken)? Are the classes in its order (folders "
            "are taken by name)?"
        )


def _require_candidates(jobs: Sequence[Job], proposals: Sequence[Proposal], settings: SearchSettings) -> None:
    """Refuse a search that would train no candidate: zero effect is an error."""
    if jobs:
        return
    if settings.budget is not None:
        smallest = min((p.census.relus for p in proposals if p.census is not None and p.census.relus), default=0)
        raise RunError(
            problem(
                "the budget must be met by some candidate",
                got=f"{settings.budget:,}; with the measured criticality the smallest has {smallest:,} ReLUs",
                remedy="raise --budget, or start from a narrower network (--width, of a reference network)",
                where="--budget",
            )
        )
    raise NetworkError(
        problem(
            "a reduction must remove ReLUs",
            got="; ".join(f"{p.candidate.label}: {p.reason}" for p in proposals) or "no candidate",
            remedy="use a network with more than one ReLU layer whose channels or resolution can be scaled",
        )
    )


def criticality_of(
    results: Sequence[Result], base: Base, settings: SearchSettings, diverged: Collection[str] = ()
) -> tuple[Criticality, ...]:
    """Compute criticality from the results of its networks; those trained without distillation may be missing.

    A stage whose network diverged counts as right by chance: with ReLUs there alone nothing could be learnt.

    Args:
        results: of the networks.
        base: the full network.
        settings: give the exponent.
        diverged: places of the jobs that failed because their training diverged.

    Raises:
        TrainingError: if a distilled one failed for another reason, or all of them diverged.
    """
    if not results:
        return ()
    found: dict[bool, dict[str, float]] = {True: {}, False: {}}
    reasons: dict[str, str] = {}
    outcomes = outcomes_of(results, {})
    distilled = [outcome for outcome in outcomes if outcome.job.distilled]
    for outcome in distilled:
        if outcome.job.place not in diverged or all(each.job.place in diverged for each in distilled):
            _require(outcome)
    for outcome in outcomes:
        assert outcome.job.candidate is not None
        (stage,) = outcome.job.candidate.keep
        if outcome.runs:
            found[outcome.job.distilled][stage] = outcome.accuracy
        if outcome.job.distilled:
            reasons[stage] = slowed(outcome.runs[0]) if outcome.runs else "its training diverged: it counts as chance"
    unknown = dict.fromkeys(reasons.keys() - found[True].keys(), 1 / base.spec.classes)
    measured = measure_criticality(
        base.census, found[True] | unknown, accuracy_plain=found[False] or None, exponent=settings.exponent
    )
    return tuple(replace(c, accuracy=found[True].get(c.stage), reason=reasons[c.stage]) for c in measured)


def _front(teacher: Outcome, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Return the ids on the front; the teacher, with the most ReLUs, is its end unless a smaller one is as good."""
    complete = [outcome for outcome in (teacher, *outcomes) if outcome.complete]

    def relus(outcome: Outcome) -> int:
        census = outcome.proposal.census if outcome.proposal else None
        return 10**18 if census is None else census.relus

    return tuple(o.job.id for o in pareto_front(complete, cost=relus, accuracy=lambda o: o.accuracy))


def _look_at_test(run: Phases, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Measure the chosen networks on the test set, each of them once for all time."""
    reads = run.folder.test_reads()
    context = run.context
    unread = [
        (outcome, place, metrics)
        for outcome in outcomes
        for place, metrics in zip(outcome.places, outcome.runs, strict=True)
        if reads.get(place, {}).get("weights_sha256") != metrics["weights_sha256"]
    ]
    for done, (outcome, place, metrics) in enumerate(unread):
        run.watcher.step("Test images", done, len(unread))
        accelerator = make_accelerator(outcome.job.config)
        split = DeviceSplit.of(context.data.test, context.normalisation, accelerator.device)
        network, _ = load_network(context.folder / place, context.full_network())
        reads[place] = {
            "correct": count_correct(network, split),
            "n": len(split),
            "weights_sha256": metrics["weights_sha256"],
            "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }
        run.folder.write_test_read(place, reads[place])
    if unread:
        run.watcher.step("Test images", len(unread), len(unread))
    return reads
