"""Batches from a data set that lies on the device as a whole: no loader, no copies, augmentation in one gather."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ..data import Split


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel, for pixel values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class DeviceSplit:
    """A split whose images and labels lie on one device."""

    images: UInt8[Tensor, "n channels height width"]
    labels: Int64[Tensor, " n"]
    normalisation: Normalisation

    @classmethod
    def of(cls, split: Split, normalisation: Normalisation, device: torch.device) -> DeviceSplit:
        """Move a split to a device."""
        return cls(split.images.to(device), split.labels.to(device), normalisation)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @cached_property
    def _mean_and_std(self) -> tuple[Tensor, Tensor]:
        # Made once: a tensor made from Python numbers in every step would make the device wait in every step.
        mean = torch.tensor(self.normalisation.mean, device=self.images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.normalisation.std, device=self.images.device).view(1, -1, 1, 1)
        return 255 * mean, 255 * std

    def normalise(self, images: UInt8[Tensor, "n channels height width"]) -> Float[Tensor, "n channels height width"]:
        """Return (images / 255 - mean) / std, in channels-last memory."""
        mean, std = self._mean_and_std
        return images.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images once, in order, without augmentation; the last batch may be smaller."""
        for start in range(0, len(self), batch_size):
            stop = start + batch_size
            yield self.normalise(self.images[start:stop]), self.labels[start:stop]

    def batch(self, batch_size: int, world: int = 1) -> int:
        """Return the images of one step over all `world` processes: full batches, with equal parts."""
        return min(batch_size, len(self)) // world * world

    def steps(self, batch_size: int, world: int = 1) -> int:
        """Return the number of batches of one epoch of `shuffled`."""
        return len(self) // self.batch(batch_size, world)

    def shuffled(
        self, batch_size: int, *, seed: int, epoch: int, crop: int, flip: bool, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of augmented batches.

        Order, crops and flips depend on `seed` and `epoch` alone, so an interrupted run continues with the same
        batches. Every batch is full; the images left over are others in every epoch.

        Args:
            batch_size: over all processes; fewer images make one smaller batch.
            seed: of the job.
            epoch: from 0.
            crop: pixels of border, see `augment`.
            flip: whether to flip half of the images.
            rank: of this process.
            world: number of processes; each takes its part of every batch.
        """
        count = len(self)
        random = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        device = self.images.device
        order = torch.randperm(count, generator=random).to(device)
        shifts = torch.randint(0, 2 * crop + 1, (count, 2), generator=random).to(device)
        flips = ((torch.rand(count, generator=random) < 0.5) & flip).to(device)
        size = self.batch(batch_size, world)
        for start in range(0, count - size + 1, size):
            mine = order[start + rank : start + size : world]
            images = augment(self.images[mine], shifts[mine], flips[mine], crop=crop)
            yield self.normalise(images), self.labels[mine]


def augment(
    images: UInt8[Tensor, "n channels height width"],
    shifts: Int64[Tensor, "n 2"],
    flips: Tensor,
    *,
    crop: int,
) -> UInt8[Tensor, "n channels height width"]:
    """Crop every image from its own place in a reflected border, and flip some, in one gather.

    Args:
        images: one batch.
        shifts: row and column of each crop, in [0, 2 * crop]; `crop` is the middle.
        flips: bool, which images to mirror left to right.
        crop: width of the border in pixels; below height and width.
    """
    count, _, height, width = images.shape
    device = images.device
    rows = shifts[:, :1] + torch.arange(height, device=device) - crop
    columns = torch.arange(width, device=device).expand(count, width)
    columns = torch.where(flips[:, None], width - 1 - columns, columns) + shifts[:, 1:] - crop
    # Reflection without repeating the edge: -1 is 1, height is height - 2.
    rows = height - 1 - (height - 1 - rows.abs()).abs()
    columns = width - 1 - (width - 1 - columns.abs()).abs()
    return images.gather(2, rows[:, None, :, None].expand(images.shape)).gather(
        3, columns[:, None, None, :].expand(images.shape)
    )
