"""Small data sets for the tests: noise, labels, tables, folders, and a look at refusals."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deepreduce.errors import DataError, DeepReduceError, UsageError


def encoded(pixels: np.ndarray, form: str = "PNG", mode: str | None = None) -> bytes:
    """Encode pixels [h, w] or [h, w, 3]; `mode` converts before saving."""
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, form)
    return stream.getvalue()


def noise(count: int, *, seed: int = 0, shape: tuple[int, ...] = (4, 5, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def table(
    pixels: np.ndarray | list[bytes | None],
    labels: object,
    *,
    names: list[str] | None = None,
    image: str = "img",
    label: str = "label",
    extra: dict[str, object] | None = None,
) -> pa.Table:
    """Make a table as the hub stores it; `names` puts the features into the schema."""
    items = [item if item is None or isinstance(item, bytes) else encoded(item) for item in pixels]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": item, "path": None} for item in items]
    made = pa.table({image: pa.array(rows, kind), label: labels, **(extra or {})})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return made


def labels_of(count: int, classes: int) -> list[int]:
    return [row % classes for row in range(count)]


def write_parquet(folder: Path, **options: object) -> Path:
    """Write 40 training images in two files and 8 test images, of the classes cat, dog, eel and fox."""
    names = ["cat", "dog", "eel", "fox"]
    for file in range(2):
        made = table(noise(20, seed=file), labels_of(20, 4), names=names, **options)  # type: ignore[arg-type]
        pq.write_table(made, folder / f"train-0000{file}-of-00002.parquet")
    made = table(noise(8, seed=9), labels_of(8, 4), names=names, **options)  # type: ignore[arg-type]
    pq.write_table(made, folder / "test-00000-of-00001.parquet")
    return folder


def write_folders(folder: Path, splits: dict[str, int]) -> Path:
    """Write so many images of each of two classes into `split/CLASS/`."""
    for number, (split, count) in enumerate(splits.items()):
        for index, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for row, pixels in enumerate(noise(count, seed=10 * number + index)):
                (folder / split / name / f"{row:03}.png").write_bytes(encoded(pixels))
    return folder


def refusal(call: Callable[[], object], kind: type[DeepReduceError] = DataError) -> str:
    """Return the message of the error that the call raises, after a look at its parts."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert ". Got: " in message
    assert ". Do: " in message
    return message


def misuse(call: Callable[[], object]) -> str:
    """Return the message of the UsageError that the call raises: it names the option, too."""
    message = refusal(call, UsageError)
    assert ". Where: " in message
    return message
