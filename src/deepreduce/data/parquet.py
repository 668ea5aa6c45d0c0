"""Parquet files in Hugging Face layout: a column of encoded images, a column of labels, class names in the schema."""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from deepreduce.data.dataset import Raw
from deepreduce.data.decode import Batch, decode
from deepreduce.data.labels import Column, encode
from deepreduce.data.layout import ROLES, Chosen, choose, split_of_stem
from deepreduce.data.split import Split
from deepreduce.errors import DataError, near_misses, problem

# Columns that hold labels by habit, where the schema does not say; the first two win over any other.
_LABEL_NAMES = ("label", "fine_label", "labels", "class", "target", "category", "y")
_BATCH_ROWS = 4096
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


@dataclass(frozen=True)
class _Columns:
    """Which columns are read, and the class names that the schema gives."""

    image: str
    label: str
    names: tuple[str, ...] | None


class ParquetFolder:
    """A folder of parquet files.

    Attributes:
        key: what determines the pixels and labels: the sha256 (hex) over the files' bytes, in the order of splits and
            file names, and the names of the image and the label column.
        notes: what finding the files brought up.
    """

    def __init__(self, folder: Path, *, image_column: str | None, label_column: str | None) -> None:
        """Find the files and the columns, and hash the files.

        Args:
            folder: files lie in it, or one or two levels below (`data/`, `train/`, a configuration's name).
            image_column: name; default: found by the schema.
            label_column: name; default: found by the schema.

        Raises:
            DataError: splits or columns cannot be told, a file is truncated or missing, or files disagree.
        """
        self._folder = folder
        found, unread = _find(folder)
        self._chosen: Chosen[list[Path]] = choose(found, folder=folder.name)
        self.notes = self._chosen.notes
        if unread:
            more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
            self.notes += (f"left unread, as parquet files of no known split: {unread[0]}{more}",)
        self._columns = self._agree(image_column, label_column)
        self.key = ["parquet", self._hash(), self._columns.image, self._columns.label]

    @staticmethod
    def fits(folder: Path) -> bool:
        """Return whether there are parquet files."""
        return bool(_parquet_files(folder))

    def read(self, workers: int | None) -> Raw:
        """Decode all images.

        Raises:
            DataError: a label or an image is refused (see `encode` and `decode`), or a file is damaged.
        """
        chosen = self._chosen
        train_column = self._labels(chosen.train_name, chosen.train)
        test_column = None
        if chosen.test_name is not None and chosen.test is not None:
            test_column = self._labels(chosen.test_name, chosen.test)
        # Labels come before pixels: they are quick to refuse.
        train, test, classes = encode(train_column, test_column, self._columns.names)
        pixels, palettes = self._decode(chosen.train_name, chosen.train, len(train), workers)
        test_split = None
        if chosen.test_name is not None and chosen.test is not None and test is not None:
            test_pixels, more = self._decode(chosen.test_name, chosen.test, len(test), workers)
            palettes += more
            test_split = Split(torch.from_numpy(test_pixels), torch.tensor(test))
        notes = (f"{palettes} palette images were converted to RGB",) if palettes else ()
        return Raw(classes, Split(torch.from_numpy(pixels), torch.tensor(train)), test_split, notes)

    def _decode(
        self, split: str, files: list[Path], count: int, workers: int | None
    ) -> tuple[UInt8[np.ndarray, "count channels height width"], int]:
        return decode(self._images(files), count, split=split, workers=workers)

    def _hash(self) -> str:
        state = hashlib.sha256()
        for role, files in (("train", self._chosen.train), ("test", self._chosen.test)):
            for path in files or ():
                with self._reading(path), path.open("rb") as file:
                    state.update(f"{role}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
        return state.hexdigest()

    def _agree(self, image_column: str | None, label_column: str | None) -> _Columns:
        """Find the columns in the first file, and refuse any other file that differs in them."""
        import pyarrow.parquet as pq

        first: tuple[Path, _Columns, Any] | None = None
        for path in self._chosen.train + (self._chosen.test or []):
            with self._reading(path):
                schema = pq.read_schema(path)
            where = f"file {self._relative(path)}"
            if first is None:
                columns = _find_columns(schema, image_column, label_column, where)
                first = (path, columns, schema)
                continue
            known = first[1]
            for name in (known.image, known.label):
                if name not in schema.names or schema.field(name).type != first[2].field(name).type:
                    kind = f"column {name!r} of type {schema.field(name).type}" if name in schema.names else "none"
                    raise DataError(
                        problem(
                            f"every file must have the column {name!r} of type {first[2].field(name).type}, as "
                            f"{self._relative(first[0])} has",
                            got=kind,
                            remedy="write all files with one schema",
                            where=where,
                        )
                    )
            # A split without names in its schema (labels held back) takes those of the training files.
            names = _class_names(_features(schema).get(known.label))
            if names is not None and names != known.names:
                raise DataError(
                    problem(
                        "all files must name the same classes in the same order",
                        got=f"{len(names)} names that differ from those of {self._relative(first[0])}",
                        remedy="write all files with one schema",
                        where=where,
                    )
                )
        if first is None:
            raise DataError(
                problem(
                    "the train split must have files", got="none", remedy="fetch the source again", where="train split"
                )
            )
        return first[1]

    def _labels(self, split: str, files: list[Path]) -> Column:
        import pyarrow as pa
        import pyarrow.parquet as pq

        chunks, rows = [], []
        for path in files:
            with self._reading(path):
                column = pq.read_table(path, columns=[self._columns.label]).column(self._columns.label)
                if pa.types.is_dictionary(column.type):
                    column = column.cast(column.type.value_type)
            chunks.append(column)
            rows.append(len(column))
        whole = pa.chunked_array([chunk for column in chunks for chunk in column.chunks], type=chunks[0].type)
        plain = whole.null_count == 0 and not _is_string(whole.type)
        values = whole.to_numpy() if plain else whole.to_pylist()
        starts = [0, *accumulate(rows)]

        def where(row: int) -> str:
            file = bisect_right(starts, row) - 1
            return f"file {self._relative(files[file])}, row {row - starts[file]}"

        return Column(split, values, where)

    def _images(self, files: list[Path]) -> Iterator[Batch]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in files:
            with self._reading(path):
                file = pq.ParquetFile(path)
            try:
                start = 0
                batches = file.iter_batches(_BATCH_ROWS, columns=[self._columns.image])
                while True:
                    # Only the reading stands in the context: an error of whoever takes the batch is not the file's.
                    with self._reading(path):
                        batch = next(batches, None)
                    if batch is None:
                        break
                    column = batch.column(0)
                    if pa.types.is_struct(column.type):
                        column = pa.StructArray.flatten(column)[column.type.get_field_index("bytes")]
                    yield Batch(column.to_pylist(), self._row_of(path, start))
                    start += len(batch)
            finally:
                file.close()

    def _row_of(self, path: Path, start: int) -> Callable[[int], str]:
        return lambda row: f"file {self._relative(path)}, row {start + row}"

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    @contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        """Turn whatever a damaged or unreadable file raises into a DataError that names it."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                problem(
                    "every parquet file must be readable and complete",
                    got=str(error).splitlines()[0] if str(error) else type(error).__name__,
                    remedy="fetch the file again",
                    where=f"file {self._relative(path)}",
                )
            ) from error


def _parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files in the folder and up to two levels below, by name."""
    files = [path for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(f"{pattern}.parquet") if path.is_file()]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def _find(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the files of each split, and the files of no known split.

    A split is named by the file (`train-00000-of-00001.parquet`) or by its folder (`train/0.parquet`).
    """
    by_place: dict[Path, dict[str, list[Path]]] = {}
    unread = []
    for path in _parquet_files(folder):
        split, place = split_of_stem(path.stem), path.parent
        if split is None and path.parent != folder and path.parent.name.lower() in ROLES:
            split, place = path.parent.name.lower(), path.parent.parent
        elif split is not None and path.parent != folder and path.parent.name.lower() == split:
            place = path.parent.parent
        if split is None:
            unread.append(path.relative_to(folder).as_posix())
        else:
            by_place.setdefault(place, {}).setdefault(split, []).append(path)
    if len(by_place) > 1:
        places = [place.relative_to(folder).as_posix() for place in by_place]
        raise DataError(
            problem(
                "a folder must hold one data set",
                got=f"splits in {len(places)} places: {', '.join(places[:5])}",
                remedy=f"name one of them, such as {folder.name}/{places[-1]}; a hub data set is fetched into a local "
                "folder first",
                where=f"folder {folder.name}",
            )
        )
    found = next(iter(by_place.values()), {})
    for split, files in found.items():
        _check_shards(split, files, folder)
    return found, unread


def _check_shards(split: str, files: list[Path], folder: Path) -> None:
    """Refuse a split of which a numbered file is missing: a broken download would pass for a smaller data set."""
    shards: dict[int, set[int]] = {}
    for path in files:
        if match := _SHARD.search(path.stem):
            shards.setdefault(int(match.group(2)), set()).add(int(match.group(1)))
    for total, present in shards.items():
        # No loop over `total`: a name may claim any number.
        if len(shards) > 1 or len(present) != total:
            raise DataError(
                problem(
                    f"the {split} split must have all its {total} numbered files",
                    got=f"{len(present)} of them" if len(shards) == 1 else f"files of sets of {sorted(shards)}",
                    remedy="fetch the source again into an empty folder",
                    where=f"folder {folder.name}",
                )
            )


def _features(schema: Any) -> dict[str, Any]:
    """Return the `features` of the schema's `huggingface` metadata, or nothing where it is absent or malformed."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(feature: Any) -> tuple[str, ...] | None:
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return tuple(names) if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None


def _find_columns(schema: Any, image: str | None, label: str | None, where: str) -> _Columns:
    features = _features(schema)
    of_type = {
        kind: [
            name
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == kind and name in schema.names
        ]
        for kind in ("Image", "ClassLabel")
    }
    if image is None:
        images = of_type["Image"] or [field.name for field in schema if _holds_bytes(field.type)]
        image = _only(images, "image", schema, where)
    _check_present(image, "image", schema, where)
    if not _holds_bytes(schema.field(image).type):
        raise DataError(
            problem(
                "the image column must hold encoded images: binary, or a struct with the binary field bytes",
                got=f"column {image!r} of type {schema.field(image).type}",
                remedy="name another column with image_column",
                where=where,
            )
        )
    if label is None:
        others = [field for field in schema if field.name != image]
        labels = (
            of_type["ClassLabel"]
            or [name for name in _LABEL_NAMES if name in schema.names and name != image]
            or [field.name for field in others if _is_label(field.type)]
        )
        preferred = next((name for name in _LABEL_NAMES[:2] if name in labels), None)
        label = preferred or _only(labels, "label", schema, where)
    _check_present(label, "label", schema, where)
    kind = schema.field(label).type
    if not _is_label(kind):
        raise DataError(
            problem(
                "labels must be integers, or strings that name classes",
                got=f"column {label!r} of type {kind}",
                remedy="store class indices as int64, or name another column with label_column",
                where=where,
            )
        )
    return _Columns(image, label, None if _is_string(kind) else _class_names(features.get(label)))


def _only(names: list[str], what: str, schema: Any, where: str) -> str:
    if len(names) == 1:
        return names[0]
    raise DataError(
        problem(
            f"there must be one {what} column to read",
            got=f"{len(names)}: {', '.join(names)}" if names else f"none among {', '.join(schema.names)}",
            remedy=f"name it with {what}_column",
            where=where,
        )
    )


def _check_present(name: str, what: str, schema: Any, where: str) -> None:
    if schema.names.count(name) != 1:
        raise DataError(
            problem(
                f"the {what} column must be one of {', '.join(schema.names)}",
                got=f"{name!r}{near_misses(name, schema.names)}",
                remedy=f"give one of these as {what}_column",
                where=where,
            )
        )


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_string(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind)) or _is_string(kind)
