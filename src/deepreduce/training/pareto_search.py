"""The search: teacher, criticality or masks, candidates, front; and one look at the test set at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..errors import Interrupted, NetworkError, RunError, TrainingError, problem
from ..reduction import Base, Candidate, Criticality, make_base, measure_criticality, pareto_front
from ..reduction.recipe import load_network
from .batches import DeviceSplit
from .distributed import agree, is_first
from .executors import JobExecutor, make_executor, threads_per_job
from .jobs import Context, Job
from .loop import count_correct, crop_of, make_accelerator, precision_of
from .mask_jobs import read_masks, unknown_candidate
from .proposals import (
    Proposal,
    assumed_criticality,
    candidate_jobs,
    check_budget,
    first_jobs,
    job_work,
    mask_jobs,
    propose,
    weigh,
)
from .ranking import Ranked, ranking_jobs, short_list
from .run_folder import RunFolder, weights_hash
from .settings import RunOptions, SearchSettings

Result = tuple[Job, dict[str, Any] | None, str | None]
"""A job, its metrics if it is finished, and why it failed if it did."""


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

    @property
    def places(self) -> list[str]:
        """Folder of each seed within the run folder."""
        return [replace(self.job, seed=run["seed"]).place for run in self.runs]


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
    test: dict[str, Any]
    seconds: float


def search(
    context: Context,
    settings: SearchSettings,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    progress: Progress | None = None,
) -> Search:
    """Find the Pareto front of ReLUs and accuracy of a network.

    In this order: the teacher; for DeepReDuce the networks that measure criticality, for methods that find masks the
    searches for them; with `rank_epochs` short trainings that rank; the candidates; and one look at the test images.

    Args:
        context: network, images and run folder. A folder that holds an earlier part of the same run is continued.
        settings: how to train and what to propose.
        options: where jobs run, and how many side by side.
        progress: who watches.

    Raises:
        RunError: if the folder belongs to another run, or cannot be written.
        TrainingError: if the teacher, a criticality network, or every candidate cannot be trained.
        UsageError: if a setting or the budget is out of range.
        Interrupted: on Ctrl-C; the same call continues.
    """
    run = _Run(context, settings, options, progress)
    check_budget(run.base, settings)
    with run.folder:
        run.claim()
        teachers, critical = first_jobs(run.base, settings)
        teacher = _outcomes(run.carry_out(teachers), {})[0]
        _require(teacher)
        criticality = criticality_of(run.carry_out(critical), run.base, settings)
        ranking = criticality or assumed_criticality(run.base.census)
        searched = run.carry_out(mask_jobs(run.base, settings))
        proposals = propose(run.base, ranking, settings) + _found(run, searched)
        proposals, ranked = rank(run.carry_out(ranking_jobs(proposals, settings)), proposals, settings)
        jobs = candidate_jobs(proposals, settings)
        _require_candidates(jobs, proposals, settings)
        outcomes = _outcomes(run.carry_out(jobs), {p.candidate.id: p for p in proposals})
        if all(outcome.failure is not None for outcome in outcomes):
            raise TrainingError(f"none of the {len(outcomes)} candidates could be trained. {outcomes[0].failure}")
        front = _front(teacher, outcomes)
        shown = [o for o in (teacher, *outcomes) if o.job.id in front or o is teacher or settings.test_all]
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
    run = _Run(context, settings, options, progress)
    with run.folder:
        run.claim()
        outcome = _outcomes(run.carry_out(first_jobs(run.base, settings)[0]), {})[0]
        _require(outcome)
    return outcome


def _found(run: _Run, searched: Sequence[Result]) -> tuple[Proposal, ...]:
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
        raise TrainingError(f"none of the {len(searched)} searches for masks came to an end. {proposals[0].reason}")
    weighed = zip(weigh(run.base, candidates), searches, strict=True)
    return (*(replace(proposal, search=metrics, start=place) for proposal, (place, metrics) in weighed), *proposals)


class _Run:
    """Carries out phases of jobs in one folder and remembers what it has seen."""

    def __init__(
        self, context: Context, settings: SearchSettings, options: RunOptions, progress: Progress | None
    ) -> None:
        """Check what can be checked before any work."""
        crop_of(settings.training, context.spec.input)
        precision_of(settings.training)
        self.context = context
        self.settings = settings
        self.options = options
        self.watcher = progress if progress is not None and is_first() else Silent()
        self.base = make_base(context.spec, context.network)
        self.folder = RunFolder(context.folder, on_note=self.watcher.note)
        self.seen: dict[str, dict[str, Any]] = {}

    def claim(self) -> None:
        """See `RunFolder.claim`."""
        weights = weights_hash(self.base) if self.settings.trained else None
        agree(lambda: self.folder.claim(self.context, self.base.census, weights=weights))

    def carry_out(self, jobs: Sequence[Job]) -> list[Result]:
        """Do what is not done of a phase; return metrics or failure for every job."""
        if not jobs:
            return []
        images = len(self.context.data.train)
        todo = agree(lambda: {job.place for job in jobs if self.folder.metrics(job) is None})
        self.watcher.begin([(job, job_work(job, self.base, images), job.place not in todo) for job in jobs])
        if todo:
            context = replace(self.context, threads=self.context.threads or threads_per_job(self.options, len(jobs)))
            executor = make_executor(self.options.executor, context, min(self.options.workers, len(todo)))
            self._watch(executor, [job for job in jobs if job.place in todo])
        results = agree(lambda: [self._result(job) for job in jobs])
        self.seen.update({job.place: metrics for job, metrics, _ in results if metrics is not None})
        return results

    def _result(self, job: Job) -> Result:
        metrics = self.folder.metrics(job)
        return job, metrics, None if metrics is not None else self.folder.failure(job) or "it did not finish"

    def _watch(self, executor: JobExecutor, jobs: Sequence[Job]) -> None:
        """Wait for jobs and tell of their epochs; on Ctrl-C or an error of the whole run stop them all."""
        futures: dict[Future[str], Job] = {}
        shown: dict[str, int] = {}
        finished = False
        try:
            for job in jobs:
                futures[executor.submit(job)] = job
            while futures:
                running = [job.label for future, job in futures.items() if future.running()]
                done, _ = wait(futures, timeout=0.3, return_when=FIRST_COMPLETED)
                for future, job in futures.items():
                    epochs = self.folder.finished_epochs(job) if future.running() or future in done else 0
                    if shown.get(job.place, 0) != epochs:
                        shown[job.place] = epochs
                        self.watcher.update(job, epochs)
                for future in done:
                    self._settle(futures.pop(future), future, running)
            finished = True
        except KeyboardInterrupt:
            self.watcher.note("stopping: running networks end with the step they are in")
            raise Interrupted("stopped on request; run the same command again to continue") from None
        finally:
            executor.close() if finished else executor.stop()

    def _settle(self, job: Job, future: Future[str], running: Sequence[str]) -> None:
        """Take a failure of one job for what it is: its own, unless it concerns the whole run."""
        try:
            note = future.result()
        except (TrainingError, NetworkError) as error:
            if is_first():
                self.folder.write_failure(job, str(error))
            self.watcher.end(job, str(error))
        except BrokenExecutor as error:
            raise RunError(
                problem(
                    "a worker process must live until its job is done",
                    got=f"one ended while these ran or came next: {'; '.join(running)}. Often the memory was full",
                    remedy="run the same command again with fewer --workers; a script that asks for several workers "
                    "must guard its top level with if __name__ == '__main__'",
                    where=self.folder.path,
                )
            ) from error
        else:
            if note:
                self.watcher.note(note)
            self.watcher.end(job, None)


def _outcomes(results: Sequence[Result], proposals: dict[str, Proposal]) -> list[Outcome]:
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
    outcomes = _outcomes(results, {p.candidate.id: p for p in proposals})
    failures = {o.job.id: o.failure for o in outcomes if o.failure is not None}
    if outcomes and len(failures) == len(outcomes):
        raise TrainingError(f"none of the {len(outcomes)} candidates could be ranked. {outcomes[0].failure}")
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


def _require(outcome: Outcome) -> None:
    if outcome.failure is not None:
        raise TrainingError(f"{outcome.job.label}: this network is needed and could not be trained. {outcome.failure}")


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
                remedy="raise --budget, or start from a narrower network with --width",
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


def criticality_of(results: Sequence[Result], base: Base, settings: SearchSettings) -> tuple[Criticality, ...]:
    """Compute criticality from the results of its networks; those trained without distillation may be missing.

    Raises:
        TrainingError: if a distilled one failed.
    """
    if not results:
        return ()
    found: dict[bool, dict[str, float]] = {True: {}, False: {}}
    for outcome in _outcomes(results, {}):
        if outcome.job.distilled:
            _require(outcome)
        if outcome.runs and outcome.job.candidate is not None:
            found[outcome.job.distilled][outcome.job.candidate.keep[0]] = outcome.accuracy
    return measure_criticality(
        base.census, found[True], accuracy_plain=found[False] or None, exponent=settings.exponent
    )


def _front(teacher: Outcome, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Return the ids on the front; the teacher, with the most ReLUs, is its end unless a smaller one is as good."""
    complete = [o for o in (teacher, *outcomes) if o.runs and o.failure is None]

    def relus(outcome: Outcome) -> int:
        census = outcome.proposal.census if outcome.proposal else None
        return 10**18 if census is None else census.relus

    return tuple(o.job.id for o in pareto_front(complete, relus=relus, accuracy=lambda o: o.accuracy))


def _look_at_test(run: _Run, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Measure the chosen networks on the test set, each of them once for all time."""
    reads = run.folder.test_reads()
    context = run.context
    for outcome in outcomes:
        for place, metrics in zip(outcome.places, outcome.runs, strict=True):
            if reads.get(place, {}).get("weights_sha256") == metrics["weights_sha256"]:
                continue
            accelerator = make_accelerator(outcome.job.config)
            split = DeviceSplit.of(context.data.test, context.normalisation, accelerator.device)
            network, _ = load_network(context.folder / place, context.full_network())
            reads[place] = {
                "correct": count_correct(network, split, accelerator),
                "n": len(split),
                "weights_sha256": metrics["weights_sha256"],
                "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
            }
            run.folder.write_test_read(place, reads[place])
    return reads
