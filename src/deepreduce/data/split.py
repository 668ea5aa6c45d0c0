"""Images with their labels: what every source gives and every training takes."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int64, UInt8
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: pixels 0..255, contiguous, on the CPU; they may be mapped from a file of the cache: do not write to
            them.
        labels: class indices in [0, classes).
    """

    images: UInt8[Tensor, "n channels height width"]
    labels: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return int(self.labels.shape[0])
