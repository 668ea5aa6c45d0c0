"""From arrays to a data set. `test_arrays_become_three_splits` is the example to read first."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from deepreduce.data import Dataset, from_arrays

from .small import labels_of, misuse, noise, refusal


def make(**options: object) -> Dataset:
    arguments: dict[str, object] = {
        "train_images": noise(60),
        "train_labels": labels_of(60, 3),
        "test_images": noise(9, seed=1),
        "test_labels": labels_of(9, 3),
    }
    return from_arrays(**(arguments | options))  # type: ignore[arg-type]


def test_arrays_become_three_splits() -> None:
    data = make(name="mine", seed=5)
    assert data.name == "mine"
    assert data.input == (3, 4, 5)
    assert data.classes == ("0", "1", "2")
    assert (len(data.train), len(data.validation), len(data.test)) == (54, 6, 9)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert data.train.images.is_contiguous()
    assert torch.bincount(data.validation.labels).tolist() == [2, 2, 2]


def test_rows_keep_their_labels_and_stand_in_one_split() -> None:
    images = noise(60)
    data = make(train_images=images)
    expected = {image.transpose(2, 0, 1).tobytes(): row % 3 for row, image in enumerate(images)}
    found = {}
    for split in (data.train, data.validation):
        for image, label in zip(split.images, split.labels.tolist(), strict=True):
            found[image.numpy().tobytes()] = label
    assert found == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_every_layout_of_pixels_gives_the_same_images(channels: int) -> None:
    images = noise(60, shape=(4, 5, channels))
    test = noise(9, seed=1, shape=(4, 5, channels))
    layouts = [(images, test), (images.transpose(0, 3, 1, 2), test.transpose(0, 3, 1, 2))]
    layouts.append((torch.from_numpy(layouts[1][0].copy()), torch.from_numpy(layouts[1][1].copy())))
    if channels == 1:
        layouts.append((images[..., 0], test[..., 0]))
    made = [make(train_images=a, test_images=b) for a, b in layouts]
    assert len({data.fingerprint for data in made}) == 1
    assert made[0].input == (channels, 4, 5)
    assert torch.equal(made[0].test.images, torch.from_numpy(test.transpose(0, 3, 1, 2).copy()))


def test_no_memory_is_shared_with_the_arguments() -> None:
    test_images, test_labels = noise(9, seed=1), np.array(labels_of(9, 3))
    data = make(test_images=test_images, test_labels=test_labels)
    before = data.test.images.clone()
    test_images[:] = 0
    test_labels[:] = 0
    assert torch.equal(data.test.images, before)
    assert data.test.labels.tolist() == labels_of(9, 3)


def test_read_only_arrays_are_taken_without_a_warning() -> None:
    images, labels = noise(60), np.array(labels_of(60, 3))
    images.flags.writeable = labels.flags.writeable = False
    assert len(make(train_images=images, train_labels=labels).train) == 54


def test_mean_and_std_are_those_of_the_training_split() -> None:
    data = make()
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_given_mean_and_std_win() -> None:
    data = make(mean=(0.1, 0.2, 0.3), std=[0.4, 0.5, 0.6])
    assert data.mean == (0.1, 0.2, 0.3)
    assert data.std == (0.4, 0.5, 0.6)
    assert data.fingerprint != make().fingerprint


def test_strings_become_classes_sorted_by_name() -> None:
    data = make(train_labels=["eel", "cat", "dog"] * 20, test_labels=np.array(["dog", "cat", "eel"] * 3))
    assert data.classes == ("cat", "dog", "eel")
    assert data.test.labels.tolist() == [1, 0, 2] * 3


def test_given_class_names_keep_their_order() -> None:
    data = make(train_labels=["eel", "cat", "dog"] * 20, test_labels=["dog"] * 9, classes=("eel", "dog", "cat"))
    assert data.classes == ("eel", "dog", "cat")
    assert data.test.labels.tolist() == [1] * 9
    assert "2 of 3 classes have no test image" in data.notes


def test_without_test_images_a_fifth_is_set_apart_whatever_the_seed() -> None:
    splits = [make(test_images=None, test_labels=None, seed=seed) for seed in (0, 1)]
    assert [len(data.test) for data in splits] == [12, 12]
    assert torch.equal(splits[0].test.images, splits[1].test.images)
    assert not torch.equal(splits[0].validation.images, splits[1].validation.images)
    assert any("12 images (20% of every class) were set apart" in note for note in splits[0].notes)


def test_the_same_arguments_give_the_same_splits() -> None:
    first, second = make(seed=3), make(seed=3)
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.validation.images, second.validation.images)


@pytest.mark.parametrize(
    "options",
    [{"seed": 1}, {"validation": 0.2}, {"train_images": noise(60, seed=7)}, {"classes": ["a", "b", "c"]}],
    ids=["seed", "validation", "pixels", "names"],
)
def test_whatever_shapes_the_splits_changes_the_fingerprint(options: dict[str, object]) -> None:
    assert make(**options).fingerprint != make().fingerprint


def test_the_validation_split_does_not_depend_on_the_test_split() -> None:
    plain = make()
    turned = make(test_images=noise(9, seed=1)[::-1], test_labels=labels_of(9, 3)[::-1])
    assert torch.equal(plain.validation.images, turned.validation.images)


def test_repeated_images_come_out_as_notes() -> None:
    images, labels = noise(60), labels_of(60, 3)
    images[1] = images[0]  # classes 0 and 1
    test = noise(9, seed=1)
    test[0], test[1] = images[2], images[3]
    notes = make(train_images=images, train_labels=labels, test_images=test).notes
    assert "2 distinct images stand in both the training and the test split" in notes
    # The row 2 has class 2 and stands in the test split as class 0; likewise row 3 (class 0) as class 1.
    assert "3 distinct images carry more than one label" in notes


def test_plain_data_has_no_notes() -> None:
    assert make().notes == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_images": noise(60).astype(np.float32)}, ["uint8", "float32", "(images * 255)"]),
        ({"train_images": torch.zeros(60, 3, 4, 5, dtype=torch.bfloat16)}, ["uint8", "bfloat16"]),
        ({"train_images": noise(60).astype(np.int64)}, ["uint8", "int64"]),
        ({"test_images": noise(9).astype(np.float64)}, ["float64", "Where: test images"]),
        ({"train_images": noise(60, shape=(3, 5, 3))}, ["[60, 3, 5, 3]", "first or last"]),
        ({"train_images": noise(60, shape=(4, 5, 4))}, ["[60, 4, 5, 4]", "1 or 3 channels"]),
        ({"train_images": noise(60, shape=(7,))}, ["[60, 7]"]),
        ({"train_images": noise(60, shape=(0, 5))}, ["[60, 0, 5]"]),
        ({"train_labels": [0, 1]}, ["60 images and 2 labels", "train split"]),
        ({"test_images": None}, ["only one of the two"]),
        ({"test_images": noise(9, shape=(6, 6, 3))}, ["[3, 4, 5] and [3, 6, 6]", "test split"]),
        ({"train_labels": 3}, ["60 images and 1 label."]),
        ({"train_images": np.full((60, 4, 5, 3), 7, np.uint8)}, ["must vary", "value 7 in channel 0"]),
        ({"train_labels": [0] * 60, "test_labels": [0] * 9}, ["at least two classes"]),
        ({"classes": ["a", "b", "c", "d", "e"]}, ["must have a training image", "none of d, e"]),
        ({"train_images": noise(0), "train_labels": []}, ["train split must have images", "zero rows"]),
        ({"test_images": noise(0), "test_labels": []}, ["test split must have images", "zero rows"]),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, object], words: list[str]) -> None:
    message = refusal(lambda: make(**options))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": (0.5,)}, ["mean must be 3 numbers"]),
        ({"mean": 0.5}, ["mean must be 3 numbers"]),
        ({"mean": (125.3, 123.0, 113.9)}, ["divide values of the scale 0..255"]),
        ({"std": (0.2, 0.0, 0.2)}, ["std must be 3 numbers", "(0, 1]"]),
        ({"std": (0.2, float("nan"), 0.2)}, ["std must be 3 numbers"]),
        ({"std": "0.2"}, ["Got: '0.2'", "Where: --std"]),
        ({"classes": "abc"}, ["must be a list", "Where: classes"]),
    ],
)
def test_wrong_options_are_wrong_usage(options: dict[str, object], words: list[str]) -> None:
    message = misuse(lambda: make(**options))
    for word in words:
        assert word in message


def test_a_constant_channel_is_taken_when_std_is_given() -> None:
    data = make(train_images=np.full((60, 4, 5, 3), 51, np.uint8), std=(0.5, 0.5, 0.5))
    assert data.mean == pytest.approx((0.2, 0.2, 0.2))


def test_importing_the_room_imports_no_reader() -> None:
    code = (
        "import sys, deepreduce.data.sources as _;"
        "print([m for m in ('pyarrow', 'PIL', 'sklearn', 'huggingface_hub', 'safetensors') if m in sys.modules])"
    )
    # torch itself may import one of them; what it does not import, this room must not either.
    bare = code.replace("deepreduce.data.sources", "torch, jaxtyping")
    outputs = [
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout
        for text in (code, bare)
    ]
    assert outputs[0] == outputs[1]
