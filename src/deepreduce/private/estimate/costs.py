"""What an estimate says: phases and their costs, the same for all protocols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import UsageError, problem


@dataclass(frozen=True)
class Counts:
    """What the protocols of others are priced by, for one image.

    Attributes:
        relus: number of ReLUs.
        relu_layers: ReLU layers that keep any.
        macs: multiply-accumulates of convolutions and matrix products.
        linear_layers: convolutions and matrix products.

    Raises:
        UsageError: a number is negative.
    """

    relus: int
    relu_layers: int
    macs: int
    linear_layers: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0:
                raise UsageError(
                    problem(f"the count {name} is 0 or more", got=value, remedy="count the network with profile")
                )


@dataclass(frozen=True)
class Phase:
    """One phase of a protocol. None stands for a number that is not known.

    Attributes:
        and_gates: garbled or evaluated; 0 where a protocol has no garbled circuits.
        bytes: both ways.
        sent_bytes: client to server.
        received_bytes: server to client.
        round_trips: how often the client waits for an answer.
        compute_seconds: without any network: the parties' work, as far as one waits for the other.
        seconds: by the name of the link, with the network.
    """

    and_gates: int
    bytes: int
    sent_bytes: int | None
    received_bytes: int | None
    round_trips: int
    compute_seconds: float
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Cost:
    """What one private inference costs with one protocol.

    Attributes:
        protocol: `ours`, `delphi` or `cheetah`.
        title: for people.
        setup: once per connection; None where nothing is known of it.
        offline: before the image is known; None for a protocol that prepares nothing.
        online: from the image to the answer.
        client_bytes: stored at the client from offline to online, for one image.
        server_bytes: at the server; None where it is not known.
        source: where the constants come from.
        hardware, date: of their measurement.
        not_accounted: what is left out, a sentence each.
    """

    protocol: str
    title: str
    setup: Phase | None
    offline: Phase | None
    online: Phase
    client_bytes: int
    server_bytes: int | None
    source: str
    hardware: str
    date: str
    not_accounted: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)
