"""Image folders: `train/CLASS/*.png`, and the same for the test or validation split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from deepreduce.data.dataset import Raw
from deepreduce.data.decode import SUFFIXES, Batch, decode
from deepreduce.data.labels import Column, encode
from deepreduce.data.layout import ROLES, Chosen, choose
from deepreduce.data.split import Split
from deepreduce.errors import DataError, problem


@dataclass(frozen=True)
class _Images:
    """The files of one split, in the order of class and name, with the class of each."""

    files: list[Path]
    labels: list[str]
    classes: list[str]


class ImageFolders:
    """A folder whose splits are folders of classes.

    Attributes:
        key: what determines the pixels and labels: the sha256 (hex) over splits, class names, file names and bytes.
        notes: what finding the files brought up.
    """

    def __init__(self, folder: Path) -> None:
        """Find the files of `folder` and hash them.

        Raises:
            DataError: there is no training split, or a file cannot be read.
        """
        self._folder = folder
        base = folder / "data" if not _split_folders(folder) and (folder / "data").is_dir() else folder
        skipped: list[str] = []
        found = {name: _list(path, skipped) for name, path in _split_folders(base).items()}
        self._chosen: Chosen[_Images] = choose(found, folder=folder.name)
        self.notes = self._chosen.notes
        if skipped:
            self.notes += (f"left unread, as they are no images in class folders: {len(skipped)} of the files",)
        self.key = ["folders", self._hash()]

    @staticmethod
    def fits(folder: Path) -> bool:
        """Return whether the folder has subfolders named like splits."""
        return bool(_split_folders(folder) or _split_folders(folder / "data"))

    def read(self, workers: int | None) -> Raw:
        """Decode all images.

        Raises:
            DataError: an image is refused (see `decode`), a class is empty or unknown, a split has no images.
        """
        chosen = self._chosen
        train, test, classes = encode(
            Column(chosen.train_name, chosen.train.labels, self._where(chosen.train)),
            None
            if chosen.test is None or chosen.test_name is None
            else Column(chosen.test_name, chosen.test.labels, self._where(chosen.test)),
            tuple(chosen.train.classes),
        )
        train_images, palettes = self._decode(chosen.train_name, chosen.train, workers)
        test_split = None
        if chosen.test is not None and chosen.test_name is not None:
            test_images, more = self._decode(chosen.test_name, chosen.test, workers)
            palettes += more
            test_split = Split(test_images, torch.tensor(test))
        notes = (f"{palettes} palette images were converted to RGB",) if palettes else ()
        return Raw(classes, Split(train_images, torch.tensor(train)), test_split, notes)

    def _decode(self, name: str, images: _Images, workers: int | None) -> tuple[torch.Tensor, int]:
        pixels, palettes = decode(
            [Batch(images.files, self._where(images))], len(images.files), split=name, workers=workers
        )
        return torch.from_numpy(pixels), palettes

    def _where(self, images: _Images) -> Callable[[int], str]:
        return lambda row: f"file {images.files[row].relative_to(self._folder).as_posix()}"

    def _hash(self) -> str:
        state = hashlib.sha256()
        for role, images in (("train", self._chosen.train), ("test", self._chosen.test)):
            if images is None:
                continue
            state.update(f"{role}\0{len(images.files)}\0{images.classes}\0".encode())
            for path, label in zip(images.files, images.labels, strict=True):
                try:
                    inner = hashlib.sha256(path.read_bytes()).hexdigest()
                except OSError as error:
                    raise DataError(
                        problem(
                            "every image file must be readable",
                            got=error.strerror,
                            remedy="check the permissions",
                            where=f"file {path.relative_to(self._folder).as_posix()}",
                        )
                    ) from error
                state.update(f"{label}\0{path.name}\0{inner}\0".encode())
        return state.hexdigest()


def _split_folders(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {
        path.name.lower(): path for path in sorted(folder.iterdir()) if path.name.lower() in ROLES and path.is_dir()
    }


def _list(folder: Path, skipped: list[str]) -> _Images:
    """List the images of a split by class and name; what is no image is appended to `skipped`."""
    images = _Images([], [], [])
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            skipped.append(entry.name)
            continue
        images.classes.append(entry.name)
        for path in _inside(entry):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                images.files.append(path)
                images.labels.append(entry.name)
            else:
                skipped.append(path.name)
    return images


def _inside(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder of a class, by name, and in folders inside it; links to folders are not followed."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _inside(path)
        else:
            yield path
