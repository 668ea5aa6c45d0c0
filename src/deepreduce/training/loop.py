"""The training loop: one function, every step visible.

It runs on whatever `accelerate` finds: a CPU, a GPU, several GPUs under `torchrun`. Data lies on the device, layouts
are channels-last, and on a GPU precision is mixed and the network compiled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, fx, nn

from ..errors import Interrupted, TrainingError, problem
from ..reduction import finish_fading, set_fade
from .batches import DeviceSplit
from .checkpoint import read_checkpoint, write_checkpoint
from .config import TrainingConfig, fade_at, learning_rate_at
from .distillation import distillation_loss

if TYPE_CHECKING:
    from accelerate import Accelerator

_CHECK_EVERY = 50  # steps between looks at the loss: each look waits for the device
_EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Epoch:
    """What one epoch showed.

    Attributes:
        epoch: from 1.
        loss: mean training loss.
        validation: accuracy on held-out images, in [0, 1]; None where it was not measured.
        learning_rate: at the end of the epoch.
        fade: how far removed ReLUs were on their way to the identity, in [0, 1].
        seconds: of training, evaluation aside.
        images_per_second: of training.
    """

    epoch: int
    loss: float
    validation: float | None
    learning_rate: float
    fade: float
    seconds: float
    images_per_second: float


def make_accelerator(config: TrainingConfig, **options: Any) -> Accelerator:
    """Build the accelerator that carries device, precision and processes.

    Args:
        config: `precision` decides; `auto` is bf16 on a GPU that has it and full precision elsewhere.
        options: passed on, such as `log_with` and `project_dir` for trackers.
    """
    from accelerate import Accelerator

    precision = config.precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    return Accelerator(mixed_precision=precision, **options)


def train(
    network: fx.GraphModule,
    data: DeviceSplit,
    validation: DeviceSplit,
    config: TrainingConfig,
    *,
    accelerator: Accelerator,
    seed: int = 0,
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> fx.GraphModule:
    """Train a network and return it, in evaluation mode, on the CPU.

    Args:
        network: traced; fading ReLUs in it fade by `config.fade`. Trained in place.
        data: training images, on the accelerator's device.
        validation: held-out images, looked at now and then; nothing is chosen by them here.
        config: the settings.
        accelerator: device, precision and processes.
        seed: of batches, augmentation and dropout.
        teacher: gives the soft answers for distillation; None trains on labels alone.
        checkpoint: where to keep the state between epochs; a matching one found there is continued.
        on_epoch: called after every epoch.
        should_stop: asked before every step.

    Raises:
        TrainingError: if the loss is no longer finite.
        Interrupted: if `should_stop` said so; the checkpoint holds the last finished epoch that was kept.
        RunError: if the checkpoint cannot be written.
    """
    device = accelerator.device
    network = network.to(device=device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    first = 0
    if checkpoint is not None:
        first = read_checkpoint(checkpoint, network, optimizer, seed=seed, config=config)
    if teacher is not None:
        teacher = teacher.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
    prepared, optimizer = accelerator.prepare(network, optimizer)
    forward, ask_teacher = prepared, teacher
    if config.compile == "on" or (config.compile == "auto" and device.type == "cuda"):
        forward = torch.compile(prepared)
        ask_teacher = None if teacher is None else torch.compile(teacher)

    crop = min(data.images.shape[2:]) // 8 if config.crop is None else config.crop
    steps = data.steps(config.batch_size)
    total = config.epochs * steps
    kept_at = time.monotonic()
    for epoch in range(first, config.epochs):
        torch.manual_seed(seed * 1_000_003 + epoch)  # dropout; resuming gives the same masks
        begun = time.monotonic()
        losses = torch.zeros((), device=device)
        batches = data.shuffled(
            config.batch_size,
            seed=seed,
            epoch=epoch,
            crop=crop,
            flip=config.flip,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        progress = rate = fade = 0.0
        for step, (images, labels) in enumerate(batches):
            if should_stop():
                raise Interrupted("stopped on request; run the same command again to continue")
            progress = (epoch * steps + step) / total
            rate, fade = learning_rate_at(config, progress), fade_at(config, progress)
            for group in optimizer.param_groups:
                group["lr"] = rate
            set_fade(network, fade)

            with accelerator.autocast():
                logits = forward(images)
                if ask_teacher is None:
                    loss = F.cross_entropy(logits.float(), labels)
                else:
                    with torch.no_grad():
                        answers = ask_teacher(images)
                    loss = distillation_loss(
                        logits.float(),
                        answers.float(),
                        labels,
                        weight=config.distillation,
                        temperature=config.temperature,
                    )
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            optimizer.step()

            losses += loss.detach()
            if step % _CHECK_EVERY == 0:
                _require_finite(losses, epoch, step)
        _require_finite(losses, epoch, steps - 1)
        seconds = time.monotonic() - begun
        last = epoch == config.epochs - 1
        measured = accuracy(network, validation, accelerator) if last or _look_at(epoch, config.epochs) else None
        network.train()
        on_epoch(
            Epoch(
                epoch=epoch + 1,
                loss=float(losses) / steps,
                validation=measured,
                learning_rate=rate,
                fade=fade,
                seconds=seconds,
                images_per_second=steps * min(config.batch_size, len(data)) / seconds,
            )
        )
        if checkpoint is not None and accelerator.is_main_process and not last and time.monotonic() - kept_at > 20:
            write_checkpoint(checkpoint, network, optimizer, epoch=epoch + 1, seed=seed, config=config)
            kept_at = time.monotonic()
    finished = finish_fading(network.to("cpu", memory_format=torch.contiguous_format))
    return finished.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(network: nn.Module, split: DeviceSplit, accelerator: Accelerator) -> float:
    """Return the share of images whose largest logit is the true class, in [0, 1]."""
    return count_correct(network, split, accelerator) / len(split)


@torch.no_grad()
def count_correct(network: nn.Module, split: DeviceSplit, accelerator: Accelerator) -> int:
    """Return the number of images whose largest logit is the true class."""
    network = network.to(split.images.device).eval()
    correct = torch.zeros((), dtype=torch.int64, device=split.images.device)
    with accelerator.autocast():
        for images, labels in split.in_order(_EVALUATION_BATCH):
            correct += (network(images).argmax(1) == labels).sum()
    return int(correct)


def _look_at(epoch: int, epochs: int) -> bool:
    """Look at the held-out images about ten times, so that the looks cost little."""
    return (epoch + 1) % max(1, math.ceil(epochs / 10)) == 0


def _require_finite(losses: Tensor, epoch: int, step: int) -> None:
    if not torch.isfinite(losses):
        raise TrainingError(
            problem(
                "the training loss must stay finite",
                got=f"{float(losses)} by step {step + 1} of epoch {epoch + 1}",
                remedy="lower --learning-rate, lengthen --warmup or --fade",
            )
        )
