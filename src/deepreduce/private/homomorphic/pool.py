"""Workers for the homomorphic work: threads, because the kernel gives Python's global lock up while it computes.

SEAL keeps that lock, so where there is no kernel processes take the threads' place (`processes.py`). `open_pool` knows
which. Jobs of threads share what is there; those of processes get a copy of it.
"""

from __future__ import annotations

import itertools
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from ...errors import problem
from ._backends import default_backend
from .errors import PoolError

R = TypeVar("R")


class Pool(ABC):
    """A fixed number of workers; several threads may use one pool.

    Args:
        workers: how many; by default the cores that this process may use.

    Attributes:
        workers: how many.
        in_this_process: whether jobs see this process's memory.

    Raises:
        ValueError: there would be none.
    """

    in_this_process: ClassVar[bool]

    def __init__(self, workers: int | None = None) -> None:
        self.workers = _cores() if workers is None else workers
        if self.workers < 1:
            raise ValueError(
                problem(
                    "a pool must have at least one worker", got=workers, remedy="leave it out for one worker per core"
                )
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that there are besides this one."""
        return []

    def turn(self) -> AbstractContextManager[object]:
        """Return what to hold while a whole message is in memory for its jobs: as many are there at once as workers."""
        return nullcontext()

    @abstractmethod
    def map(self, function: Callable[..., R], jobs: Iterable[tuple[Any, ...]]) -> list[R]:
        """Call a function once per tuple of arguments and return the results in order.

        Raises:
            PoolError: the pool is closed, or a worker died or overran its deadline.
            Exception: what the function raised, the first in order.
        """

    @abstractmethod
    def close(self) -> None:
        """End all workers; jobs that have not begun fail with `PoolError`. May be called twice."""


class ThreadPool(Pool):
    """Threads of this process, for functions that compute without Python's lock.

    A job that runs is never cut off, so jobs are short. None may use or close the pool that it runs in.
    """

    in_this_process = True

    def __init__(self, workers: int | None = None) -> None:
        super().__init__(workers)
        self._executor = ThreadPoolExecutor(self.workers, thread_name_prefix="deepreduce-pool")
        self._turns = threading.BoundedSemaphore(self.workers)

    def turn(self) -> AbstractContextManager[object]:
        """See the base."""
        return self._turns

    def map(self, function: Callable[..., R], jobs: Iterable[tuple[Any, ...]]) -> list[R]:
        """See the base. After an error jobs that have not begun never do, and those that have are waited for."""
        futures: list[Future[R]] = []
        future: Future[R] | None = None
        over = threading.Event()

        def job(arguments: tuple[Any, ...]) -> R:
            if over.is_set():  # it was queued, though no thread could be started for it
                raise CancelledError
            return function(*arguments)

        try:
            for arguments in jobs:
                futures.append(self._submit(job, arguments))
            found = []
            for future in futures:
                found.append(future.result())
            return found
        except CancelledError as error:
            raise closed() from error
        finally:
            over.set()
            wait([future for future in futures if not future.cancel()])
            futures, future = [], None  # they hold the error, whose traceback leads here: a cycle, with all there is

    def _submit(self, job: Callable[[tuple[Any, ...]], R], arguments: tuple[Any, ...]) -> Future[R]:
        try:
            return self._executor.submit(job, arguments)
        except RuntimeError as error:
            if self._executor._shutdown:
                raise closed() from error
            raise PoolError(
                problem("the system must give threads", got=error, remedy="ask for fewer workers, or serve fewer")
            ) from error

    def close(self) -> None:
        """End the threads once what they compute is done, and wait for that."""
        self._executor.shutdown(cancel_futures=True)


def open_pool(workers: int | None = None) -> Pool:
    """Return workers of the kind that is faster here.

    Args:
        workers: how many; by default the cores that this process may use.

    Raises:
        ValueError: there would be none.
    """
    if default_backend() == "kernel":
        return ThreadPool(workers)
    from .processes import ProcessPool

    return ProcessPool(workers)


def run(pool: Pool | None, function: Callable[..., R], jobs: Iterable[tuple[Any, ...]]) -> list[R]:
    """Run jobs in a pool, or one after the other in this thread without one."""
    if pool is None:
        return [function(*arguments) for arguments in jobs]
    return pool.map(function, jobs)


def shares(count: int, pool: Pool | None) -> list[range]:
    """Cut the numbers below `count` into one contiguous share per worker."""
    parts = min(count, pool.workers if pool else 1)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [range(first, last) for first, last in itertools.pairwise(bounds)]


def closed() -> PoolError:
    """Return the error for work that no worker does any more."""
    return PoolError(problem("the pool must be open", got="a closed pool", remedy="open another one"))


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
