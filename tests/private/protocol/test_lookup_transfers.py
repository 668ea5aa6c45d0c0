"""Lookups of all sizes through real transfers, sections and messages, against the definition."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepreduce.private.garbling import new_start
from deepreduce.private.program import Circuit, Step, rectified
from deepreduce.private.program.settings import MOST_TABLE_BITS
from deepreduce.private.protocol import offline
from deepreduce.private.protocol.codec import read_question, read_reply, write_question, write_reply
from deepreduce.private.protocol.multiplexer import ask, outputs, reply
from deepreduce.private.protocol.sections import (
    Sections,
    client_part,
    client_sections,
    server_masks,
    server_offsets,
    server_sections,
)
from deepreduce.private.protocol.session import ClientSession, ServerSession
from deepreduce.private.protocol.units import PORTION, LookupUnit
from deepreduce.private.ring import random_words, reduce
from deepreduce.private.transfer import Corrections, choose_setup, finish_setup, new_delta, offer_setup, plant_setup

SIZES = [
    (62, 2, 62), (62, 13, 62), (61, 8, 62), (62, 8, 62), (2, 2, 2), (2, 2, 3), (2, 2, 62), (3, 3, 3), (13, 8, 28),
    (13, 13, 28), (13, 12, 62), (33, 7, 33), (33, 7, 34), (32, 5, 40), (16, 8, 16), (16, 9, 17), (55, 8, 62), (7, 7, 62),
]  # fmt: skip
"""Width, tested bits, ring of the output."""


class Kept:
    """A bundle that insists on the types and shapes that were announced, each section once."""

    def __init__(self, sections: Sections) -> None:
        self.sections, self.data = sections, dict[str, np.ndarray]()

    def write(self, section: str, offset: int, data: Any) -> None:
        kind, shape = self.sections[section]
        assert (data.dtype, data.shape, offset) == (kind, shape, 0) and section not in self.data
        self.data[section] = data.copy()

    def array(self, section: str) -> np.ndarray:
        return self.data[section]


@pytest.fixture(scope="module")
def sessions() -> tuple[ClientSession, ServerSession]:
    def pair(identifier: bytes) -> tuple[Any, Any]:
        waiting, offer = offer_setup(identifier)
        drawn, chosen = choose_setup(identifier, new_delta(), offer)
        receiver, sums = plant_setup(waiting, chosen)
        return receiver, finish_setup(drawn, sums)

    starts = new_start(), new_start()
    (client, server), (other_server, other_client) = pair(bytes(16)), pair(bytes([1] * 16))
    return (
        ClientSession(bytes(16), starts[0], client, other_client, starts[1], {}),
        ServerSession(bytes(16), starts[0], server, other_server, starts[1], {}),
    )


def sections(unit: LookupUnit, find: Any) -> Sections:
    form = SimpleNamespace(size=1, ring_bits=8, shape=(1,))
    public = SimpleNamespace(tensors={0: form}, logits=0, input=form)
    found = find(SimpleNamespace(units=(unit,), jobs=(), public=public))
    return {name: kind for name, kind in found.items() if name not in ("input", "logits", "delta")}


def play(
    client: ClientSession, server: ServerSession, unit: LookupUnit, x_s: np.ndarray, x_c: np.ndarray
) -> np.ndarray:
    """Both phases of one unit; return the output, both shares together."""
    at_client, at_server = (Kept(sections(unit, find)) for find in (client_sections, server_sections))
    number = client.numbers.take()
    mine, theirs = (
        offline._Task(offline._Bundle(client.start, client.reverse_start, number, {}, sink), unit)
        for sink in (at_client, at_server)
    )
    masks = random_words((unit.instances,), unit.bits)
    corrections, at_work = offline._choose_products(mine, client, x_c, masks)
    assert len(corrections) == unit.corrections_bytes
    server.transfers, zeros = offline.extend_sender(
        server.transfers, Corrections.decode(bytes(corrections)), unit.transfers
    )
    answer, waiting = offline._look_up_server(theirs, server, zeros)
    assert len(answer) == unit.answer_bytes
    permuting = at_work.finish(np.frombuffer(answer, np.uint8))
    assert len(permuting) == unit.permuting_bytes
    waiting.finish(bytearray(permuting))
    assert set(at_client.data) == set(at_client.sections) and set(at_server.data) == set(at_server.sections)
    question, asked = ask(unit.op, x_s, server_masks(unit, at_server), unit.bits)
    raw = np.concatenate(write_question(unit, question))
    assert raw.size == unit.labels_bytes
    answered = reply(unit.op, read_question(unit, raw), client_part(unit, at_client), unit.bits)
    raw = np.concatenate(write_reply(unit, answered))
    assert raw.size == unit.words_bytes
    own = server_offsets(unit, at_server)
    return reduce(outputs(unit.op, read_reply(unit, raw), asked, own, unit.bits) + masks, unit.bits)


@pytest.mark.parametrize(("width", "tested", "bits"), SIZES)
@pytest.mark.parametrize("count", [1, 63, 65, 300])
def test_what_comes_out_is_what_is_defined(sessions: Any, width: int, tested: int, bits: int, count: int) -> None:
    op, places = Circuit("relu", width, 0, tested=tested), np.arange(count, dtype=np.int32)
    unit = LookupUnit(0, Step(op, (0,), 1, "relu"), bits, places[:, None], places)
    x_s, x_c = (random_words((count,), width) for _ in range(2))
    highest = 1 << (width - 1)
    edges = np.array([0, 1, 2 * highest - 1, highest, highest - 1, (highest + 1) % (2 * highest)], np.uint64)
    pairs = np.stack(np.meshgrid(edges, edges)).reshape(2, -1)[:, :count]
    x_s[: pairs.shape[1]], x_c[: pairs.shape[1]] = pairs
    expected = reduce(rectified(op, x_s, x_c).astype(np.uint64), bits)
    assert np.array_equal(play(*sessions, unit, x_s, x_c), expected)


def test_larger_tables_come_in_smaller_units() -> None:
    from deepreduce.private.program import PublicProgram, TensorFormat
    from deepreduce.private.protocol.units import cut_units

    size = 2 * PORTION + 5
    forms = tuple(TensorFormat((size,), 0, bits) for bits in (40, 40))
    for tested in range(2, MOST_TABLE_BITS + 1):
        step = Step(Circuit("relu", 20, 0, tested=tested), (0,), 1, "relu")
        units = cut_units(PublicProgram(forms, (step,)), step, 0)
        assert sum(unit.instances for unit in units) == size
        assert np.array_equal(np.concatenate([unit.writes for unit in units]), np.arange(size))
        assert all(unit.instances % 64 == 0 for unit in units[:-1])
        assert all(unit.instances * unit.pad_words <= 2 * PORTION and unit.instances <= PORTION for unit in units)
        assert max(unit.permuting_bytes for unit in units) <= 4 << 20
