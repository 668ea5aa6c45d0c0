"""How many bundles one client may have made in a day: every answer teaches a little of the weights.

Each inference spends a bundle, so that what limits bundles limits inferences, and is said before an image is masked or
anything is spent. A client is known by what the CA has signed of its certificate, where the server asks for one, so
that each certificate counts by itself; else by its address, which is worth little: many share one, and one may have
many.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

DAY_SECONDS = 86_400.0

_SLOT_SECONDS = 600.0
"""Bundles are counted in slots of this length, so that a client takes little memory whatever it asks for."""

_MOST_CLIENTS = 100_000
"""Who was not seen for longest is forgotten beyond that."""


class Quota:
    """Counts the bundles of each client over the last day; in memory, so that a new start begins anew.

    Args:
        most: bundles for one client in any 24 hours, at least 1; None for no limit.
        clock: seconds that only grow.
    """

    def __init__(self, most: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._lock = threading.Lock()
        self._made: OrderedDict[str, deque[tuple[int, int]]] = OrderedDict()

    def left(self, client: str) -> int | None:
        """Return how many bundles the client may have made now; None for any number."""
        with self._lock:
            return None if self._most is None else self._left(client, self._most)

    def take(self, client: str, bundles: int = 1) -> bool:
        """Count some bundles, if as many are left; tell whether they were."""
        with self._lock:
            if self._most is None:
                return True
            if self._left(client, self._most) < bundles:
                return False
            slots = self._made.setdefault(client, deque())
            self._made.move_to_end(client)
            now = int(self._clock() // _SLOT_SECONDS)
            before = slots.pop()[1] if slots and slots[-1][0] == now else 0
            slots.append((now, before + bundles))
            while len(self._made) > _MOST_CLIENTS:
                self._made.popitem(last=False)
            return True

    def give_back(self, client: str, bundles: int) -> None:
        """Count so many of a client's bundles no more: the latest ones, which were not made after all."""
        with self._lock:
            slots = self._made.get(client, deque())
            while slots and bundles > 0:
                slot, count = slots.pop()
                if count > bundles:
                    slots.append((slot, count - bundles))
                bundles -= count

    def _left(self, client: str, most: int) -> int:
        slots = self._made.get(client, deque())
        oldest = (self._clock() - DAY_SECONDS) // _SLOT_SECONDS
        while slots and slots[0][0] < oldest:
            slots.popleft()
        return most - sum(count for _, count in slots)
