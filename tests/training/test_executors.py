"""Executors: what they refuse, how many threads a job has, and the contract with Ray against a stand-in."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepreduce.errors import Interrupted, MissingExtraError, TrainingError, UsageError
from deepreduce.reduction import make_base
from deepreduce.training import Context, Job, RunOptions, TrainingConfig, default_workers, executors
from deepreduce.training.executors import make_executor, threads_per_job


def test_example_a_job_in_this_process(context: Context, config: TrainingConfig) -> None:
    executor = make_executor("local", context, 1)
    executor.submit(Job("teacher", None, 0, False, config)).result()
    executor.close()
    assert (context.folder / "teacher" / "seed0" / "metrics.json").exists()


def test_jobs_of_all_phases_train_in_one_thread(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(executors, "run_job", lambda *_: str(seen.append(threading.get_ident())))
    for _ in range(3):
        executor = make_executor("local", context, 1)
        executor.submit(Job("teacher", None, 0, False, TrainingConfig())).result()
        executor.close()
    assert len(seen) == 3 and len(set(seen)) == 1 and threading.get_ident() not in seen


def test_stopping_ends_the_running_job_and_drops_the_waiting_ones(context: Context, config: TrainingConfig) -> None:
    executor = make_executor("local", context, 1)
    endless = TrainingConfig(epochs=100_000, batch_size=32, flip=False)
    first = executor.submit(Job("teacher", None, 0, False, endless))
    second = executor.submit(Job("teacher", None, 1, False, endless))
    history = context.folder / "teacher" / "seed0" / "history.jsonl"
    deadline = time.monotonic() + 600
    while not history.exists() and not first.done() and time.monotonic() < deadline:
        time.sleep(0.02)
    executor.stop()
    assert isinstance(first.exception(), Interrupted) and second.cancelled()


@pytest.mark.parametrize(("kind", "workers", "words"), [("rey", 1, "did you mean ray"), ("local", 0, "--workers")])
def test_wrong_executors_are_named(kind: str, workers: int, words: str, context: Context) -> None:
    with pytest.raises(UsageError, match=words):
        make_executor(kind, context, workers)


def test_threads_depend_on_the_phase_and_not_on_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "available_cores", lambda: 8)
    assert [threads_per_job(RunOptions(workers=4), jobs) for jobs in (1, 2, 3, 4, 20)] == [8, 4, 2, 2, 2]
    assert threads_per_job(RunOptions(workers=100), 100) == 1
    assert threads_per_job(RunOptions(workers=4, threads=3), 20) == 3


def test_defaults_fit_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for cores, workers in ((1, 1), (4, 4), (16, 8)):
        monkeypatch.setattr(executors, "available_cores", lambda cores=cores: cores)
        assert default_workers() == workers
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert default_workers() == 2
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert default_workers() == 1


@pytest.mark.parametrize(
    ("lines", "share"),
    [
        (["cpu  9\ncpu3 100 0 0 100 0 0 0 0 0 0", "cpu  9\ncpu3 130 0 10 150 10 0 0 0 7 7"], 0.4),  # waiting is idle
        (["cpu3 1 0 0 1 0 0 0 0\ncpu4 5 0 0 5 0 0 0 0", "cpu3 2 0 0 1 0 0 0 0\ncpu4 5 0 0 6 0 0 0 0"], 1.0),  # not ours
        (["cpu3 1 0 0 1 0 0 0 0", "cpu3 1 0 0 1 0 0 0 0"], None),  # no time went by
        (["cpu3 1 0 0 9 0 0 0 0", "cpu3 11 0 0 8 0 0 0 0"], 1.0),  # idle time that went backwards
        (["cpu3 1 0", "cpu3 2 0"], None),
        (["cpu2 1 0 0 9 0 0 0 0", ""], None),
        (["cpu3 a b c d e f g h"], None),
    ],
)
def test_example_how_busy_the_processor_is(
    lines: list[str], share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(lines)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    monkeypatch.setattr(Path, "read_text", lambda path: next(left))
    assert executors.busy_share(0) == (share if share is None else pytest.approx(share))


def test_how_busy_this_machine_is() -> None:
    busy = executors.busy_share(0.1)
    assert busy is None or 0 <= busy <= 1


def test_workers_under_torchrun_are_refused(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="torchrun"):
        make_executor("local", context, 2)


def test_a_network_that_cannot_be_sent_is_refused_here(context: Context, network: Any) -> None:
    network.fc.note = lambda: None
    with pytest.raises(UsageError, match=r"picklable.*--workers"):
        make_executor("local", context, 2)
    make_executor("local", context, 1).close()


def test_what_is_sent_is_the_same_network(context: Context, network: Any) -> None:
    sent = pickle.loads(pickle.dumps(executors._portable(context).network))
    mine, theirs = make_base(context.spec, network), make_base(context.spec, sent)
    assert [layer.name for layer in mine.census.layers] == [layer.name for layer in theirs.census.layers]
    assert mine.network.state_dict().keys() == theirs.network.state_dict().keys()
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(sent.eval()(images), network.eval()(images))


def test_without_ray_the_missing_extra_is_named(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"deepreduce\[ray\]"):
        make_executor("ray", context, 1)


class RayTaskError(Exception):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"a long remote traceback around {cause!r}")
        self.cause = cause


class WorkerCrashedError(Exception):
    pass


class StandIn:
    """As much of Ray's interface as is used, with threads for machines."""

    def __init__(self) -> None:
        self.exceptions = SimpleNamespace(RayTaskError=RayTaskError, RayError=(RayTaskError, WorkerCrashedError))
        self.pool = ThreadPoolExecutor(8)
        self.stored: list[Any] = []
        self.asked: dict[str, Any] = {}
        self.most = self.now = 0
        self.lock = threading.Lock()

    def is_initialized(self) -> bool:
        return True

    def put(self, value: Any) -> Any:
        self.stored.append(value)
        return value

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0}

    def remote(self, **asked: Any) -> Any:
        self.asked = asked

        def wrap(function: Any) -> Any:
            def run(*arguments: Any) -> Any:
                with self.lock:
                    self.now += 1
                    self.most = max(self.most, self.now)
                try:
                    return function(*arguments)
                finally:
                    with self.lock:
                        self.now -= 1

            return SimpleNamespace(remote=lambda *arguments: self.pool.submit(run, *arguments))

        return wrap

    def get(self, reference: Any) -> Any:
        try:
            return reference.result()
        except (TrainingError, ValueError) as error:
            raise RayTaskError(error) from error

    def cancel(self, reference: Any) -> None:
        reference.cancel()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    standing = StandIn()
    monkeypatch.setitem(sys.modules, "ray", standing)  # type: ignore[arg-type]
    return standing


def test_ray_runs_jobs_with_an_absolute_folder_and_at_most_so_many_at_once(
    ray: StandIn, context: Context, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dataclasses import replace

    both = threading.Barrier(2)

    def job(job: Job, context: Context) -> str:
        if job.seed < 2:
            both.wait(60)  # the first two are there at the same time, however late their threads begin
        threading.Event().wait(0.05)
        return f"{job.seed}"

    monkeypatch.setattr(executors, "run_job", job)
    monkeypatch.chdir(tmp_path)
    executor = make_executor("ray", replace(context, folder=Path("run"), threads=3), 2)
    futures = [executor.submit(Job("teacher", None, seed, False, config)) for seed in range(5)]
    assert [future.result() for future in futures] == ["0", "1", "2", "3", "4"]
    executor.close()
    assert ray.most == 2
    assert ray.stored[0].folder == tmp_path / "run"
    assert ray.asked == {"num_cpus": 3, "num_gpus": 0, "max_retries": 0}


def test_ray_hands_on_the_jobs_own_error(
    ray: StandIn, context: Context, config: TrainingConfig, monkeypatch: Any
) -> None:
    def fails(job: Job, context: Context) -> str:
        raise TrainingError("the loss")

    monkeypatch.setattr(executors, "run_job", fails)
    executor = make_executor("ray", context, 1)
    error = executor.submit(Job("teacher", None, 0, False, config)).exception()
    executor.close()
    assert isinstance(error, TrainingError) and str(error) == "the loss"


def test_a_machine_that_goes_away_breaks_the_executor(
    ray: StandIn, context: Context, config: TrainingConfig, monkeypatch: Any
) -> None:
    def gone(job: Job, context: Context) -> str:
        raise WorkerCrashedError("gone")

    monkeypatch.setattr(executors, "run_job", gone)
    executor = make_executor("ray", context, 1)
    error = executor.submit(Job("teacher", None, 0, False, config)).exception()
    executor.stop()
    assert isinstance(error, BrokenExecutor)
