from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepreduce.private.homomorphic import PoolError, ProcessPool

SECONDS = 200
"""Longest wait of a test; only a defect takes that long."""


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    with ProcessPool(2) as opened:
        yield opened


def gone(pid: int) -> bool:
    """Wait until a process is no more."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            ended = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            if ended and len(list(Path(f"/proc/{pid}/task").iterdir())) == 1:  # else a thread still holds its files
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_example(pool: ProcessPool) -> None:
    assert pool.map(divmod, [(17, 5), (9, 2), (1, 1)]) == [(3, 2), (4, 1), (1, 0)]
    assert len(pool.pids) <= 2
    assert all(pid != os.getpid() for pid in pool.map(os.getpid, [()] * 4))


def test_results_come_in_the_order_of_the_jobs(pool: ProcessPool) -> None:
    assert pool.map(eval, [(_later(0.2, 1),), (_later(0, 2),), (_later(0.1, 3),)]) == [1, 2, 3]


def test_an_error_of_the_job_is_its_own(pool: ProcessPool) -> None:
    with pytest.raises(ZeroDivisionError):
        pool.map(divmod, [(1, 1), (1, 0)])
    for wrong in (FileNotFoundError, EOFError, SystemExit):  # also those that a broken pipe would raise
        with pytest.raises(wrong):
            pool.submit(eval, f"(_ for _ in ()).throw({wrong.__name__}('no such thing'))").result(SECONDS)
    pids = pool.pids
    assert pool.map(divmod, [(4, 2)] * 4) == [(2, 0)] * 4
    assert set(pids) <= set(pool.pids)


def test_a_killed_worker_fails_its_job_and_is_replaced(pool: ProcessPool) -> None:
    doomed, safe = pool.submit(signal.raise_signal, signal.SIGKILL), pool.submit(eval, _later(0.5, 2))
    with pytest.raises(PoolError, match=r"exit code -9.*Do:"):
        doomed.result(SECONDS)
    assert safe.result(SECONDS) == 2
    assert pool.map(abs, [(-1,)] * 4) == [1] * 4


def test_a_worker_killed_between_jobs_is_not_noticed_by_the_next(pool: ProcessPool) -> None:
    pool.map(abs, [(-1,)] * 4)
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
    assert pool.map(abs, [(-1,)] * 4) == [1] * 4


def test_a_stopped_worker_does_not_hang_even_with_much_to_send() -> None:
    with ProcessPool(1) as pool:
        pool.map(abs, [(1,)])
        os.kill(pool.pids[0], signal.SIGSTOP)
        honest, pool._state.deadline_seconds = pool._state.deadline_seconds, 1.5
        with pytest.raises(PoolError, match=r"1\.5 seconds"):
            pool.submit(len, b"x" * 10_000_000).result(SECONDS)
        pool._state.deadline_seconds = honest
        assert pool.submit(len, b"x" * 10_000_000).result(SECONDS) == 10_000_000


def test_closing_ends_workers_and_waiting_jobs() -> None:
    pool = ProcessPool(1)
    running, waiting = pool.submit(time.sleep, 60), pool.submit(time.sleep, 60)
    pid = _busy(pool, running)
    pool.close()
    pool.close()
    for future in (running, waiting):
        with pytest.raises(PoolError, match="closed"):
            future.result(SECONDS)
    assert gone(pid)
    with pytest.raises(PoolError, match="closed"):
        pool.submit(abs, 1)


def test_a_forgotten_pool_ends() -> None:
    pool = ProcessPool(1)
    pool.map(abs, [(1,)])
    pid = pool.pids[0]
    del pool
    gc.collect()
    assert gone(pid)


def test_what_cannot_be_pickled_is_an_error_and_no_hang(pool: ProcessPool) -> None:
    with pytest.raises(Exception, match="pickle"):
        pool.submit(threading.Lock().__enter__).result(SECONDS)
    with pytest.raises(PoolError, match="pickle"):
        pool.submit(threading.Lock).result(SECONDS)
    assert pool.submit(abs, -2).result(SECONDS) == 2


@pytest.mark.parametrize("stop", ["SIGKILL", "SIGTERM"])
def test_workers_end_with_their_owner(stop: str, tmp_path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(
        textwrap.dedent("""
            import sys, time
            from deepreduce.private.homomorphic import ProcessPool
            if __name__ == "__main__":
                pool = ProcessPool(2)
                pool.map(time.sleep, [(0.3,), (0.3,)])
                print(*pool.pids, flush=True)
                time.sleep(60)
        """)
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) == 2
        owner.send_signal(getattr(signal, stop))
        assert all(gone(pid) for pid in pids)


def test_a_script_without_a_guard_is_told_so(tmp_path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from deepreduce.private.homomorphic import ProcessPool\nprint(ProcessPool(1).map(abs, [(1,)]))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 1
    assert "__main__" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"workers": 0}, "at least one worker"),
        ({"deadline_seconds": 0}, "positive deadline"),
        ({"deadline_seconds": float("inf")}, "positive deadline"),
    ],
)
def test_a_pool_without_workers_or_time_is_refused(wrong, what) -> None:
    with pytest.raises(ValueError, match=what):
        ProcessPool(**wrong)


def _later(seconds: float, value: int) -> str:
    """Return an expression for a worker, which need not find this file."""
    return f"__import__('time').sleep({seconds}) or {value}"


def _busy(pool: ProcessPool, future) -> int:
    """Wait until a job runs, and return the process of the only worker."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        pids = pool.pids
        if future.running() and pids:
            time.sleep(0.2)
            return pids[0]
        time.sleep(0.02)
    raise AssertionError("the job never ran")
