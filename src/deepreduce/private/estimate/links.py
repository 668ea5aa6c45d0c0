"""Links between the parties, and the clock of two parties that talk over one."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ...errors import UsageError, near_misses, problem

FRAME_BYTES = 16
"""Header of every frame on the wire; `wire.HEADER_BYTES`, which costs an import of numpy."""

Party = Literal["client", "server"]


@dataclass(frozen=True)
class Link:
    """A network, the same in both directions; nothing is lost, and nobody else uses it.

    Attributes:
        name: for people.
        bits_per_second: bandwidth of each direction, above 0.
        round_trip_seconds: of a small message and its answer, at least 0.

    Raises:
        UsageError: a number is out of range.
    """

    name: str
    bits_per_second: float
    round_trip_seconds: float

    def __post_init__(self) -> None:
        if not self.bits_per_second > 0 or not 0 <= self.round_trip_seconds < math.inf:
            raise UsageError(
                problem(
                    "a link has a bandwidth above 0 and a round trip of at least 0 seconds",
                    got=f"{self.bits_per_second:g} bit/s and {self.round_trip_seconds:g} s",
                    remedy="take one of LINKS, or give both in bits and seconds",
                )
            )

    def seconds(self, *, compute: float, size: int, round_trips: int) -> float:
        """Add up what takes turns: computing, all bytes one after the other, and waiting."""
        return compute + 8 * size / self.bits_per_second + round_trips * self.round_trip_seconds


LINKS = MappingProxyType({"lan": Link("lan", 1e9, 0.001), "wan": Link("wan", 1e8, 0.040)})
"""The two links of the estimates: 1 Gbit/s with 1 ms, and 100 Mbit/s with 40 ms."""

IDEAL = Link("ideal", math.inf, 0.0)
"""No network at all: what remains is computing, as far as the parties wait for one another."""


def link_of(name: str) -> Link:
    """Return one of `LINKS`.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in LINKS:
        raise UsageError(
            problem(
                f"a link is one of {', '.join(LINKS)}",
                got=f"{name!r}{near_misses(name, list(LINKS))}",
                remedy="choose one, or pass a Link of your own",
                where="--link",
            )
        )
    return LINKS[name]


class Timeline:
    """Two parties with a clock each: they work, send frames, and wait for frames.

    It counts bytes and round trips as `wire.Channel` does at the client, so that a phase that is played on it in the
    protocol's own order gives the traffic of the real run.

    Args:
        link: between the parties.
        seconds_per_byte: what either party takes to encrypt or decrypt a byte of the connection. It overlaps with the
            network, and not with other work of that party.
    """

    def __init__(self, link: Link, seconds_per_byte: float = 0.0) -> None:
        self._per_byte, self._own_per_byte = max(8 / link.bits_per_second, seconds_per_byte), seconds_per_byte
        self._latency = link.round_trip_seconds / 2
        self._clock: dict[Party, float] = {"client": 0.0, "server": 0.0}
        self._arrivals: dict[Party, deque[tuple[float, int]]] = {"client": deque(), "server": deque()}
        self._spoke = False
        self.sent_bytes = 0
        self.received_bytes = 0
        self.round_trips = 0

    def work(self, party: Party, seconds: float) -> None:
        """Let a party compute."""
        self._clock[party] += seconds

    def send(self, party: Party, size: int) -> None:
        """Let a party send a frame with a body of `size` bytes; it is busy until the last one has left."""
        size += FRAME_BYTES
        self._clock[party] += size * self._per_byte
        other: Party = "server" if party == "client" else "client"
        self._arrivals[other].append((self._clock[party] + self._latency, size))
        if party == "client":
            self.sent_bytes += size
            self._spoke = True
        else:
            self.received_bytes += size

    def receive(self, party: Party) -> None:
        """Let a party wait for its next frame; one that has been there for a while still takes reading."""
        arrival, size = self._arrivals[party].popleft()
        self._clock[party] = max(self._clock[party] + size * self._own_per_byte, arrival)
        if party == "client" and self._spoke:
            self.round_trips += 1
            self._spoke = False

    @property
    def seconds(self) -> float:
        """When the later of both is done."""
        return max(self._clock.values())
