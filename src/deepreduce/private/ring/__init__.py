"""Fixed-point numbers and arithmetic mod 2^k, on shares and in the clear.

A ring element is a `uint64` below 2^k, k from 1 to 62; a signed value v with -2^(k-1) <= v < 2^(k-1) is held as v mod
2^k. Everything here is exact; nothing here knows of networks.
"""

from ._backends import available_backends, default_backend
from ._threads import set_threads, threads
from .arithmetic import (
    MAX_RING_BITS,
    UNIFORM_BITS,
    Words,
    drop_client,
    drop_server,
    random_words,
    reconstruct,
    reduce,
    shift_left,
    signed,
    split,
    truncate_client,
    truncate_server,
    unsigned,
)
from .fixed_point import decode, encode, magnitude_bits
from .products import ExactConvolution, ExactMatrix

__all__ = [
    "MAX_RING_BITS",
    "UNIFORM_BITS",
    "ExactConvolution",
    "ExactMatrix",
    "Words",
    "available_backends",
    "decode",
    "default_backend",
    "drop_client",
    "drop_server",
    "encode",
    "magnitude_bits",
    "random_words",
    "reconstruct",
    "reduce",
    "set_threads",
    "shift_left",
    "signed",
    "split",
    "threads",
    "truncate_client",
    "truncate_server",
    "unsigned",
]
