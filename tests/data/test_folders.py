"""Image folders. `test_a_folder_of_classes` is the example to read first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deepreduce.data import load

from .small import encoded, noise, refusal, write_folders


def test_a_folder_of_classes(source: Path) -> None:
    data = load(str(write_folders(source, {"train": 10, "test": 3})))
    assert data.name == "tiny"
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 6)
    assert data.notes == ()
    expected = np.concatenate([noise(3, seed=10), noise(3, seed=11)]).transpose(0, 3, 1, 2)
    assert np.array_equal(data.test.images, expected)
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("word", ["val", "valid", "validation"])
def test_a_validation_folder_serves_as_the_test_split(source: Path, word: str) -> None:
    data = load(str(write_folders(source, {"train": 10, word: 3})))
    assert len(data.test) == 6
    assert f"its {word} split serves" in data.notes[0]


def test_splits_may_lie_in_a_folder_called_data(source: Path) -> None:
    (source / "data").mkdir()
    write_folders(source / "data", {"train": 10, "test": 3})
    assert len(load(str(source)).train) == 18


def test_the_fingerprint_moves_with_the_folder_but_not_with_a_change(source: Path, tmp_path: Path) -> None:
    first = load(str(write_folders(source, {"train": 10})))
    moved = source.rename(tmp_path / "elsewhere")
    assert load(str(moved)).fingerprint == first.fingerprint
    (moved / "train" / "cat").rename(moved / "train" / "cow")
    assert load(str(moved)).fingerprint != first.fingerprint


def test_other_files_are_left_and_counted(source: Path) -> None:
    write_folders(source, {"train": 10, "test": 3})
    (source / "train" / "cat" / "notes.txt").write_text("x")
    (source / "train" / "list.csv").write_text("x")
    (source / "train" / ".DS_Store").write_text("x")
    assert load(str(source)).notes == ("left unread, as they are no images in class folders: 2 of the files",)


def test_folders_inside_a_class_belong_to_it(source: Path) -> None:
    write_folders(source, {"train": 10, "test": 3})
    before = load(str(source))
    inner = source / "train" / "cat" / "more" / "yet"
    inner.mkdir(parents=True)
    moved = sorted((source / "train" / "cat").glob("*.png"))[-1]
    moved.rename(inner / moved.name)
    (source / "train" / "cat" / ".hidden").mkdir()
    (source / "train" / "cat" / ".hidden" / "x.txt").write_text("x")
    (source / "train" / "cat" / "loop").symlink_to(source / "train" / "dog")
    after = load(str(source))
    assert len(after.train) == len(before.train) and after.classes == before.classes
    assert after.notes == ("left unread, as they are no images in class folders: 1 of the files",)


def test_a_damaged_file_is_named(source: Path) -> None:
    write_folders(source, {"train": 10, "test": 3})
    (source / "test" / "dog" / "001.png").write_bytes(b"junk")
    message = refusal(lambda: load(str(source)))
    assert "1 of 6 images" in message
    assert "Where: test split, file test/dog/001.png" in message


def test_an_empty_class_is_named(source: Path) -> None:
    write_folders(source, {"train": 10, "test": 3})
    (source / "train" / "eel").mkdir()
    assert "none of eel" in refusal(lambda: load(str(source)))


def test_a_class_that_only_the_test_split_has_is_refused(source: Path) -> None:
    write_folders(source, {"train": 10, "test": 3})
    (source / "test" / "dog").rename(source / "test" / "dogs")
    message = refusal(lambda: load(str(source)))
    assert "'dogs' (did you mean dog?)" in message
    assert "file test/dogs/000.png" in message


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_images_is_refused(source: Path, split: str) -> None:
    write_folders(source, {"train": 10, "test": 3} | {split: 0})
    message = refusal(lambda: load(str(source)))
    assert "zero rows" in message
    assert f"{split} split" in message


def test_a_folder_without_a_training_split_is_refused(source: Path) -> None:
    write_folders(source, {"test": 3})
    assert "must have a training split" in refusal(lambda: load(str(source)))


def test_a_palette_is_noted(source: Path) -> None:
    write_folders(source, {"train": 10, "test": 3})
    (source / "train" / "cat" / "000.png").write_bytes(encoded(noise(1)[0], mode="P"))
    for _ in range(2):  # decoded, then from the cache
        assert load(str(source)).notes == ("1 palette images were converted to RGB",)
