"""Jobs of a run, phase after phase: what is finished stays, the rest is carried out, failures are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import replace
from typing import Any

import torch

from ..errors import Interrupted, NetworkError, RunError, TrainingError, problem
from ..reduction import make_base
from .distributed import agree, is_first
from .executors import BUSY, JobExecutor, busy_share, make_executor, threads_per_job
from .jobs import Context, Job
from .loop import DivergenceError, crop_of, precision_of
from .outcome import Result
from .progress import Progress, Silent
from .proposals import job_work
from .run_folder import RunFolder, weights_hash
from .settings import RunOptions, SearchSettings


class Phases:
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
        self.diverged: set[str] = set()  # places of the jobs that failed so
        self._others_asked = False

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
            threads = self.context.threads or threads_per_job(self.options, len(jobs))
            self._warn_of_stalls(threads)
            context = replace(self.context, threads=threads)
            executor = make_executor(self.options.executor, context, min(self.options.workers, len(todo)))
            self._watch(executor, [job for job in jobs if job.place in todo])
        results = agree(lambda: [self._result(job) for job in jobs])
        self.seen.update({job.place: metrics for job, metrics, _ in results if metrics is not None})
        return results

    def _warn_of_stalls(self, threads: int) -> None:
        """Say, before this run is what keeps them busy, that other programs use the cores."""
        if self._others_asked or threads == 1 or torch.cuda.is_available() or self.options.executor != "local":
            return
        self._others_asked = True
        busy = busy_share()
        if busy is not None and busy > BUSY:
            self.watcher.note(
                f"other programs use {busy:.0%} of the processor. The threads of one training step wait for each "
                f"other: {threads} of them can then take several times as long as one. --threads 1 helps"
            )

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
            if isinstance(error, DivergenceError):
                self.diverged.add(job.place)
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
