"""The two ways to multiply in a ring, and which one is used.

"avx512" is the compiled `native/ring.c`; "torch" is PyTorch's float64 arithmetic on limbs. Both give the same words.
The first is the default wherever it was built and the processor has AVX-512.
"""

from __future__ import annotations

from typing import Literal

from ...errors import UsageError, problem

try:
    from . import _kernel
except ImportError:  # not built: no compiler at installation, or another processor
    _kernel = None  # type: ignore[assignment]

Name = Literal["avx512", "torch"]
NAMES: tuple[Name, ...] = ("avx512", "torch")


def available_backends() -> tuple[Name, ...]:
    """Return the names of the backends that run here, the default first."""
    return NAMES if _kernel is not None and _kernel.supported() else ("torch",)


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
                remedy="leave it out; or build the kernel, which needs a C compiler and a processor with AVX-512",
            )
        )
    return name
