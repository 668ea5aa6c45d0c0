"""Randomness that comes again, for recorded messages."""

from __future__ import annotations

import hashlib


class Seeded:
    """SHAKE-128 of the seed and of a call counter; whoever knows the seed knows every secret that is drawn."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._calls = 0

    def __call__(self, length: int) -> bytes:
        self._calls += 1
        return hashlib.shake_128(
            len(self._seed).to_bytes(8, "little") + self._seed + self._calls.to_bytes(8, "little")
        ).digest(length)
