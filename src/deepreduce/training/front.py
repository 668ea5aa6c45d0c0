"""The answer of a search: the Pareto front, as data and as an object to ask."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Any

from torch import fx, nn

from .._arguments import check_type
from .._files import check_format, read_json
from ..census import Census
from ..errors import RunError, UsageError, problem
from ..reduction.recipe import Recipe, load_network
from .intervals import summarise
from .jobs import Context
from .outcome import Outcome, slowed
from .pareto_search import Search

FORMAT, VERSION = "deepreduce.front", 1


@dataclass(frozen=True)
class Front:
    """The networks that no other beats, and everything that led to them.

    Attributes:
        content: see docs/formats.md, `front.json`.
        folder: the run folder.
    """

    content: dict[str, Any] = field(repr=False)
    folder: Path

    @classmethod
    def read(cls, folder: Path | str) -> Front:
        """Read the front of a finished run.

        Raises:
            UsageError: if `folder` is no path.
            RunError: if there is none yet, or it is damaged or of another release.
        """
        check_type("folder", folder, str, Path)
        path = Path(folder) / "front.json"
        if not path.parent.is_dir():
            raise RunError(
                problem(
                    "the run folder must exist",
                    got="a file" if path.parent.exists() else "no such folder",
                    remedy="check the path; deepreduce reduce --out makes one",
                    where=folder,
                )
            )
        if not path.exists():
            raise RunError(
                problem(
                    "a run folder has a front once deepreduce reduce has come to its end",
                    got="no front.json",
                    remedy="run the same deepreduce reduce again; it continues where it stopped",
                    where=folder,
                )
            )
        content = read_json(path)
        check_format(content, FORMAT, VERSION, path)
        front = cls(content, Path(folder))
        try:
            for entry in (*front.entries, *front.finished):
                front.place(entry)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                problem(
                    "front.json must be complete",
                    got=f"{type(error).__name__}: {error}",
                    remedy="remove it and run the same deepreduce reduce again; nothing is trained twice",
                    where=path,
                )
            ) from error
        return front

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries on the front, by rising ReLU count."""
        known = {entry["id"]: entry for entry in (self.content["teacher"], *self.content["candidates"])}
        return [known[name] for name in self.content["front"]]

    @property
    def finished(self) -> list[dict[str, Any]]:
        """All entries that were trained, by rising ReLU count, whether another beats them or not."""
        entries = (self.content["teacher"], *self.content["candidates"])
        return sorted((entry for entry in entries if entry["validation"]), key=lambda entry: entry["relus"])

    def best(self, *, relus: int | None = None, seconds: float | None = None, link: str = "lan") -> dict[str, Any]:
        """Return the entry that is most accurate on held-out images, within a number of ReLUs, or seconds, or both.

        Args:
            relus: largest number of ReLUs.
            seconds: longest online time of one private inference with our engine, as estimated in the run.
            link: over which: `lan` (1 Gbit/s, 1 ms) or `wan` (100 Mbit/s, 40 ms).

        Raises:
            UsageError: nothing is asked for, no network is within it, or the run says nothing of seconds.
        """
        check_type("relus", relus, Real, NoneType, where="--relus")
        check_type("seconds", seconds, Real, NoneType, where="--seconds")
        check_type("link", link, str, where="--link")
        if relus is None and seconds is None:
            raise UsageError(
                problem(
                    "a network is chosen within a budget",
                    got="none",
                    remedy="give --relus or --seconds, or both",
                    where="--relus",
                )
            )
        fitting = self.finished
        if seconds is not None:
            fitting = self._within(fitting, seconds, link)
        if relus is not None:
            within = [entry for entry in fitting if entry["relus"] <= relus]
            if not within:
                smallest = min((entry["relus"] for entry in fitting), default=0)
                raise UsageError(
                    problem(
                        "the budget must be met by some network of the run",
                        got=f"{relus:,}; the smallest has {smallest:,} ReLUs",
                        remedy="raise the budget, or run reduce again with a narrower network",
                        where=self.folder,
                    )
                )
            fitting = within
        return max(fitting, key=lambda entry: entry["validation"]["accuracy"])

    def _within(self, entries: list[dict[str, Any]], seconds: float, link: str) -> list[dict[str, Any]]:
        """Return the entries within some seconds over a link, the fastest first."""
        links = (self.content.get("private") or {}).get("links") or {}
        if links and link not in links:
            raise UsageError(
                problem(
                    "seconds are known for some links",
                    got=repr(link),
                    remedy=f"choose one of {', '.join(links)}",
                    where=self.folder,
                )
            )
        known = [(_online_seconds(entry, link), entry) for entry in entries]
        times = [(time, entry) for time, entry in known if time is not None]
        if not times:
            raise UsageError(
                problem(
                    "a run says what its networks cost privately",
                    got="no network with seconds",
                    remedy="install 'deepreduce[private]' and run the same deepreduce reduce again: nothing is trained "
                    "twice",
                    where=self.folder,
                )
            )
        times.sort(key=lambda pair: pair[0])
        fitting = [entry for time, entry in times if time <= seconds]
        if not fitting:
            raise UsageError(
                problem(
                    "the seconds must be met by some network of the run",
                    got=f"{seconds:g} s; the fastest takes {times[0][0]:.3g} s over {link}",
                    remedy="allow more, or run reduce again for fewer ReLUs in fewer layers",
                    where=self.folder,
                )
            )
        return fitting

    def place(self, entry: dict[str, Any]) -> Path:
        """Return the folder of an entry's weights: of several seeds the one best on held-out images."""
        runs = entry["validation"]["runs"]
        seed = max(range(len(runs)), key=lambda index: runs[index])
        name = str(entry["id"])
        if Path(name).name != name:  # a front from a stranger must not lead out of its folder
            raise ValueError(f"{name!r} is no name of a network")
        return self.folder / (name if name == "teacher" else f"candidate/{name}") / f"seed{seed}"

    def load(self, entry: dict[str, Any], *, network: nn.Module | None = None) -> tuple[fx.GraphModule, Recipe]:
        """Load an entry's network; `network` is the full network where it is not one of ours.

        Raises:
            UsageError: if an argument is of another type.
            RecipeError: see `deepreduce.load`.
        """
        check_type("entry", entry, dict)
        check_type("network", network, nn.Module, NoneType)
        return load_network(self.place(entry), network)


def _online_seconds(entry: dict[str, Any], link: str) -> float | None:
    """Return what a run says of an entry's online time, None where it says nothing, or no number."""
    found: Any = entry.get("private")
    for key in ("online", "seconds", link):
        found = found.get(key) if isinstance(found, dict) else None
    return float(found) if isinstance(found, float | int) and math.isfinite(found) else None


def describe(found: Search, context: Context, *, environment: dict[str, Any]) -> dict[str, Any]:
    """Turn a search into the content of `front.json`, latency aside.

    Args:
        found: the search.
        context: of the run.
        environment: versions, processor, command, date.
    """
    data = context.data
    skipped = [
        {
            **_counts(
                proposal.candidate.id, proposal.candidate.label, proposal.candidate.to_json(bits=False), proposal.census
            ),
            "status": "skipped",
            "reason": proposal.reason,
            "validation": None,
            "test": None,
            "epochs": 0,
            "search_epochs": 0,
            "seconds": 0.0,
            "private": None,
            "on_front": False,
        }
        for proposal in found.skipped
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "network": context.spec.to_json(),
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
            "classes": list(data.classes),
            "notes": list(data.notes),
        },
        "settings": found.settings.to_json(),
        "census": found.base.census.to_json(),
        "teacher": _entry(found.teacher, found, context),
        "criticality": [
            {
                "stage": c.stage,
                "relus": c.relus,
                "accuracy": c.accuracy,
                "accuracy_plain": c.accuracy_plain,
                "criticality": c.value,
                "reason": c.reason,
            }
            for c in found.criticality
        ],
        "exponent": found.settings.exponent,
        "ranking": [asdict(ranked) for ranked in found.ranking],
        "candidates": [*(_entry(outcome, found, context) for outcome in found.outcomes), *skipped],
        "front": list(found.front),
        "fronts_in_seconds": {link: list(names) for link, names in found.fronts_in_seconds.items()},
        "environment": environment,
        "seconds": found.seconds,
    }


def _entry(outcome: Outcome, found: Search, context: Context) -> dict[str, Any]:
    job = outcome.job
    census = outcome.proposal.census if outcome.proposal else found.base.census
    complete = outcome.complete
    reads = [found.test[place] for place in outcome.places if place in found.test]
    n = len(context.data.validation)
    search = (outcome.proposal.search if outcome.proposal else None) or {"epochs": 0, "seconds": 0.0}
    return {
        **_counts(job.id, job.label, job.candidate.to_json(bits=False) if job.candidate else None, census),
        "status": "done" if complete else "failed",
        "reason": outcome.failure or next(filter(None, map(slowed, outcome.runs)), ""),
        "validation": summarise(outcome.accuracies, n) if complete else None,
        "test": summarise([r["correct"] / r["n"] for r in reads], reads[0]["n"])
        if complete and len(reads) == len(outcome.runs)
        else None,
        "epochs": search["epochs"] + (outcome.runs[0]["epochs"] if outcome.runs else 0),
        "search_epochs": search["epochs"],
        "seconds": float(search["seconds"]) + sum(float(metrics["seconds"]) for metrics in outcome.runs),
        "private": found.prices.get(job.id),
        "on_front": job.id in found.front,
    }


def _counts(name: str, label: str, recipe: dict[str, Any] | None, census: Census | None) -> dict[str, Any]:
    return {
        "id": name,
        "label": label,
        "recipe": recipe,
        "relus": census.relus if census else None,
        "macs": census.macs if census else None,
        "params": census.params if census else None,
        "stages": [
            {
                "name": stage.name,
                "relus": stage.relus,
                "layers": [
                    {"name": layer.name, "relus": layer.relus, "kept": layer.kept, "shape": list(layer.shape)}
                    for layer in stage.layers
                ],
            }
            for stage in (census.stages if census else ())
        ],
    }
