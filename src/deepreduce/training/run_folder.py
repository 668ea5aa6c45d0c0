"""The run folder: what is finished, what is damaged, and whether it belongs to this run at all."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from .._files import check_format, move_aside, read_json, read_lines, sha256_of, why_not_written, write_json
from ..census import Census
from ..errors import DeepReduceError, RunError, problem
from ..reduction import Base
from .config import TrainingConfig
from .distributed import is_first
from .jobs import METRICS_FORMAT, METRICS_VERSION, Context, Job
from .outcome import slowed

_FORMAT, _VERSION = "deepreduce.run", 1


class RunFolder:
    """A run on disk, locked for one command at a time.

    Use it as a context manager. Opening a new folder writes `run.json`, which says which network and data it is for;
    opening an old one checks that they are the same. Without the `with` it can be read: nothing is then written.
    """

    def __init__(self, path: Path, *, on_note: Callable[[str], None] = lambda note: None) -> None:
        self.path = path
        self._on_note = on_note
        self._noted: set[str] = set()
        self._lock: FileLock | None = None

    def __enter__(self) -> RunFolder:
        """Make and lock the folder; of processes that train together the first does it for all.

        Raises:
            RunError: if it cannot be made, or another command works in it.
        """
        if not is_first():
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            lock.acquire(timeout=0)
            self._lock = lock
        except Timeout:
            raise RunError(
                problem(
                    "one command at a time works in a run folder",
                    got="it is locked by another",
                    remedy="wait for that command, or use another folder",
                    where=self.path,
                )
            ) from None
        except (OSError, NotImplementedError) as error:
            raise self._unusable(why_not_written(error, self.path / "run.json")) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def claim(self, context: Context, census: Census, *, weights: str | None = None) -> None:
        """Write who this folder belongs to, or check that it belongs to the same network and data.

        Args:
            context: of the run.
            census: of the full network.
            weights: their hash, where the network comes trained.

        Raises:
            RunError: if it is no folder, or belongs to another network or data set, naming what differs.
        """
        if not self.path.is_dir():
            raise self._unusable("a file of that name")
        mine = {
            "network": context.spec.to_json(),
            "layers": _layers_hash(census),
            "weights": weights,
            "data": {"name": context.data.name, "fingerprint": context.data.fingerprint},
            "normalisation": {"mean": list(context.data.mean), "std": list(context.data.std)},
        }
        path = self.path / "run.json"
        if not path.exists():
            if any(self.path.rglob("metrics.json")):
                raise self._ownerless("results, and no run.json")
            if self._lock is not None:
                write_json(path, {"format": _FORMAT, "version": _VERSION, **mine})
            return
        try:
            theirs = read_json(path)
        except RunError as error:
            raise self._ownerless(f"a damaged file ({error})") from error
        check_format(theirs, _FORMAT, _VERSION, path)
        words = {
            "network": "another network",
            "layers": "a network of other layers",
            "weights": "other weights of the full network",
            "data": "another data set, or another part of it",
            "normalisation": "another normalisation",
        }
        for key, what in words.items():
            if theirs.get(key, mine[key]) != mine[key]:
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

        In a locked folder a damaged result is moved aside to `NAME.damaged-N`, with a note, and counts as not
        finished.

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
            _check_metrics(metrics, job)
            for name in job.files:
                found = sha256_of(folder / name)
                if metrics.get(f"{name.partition('.')[0]}_sha256", found) != found:
                    raise ValueError(f"{name} has another hash")
        except (DeepReduceError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            if self._lock is not None:
                aside = move_aside(folder)
                self._note(f"{job.place} is damaged and is trained again (kept as {aside.name}): {error}")
            return None
        self._check_settings(job, metrics, folder)
        if said := slowed(metrics):
            self._note(f"{job.label}: {said}")
        return metrics

    def _check_settings(self, job: Job, metrics: dict[str, Any], folder: Path) -> None:
        mine, theirs = asdict(job.config), asdict(TrainingConfig.from_json(dict(metrics["config"])))
        counting = [name for name in mine if name != "compile"]
        different = ", ".join(
            f"{name} {theirs[name]} there, {mine[name]} here" for name in counting if theirs[name] != mine[name]
        )
        if not different or job.given:
            return
        if job.kind == "teacher":  # it may have been trained on its own, for longer
            self._note(f"the teacher of seed {job.seed} is taken as it was trained: {different}")
            return
        remedy = "repeat the settings of the first command, or use another folder for --out"
        if job.kind == "criticality" and theirs["epochs"] != mine["epochs"]:
            remedy = f"give --criticality-epochs {theirs['epochs']} to keep what is measured, or use another folder"
        raise RunError(
            problem(
                "networks of one run are trained alike",
                got=different,
                remedy=remedy,
                where=folder,
            )
        )

    def failure(self, job: Job) -> str | None:
        """Return why a job failed, None if it did not."""
        path = self.path / job.place / "failed.json"
        if not path.exists():
            return None
        try:
            return str(read_json(path).get("reason", "unknown"))
        except RunError as error:
            return str(error)

    def write_failure(self, job: Job, reason: str) -> None:
        """Note why a job failed; the next command tries it again."""
        write_json(self.path / job.place / "failed.json", {"reason": reason, "at": time.strftime("%Y-%m-%dT%H:%M:%S")})

    def finished_epochs(self, job: Job) -> int:
        """Return how many epochs of a job are done."""
        lines = read_lines(self.path / job.place / "history.jsonl")
        epoch = lines[-1].get("epoch", 0) if lines else 0
        return epoch if isinstance(epoch, int) else 0

    def test_reads(self) -> dict[str, dict[str, Any]]:
        """Return what was measured on the test set so far, by place.

        Raises:
            RunError: if the file is damaged. It is not made anew by itself: it is the proof that the test images were
                looked at once.
        """
        path = self.path / "test.json"
        if not path.exists():
            return {}
        reads = read_json(path)
        for place, read in reads.items():
            try:
                fine = 0 <= read["correct"] <= read["n"] and read["n"] >= 1 and isinstance(read["weights_sha256"], str)
            except (TypeError, KeyError):
                fine = False
            if not fine:
                raise RunError(
                    problem(
                        "test.json must hold what was measured on the test images",
                        got=f"{place}: {read}",
                        remedy="restore it; or remove it, and the test images are looked at once more",
                        where=path,
                    )
                )
        return reads

    def write_test_read(self, place: str, value: dict[str, Any]) -> None:
        """Note one look at the test set; it is never repeated for the same weights."""
        write_json(self.path / "test.json", {**self.test_reads(), place: value})

    def _note(self, text: str) -> None:
        if text not in self._noted:  # a job is looked at several times
            self._noted.add(text)
            self._on_note(text)

    def _unusable(self, got: object) -> RunError:
        return RunError(
            problem(
                "the run folder must be a folder that can be written",
                got=got,
                remedy="give another one",
                where=self.path,
            )
        )

    def _ownerless(self, got: str) -> RunError:
        return RunError(
            problem(
                "a run folder says in run.json whose it is",
                got=got,
                remedy="restore run.json, or use another folder; the networks in this one can still be loaded",
                where=self.path,
            )
        )


def _check_metrics(metrics: dict[str, Any], job: Job) -> None:
    """Refuse metrics that are impossible, incomplete, or of another job.

    Raises:
        ValueError, KeyError, TypeError, UsageError: saying what is wrong.
    """
    validation = metrics["validation"]
    if not 0 <= validation["correct"] <= validation["n"] or validation["n"] < 1:
        raise ValueError("impossible accuracy")
    if (metrics["kind"], metrics["id"], metrics["seed"]) != (job.kind, job.id, job.seed):
        raise ValueError("the metrics of another job")
    if not 0 < metrics.get("learning_rate", 1) < math.inf:
        raise ValueError("impossible learning rate")
    if not (math.isfinite(metrics["seconds"]) and metrics["seconds"] >= 0 and metrics["epochs"] >= 0):
        raise ValueError("impossible time")
    TrainingConfig.from_json(dict(metrics["config"]))


def _layers_hash(census: Census) -> str:
    """Hash what the layers are, not where in the source they stand: a comment above them changes nothing."""
    layers = [
        [stage.name, layer.name, layer.relus, layer.macs, list(layer.shape)]
        for stage in census.stages
        for layer in stage.layers
    ]
    return hashlib.sha256(json.dumps([layers, census.macs, census.params]).encode()).hexdigest()


def weights_hash(base: Base) -> str:
    """Hash the weights of the full network."""
    state = hashlib.sha256()
    for name, value in sorted(base.network.state_dict().items()):
        state.update(name.encode())
        state.update(value.detach().cpu().double().contiguous().numpy().tobytes())
    return state.hexdigest()
