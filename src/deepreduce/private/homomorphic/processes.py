"""Worker processes for the homomorphic work of SEAL, which keeps Python's global lock while it computes.

Every worker is a spawned process at the end of a pipe of its own, fed by one thread of the owner. So

* a worker that dies (killed, out of memory) fails the one job it held, with `PoolError`, and is replaced;
* a job that overruns its deadline is ended by killing its worker; nothing waits without a limit;
* the pipe breaks when the owner dies, however it dies, and the workers then end by themselves;
* Ctrl-C reaches the owner alone, which closes the pool on its way out.

Jobs and results are pickled between processes of one owner; nothing of the other party's is ever unpickled. As with
every spawned process, a script that uses a pool keeps its own work under `if __name__ == "__main__"`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.util
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from ...errors import problem
from .errors import PoolError
from .pool import Pool, closed

R = TypeVar("R")

_START_SECONDS = 180.0
"""How long a fresh worker may take to report that it is there."""

_WATCH_SECONDS = 5.0
"""How often an idle worker looks whether its owner still lives; a broken pipe mostly tells it sooner."""

_reaping = threading.Lock()
"""Starting a process also looks after all others; two threads that wait for one process disturb each other."""


@dataclass(frozen=True)
class _Job:
    future: Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass
class _State:
    """What the feeding threads share; they do not hold the pool itself, so that a forgotten pool ends."""

    deadline_seconds: float
    jobs: queue.SimpleQueue[_Job | None] = field(default_factory=queue.SimpleQueue)
    lock: threading.RLock = field(default_factory=threading.RLock)  # the garbage collector may close us anywhere
    processes: set[BaseProcess] = field(default_factory=set)
    closed: bool = False


class ProcessPool(Pool):
    """A fixed number of worker processes; several threads may use one pool.

    Args:
        workers: number of processes; by default the cores that this process may use.
        deadline_seconds: longest time that one job may run.

    Raises:
        ValueError: an argument is not positive.
    """

    in_this_process = False

    def __init__(self, workers: int | None = None, *, deadline_seconds: float = 600.0) -> None:
        super().__init__(workers)
        if not 0 < deadline_seconds <= threading.TIMEOUT_MAX:
            raise ValueError(
                problem(
                    "jobs must have a positive deadline",
                    got=f"{deadline_seconds} seconds",
                    remedy="leave it out for ten minutes",
                )
            )
        self._state = _State(deadline_seconds)
        self._threads = [threading.Thread(target=_feed, args=(self._state,), daemon=True) for _ in range(self.workers)]
        self._finalizer = multiprocessing.util.Finalize(self, _end, (self._state, self.workers), exitpriority=10)
        for thread in self._threads:
            thread.start()

    @property
    def pids(self) -> list[int]:
        """Ids of the workers that are there; each starts with its first job."""
        with self._state.lock:
            return [process.pid for process in self._state.processes if process.pid is not None]

    def submit(self, function: Callable[..., R], *arguments: Any) -> Future[R]:
        """Have one worker call a function.

        Args:
            function: a function of a module.
            arguments: its arguments, which can be pickled.

        Returns:
            A future with the result, with the function's own exception, or with `PoolError`.

        Raises:
            PoolError: the pool is closed.
        """
        future: Future[R] = Future()
        with self._state.lock:
            if self._state.closed:
                raise closed()
            self._state.jobs.put(_Job(future, function, arguments))
        return future

    def map(self, function: Callable[..., R], jobs: Iterable[tuple[Any, ...]]) -> list[R]:
        """See the base: functions of modules, arguments and results that can be pickled."""
        futures = [self.submit(function, *arguments) for arguments in jobs]
        return [future.result() for future in futures]

    def close(self) -> None:
        """End all workers at once; jobs that have not finished fail with `PoolError`. May be called twice."""
        self._finalizer()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=10)


def _end(state: _State, count: int) -> None:
    """Close a pool: fail what waits, kill what runs, send the threads home."""
    with state.lock:
        state.closed = True
        waiting = []
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(state.jobs.get_nowait())
        for _ in range(count):
            state.jobs.put(None)
        for process in state.processes:
            process.kill()
    for job in waiting:
        if job is not None and job.future.set_running_or_notify_cancel():
            job.future.set_exception(closed())


def _feed(state: _State) -> None:
    """Hand jobs to one worker, which is started when it is needed and replaced when it is gone."""
    worker: _Worker | None = None
    while (job := state.jobs.get()) is not None:
        if not job.future.set_running_or_notify_cancel():
            continue
        try:
            if worker is not None and worker.is_gone():
                worker.discard()
                worker = None
            if worker is None:
                worker = _Worker(state)
            result = worker.call(job)
        except _WorkerGone as gone:
            if worker is not None:
                worker.discard()
                worker = None
            job.future.set_exception(closed() if state.closed else gone.reason)
        except BaseException as error:  # it belongs to whoever waits for the job
            job.future.set_exception(error)
        else:
            job.future.set_result(result)
        del job
    if worker is not None:
        worker.discard()


class _WorkerGone(Exception):  # noqa: N818 - it never leaves this module
    """The worker is of no more use; `reason` is for whoever waits."""

    def __init__(self, reason: PoolError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Worker:
    """One process and the owner's end of its pipe."""

    def __init__(self, state: _State) -> None:
        self.state = state
        self.doomed = False
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, os.getpid()), daemon=True)
        with theirs, state.lock:
            if state.closed:
                raise _WorkerGone(closed())
            with _reaping:
                self.process.start()
            state.processes.add(self.process)
        try:
            with self._limit(_START_SECONDS, "start"):
                self.pipe.recv()
        except _WorkerGone:
            self.discard()
            raise

    def is_gone(self) -> bool:
        """Tell whether the process has ended; an idle one sends nothing, so that only the end makes its pipe ready."""
        return self.doomed or self.pipe.poll()

    def call(self, job: _Job) -> Any:
        """Send a job and wait for what comes of it."""
        with self._limit(self.state.deadline_seconds, f"finish {getattr(job.function, '__name__', job.function)}"):
            self.pipe.send((job.function, job.arguments))
            good, result = self.pipe.recv()
        if not good:
            raise result
        return result

    @contextlib.contextmanager
    def _limit(self, seconds: float, what: str) -> Iterator[None]:
        """Kill the worker at the deadline, and turn a broken pipe into `_WorkerGone`."""

        def kill() -> None:
            self.doomed = True
            self.process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (EOFError, OSError) as error:
            with _reaping:
                self.process.join(timeout=5)
                code = self.process.exitcode
            if self.doomed:
                got, remedy = f"more than {seconds:g} seconds", "give the pool a longer deadline, or fewer jobs at once"
            else:
                got = f"it ended with exit code {code}"
                remedy = "run again; -9 mostly means that memory ran out, 1 at the start that the script lacks its "
                remedy += "'if __name__ == \"__main__\"'"
            reason = PoolError(problem(f"a worker must live to {what}", got=got, remedy=remedy))
            raise _WorkerGone(reason) from error
        finally:
            timer.cancel()
            timer.join()  # from here on it cannot strike the next job

    def discard(self) -> None:
        """Make sure that the process is gone."""
        with _reaping:
            self.process.kill()
            self.process.join(timeout=5)
        self.pipe.close()
        with self.state.lock:
            self.state.processes.discard(self.process)


def _work(pipe: Connection[Any, Any], owner: int) -> None:
    """Do jobs until the pipe breaks or the owner is gone; the body of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        pipe.send("ready")
        while True:
            while not pipe.poll(_WATCH_SECONDS):
                if os.getppid() != owner:
                    return
            content = pipe.recv_bytes()
            try:
                function, arguments = pickle.loads(content)
                answer = (True, function(*arguments))
            except BaseException as error:  # it belongs to whoever waits for the job
                answer = (False, error)
            del content
            _reply(pipe, answer)


def _reply(pipe: Connection[Any, Any], answer: tuple[bool, Any]) -> None:
    """Send a result; one that cannot be pickled is described instead."""
    try:
        pipe.send(answer)
    except (EOFError, OSError):
        raise
    except Exception as error:
        what = problem("a job must return something that can be pickled", got=error, remedy="return plain data")
        pipe.send((False, PoolError(what if answer[0] else f"{type(answer[1]).__name__}: {answer[1]}")))
