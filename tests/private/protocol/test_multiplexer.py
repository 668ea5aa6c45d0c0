"""The value of a ReLU goes around its circuit: the parties' arithmetic against the definition, on all small shares."""

from __future__ import annotations

import numpy as np
import pytest

from deepreduce.private.circuits import evaluate_plain, sign_test
from deepreduce.private.program import Circuit, rectified
from deepreduce.private.program.evaluate import rectified_range
from deepreduce.private.protocol.multiplexer import (
    client_tested,
    client_value,
    openings,
    outputs,
    reply,
    server_tested,
)
from deepreduce.private.ring import random_words, reduce, signed

CASES = [(5, 5, 9), (5, 4, 5), (5, 2, 9), (7, 3, 12), (6, 4, 62)]
"""Width, tested bits, ring of the output."""


def pairs(width: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of shares."""
    every = np.arange(1 << width, dtype=np.uint64)
    server, client = np.meshgrid(every, every)
    return server.ravel(), client.ravel()


def play(op: Circuit, server: np.ndarray, client: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Both parties; a dealer stands for the garbled circuit and the transfers. Return the output's two shares."""
    values = {"server_share": server_tested(op, server), "client_share": client_tested(op, client)}
    out = evaluate_plain(sign_test(op.tested, op.width, bits), values)
    b, term = np.asarray(out["positive"])[:, 0].astype(np.uint64), np.asarray(out["out"], np.uint64)
    n = len(server)
    p, (m, o, f, h, r) = random_words((n,), 1), (random_words((n,), bits) for _ in range(5))
    opened = openings(op, server, m, bits)
    words = o + m * b + term
    z, t = reply(client_value(op, client), opened, b ^ p, words, h + r, f, bits)
    assert max(z.max(), t.max(), opened.max()) < 2**bits
    return outputs(z, t, p, o - (h + p * f), bits), r


@pytest.mark.parametrize(("width", "tested", "bits"), CASES)
def test_every_pair_of_shares_gives_what_is_defined(width: int, tested: int, bits: int) -> None:
    op = Circuit("relu", width, 0, tested=tested)
    server, client = pairs(width)
    got = signed(reduce(sum(play(op, server, client, bits)), bits), bits)
    expected = rectified(op, server, client)
    assert np.array_equal(reduce(got.astype(np.uint64), bits), reduce(expected.astype(np.uint64), bits))


@pytest.mark.parametrize(("width", "tested", "bits"), CASES)
def test_numbers_far_from_zero_are_rectified_exactly(width: int, tested: int, bits: int) -> None:
    op = Circuit("relu", width, 0, tested=tested)
    server, client = pairs(width)
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
