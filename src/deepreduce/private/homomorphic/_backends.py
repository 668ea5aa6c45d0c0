"""The compiled kernel of this room, `native/homomorphic.c`, if there is one. numpy and SEAL do the same without it."""

from __future__ import annotations

from typing import Literal

try:
    from . import _kernel
except ImportError:  # not built: no compiler at installation
    _kernel = None  # type: ignore[assignment]

Name = Literal["kernel", "seal"]

kernel = _kernel if _kernel is not None and _kernel.supported() else None


def available_backends() -> tuple[Name, ...]:
    """Return the names of the ways to compute that run here, the default first."""
    return ("kernel", "seal") if kernel is not None else ("seal",)


def default_backend() -> Name:
    """Return the name of the way that is used when none is named."""
    return available_backends()[0]
