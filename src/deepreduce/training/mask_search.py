"""The loop of a mask search: a network with a slope for every ReLU is trained, and a finder decides what stays.

It is `loop.train` with the finder's part in it: what happens before and after an epoch and a step differs by method,
see `deepreduce.reduction.methods.finding`. Where the loss needs the insides of the networks these are not compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, fx

from ..census import Census
from ..errors import Interrupted, NetworkError, problem
from ..reduction import (
    Mask,
    MaskFinder,
    MaskOrder,
    SlopedReLU,
    Survey,
    average_pools,
    find_reducer,
    watch,
    with_slopes,
)
from ..reduction.methods.finding import kept, set_masks
from .batches import DeviceSplit
from .checkpoint import Checkpoint
from .config import TrainingConfig, learning_rate_at
from .distillation import distillation_loss
from .loop import continued, crop_of, is_compiled, laid_out, make_optimizer, mean_loss, prepare

_RATE = 0.5  # of the peak learning rate, in a schedule of its own: the network is trained already
_CHECK_EVERY = 50
_EPOCH_IMAGES = 1024  # of a survey between epochs

_Sloped = tuple[fx.GraphModule, dict[str, SlopedReLU], fx.GraphModule, dict[str, SlopedReLU]]


@dataclass
class _Search:
    """What a search has at hand while it runs; `masks` are those that were found, None until then."""

    sloped: _Sloped
    finder: MaskFinder
    optimizer: torch.optim.Optimizer
    forward: Callable[[Tensor], Tensor]
    ask_teacher: Callable[[Tensor], Tensor]
    peak: float
    history: list[dict[str, Any]]
    masks: dict[str, Mask] | None

    def settle(self) -> None:
        """Once the finder is done, take its masks; the slopes are these from then on."""
        if self.finder.is_finished():
            self.masks = self.finder.masks()
            set_masks(self.sloped[1], self.masks)


@dataclass(frozen=True)
class MaskSearch:
    """One search for masks.

    Attributes:
        order: what to find.
        census: of the full network.
        config: how to train: all but fading. The search lasts for `config.epochs`; once it has its masks, the weights
            train on with them.
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
            DivergenceError: if the loss is no longer finite.
            NetworkError: if a slope does not fit its layer.
            UsageError: if the crop is too large for the images.
            Interrupted: if `should_stop` said so.
            RunError: if the checkpoint cannot be written.
        """
        config, accelerator = self.config, self.accelerator
        finder_type = find_reducer(self.order.method).finder
        assert finder_type is not None
        sloped = self._sloped(teacher, self.order.granularity, finder_type.draws_lines)
        network, slopes = sloped[:2]
        steps = data.steps(config.batch_size, accelerator.num_processes)
        finder = finder_type(slopes, self.order, steps=steps, epochs=config.epochs)
        search = self._begin(sloped, finder, checkpoint, config.epochs * steps)
        for line in search.history:
            on_epoch(line)
        for epoch in range(len(search.history), config.epochs):
            line = self._epoch(search, data, epoch, should_stop)
            on_epoch(line)
            last = epoch == config.epochs - 1
            if checkpoint is not None and accelerator.is_main_process and not last and checkpoint.is_due():
                checkpoint.write(network, search.optimizer, search.history)
        masks = search.masks or finder.masks()
        self._check(masks)
        set_masks(slopes, masks)
        network = laid_out(network, torch.device("cpu"), torch.contiguous_format)
        return masks, network.eval().requires_grad_(False)

    def _begin(self, sloped: _Sloped, finder: MaskFinder, checkpoint: Checkpoint | None, steps: int) -> _Search:
        """Set a search of so many steps up, or take it over from its checkpoint."""
        network, slopes, teacher, _ = sloped
        peak = 1.0 if finder.one_schedule else _RATE
        optimizer = make_optimizer(self._groups(network, finder), self.config, peak=peak)
        history = continued(network, optimizer, checkpoint, self.config, self.accelerator)
        if history:
            finder.restore(history[-1]["state"])
        # A search that goes on has its masks for slopes already; chosen anew they could be others.
        masks = kept(slopes) if finder.is_finished() else None
        forward, optimizer = prepare(network, optimizer, self.accelerator)
        ask_teacher: Callable[[Tensor], Tensor] = teacher
        if is_compiled(self.config, self.accelerator.device, steps) and not finder.matches_teacher:
            torch.compiler.reset()  # see `loop.train`
            forward, ask_teacher = torch.compile(forward), torch.compile(teacher)
        return _Search(sloped, finder, optimizer, forward, ask_teacher, peak, history, masks)

    def _epoch(self, search: _Search, data: DeviceSplit, epoch: int, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """Train for an epoch, counted from 0, and return its line of history; once masks are found they stand."""
        config, accelerator, finder = self.config, self.accelerator, search.finder
        slopes, teacher_slopes = search.sloped[1], search.sloped[3]
        begun = time.monotonic()
        steps = data.steps(config.batch_size, accelerator.num_processes)
        survey = self._survey(search.sloped, data, epoch, _EPOCH_IMAGES)
        if search.masks is None:
            with accelerator.autocast():
                finder.begin_epoch(epoch, survey)
            watch(slopes, finder.matches_teacher)
            watch(teacher_slopes, finder.matches_teacher)
        losses = torch.zeros((), device=accelerator.device)
        for step, (images, labels) in enumerate(self._batches(data, epoch)):
            if should_stop():
                raise Interrupted("stopped on request; run the same command again to continue")
            rate = search.peak * learning_rate_at(config, (epoch * steps + step + 0.5) / (config.epochs * steps))
            search.optimizer.param_groups[0]["lr"] = rate
            losses += self._step(search, survey, images, labels)
            if (step + 1) % _CHECK_EVERY == 0:
                mean_loss(losses, accelerator, epoch, step, config)
            if search.masks is None:
                finder.after_step()
                search.settle()
        watch(slopes, False)
        watch(teacher_slopes, False)
        average = mean_loss(losses, accelerator, epoch, steps - 1, config)
        if search.masks is None:
            with accelerator.autocast():
                finder.end_epoch(epoch, survey)
            search.settle()
        line = {
            "epoch": epoch + 1,
            "loss": average,
            "relus": finder.relus() if search.masks is None else sum(int(mask.sum()) for mask in search.masks.values()),
            "steps": steps,
            "seconds": time.monotonic() - begun,
            "state": finder.state(),
        }
        search.history.append(line)
        return line

    def _step(self, search: _Search, survey: Survey, images: Tensor, labels: Tensor) -> Tensor:
        """Take one step of the optimiser, and return the loss before it."""
        accelerator, finder = self.accelerator, search.finder
        with accelerator.autocast():
            logits = search.forward(images)
            with torch.no_grad():
                answers = search.ask_teacher(images)
            loss = self._loss(logits, answers, labels)
            extra = finder.extra_loss(survey) if search.masks is None else None
            if extra is not None:
                loss = loss + extra
        search.optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        accelerator.unscale_gradients()
        if search.masks is None:
            finder.before_step()
        else:
            for slope in search.sloped[1].values():  # processes that train together still add their gradients up
                slope.alpha.grad = None
        search.optimizer.step()
        return loss.detach()

    def _sloped(self, teacher: fx.GraphModule, granularity: str, draws_lines: bool) -> _Sloped:
        """Return the network with slopes, and the teacher with slopes that nobody changes, on the device."""
        begins = average_pools(teacher) if self.order.average_pooling else teacher
        network, slopes = with_slopes(begins, self.census, granularity, draws_lines=draws_lines)
        taught, taught_slopes = with_slopes(teacher, self.census, "layer")
        device = self.accelerator.device
        network = laid_out(network, device, torch.channels_last).requires_grad_(True).train()
        taught = laid_out(taught, device, torch.channels_last).eval().requires_grad_(False)
        return network, slopes, taught, taught_slopes

    def _survey(self, sloped: _Sloped, data: DeviceSplit, epoch: int, count: int) -> Survey:
        torch.manual_seed(self.seed * 1_000_003 + epoch)  # dropout, and labels that a finder draws
        images = partial(self._images, data, epoch, count)
        return Survey(*sloped, images, self._loss, self.config.temperature, self._mean)

    def _loss(self, logits: Tensor, answers: Tensor, labels: Tensor) -> Tensor:
        weight, temperature = self.config.distillation, self.config.temperature
        return distillation_loss(logits.float(), answers.float(), labels, weight=weight, temperature=temperature)

    def _groups(self, network: fx.GraphModule, finder: MaskFinder) -> list[dict[str, Any]]:
        """Give the weights a group as in any training, and the slopes one without decay, whose rate does not fall."""
        alphas = {slope.alpha for slope in finder.slopes.values()}
        for alpha in alphas:
            alpha.requires_grad_(finder.trains_slopes)
        groups: list[dict[str, Any]] = [{"params": [p for p in network.parameters() if p not in alphas]}]
        if finder.trains_slopes:
            slopes = [slope.alpha for slope in finder.slopes.values()]
            groups.append({"params": slopes, "lr": finder.slope_rate(self.config.momentum), "weight_decay": 0.0})
        return groups

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
