"""How long a run will take, before any of it is done: a few training steps of every shape of network, measured here."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from ..errors import Interrupted
from ..reduction import Base, build_candidate, census_of, find_reducer, make_base, with_slopes
from .batches import DeviceSplit, Normalisation
from .dispatch import own_state
from .executors import BUSY, busy_share, threads_per_job
from .jobs import Context, Job
from .loop import looks, make_accelerator, train
from .mask_jobs import read_masks
from .pareto_search import criticality_of
from .pricing import Pricer, warning
from .proposals import (
    Proposal,
    assumed_criticality,
    awaited_jobs,
    candidate_jobs,
    check_budget,
    first_jobs,
    mask_jobs,
    propose,
    remark,
    weigh,
)
from .ranking import rank, ranking_jobs
from .run_folder import RunFolder, weights_hash
from .settings import RunOptions, SearchSettings

_MEASURE_SECONDS = 1.0  # for each shape of network
_NOTE = "Times come from a few steps of each shape of network on this machine, without compilation."
_WORKER_START_SECONDS = 5.0  # a worker process imports PyTorch; once per worker and phase


class Clock:
    """Estimates the seconds of jobs; every shape of network is measured once, with the threads it will have."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._measured: dict[tuple[object, ...], tuple[float, float]] = {}

    def seconds(self, job: Job, threads: int) -> float:
        """Estimate a job from the time of one step of a network of its shape; removed ReLUs change little.

        Args:
            job: what would be trained.
            threads: of the processor, for this job.
        """
        data = self._context.data
        batch = min(job.config.batch_size, len(data.train))
        of = job.candidate
        shape = None if of is None else of.scales
        kept = (of.keep, of.thin) if of is not None and of.depends_on_kept else ()
        key = (shape, kept, job.masks is not None, job.teaches, threads, job.config.batch_size)
        if key not in self._measured:
            self._measured[key] = self._measure(job, batch, threads)
        step, start = self._measured[key]
        forward = step / (4 if job.teaches else 3) / batch
        if job.given:
            return start + forward * len(data.validation)
        training = job.epochs * (len(data.train) // batch) * step
        return start + training + (looks(job.epochs) + 1) * forward * len(data.validation)

    def _measure(self, job: Job, batch: int, threads: int) -> tuple[float, float]:
        """Return the seconds of one step, and those of all that comes before the first."""
        begun = time.monotonic()
        marks: list[float] = []

        def enough() -> bool:
            marks.append(time.monotonic())
            spent = marks[-1] - marks[0]
            return len(marks) > 3 and spent > _MEASURE_SECONDS * (1 if len(marks) > 9 else 4)

        with own_state(threads), suppress(Interrupted):
            self._train(job, batch, enough)
        steps = sorted(later - earlier for earlier, later in itertools.pairwise(marks[1:]))
        # Other programs make some steps longer, nothing makes one shorter.
        return steps[len(steps) // 4], marks[0] - begun

    def _train(self, job: Job, batch: int, should_stop: Callable[[], bool]) -> None:
        """Train as a job does, on one batch: a network of its own, and one to start from and to learn from."""
        base = make_base(self._context.spec, self._context.network)
        taught = make_base(self._context.spec, self._context.network)
        network = base.network if job.candidate is None else build_candidate(taught, job.candidate)
        if job.masks is not None:
            kind = find_reducer(job.masks.method).finder
            assert kind is not None
            network, _ = with_slopes(network, base.census, job.masks.granularity, draws_lines=kind.draws_lines)
        config = replace(job.config, epochs=100_000, learning_rate=1e-9, compile="off", fade=0.0)
        accelerator = make_accelerator(config)
        few = DeviceSplit(
            self._context.data.train.images[:batch].to(accelerator.device),
            self._context.data.train.labels[:batch].to(accelerator.device),
            Normalisation(self._context.data.mean, self._context.data.std),
        )
        teacher = taught.network if job.teaches else None
        train(network, few, few, config, accelerator=accelerator, teacher=teacher, should_stop=should_stop)


def plan(
    context: Context,
    settings: SearchSettings,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    pricer: Pricer | None = None,
) -> dict[str, Any]:
    """Say what `search` would do, and roughly how long it would take here; nothing is written.

    Args:
        context, settings, options: as for `search`.
        pricer: who knows whether the network can run privately at all; None asks nobody.

    Returns:
        `jobs[]{id, label, kind, relus, macs, epochs, seeds, unfinished, hours, status, reason}`, where `unfinished`
        says how many of the seeds are still to be trained and `hours` how long these take; `hours` (wall clock, with
        these workers), `workers`, and `note`.

    Raises:
        UsageError: if the budget is out of range.
        RunError: if the folder belongs to another run.
    """
    base = make_base(context.spec, context.network)
    check_budget(base, settings)
    teachers, critical = first_jobs(base, settings)
    searches = mask_jobs(base, settings)
    note = _note(options)
    for said in (warning(base, pricer), remark(base, settings)):
        note += f" Note: {said.removesuffix('.')}." if said else ""
    folder = _open(context, base, settings)
    finished = {
        job.place: found for job in (*teachers, *critical, *searches) if (found := folder.metrics(job)) is not None
    }
    criticality = assumed_criticality(base.census)
    if critical and all(job.place in finished for job in critical):
        criticality = criticality_of([(job, finished[job.place], None) for job in critical], base, settings)
    elif critical:
        note += " The order of culling is not measured yet: here the stage with most ReLUs goes first."
    awaited = [job for job in searches if job.place not in finished]
    if awaited:
        note += " Which ReLUs a mask keeps is not known yet: its network is listed with its budget."
    known = [
        read_masks(context.folder / job.place, job.masks)
        for job in searches
        if job.masks is not None and job not in awaited
    ]
    proposals = propose(base, criticality, settings) + weigh(base, known)
    ranking = ranking_jobs(proposals, settings)
    ranked = [(job, metrics, None) for job in ranking if (metrics := folder.metrics(job)) is not None]
    if ranking and len(ranked) == len(ranking):
        proposals, _ = rank(ranked, proposals, settings)
    elif ranking:
        note += " Which candidates the ranking drops is not known yet: "
        note += "all are counted." if settings.finalists is None else "the largest are counted as the finalists."
        proposals = _largest(proposals, settings.finalists)
    candidates = candidate_jobs(proposals, settings) + awaited_jobs(awaited, settings)
    rows, seconds = _timed((teachers, critical, searches, ranking, candidates), context, base, folder, options)
    return {
        "jobs": [*rows, *(_skipped(proposal) for proposal in proposals if proposal.reason)],
        "hours": seconds / 3600,
        "workers": options.workers,
        "note": note,
    }


def plan_teacher(
    context: Context,
    settings: SearchSettings,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Say what `train_teacher` would do, as `plan` does for `search`."""
    base = make_base(context.spec, context.network)
    folder = _open(context, base, settings)
    note = _note(options)
    rows, seconds = _timed((first_jobs(base, settings)[0],), context, base, folder, options)
    return {"jobs": rows, "hours": seconds / 3600, "workers": options.workers, "note": note}


def _note(options: RunOptions) -> str:
    """Say where the times come from, and what they hold; asked before anything is measured."""
    note = _NOTE
    busy = None if torch.cuda.is_available() else busy_share()
    if busy is not None and busy > BUSY:
        note += f" Other programs use {busy:.0%} of the processor now: with it to itself the run takes less time."
    if options.workers > 1:
        note += (
            f" All together holds the start of the workers, about {_WORKER_START_SECONDS:g} s in every phase with "
            "several networks; job by job does not."
        )
    return note


def _open(context: Context, base: Base, settings: SearchSettings) -> RunFolder:
    folder = RunFolder(context.folder)
    if context.folder.exists():
        folder.claim(context, base.census, weights=weights_hash(base) if settings.trained else None)
    return folder


def _timed(
    phases: Sequence[Sequence[Job]], context: Context, base: Base, folder: RunFolder, options: RunOptions
) -> tuple[list[dict[str, Any]], float]:
    """Return a row for each network of these phases, its seeds together, and the seconds that all of them take."""
    clock = Clock(context)
    rows: dict[str, dict[str, Any]] = {}
    total = 0.0
    for phase in phases:
        threads = context.threads or threads_per_job(options, len(phase))
        waiting: list[float] = []
        for job in phase:
            row = rows.setdefault(f"{job.kind}/{job.id}", _row(job, base))
            row["seeds"] += 1
            if folder.metrics(job) is None:
                seconds = clock.seconds(job, threads)
                waiting.append(seconds)
                row["status"] = "to do"
                row["unfinished"] += 1
                row["hours"] += seconds / 3600
        total += _wall_clock(waiting, options.workers)
    return list(rows.values()), total


def _largest(proposals: tuple[Proposal, ...], finalists: int | None) -> tuple[Proposal, ...]:
    """Stand in for the finalists of a ranking that is still to be done: skip all but those of most MACs."""
    macs = {p.candidate.id: p.census.macs for p in proposals if not p.reason and p.census is not None}
    others = sorted(macs, key=lambda name: -macs[name])[len(macs) if finalists is None else finalists :]
    reason = f"the ranking will leave {finalists}"
    return tuple(replace(p, reason=reason) if p.candidate.id in others else p for p in proposals)


def _wall_clock(jobs: Sequence[float], workers: int) -> float:
    """Return the seconds that a phase takes: each worker takes the next job when it is free."""
    side_by_side = min(workers, len(jobs))
    if side_by_side <= 1:
        return math.fsum(jobs)
    if torch.cuda.is_available():  # several workers on one GPU share it
        shared = max(1.0, side_by_side / torch.cuda.device_count())
        jobs = [seconds * shared for seconds in jobs]
    busy_until = [_WORKER_START_SECONDS] * side_by_side
    for seconds in jobs:
        first_free = busy_until.index(min(busy_until))
        busy_until[first_free] += seconds
    return max(busy_until)


def _row(job: Job, base: Base) -> dict[str, Any]:
    census = base.census if job.candidate is None else census_of(base, job.candidate)
    masks = None if job.candidate is None else job.candidate.masks
    unknown = masks is not None and census.relus == 0  # see `unknown_candidate`
    return {
        "id": job.id,
        "label": job.label,
        "kind": job.kind,
        "relus": masks.budget if masks is not None and unknown else census.relus,
        "macs": census.macs,
        "epochs": job.epochs,
        "seeds": 0,
        "unfinished": 0,
        "hours": 0.0,
        "status": "finished",
        "reason": "",
    }


def _skipped(proposal: Proposal) -> dict[str, Any]:
    census = proposal.census
    return {
        "id": proposal.candidate.id,
        "label": proposal.candidate.label,
        "kind": "candidate",
        "relus": None if census is None else census.relus,
        "macs": None if census is None else census.macs,
        "epochs": 0,
        "seeds": 0,
        "unfinished": 0,
        "hours": 0.0,
        "status": "skipped",
        "reason": proposal.reason,
    }
