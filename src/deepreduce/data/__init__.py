"""Images and labels of a user as tensors: read from a source, split, and checked.

A newcomer reads `dataset.py` (what comes out), then `sources.py` (where it comes from). `splits.py` holds images out,
`labels.py` makes class indices, `parquet.py` and `folders.py` read files, `decode.py` turns bytes into pixels, and
`cache.py` keeps the pixels for the next time. Nothing here is ever unpickled.

Names are imported when they are first used: a client of private inference decodes images without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepreduce.data.dataset import Dataset, from_arrays
    from deepreduce.data.sources import load
    from deepreduce.data.split import Split

_HOMES = {"Dataset": "dataset", "from_arrays": "dataset", "load": "sources", "Split": "split"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


__all__ = ["Dataset", "Split", "from_arrays", "load"]
