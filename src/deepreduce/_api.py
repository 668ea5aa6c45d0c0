"""The verbs of the package: profile, train, reduce, plan_reduce, load, save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ._environment import environment
from ._files import write_json
from .data import Dataset
from .data import load as load_data
from .errors import UsageError, problem
from .networks import NetworkSpec
from .private import delphi_online_seconds
from .reduction import Candidate, census_of, make_base
from .training import (
    Context,
    Front,
    Outcome,
    Progress,
    SearchSettings,
    TrainingConfig,
    default_workers,
    describe,
    require_tracker,
)
from .training import plan as plan_search
from .training import search as run_search
from .training import train_teacher as run_teacher


def profile(
    network: str | nn.Module,
    *,
    input: tuple[int, int, int],
    classes: int = 100,
    keep: Sequence[str] | None = None,
    thin: bool = False,
    alpha: float = 1.0,
    rho: float = 1.0,
    width: float = 1.0,
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
        width: width multiplier of the base network, for reference networks.

    Returns:
        `network`, `input`, `relus`, `macs`, `params`, `stages[]{name, resolution, relus, macs, params, layers[]}`,
        `notes`, and with any reduction the same of the full network under `before`.

    Raises:
        UsageError: if a value is out of range, or the reduction removes nothing.
        NetworkError: if the network cannot be traced or reduced so.
    """
    spec, module = _network(network, input, classes, width)
    base = make_base(spec, module)
    named = {"network": spec.name, "input": list(spec.input), "classes": spec.classes, "width": spec.width}
    if keep is None and not thin and alpha == 1 and rho == 1:
        return {**named, **base.census.to_json()}
    stages = tuple(stage.name for stage in base.census.stages) if keep is None else tuple(keep)
    candidate = Candidate(keep=stages, thin=thin, alpha=alpha, rho=rho)
    return {
        **named,
        "candidate": candidate.to_json(),
        **census_of(base, candidate).to_json(),
        "before": base.census.to_json(),
    }


def reduce(
    network: str | nn.Module,
    data: str | Dataset,
    *,
    out: Path | str,
    settings: SearchSettings | None = None,
    width: float = 1.0,
    weights: Path | str | None = None,
    executor: str = "local",
    workers: int | None = None,
    tracker: str | None = None,
    progress: Progress | None = None,
) -> Front:
    """Find the Pareto front of accuracy and ReLUs of a network on the user's images.

    Args:
        network: a reference name, `package.module:function`, `timm:NAME`, or a module.
        data: a data set, or its name, see `deepreduce.data.load`.
        out: run folder; the same call continues what is there.
        settings: how to train and search; None takes the defaults, and for a module its weights as the teacher's.
        width: width multiplier of the base network, for reference networks.
        weights: safetensors file with the trained weights of the network; implies `settings.trained`.
        executor: `local` or `ray`.
        workers: jobs side by side; None decides by the machine.
        tracker: experiment tracker that `accelerate` knows, such as `tensorboard`.
        progress: who watches.

    Returns:
        The front, also written to `out/front.json`.

    Raises:
        DeepReduceError: see `deepreduce.training.search`.
        Interrupted: on Ctrl-C.
    """
    context, settings = _context(network, data, out, settings, width, weights, tracker)
    found = run_search(
        context, settings, executor=executor, workers=_workers(workers), progress=progress
    )
    content = describe(found, context, environment=environment())
    for entry in (content["teacher"], *content["candidates"]):
        entry["latency"] = (
            None
            if entry["relus"] is None
            else {"delphi": delphi_online_seconds(entry["relus"], entry["macs"])}
        )
    write_json(context.folder / "front.json", content)
    return Front(content, context.folder)


def plan_reduce(
    network: str | nn.Module,
    data: str | Dataset,
    *,
    out: Path | str,
    settings: SearchSettings | None = None,
    width: float = 1.0,
    weights: Path | str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Say what `reduce` would train and roughly how long it would take here; see `deepreduce.training.plan`."""
    context, settings = _context(network, data, out, settings, width, weights, None)
    return plan_search(context, settings, workers=_workers(workers))


def train(
    network: str | nn.Module,
    data: str | Dataset,
    *,
    out: Path | str,
    settings: SearchSettings | None = None,
    width: float = 1.0,
    tracker: str | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Train the full-ReLU teacher into a run folder, where `reduce` finds it.

    Arguments and errors are those of `reduce`.
    """
    context, settings = _context(network, data, out, settings, width, None, tracker)
    return run_teacher(context, replace(settings, trained=False), progress=progress)


def _workers(workers: int | None) -> int:
    return default_workers() if workers is None else workers


def _network(
    network: str | nn.Module, input: tuple[int, int, int], classes: int, width: float
) -> tuple[NetworkSpec, nn.Module | None]:
    if isinstance(network, str):
        return NetworkSpec(network, input, classes, width), None
    if width != 1:
        raise UsageError(
            problem("a module has the width it has", got=f"width {width:g}", remedy="leave the width at 1")
        )
    return NetworkSpec(type(network).__name__, input, classes), network


def _context(
    network: str | nn.Module,
    data: str | Dataset,
    out: Path | str,
    settings: SearchSettings | None,
    width: float,
    weights: Path | str | None,
    tracker: str | None,
) -> tuple[Context, SearchSettings]:
    require_tracker(tracker)
    images = load_data(data) if isinstance(data, str) else data
    spec, module = _network(network, images.input, len(images.classes), width)
    if settings is None:
        settings = SearchSettings(
            training=TrainingConfig(flip=images.name != "digits"), trained=module is not None or weights is not None
        )
    if weights is not None:
        module = _with_weights(spec, module, Path(weights))
        settings = replace(settings, trained=True)
    if settings.trained and module is None:
        from .networks import build, is_reference

        if is_reference(spec.name):
            raise UsageError(
                problem(
                    "a trained network brings its weights",
                    got=f"{spec.name}, which is built with random weights",
                    remedy="name the file with --weights, or leave out --trained to have the teacher trained",
                    where="--trained",
                )
            )
        module = build(spec)
    return Context(spec, module, images, Path(out), tracker), settings


def _with_weights(spec: NetworkSpec, module: nn.Module | None, path: Path) -> nn.Module:
    """Load a user's safetensors file into the full network."""
    from .networks import build
    from .reduction.recipe import load_tensors, read_tensors

    network = build(spec) if module is None else module
    tensors = read_tensors(path)
    tensors.pop("deepreduce.probe", None)
    load_tensors(network, tensors, path)
    return network

