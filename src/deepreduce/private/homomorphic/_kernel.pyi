import numpy as np
from numpy.typing import NDArray

def supported() -> bool: ...
def sums(
    inputs: NDArray[np.uint64],
    weights: NDArray[np.uint64],
    pairs: NDArray[np.uint32],
    primes: NDArray[np.uint64],
    out: NDArray[np.uint64],
    degree: int,
    /,
) -> bool: ...
