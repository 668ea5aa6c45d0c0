"""Batches: augmentation against numpy, one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.data import Split
from deepreduce.training.batches import DeviceSplit, Normalisation, augment


def split_of(count: int, channels: int = 1, size: int = 8) -> DeviceSplit:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, channels, size, size)).astype(np.uint8))
    scale = Normalisation((0.5,) * channels, (0.25,) * channels)
    return DeviceSplit.of(Split(images, torch.arange(count)), scale, torch.device("cpu"))


def by_hand(image: np.ndarray, row: int, column: int, mirrored: bool, crop: int) -> np.ndarray:
    """Pad by reflection, cut out, mirror: one image, as a person would."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (crop, crop), (crop, crop)), mode="reflect")
    cut = padded[:, row : row + height, column : column + width]
    return cut[:, :, ::-1] if mirrored else cut


def test_example_the_middle_crop_is_the_image_itself() -> None:
    images = split_of(2).images
    same = augment(images, torch.full((2, 2), 3), torch.tensor([False, False]), crop=3)
    assert torch.equal(same, images)


@given(st.integers(1, 4), st.integers(2, 9), st.integers(2, 9), st.integers(1, 3), st.data())
def test_augmentation_is_that_of_numpy(count: int, height: int, width: int, channels: int, data: st.DataObject) -> None:
    crop = data.draw(st.integers(0, min(height, width) - 1))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    images = random.integers(0, 256, (count, channels, height, width)).astype(np.uint8)
    shifts = random.integers(0, 2 * crop + 1, (count, 2))
    flips = random.random(count) < 0.5
    got = augment(torch.from_numpy(images), torch.from_numpy(shifts), torch.from_numpy(flips), crop=crop).numpy()
    for index in range(count):
        np.testing.assert_array_equal(got[index], by_hand(images[index], *shifts[index], flips[index], crop))


def test_normalisation_is_the_formula_in_channels_last() -> None:
    images = split_of(5, channels=3).images
    split = DeviceSplit(images, torch.zeros(5), Normalisation((0.1, 0.2, 0.3), (0.5, 0.25, 2.0)))
    mean, std = np.array([0.1, 0.2, 0.3]).reshape(1, 3, 1, 1), np.array([0.5, 0.25, 2.0]).reshape(1, 3, 1, 1)
    got = split.normalise(images)
    np.testing.assert_allclose(got.numpy(), (images.numpy() / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert got.is_contiguous(memory_format=torch.channels_last)


def epoch(split: DeviceSplit, batch: int, **more: int) -> list[torch.Tensor]:
    wanted = {"seed": 0, "epoch": 0, "crop": 2, "flip": True, **more}
    return [labels for _, labels in split.shuffled(batch, **wanted)]  # type: ignore[arg-type]


def test_an_epoch_has_full_batches_of_distinct_images_and_depends_on_seed_and_epoch_alone() -> None:
    split = split_of(50)
    first = epoch(split, 16)
    assert [len(labels) for labels in first] == [16, 16, 16] and split.steps(16) == 3
    assert len(torch.cat(first).unique()) == 48
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(split, 16), strict=True))
    assert not torch.equal(torch.cat(first), torch.cat(epoch(split, 16, epoch=1)))
    assert not torch.equal(torch.cat(first), torch.cat(epoch(split, 16, seed=1)))


def test_crops_and_flips_change_the_images_and_can_be_switched_off() -> None:
    split = split_of(16)
    for crop, flip, changed in ((0, False, False), (2, False, True), (0, True, True)):
        images, labels = next(split.shuffled(16, seed=0, epoch=0, crop=crop, flip=flip))
        assert torch.equal(images, split.normalise(split.images[labels])) is not changed


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_every_batch_in_equal_parts(world: int) -> None:
    split = split_of(50)
    parts = [epoch(split, 16, rank=rank, world=world) for rank in range(world)]
    assert {len(labels) for part in parts for labels in part} == {16 // world}
    together = torch.cat([labels for part in parts for labels in part])
    assert len(together.unique()) == len(together) == split.steps(16, world) * split.batch(16, world)


def test_fewer_images_than_a_batch_make_one_smaller_batch() -> None:
    split = split_of(5)
    assert [len(labels) for labels in epoch(split, 128)] == [5] and split.steps(128) == 1


def test_in_order_gives_every_image_once_without_augmentation() -> None:
    split = split_of(5)
    batches = list(split.in_order(2))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([images for images, _ in batches]), split.normalise(split.images))
