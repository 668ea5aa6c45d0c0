"""The loop of a mask search: a network with a slope for every ReLU is trained, and a finder decides what stays.

It is `loop.train` with the finder's part in it: what happens before and after an epoch and a step differs by method,
see `deepreduce.reduction.finding`. Where the loss needs the insides of the networks these are not compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, fx

from ..census import Census
from ..errors import Interrupted, NetworkError, problem
from ..reduction import Mask, MaskFinder, MaskOrder, SlopedReLU, Survey, method, watch, with_slopes
from ..reduction.finding import kept, set_masks
from .batches import DeviceSplit
from .checkpoint import Checkpoint
from .config import TrainingConfig, learning_rate_at
from .distillation import distillation_loss
from .loop import crop_of, is_compiled, laid_out, mean_loss

_RATE = 0.5  # of the peak learning rate, in a schedule of its own: the network is trained already
_CHECK_EVERY = 50
_EPOCH_IMAGES = 1024  # of a survey between epochs

_Sloped = tuple[fx.GraphModule, dict[str, SlopedReLU], fx.GraphModule, dict[str, SlopedReLU]]


@dataclass(frozen=True)
class MaskSearch:
    """One search for masks.

    Attributes:
        order: what to find.
        census: of the full network.
        config: how to train: all but fading. The search lasts for `config.epochs` at most, or exactly so long where it
            is the beginning of a schedule.
        accelerator: device, precision and processes.
        seed: of batches and augmentation.
    """

    order: MaskOrder
    census: Census
    config: TrainingConfig
    accelerator: Accelerator
    seed: int = 0

    def run(
        self,
        teacher: fx.GraphModule,
        data: DeviceSplit,
        *,
        checkpoint: Checkpoint | None = None,
        on_epoch: Callable[[dict[str, Any]], None] = lambda line: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[dict[str, Mask], fx.GraphModule]:
        """Search, and return the masks by call site and the network as it was trained, with the masks for slopes.

        Args:
            teacher: the full network with its trained weights, where the search begins; not changed.
            data: training images, on the accelerator's device.
            checkpoint: where the state is kept between epochs; one found there is continued.
            on_epoch: called after every epoch with its line of history, and on continuing first for those that the
                checkpoint holds.
            should_stop: asked before every step.

        Raises:
            TrainingError: if the loss is no longer finite.
            NetworkError: if a slope does not fit its layer.
            UsageError: if the crop is too large for the images.
            Interrupted: if `should_stop` said so.
            RunError: if the checkpoint cannot be written.
        """
        config, accelerator = self.config, self.accelerator
        kind = method(self.order.method).finder
        assert kind is not None
        sloped = self._sloped(teacher, self.order.granularity, kind.draws_lines)
        network, slopes, asked, asked_slopes = sloped
        steps = data.steps(config.batch_size, accelerator.num_processes)
        finder = kind(slopes, self.order, steps=steps, epochs=config.epochs)
        peak = 1.0 if finder.one_schedule else _RATE
        optimizer = self._optimizer(network, finder, peak)
        history = self._continued(network, optimizer, checkpoint, finder)
        for line in history:
            on_epoch(line)
        prepared, optimizer = accelerator.prepare(network, optimizer)
        forward: Callable[[Tensor], Tensor] = prepared
        ask_teacher: Callable[[Tensor], Tensor] = asked
        if is_compiled(config, accelerator.device) and not finder.matches_teacher:
            torch.compiler.reset()  # see `loop.train`
            forward, ask_teacher = torch.compile(prepared), torch.compile(asked)

        epoch = len(history)
        # A search that goes on has its masks for slopes already; chosen anew they could be others.
        found = kept(slopes) if finder.is_finished() else None
        while epoch < config.epochs and (found is None or finder.one_schedule):
            begun = time.monotonic()
            survey = self._survey(sloped, data, epoch, _EPOCH_IMAGES)
            with accelerator.autocast():
                if found is None:
                    finder.begin_epoch(epoch, survey)
            if finder.matches_teacher:
                watch(slopes, True)
                watch(asked_slopes, True)
            losses = torch.zeros((), device=accelerator.device)
            done = 0
            for images, labels in self._batches(data, epoch):
                if should_stop():
                    raise Interrupted("stopped on request; run the same command again to continue")
                rate = peak * learning_rate_at(config, (epoch * steps + done + 0.5) / (config.epochs * steps))
                optimizer.param_groups[0]["lr"] = rate
                with accelerator.autocast():
                    logits = forward(images)
                    with torch.no_grad():
                        answers = ask_teacher(images)
                    loss = self._loss(logits, answers, labels)
                    extra = finder.extra_loss(survey) if found is None else None
                    if extra is not None:
                        loss = loss + extra
                optimizer.zero_grad(set_to_none=True)
                accelerator.backward(loss)
                accelerator.unscale_gradients()
                if found is None:
                    finder.before_step()
                else:
                    for slope in slopes.values():  # processes that train together still add their gradients up
                        slope.alpha.grad = None
                optimizer.step()
                losses += loss.detach()
                done += 1
                if done % _CHECK_EVERY == 0:
                    mean_loss(losses, accelerator, epoch, done - 1)
                if found is None:
                    finder.after_step()
                    found = self._settled(finder, slopes)
                    if found is not None and not finder.one_schedule:
                        break
            watch(slopes, False)
            watch(asked_slopes, False)
            loss_now = mean_loss(losses, accelerator, epoch, done - 1)
            with accelerator.autocast():
                if found is None or not finder.one_schedule:
                    finder.end_epoch(epoch, survey)
            found = self._settled(finder, slopes) if found is None else found
            epoch += 1
            line = {
                "epoch": epoch,
                "loss": loss_now,
                "relus": finder.relus() if found is None else sum(int(mask.sum()) for mask in found.values()),
                "steps": done,
                "seconds": time.monotonic() - begun,
                "state": finder.state(),
            }
            history.append(line)
            on_epoch(line)
            more = epoch < config.epochs and (found is None or finder.one_schedule)
            if checkpoint is not None and accelerator.is_main_process and more and checkpoint.is_due():
                checkpoint.write(network, optimizer, history)
        found = found or finder.masks()
        self._check(found)
        set_masks(slopes, found)
        network = laid_out(network, torch.device("cpu"), torch.contiguous_format)
        return found, network.eval().requires_grad_(False)

    def _settled(self, finder: MaskFinder, slopes: Mapping[str, SlopedReLU]) -> dict[str, Mask] | None:
        """Return the masks once they are found; training that goes on has them for slopes from then on."""
        if not finder.is_finished():
            return None
        found = finder.masks()
        if finder.one_schedule:
            set_masks(slopes, found)
        return found

    def _sloped(self, teacher: fx.GraphModule, granularity: str, draws_lines: bool) -> _Sloped:
        """Return the network with slopes, and the teacher with slopes that nobody changes, on the device."""
        network, slopes = with_slopes(teacher, self.census, granularity, draws_lines=draws_lines)
        asked, asked_slopes = with_slopes(teacher, self.census, "layer")
        device = self.accelerator.device
        network = laid_out(network, device, torch.channels_last).requires_grad_(True).train()
        asked = laid_out(asked, device, torch.channels_last).eval().requires_grad_(False)
        return network, slopes, asked, asked_slopes

    def _survey(self, sloped: _Sloped, data: DeviceSplit, epoch: int, count: int) -> Survey:
        torch.manual_seed(self.seed * 1_000_003 + epoch)  # dropout, and labels that a finder draws
        images = partial(self._images, data, epoch, count)
        return Survey(*sloped, images, self._loss, self.config.temperature, self._mean)

    def _loss(self, logits: Tensor, answers: Tensor, labels: Tensor) -> Tensor:
        weight, temperature = self.config.distillation, self.config.temperature
        return distillation_loss(logits.float(), answers.float(), labels, weight=weight, temperature=temperature)

    def _optimizer(self, network: fx.GraphModule, finder: MaskFinder, peak: float) -> torch.optim.SGD:
        """Give the weights a group as in any training, and the slopes one without decay, whose rate does not fall."""
        config = self.config
        alphas = {slope.alpha for slope in finder.slopes.values()}
        for alpha in alphas:
            alpha.requires_grad_(finder.trains_slopes)
        groups: list[dict[str, Any]] = [{"params": [p for p in network.parameters() if p not in alphas]}]
        if finder.trains_slopes:
            slopes = [slope.alpha for slope in finder.slopes.values()]
            groups.append({"params": slopes, "lr": finder.slope_rate(config.momentum), "weight_decay": 0.0})
        return torch.optim.SGD(
            groups,
            lr=peak * config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )

    def _continued(
        self, network: fx.GraphModule, optimizer: Any, checkpoint: Checkpoint | None, finder: MaskFinder
    ) -> list[dict[str, Any]]:
        if checkpoint is None:
            return []
        history = checkpoint.read(network, optimizer, epochs=self.config.epochs)
        self.accelerator.wait_for_everyone()  # all have read it, so it may go
        if self.accelerator.is_main_process:
            checkpoint.move_damaged_aside()
        if history:
            finder.restore(history[-1]["state"])
        return history

    def _mean(self, value: Tensor) -> Tensor:
        mean: Tensor = self.accelerator.reduce(value, reduction="mean")
        return mean

    def _batches(self, data: DeviceSplit, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return data.shuffled(
            self.config.batch_size,
            seed=self.seed,
            epoch=epoch,
            crop=crop_of(self.config, tuple(data.images.shape)),
            flip=self.config.flip,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )

    def _images(self, data: DeviceSplit, epoch: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield so many images for a survey, others in every epoch; of several processes each sees its part."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches = data.shuffled(
            self.config.batch_size,
            seed=self.seed + 1,
            epoch=epoch,
            crop=0,
            flip=False,
            rank=rank,
            world=world,
        )
        seen = 0
        for images, labels in batches:
            yield images, labels
            seen += len(images) * world
            if seen >= count:
                return

    def _check(self, found: dict[str, Mask]) -> None:
        count = sum(int(mask.sum()) for mask in found.values())
        if not 0 < count <= self.order.budget:
            raise NetworkError(
                problem(
                    f"masks must keep from 1 to {self.order.budget:,} ReLUs",
                    got=f"{count:,} by {self.order.granularity}",
                    remedy="raise the budget, or take a finer --granularity",
                    where=self.order.label,
                )
            )
