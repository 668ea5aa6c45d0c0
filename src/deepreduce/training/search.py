"""The search: teacher, criticality, candidates, front; and one look at the test set at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import DeepReduceError, Interrupted, NetworkError, RunError, TrainingError, problem
from ..reduction import Base, Criticality, make_base, measure_criticality, method, pareto_front
from ..reduction.recipe import load_network
from .batches import DeviceSplit
from .executors import JobExecutor, make_executor
from .jobs import Context, Job
from .loop import count_correct, make_accelerator
from .plan import Proposal, assumed_criticality, candidate_jobs, check_budget, first_jobs, job_work, measure_rate, propose
from .run_folder import RunFolder
from .settings import SearchSettings


class Progress(Protocol):
    """What the search tells whoever watches; all calls come from the main thread."""

    def begin(self, jobs: Sequence[tuple[Job, float, bool]]) -> None:
        """A phase begins with these jobs: each with its work in MACs, and whether it is finished already."""

    def update(self, job: Job, epochs: int) -> None:
        """A job has finished this many epochs."""

    def end(self, job: Job, failure: str | None) -> None:
        """A job is finished, or failed for this reason."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Silent:
    """Progress that nobody watches."""

    def begin(self, jobs: Sequence[tuple[Job, float, bool]]) -> None:
        """See `Progress`."""

    def update(self, job: Job, epochs: int) -> None:
        """See `Progress`."""

    def end(self, job: Job, failure: str | None) -> None:
        """See `Progress`."""

    def note(self, text: str) -> None:
        """See `Progress`."""


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
    def accuracies(self) -> list[float]:
        """Accuracy on held-out images, one per seed, in [0, 1]."""
        return [run["validation"]["correct"] / run["validation"]["n"] for run in self.runs]

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the seeds."""
        return sum(self.accuracies) / len(self.accuracies)


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        base: the full network.
        settings: of the search.
        teacher: the full network's outcome.
        criticality: by stage; empty for a network with one stage.
        outcomes: of all candidates that were to be trained.
        skipped: candidates that were not.
        front: ids of the outcomes on the Pareto front (`teacher` among them if it is), by ReLUs.
        test: number of correct test images by place.
        seconds: of training, all jobs together.
    """

    base: Base
    settings: SearchSettings
    teacher: Outcome
    criticality: tuple[Criticality, ...]
    outcomes: tuple[Outcome, ...]
    skipped: tuple[Proposal, ...]
    front: tuple[str, ...]
    test: dict[str, Any]
    seconds: float


def search(
    context: Context,
    settings: SearchSettings,
    *,
    executor: str = "local",
    workers: int = 1,
    progress: Progress | None = None,
) -> Search:
    """Find the Pareto front of ReLUs and accuracy of a network.

    Args:
        context: network, images and run folder. A folder that holds an earlier part of the same run is continued.
        settings: how.
        executor: `local` or `ray`.
        workers: jobs side by side.
        progress: who watches.

    Raises:
        RunError: if the folder belongs to another run, or cannot be written.
        TrainingError: if the teacher or a criticality network cannot be trained.
        UsageError: if a setting or the budget is out of range.
        Interrupted: on Ctrl-C; the same call continues.
    """
    watcher = progress or Silent()
    base = make_base(context.spec, context.network)
    chosen = method(settings.method)
    check_budget(base, chosen, settings.budget)
    with _open(context, watcher) as folder:
        folder.claim(context, base.census)
        run = _Run(context, base, folder, watcher, executor, workers)
        teachers, critical = first_jobs(base, settings)
        teacher = _outcomes(run.carry_out(teachers), {})[0]
        _require(teacher)
        criticality = _criticality(run.carry_out(critical), base, settings)
        proposals = propose(base, criticality or assumed_criticality(base.census), chosen, budget=settings.budget)
        if settings.budget is not None and all(p.reason for p in proposals):
            smallest = min((p.census.relus for p in proposals if p.census is not None and p.census.relus), default=0)
            raise RunError(
                problem(
                    "the budget must be met by some candidate",
                    got=f"{settings.budget:,}; with the measured criticality the smallest has {smallest:,} ReLUs",
                    remedy="raise --budget, or start from a narrower network with --width",
                )
            )
        named = {p.candidate.id: p for p in proposals}
        outcomes = _outcomes(run.carry_out(candidate_jobs(proposals, settings)), named)
        front = _front(teacher, outcomes)
        test = _look_at_test(run, [o for o in (teacher, *outcomes) if o.job.id in front or o is teacher])
        seconds = sum(float(m["seconds"]) for m in run.seen.values())
    return Search(
        base=base,
        settings=settings,
        teacher=teacher,
        criticality=criticality,
        outcomes=tuple(outcomes),
        skipped=tuple(p for p in proposals if p.reason),
        front=front,
        test=test,
        seconds=seconds,
    )


def train_teacher(
    context: Context, settings: SearchSettings, *, progress: Progress | None = None, workers: int = 1
) -> Outcome:
    """Train the full network alone; a later `search` in the same folder finds it there.

    Raises:
        as `search`.
    """
    watcher = progress or Silent()
    base = make_base(context.spec, context.network)
    with _open(context, watcher) as folder:
        folder.claim(context, base.census)
        run = _Run(context, base, folder, watcher, "local", workers)
        outcome = _outcomes(run.carry_out(first_jobs(base, settings)[0]), {})[0]
        _require(outcome)
        _look_at_test(run, [outcome])
    return outcome


def plan(context: Context, settings: SearchSettings, *, workers: int = 1) -> dict[str, Any]:
    """Say what `search` would do, and roughly how long it would take here; nothing is written.

    Returns:
        `jobs[]{id, label, kind, relus, macs, epochs, seeds, hours, status, reason}`, `hours` (wall clock, with these
        workers), `workers`, and `note`.

    Raises:
        UsageError: if the budget is out of range.
        RunError: if the folder belongs to another run.
    """
    base = make_base(context.spec, context.network)
    chosen = method(settings.method)
    check_budget(base, chosen, settings.budget)
    teachers, critical = first_jobs(base, settings)
    note = "Hours are estimated from a short measurement here with all cores, which the workers share."
    finished: dict[str, dict[str, Any]] = {}
    criticality = assumed_criticality(base.census)
    folder = RunFolder(context.folder, exclusive=False)
    if (context.folder / "run.json").exists():
        folder.claim(context, base.census)
        finished = {job.place: found for job in (*teachers, *critical) if (found := folder.metrics(job)) is not None}
    if critical and all(job.place in finished for job in critical):
        criticality = _criticality([(job, finished[job.place], None) for job in critical], base, settings)
    elif critical:
        note += " The order of culling is not measured yet: here the stage with most ReLUs goes first."
    proposals = propose(base, criticality, chosen, budget=settings.budget)
    rate = measure_rate(base, context.data, settings.training)
    images = len(context.data.train)
    rows: dict[str, dict[str, Any]] = {}
    for job in (*teachers, *critical, *candidate_jobs(proposals, settings)):
        census = base.census
        if job.candidate is not None:
            census = next((p.census for p in proposals if p.candidate == job.candidate and p.census), census)
            if job.kind == "criticality":
                stage = next(s for s in base.census.stages if s.name == job.candidate.keep[0])
                census = base.census.keeping({layer.name for layer in stage.layers})
        done = job.place in finished or (bool(finished) and folder.metrics(job) is not None)
        row = rows.setdefault(
            f"{job.kind}/{job.id}",
            {
                "id": job.id,
                "label": job.label,
                "kind": job.kind,
                "relus": census.relus,
                "macs": census.macs,
                "epochs": 0 if job.given else job.config.epochs,
                "seeds": 0,
                "hours": 0.0,
                "status": "finished",
                "reason": "",
            },
        )
        row["seeds"] += 1
        if not done:
            row["status"] = "to do"
            row["hours"] += job_work(job, base, images) / rate / 3600
    skipped = [
        {
            "id": p.candidate.id,
            "label": p.candidate.label,
            "kind": "candidate",
            "relus": None if p.census is None else p.census.relus,
            "macs": None if p.census is None else p.census.macs,
            "epochs": 0,
            "seeds": 0,
            "hours": 0.0,
            "status": "skipped",
            "reason": p.reason,
        }
        for p in proposals
        if p.reason
    ]
    return {
        "jobs": [*rows.values(), *skipped],
        "hours": sum(row["hours"] for row in rows.values()),
        "workers": workers,
        "note": note,
    }


class _Run:
    """Carries out phases of jobs in one folder and remembers what it has seen."""

    def __init__(
        self, context: Context, base: Base, folder: RunFolder, watcher: Progress, executor: str, workers: int
    ) -> None:
        self.context = context
        self.base = base
        self.folder = folder
        self.watcher = watcher
        self.executor = executor
        self.workers = workers
        self.seen: dict[str, dict[str, Any]] = {}

    def carry_out(self, jobs: Sequence[Job]) -> list[tuple[Job, dict[str, Any] | None, str | None]]:
        """Do what is not done of a phase; return metrics or failure for every job."""
        images = len(self.context.data.train)
        pending = [job for job in jobs if self.folder.metrics(job) is None]
        self.watcher.begin([(job, job_work(job, self.base, images), job not in pending) for job in jobs])
        if pending:
            executor = make_executor(self.executor, self.context, min(self.workers, len(pending)))
            self._watch(executor, pending)
        results = []
        for job in jobs:
            metrics = self.folder.metrics(job)
            if metrics is not None:
                self.seen[job.place] = metrics
            results.append((job, metrics, None if metrics else self.folder.failure(job) or "it did not finish"))
        return results

    def _watch(self, executor: JobExecutor, jobs: Sequence[Job]) -> None:
        futures: dict[Future[None], Job] = {}
        shown: dict[str, int] = {}
        try:
            futures = {executor.submit(job): job for job in jobs}
            while futures:
                done, _ = wait(futures, timeout=0.3, return_when=FIRST_COMPLETED)
                for job in futures.values():
                    epochs = self.folder.finished_epochs(job)
                    if shown.get(job.place) != epochs:
                        shown[job.place] = epochs
                        self.watcher.update(job, epochs)
                for future in done:
                    self._settle(futures.pop(future), future)
        except KeyboardInterrupt:
            raise Interrupted("stopped on request; run the same command again to continue") from None
        finally:
            executor.stop() if futures else executor.close()

    def _settle(self, job: Job, future: Future[None]) -> None:
        """Take a failure of one job for what it is: its own, unless it concerns the whole run."""
        try:
            future.result()
        except (TrainingError, NetworkError) as error:
            self.folder.write_failure(job, str(error))
            self.watcher.end(job, str(error))
        except DeepReduceError:
            raise
        except BrokenExecutor as error:
            raise RunError(
                problem(
                    "a worker process must live until its job is done",
                    got=f"it ended while {job.place} ran; often the memory was full",
                    remedy="run the same command again with fewer --workers",
                    where=self.folder.path / job.place,
                )
            ) from error
        except MemoryError as error:
            raise RunError(
                problem("a job must fit into memory", got=error, remedy="use fewer --workers or a smaller --batch-size")
            ) from error
        else:
            self.watcher.end(job, None)


def _open(context: Context, watcher: Progress) -> RunFolder:
    """Open the run folder; under `torchrun` the first process holds the lock for all."""
    import os

    first = int(os.environ.get("RANK", "0")) == 0
    return RunFolder(context.folder, on_note=watcher.note, exclusive=first)


def _outcomes(
    results: Sequence[tuple[Job, dict[str, Any] | None, str | None]], proposals: dict[str, Proposal]
) -> list[Outcome]:
    grouped: dict[str, list[tuple[Job, dict[str, Any] | None, str | None]]] = {}
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


def _require(outcome: Outcome) -> None:
    if outcome.failure is not None:
        raise TrainingError(f"the {outcome.job.label} could not be trained. {outcome.failure}")


def _criticality(
    results: Sequence[tuple[Job, dict[str, Any] | None, str | None]], base: Base, settings: SearchSettings
) -> tuple[Criticality, ...]:
    if not results:
        return ()
    found: dict[bool, dict[str, float]] = {True: {}, False: {}}
    for outcome in _outcomes(results, {}):
        if outcome.failure is not None and outcome.job.distilled:
            _require(outcome)
        if outcome.runs and outcome.job.candidate is not None:
            found[outcome.job.distilled][outcome.job.candidate.keep[0]] = outcome.accuracy
    return measure_criticality(
        base.census, found[True], accuracy_plain=found[False] or None, exponent=settings.exponent
    )


def _front(teacher: Outcome, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    complete = [o for o in (teacher, *outcomes) if o.runs and o.failure is None]

    def relus(outcome: Outcome) -> int:
        census = outcome.proposal.census if outcome.proposal else None
        return 10**18 if census is None else census.relus

    return tuple(o.job.id for o in pareto_front(complete, relus=relus, accuracy=lambda o: o.accuracy))


def _look_at_test(run: _Run, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Measure the chosen networks on the test set, each of them once for all time."""
    reads = run.folder.test_reads()
    context = run.context
    split = None
    for outcome in outcomes:
        for metrics in outcome.runs:
            place = Job(outcome.job.kind, outcome.job.candidate, metrics["seed"], outcome.job.distilled, outcome.job.config).place
            if reads.get(place, {}).get("weights_sha256") == metrics["weights_sha256"]:
                continue
            accelerator = make_accelerator(outcome.job.config)
            if split is None:
                split = DeviceSplit.of(context.data.test, context.normalisation, accelerator.device)
            network, _ = load_network(context.folder / place, context.full_network())
            value = {
                "correct": count_correct(network, split, accelerator),
                "n": len(split),
                "weights_sha256": metrics["weights_sha256"],
                "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
            }
            if accelerator.is_main_process:
                run.folder.write_test_read(place, value)
            reads = {**reads, place: value}
    return reads
