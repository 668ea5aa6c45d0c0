"""With how many threads products are computed in this process."""

from __future__ import annotations

from ..._cores import available_cores

_threads = 0


def set_threads(count: int) -> None:
    """Let every product from now on take so many threads, at least 1; until then it is one for each core."""
    global _threads
    _threads = count


def threads() -> int:
    """Return how many that are."""
    if not _threads:
        set_threads(available_cores())
    return _threads
