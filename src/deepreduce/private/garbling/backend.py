"""Which code does the garbling: the compiled kernel, or numpy over OpenSSL. Both give the same bytes.

The kernel is used if it was built, loads, finds AES instructions, and encrypts the example of FIPS-197 rightly.
`describe` says which of this was so; nothing else depends on the choice but speed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import DeepReduceError, UsageError, missing_extra, problem
from . import _numpy
from .program import Program

Name = Literal["vaes", "aes", "numpy"]
NAMES: tuple[Name, ...] = ("vaes", "aes", "numpy")

_LEVELS = {"aes": 1, "vaes": 2}
# FIPS-197, appendix C.1.
_EXAMPLE_KEY = bytes(range(16))
_EXAMPLE_PLAIN = bytes(i * 0x11 for i in range(16))
_EXAMPLE_CIPHER = bytes.fromhex("69c4e0d86a7b0430d8cdb78070b4c55a")

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]


class BackendError(DeepReduceError):
    """No code for AES can be trusted on this machine, or the one that was asked for is not there."""


@dataclass(frozen=True)
class Backend:
    """One way to garble and evaluate; `engine` checks the arrays, and the kernel checks them once more."""

    name: Name

    def keystream(self, key: bytes, counter: int, out: Bytes) -> None:
        """Fill `out` with AES of counter, counter + 1, ..."""
        if self.name == "numpy":
            _numpy.keystream(key, counter, out)
        else:
            _kernel().keystream(key, counter, out)

    def offset_labels(self, labels: Bytes, numbers: Words, bits: int, delta: bytes) -> None:
        """Add `delta` to the labels whose bit of `numbers` is 1, in place."""
        if self.name == "numpy":
            _numpy.offset_labels(labels, numbers, bits, delta)
        else:
            _kernel().offset_labels(labels, np.ascontiguousarray(numbers), bits, delta)

    def garble(
        self,
        program: Program,
        instances: int,
        first_block: int,
        key: bytes,
        delta: bytes,
        garbler_zero: Bytes,
        evaluator_zero: Bytes,
        tables: Bytes,
        decoding: Bytes,
        offsets: Words,
    ) -> None:
        """Fill the last three arrays."""
        if self.name == "numpy":
            arrays = (garbler_zero, evaluator_zero, tables, decoding, offsets)
            _numpy.garble(program, instances, first_block, key, delta, *arrays)
            return
        _kernel().garble(
            *_described(program),
            *(instances, first_block, key, _LEVELS[self.name], delta),
            *(garbler_zero, evaluator_zero, tables, decoding, offsets),
        )

    def evaluate(
        self,
        program: Program,
        instances: int,
        first_block: int,
        key: bytes,
        garbler_labels: Bytes,
        evaluator_labels: Bytes,
        tables: Bytes,
        colours: Bytes,
        words: Words,
    ) -> None:
        """Fill the last two arrays."""
        if self.name == "numpy":
            arrays = (garbler_labels, evaluator_labels, tables, colours, words)
            _numpy.evaluate(program, instances, first_block, key, *arrays)
            return
        _kernel().evaluate(
            *_described(program),
            *(instances, first_block, key, _LEVELS[self.name]),
            *(garbler_labels, evaluator_labels, tables, colours, words),
        )


@functools.lru_cache(maxsize=4)
def get_backend(name: Name | None = None) -> Backend:
    """Return a backend.

    Args:
        name: "vaes" (AES on four blocks per instruction), "aes" or "numpy"; None takes the fastest that is there.

    Raises:
        UsageError: the name is unknown.
        BackendError: the backend that was asked for is not available here; the message says why.
        MissingExtraError: numpy is left and the package `cryptography` is not installed.
    """
    if name is not None and name not in NAMES:
        raise UsageError(problem(f"a garbling backend is one of {NAMES}", got=name, remedy="choose one, or None"))
    module, reason = _load_kernel()
    if name != "numpy" and module is not None:
        vaes = module.features()["vaes"]
        if name is None:
            return Backend("vaes" if vaes else "aes")
        if name == "aes" or vaes:
            return Backend(name)
        reason = "the processor has no VAES with AVX-512"
    if name not in (None, "numpy"):
        raise BackendError(
            problem(f"the garbling backend {name!r} is available", got=reason, remedy="use another or None")
        )
    try:
        out = np.zeros(16, np.uint8)
        _numpy.encrypt(_EXAMPLE_KEY, np.frombuffer(_EXAMPLE_PLAIN, np.uint8), out)
    except ImportError as error:
        raise missing_extra("cryptography", "private", purpose="garbling without the compiled kernel") from error
    if out.tobytes() != _EXAMPLE_CIPHER:
        raise BackendError(
            problem(
                "OpenSSL's AES meets FIPS-197", got=out.tobytes().hex(), remedy="reinstall the package cryptography"
            )
        )
    return Backend("numpy")


def describe() -> dict[str, str]:
    """Say which backend is used and why, for `deepreduce env`.

    Returns:
        "backend": its name or "none"; "kernel": "loaded" or why not.
    """
    _, reason = _load_kernel()
    try:
        name: str = get_backend().name
    except DeepReduceError as error:
        name = f"none ({error})"
    return {"backend": name, "kernel": reason or "loaded"}


@functools.cache
def _load_kernel() -> tuple[ModuleType | None, str]:
    """The compiled module, or None and the reason."""
    try:
        from . import _kernel as module
    except ImportError as error:
        return None, f"the compiled kernel is not there ({error})"
    if not module.features()["aes"]:
        return None, "the processor has no AES instructions"
    out = np.zeros(16, np.uint8)
    module.encrypt(_EXAMPLE_KEY, _EXAMPLE_PLAIN, out)
    if out.tobytes() != _EXAMPLE_CIPHER:
        return None, "the compiled kernel fails the example of FIPS-197"
    return module, ""


def _kernel() -> ModuleType:
    module, reason = _load_kernel()
    if module is None:
        raise BackendError(problem("the compiled kernel is available", got=reason, remedy="use the backend 'numpy'"))
    return module


def _described(program: Program) -> tuple[object, ...]:
    sizes = (program.slots, program.garbler_wires, program.evaluator_wires, program.output_bits)
    return (program.operations, program.weights, program.constants, program.word_bits, sizes)
