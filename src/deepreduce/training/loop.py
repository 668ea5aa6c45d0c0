"""The training loop: one function, every step visible.

It runs on whatever `accelerate` finds: a CPU, a GPU, several GPUs under `torchrun`. Data lies on the device, layouts
are channels-last, and on a GPU precision is mixed and the network compiled.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, fx, nn

from ..errors import Interrupted, TrainingError, UsageError, problem
from ..reduction import finish_fading, set_fade
from .batches import DeviceSplit
from .checkpoint import Checkpoint
from .config import TrainingConfig, fade_at, learning_rate_at
from .distillation import distillation_loss
from .distributed import on_processors

Network = TypeVar("Network", bound=nn.Module)

_CHECK_EVERY = 50  # steps between looks at the loss: each look waits for the device
_COMPILED_STEPS = 20_000  # estimated, not measured: half a minute to compile, a millisecond a step saved
_EVALUATION_BATCH = 512
_LOOKS = 10


class DivergenceError(TrainingError):
    """Losses or weights are no longer finite; with a smaller learning rate they might be."""


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


def precision_of(config: TrainingConfig) -> str:
    """Return accelerate's name of the precision that a network is trained in.

    Raises:
        UsageError: for fp16 without a GPU.
    """
    if config.precision == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise UsageError(
            problem("precision fp16 needs a GPU", got="none here", remedy="use auto, no or bf16", where="--precision")
        )
    return config.precision


def make_accelerator(config: TrainingConfig, **options: Any) -> Accelerator:
    """Build the accelerator that carries device, precision and processes.

    Args:
        config: gives the precision, see `precision_of`.
        options: passed on, such as `log_with` and `project_dir` for trackers.
    """
    # accelerate keeps the precision for the whole process; here each network may have its own.
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(mixed_precision=precision_of(config), cpu=on_processors(), **options)
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # every step of a training has the same shapes
    return accelerator


def prepare(
    network: fx.GraphModule, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[Callable[[Tensor], Tensor], torch.optim.Optimizer]:
    """Return what a training step calls: the network, of several processes one that adds gradients up; the optimiser.

    A network that is trained alone is left as it is. accelerate would put the casting of mixed precision inside, which
    the step does anyway, and what compiles with it is not kept from one network to the next.
    """
    if accelerator.num_processes > 1:
        prepared: tuple[Callable[[Tensor], Tensor], torch.optim.Optimizer] = accelerator.prepare(network, optimizer)
        return prepared
    own: torch.optim.Optimizer = accelerator.prepare(optimizer)
    return network, own


def crop_of(config: TrainingConfig, input: tuple[int, ...]) -> int:
    """Return the border for random crops of images of this size, in pixels.

    Raises:
        UsageError: if the border is not smaller than the image, so that it could not be a reflection.
    """
    size = min(input[-2:])
    if config.crop is not None and config.crop >= size:
        raise UsageError(
            problem(
                "the border for random crops must be smaller than the image",
                got=f"{config.crop} pixels around images of {input[-2]}x{input[-1]}",
                remedy="lower the border, or leave it to the default",
                where="--crop",
            )
        )
    return size // 8 if config.crop is None else config.crop


def train(
    network: fx.GraphModule,
    data: DeviceSplit,
    validation: DeviceSplit,
    config: TrainingConfig,
    *,
    accelerator: Accelerator,
    seed: int = 0,
    teacher: nn.Module | None = None,
    checkpoint: Checkpoint | None = None,
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
        checkpoint: where the state is kept between epochs; one found there is continued.
        on_epoch: called after every epoch, and on continuing first for every epoch that the checkpoint holds.
        should_stop: asked before every step.

    Raises:
        DivergenceError: if the loss or the weights are no longer finite.
        UsageError: if a batch is too small for so many processes, or the crop too large for the images.
        Interrupted: if `should_stop` said so; the checkpoint holds the last finished epoch that was kept.
        RunError: if the checkpoint cannot be written.
    """
    device, world = accelerator.device, accelerator.num_processes
    crop = crop_of(config, tuple(data.images.shape))
    if data.batch(config.batch_size, world) < 2 * world:
        raise UsageError(
            problem(
                "every process must have at least two images of a batch",
                got=f"batches of {min(config.batch_size, len(data))} for {world} processes",
                remedy="use fewer processes or a larger --batch-size",
            )
        )
    network = laid_out(network, device, torch.channels_last).train()
    network.requires_grad_(True)  # a layer that its owner froze must learn to do without the ReLUs around it
    optimizer = make_optimizer(network.parameters(), config)
    history = continued(network, optimizer, checkpoint, config, accelerator)
    for line in history:
        on_epoch(Epoch(**line))
    if teacher is not None:
        teacher = laid_out(teacher, device, torch.channels_last).eval().requires_grad_(False)
    forward, optimizer = prepare(network, optimizer, accelerator)
    ask_teacher: Callable[[Tensor], Tensor] | None = teacher
    steps = data.steps(config.batch_size, world)
    total = config.epochs * steps
    if is_compiled(config, device, total):
        torch.compiler.reset()  # what was compiled for the last network of this process only fills the memory
        forward = torch.compile(forward)
        ask_teacher = None if teacher is None else torch.compile(teacher)

    for epoch in range(len(history), config.epochs):
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
            world=world,
        )
        rate, fade, faded = 0.0, 0.0, -1.0
        for step, (images, labels) in enumerate(batches):
            if should_stop():
                raise Interrupted("stopped on request; run the same command again to continue")
            # The middle of the step: at its beginning the very first would train nothing.
            progress = (epoch * steps + step + 0.5) / total
            rate, fade = learning_rate_at(config, progress), fade_at(config, progress)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if fade != faded:
                set_fade(network, fade)
                faded = fade

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
                mean_loss(losses, accelerator, epoch, step, config)
        average = mean_loss(losses, accelerator, epoch, steps - 1, config)
        seconds = time.monotonic() - begun
        last = epoch == config.epochs - 1
        measured = accuracy(network, validation) if last or _look_at(epoch, config.epochs) else None
        network.train()
        finished = Epoch(
            epoch=epoch + 1,
            loss=average,
            validation=measured,
            learning_rate=rate,
            fade=fade,
            seconds=seconds,
            images_per_second=steps * data.batch(config.batch_size, world) / seconds,
        )
        history.append(dataclasses.asdict(finished))
        on_epoch(finished)
        if checkpoint is not None and accelerator.is_main_process and not last and checkpoint.is_due():
            checkpoint.write(network, optimizer, history)
    trained = finish_fading(laid_out(network, torch.device("cpu"), torch.contiguous_format))
    _require_finite_weights(trained, config)
    return trained.eval().requires_grad_(False)


def make_optimizer(parameters: Iterable[Any], config: TrainingConfig, *, peak: float = 1.0) -> torch.optim.Optimizer:
    """Build the optimiser of a training.

    Args:
        parameters: of the network, or groups of them with settings of their own.
        config: the settings.
        peak: what the learning rate is multiplied with.
    """
    return torch.optim.SGD(
        parameters,
        lr=peak * config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )


def continued(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    checkpoint: Checkpoint | None,
    config: TrainingConfig,
    accelerator: Accelerator,
) -> list[dict[str, Any]]:
    """Take over the state of a training that was cut off, and return its history; empty where there is none."""
    if checkpoint is None:
        return []
    history = checkpoint.read(network, optimizer, epochs=config.epochs)
    accelerator.wait_for_everyone()  # all have read it, so it may go
    if accelerator.is_main_process:
        checkpoint.move_damaged_aside()
    return history


@torch.no_grad()
def accuracy(network: nn.Module, split: DeviceSplit) -> float:
    """Return the share of images whose largest logit is the true class, in [0, 1]."""
    return count_correct(network, split) / len(split)


@torch.no_grad()
def count_correct(network: nn.Module, split: DeviceSplit) -> int:
    """Return the number of images whose largest logit is the true class.

    In single precision, whatever the network was trained in, because that is the network that is saved and exported: in
    bf16 the two largest of a hundred logits are equal for one or two images in a hundred.
    """
    network = network.to(split.images.device).eval()
    # Each size of a batch comes a few times: searching for the fastest kernel would take longer than it saves.
    searching, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    size = _EVALUATION_BATCH
    try:
        while True:
            try:
                return _count(network, split, size)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2
    finally:
        torch.backends.cudnn.benchmark = searching


def _count(network: nn.Module, split: DeviceSplit, size: int) -> int:
    correct = torch.zeros((), dtype=torch.int64, device=split.images.device)
    for images, labels in split.in_order(size):
        correct += (network(images).argmax(1) == labels).sum()
    return int(correct)


def looks(epochs: int) -> int:
    """Return how often the held-out images are looked at in so many epochs: about ten times."""
    return sum(epoch == epochs - 1 or _look_at(epoch, epochs) for epoch in range(epochs))


def is_compiled(config: TrainingConfig, device: torch.device, steps: int) -> bool:
    """Tell whether networks are compiled for their training on a device: by itself on a GPU, if it is long enough.

    Args:
        config: says `on`, `off`, or `auto`.
        device: where it trains.
        steps: of the optimiser in all.
    """
    return config.compile == "on" or (config.compile == "auto" and device.type == "cuda" and steps >= _COMPILED_STEPS)


def laid_out(network: Network, device: torch.device, layout: torch.memory_format) -> Network:
    """Move a network to a device and a memory layout, in place."""
    return network.to(device=device, memory_format=layout)  # type: ignore[call-overload,no-any-return] # not in the stubs


def _look_at(epoch: int, epochs: int) -> bool:
    return (epoch + 1) % max(1, math.ceil(epochs / _LOOKS)) == 0


def mean_loss(losses: Tensor, accelerator: Accelerator, epoch: int, step: int, config: TrainingConfig) -> float:
    """Return the mean loss so far over all processes, which therefore stop together if it is not finite.

    Raises:
        DivergenceError: in that case.
    """
    mean = float(accelerator.reduce(losses, reduction="mean")) / (step + 1)
    if not math.isfinite(mean):
        raise _diverged("the training loss must stay finite", f"{mean} by step {step + 1} of epoch {epoch + 1}", config)
    return mean


def _require_finite_weights(network: nn.Module, config: TrainingConfig) -> None:
    for name, value in network.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise _diverged("the trained weights must be finite", f"{name} is not, though the loss was", config)


def _diverged(must: str, got: str, config: TrainingConfig) -> DivergenceError:
    rate = config.learning_rate
    return DivergenceError(
        problem(
            must,
            got=f"{got}, at learning rate {rate:g}",
            remedy=f"give a smaller --learning-rate, such as {rate / 4:.2g}, and another folder for --out: networks of "
            "one run are trained alike",
        )
    )
