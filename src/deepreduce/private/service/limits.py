"""What one server gives to strangers: bounds on everything that they decide."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UsageError, problem
from ..protocol import Reveal
from .messages import MAX_IMAGES, MAX_TOGETHER

_PLACES = {
    "clients": "--clients",
    "bundles": "--bundles",
    "bundles_per_day": "--bundles-per-day",
    "together": "together",
    "images": "--images",
    "batch_bytes": "--batch-memory",
    "deadline_seconds": "--deadline",
    "slowest_bytes_per_second": "slowest_bytes_per_second",
    "handshake_seconds": "handshake_seconds",
}
"""The option of each limit, or its name where it has none."""


_MOST_PATIENCE_SECONDS = 1e6


@dataclass(frozen=True)
class ServerLimits:
    """What one server gives to strangers.

    Attributes:
        reveal: what clients may learn; the logits tell more of the weights than the label does.
        clients: connections at once; further ones are told to come again.
        bundles: most bundles of one request.
        bundles_per_day: most bundles that one client has made in any 24 hours, see `quota`; None for no limit.
        together: most bundles that are prepared together. Where their shares would take more than `batch_bytes`, fewer
            are, at least one.
        images: most images of one online phase; clients send larger batches in turns.
        batch_bytes: memory of one online phase, and of the shares of bundles that are prepared together, so `clients`
            times as much in all, beside program and weights. Where `images` would take more, fewer go at once, at least
            one: `ServerMemory` says how many. It is what is in use; the allocator keeps up to about 64 MiB of what was
            freed for each client.
        deadline_seconds: longest wait for any one message of a client, between requests included.
        slowest_bytes_per_second: of a client. For the linear layers of bundles that are prepared together, for the rest
            of these bundles, and for a batch of images, the server waits in all `deadline_seconds` and as long as their
            bytes take at this rate; then it ends the connection.
        handshake_seconds: longest TLS handshake, and longest wait for the HELLO after it. Before the HELLO a
            connection counts among the strangers, of whom there may be `clients` + 8 at once, see `strangers`.
    """

    reveal: tuple[Reveal, ...] = ("label",)
    clients: int = 8
    bundles: int = 1000
    bundles_per_day: int | None = None
    together: int = 128
    images: int = 64
    batch_bytes: int = 256 << 20
    deadline_seconds: float = 120.0
    slowest_bytes_per_second: float = 125_000.0
    handshake_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: naming what is out of range.
        """
        for name, low, high in (
            ("clients", 1, 10_000),
            ("bundles", 1, 1 << 31),
            ("bundles_per_day", 1, 1 << 31),
            ("together", 1, MAX_TOGETHER),
            ("images", 1, MAX_IMAGES),
            ("batch_bytes", 1, 1 << 60),
            ("deadline_seconds", 0.05, 86_400),
            ("slowest_bytes_per_second", 1, 1 << 60),
            ("handshake_seconds", 0.05, 3_600),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(
                    problem(
                        f"{name} lies between {low:,} and {high:,}",
                        got=repr(value),
                        remedy="give a number in this range, or leave it out",
                        where=_PLACES[name],
                    )
                )
        if not self.reveal or not set(self.reveal) <= {"label", "logits"}:
            raise UsageError(
                problem(
                    "a server reveals the label, or logits too",
                    got=self.reveal,
                    remedy="name label or logits",
                    where="--reveal",
                )
            )

    def patience_seconds(self, transferred: int) -> float:
        """Return how long the server waits in all for a client to send and take so many bytes."""
        return min(self.deadline_seconds + transferred / self.slowest_bytes_per_second, _MOST_PATIENCE_SECONDS)
