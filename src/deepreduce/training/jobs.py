"""One training job: what it is, and the function that carries it out and writes its folder."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._files import append_line, read_lines, sha256_of, write_json
from ..census import Census
from ..data import Dataset
from ..errors import missing_extra
from ..networks import NetworkSpec, build, is_reference
from ..reduction import Base, Candidate, build_candidate, census_of, make_base
from ..reduction.recipe import Recipe, load_tensors, read_tensors, save_network
from ..reduction.reduced import build_fresh
from .batches import DeviceSplit, Normalisation
from .config import TrainingConfig
from .loop import Epoch, count_correct, make_accelerator, train

METRICS_FORMAT, METRICS_VERSION = "deepreduce.metrics", 1


@dataclass(frozen=True)
class Job:
    """A network to train.

    Attributes:
        kind: `teacher`, `criticality` or `candidate`.
        candidate: what to keep; None for the teacher.
        seed: of initial weights and batches.
        distilled: whether the teacher's answers are used.
        config: how to train.
        given: the teacher comes trained; only its accuracy is measured.
    """

    kind: str
    candidate: Candidate | None
    seed: int
    distilled: bool
    config: TrainingConfig
    given: bool = False

    @property
    def id(self) -> str:
        """Name of the network, the same for every seed."""
        if self.candidate is None:
            return "teacher"
        plain = "-plain" if self.kind == "criticality" and not self.distilled else ""
        return self.candidate.id + plain

    @property
    def place(self) -> str:
        """Folder within the run folder."""
        name = "teacher" if self.candidate is None else f"{self.kind}/{self.id}"
        return f"{name}/seed{self.seed}"

    @property
    def label(self) -> str:
        """What a person reads."""
        if self.candidate is None:
            return "teacher"
        if self.kind == "criticality":
            return f"{self.candidate.label} alone" + (", distilled" if self.distilled else ", plain")
        return self.candidate.label


@dataclass(frozen=True)
class Context:
    """What all jobs of a run share; sent to every worker once.

    Attributes:
        spec: the full network.
        network: the full network itself, where the caller brought it; None builds it from `spec`.
        data: the images.
        folder: the run folder.
        tracker: name of an experiment tracker that `accelerate` knows, or None.
        threads: for the CPU work of one job; None leaves PyTorch's choice.
    """

    spec: NetworkSpec
    network: nn.Module | None
    data: Dataset
    folder: Path
    tracker: str | None = None
    threads: int | None = None

    @property
    def normalisation(self) -> Normalisation:
        """Mean and standard deviation of the data set."""
        return Normalisation(self.data.mean, self.data.std)

    def full_network(self) -> nn.Module | None:
        """Return the full network for loading a recipe; None where the recipe's name is enough."""
        if self.network is not None or is_reference(self.spec.name):
            return self.network
        return build(self.spec)


def teacher_place(folder: Path) -> Path:
    """Return the folder of the teacher that distils every student: the first seed."""
    return folder / "teacher" / "seed0"


def run_job(job: Job, context: Context, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Train one network and write its folder: history, weights, recipe, and last of all its metrics.

    Args:
        job: what to train.
        context: the rest of the run.
        should_stop: asked before every step.

    Raises:
        TrainingError, NetworkError: if this network cannot be trained; others are not touched.
        Interrupted: if `should_stop` said so.
        RunError: if a file cannot be written.
    """
    if context.threads is not None:
        torch.set_num_threads(context.threads)
    folder = context.folder / job.place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "failed.json").unlink(missing_ok=True)

    torch.manual_seed(job.seed)  # fresh weights
    base = make_base(context.spec, context.network)
    census = base.census if job.candidate is None else census_of(base, job.candidate)
    network, teacher = _networks(job, base, context)
    accelerator = _accelerator_for(job, context, folder)
    validation = DeviceSplit.of(context.data.validation, context.normalisation, accelerator.device)
    begun = time.monotonic()

    if not job.given:
        checkpoint = folder / "checkpoint.safetensors"
        if not checkpoint.exists():
            (folder / "history.jsonl").unlink(missing_ok=True)

        def note(epoch: Epoch) -> None:
            if accelerator.is_main_process:
                append_line(folder / "history.jsonl", dataclasses.asdict(epoch))
            if context.tracker:
                values = {k: v for k, v in dataclasses.asdict(epoch).items() if v is not None and k != "epoch"}
                accelerator.log(values, step=epoch.epoch)

        network = train(
            network,
            DeviceSplit.of(context.data.train, context.normalisation, accelerator.device),
            validation,
            job.config,
            accelerator=accelerator,
            seed=job.seed,
            teacher=teacher,
            checkpoint=checkpoint,
            on_epoch=note,
            should_stop=should_stop,
        )
    correct = count_correct(network, validation, accelerator)
    if accelerator.is_main_process:
        _write_result(job, context, folder, network.cpu(), census, correct, time.monotonic() - begun)
    if context.tracker:
        accelerator.end_training()


def _networks(job: Job, base: Base, context: Context) -> tuple[Any, nn.Module | None]:
    """Build the network to train and the teacher that it asks."""
    if job.candidate is None:
        network = base.network
        if not job.given and context.network is None and job.seed:
            network = build_fresh(base, Candidate(keep=()))
        return network, None
    fresh = base
    place = teacher_place(context.folder)
    taught = make_base(context.spec, context.network)
    tensors = read_tensors(place / "weights.safetensors")
    tensors.pop("deepreduce.probe", None)
    load_tensors(taught.network, tensors, place)
    start = taught if job.config.warm_start else fresh
    network = build_candidate(start, job.candidate, warm=job.config.warm_start, fading=job.config.fade > 0)
    return network, taught.network if job.distilled and job.config.distillation > 0 else None


def _accelerator_for(job: Job, context: Context, folder: Path) -> Any:
    if not context.tracker:
        return make_accelerator(job.config)
    accelerator = make_accelerator(job.config, log_with=context.tracker, project_dir=folder)
    settings = {k: v for k, v in job.config.to_json().items() if isinstance(v, (int, float, str, bool))}
    accelerator.init_trackers(job.place.replace("/", "-"), config=settings)
    return accelerator


def require_tracker(name: str | None) -> None:
    """Check before any work that a tracker is installed.

    Raises:
        MissingExtraError: if it is not.
    """
    import importlib.util

    if name == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise missing_extra("tensorboard", "track", purpose="--tracker tensorboard")


def _write_result(
    job: Job, context: Context, folder: Path, network: nn.Module, census: Census, correct: int, seconds: float
) -> None:
    history = read_lines(folder / "history.jsonl")
    n = len(context.data.validation)
    recipe = Recipe(
        spec=context.spec,
        candidate=job.candidate,
        relus=census.relus,
        macs=census.macs,
        params=census.params,
        mean=context.data.mean,
        std=context.data.std,
        classes=context.data.classes,
        extra={"validation_accuracy": correct / n, "seed": job.seed},
    )
    save_network(folder, network, recipe)
    write_json(
        folder / "metrics.json",
        {
            "format": METRICS_FORMAT,
            "version": METRICS_VERSION,
            "id": job.id,
            "kind": job.kind,
            "seed": job.seed,
            "distilled": job.distilled,
            "config": job.config.to_json(),
            "validation": {"correct": correct, "n": n},
            "epochs": 0 if job.given else job.config.epochs,
            "seconds": sum(float(epoch["seconds"]) for epoch in history) if history else seconds,
            "images_per_second": history[-1]["images_per_second"] if history else None,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "weights_sha256": sha256_of(folder / "weights.safetensors"),
        },
    )
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
