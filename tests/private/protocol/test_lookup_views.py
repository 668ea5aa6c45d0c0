"""What both parties see of a ReLU is exactly uniform: every tuple of messages comes up once, for every pair of shares."""

from __future__ import annotations

import numpy as np
import pytest

from deepreduce.private.program import Circuit
from deepreduce.private.protocol.lookup import permute_client, permute_server
from deepreduce.private.protocol.multiplexer import (
    ClientPart,
    ServerMasks,
    ask,
    client_carries,
    client_highest,
    reply,
)

SIZES = [(2, 2, 2), (2, 2, 3), (2, 2, 4), (3, 2, 3), (3, 2, 4), (3, 3, 3)]
"""Width, tested bits, ring of the output: small enough to write all randomness down."""


def every(*widths: int) -> list[np.ndarray]:
    """All tuples of numbers of so many bits each, a line for each number."""
    index, lines = np.arange(1 << sum(widths), dtype=np.uint64), []
    for width in widths:
        lines.append(index & np.uint64((1 << width) - 1))
        index = index >> np.uint64(width)
    return lines


def times(lines: list[np.ndarray], widths: list[int]) -> np.ndarray:
    """How often each tuple of numbers comes up."""
    joined, place = np.zeros(len(lines[0]), np.uint64), 0
    for line, width in zip(lines, widths, strict=True):
        assert line.max() < 1 << width
        joined |= line << np.uint64(place)
        place += width
    return np.bincount(joined.astype(np.int64), minlength=1 << place)


def spread(bits: np.ndarray, j: int, size: int) -> np.ndarray:
    """Put bits where a pad for bit j of an index has them, in a table of one word."""
    found = np.zeros_like(bits)
    for number, place in enumerate(place for place in range(size) if not place >> j & 1):
        found |= (bits >> np.uint64(number) & np.uint64(1)) << np.uint64(place)
    return found


@pytest.mark.parametrize(("width", "tested", "bits"), SIZES)
def test_the_servers_view(width: int, tested: int, bits: int) -> None:
    """Both flips, z, t and all that permutes its table, its own randomness being anything."""
    op, low, upper = Circuit("relu", width, 0, tested=tested), tested - 1, bits - width
    rng, half = np.random.default_rng(1), 1 << (tested - 1) >> 1
    for server in range(1 << width):
        for client in range(1 << width):
            g, *more, unknown, r, pads = every(1, *([1] if upper else []), bits, bits, half * low)
            n, g_q = len(g), more[0] if more else np.zeros_like(g)

            def fixed(size: int, n: int = n) -> np.ndarray:
                return np.full(n, rng.integers(1 << size), np.uint64)

            a, pi = int(rng.integers(1 << low)), int(rng.integers(2))
            known = fixed(bits)
            hashes = np.stack([known, unknown] if pi == 0 else [unknown, known])
            both = np.zeros((2, low, n, 1), np.uint64)
            for j in range(low):
                both[a >> j & 1, j, :, 0] = fixed(62)
                both[1 - (a >> j & 1), j, :, 0] = spread(pads >> np.uint64(j * half), j, 2 * half)
            x_s, x_c = (np.full(n, value, np.uint64) for value in (server, client))
            own, sent = permute_client(client_carries(op, x_c), *both)
            table = permute_server(
                np.full(n, a, np.uint64), np.stack([both[a >> j & 1, j] for j in range(low)]), sent, low
            )
            o, m, o_p, m_p, o_q, m_q = (fixed(size) for size in (bits, bits, *[max(1, upper)] * 4))
            none, c = np.zeros((0, n), np.uint64), client_highest(op, x_c)
            masks = ServerMasks(table, np.full(n, a | pi << low, np.uint64), m, np.stack([m_p, m_q]) if upper else none)
            wraps = np.stack([o_p + m_p * c, o_q + m_q * g_q]) if upper else none
            at_client = ClientPart(own, x_c, g | g_q << np.uint64(1), o + m * g, wraps, hashes, r)
            answer = reply(op, ask(op, x_s, masks, bits)[0], at_client, bits)
            lines = [*answer.flips, *answer.words]
            for j in range(low):
                places = [place for place in range(2 * half) if not place >> j & 1]
                shown = [(sent[j, :, 0] >> np.uint64(p) & np.uint64(1)) << np.uint64(i) for i, p in enumerate(places)]
                lines.append(np.bitwise_or.reduce(shown))
            assert (times(lines, [1] * len(answer.flips) + [bits, bits] + [half] * low) == 1).all()


@pytest.mark.parametrize(("width", "tested", "bits"), SIZES)
def test_the_clients_view(width: int, tested: int, bits: int) -> None:
    """The place, the bit beside it and all values, its own randomness being anything."""
    op, low, upper = Circuit("relu", width, 0, tested=tested), tested - 1, bits - width
    rng = np.random.default_rng(2)
    for server in range(1 << width):
        for client in range(1 << width):
            a, pi, m, *more = every(low, 1, bits, *([upper, upper] if upper else []))
            n = len(a)
            zeros, ones = (
                np.broadcast_to(rng.integers(1 << 62, size=(low, 1, 1)).astype(np.uint64), (low, n, 1))
                for _ in range(2)
            )
            x_s, x_c = (np.full(n, value, np.uint64) for value in (server, client))
            _, sent = permute_client(client_carries(op, x_c), zeros, ones)
            chosen = np.stack(
                [np.where((a >> np.uint64(j) & np.uint64(1))[:, None] == 1, ones[j], zeros[j]) for j in range(low)]
            )
            table = permute_server(a, chosen, sent, low)
            wraps = np.stack(more) if upper else np.zeros((0, n), np.uint64)
            question, _ = ask(op, x_s, ServerMasks(table, a | pi << np.uint64(low), m, wraps), bits)
            lines = [question.places, question.product, *question.wraps]
            assert (times(lines, [low + 1, bits, *[upper] * len(question.wraps)]) == 1).all()
