"""Carrying out one job, whatever it is: what executors call, in this process or another one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..errors import DeepReduceError, Interrupted, RunError, TrainingError, problem
from .distributed import process_count
from .jobs import Context, Job, run_training_job
from .loop import DivergenceError
from .mask_jobs import run_mask_job

ATTEMPTS = 3
"""How often a network is trained whose training diverges: each time with a quarter of the learning rate. The teacher,
which all are compared with, is trained as asked or not at all."""

_COMPILERS = ("torch._dynamo", "torch._inductor", "triton")

_BROKEN: tuple[type[Exception], ...] = tuple(filter(None, [getattr(torch, "AcceleratorError", None)]))
"""After these nothing more can be done on the device in this process: a kernel that read beyond its memory."""


def run_job(job: Job, context: Context, should_stop: Callable[[], bool] = lambda: False) -> str:
    """Train one network (or find masks) and write its folder: history, weights, recipe, and last of all its metrics.

    The thread count of the caller and its random state on the processor stay as they are.

    Args:
        job: what to train.
        context: the rest of the run.
        should_stop: asked before every step.

    Returns:
        What the user should know about it; empty as a rule.

    Raises:
        TrainingError, NetworkError: if this network cannot be trained; others are not touched.
        Interrupted: if `should_stop` said so.
        RunError: if a file cannot be written, or the GPU failed, so that this process can use it no more.
    """
    if should_stop():  # a job that waited in a queue when the others were stopped
        raise Interrupted("stopped on request; run the same command again to continue")
    with own_state(context.threads):
        try:
            return _attempted(job, context, should_stop)
        except DeepReduceError:
            raise
        except OSError as error:
            raise RunError(
                problem(
                    "the files of a job must be readable and writable",
                    got=error,
                    remedy="make room or give rights, and run the same command again; what was finished is kept",
                    where=context.folder / job.place,
                )
            ) from error
        except (MemoryError, RuntimeError) as error:
            # PyTorch reports everything by RuntimeError: no memory, a kernel that cannot take this shape.
            if process_count() > 1:
                raise  # the other processes wait for this one: let torchrun end them
            if isinstance(error, _BROKEN) and not isinstance(error, torch.OutOfMemoryError):
                raise RunError(
                    problem(
                        "the GPU must go on",
                        got=f"{type(error).__name__}: {_first_words(str(error))}",
                        remedy="run the same command again, in a new process; what was finished is kept",
                        where=context.folder / job.place,
                    )
                ) from error
            compiling = type(error).__module__.startswith(_COMPILERS)
            remedy = (
                "leave compilation out (--compile off), then run the same command again"
                if compiling
                else "use fewer --workers, then run the same command again; or a smaller --batch-size, in another "
                "folder for --out"
            )
            raise TrainingError(
                problem(
                    "a network must run and fit into memory",
                    got=f"{type(error).__name__}: {_first_words(str(error))}",
                    remedy=remedy,
                    where=context.folder / job.place,
                )
            ) from error


def _attempted(job: Job, context: Context, should_stop: Callable[[], bool]) -> str:
    """Carry out a job, and where its training diverges once more with a smaller learning rate; see `ATTEMPTS`."""
    run = run_training_job if job.masks is None else run_mask_job
    last = 0 if job.kind == "teacher" else ATTEMPTS - 1
    for attempt in range(last):
        with contextlib.suppress(DivergenceError):
            return run(replace(job, attempt=attempt), context, should_stop)
    return run(replace(job, attempt=last), context, should_stop)


def _first_words(text: str) -> str:
    """Return the first line of a message, and the second where the first only announces it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


@contextlib.contextmanager
def own_state(threads: int | None) -> Iterator[None]:
    """Train in here with so many threads, and leave the caller's threads and random state as they are."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
