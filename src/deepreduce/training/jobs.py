"""One training job: what it is, and the function that carries it out and writes its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import nn

from .._files import append_line, sha256_of, write_json
from ..census import Census, MaskedReLU
from ..data import Dataset
from ..errors import (
    UsageError,
    missing_extra,
    near_misses,
    problem,
)
from ..networks import NetworkSpec, build, is_reference
from ..reduction import Base, Candidate, MaskOrder, build_candidate, census_of, make_base
from ..reduction.recipe import RECIPE, Recipe, check_tensors, load_tensors, read_tensors, save_network
from ..reduction.surgery.lines import LINE_PREFIX
from .batches import DeviceSplit, Normalisation
from .checkpoint import Checkpoint
from .config import TrainingConfig
from .loop import Epoch, count_correct, make_accelerator, precision_of, train

METRICS_FORMAT, METRICS_VERSION = "deepreduce.metrics", 1


@dataclass(frozen=True)
class Job:
    """A network to train, or masks to find by training one.

    Attributes:
        kind: `teacher`, `criticality`, `masks`, `ranking` (a short training of a candidate) or `candidate`.
        candidate: what to keep; None for the teacher, and where masks are to be found.
        seed: of initial weights and batches.
        distilled: whether the teacher's answers are used.
        config: how to train.
        given: the teacher comes trained; only its accuracy is measured.
        masks: which masks to find; None for a network to train.
        start: folder within the run folder whose weights a warm start takes, those of a search for masks; empty for
            the teacher's. Such a network has learnt to do without its ReLUs, so that nothing fades.
        attempt: how many times its training has diverged before, see `schedule`.
    """

    kind: str
    candidate: Candidate | None
    seed: int
    distilled: bool
    config: TrainingConfig
    given: bool = False
    masks: MaskOrder | None = None
    start: str = ""
    attempt: int = 0

    @property
    def schedule(self) -> TrainingConfig:
        """How the network is trained this time: with a quarter of the learning rate after each divergence."""
        return replace(self.config, learning_rate=self.config.learning_rate / 4**self.attempt)

    @property
    def checkpoint(self) -> str:
        """Name of the file with the state of this attempt."""
        return f"checkpoint-{self.attempt}.safetensors" if self.attempt else "checkpoint.safetensors"

    @property
    def id(self) -> str:
        """Name of the network, the same for every seed."""
        if self.masks is not None:
            return self.masks.id
        if self.candidate is None:
            return "teacher"
        plain = "-plain" if self.kind == "criticality" and not self.distilled else ""
        return self.candidate.id + plain

    @property
    def place(self) -> str:
        """Folder within the run folder."""
        if self.kind == "teacher":
            return f"teacher/seed{self.seed}"
        # Rankings of different lengths stand side by side.
        kind = f"ranking-{self.config.epochs}" if self.kind == "ranking" else self.kind
        return f"{kind}/{self.id}/seed{self.seed}"

    @property
    def label(self) -> str:
        """What a person reads."""
        if self.masks is not None:
            return f"masks: {self.masks.label}"
        if self.candidate is None:
            return "teacher"
        if self.kind == "criticality":
            return f"{self.candidate.label} alone" + (", distilled" if self.distilled else ", plain")
        if self.kind == "ranking":
            return f"{self.candidate.label}, ranked"
        return self.candidate.label

    @property
    def trains(self) -> bool:
        """Whether anything is trained: not where the teacher comes trained."""
        return not self.given

    @property
    def epochs(self) -> int:
        """How many epochs the job trains."""
        return self.config.epochs if self.trains else 0

    @property
    def teaches(self) -> bool:
        """Whether a teacher is asked in every step."""
        if self.masks is not None:
            return True
        return self.candidate is not None and self.distilled and self.config.distillation > 0

    @property
    def files(self) -> tuple[str, ...]:
        """What the job leaves besides its history and metrics."""
        return ("weights.safetensors", RECIPE if self.masks is None else "masks.json")


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
        checkpoint_seconds: how often the state of a job is kept.
    """

    spec: NetworkSpec
    network: nn.Module | None
    data: Dataset
    folder: Path
    tracker: str | None = None
    threads: int | None = None
    checkpoint_seconds: float = 20.0

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


def run_training_job(job: Job, context: Context, should_stop: Callable[[], bool]) -> str:
    """Train one network; see `run_job`."""
    folder = context.folder / job.place
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(job.seed)  # fresh weights
    base = make_base(context.spec, context.network)
    census = base.census if job.candidate is None else census_of(base, job.candidate)
    network, teacher = _networks(job, base, context)
    checkpoint = Checkpoint(
        folder / job.checkpoint, identity(job, context), context.checkpoint_seconds, settings_that_count(job)
    )
    with job_accelerator(job, context) as accelerator:
        validation = DeviceSplit.of(context.data.validation, context.normalisation, accelerator.device)
        history: list[Epoch] = []
        if accelerator.is_main_process:
            clear(folder)

        def note(epoch: Epoch) -> None:
            history.append(epoch)
            if accelerator.is_main_process:
                append_line(folder / "history.jsonl", dataclasses.asdict(epoch))
            values = {k: v for k, v in dataclasses.asdict(epoch).items() if v is not None and k != "epoch"}
            accelerator.log(values, step=epoch.epoch)

        if not job.given:
            network = train(
                network,
                DeviceSplit.of(context.data.train, context.normalisation, accelerator.device),
                validation,
                job.schedule,
                accelerator=accelerator,
                seed=job.seed,
                teacher=teacher,
                checkpoint=checkpoint,
                on_epoch=note,
                should_stop=should_stop,
            )
        correct = count_correct(network, validation)
        if accelerator.is_main_process:
            _write_result(job, context, network.cpu(), census, correct, history)
            remove_checkpoints(folder)
    if checkpoint.damage:
        return f"{job.place} began anew; its checkpoint could not be used (kept beside it): {checkpoint.damage}"
    return ""


def clear(folder: Path) -> None:
    """Remove what an earlier attempt at a job left, but for its checkpoint."""
    (folder / "failed.json").unlink(missing_ok=True)
    (folder / "history.jsonl").unlink(missing_ok=True)  # written anew with what the checkpoint holds
    for unfinished in folder.glob(".*"):  # of a process that was killed while it wrote
        unfinished.unlink()


def remove_checkpoints(folder: Path) -> None:
    """Remove the states of a job that is finished, those of attempts that diverged too."""
    for path in folder.glob("checkpoint*.safetensors"):
        path.unlink()


def load_teacher(context: Context, start: str = "") -> Base:
    """Return the full network with the teacher's weights, or with those of another folder of the run."""
    taught = make_base(context.spec, context.network)
    place = context.folder / start if start else teacher_place(context.folder)
    tensors = read_tensors(place / "weights.safetensors")
    others = ("deepreduce.probe", LINE_PREFIX)
    load_tensors(taught.network, {n: value for n, value in tensors.items() if not n.startswith(others)}, place)
    return taught


@torch.no_grad()
def _take_lines(network: nn.Module, place: Path) -> None:
    """Give the masked layers of a candidate the lines that the search for its masks has left.

    Raises:
        RecipeError: if there are others, or they do not fit.
    """
    path = place / "weights.safetensors"
    left = {name: value for name, value in read_tensors(path).items() if name.startswith(LINE_PREFIX)}
    masked = [module for module in network.modules() if isinstance(module, MaskedReLU)]
    own = {LINE_PREFIX + module.site: module.line for module in masked if module.line is not None}
    check_tensors(own, left, path)
    for name, line in own.items():
        line.copy_(left[name])


def _networks(job: Job, base: Base, context: Context) -> tuple[Any, nn.Module | None]:
    """Build the network to train and the teacher that it asks."""
    if job.candidate is None:
        return base.network, None
    taught = load_teacher(context)
    warm = job.config.warm_start
    begins = load_teacher(context, job.start) if job.start and warm else taught
    fading = job.config.fade > 0 and begins is taught
    network = build_candidate(begins if warm else base, job.candidate, warm=warm, fading=fading)
    if begins is not taught:
        _take_lines(network, context.folder / job.start)
    return network, taught.network if job.teaches else None


def identity(job: Job, context: Context) -> str:
    """Say in a hash what the state of a job belongs to: the job, and the teacher that it learns from."""
    teacher = None if job.kind == "teacher" else sha256_of(teacher_place(context.folder) / "weights.safetensors")
    start = sha256_of(context.folder / job.start / "weights.safetensors") if job.start else None
    text = json.dumps([job.place, settings_that_count(job), teacher, *([start] if start else [])], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def settings_that_count(job: Job) -> dict[str, Any]:
    """Return the settings that decide what a network becomes: compiled or not, it is trained alike."""
    return replace(job.schedule, compile="auto").to_json()


@contextlib.contextmanager
def job_accelerator(job: Job, context: Context) -> Iterator[Accelerator]:
    """Give the accelerator of a job, with its tracker if one was asked for."""
    if not context.tracker:
        yield make_accelerator(job.config)
        return
    accelerator = make_accelerator(job.config, log_with=context.tracker, project_dir=context.folder / job.place)
    settings = {k: v for k, v in job.schedule.to_json().items() if isinstance(v, (int, float, str, bool))}
    accelerator.init_trackers(job.place.replace("/", "-"), config=settings)
    try:
        yield accelerator
    finally:
        for tracker in accelerator.trackers:  # `end_training` would end the process group of all further jobs too
            tracker.finish()


def require_tracker(name: str | None) -> None:
    """Check before any work that a tracker is known and installed; accelerate would pass over one that is not.

    Raises:
        UsageError: if there is no such tracker.
        MissingExtraError: if it is not installed.
    """
    if name is None:
        return
    known = sorted(LOGGER_TYPE_TO_CLASS)
    if name not in known:
        raise UsageError(
            problem(
                "the tracker must be one that accelerate knows",
                got=f"{name!r}{near_misses(name, known)}",
                remedy=f"use one of {', '.join(known)}",
                where="--tracker",
            )
        )
    if name == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise missing_extra("tensorboard", "track", purpose="--tracker tensorboard")
    if name not in [str(tracker) for tracker in get_available_trackers()]:
        raise UsageError(
            problem(
                "the tracker must be installed", got=f"{name} is not", remedy=f"pip install {name}", where="--tracker"
            )
        )


def _write_result(
    job: Job, context: Context, network: nn.Module, census: Census, correct: int, history: list[Epoch]
) -> None:
    folder = context.folder / job.place
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
    write_metrics(
        job,
        context,
        correct,
        epochs=len(history),
        seconds=sum(epoch.seconds for epoch in history),
        images_per_second=history[-1].images_per_second if history else None,
    )


def write_metrics(
    job: Job, context: Context, correct: int, *, epochs: int, seconds: float, images_per_second: float | None
) -> None:
    """Write the last file of a job, with the hashes of the others: the job is finished."""
    folder = context.folder / job.place
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
            "learning_rate": job.schedule.learning_rate,
            "validation": {"correct": correct, "n": len(context.data.validation)},
            "epochs": epochs,
            "seconds": seconds,
            "images_per_second": images_per_second,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "processor",
            "precision": precision_of(job.config),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S"),
            **{f"{name.partition('.')[0]}_sha256": sha256_of(folder / name) for name in job.files},
        },
    )
