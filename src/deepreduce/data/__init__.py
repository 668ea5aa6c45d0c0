"""Images and labels of a user as tensors: read from a source, split, and checked.

A newcomer reads `dataset.py` (what comes out), then `sources.py` (where it comes from). `splits.py` holds images out,
`labels.py` makes class indices, `parquet.py` and `folders.py` read files, `decode.py` turns bytes into pixels, and
`cache.py` keeps the pixels for the next time. Nothing here is ever unpickled.
"""

from deepreduce.data.dataset import Dataset, from_arrays
from deepreduce.data.sources import load
from deepreduce.data.split import Split

__all__ = ["Dataset", "Split", "from_arrays", "load"]
