"""Where jobs run: in this process, in local worker processes, or on a Ray cluster.

All three have the shape of `concurrent.futures`: `submit` a job, get a future.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import torch

from ..errors import UsageError, missing_extra, near_misses, problem
from .jobs import Context, Job, run_job


class JobExecutor(Protocol):
    """Runs jobs of one run."""

    def submit(self, job: Job) -> Future[None]:
        """Start a job, now or when a worker is free."""

    def stop(self) -> None:
        """Ask running jobs to stop soon and drop the waiting ones; returns when they have stopped."""

    def close(self) -> None:
        """Wait for all jobs and give the workers back."""


class InProcess:
    """Runs one job after another in a thread of this process, so that the main thread can show progress."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=1)

    def submit(self, job: Job) -> Future[None]:
        """See `JobExecutor`."""
        return self._pool.submit(run_job, job, self._context, self._stop.is_set)

    def stop(self) -> None:
        """See `JobExecutor`."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """See `JobExecutor`."""
        self._pool.shutdown(wait=True)


_worker: tuple[Context, Callable[[], bool]] | None = None


def _start_worker(context: Context, stop: Any) -> None:
    global _worker
    # Ctrl-C reaches every process of the terminal; the main process alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = (context, stop.is_set)


def _run_in_worker(job: Job) -> None:
    assert _worker is not None
    context, should_stop = _worker
    run_job(job, context, should_stop)


class Processes:
    """Runs jobs in local worker processes, which share the images' memory and the cores evenly."""

    def __init__(self, context: Context, workers: int) -> None:
        threads = context.threads or max(1, available_cores() // workers)
        spawn = torch.multiprocessing.get_context("spawn")
        self._stop = spawn.Event()
        self._pool: Executor = ProcessPoolExecutor(
            max_workers=workers,
            mp_context=spawn,
            initializer=_start_worker,
            initargs=(replace(context, threads=threads), self._stop),
        )

    def submit(self, job: Job) -> Future[None]:
        """See `JobExecutor`."""
        return self._pool.submit(_run_in_worker, job)

    def stop(self) -> None:
        """See `JobExecutor`."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """See `JobExecutor`."""
        self._pool.shutdown(wait=True)


class RayCluster:
    """Runs jobs on a Ray cluster; the run folder must lie on storage that all its machines share."""

    def __init__(self, context: Context, workers: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise missing_extra("ray", "ray", purpose="--executor ray") from error
        self._ray = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        self._context = ray.put(context)
        gpus = 1 if torch.cuda.is_available() else 0
        self._remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run_job)
        self._waiting = threading.Semaphore(workers)
        self._references: list[Any] = []

    def submit(self, job: Job) -> Future[None]:
        """See `JobExecutor`; Ray itself queues what does not fit."""
        reference = self._remote.remote(job, self._context)
        self._references.append(reference)
        future: Future[None] = reference.future()
        return future

    def stop(self) -> None:
        """See `JobExecutor`."""
        for reference in self._references:
            self._ray.cancel(reference, force=False)

    def close(self) -> None:
        """See `JobExecutor`; the cluster goes on."""


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Return how many jobs to run side by side: one on a GPU, up to eight on a CPU."""
    return 1 if torch.cuda.is_available() else min(8, available_cores())


def make_executor(kind: str, context: Context, workers: int) -> JobExecutor:
    """Build the executor of this name.

    Args:
        kind: `local` or `ray`.
        context: of the run.
        workers: jobs side by side, at least 1.

    Raises:
        UsageError: if there is no such executor, or the number of workers is out of range.
    """
    if not 1 <= workers <= 1024:
        raise UsageError(
            problem("workers must be from 1 to 1024", got=workers, remedy="leave it to the default", where="--workers")
        )
    if kind == "local":
        return InProcess(context) if workers == 1 else Processes(context, workers)
    if kind == "ray":
        return RayCluster(context, workers)
    raise UsageError(
        problem(
            "the executor must be local or ray",
            got=f"{kind!r}{near_misses(kind, ['local', 'ray'])}",
            remedy="leave it out for this machine",
            where="--executor",
        )
    )
