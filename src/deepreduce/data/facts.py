"""Facts about split images: what bends a measured accuracy, and the numbers that normalise pixels."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from deepreduce._arguments import shown
from deepreduce.data.split import Split
from deepreduce.errors import DataError, UsageError, problem


def repeated(train: Split, validation: Split, test: Split, names: tuple[str, ...]) -> list[str]:
    """Count what no error forbids but what bends a measured accuracy: repeated and doubly labelled images."""
    seen: list[dict[bytes, set[int]]] = []
    for split in (train, validation, test):
        labels_of: dict[bytes, set[int]] = {}
        for image, label in zip(split.images.numpy(), split.labels.tolist(), strict=True):
            labels_of.setdefault(hashlib.sha256(image).digest(), set()).add(label)
        seen.append(labels_of)
    notes = []
    both = len((seen[0].keys() | seen[1].keys()) & seen[2].keys())
    if both:
        notes.append(f"{both} distinct images stand in both the training and the test split")
    held = len(seen[0].keys() & seen[1].keys())
    if held:
        notes.append(f"{held} distinct images stand in both the training and the validation split")
    merged: dict[bytes, set[int]] = {}
    for labels_of in seen:
        for key, labels in labels_of.items():
            merged[key] = merged[key] | labels if key in merged else labels
    several = sum(len(labels) > 1 for labels in merged.values())
    if several:
        notes.append(f"{several} distinct images carry more than one label")
    absent = len(names) - len(np.unique(test.labels.numpy()))
    if absent:
        notes.append(f"{absent} of {len(names)} classes have no test image")
    return notes


def given(values: Any, what: str, train: Split) -> tuple[float, ...] | None:
    """Return a mean or standard deviation that the user gave, or None; UsageError if it cannot be one."""
    if values is None:
        return None
    channels = train.images.shape[1]
    try:
        numbers = () if isinstance(values, str) else tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    # Values of the scale 0..255 are the usual slip; they would silence every image.
    if len(numbers) != channels or not all(0 <= v <= 1 and (what == "mean" or v > 0) for v in numbers):
        raise UsageError(
            problem(
                f"the {what} must be {channels} numbers, one per channel, "
                f"in {'[0, 1]' if what == 'mean' else '(0, 1]'} as pixels are",
                got=shown(values),
                remedy="divide values of the scale 0..255 by 255, or leave the option out to have it measured",
                where=f"--{what}",
            )
        )
    return numbers


def moments(
    images: UInt8[Tensor, "n channels height width"], *, needed: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of pixels in [0, 1], from exact integer sums.

    With `needed`, a channel that never varies raises DataError: nothing can be divided by its deviation.
    """
    pixels = images.numpy()
    counts = np.zeros((pixels.shape[1], 256), dtype=np.int64)
    for start in range(0, len(pixels), 1024):
        for channel in range(pixels.shape[1]):
            counts[channel] += np.bincount(pixels[start : start + 1024, channel].ravel(), minlength=256)
    means, deviations = [], []
    for channel, histogram in enumerate(counts.tolist()):
        total = sum(histogram)
        first = sum(value * n for value, n in enumerate(histogram))
        second = sum(value * value * n for value, n in enumerate(histogram))
        # Python's integers do not round: the variance is exact up to its last division.
        variance = (second * total - first * first) / (total * total)
        if needed and variance == 0:
            raise DataError(
                problem(
                    "the pixels of every channel must vary",
                    got=f"only the value {first // total} in channel {channel}",
                    remedy="look whether the images were read rightly, or give std yourself",
                    where="training split",
                )
            )
        means.append(first / total / 255)
        deviations.append(math.sqrt(variance) / 255)
    return tuple(means), tuple(deviations)
