"""Garble and evaluate: pure functions from arrays to arrays.

Half gates (Zahur, Rosulek, Evans, "Two Halves Make a Whole", Eurocrypt 2015) with free XOR (Kolesnikov, Schneider,
ICALP 2008) and point-and-permute (Beaver, Micali, Rogaway, STOC 1990). The work is cut into parts of a few thousand
instances, which stay in the second-level cache and, on request, go to several threads; the parts write to disjoint
memory.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ...errors import problem
from ..circuits import Circuit
from ._numpy import BLOCK
from .backend import Backend, get_backend
from .program import compile_circuit
from .types import LABEL_BYTES, Bytes, Evaluated, Garbled, GarblingError, Tweak, Words, array_of, key_of, offset_of

_PART = 64 * BLOCK
_MAX_INSTANCES = BLOCK << 32


def garble(
    circuit: Circuit,
    *,
    instances: int,
    delta: bytes | Bytes,
    tweak: Tweak,
    evaluator_zero_labels: Bytes,
    threads: int = 1,
    backend: Backend | None = None,
) -> Garbled:
    """Garble many instances of a circuit.

    Args:
        circuit: the circuit.
        instances: how many, at least 1.
        delta: the garbler's offset, 16 bytes or uint8 [16], lowest bit 1, secret: the choice vector of the OT
            extension.
        tweak: names this garbling; never used twice under one offset.
        evaluator_zero_labels: uint8 [instances, evaluator's wires, 16] with lowest bit 0, from `sender_to_zero_labels`.
            Every label is used for one garbling only.
        threads: threads of this process to use, at least 1.
        backend: None takes the fastest. The bytes do not depend on it.

    Returns:
        Tables for the evaluator; seed, decoding bits, offsets and factors for the garbler itself. The labels of the
        garbler's inputs are drawn here, from the operating system's randomness, and come back as the seed.

    Raises:
        GarblingError: something does not have the size or form that the circuit asks for.
    """
    seed = secrets.token_bytes(LABEL_BYTES)
    return _garble_from_seed(circuit, instances, delta, tweak, evaluator_zero_labels, threads, backend, seed)


def _garble_from_seed(
    circuit: Circuit,
    instances: int,
    delta: bytes | Bytes,
    tweak: Tweak,
    evaluator_zero_labels: Bytes,
    threads: int,
    backend: Backend | None,
    seed: bytes,
) -> Garbled:
    """`garble` with the seed given: deterministic, for tests and golden bytes only."""
    program = compile_circuit(circuit)
    offset, seed = offset_of(delta), key_of(seed, "the seed")
    _check_counts(instances, threads)
    shape = (instances, program.evaluator_wires, LABEL_BYTES)
    zero = array_of(evaluator_zero_labels, shape, "the evaluator's labels of 0")
    if bool((zero[..., 0] & 1).any()):
        raise GarblingError(
            problem(
                "the evaluator's labels of 0 have lowest bit 0, because their colour is their value",
                got="one with lowest bit 1",
                remedy="pass the sender's blocks through sender_to_zero_labels",
            )
        )
    chosen, key = backend or get_backend(), tweak.key_base()
    tables = np.empty(instances * program.table_bytes, np.uint8)
    decoding = np.empty((instances, program.output_bits), np.uint8)
    columns = np.empty((instances, len(program.word_bits)), np.uint64)

    def part(start: int, stop: int) -> None:
        own = np.empty((stop - start, program.garbler_wires, LABEL_BYTES), np.uint8)
        chosen.keystream(seed, start * program.garbler_wires, own.reshape(-1))
        chosen.garble(
            program,
            stop - start,
            start // BLOCK,
            key,
            offset,
            own,
            zero[start:stop],
            tables[start * program.table_bytes : stop * program.table_bytes],
            decoding[start:stop],
            columns[start:stop],
        )

    _in_parts(instances, threads, part)
    return Garbled(tables, seed, decoding, _columns(columns, ~program.factors), _columns(columns, program.factors))


def evaluate(
    circuit: Circuit,
    *,
    instances: int,
    tables: Bytes,
    garbler_labels: Bytes,
    evaluator_labels: Bytes,
    tweak: Tweak,
    threads: int = 1,
    backend: Backend | None = None,
) -> Evaluated:
    """Evaluate garbled instances of a circuit.

    Wrong labels or tables give wrong outputs, never a fault: against a garbler that cheats, half gates promise nothing.

    Args:
        circuit: the circuit that was garbled.
        instances: how many, at least 1.
        tables: uint8 [instances * table bytes], received.
        garbler_labels: uint8 [instances, garbler's wires, 16], received.
        evaluator_labels: uint8 [instances, evaluator's wires, 16], from `receiver_to_labels`.
        tweak: the one of the garbling.
        threads: threads of this process to use, at least 1.
        backend: None takes the fastest. The results do not depend on it.

    Returns:
        Colour bits and words.

    Raises:
        GarblingError: an array does not have the type or size that the circuit asks for.
    """
    program = compile_circuit(circuit)
    _check_counts(instances, threads)
    tables = array_of(tables, (instances * program.table_bytes,), "the tables")
    theirs = array_of(garbler_labels, (instances, program.garbler_wires, LABEL_BYTES), "the garbler's labels")
    own = array_of(evaluator_labels, (instances, program.evaluator_wires, LABEL_BYTES), "the evaluator's labels")
    chosen, key = backend or get_backend(), tweak.key_base()
    colours = np.empty((instances, program.output_bits), np.uint8)
    words = np.empty((instances, len(program.word_bits)), np.uint64)

    def part(start: int, stop: int) -> None:
        chosen.evaluate(
            program,
            stop - start,
            start // BLOCK,
            key,
            theirs[start:stop],
            own[start:stop],
            tables[start * program.table_bytes : stop * program.table_bytes],
            colours[start:stop],
            words[start:stop],
        )

    _in_parts(instances, threads, part)
    return Evaluated(colours, _columns(words, ~program.factors))


def decode_bits(colours: Bytes, decoding: Bytes) -> Bytes:
    """The values of bit outputs: XOR of the evaluator's colours and the garbler's decoding bits.

    Args:
        colours: uint8 [instances, output bits], values 0 and 1, from `evaluate`.
        decoding: the same shape, from `garble`.

    Raises:
        GarblingError: the shapes differ, or there is a value other than 0 and 1.
    """
    colours, decoding = (array_of(x, decoding.shape, "a set of colour or decoding bits") for x in (colours, decoding))
    if colours.size and max(colours.max(), decoding.max()) > 1:
        raise GarblingError(problem("a bit is 0 or 1", got=int(colours.max()), remedy="unpack the bits before"))
    return colours ^ decoding


def mask_words(words: Words, masks: Words, circuit: Circuit) -> Words:
    """What the evaluator sends back: its words minus its next masks, in the ring of each word.

    Only the reduced difference hides the value. The words are masked by offsets that the garbler knows, so a difference
    over the integers would tell the garbler whether the mask was the larger one.

    Args:
        words: uint64 [instances, words], from `evaluate`.
        masks: the same shape, uniform below 2^bits of each word, used for nothing else: the evaluator's next shares.
        circuit: the circuit, for the rings.

    Returns:
        uint64 [instances, words], (words - masks) modulo 2^bits of each word.

    Raises:
        GarblingError: types or shapes do not fit, or a mask is outside of its ring.
    """
    rings = _ring_masks(circuit, words, masks)
    if bool((masks > rings).any()):
        raise GarblingError(
            problem(
                "a mask is below 2^bits of its word", got="a larger one", remedy="draw masks uniformly from the ring"
            )
        )
    return (words - masks) & rings


def decode_words(words: Words, offsets: Words, circuit: Circuit) -> Words:
    """The values of word outputs; of words that went through `mask_words`, the garbler's shares of the values.

    Args:
        words: uint64 [instances, words], from the evaluator.
        offsets: the same shape, from `garble`.
        circuit: the circuit, for the rings.

    Returns:
        uint64 [instances, words], (words - offsets) modulo 2^bits of each word.

    Raises:
        GarblingError: types or shapes do not fit.
    """
    return (words - offsets) & _ring_masks(circuit, words, offsets)


def _columns(words: Words, chosen: NDArray[np.bool_]) -> Words:
    return np.ascontiguousarray(words[:, chosen])


def _ring_masks(circuit: Circuit, *arrays: Words) -> Words:
    """2^bits - 1 of every word, after a check of arrays [instances, words]."""
    shape = (len(arrays[0]), len(circuit.words))
    for array in arrays:
        if array.dtype != np.uint64 or array.shape != shape:
            raise GarblingError(
                problem(
                    f"words are a uint64 array {shape}",
                    got=f"{array.dtype} {array.shape}",
                    remedy="both parties must use the same circuit",
                )
            )
    return np.array([2**w.bits - 1 for w in circuit.words], np.uint64)


def _check_counts(instances: int, threads: int) -> None:
    if not 1 <= instances <= _MAX_INSTANCES:
        raise GarblingError(
            problem("a layer has 1 to 2^38 instances", got=instances, remedy="cut it into several layers")
        )
    if threads < 1:
        raise GarblingError(problem("at least one thread works", got=threads, remedy="pass threads=1"))


def _in_parts(instances: int, threads: int, work: Callable[[int, int], None]) -> None:
    """Call work(start, stop) for all parts. They start at multiples of BLOCK: where keys and table groups start."""
    size = min(_PART, max(BLOCK, -(-instances // threads // BLOCK) * BLOCK))
    starts = range(0, instances, size)
    if threads == 1 or len(starts) == 1:
        for start in starts:
            work(start, min(start + size, instances))
        return
    with ThreadPoolExecutor(threads) as pool:
        # list() waits for all parts and raises the first error.
        list(pool.map(lambda start: work(start, min(start + size, instances)), starts))
