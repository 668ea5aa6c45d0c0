"""The plan: complete, honest about what is known, and free of side effects."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.errors import RunError
from deepreduce.training import Context, RunOptions, SearchSettings, estimate, plan, search


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_MEASURE_SECONDS", 0.02)


def test_example_a_plan_before_anything_is_done(context: Context, settings: SearchSettings) -> None:
    found = plan(context, settings, RunOptions(workers=2, threads=1))
    kinds = [job["kind"] for job in found["jobs"]]
    assert kinds[0] == "teacher" and kinds.count("criticality") == 4 and kinds.count("candidate") == 5
    assert all(job["status"] == "to do" and job["hours"] > 0 for job in found["jobs"])
    assert found["jobs"][0]["relus"] == 1280 and found["workers"] == 2
    assert "not measured yet" in found["note"]
    assert not context.folder.exists()


def test_a_plan_of_a_finished_run_has_nothing_to_do(context: Context, settings: SearchSettings) -> None:
    search(context, settings)
    before = {path: path.stat().st_mtime_ns for path in context.folder.rglob("*")}
    found = plan(context, settings)
    assert {job["status"] for job in found["jobs"]} == {"finished"} and found["hours"] == 0
    assert "not measured yet" not in found["note"]
    victim = context.folder / "teacher" / "seed0" / "metrics.json"
    victim.write_text("{")
    assert plan(context, settings)["jobs"][0]["status"] == "to do"
    assert set(context.folder.rglob("*")) == set(before)  # not even damage is moved


def test_a_budget_shows_what_is_skipped(context: Context, settings: SearchSettings) -> None:
    from dataclasses import replace

    found = plan(context, replace(settings, budget=100))
    skipped = [job for job in found["jobs"] if job["status"] == "skipped"]
    assert skipped and all(job["relus"] > 100 and "budget" in job["reason"] and job["hours"] == 0 for job in skipped)


@pytest.mark.parametrize(("busy", "told"), [(0.6, True), (0.1, False), (None, False)])
def test_a_busy_processor_is_told(
    busy: float | None, told: bool, context: Context, settings: SearchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "busy_share", lambda: busy)
    for found in (plan(context, settings), estimate.plan_teacher(context, settings)):
        assert ("use 60% of the processor" in found["note"]) is told


def test_the_start_of_workers_is_explained(context: Context, settings: SearchSettings) -> None:
    """It makes several workers slower than one, job by job, where every network is trained in a moment."""
    for workers, told in ((1, False), (2, True)):
        found = plan(context, settings, RunOptions(workers=workers, threads=1))
        assert ("start of the workers, about 5 s in every phase" in found["note"]) is told
        assert (60 * 60 * (found["hours"] - sum(job["hours"] for job in found["jobs"])) > 1) is told


def test_twice_the_epochs_take_twice_as_long(
    context: Context, settings: SearchSettings, variant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate.Clock, "_measure", lambda *_: (0.01, 0.5))  # of a step, and before the first
    clock = estimate.Clock(context)
    from deepreduce.reduction import make_base
    from deepreduce.training.proposals import first_jobs

    base = make_base(context.spec, context.network)
    short, long = (first_jobs(base, variant(settings, epochs=epochs))[0][0] for epochs in (1000, 2000))
    assert clock.seconds(long, 1) / clock.seconds(short, 1) == pytest.approx(2, rel=0.05)


def test_a_learning_rate_at_which_training_diverges_can_be_planned(
    context: Context, settings: SearchSettings, variant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepreduce.training.loop._CHECK_EVERY", 1)
    assert plan(context, variant(settings, learning_rate=1e30, warmup=0.0))["hours"] > 0


def test_the_folder_of_another_run_is_refused(context: Context, settings: SearchSettings, one_stage: Any) -> None:
    from dataclasses import replace

    search(context, settings)
    with pytest.raises(RunError, match="other layers"):
        plan(replace(context, network=one_stage), settings)


@given(st.lists(st.floats(0.1, 1000), min_size=1, max_size=30), st.integers(1, 8))
def test_the_wall_clock_lies_between_its_bounds(jobs: list[float], workers: int) -> None:
    found = estimate._wall_clock(jobs, workers)
    start = estimate._WORKER_START_SECONDS if min(workers, len(jobs)) > 1 else 0
    least = max(max(jobs), sum(jobs) / workers)
    assert least - 1e-6 <= found <= sum(jobs) / min(workers, len(jobs)) + max(jobs) + start + 1e-6
