"""What a command shows while it works: a bar per job with an estimate of the time left, and plain notes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from ..training import Job

_PHASES = {"teacher": "Teacher", "criticality": "Criticality", "candidate": "Candidates"}


def console() -> Console:
    """Return a console for results, on standard output."""
    return Console(highlight=False)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


class Watcher:
    """Progress on standard error: one bar over the work of a phase, with its estimate, and one per running job.

    On something that is not a terminal it prints a line per finished job instead.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal
        self._phase = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            MofNCompleteColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._work: dict[str, tuple[float, int]] = {}
        self._total: TaskID | None = None
        self._count = self._done = 0

    def __enter__(self) -> Watcher:
        """Start drawing."""
        self._phase.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing, and leave the terminal as it was."""
        self._phase.stop()

    def begin(self, jobs: Sequence[tuple[Job, float, bool]]) -> None:
        """See `deepreduce.training.Progress`."""
        for task in list(self._phase.task_ids):
            self._phase.remove_task(task)
        self._tasks.clear()
        if not jobs:
            return
        self._count, self._done = len(jobs), sum(finished for _, _, finished in jobs)
        self._work = {job.place: (work, job.config.epochs) for job, work, _ in jobs}
        name = _PHASES[jobs[0][0].kind]
        # In thousandths of the phase: the bar's own count is then of no interest, its share and estimate are.
        self._total = self._phase.add_task(name, total=1000)
        self._share = {job.place: 1000 * work / max(1.0, sum(w for _, w, _ in jobs)) for job, work, _ in jobs}
        self._reached = {job.place: (self._share[job.place] if finished else 0.0) for job, _, finished in jobs}
        finished = f", {self._done} already finished" if self._done else ""
        if not self._live:
            self._console.print(f"{name}: {self._count} to train{finished}")
        self._refresh()

    def update(self, job: Job, epochs: int) -> None:
        """See `deepreduce.training.Progress`."""
        if epochs <= 0:
            return
        _, total = self._work[job.place]
        self._reached[job.place] = self._share[job.place] * epochs / total
        if job.place not in self._tasks:
            self._tasks[job.place] = self._phase.add_task(f"  {job.label}", total=total)
        self._phase.update(self._tasks[job.place], completed=epochs)
        self._refresh()

    def end(self, job: Job, failure: str | None) -> None:
        """See `deepreduce.training.Progress`."""
        self._done += 1
        self._reached[job.place] = self._share[job.place]
        task = self._tasks.pop(job.place, None)
        if task is not None:
            self._phase.remove_task(task)
        if failure is not None:
            self.note(f"{job.label} failed: {failure}")
        elif not self._live:
            self._console.print(f"  {self._done}/{self._count} {job.label}")
        self._refresh()

    def note(self, text: str) -> None:
        """See `deepreduce.training.Progress`."""
        self._console.print(f"note: {text}", markup=False)

    def _refresh(self) -> None:
        if self._total is not None:
            self._phase.update(self._total, completed=sum(self._reached.values()))


def say(text: str) -> None:
    """Print a plain line on standard error."""
    print(text, file=sys.stderr)
