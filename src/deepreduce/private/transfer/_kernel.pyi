import numpy as np
from numpy.typing import NDArray

_Bytes = NDArray[np.uint8]

def supported() -> bool: ...
def expand(keys: _Bytes, nonces: _Bytes, start: int, out: _Bytes, /) -> None: ...
def extend_receiver(
    field_bits: int,
    keys: _Bytes,
    nonces: _Bytes,
    start: int,
    choices: _Bytes,
    corrections: _Bytes,
    labels: _Bytes,
    /,
) -> None: ...
def extend_sender(
    field_bits: int,
    keys: _Bytes,
    nonces: _Bytes,
    start: int,
    delta: _Bytes,
    corrections: _Bytes,
    labels: _Bytes,
    /,
) -> None: ...
def transpose(rows: _Bytes, out: _Bytes, /) -> None: ...
