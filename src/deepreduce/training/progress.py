"""Who watches a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .jobs import Job


class Progress(Protocol):
    """What the search tells whoever watches; all calls come from the main thread."""

    def begin(self, jobs: Sequence[tuple[Job, float, bool]]) -> None:
        """A phase begins with these jobs: each with its work in MACs, and whether it is finished already."""

    def update(self, job: Job, epochs: int) -> None:
        """A job has finished this many epochs."""

    def end(self, job: Job, failure: str | None) -> None:
        """A job is finished, or failed for this reason."""

    def step(self, what: str, done: int, total: int) -> None:
        """So many of so many small pieces of work that are no jobs are done; the first call says 0, the last all."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Silent:
    """Progress that nobody watches."""

    def begin(self, jobs: Sequence[tuple[Job, float, bool]]) -> None:
        """See `Progress`."""

    def update(self, job: Job, epochs: int) -> None:
        """See `Progress`."""

    def end(self, job: Job, failure: str | None) -> None:
        """See `Progress`."""

    def step(self, what: str, done: int, total: int) -> None:
        """See `Progress`."""

    def note(self, text: str) -> None:
        """See `Progress`."""
