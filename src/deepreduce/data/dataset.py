"""What the rest of DeepReduce sees of a user's data: three splits of uint8 images with labels, and facts about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from deepreduce._arguments import is_whole, listed, shown
from deepreduce.data.facts import given, moments, repeated
from deepreduce.data.labels import Column, encode
from deepreduce.data.split import Split
from deepreduce.data.splits import Purpose, check_fraction, check_seed, hold_out, keep_per_class
from deepreduce.errors import DataError, UsageError, problem

TEST_FRACTION = 0.2
"""Share of every class that becomes the test split where the source has none."""

TEST_SEED = 0
"""Seed of that split. It is not the caller's: a network trained under one seed must never have seen, as training
images, what is its test split under another."""

_LAYOUT = 1  # enters every fingerprint; raise it when the same arguments begin to give other splits


@dataclass(frozen=True, eq=False)
class Dataset:
    """The data of one task, split and checked.

    Attributes:
        name: as the user named it; of a folder its last part.
        fingerprint: sha256 (hex) of the source's bytes and of everything that shaped the splits.
        classes: names; a label is an index into them.
        mean: per channel, of the pixels of `train` in [0, 1], unless the user gave it.
        std: likewise the (population) standard deviation.
        train: what training may see.
        validation: held out from the training images, stratified by class; selection looks here.
        test: looked at once, at the end.
        notes: what a user should know about the data, one sentence each.
    """

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split
    test: Split
    notes: tuple[str, ...]

    @property
    def input(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True, eq=False)
class Raw:
    """What a source holds, before anything is held out; private to this room.

    Attributes:
        classes: names of all classes of the source.
        train: all training images.
        test: the source's test split, or None.
        notes: what reading the source brought up.
    """

    classes: tuple[str, ...]
    train: Split
    test: Split | None
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return the sha256 (hex) over classes, notes, shapes, pixels and labels."""
        state = hashlib.sha256(json.dumps([self.classes, self.notes]).encode())
        for split in (self.train, self.test):
            if split is not None:
                state.update(json.dumps(list(split.images.shape)).encode())
                state.update(split.images.numpy().reshape(-1).data)
                state.update(split.labels.numpy().data)
        return state.hexdigest()


def from_arrays(
    train_images: Any,
    train_labels: Any,
    test_images: Any = None,
    test_labels: Any = None,
    *,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
    validation: float = 0.1,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """Make a data set of arrays that are already in memory.

    Args:
        train_images: NumPy array or tensor, uint8, [n, h, w], [n, c, h, w] or [n, h, w, c] with 1 or 3 channels.
        train_labels: n integers from 0, or n strings.
        test_images: likewise; without it a fifth of every class becomes the test split.
        test_labels: labels of `test_images`.
        classes: names of the classes in the order of their indices; default: the strings sorted, or "0", "1", ....
        name: what to call the data.
        validation: share of every class held out from the training images, in (0, 0.5].
        seed: of the choice, at least 0.
        mean: per channel for pixels in [0, 1]; default: measured on the training split.
        std: likewise, above 0.

    Returns:
        The data set; its tensors share no memory with the arguments.

    Raises:
        UsageError: `classes` is no list, or `validation`, `seed`, `mean` or `std` is out of range.
        DataError: an array or label is not what it must be.
    """
    if (test_images is None) != (test_labels is None):
        raise DataError(
            problem(
                "test images and test labels must come together",
                got="only one of the two",
                remedy="give both, or neither",
            )
        )
    names = None if classes is None else listed("classes", classes, example="['cat', 'dog']")
    train_pixels = _as_pixels(train_images, "train")
    columns = [_as_column(train_labels, "train", len(train_pixels))]
    test_pixels = None
    if test_images is not None:
        test_pixels = _as_pixels(test_images, "test")
        columns.append(_as_column(test_labels, "test", len(test_pixels)))
    encoded, test_encoded, known = encode(columns[0], columns[1] if test_pixels is not None else None, names)
    raw = Raw(
        known,
        Split(train_pixels, torch.tensor(encoded)),
        None if test_pixels is None else Split(test_pixels, torch.tensor(test_encoded)),
    )
    return assemble(raw, raw.digest(), name=name, validation=validation, seed=seed, mean=mean, std=std)


def assemble(
    raw: Raw,
    content: str,
    *,
    name: str,
    validation: float,
    seed: int,
    classes: int | None = None,
    per_class: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Reduce, split and describe what a source holds; the arguments are those of `load`.

    Args:
        raw: the source.
        content: sha256 over the source's bytes and the choices made in reading it.
        name: what to call the data.
        validation: share held out, in (0, 0.5].
        seed: of every choice, except of a test split that the source lacks.
        classes: keep the first so many classes.
        per_class: keep so many training images of each class.
        mean: per channel; default: measured.
        std: per channel; default: measured.
        notes: what to say before the notes made here.

    Raises:
        UsageError, DataError: see `load`.
    """
    validation, seed = check_fraction(validation), check_seed(seed)
    said = [*raw.notes, *notes]
    labels = raw.train.labels.numpy()
    names = raw.classes if classes is None else _first_classes(raw.classes, classes)
    _check_splits(raw, names)
    rows = np.flatnonzero(labels < len(names))
    if raw.test is None:
        rows, test_rows = hold_out(
            labels, rows, fraction=TEST_FRACTION, seed=TEST_SEED, purpose=Purpose.TEST, classes=names
        )
        test = _pick(raw.train, test_rows)
        said.append(
            f"the source has no test split: {len(test)} images ({TEST_FRACTION:.0%} of every class) were set apart as "
            f"one, the same whatever the seed"
        )
    else:
        test = _pick(raw.test, np.flatnonzero(raw.test.labels.numpy() < len(names)))
    if len(names) < len(raw.classes):
        said.append(f"a stated subset: the first {len(names)} of {len(raw.classes)} classes")
    if per_class is not None:
        rows = keep_per_class(labels, rows, count=per_class, seed=seed, classes=names)
        said.append(
            f"a stated subset: {per_class} training image{'' if per_class == 1 else 's'} of each class, before the "
            "validation split"
        )
    rows, held = hold_out(labels, rows, fraction=validation, seed=seed, purpose=Purpose.VALIDATION, classes=names)
    train, held_out = _pick(raw.train, rows), _pick(raw.train, held)
    said += repeated(train, held_out, test, names)
    given_mean, given_std = given(mean, "mean", train), given(std, "std", train)
    measured_mean, measured_std = moments(train.images, needed=given_std is None)
    shaped_by = {
        "layout": _LAYOUT,
        "content": content,
        "validation": validation,
        "seed": seed,
        "classes": len(names) if classes is not None else None,
        "per_class": per_class,
        "mean": given_mean,
        "std": given_std,
        "test": [TEST_FRACTION, TEST_SEED] if raw.test is None else None,
    }
    return Dataset(
        name=name,
        fingerprint=hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode()).hexdigest(),
        classes=names,
        mean=given_mean or measured_mean,
        std=given_std or measured_std,
        train=train,
        validation=held_out,
        test=test,
        notes=tuple(said),
    )


def _as_pixels(images: Any, split: str) -> UInt8[Tensor, "n channels height width"]:
    """Return images as a fresh contiguous uint8 tensor, channels first."""
    array = images if isinstance(images, Tensor) else np.asarray(images)
    where = f"{split} images"
    if array.dtype not in (torch.uint8, np.uint8):
        raise DataError(
            problem(
                "images must be uint8 with values 0..255",
                got=f"an array of type {array.dtype}",
                remedy="convert them yourself, for values in [0, 1] with (images * 255).round().astype('uint8'): "
                "whether they lie in [0, 1], or are normalised already, cannot be told safely from here",
                where=where,
            )
        )
    array = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
    first = array.ndim == 4 and array.shape[1] in (1, 3)
    last = array.ndim == 4 and array.shape[3] in (1, 3)
    if (array.ndim != 3 and first == last) or 0 in array.shape[1:]:
        raise DataError(
            problem(
                "images must have the shape [n, h, w], [n, c, h, w] or [n, h, w, c] with 1 or 3 channels",
                got=f"{list(array.shape)}" + (", where the channels could stand first or last" if first else ""),
                remedy="bring them to [n, c, h, w]; for images as small as 1 or 3 pixels, pad them",
                where=where,
            )
        )
    array = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2) if last else array
    return torch.from_numpy(np.array(array, order="C"))


def _as_column(labels: Any, split: str, count: int) -> Column:
    values = labels
    if isinstance(labels, Tensor):
        # NumPy knows no bfloat16; floats are refused later on, whatever their width.
        values = (labels.double() if labels.is_floating_point() else labels).detach().cpu().numpy()
    if not isinstance(values, np.ndarray):
        values = list(values) if isinstance(values, Iterable) else [values]
    if len(values) != count:
        raise DataError(
            problem(
                "there must be one label per image",
                got=f"{count} images and {len(values)} label{'' if len(values) == 1 else 's'}",
                remedy="give arrays of one length",
                where=f"{split} split",
            )
        )
    return Column(split, values, lambda row: f"row {row}")


def _first_classes(known: tuple[str, ...], count: int) -> tuple[str, ...]:
    if not is_whole(count) or not 2 <= count <= len(known):
        raise UsageError(
            problem(
                f"the number of classes to keep must lie in [2, {len(known)}], as the source has {len(known)}",
                got=shown(count),
                remedy=f"give {len(known)} or less, or leave it out for all",
                where="--first-classes",
            )
        )
    return known[:count]


def _check_splits(raw: Raw, names: tuple[str, ...]) -> None:
    """Refuse splits without images, classes without training images, and test images of another size."""
    for title, split in (("training", raw.train), ("test", raw.test)):
        if split is not None and not bool((split.labels < len(names)).any()):
            raise DataError(
                problem(
                    f"the {title} split must have images",
                    got=f"no image of the {len(names)} kept classes",
                    remedy=f"add {title} images, or keep more classes",
                    where=f"{title} split",
                )
            )
    if len(names) < 2:
        raise DataError(
            problem(
                "there must be at least two classes to tell apart",
                got=f"one class, {names[0]}",
                remedy="add images of a second class, or name another label column",
                where="training split",
            )
        )
    counts = np.bincount(raw.train.labels.numpy(), minlength=len(names))[: len(names)]
    empty = [names[k] for k in np.flatnonzero(counts == 0)]
    if empty:
        raise DataError(
            problem(
                "every class must have a training image",
                got=f"none of {', '.join(empty[:5])}{f' and {len(empty) - 5} more' if len(empty) > 5 else ''}",
                remedy="add images of these classes, or take them out of the source's class names",
                where="training split",
            )
        )
    if raw.test is not None and raw.test.images.shape[1:] != raw.train.images.shape[1:]:
        raise DataError(
            problem(
                "training and test images must have one size and one channel count",
                got=f"{list(raw.train.images.shape[1:])} and {list(raw.test.images.shape[1:])}",
                remedy="bring both to one [channels, height, width]",
                where="test split",
            )
        )


def _pick(split: Split, rows: Int64[np.ndarray, " rows"]) -> Split:
    """Return the rows as a new split; the whole split stays as it is, so that mapped pages stay shared."""
    if len(rows) == len(split):
        return split
    index = torch.from_numpy(rows)
    return Split(split.images[index], split.labels[index])
