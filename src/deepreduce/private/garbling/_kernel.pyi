from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

class _Features(TypedDict):
    aes: bool
    vaes: bool

_Sizes = tuple[int, int, int, int]
_Array = NDArray[np.uint8] | NDArray[np.uint64] | NDArray[np.int32]
_Bytes = bytes | memoryview | _Array

def features() -> _Features: ...
def encrypt(key: _Bytes, data: _Bytes, out: _Array, /) -> None: ...
def keystream(key: _Bytes, counter: int, out: _Array, /) -> None: ...
def offset_labels(labels: _Array, numbers: _Bytes, bits: int, delta: _Bytes, /) -> None: ...
def garble(
    ops: _Bytes,
    weights: _Bytes,
    constants: _Bytes,
    word_bits: _Bytes,
    sizes: _Sizes,
    instances: int,
    first_block: int,
    key: _Bytes,
    level: int,
    delta: _Bytes,
    garbler_zero: _Bytes,
    evaluator_zero: _Bytes,
    tables: _Array,
    decoding: _Array,
    offsets: _Array,
    /,
) -> None: ...
def evaluate(
    ops: _Bytes,
    weights: _Bytes,
    constants: _Bytes,
    word_bits: _Bytes,
    sizes: _Sizes,
    instances: int,
    first_block: int,
    key: _Bytes,
    level: int,
    garbler_labels: _Bytes,
    evaluator_labels: _Bytes,
    tables: _Bytes,
    colours: _Array,
    words: _Array,
    /,
) -> None: ...
