from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

_Shape = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int]

class _Features(TypedDict):
    avx512: bool
    fma: bool

def features() -> _Features: ...
def convolve(
    x: NDArray[np.uint64],
    weights: NDArray[np.int16] | NDArray[np.int32],
    out: NDArray[np.uint64],
    shape: _Shape,
    threads: int,
    one_by_one: bool,
    /,
) -> None: ...
