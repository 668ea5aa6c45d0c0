"""The verbs of the package: profile, take_census, train, reduce, plan_train, plan_reduce, load, save."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

from torch import fx, nn

from ._arguments import check_type, is_number, listed, shown
from ._environment import environment
from ._files import read_json, write_json
from ._pricing import our_pricer
from .census import Census, Stage
from .census import take_census as count
from .data import Dataset
from .data import load as load_data
from .errors import RunError, UsageError, problem
from .networks import NetworkSpec, build, check_name, is_reference
from .networks.spec import size_of
from .private import delphi_online_seconds
from .reduction import Candidate, census_of, for_each, make_base
from .reduction.recipe import Recipe, fit_tensors, load_network, load_tensors, read_tensors, save_network
from .training import (
    Context,
    Front,
    Outcome,
    Progress,
    RunOptions,
    SearchSettings,
    TrainingConfig,
    describe,
    plan_teacher,
    require_tracker,
)
from .training import plan as plan_search
from .training import search as run_search
from .training import train_teacher as run_teacher
from .training.distributed import agree, is_first


def profile(
    network: str | nn.Module,
    *,
    input: tuple[int, int, int],
    classes: int = 100,
    keep: Sequence[str] | None = None,
    thin: bool = False,
    alpha: float = 1.0,
    rho: float = 1.0,
    beta: float | Sequence[float] = (),
    trim: int | Sequence[int] = (),
    bypass: bool = False,
    collapse: bool = False,
    average_pooling: bool = False,
    width: float = 1.0,
    exchange_activations: bool = False,
) -> dict[str, Any]:
    """Count ReLUs, MACs and parameters of a network, and of what a reduction leaves of it.

    Args:
        network: a reference name, `package.module:function`, `timm:NAME`, or a module.
        input: channels, height and width of one image.
        classes: number of classes.
        keep: stages that keep their ReLUs; None keeps all.
        thin: drop alternate ReLU layers of those stages.
        alpha: channel scale, in (0, 1].
        rho: resolution scale: 1, 1/2, 1/4 or 1/8.
        beta: channel scale of the layers that keep their ReLUs alone, in (0, 1]: one, or one for each stage kept.
        trim: positions that go on every side of the feature maps of those layers, where there is a way around them: one
            number, or one for each stage kept.
        bypass: put linear layers beside those layers, in place of the channels and positions that they lose, where
            there is a way around them already.
        collapse: make one convolution of what comes before the first ReLU that stays.
        average_pooling: put average pooling in the place of max pooling.
        width: width multiplier of the base network, for reference networks.
        exchange_activations: put what runs privately in the place of other activations, gates and norms first, see
            `deepreduce.reduction.exchange_activations`.

    Returns:
        `network`, `input`, `relus`, `macs`, `params`, `stages[]{name, resolution, relus, macs, params, layers[]}`,
        `notes`, and with any reduction the same of the full network under `before`.

    Raises:
        UsageError: if a value is out of range, or the reduction removes nothing.
        NetworkError: if the network cannot be traced or reduced so.
    """
    check_type("network", network, str, nn.Module, where="NETWORK")
    asked = None if keep is None else listed("keep", keep, example="['S2', 'S3']", where="--keep")
    spec, module = network_of(network, input, classes, width, exchange_activations)
    base = make_base(spec, module)
    named = {"network": spec.name, "input": list(spec.input), "classes": spec.classes, "width": spec.width}
    stages = tuple(stage.name for stage in base.census.stages) if asked is None else asked
    candidate = Candidate(
        stages,
        thin,
        alpha,
        rho,
        beta=for_each("beta", beta, stages),
        trim=for_each("trim", trim, stages),
        bypass=bypass,
        collapse=collapse,
        average_pooling=average_pooling,
    )
    if asked is None and not thin and candidate.is_unscaled and not average_pooling:
        return {**named, **base.census.to_json()}
    return {
        **named,
        "candidate": candidate.to_json(),
        **census_of(base, candidate).to_json(),
        "before": base.census.to_json(),
    }


def take_census(
    network: nn.Module, input: tuple[int, int, int], *, stages: Mapping[str, Stage] | None = None
) -> Census:
    """Count the ReLUs, MACs and parameters of a module, as an object; see `deepreduce.census.take_census`.

    Raises:
        UsageError: if `network` is no module, or `input` no size of an image.
        NetworkError: if the network cannot be traced, does not take such images, or has no ReLU.
    """
    check_type("network", network, nn.Module)
    return count(network, size_of(input), stages=stages)


def load(folder: Path | str, network: nn.Module | None = None) -> tuple[fx.GraphModule, Recipe]:
    """Rebuild a saved network and prove that it is the one that was saved.

    Args:
        folder: holds `recipe.json` and `weights.safetensors`.
        network: the full network, where it is not a reference network.

    Returns:
        The network in evaluation mode, and its recipe.

    Raises:
        UsageError: if an argument is of another type.
        RecipeError, RunError: see `deepreduce.reduction.recipe.load_network`.
    """
    check_type("folder", folder, str, Path)
    check_type("network", network, nn.Module, NoneType)
    return load_network(folder, network)


def save(folder: Path | str, network: nn.Module, recipe: Recipe) -> None:
    """Write `recipe.json` and `weights.safetensors` into a folder, each whole or not at all.

    Args:
        folder: made if missing.
        network: trained; its state dictionary is stored.
        recipe: what it is.

    Raises:
        UsageError: if an argument is of another type.
        NetworkError, RunError: see `deepreduce.reduction.recipe.save_network`.
    """
    check_type("folder", folder, str, Path)
    check_type("network", network, nn.Module)
    check_type("recipe", recipe, Recipe)
    save_network(Path(folder), network, recipe)


def reduce(
    network: str | nn.Module,
    data: str | Dataset,
    *,
    out: Path | str,
    settings: SearchSettings | None = None,
    width: float = 1.0,
    weights: Path | str | None = None,
    exchange_activations: bool = False,
    workers: int | None = None,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> Front:
    """Find the Pareto front of accuracy and ReLUs of a network on the user's images.

    Args:
        network: a reference name, `package.module:function`, `timm:NAME`, or a module; a module is not changed.
        data: a data set, or its name, see `deepreduce.load_data`.
        out: run folder; the same call continues what is there.
        settings: how to train and search; None takes the defaults. A module's weights are the teacher's, unless
            `settings.trained` is False: then the teacher is trained, from these weights.
        width: width multiplier of the base network, for reference networks.
        weights: safetensors file with the trained weights of the network; implies `settings.trained`.
        exchange_activations: put what runs privately in the place of other activations, gates and norms, see
            `deepreduce.reduction.exchange_activations`. The teacher is then trained with them, from the weights that
            the network brings, if any.
        workers: jobs side by side; None takes those of `options`.
        options: where jobs run, and which tracker follows them; None runs one after another in this process.
        progress: who watches.

    Returns:
        The front, also written to `out/front.json`.

    Raises:
        DeepReduceError: see `deepreduce.training.search`.
        Interrupted: on Ctrl-C while networks are trained.
    """
    order = _Order(
        network=network,
        data=data,
        out=out,
        settings=settings,
        width=width,
        weights=weights,
        exchange_activations=exchange_activations,
        workers=workers,
        options=options,
    )
    context, settings, running = order.context(), order.search_settings(), order.run_options()
    pricer = our_pricer() if running.private else None
    found = run_search(context, settings, running, progress=progress, pricer=pricer)
    content = describe(found, context, environment=environment())
    content["private"] = None if pricer is None else pricer.about()
    for entry in (content["teacher"], *content["candidates"]):
        known = entry["relus"] is not None
        entry["latency"] = {"delphi": delphi_online_seconds(entry["relus"], entry["macs"])} if known else None
    replaced = agree(lambda: _replace_front(context.folder, content))
    if replaced and progress is not None and is_first():
        progress.note(
            f"front.json holds the networks of {_kind(content)} now; those of {replaced} come back when its command "
            "is repeated, and nothing is trained for that"
        )
    return Front(content, context.folder)


def _replace_front(folder: Path, content: dict[str, Any]) -> str:
    """Write the front; return the method of the one that was there, if it was another one."""
    path, before = folder / "front.json", ""
    if path.exists():
        with contextlib.suppress(RunError):  # a damaged one is replaced
            before = _kind(read_json(path))
    write_json(path, content)
    return before if before != _kind(content) else ""


def _kind(front: dict[str, Any]) -> str:
    """Say which networks a front holds: the method, and whether max pooling stays where there is some."""
    settings = front.get("settings") or {}
    recipes = [entry.get("recipe") or {} for entry in front.get("candidates") or []]
    averaged = any(recipe.get("average_pooling") for recipe in recipes)
    return f"{settings.get('method', '')}{' with average pooling' if averaged else ''}"


def plan_reduce(
    network: str | nn.Module,
    data: str | Dataset,
    *,
    out: Path | str,
    settings: SearchSettings | None = None,
    width: float = 1.0,
    weights: Path | str | None = None,
    exchange_activations: bool = False,
    workers: int | None = None,
    options: RunOptions | None = None,
) -> dict[str, Any]:
    """Say what `reduce` would train and roughly how long it would take here; see `deepreduce.training.plan`."""
    order = _Order(
        network=network,
        data=data,
        out=out,
        settings=settings,
        width=width,
        weights=weights,
        exchange_activations=exchange_activations,
        workers=workers,
        options=options,
    )
    running = order.run_options()
    pricer = our_pricer() if running.private else None
    return plan_search(order.context(), order.search_settings(), running, pricer=pricer)


def train(
    network: str | nn.Module,
    data: str | Dataset,
    *,
    out: Path | str,
    settings: SearchSettings | None = None,
    width: float = 1.0,
    exchange_activations: bool = False,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Train the full-ReLU teacher into a run folder, where `reduce` finds it.

    A module starts from the weights it has. Arguments and errors are those of `reduce`.
    """
    order = _Order(
        network=network,
        data=data,
        out=out,
        settings=settings,
        width=width,
        exchange_activations=exchange_activations,
        options=options,
    ).teaching()
    return run_teacher(order.context(), order.search_settings(), order.run_options(), progress=progress)


def plan_train(
    network: str | nn.Module,
    data: str | Dataset,
    *,
    out: Path | str,
    settings: SearchSettings | None = None,
    width: float = 1.0,
    exchange_activations: bool = False,
    options: RunOptions | None = None,
) -> dict[str, Any]:
    """Say what `train` would train and roughly how long it would take here; see `deepreduce.training.plan_teacher`."""
    order = _Order(
        network=network,
        data=data,
        out=out,
        settings=settings,
        width=width,
        exchange_activations=exchange_activations,
        options=options,
    ).teaching()
    return plan_teacher(order.context(), order.search_settings(), order.run_options())


@dataclass(kw_only=True)
class _Order:
    """What a caller of `reduce` asks for; the arguments are those of `reduce`."""

    network: str | nn.Module
    data: str | Dataset
    out: Path | str
    settings: SearchSettings | None = None
    width: float = 1.0
    weights: Path | str | None = None
    exchange_activations: bool = False
    workers: int | None = None
    options: RunOptions | None = None

    def __post_init__(self) -> None:
        """Check the types, before anything is done with what came.

        Raises:
            UsageError: naming the first argument of another type.
        """
        check_type("network", self.network, str, nn.Module, where="NETWORK")
        check_type("data", self.data, str, Dataset, where="--data")
        check_type("out", self.out, str, Path, where="--out")
        check_type("settings", self.settings, SearchSettings, NoneType)
        check_type("width", self.width, float, where="--width")
        check_type("exchange_activations", self.exchange_activations, bool, where="--exchange-activations")
        check_type("weights", self.weights, str, Path, NoneType, where="--weights")
        check_type("workers", self.workers, int, NoneType, where="--workers")
        check_type("options", self.options, RunOptions, NoneType)

    def teaching(self) -> _Order:
        """Return the order for the teacher alone."""
        settings = SearchSettings(training=TrainingConfig()) if self.settings is None else self.settings
        return replace(self, settings=replace(settings, trained=False))

    def run_options(self) -> RunOptions:
        """Return where and how jobs run."""
        options = self.options or RunOptions()
        return options if self.workers is None else replace(options, workers=self.workers)

    def search_settings(self) -> SearchSettings:
        """Return the settings; weights that come along make the network a trained one, unless it is said otherwise.

        With its activations exchanged it is none: the weights are where its training begins.
        """
        settings = self._with_weights()
        return replace(settings, trained=settings.trained and not self.exchange_activations)

    def _with_weights(self) -> SearchSettings:
        """Return the settings, `trained` where weights come along."""
        settings = self.settings
        if settings is None:
            named = self.data.name if isinstance(self.data, Dataset) else self.data
            settings = SearchSettings(training=TrainingConfig(flip=named != "digits"))
        if settings.trained is None:
            settings = replace(settings, trained=isinstance(self.network, nn.Module))
        return replace(settings, trained=settings.trained or self.weights is not None)

    def context(self) -> Context:
        """Read the images and build the network where it brings its weights; cheap checks come first.

        Raises:
            UsageError: if the network is said to be trained and brings no weights.
        """
        options = self.run_options()
        require_tracker(options.tracker)
        trained = self.weights is None and self._with_weights().trained
        if isinstance(self.network, str):
            if trained:
                _require_own_weights(self.network)
            check_name(self.network)
        images = load_data(self.data) if isinstance(self.data, str) else self.data
        classes = len(images.classes)
        spec, module = network_of(self.network, images.input, classes, self.width, self.exchange_activations)
        if self.weights is not None:
            module = build(spec) if module is None else copy.deepcopy(module)
            path = Path(self.weights)
            tensors = read_tensors(path)
            tensors.pop("deepreduce.probe", None)
            load_tensors(module, fit_tensors(module.state_dict(), tensors), path)
        elif trained and module is None:
            module = build(spec)
        return Context(
            spec,
            module,
            images,
            Path(self.out),
            tracker=options.tracker,
            threads=options.threads,
            checkpoint_seconds=options.checkpoint_seconds,
        )


def network_of(
    network: str | nn.Module, input: tuple[int, int, int], classes: int, width: float, exchange: bool
) -> tuple[NetworkSpec, nn.Module | None]:
    if isinstance(network, str):
        return NetworkSpec(network, input, classes, width, exchange), None
    if not is_number(width) or width != 1:
        raise UsageError(
            problem("a module has the width it has", got=shown(width), remedy="leave the width at 1", where="--width")
        )
    return NetworkSpec(type(network).__name__, input, classes, exchange_activations=exchange), network


def _require_own_weights(name: str) -> None:
    """Refuse a network whose code brings no trained weights."""
    if is_reference(name) or name.startswith("timm:"):
        raise UsageError(
            problem(
                "a trained network brings its weights",
                got=f"{name}, which is built with random weights",
                remedy="name the file with --weights, or leave out --trained to have the teacher trained",
                where="--trained",
            )
        )
