from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from deepreduce._cores import available_cores
from deepreduce.private.homomorphic import Pool, PoolError, ProcessPool, _backends, open_pool
from deepreduce.private.homomorphic.pool import run, shares
from deepreduce.private.homomorphic.workers import ThreadPool

SECONDS = 100
"""Longest wait of a test; only a defect takes that long."""


def test_example() -> None:
    with ThreadPool(2) as pool:
        assert pool.map(divmod, [(17, 5), (9, 2), (1, 1)]) == [(3, 2), (4, 1), (1, 0)]
        assert set(pool.map(os.getpid, [()] * 4)) == {os.getpid()}
        both = threading.Barrier(2, timeout=SECONDS)  # passed only if two jobs run at the same time
        assert sorted(pool.map(both.wait, [(), ()])) == [0, 1]


def test_an_error_of_a_job_ends_the_others_and_keeps_nothing() -> None:
    class Large:
        """Stands for a message in memory."""

    begun, go = threading.Event(), threading.Event()
    ended: list[int] = []

    def job(number: int, held: Large) -> None:
        if number == 1:
            begun.set()
            assert go.wait(SECONDS)
            time.sleep(0.1)
        if number == 0:
            assert begun.wait(SECONDS)
            go.set()
            raise ZeroDivisionError
        time.sleep(0.01)
        ended.append(number)

    def fail(pool: Pool) -> weakref.ref[Large]:
        held = Large()
        with pytest.raises(ZeroDivisionError):
            pool.map(job, [(number, held) for number in range(50)])
        assert 1 in ended and len(ended) < 49  # those that ran were waited for
        return weakref.ref(held)

    gc.disable()  # nothing may hang on a cycle until it is collected
    try:
        with ThreadPool(2) as pool:
            assert fail(pool)() is None
            assert pool.map(abs, [(-1,)] * 4) == [1] * 4
    finally:
        gc.enable()


def test_closing_fails_what_has_not_begun_and_waits_for_what_has() -> None:
    pool, begun, go = ThreadPool(1), threading.Event(), threading.Event()
    ended: list[int] = []

    def job(number: int) -> None:
        begun.set()
        assert go.wait(SECONDS)
        time.sleep(0.1)
        ended.append(number)

    with ThreadPoolExecutor(2) as threads:
        asked = threads.submit(pool.map, job, [(1,), (2,), (3,)])
        assert begun.wait(SECONDS)
        closing = threads.submit(pool.close)
        while not pool._executor._shutdown:
            time.sleep(0.01)
        go.set()
        closing.result(SECONDS)
        assert ended == [1]
        with pytest.raises(PoolError, match="closed"):
            asked.result(SECONDS)
    pool.close()
    with pytest.raises(PoolError, match=r"pool must be open.*Do: "):
        pool.map(abs, [(1,)])


def test_several_threads_may_use_one_pool() -> None:
    with ThreadPool(2) as pool, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda base: pool.map(pow, [(base, n) for n in range(50)]), range(4)))
    assert answers == [[base**n for n in range(50)] for base in range(4)]


def test_as_many_messages_are_in_memory_as_there_are_workers() -> None:
    there, most, lock = 0, 0, threading.Lock()

    def hold(pool: Pool) -> None:
        nonlocal there, most
        with pool.turn():
            with lock:
                there += 1
                most = max(most, there)
            pool.map(time.sleep, [(0.01,)])
            with lock:
                there -= 1

    with ThreadPool(2) as pool, ThreadPoolExecutor(6) as threads:
        list(threads.map(hold, [pool] * 12))
    assert most == 2 and there == 0


def test_processes_stand_in_where_seal_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []
    for kernel in (object(), None):
        monkeypatch.setattr(_backends, "kernel", kernel)
        with open_pool(1) as pool:
            kinds.append((type(pool), pool.in_this_process))
    assert kinds == [(ThreadPool, True), (ProcessPool, False)]


@pytest.mark.parametrize("kind", [ThreadPool, open_pool], ids=["threads", "open_pool"])
def test_a_pool_without_workers_is_refused(kind) -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        kind(0)


def test_by_default_there_is_a_worker_for_every_core() -> None:
    with ThreadPool() as pool:
        assert pool.workers == available_cores()


def test_shares_cover_all_jobs_once() -> None:
    with ThreadPool(2) as pool:
        assert shares(5, pool) == [range(2), range(2, 5)]
        assert shares(1, pool) == [range(1)]
    assert shares(3, None) == [range(3)]
    assert run(None, abs, [(-1,), (2,)]) == [1, 2]
