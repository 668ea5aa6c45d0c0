"""What a ReLU is whose sign is told by its upper bits alone: exact far from zero, and near it cut at random."""

from __future__ import annotations

import numpy as np
import pytest

from deepreduce.private.program import Circuit, rectified
from deepreduce.private.program.evaluate import rectified_range
from deepreduce.private.ring import reduce, signed


@pytest.mark.parametrize(("width", "tested"), [(5, 5), (5, 4), (5, 2), (7, 3), (6, 4), (10, 9), (9, 8)])
def test_every_pair_of_shares(width: int, tested: int) -> None:
    op, every = Circuit("relu", width, 0, tested=tested), np.arange(1 << width, dtype=np.uint64)
    server, client = (shares.ravel() for shares in np.meshgrid(every, every))
    x = signed(reduce(server + client, width), width)
    y, step = rectified(op, server, client), 1 << (width - tested)
    lowest, highest = rectified_range(op)
    inside = (x >= lowest) & (x <= highest)
    far = inside & ((2 * x >= step) | (2 * x < -step))
    assert np.array_equal(y[far], np.maximum(x, 0)[far])
    near = inside & ~far
    assert np.isin(y[near], (0, *range(-step, step))).all() and ((y == 0) | (y == x))[near].all()
    if step > 1:
        passed = [np.mean(y[x == value] == value) for value in range(-(step // 2), step // 2) if value]
        assert passed == sorted(passed)  # the larger, the surer
        assert 0 < passed[0] <= 0.5 <= passed[-1] <= 1
