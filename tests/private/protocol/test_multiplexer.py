"""A ReLU by a table and products: the parties' arithmetic against the definition, on all small shares."""

from __future__ import annotations

import numpy as np
import pytest

from deepreduce.private.program import Circuit, rectified
from deepreduce.private.protocol.lookup import pad_words, permute_client, permute_server
from deepreduce.private.protocol.multiplexer import (
    ClientPart,
    ServerMasks,
    ServerOffsets,
    ask,
    client_carries,
    client_highest,
    index_bits,
    outputs,
    reply,
)
from deepreduce.private.ring import random_words, reduce, signed

CASES = [(5, 5, 9), (5, 4, 5), (5, 2, 9), (7, 3, 12), (6, 4, 62), (10, 9, 28), (9, 8, 9)]
"""Width, tested bits, ring of the output."""


def pairs(width: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of shares."""
    every = np.arange(1 << width, dtype=np.uint64)
    server, client = np.meshgrid(every, every)
    return server.ravel(), client.ravel()


def dealt(op: Circuit, client: np.ndarray, bits: int) -> tuple[tuple[ServerMasks, ServerOffsets], ClientPart]:
    """What the transfers would give; a dealer stands for them."""
    n, low, upper = len(client), index_bits(op), max(1, bits - op.width)
    a, pi, g, g_q = random_words((n,), low), *(random_words((n,), 1) for _ in range(3))
    zeros, ones = (random_words((low, n, pad_words(low)), 62) for _ in range(2))
    own, sent = permute_client(client_carries(op, client), zeros, ones)
    chosen = np.stack(
        [np.where((a >> np.uint64(j) & np.uint64(1))[:, None] == 1, ones[j], zeros[j]) for j in range(low)]
    )
    o, m, h_0, h_1, r = (random_words((n,), bits) for _ in range(5))
    o_p, m_p, o_q, m_q = (random_words((n,), upper) for _ in range(4))
    c, none = client_highest(op, client), np.zeros((0, n), np.uint64)
    lifted = bits > op.width
    constants = np.where(pi == 1, h_1, h_0) - (o_p << np.uint64(op.width) if lifted else np.uint64(0))
    masks = ServerMasks(
        permute_server(a, chosen, sent, low), a | pi << np.uint64(low), m, np.stack([m_p, m_q]) if lifted else none
    )
    server = masks, ServerOffsets(constants, o, o_q)
    wraps = np.stack([o_p + m_p * c, o_q + m_q * g_q]) if lifted else none
    return server, ClientPart(own, client, g | g_q << np.uint64(1), o + m * g, wraps, np.stack([h_0, h_1]), r)


def play(op: Circuit, server: np.ndarray, client: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Both parties. Return the output's two shares."""
    (masks, offsets), at_client = dealt(op, client, bits)
    question, asked = ask(op, server, masks, bits)
    answer = reply(op, question, at_client, bits)
    assert question.places.max() < 2**op.tested and max(question.product.max(), answer.words.max()) < 2**bits
    assert question.wraps.size == 0 or question.wraps.max() < 2 ** (bits - op.width)
    assert set(np.unique(answer.flips)) <= {0, 1}
    return outputs(op, answer, asked, offsets, bits), at_client.masks


@pytest.mark.parametrize(("width", "tested", "bits"), CASES)
def test_every_pair_of_shares_gives_what_is_defined(width: int, tested: int, bits: int) -> None:
    op = Circuit("relu", width, 0, tested=tested)
    server, client = pairs(width)
    got = signed(reduce(sum(play(op, server, client, bits)), bits), bits)
    expected = rectified(op, server, client)
    assert np.array_equal(reduce(got.astype(np.uint64), bits), reduce(expected.astype(np.uint64), bits))
