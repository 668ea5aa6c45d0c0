"""The compiled kernel of this room, `native/homomorphic.c`, if there is one. numpy and SEAL do the same without it."""

from __future__ import annotations

from typing import Any, Literal

from ...errors import UsageError, problem

try:
    from . import _kernel
except ImportError:  # not built: no compiler at installation
    _kernel = None  # type: ignore[assignment]

Name = Literal["kernel", "seal"]


def usable(built: Any) -> Any:
    """Return a built kernel if it runs on this processor, else None.

    Raises:
        UsageError: it was built from the sources of another release.
    """
    if built is None or not built.supported():
        return None
    if not hasattr(built, "taps"):
        raise UsageError(
            problem(
                "the compiled kernel must be of the same release as the package",
                got="an older one",
                remedy="build it again: make setup, or pip install . once more",
                where=built.__file__,
            )
        )
    return built


kernel = usable(_kernel)


def available_backends() -> tuple[Name, ...]:
    """Return the names of the ways to compute that run here, the default first."""
    return ("kernel", "seal") if kernel is not None else ("seal",)


def default_backend() -> Name:
    """Return the name of the way that is used when none is named."""
    return available_backends()[0]


def choose(backend: Name | None) -> Name:
    """Return the name of a way to compute, the default one if none is named.

    Raises:
        UsageError: it does not run here.
    """
    here = available_backends()
    if backend is not None and backend not in here:
        raise UsageError(
            problem(
                f"ciphertexts are computed by one of {', '.join(here)} here",
                got=backend,
                remedy="leave it out; or build the kernel, which needs a C compiler and a 64-bit processor",
            )
        )
    return here[0] if backend is None else backend
