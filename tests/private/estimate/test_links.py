"""The clock of two parties, by hand."""

from __future__ import annotations

import math

import pytest

from deepreduce.errors import UsageError
from deepreduce.private.estimate import LINKS, Link, link_of
from deepreduce.private.estimate.links import FRAME_BYTES, IDEAL, Timeline
from deepreduce.private.wire import HEADER_BYTES


def test_example_question_and_answer() -> None:
    line = Timeline(Link("slow", 8000, 2.0))  # 1,000 bytes a second, one second each way
    line.work("client", 3)
    line.send("client", 984)  # with its header 1,000 bytes: the client is busy until 4, it arrives at 5
    line.work("client", 10)  # until 14
    line.receive("server")
    line.work("server", 2)  # until 7
    line.send("server", 1984)  # until 9, arrives at 10
    line.receive("client")
    assert line.seconds == 14
    assert (line.sent_bytes, line.received_bytes, line.round_trips) == (1000, 2000, 1)
    line.send("client", 984)  # until 15, arrives at 16
    line.receive("server")
    assert line.seconds == 16 and line.round_trips == 1


def test_frames_in_a_row_are_one_round_trip() -> None:
    line = Timeline(IDEAL)
    line.send("client", 1)
    for _ in range(3):
        line.send("server", 1)
        line.receive("client")
    assert line.round_trips == 1 and line.seconds == 0


def test_encryption_slower_than_the_link_decides() -> None:
    line = Timeline(Link("fast", 8e9, 0), seconds_per_byte=1.0)
    line.send("client", 84)
    assert line.seconds == 100  # both at the same time
    line.receive("server")
    assert line.seconds == 100
    line.send("client", 84)
    line.work("server", 500)
    line.receive("server")
    assert line.seconds == 700  # it lay there, and is decrypted now


def test_the_links_are_those_of_the_design() -> None:
    assert {name: (link.bits_per_second, link.round_trip_seconds) for name, link in LINKS.items()} == {
        "lan": (1e9, 0.001),
        "wan": (1e8, 0.04),
    }
    assert link_of("wan").seconds(compute=1.0, size=12_500_000, round_trips=10) == pytest.approx(1 + 1 + 0.4)
    assert FRAME_BYTES == HEADER_BYTES


@pytest.mark.parametrize(("speed", "delay"), [(0, 1), (-1, 1), (math.nan, 1), (1, -1), (1, math.inf), (1, math.nan)])
def test_an_impossible_link_is_refused(speed: float, delay: float) -> None:
    with pytest.raises(UsageError, match=r"bandwidth above 0.*Got: .*Do: "):
        Link("x", speed, delay)


def test_an_unknown_link_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"lan, wan.*did you mean lan.*Do: .*Where: --link"):
        link_of("lann")
