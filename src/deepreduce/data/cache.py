"""Decoded pixels kept on disk: one safetensors file per source, written whole or not at all, opened by mapping.

A file is named by the hash of the source's bytes and the chosen columns, so it never goes stale; it may be deleted at
any time. It carries the sha256 of its content, which is checked at every opening (CIFAR-100: about 0.15 s). A file that
fails is rebuilt, and a cache that cannot be written costs time, never the result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import torch

from deepreduce.data.dataset import Raw
from deepreduce.data.split import Split

_FORMAT = "deepreduce.images"
_VERSION = "1"
_STALE_SECONDS = 3600.0


class _DamagedError(Exception):
    """The file is not what this module wrote under this key."""


def default_folder() -> Path:
    """Return `$DEEPREDUCE_CACHE`, else `$XDG_CACHE_HOME/deepreduce`, else `~/.cache/deepreduce`."""
    if own := os.environ.get("DEEPREDUCE_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "deepreduce"
    return Path("~/.cache/deepreduce").expanduser()


def fetch(folder: Path | None, key_parts: list[str], build: Callable[[], Raw]) -> tuple[Raw, tuple[str, ...]]:
    """Return what a source holds, from the cache if it is there.

    Args:
        folder: of the cache; None stands for `default_folder()`.
        key_parts: everything that determines the result of `build`.
        build: reads and decodes the source.

    Returns:
        The source, its tensors mapped from the file if the cache works, and notes on the cache if it does not.
    """
    key = hashlib.sha256(json.dumps([_FORMAT, _VERSION, *key_parts]).encode()).hexdigest()
    notes = []
    try:
        path = (default_folder() if folder is None else Path(folder)) / f"images-{key}.safetensors"
    except RuntimeError:  # no home folder is known
        return build(), ("decoded images are not cached: no cache folder is known; set DEEPREDUCE_CACHE",)
    try:
        return _open(path, key), ()
    except FileNotFoundError:
        pass
    except (_DamagedError, OSError) as error:
        notes.append(f"a cache file was unusable and was decoded anew ({_reason(error)})")
    raw = build()
    try:
        _store(path, key, raw)
        # The mapped file replaces the private copy, so that processes which load the same data share its pages.
        return _open(path, key), tuple(notes)
    except (_DamagedError, OSError) as error:
        notes.append(f"decoded images are held in memory, as the cache could not be written ({_reason(error)})")
        return raw, tuple(notes)


def _reason(error: Exception) -> str:
    """Say what went wrong, without a path: notes travel in reports."""
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__


def _open(path: Path, key: str) -> Raw:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if (header.get("format"), header.get("version"), header.get("key")) != (_FORMAT, _VERSION, key):
                raise _DamagedError("it was written by something else")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        raw = Raw(
            classes=tuple(json.loads(header["classes"])),
            train=_split(tensors, "train"),
            test=_split(tensors, "test") if "test.images" in tensors else None,
            notes=tuple(json.loads(header["notes"])),
        )
        if raw.digest() != header["sha256"]:
            raise _DamagedError("its checksum is wrong")
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _DamagedError("it is truncated or overwritten") from error
    return raw


def _split(tensors: dict[str, torch.Tensor], name: str) -> Split:
    images, labels = tensors[f"{name}.images"], tensors[f"{name}.labels"]
    if (images.dtype, labels.dtype, images.ndim, labels.ndim) != (torch.uint8, torch.int64, 4, 1) or len(images) != len(
        labels
    ):
        raise _DamagedError("its shapes or types are wrong")
    return Split(images, labels)


def _store(path: Path, key: str, raw: Raw) -> None:
    """Write the file under another name, flush it to the disk, then rename it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {"train.images": raw.train.images, "train.labels": raw.train.labels}
    if raw.test is not None:
        tensors |= {"test.images": raw.test.images, "test.labels": raw.test.labels}
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "key": key,
        "classes": json.dumps(raw.classes),
        "notes": json.dumps(raw.notes),
        "sha256": raw.digest(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{uuid.uuid4().hex}.tmp")
    try:
        try:
            save_file(tensors, temporary, metadata=header)
        except SafetensorError as error:
            # safetensors reports a full disk as its own error type.
            raise OSError(None, str(error).split(" at path ")[0]) from error
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what killed processes left of the same file; a young leftover may belong to one that still writes."""
    for leftover in path.parent.glob(f".{path.stem}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()
