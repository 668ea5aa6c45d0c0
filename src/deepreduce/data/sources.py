"""Where data comes from: the built-in digits, a local folder, or a data set on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType

import numpy as np
import torch

from deepreduce._arguments import check_type
from deepreduce.data import cache as image_cache
from deepreduce.data.dataset import Dataset, Raw, assemble
from deepreduce.data.decode import SUFFIXES, check_workers
from deepreduce.data.folders import ImageFolders
from deepreduce.data.parquet import ParquetFolder
from deepreduce.data.split import Split
from deepreduce.data.splits import check_fraction, check_seed
from deepreduce.errors import DataError, UsageError, near_misses, problem

BUILT_IN = ("digits",)
KINDS = "digits; a local folder with train-*.parquet or train/CLASS/*.png; a hub name such as uoft-cs/cifar100"

_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", re.ASCII)


def load(
    source: str | Path,
    *,
    validation: float = 0.1,
    seed: int = 0,
    classes: int | None = None,
    per_class: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    cache: Path | None = None,
    workers: int | None = None,
) -> Dataset:
    """Read images and labels, and split them.

    The same source and seed give the same splits on every machine. Images are taken as they are stored, greyscale or
    RGB; nothing is scaled or cropped.

    Args:
        source: `digits` (1,797 handwritten digits, 8×8), a local folder in Hugging Face layout (parquet files or image
            folders), or a hub name (`owner/name`). A local folder wins over a hub name; a folder that is called like a
            built-in name is reached as `./digits`.
        validation: share of every class that is held out from the training images, in (0, 0.5].
        seed: of the validation split and of `per_class`, at least 0.
        classes: keep the first so many classes, at least 2; default: all. Enters the notes.
        per_class: keep so many training images of each class, before the validation split; default: all. Enters the
            notes.
        mean: per channel for pixels in [0, 1]; default: measured on the training split.
        std: likewise, above 0.
        image_column: of parquet files; default: found by the schema.
        label_column: of parquet files; default: found by the schema, `label` and `fine_label` first.
        cache: folder for decoded pixels; default: `$DEEPREDUCE_CACHE`, else `$XDG_CACHE_HOME/deepreduce`, else
            `~/.cache/deepreduce`.
        workers: threads that decode; default: one per processor, at most 8.

    Returns:
        The data set; its notes say what a user should know about it.

    Raises:
        UsageError: `source` is no known kind of source, or an option is out of range or does not fit it.
        DataError: the data is not what it must be; the message names split, file and row.
    """
    # Cheap checks first: nobody should wait for a download to learn of a wrong option.
    check_type("source", source, str, Path, where="--data")
    check_type("cache", cache, str, Path, NoneType)
    check_fraction(validation)
    check_seed(seed)
    check_workers(workers)
    notes: tuple[str, ...] = ()
    if isinstance(source, str) and source in BUILT_IN:
        _refuse_columns(image_column, label_column, source)
        raw = _digits()
        name, content = source, raw.digest()
    else:
        folder, name = _folder(str(source))
        found = _read_layout(folder, name, image_column=image_column, label_column=label_column)
        raw, notes = image_cache.fetch(cache, found.key, lambda: found.read(workers))
        notes = found.notes + notes
        content = "\0".join(found.key)
    return assemble(
        raw,
        content,
        name=name,
        validation=validation,
        seed=seed,
        classes=classes,
        per_class=per_class,
        mean=mean,
        std=std,
        notes=notes,
    )


def _folder(source: str) -> tuple[Path, str]:
    """Return the local folder of a source, fetched from the hub if need be, and what to call it."""
    path = Path(source).expanduser()
    if source and path.is_dir():
        # An absolute path would tell readers of a report about the user's computer.
        return path, path.resolve().name or "data"
    if source and path.exists():
        raise UsageError(
            problem(
                "a data set must be a folder",
                got=f"the file {path.name}",
                remedy="put the file into a folder, named by its split (train-00000-of-00001.parquet), and give that",
                where="--data",
            )
        )
    if not _HUB_NAME.match(source):
        raise _unknown(source)
    return _download(source), source


def _read_layout(
    folder: Path, name: str, *, image_column: str | None, label_column: str | None
) -> ParquetFolder | ImageFolders:
    if ParquetFolder.fits(folder):
        return ParquetFolder(folder, image_column=image_column, label_column=label_column)
    if ImageFolders.fits(folder):
        _refuse_columns(image_column, label_column, name)
        return ImageFolders(folder)
    raise DataError(
        problem(
            "a folder must hold train-*.parquet or train/CLASS/*.png",
            got="neither parquet files nor folders named like splits",
            remedy="bring the images into one of these layouts, or name the subfolder that has it",
            where=f"folder {name}",
        )
    )


def _unknown(source: str) -> UsageError:
    looks_like_path = any(mark in source for mark in "/\\~.")
    return UsageError(
        problem(
            "the data set must be a known name, an existing folder, or a hub name",
            got=f"{source!r}{', which is no folder here' if looks_like_path else near_misses(source, list(BUILT_IN))}",
            remedy=f"give one of: {KINDS}",
            where="--data",
        )
    )


def _refuse_columns(image_column: str | None, label_column: str | None, source: str) -> None:
    if image_column is not None or label_column is not None:
        raise UsageError(
            problem(
                "image_column and label_column name columns of parquet files",
                got=f"the source {source!r}, which has none",
                remedy="leave them out",
                where="--image-column" if image_column is not None else "--label-column",
            )
        )


def _download(name: str) -> Path:
    """Fetch a data set from the hub, or take it from the hub's own cache."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise DataError(
            problem(
                "a hub data set needs the package huggingface_hub",
                got="it is not installed",
                remedy="pip install huggingface_hub, or give a local folder",
                where=f"--data {name}",
            )
        ) from error
    patterns = ["*.parquet", *(f"*{form}" for suffix in SUFFIXES for form in (suffix, suffix.upper()))]
    try:
        return Path(huggingface_hub.snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # its HTTP library, its own checks and the file system each have their own errors
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise DataError(
            problem(
                "a name with one slash must be an existing folder or a data set on the Hugging Face hub",
                got=f"no such folder, and the hub could not give it ({type(error).__name__}: {first_line})",
                remedy="check the spelling and the network, or fetch the data set elsewhere and give its folder",
                where=f"--data {name}",
            )
        ) from error


def _digits() -> Raw:
    """Return scikit-learn's handwritten digits; their 16 grey levels (0..16) are spread over 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return Raw(
        classes=tuple(str(digit) for digit in range(10)),
        train=Split(torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(bunch.target.astype(np.int64))),
        test=None,
    )
