"""What a command shows while it works: a bar per job with an estimate of the time left, and plain notes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

if TYPE_CHECKING:
    from ..training import Job

_PHASES = {
    "teacher": "Teacher",
    "criticality": "Criticality",
    "masks": "Masks",
    "ranking": "Ranking",
    "candidate": "Candidates",
}


def console() -> Console:
    """Return a console for results, on standard output."""
    return Console(highlight=False)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def say(text: str) -> None:
    """Print a plain line on standard error; of processes under `torchrun` the first speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


class Estimate:
    """How long the rest of a phase will take, from the pace since the phase began here.

    What an earlier command finished counts as done, and not towards the pace.
    """

    def __init__(self, total: float, done: float, now: float) -> None:
        self._total, self._first, self._begun = total, done, now

    def left(self, done: float, now: float) -> float | None:
        """Return the seconds that are left, None while nothing can be said."""
        advanced = done - self._first
        if advanced <= 0:
            return None
        return (now - self._begun) * max(0.0, self._total - done) / advanced


def duration(seconds: float | None) -> str:
    """Write a duration for people: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds is None:
        return "..."
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 36 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    days, hours = divmod(round(minutes / 60), 24)
    return f"{days} d {hours} h"


class Watcher:
    """Progress on standard error: one bar over the work of a phase, with its estimate, and one per running job.

    On something that is not a terminal it prints a line per finished job instead.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal
        self._bars = Progress(
            # The name gives way on a narrow screen, the figures stay.
            TextColumn(
                "{task.description}", table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis", min_width=12)
            ),
            BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=40)),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[count]}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
            console=self._console,
            disable=not self._live,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._epochs: dict[str, int] = {}
        self._share: dict[str, float] = {}
        self._reached: dict[str, float] = {}
        self._phase: TaskID | None = None
        self._estimate = Estimate(1.0, 0.0, time.monotonic())
        self._count = self._done = 0

    def __enter__(self) -> Watcher:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing, and leave the terminal as it was."""
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._bars.stop()

    def begin(self, jobs: Sequence[tuple[Job, float, bool]]) -> None:
        """See `deepreduce.training.Progress`."""
        for task in list(self._bars.task_ids):
            self._bars.remove_task(task)
        self._tasks.clear()
        self._phase = None
        if not jobs:
            return
        total = sum(work for _, work, _ in jobs) or 1.0
        self._epochs = {job.place: job.epochs for job, _, _ in jobs}
        self._share = {job.place: work / total for job, work, _ in jobs}
        self._reached = {job.place: self._share[job.place] if finished else 0.0 for job, _, finished in jobs}
        self._count, self._done = len(jobs), sum(finished for _, _, finished in jobs)
        self._estimate = Estimate(1.0, sum(self._reached.values()), time.monotonic())
        name = _PHASES[jobs[0][0].kind]
        self._phase = self._bars.add_task(f"[bold]{name}", total=1.0, count="", left="")
        if not self._live:
            finished = f", {self._done} already finished" if self._done else ""
            self._console.print(f"{name}: {self._count} to train{finished}")
        self._refresh()

    def update(self, job: Job, epochs: int) -> None:
        """See `deepreduce.training.Progress`."""
        total = max(1, self._epochs[job.place])
        self._reached[job.place] = self._share[job.place] * min(1.0, epochs / total)
        if job.place not in self._tasks:
            self._tasks[job.place] = self._bars.add_task(f"  {_name(job)}", total=total, count="", left="")
        self._bars.update(self._tasks[job.place], completed=epochs, count=f"epoch {epochs}/{total}")
        self._refresh()

    def end(self, job: Job, failure: str | None) -> None:
        """See `deepreduce.training.Progress`."""
        self._done += 1
        self._reached[job.place] = self._share[job.place]
        task = self._tasks.pop(job.place, None)
        if task is not None:
            self._bars.remove_task(task)
        left = self._refresh()
        if failure is not None:
            self.note(f"{_name(job)} failed: {failure}")
        elif not self._live:
            rest = f", about {duration(left)} left" if self._done < self._count else ""
            self._console.print(f"  {self._done}/{self._count} {_name(job)}{rest}", markup=False, soft_wrap=True)

    def step(self, what: str, done: int, total: int) -> None:
        """See `deepreduce.training.Progress`."""
        if done == 0:
            self.begin([])
            self._estimate = Estimate(total, 0, time.monotonic())
            self._phase = self._bars.add_task(f"[bold]{what}", total=total, count="", left="")
            if not self._live:
                self._console.print(f"{what}: {total} network{'' if total == 1 else 's'}")
        if self._phase is not None:
            left = self._estimate.left(done, time.monotonic())
            text = f"{duration(left)} left" if done < total else ""
            self._bars.update(self._phase, completed=done, count=f"{done}/{total} done", left=text)

    def note(self, text: str) -> None:
        """See `deepreduce.training.Progress`."""
        self._console.print(f"note: {text}", markup=False, soft_wrap=not self._live)

    def _refresh(self) -> float | None:
        """Redraw the bar of the phase; return the seconds left."""
        done = sum(self._reached.values())
        left = self._estimate.left(done, time.monotonic())
        if self._phase is not None:
            text = f"{duration(left)} left" if self._done < self._count else ""
            self._bars.update(self._phase, completed=done, count=f"{self._done}/{self._count} done", left=text)
        return left


def _name(job: Job) -> str:
    return job.label + (f", seed {job.seed}" if job.seed else "")
