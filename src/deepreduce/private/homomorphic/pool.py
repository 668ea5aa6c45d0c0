"""What does the homomorphic work: a pool of workers, threads (`workers.py`) or processes (`processes.py`)."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from ..._cores import available_cores
from ...errors import problem
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
        self.workers = available_cores() if workers is None else workers
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
