"""The two ways to compute an extension, and which one is used.

"kernel" is the compiled `native/transfer.c`; "numpy" is its twin over OpenSSL. Both give the same bytes, so the parties
need not agree on one. The kernel is the default wherever it was built and the processor has AES instructions;
`default_backend` tells which it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deepreduce.errors import near_misses, problem

from . import _numpy
from ._errors import Bytes, TransferError

try:
    from . import _kernel
except ImportError:  # not built: no compiler at installation, or another processor
    _kernel = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Backend:
    """The arithmetic of the extension. All arrays are contiguous uint8; T = 128/k trees; B blocks of 128 transfers.

    Attributes:
        name: "kernel" or "numpy".
        expand: (keys [M, 16], nonces [M, 8], start, blocks) → pseudorandom bytes [M, 16 blocks]: block b of row m is
            AES-128 under keys[m] of nonces[m] followed by start + b as a big-endian 64-bit number.
        extend_receiver: (k, leaves [T, 2^k, 16], nonces [T, 8], start, choice bits packed [B, 16],
            corrections [B, T, 16], labels [128 B, 16]); overwrites the last two.
        extend_sender: (k, leaves by y [T, 2^k, 16], nonces [T, 8], start, delta [16], corrections [B, T, 16],
            labels [128 B, 16]); overwrites the last.
        transpose: rows [128, 16 B] → [128 B, 16], little-endian bit order on both sides.
    """

    name: str
    expand: Callable[[Bytes, Bytes, int, int], Bytes]
    extend_receiver: Callable[[int, Bytes, Bytes, int, Bytes, Bytes, Bytes], None]
    extend_sender: Callable[[int, Bytes, Bytes, int, Bytes, Bytes, Bytes], None]
    transpose: Callable[[Bytes], Bytes]


def available_backends() -> tuple[str, ...]:
    """Return the names of the backends that run here, the default first."""
    return tuple(_BACKENDS)


def default_backend() -> str:
    """Return the name of the backend that is used when none is named: "kernel" where it runs, else "numpy"."""
    return available_backends()[0]


def get_backend(name: str | None = None) -> Backend:
    """Return the backend of this name, or the default one for None; raise TransferError for an unknown name."""
    chosen = _BACKENDS.get(default_backend() if name is None else name)
    if chosen is None:
        raise TransferError(
            problem(
                f"the backend must be one of {', '.join(_BACKENDS)} here",
                got=f"{name!r}{near_misses(str(name), list(_BACKENDS))}",
                remedy="leave it out; or build the kernel, which needs a C compiler and AES instructions",
            )
        )
    return chosen


def _kernel_expand(keys: Bytes, nonces: Bytes, start: int, blocks: int) -> Bytes:
    out = np.empty((len(keys), 16 * blocks), dtype=np.uint8)
    _kernel.expand(keys, nonces, start, out)
    return out


def _kernel_transpose(rows: Bytes) -> Bytes:
    out = np.empty((8 * rows.shape[1], 16), dtype=np.uint8)
    _kernel.transpose(rows, out)
    return out


def _collect() -> dict[str, Backend]:
    found = {}
    if _kernel is not None and _kernel.supported():
        found["kernel"] = Backend(
            "kernel", _kernel_expand, _kernel.extend_receiver, _kernel.extend_sender, _kernel_transpose
        )
    found["numpy"] = Backend("numpy", _numpy.expand, _numpy.extend_receiver, _numpy.extend_sender, _numpy.transpose)
    return found


_BACKENDS = _collect()
