"""Where jobs run: in this process, in local worker processes, or on a Ray cluster.

All three have the shape of `concurrent.futures`: `submit` a job, get a future of what `run_job` returns.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

import torch

from .._cores import available_cores
from ..census import trace
from ..errors import UsageError, missing_extra, problem
from .dispatch import run_job
from .distributed import process_count
from .jobs import Context, Job
from .settings import RunOptions


class JobExecutor(Protocol):
    """Runs jobs of one run."""

    def submit(self, job: Job) -> Future[str]:
        """Start a job, now or when a worker is free."""

    def stop(self) -> None:
        """Ask running jobs to stop soon and drop the waiting ones; returns when they have stopped."""

    def close(self) -> None:
        """Wait for all jobs and give the workers back."""


@functools.cache
def _one_thread(process: int) -> ThreadPoolExecutor:
    """Return the thread in which a process trains: what cuDNN finds out about kernels it keeps by thread.

    Args:
        process: its id; a forked child has no thread of its parent's.
    """
    return ThreadPoolExecutor(max_workers=1)


class InProcess:
    """Runs one job after another in a thread of this process, so that the main thread can show progress.

    All executors of this kind share the thread: what two of them are given takes turns.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stop = threading.Event()
        self._jobs: set[Future[str]] = set()  # those that are not done: what failed would keep its memory

    def submit(self, job: Job) -> Future[str]:
        """See `JobExecutor`."""
        submitted = _one_thread(os.getpid()).submit(run_job, job, self._context, self._stop.is_set)
        self._jobs.add(submitted)
        submitted.add_done_callback(self._jobs.discard)
        return submitted

    def stop(self) -> None:
        """See `JobExecutor`."""
        self._stop.set()
        for job in list(self._jobs):
            job.cancel()  # those that run go on until they ask, and leave the set then
        self.close()

    def close(self) -> None:
        """See `JobExecutor`."""
        wait_for(list(self._jobs))


_worker: tuple[Context, Callable[[], bool]] | None = None


def _start_worker(context: Context, stop: Any, numbers: Any = None) -> None:
    global _worker
    # Ctrl-C reaches every process of the terminal; the main process alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if numbers is not None and torch.cuda.device_count() > 1:
        torch.cuda.set_device(numbers.get() % torch.cuda.device_count())
    _worker = (context, stop.is_set)


def _end_with_parent() -> None:
    """End this process when the main one is gone, however it went: nobody would read what it does."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _run_in_worker(job: Job) -> str:
    assert _worker is not None
    context, should_stop = _worker
    return run_job(job, context, should_stop)


class Processes:
    """Runs jobs in local worker processes, which share the images' memory; several GPUs are dealt out in turn."""

    def __init__(self, context: Context, workers: int) -> None:
        """Prepare the workers; they start with the first job.

        Raises:
            UsageError: if the network cannot be sent to another process.
        """
        context = replace(_portable(context), threads=context.threads or max(1, available_cores() // workers))
        spawn = torch.multiprocessing.get_context("spawn")
        self._stop = spawn.Event()
        numbers = spawn.SimpleQueue()
        for number in range(workers):
            numbers.put(number)
        self._pool = ProcessPoolExecutor(
            max_workers=workers,
            mp_context=spawn,
            initializer=_start_worker,
            initargs=(context, self._stop, numbers),
        )

    def submit(self, job: Job) -> Future[str]:
        """See `JobExecutor`."""
        with _ctrl_c_later():
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
        """Join the cluster that Ray finds (RAY_ADDRESS, or one on this machine), or start one here.

        Raises:
            MissingExtraError: if Ray is not installed.
        """
        try:
            import ray
        except ImportError as error:
            raise missing_extra("ray", "ray", purpose="--executor ray") from error
        self._ray = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        context = replace(_portable(context), folder=context.folder.resolve())
        self._context = ray.put(context)
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        self._task = ray.remote(num_cpus=context.threads or 1, num_gpus=gpus, max_retries=0)(run_job)
        self._running: set[Any] = set()
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=workers)  # each thread waits for one job

    def submit(self, job: Job) -> Future[str]:
        """See `JobExecutor`."""
        return self._pool.submit(self._run, job)

    def _run(self, job: Job) -> str:
        reference = self._task.remote(job, self._context)
        self._running.add(reference)
        try:
            if self._stopped.is_set():
                self._ray.cancel(reference)
            return str(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the job's own error, without Ray's words around it
        except self._ray.exceptions.RayError as error:
            raise BrokenExecutor(str(error)) from error
        finally:
            self._running.discard(reference)

    def stop(self) -> None:
        """See `JobExecutor`; a job's state since its last checkpoint is lost."""
        self._stopped.set()
        for reference in list(self._running):
            self._ray.cancel(reference)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """See `JobExecutor`; the cluster goes on."""
        self._pool.shutdown(wait=True)


BUSY = 0.25
"""Share of the processor in use, from which on what runs beside others is said to be slower."""


def busy_share(seconds: float = 0.3) -> float | None:
    """Return which share of the cores that this process may use all programs use, from 0 to 1; None off Linux.

    Args:
        seconds: to watch them.
    """
    try:
        before = _ticks()
        time.sleep(seconds)
        after = _ticks()
    except (OSError, ValueError, IndexError):
        return None
    idle, total = (later - earlier for earlier, later in zip(before, after, strict=True))
    return min(1.0, max(0.0, 1 - idle / total)) if total > 0 else None


def _ticks() -> tuple[int, int]:
    """Return the idle and all ticks of these cores since the machine started (proc(5), /proc/stat)."""
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    cores = [[int(field) for field in line[1:9]] for line in lines if line and line[0] in mine]
    return sum(ticks[3] + ticks[4] for ticks in cores), sum(map(sum, cores))


def default_workers() -> int:
    """Return how many jobs to run side by side: one per GPU, up to eight on a CPU, one under `torchrun`."""
    if process_count() > 1:
        return 1
    return max(1, torch.cuda.device_count()) if torch.cuda.is_available() else min(8, available_cores())


def threads_per_job(options: RunOptions, jobs: int) -> int:
    """Return the threads of each of so many jobs of a phase.

    It depends on the whole phase, not on what is left of it, so a run that was interrupted goes on with the same.
    """
    side_by_side = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if process_count() > 1 else min(options.workers, jobs)
    return options.threads or max(1, available_cores() // max(1, side_by_side))


def make_executor(kind: str, context: Context, workers: int) -> JobExecutor:
    """Build the executor of this name.

    Args:
        kind: `local` or `ray`.
        context: of the run.
        workers: jobs side by side, at least 1.

    Raises:
        UsageError: if there is no such executor, the number of workers is out of range, or they cannot be combined
            with `torchrun`.
    """
    RunOptions(kind, workers)
    if process_count() > 1 and (workers > 1 or kind != "local"):
        raise UsageError(
            problem(
                "under torchrun all processes train one network together",
                got=f"{workers} workers, executor {kind}",
                remedy="leave out --workers and --executor, or start the command without torchrun",
                where="--workers",
            )
        )
    if kind == "ray":
        return RayCluster(context, workers)
    return InProcess(context) if workers == 1 else Processes(context, workers)


def _portable(context: Context) -> Context:
    """Make the context fit to be sent: of a user's own network goes the graph, which needs none of their classes.

    Raises:
        UsageError: if that is not possible.
    """
    if context.network is None:
        return context
    try:
        traced = trace(context.network)
        for node in traced.graph.nodes:
            node.type = None  # annotations that are texts cannot be pickled, and nothing needs them
        traced.recompile()
        pickle.dumps(traced)  # what `multiprocessing` will do, where its error could not be told from others
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            problem(
                "a network that runs in other processes must be picklable",
                got=f"{type(error).__name__}: {error}",
                remedy="define its classes at the top level of a module, or use one worker",
                where="--workers",
            )
        ) from error
    return replace(context, network=traced)


@contextlib.contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Hold Ctrl-C back while processes start: they inherit that, and start in peace; then it is delivered here."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
