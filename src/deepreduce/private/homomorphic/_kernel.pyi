import numpy as np
from numpy.typing import NDArray

_Octets = bytes | memoryview | NDArray[np.uint8]

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
def cut(
    residues: NDArray[np.uint64],
    primes: NDArray[np.uint64],
    inverse: int,
    drop: int,
    size: int,
    out: bytearray,
    /,
) -> None: ...
def restore(data: _Octets, primes: NDArray[np.uint64], drop: int, size: int, out: NDArray[np.uint64], /) -> bool: ...
def centred(octets: _Octets, primes: NDArray[np.uint64], bits: int, out: NDArray[np.uint64], /) -> None: ...
