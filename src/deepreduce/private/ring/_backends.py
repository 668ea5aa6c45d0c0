"""The ways to multiply in a ring, and which one is used. All give the same words.

"avx512" and "fma" are the compiled `native/ring.c`: products of 64-bit or 32-bit words, which takes AVX-512, and of
limbs in float64, which takes the fused multiply-add of AVX2 or of any AArch64. "torch" is PyTorch's float64 arithmetic
on the same limbs. The first that runs here is the default.
"""

from __future__ import annotations

from typing import Literal

from ...errors import UsageError, problem

try:
    from . import _kernel
except ImportError:  # not built: no compiler at installation, or another processor
    _kernel = None  # type: ignore[assignment]

Name = Literal["avx512", "fma", "torch"]
NAMES: tuple[Name, ...] = ("avx512", "fma", "torch")


def available_backends() -> tuple[Name, ...]:
    """Return the names of the backends that run here, the default first."""
    here = {"torch": True, **(_kernel.features() if _kernel is not None else {})}
    return tuple(name for name in NAMES if here.get(name))


def default_backend() -> Name:
    """Return the name of the backend that is used when none is named."""
    return available_backends()[0]


def choose_backend(name: Name | None) -> Name:
    """Return this name, or the default one for None.

    Raises:
        UsageError: it does not run here, or nowhere.
    """
    here = available_backends()
    if name is None:
        return here[0]
    if name not in here:
        raise UsageError(
            problem(
                f"products in a ring are computed by one of {', '.join(here)} here",
                got=name,
                remedy="leave it out; or build the kernel, which needs a C compiler, and AVX2, AVX-512 or AArch64",
            )
        )
    return name
