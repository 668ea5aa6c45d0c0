"""Labels of inputs and where they come from.

The garbler's own labels come from a seed, so that it stores 16 bytes per layer and not 16 bytes per wire. The
evaluator's come from correlated oblivious transfer: with the garbler's offset as the choice vector of the extension,
the sender's block is the label of 0 and the receiver's block is the label of its bit.

One convention more: **the evaluator's input labels show their value as their colour.** The evaluator knows its own
bits, so nothing is revealed; and gates with such an input cost half. Both sides get there alone, from what correlated
OT gives: the offset has lowest bit 1, hence clearing the sender's lowest bit and setting the receiver's to its choice
keeps receiver = sender XOR bit * offset.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError, problem
from ..circuits import Circuit
from ..circuits.circuit import named_words
from .backend import Backend, get_backend
from .types import LABEL_BYTES, Bytes, GarblingError, array_of, key_of, offset_of


def new_start() -> bytes:
    """Draw the start of the tweaks of one offset: 16 random bytes, public."""
    return secrets.token_bytes(LABEL_BYTES)


def sender_to_zero_labels(sender: Bytes) -> Bytes:
    """Turn the sender's blocks of correlated OT into labels of 0, in place: their lowest bit becomes 0.

    Args:
        sender: uint8 [instances, wires, 16], written to.

    Returns:
        The same array.

    Raises:
        GarblingError: another shape or type.
    """
    _labels_of(sender)[..., 0] &= 0xFE
    return sender


def receiver_to_labels(receiver: Bytes, bits: Bytes) -> Bytes:
    """Turn the receiver's blocks of correlated OT into labels of its bits, in place: their lowest bit becomes the bit.

    Args:
        receiver: uint8 [instances, wires, 16], written to.
        bits: uint8 [instances, wires], the choice bits, 0 or 1.

    Returns:
        The array `receiver`.

    Raises:
        GarblingError: another shape or type, or a bit that is neither 0 nor 1.
    """
    first = _labels_of(receiver)[..., 0]
    bits = array_of(bits, first.shape, "the evaluator's choice")
    if bits.size and bits.max() > 1:
        raise GarblingError(problem("a bit is 0 or 1", got=int(bits.max()), remedy="use input_bits"))
    first &= 0xFE
    first |= bits
    return receiver


def garbler_labels(
    circuit: Circuit,
    values: Mapping[str, NDArray[np.integer]],
    *,
    seed: bytes,
    delta: bytes | Bytes,
    backend: Backend | None = None,
) -> Bytes:
    """The labels of the garbler's input values: what it sends online.

    Call it once per seed and instance. The labels of two different values of one wire differ by the offset, and whoever
    has both has the offset and with it every secret of the session.

    Args:
        circuit: the circuit.
        values: for each of the garbler's groups integers [instances] or [instances, count].
        seed: from `Garbled.seed`.
        delta: the garbler's offset, 16 bytes or uint8 [16].
        backend: None takes the fastest.

    Returns:
        uint8 [instances, garbler's wires, 16].

    Raises:
        UsageError: groups are missing or have the wrong shape.
        GarblingError: seed or offset are malformed.
    """
    offset, seed = offset_of(delta), key_of(seed, "the seed")
    backend = backend or get_backend()
    words = named_words(circuit, "garbler", values)
    if not words:
        raise UsageError(problem("the garbler has inputs", got="none in this circuit", remedy="send nothing"))
    instances = len(next(iter(words.values())))
    labels = np.empty((instances, circuit.wires_of("garbler"), LABEL_BYTES), np.uint8)
    backend.keystream(seed, 0, labels.reshape(-1))
    at = 0
    for group in circuit.groups("garbler"):
        part = labels[:, at : at + group.wires]
        whole = np.ascontiguousarray(part)  # the array itself where the garbler has one group
        backend.offset_labels(whole, words[group.name], group.bits, offset)
        if whole is not part and not np.shares_memory(whole, part):
            part[...] = whole
        at += group.wires
    return labels


def _labels_of(array: Bytes) -> Bytes:
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != LABEL_BYTES:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise GarblingError(
            problem(
                "labels are a uint8 array [instances, wires, 16]", got=got, remedy="reshape the blocks of the transfer"
            )
        )
    return array
