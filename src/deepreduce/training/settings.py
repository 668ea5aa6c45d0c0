"""The settings of a whole search, and of the machine that carries it out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from .._arguments import as_plain, check_fields, is_number, is_whole, listed
from ..errors import UsageError, near_misses, problem
from ..reduction import (
    DEFAULT_EXPONENT,
    GRANULARITIES,
    REDUCERS,
    Base,
    MaskOrder,
    Reducer,
    check_granularity,
    find_reducer,
    has_max_pooling,
    smallest_budget,
)
from .config import TrainingConfig

EXECUTORS = ("local", "ray")
SEARCH_SHARE = 0.4
"""Of the schedule that search and training share: how much of it the search has, where nothing is asked for."""

DEFAULT_MASK_BUDGETS = (4, 8, 16, 32)
"""Masks are found for the network's ReLUs divided by these, where no budget is given."""

_PLACES = {
    "training": "training",
    "budgets": "--budget",
    "criticality_plain": "--distilled-only",
    "test_all": "test_all",
    "private": "--no-private",
}
"""Where a setting is set that has no option of its name."""


@dataclass(frozen=True)
class SearchSettings:
    """What shapes a search.

    Attributes:
        training: how teacher and candidates are trained.
        criticality_epochs: epochs of the networks that measure criticality; None takes `rank_epochs`, or those of
            `training`.
        criticality_plain: measure criticality without distillation too (it is reported, and not used).
        exponent: w in C_k, at least 0.
        method: name of the method that finds candidates.
        granularity: what methods that find masks keep or remove as a whole: `element`, `channel` or `layer`; None takes
            `element`.
        most_layers: for `deepreduce-masks` by `element`: how many ReLU layers may keep a ReLU, at least 1 and fewer
            than there are; each costs a round trip in private inference. None does not limit them.
        rank_epochs: epochs of a short training that ranks the candidates first; only those that it leaves on the
            front or near it are trained for the full schedule, see `ranking`. None trains all of them.
        finalists: with a budget, how many of the ranked candidates are trained for the full schedule at most; None
            trains all that are on the front or near it.
        search_epochs: epochs of a search for masks that trains, which come before those of the candidate; None takes
            those of `training`. Where search and training share one schedule, they are the first of `training`; None
            takes two fifths of these.
        seeds: how many times teacher and candidates are trained, at least 1. Masks are searched once.
        budget: ReLUs that a candidate may have; None trains all.
        budgets: for methods that make a candidate for each budget: several of them, none above `budget`.
        collapse: make one convolution of what comes before the first ReLU of every candidate, see `head_of`.
        keep_max_pooling: leave max pooling in the reduced networks; otherwise average pooling takes its place, which
            costs nothing online in private inference, see `average_pools`. The teacher keeps its own.
        trained: the network comes with its weights and is not trained again; None for a module that is passed to
            `deepreduce.reduce`, and not for a network that is named.
        test_all: look at the test images, once, for every candidate and not for those of the front alone: for tables
            whose rows are fixed beforehand. Nothing is chosen by it.
    """

    training: TrainingConfig = field(default_factory=TrainingConfig)
    criticality_epochs: int | None = None
    criticality_plain: bool = True
    exponent: float = DEFAULT_EXPONENT
    method: str = "deepreduce"
    granularity: str | None = None
    most_layers: int | None = None
    rank_epochs: int | None = None
    finalists: int | None = None
    search_epochs: int | None = None
    seeds: int = 1
    budget: int | None = None
    budgets: tuple[int, ...] = ()
    collapse: bool = False
    keep_max_pooling: bool = False
    trained: bool | None = None
    test_all: bool = False

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: naming what is out of range.
        """
        budgets = listed("budgets", self.budgets, example="(50_000, 12_000)", where=_PLACES["budgets"])
        object.__setattr__(self, "budgets", budgets)
        as_plain(self)
        self._check_types()
        reducer = _find_reducer(self.method)
        check_granularity(self.resolved_granularity())
        self._check_ranking(reducer)
        self.criticality_config()
        self.search_config()
        self.ranking_config()
        _check(
            self,
            ("seeds", 1 <= self.seeds <= 100, "from 1 to 100"),
            ("exponent", 0 <= self.exponent <= 10, "from 0 to 10"),
            ("budget", self.budget is None or self.budget >= 1, "at least 1"),
            ("most_layers", self.most_layers is None or self.most_layers >= 1, "at least 1"),
            ("finalists", self.finalists is None or self.finalists >= 1, "at least 1"),
        )
        self._check_budgets(reducer)
        self._check_masks(reducer)

    def _check_types(self) -> None:
        whole = "criticality_epochs", "most_layers", "rank_epochs", "finalists", "search_epochs", "budget"
        flags = "criticality_plain", "collapse", "keep_max_pooling", "test_all"
        _check(
            self,
            ("training", isinstance(self.training, TrainingConfig), "a TrainingConfig"),
            ("method", isinstance(self.method, str), "the name of a method"),
            ("granularity", isinstance(self.granularity, str | None), " or ".join(GRANULARITIES)),
            ("seeds", is_whole(self.seeds), "a whole number"),
            ("exponent", is_number(self.exponent), "a number"),
            *((name, value is None or is_whole(value), "a whole number") for name, value in self._some(whole)),
            ("budgets", all(map(is_whole, self.budgets)), "whole numbers"),
            *((name, isinstance(value, bool), "True or False") for name, value in self._some(flags)),
            ("trained", isinstance(self.trained, bool | None), "True or False"),
        )

    def _some(self, names: tuple[str, ...]) -> Iterator[tuple[str, object]]:
        return ((name, getattr(self, name)) for name in names)

    def _check_ranking(self, reducer: Reducer) -> None:
        if self.rank_epochs is not None and not reducer.needs_criticality:
            _refuse(
                "ranking belongs to a method that proposes candidates to choose from",
                got=f"rank_epochs {self.rank_epochs} for {self.method}, which makes one network for each budget",
                remedy="leave it out, or use --method deepreduce",
                where="--rank-epochs",
            )
        if self.finalists is not None and (self.rank_epochs is None or self.budget is None):
            _refuse(
                "finalists are the best of a ranking within a budget",
                got=f"finalists {self.finalists} without " + ("a ranking" if self.budget else "a budget"),
                remedy="leave it out, or give --rank-epochs and --budget too, with --method deepreduce",
                where="--finalists",
            )

    def _check_budgets(self, reducer: Reducer) -> None:
        fits = all(1 <= budget <= (self.budget or 0) for budget in self.budgets)
        if self.budgets and (reducer.needs_criticality or not fits or len(set(self.budgets)) < len(self.budgets)):
            _refuse(
                "several budgets are different numbers, at least 1, for a method that makes a network for each",
                got=f"{', '.join(map(str, self.budgets))} for {self.method}",
                remedy="give one budget: networks below it are found too",
                where="--budget",
            )

    def _check_masks(self, reducer: Reducer) -> None:
        """Refuse what belongs to methods that find masks in others, and the other way around."""
        if self.granularity is not None and not reducer.finds_masks:
            _refuse(
                "a granularity belongs to a method that finds masks",
                got=f"{self.granularity} for {self.method}",
                remedy="leave it out, or use --method deepreduce-masks, snl, senet or relupruner",
                where="--granularity",
            )
        if self.most_layers is not None and not (reducer.finder is not None and reducer.finder.limits_layers):
            _refuse(
                "a number of layers belongs to a method that can keep to it",
                got=f"most_layers {self.most_layers} for {self.method}",
                remedy="leave it out, or use --method deepreduce-masks",
                where="--most-layers",
            )
        if self.most_layers is not None and self.resolved_granularity() != "element":
            _refuse(
                "a number of layers goes with masks of single elements",
                got=f"most_layers {self.most_layers} by {self.granularity}",
                remedy="leave out --granularity or --most-layers",
                where="--most-layers",
            )
        if self.collapse and reducer.finds_masks:
            _refuse(
                "collapsing belongs to a method that removes whole stages",
                got=f"collapse for {self.method}, which leaves ReLUs in all of them",
                remedy="leave it out, or use --method deepreduce or deepreduce-narrow",
                where="--collapse",
            )
        if self._shares_schedule and not self.training.warm_start:
            _refuse(
                "a schedule that search and training share goes on with the weights that the search leaves",
                got=f"no warm start for {self.method}",
                remedy="leave it out, or use --method snl, senet or relupruner",
                where="--no-warm-start",
            )
        if self.search_epochs is not None and not reducer.finds_masks:
            _refuse(
                "epochs of search belong to a method that searches for masks",
                got=f"search_epochs {self.search_epochs} for {self.method}",
                remedy="leave it out, or use --method deepreduce-masks, snl, senet or relupruner",
                where="--search-epochs",
            )

    def ranking_config(self) -> TrainingConfig | None:
        """Return the training settings of the short trainings that rank candidates; None without ranking."""
        if self.rank_epochs is None:
            return None
        fits = 1 <= self.rank_epochs < self.training.epochs
        _check(self, ("rank_epochs", fits, f"at least 1 and below the full schedule of {self.training.epochs:,}"))
        return replace(self.training, epochs=self.rank_epochs)

    def criticality_config(self) -> TrainingConfig:
        """Return the training settings of the networks that measure criticality."""
        if self.criticality_epochs is None:
            return self.ranking_config() or self.training
        _check(self, ("criticality_epochs", 1 <= self.criticality_epochs <= 100_000, "from 1 to 100,000"))
        return replace(self.training, epochs=self.criticality_epochs)

    def search_config(self) -> TrainingConfig:
        """Return the training settings of a search for masks."""
        if self._shares_schedule:
            whole = self.training.epochs
            epochs = max(1, round(SEARCH_SHARE * whole)) if self.search_epochs is None else self.search_epochs
            fits = whole >= 2 and 1 <= epochs < whole
            _check(self, ("search_epochs", fits, f"at least 1 and below the {whole:,} epochs of the whole schedule"))
            return replace(self.training, epochs=epochs, epochs_after=whole - epochs)
        if self.search_epochs is None:
            return self.training
        _check(self, ("search_epochs", 1 <= self.search_epochs <= 100_000, "from 1 to 100,000"))
        return replace(self.training, epochs=self.search_epochs)

    def candidate_config(self) -> TrainingConfig:
        """Return the training settings of the candidates: what the search leaves of the schedule, or all of it."""
        if not self._shares_schedule:
            return self.training
        search = self.search_config().epochs
        return replace(self.training, epochs=self.training.epochs - search, epochs_before=search)

    @property
    def _shares_schedule(self) -> bool:
        finder = self.reducer().finder
        return finder is not None and finder.one_schedule

    def reducer(self) -> Reducer:
        """Return the method that finds candidates."""
        return find_reducer(self.method)

    def resolved_granularity(self) -> str:
        """Return the granularity of masks: the one asked for, or the default."""
        return self.granularity or GRANULARITIES[0]

    def asked_budgets(self) -> tuple[int, ...]:
        """Return the budgets that were given."""
        return self.budgets or (() if self.budget is None else (self.budget,))

    def average_pooling(self, base: Base) -> bool:
        """Tell whether the reduced networks have average pooling where the full one has max pooling."""
        return not self.keep_max_pooling and has_max_pooling(base.network)

    def mask_orders(self, base: Base) -> tuple[MaskOrder, ...]:
        """Return the masks to find, for the given budgets or those that are made from the network's ReLUs.

        Raises:
            UsageError: if `most_layers` limits nothing.
        """
        if not self.reducer().finds_masks:
            return ()
        made = [base.census.relus // divisor for divisor in DEFAULT_MASK_BUDGETS]
        least = smallest_budget(base.census, self.resolved_granularity())
        budgets = self.asked_budgets() or [budget for budget in made if budget >= least]
        granularity, layers = self.resolved_granularity(), self.most_layers
        if layers is not None and layers >= len(base.census.layers):
            _refuse(
                "the most layers that keep a ReLU are fewer than there are",
                got=f"{layers} of {len(base.census.layers)}",
                remedy="give a smaller number, or leave it out",
                where="--most-layers",
            )
        average = self.average_pooling(base)
        return tuple(MaskOrder(self.method, granularity, budget, layers, average) for budget in dict.fromkeys(budgets))

    def to_json(self) -> dict[str, Any]:
        """Return the settings by name, those of training among them."""
        return {
            "method": self.method,
            "granularity": self.resolved_granularity(),
            "most_layers": self.most_layers,
            "rank_epochs": self.rank_epochs,
            "finalists": self.finalists,
            "search_epochs": self.search_config().epochs if self.reducer().finds_masks else None,
            "budget": self.budget,
            "budgets": list(self.budgets),
            "seeds": self.seeds,
            "exponent": self.exponent,
            "criticality_epochs": self.criticality_config().epochs,
            "criticality_plain": self.criticality_plain,
            "collapse": self.collapse,
            "keep_max_pooling": self.keep_max_pooling,
            "trained": bool(self.trained),
            **self.training.to_json(),
        }


@dataclass(frozen=True)
class RunOptions:
    """Where and how jobs run; on one machine none of it changes what comes out, but `threads` and `workers` change
    the last bits.

    Attributes:
        executor: `local` (this machine) or `ray` (a cluster; the run folder then lies on storage that all share).
        workers: jobs side by side, from 1 to 1024. One runs in this process; more run in processes of their own, and
            a script that asks for more must guard its top level with `if __name__ == "__main__"`.
        threads: processor threads of each job; None shares the cores out evenly. Sums of floating-point numbers
            depend on it: on a processor weights repeat bit for bit where it is the same.
        tracker: an experiment tracker that `accelerate` knows, such as `tensorboard`.
        checkpoint_seconds: how often the state of a running job is kept, at least 0 (after every epoch).
        private: whether each network is asked, at the end, what it costs privately; seconds for each, and without the
            extra `private` nothing.
    """

    executor: str = "local"
    workers: int = 1
    threads: int | None = None
    tracker: str | None = None
    checkpoint_seconds: float = 20.0
    private: bool = True

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: naming what is out of range.
        """
        as_plain(self)
        _check(self, ("executor", isinstance(self.executor, str), "the name of an executor"))
        if self.executor not in EXECUTORS:
            _refuse(
                "the executor must be local or ray",
                got=f"{self.executor!r}{near_misses(self.executor, list(EXECUTORS))}",
                remedy="leave it out for this machine",
                where="--executor",
            )
        _check(
            self,
            ("workers", is_whole(self.workers) and 1 <= self.workers <= 1024, "a whole number from 1 to 1024"),
            (
                "threads",
                self.threads is None or (is_whole(self.threads) and 1 <= self.threads <= 1024),
                "a whole number from 1 to 1024",
            ),
            ("tracker", isinstance(self.tracker, str | None), "the name of a tracker"),
            (
                "checkpoint_seconds",
                is_number(self.checkpoint_seconds) and self.checkpoint_seconds >= 0,
                "a number of at least 0",
            ),
            ("private", isinstance(self.private, bool), "True or False"),
        )


def _find_reducer(name: str) -> Reducer:
    """Return a method; of a part of a name, such as `masks`, say which has it: it is far from the whole word."""
    having = [known for known in REDUCERS if name and name in known]
    if name not in REDUCERS and having:
        _refuse(
            "the method must be known",
            got=f"{name!r} (did you mean {', '.join(having)}?)",
            remedy=f"use one of {', '.join(REDUCERS)}",
            where="--method",
        )
    return find_reducer(name)


def _check(settings: object, *rules: tuple[str, bool, str]) -> None:
    check_fields(settings, *rules, places=_PLACES)


def _refuse(must: str, *, got: object, remedy: str, where: str) -> NoReturn:
    raise UsageError(problem(must, got=got, remedy=remedy, where=where))
