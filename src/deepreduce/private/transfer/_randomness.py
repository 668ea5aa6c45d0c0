"""Where randomness comes from: the operating system, and nothing else outside the tests.

Every function that draws takes a keyword-only `_random`, by default `os.urandom`. The tests hand in `SeededForTests`,
explicitly, call by call; no setting, environment variable, or file leads there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

Random = Callable[[int], bytes]
"""A source of random bytes: called with a length, it returns that many."""


class SeededForTests:
    """A reproducible source for recorded messages in tests: SHAKE-128 of the seed and of a call counter.

    Whoever knows the seed knows every secret drawn from it, so it must never leave a test.
    """

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._calls = 0

    def __call__(self, length: int) -> bytes:
        """Return the next `length` bytes."""
        self._calls += 1
        return hashlib.shake_128(
            len(self._seed).to_bytes(8, "little") + self._seed + self._calls.to_bytes(8, "little")
        ).digest(length)
