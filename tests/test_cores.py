"""How many cores there are for this process."""

from __future__ import annotations

import os

import joblib
import pytest

from deepreduce._cores import available_cores


def test_cores_are_those_that_this_process_may_run_on() -> None:
    try:
        before = os.sched_getaffinity(0)
    except AttributeError:
        pytest.skip("this system does not say on which cores a process may run")
    assert 1 <= available_cores() <= len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("quota", "cores"), [(1, 1), (None, 7)], ids=["a quota", "no quota"])
def test_a_quota_of_processor_time_counts(quota: int | None, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if quota is not None:
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", str(quota))  # joblib's own word for it: a test has no cgroup to itself
    else:
        monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
    assert available_cores() == cores
