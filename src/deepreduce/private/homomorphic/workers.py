"""Threads for the homomorphic work, because the kernel gives Python's global lock up while it computes.

SEAL keeps that lock, so where there is no kernel processes take their place; `open_pool` knows which. Jobs of threads
share what is there; those of processes get a copy of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from ...errors import problem
from ._backends import default_backend
from .errors import PoolError
from .pool import Pool, closed
from .processes import ProcessPool

R = TypeVar("R")


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
    return ProcessPool(workers)
