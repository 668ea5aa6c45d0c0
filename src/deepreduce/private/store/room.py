"""How much lies in the folder, without looking at every file for each new one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

_COUNTER_BYTES = 8


@dataclass
class Room:
    """An upper bound of the bytes in the folder, for one process.

    The lock of the folder is a file, and in it stands how many bytes all processes together have begun to write. Who
    counted what lies there, at a moment when that number was known, knows later what may lie there at most: taking
    only makes it less. So the files are counted again only when the bound reaches the limit, and a store of many
    bundles does not become slow.

    Attributes:
        counted: bytes that were there when they were counted last; -1 for never.
        begun: what stood in the lock then.
    """

    counted: int = -1
    begun: int = 0

    def at_most(self, lock: int, enough: int, count: Callable[[], int]) -> int:
        """Return a bound of what lies there; the exact number if the bound is above `enough`.

        Args:
            lock: from `folder_lock`, held.
            enough: bytes.
            count: counts what lies there.
        """
        begun = _read(lock)
        bound = self.counted + begun - self.begun
        if self.counted < 0 or begun < self.begun or bound > enough:  # less stands there if somebody removed the lock
            self.counted, self.begun = count(), begun
            bound = self.counted
        return bound


def note(lock: int, size: int) -> None:
    """Note, before a file is made, how long it will be; under the lock."""
    os.pwrite(lock, ((_read(lock) + size) % (1 << 8 * _COUNTER_BYTES)).to_bytes(_COUNTER_BYTES, "little"), 0)


def _read(lock: int) -> int:
    return int.from_bytes(os.pread(lock, _COUNTER_BYTES, 0), "little")
