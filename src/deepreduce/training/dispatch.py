"""Carrying out one job, whatever it is: what executors call, in this process or another one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from .._files import read_json, write_json
from ..errors import DeepReduceError, Interrupted, RunError, TrainingError, problem
from .distributed import agree, process_count
from .jobs import LEARNING_RATES, Context, Job, run_training_job
from .loop import DivergenceError
from .mask_jobs import run_mask_job

_DIVERGED = "diverged.json"

_COMPILERS = ("torch._dynamo", "torch._inductor", "triton")

_BROKEN: tuple[type[Exception], ...] = tuple(filter(None, [getattr(torch, "AcceleratorError", None)]))
"""After these nothing more can be done on the device in this process: a kernel that read beyond its memory."""


def run_job(job: Job, context: Context, should_stop: Callable[[], bool] = lambda: False) -> str:
    """Train one network (or find masks) and write its folder: history, weights, recipe, and last of all its metrics.

    A training that diverges begins anew with a lower learning rate, twice at most. The thread count of the caller and
    its random state on the processor stay as they are.

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
            return _until_it_converges(job, context, should_stop)
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
                "leave compilation out (--compile off)"
                if compiling
                else "use a smaller --batch-size or fewer --workers"
            )
            raise TrainingError(
                problem(
                    "a network must run and fit into memory",
                    got=f"{type(error).__name__}: {_first_words(str(error))}",
                    remedy=f"{remedy}, then run the same command again",
                    where=context.folder / job.place,
                )
            ) from error


def _until_it_converges(job: Job, context: Context, should_stop: Callable[[], bool]) -> str:
    """Carry a job out, with a lower learning rate each time that it diverges; a file remembers how often it did."""
    run = run_training_job if job.masks is None else run_mask_job
    folder, rates = context.folder / job.place, [job.config.learning_rate * factor for factor in LEARNING_RATES]
    failure: DivergenceError | None = None
    for times in range(agree(lambda: _times_diverged(folder, rates[0])), len(rates)):
        try:
            note = run(replace(job, diverged=times), context, should_stop)
        except DivergenceError as error:
            failure = error
            agree(partial(_note_divergence, folder, rates[0], times + 1))
            continue
        agree(partial(_forget, folder, _DIVERGED))
        slower = f"{job.label}: its training diverged, and began anew with a learning rate of {rates[times]:g}"
        return "; ".join(filter(None, (note, slower if times else "")))
    agree(partial(_forget, folder, _DIVERGED))
    assert failure is not None
    tried = ", ".join(f"{rate:g}" for rate in rates)
    raise DivergenceError(failure.must, f"{failure.got}; learning rates of {tried} were tried") from failure


def _times_diverged(folder: Path, rate: float) -> int:
    """Return how often a job that begins with this learning rate has diverged before it was interrupted."""
    try:
        found = read_json(folder / _DIVERGED)
        times = found["times"] if found["learning_rate"] == rate else 0
    except (RunError, KeyError, TypeError):
        return 0
    return times if times in range(len(LEARNING_RATES)) else 0


def _note_divergence(folder: Path, rate: float, times: int) -> None:
    write_json(folder / _DIVERGED, {"learning_rate": rate, "times": times})
    _forget(folder, "checkpoint.safetensors")  # of the training that diverged


def _forget(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)


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
