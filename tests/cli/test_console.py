"""What a command shows while it works."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.cli._console import Estimate, Watcher, duration
from deepreduce.reduction import Candidate
from deepreduce.training import Job, TrainingConfig

CONFIG = TrainingConfig(epochs=4)
TEACHER = Job("teacher", None, 0, False, CONFIG)
CANDIDATES = [Job("candidate", Candidate(keep=(name,)), seed, True, CONFIG) for seed in (0, 1) for name in ("S2", "S3")]


def test_example_half_of_the_work_in_a_minute_leaves_a_minute() -> None:
    assert Estimate(total=10, done=0, now=100).left(5, 160) == 60


def test_what_was_finished_before_does_not_count_towards_the_pace() -> None:
    estimate = Estimate(total=10, done=8, now=0)
    assert estimate.left(8, 30) is None
    assert estimate.left(9, 30) == 30


@given(st.floats(0.1, 1e6), st.floats(0, 0.9), st.floats(0.1, 1e5))
def test_at_a_steady_pace_the_estimate_is_right(total: float, first: float, pace: float) -> None:
    done = first * total
    estimate = Estimate(total, done, 0.0)
    for share in (0.25, 0.5, 1.0):
        reached = done + share * (total - done)
        left = estimate.left(reached, (reached - done) / pace)
        assert left == pytest.approx((total - reached) / pace, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "..."),
        (0, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (7200, "2 h 00 min"),
        (200_000, "2 d 8 h"),
    ],
)
def test_durations_are_written_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_piped_progress_is_a_line_per_job(capsys: pytest.CaptureFixture[str]) -> None:
    with Watcher() as watcher:
        watcher.begin([(TEACHER, 1.0, False)])
        watcher.end(TEACHER, None)
        watcher.begin([(job, 1.0, job.seed == 0) for job in CANDIDATES])
        watcher.update(CANDIDATES[2], 2)
        watcher.end(CANDIDATES[2], None)
        watcher.end(CANDIDATES[3], "the loss [bold]was[/bold] not finite")
        watcher.note("a note")
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert lines[0] == "Teacher: 1 to train" and lines[1] == "  1/1 teacher"
    assert lines[2] == "Candidates: 4 to train, 2 already finished"
    assert lines[3].startswith("  3/4 S2, seed 1, about ")
    assert lines[4:] == ["note: S3, seed 1 failed: the loss [bold]was[/bold] not finite", "note: a note"]


def test_small_pieces_of_work_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with Watcher() as watcher:
        watcher.begin([(TEACHER, 1.0, False)])
        watcher.end(TEACHER, None)
        for done in range(4):
            watcher.step("Private cost", done, 3)
        watcher.step("Test images", 0, 1)
    assert capsys.readouterr().err.splitlines()[2:] == ["Private cost: 3 networks", "Test images: 1 network"]


def test_nothing_to_do_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Watcher() as watcher:
        watcher.begin([])
    assert capsys.readouterr().err == ""


def test_work_of_nothing_is_no_division_by_zero(capsys: pytest.CaptureFixture[str]) -> None:
    with Watcher() as watcher:
        watcher.begin([(TEACHER, 0.0, False)])
        watcher.end(TEACHER, None)
    assert "1/1 teacher" in capsys.readouterr().err
