"""What garbling takes and gives: the tweak, the garbler's and the evaluator's results, and the checks of arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...errors import DeepReduceError, problem

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]

LABEL_BYTES = 16
MAX_BUNDLES = 1 << 48
MAX_LAYERS = 1 << 16


class GarblingError(DeepReduceError):
    """Labels, tables or keys do not have the type, size or form that the circuit asks for."""


@dataclass(frozen=True)
class Tweak:
    """Names one garbling under one offset, so that no AES key is ever used for two.

    The key of a hash is `start` XOR (bundle, layer, block of instances, hash of the circuit), the latter four side by
    side in 128 bits. So keys differ as long as the caller never garbles twice with the same (start, bundle, layer)
    under one offset.

    Attributes:
        start: 16 random bytes, drawn once per offset (`new_start`), public. Different offsets get different starts, so
            that an attacker on many sessions cannot try one key against all of them.
        bundle: number of the one-time bundle under this offset, 0 to 2^48 - 1. Never the same twice.
        layer: number of the layer in the bundle, 0 to 2^16 - 1.
    """

    start: bytes
    bundle: int
    layer: int

    def __post_init__(self) -> None:
        key_of(self.start, "the start of a tweak")
        if not 0 <= self.bundle < MAX_BUNDLES or not 0 <= self.layer < MAX_LAYERS:
            raise GarblingError(
                problem(
                    "a bundle's number is below 2^48 and a layer's below 2^16",
                    got=(self.bundle, self.layer),
                    remedy="begin a new session with a new offset",
                )
            )

    def key_base(self) -> bytes:
        """The key of hash 0 in block 0: bytes 0-3 take the hash, 4-7 the block, 8-9 the layer, 10-15 the bundle."""
        number = self.layer << 64 | self.bundle << 80
        return (int.from_bytes(self.start, "little") ^ number).to_bytes(16, "little")


@dataclass(frozen=True, eq=False)
class Garbled:
    """What the garbler has after garbling.

    Attributes:
        tables: uint8 [instances * table bytes of the circuit], for the evaluator. Instances 64 i to 64 j stand
            contiguously.
        seed: 16 bytes, secret: its own inputs' labels come from it (`garbler_labels`). Use it for one inference only.
        decoding: uint8 [instances, output bits], 0 or 1: XOR with the evaluator's colours gives the values.
        offsets: uint64 [instances, words]: subtracted from the evaluator's words modulo 2^bits gives the values, and
            what factors add to them.
        factors: uint64 [instances, words that have one]: what multiplies the bits of `WordOutput.multiplied`, uniform
            modulo 2^bits, secret.
    """

    tables: Bytes
    seed: bytes = field(repr=False)
    decoding: Bytes = field(repr=False)
    offsets: Words = field(repr=False)
    factors: Words = field(repr=False)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What the evaluator has after evaluation.

    Attributes:
        colours: uint8 [instances, output bits], 0 or 1: the values, hidden by the decoding bits.
        words: uint64 [instances, words]: the values, hidden by the offsets. Subtract the next mask before sending them
            back, modulo 2^bits of the word.
    """

    colours: Bytes
    words: Words


def key_of(value: bytes, what: str) -> bytes:
    """Check that something is 16 bytes."""
    if not isinstance(value, bytes) or len(value) != LABEL_BYTES:
        # The value itself may be secret: only its type and length are told.
        got = f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__
        raise GarblingError(problem(f"{what} is 16 bytes", got=got, remedy="take it from the function that draws it"))
    return value


def offset_of(delta: bytes | Bytes) -> bytes:
    """Check the garbler's offset, 16 bytes or uint8 [16] as the oblivious transfer has it."""
    if isinstance(delta, np.ndarray) and delta.dtype == np.uint8 and delta.shape == (LABEL_BYTES,):
        delta = delta.tobytes()
    if not isinstance(delta, bytes) or key_of(delta, "the garbler's offset")[0] & 1 != 1:
        raise GarblingError(
            problem(
                "the garbler's offset is 16 bytes with lowest bit 1, so that the two labels of a wire differ in colour",
                got="another type" if not isinstance(delta, bytes) else "lowest bit 0",
                remedy="take it from the oblivious transfer",
            )
        )
    return delta


def array_of(array: Bytes, shape: tuple[int, ...], what: str) -> Bytes:
    """Check type, shape and layout of an array of bytes."""
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.shape != shape:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise GarblingError(
            problem(
                f"{what} is a uint8 array of shape {shape}", got=got, remedy="both parties must use the same circuit"
            )
        )
    return np.ascontiguousarray(array)
