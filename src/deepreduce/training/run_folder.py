"""The run folder: what is finished, what is damaged, and whether it belongs to this run at all."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from .._files import check_format, read_json, read_lines, sha256_of, write_json
from ..census import Census
from ..errors import RunError, problem
from .jobs import METRICS_FORMAT, METRICS_VERSION, Context, Job

_FORMAT, _VERSION = "deepreduce.run", 1


class RunFolder:
    """A run on disk, locked for one command at a time.

    Use it as a context manager. Opening a new folder writes `run.json`, which says which network and data it is for;
    opening an old one checks that they are the same.
    """

    def __init__(self, path: Path, *, on_note: Callable[[str], None] = lambda note: None, exclusive: bool = True) -> None:
        """Name the folder; `exclusive=False` is for the further processes of one distributed run."""
        self.path = path
        self._on_note = on_note
        self._lock = FileLock(path / ".lock") if exclusive else None

    def __enter__(self) -> RunFolder:
        """Make and lock the folder.

        Raises:
            RunError: if it cannot be made, or another command works in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is not None:
                self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                problem(
                    "one command at a time works in a run folder",
                    got="it is locked by another",
                    remedy="wait for that command, or use another folder",
                    where=self.path,
                )
            ) from None
        except OSError as error:
            raise RunError(
                problem(
                    "the run folder must be a folder that can be written",
                    got=error,
                    remedy="give another one",
                    where=self.path,
                )
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.release()

    def claim(self, context: Context, census: Census) -> None:
        """Write who this folder belongs to, or check that it belongs to the same network and data.

        Raises:
            RunError: if it belongs to another network or data set, naming what differs.
        """
        mine = {
            "network": context.spec.to_json(),
            "census": hashlib.sha256(json.dumps(census.to_json()["stages"]).encode()).hexdigest(),
            "data": {"name": context.data.name, "fingerprint": context.data.fingerprint},
            "normalisation": {"mean": list(context.data.mean), "std": list(context.data.std)},
        }
        path = self.path / "run.json"
        if not path.exists():
            if any(self.path.glob("*/seed0")):
                raise RunError(
                    problem(
                        "a run folder says in run.json whose it is",
                        got="results, and no run.json",
                        remedy="restore run.json, or use another folder",
                        where=self.path,
                    )
                )
            write_json(path, {"format": _FORMAT, "version": _VERSION, **mine})
            return
        theirs = read_json(path)
        check_format(theirs, _FORMAT, _VERSION, path)
        words = {
            "network": "another network",
            "census": "a network of other layers",
            "data": "another data set, or another part of it",
            "normalisation": "another normalisation",
        }
        for key, what in words.items():
            if theirs.get(key) != mine[key]:
                raise RunError(
                    problem(
                        "a run folder belongs to one network and one data set",
                        got=f"{what}: {theirs.get(key)} there, {mine[key]} here",
                        remedy="use another folder for --out",
                        where=self.path,
                    )
                )

    def metrics(self, job: Job) -> dict[str, Any] | None:
        """Return the metrics of a finished job, None if it is not finished.

        A damaged folder is moved aside to `NAME.damaged-N`, with a note, and counts as not finished.

        Raises:
            RunError: if the job was finished with other settings.
        """
        folder = self.path / job.place
        path = folder / "metrics.json"
        if not path.exists():
            return None
        try:
            metrics = read_json(path)
            check_format(metrics, METRICS_FORMAT, METRICS_VERSION, path)
            validation = metrics["validation"]
            if not 0 <= int(validation["correct"]) <= int(validation["n"]) or int(validation["n"]) < 1:
                raise ValueError("impossible accuracy")
            if sha256_of(folder / "weights.safetensors") != metrics["weights_sha256"]:
                raise ValueError("the weights have another hash")
            trained_with = dict(metrics["config"])
            read_json(folder / "recipe.json")
        except (RunError, OSError, KeyError, TypeError, ValueError) as error:
            aside = self._aside(folder)
            self._on_note(f"{job.place} is damaged and is trained again (kept as {aside.name}): {error}")
            return None
        if job.kind != "teacher" and trained_with != job.config.to_json():
            mine = job.config.to_json()
            different = [name for name in mine if trained_with.get(name) != mine[name]]
            raise RunError(
                problem(
                    "networks of one run are trained alike",
                    got=", ".join(f"{name} {trained_with.get(name)} there, {mine[name]} here" for name in different),
                    remedy="repeat the settings of the first command, or use another folder for --out",
                    where=folder,
                )
            )
        return metrics

    def failure(self, job: Job) -> str | None:
        """Return why a job failed, None if it did not."""
        path = self.path / job.place / "failed.json"
        return str(read_json(path).get("reason", "unknown")) if path.exists() else None

    def write_failure(self, job: Job, reason: str) -> None:
        """Note why a job failed; the next command tries it again."""
        write_json(self.path / job.place / "failed.json", {"reason": reason, "at": time.strftime("%Y-%m-%dT%H:%M:%S")})

    def finished_epochs(self, job: Job) -> int:
        """Return how many epochs of a job are done."""
        lines = read_lines(self.path / job.place / "history.jsonl")
        return int(lines[-1].get("epoch", 0)) if lines else 0

    def test_reads(self) -> dict[str, Any]:
        """Return what was measured on the test set so far, by place."""
        path = self.path / "test.json"
        return read_json(path) if path.exists() else {}

    def write_test_read(self, place: str, value: dict[str, Any]) -> None:
        """Note one look at the test set; it is never repeated for the same weights."""
        write_json(self.path / "test.json", {**self.test_reads(), place: value})

    def _aside(self, folder: Path) -> Path:
        number = 1
        while (aside := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
            number += 1
        folder.rename(aside)
        return aside
