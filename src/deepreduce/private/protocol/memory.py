"""What the server holds of a batch online, and how many images it works on at once. All of it is public.

Between two messages the server holds the shares that are still to be read, per image, in the smallest type of their
ring. A linear layer needs many times that while it is computed, most of all without the compiled kernel of `ring`:
copies in float64, and of its input one for every tap of the layer's kernel. So a round takes one *piece* of the batch
after the other: linear layers, then the labels of these images, which leave before the next piece is begun.

    held    per image: the input, outputs of circuits, linear outputs that a later round reads, and from a lookup's
            question to its reply what was asked: in the place of the output, and a byte beside it
    WORDS   per image: the message of one round
    piece   as many images as `PIECE_BYTES` hold, at least one

The allocator need not use what one piece freed for the next one: small arrays go into the gap, the columns no longer
fit, and gap after gap the server would take as much as for the whole batch at once. So freed memory goes back to the
system whenever pieces have freed `KEPT_BYTES` (`give_back`): more than that the allocator does not keep of them.

Cutting changes no message. Images go in their order as they would without it, the online phase of the server draws
nothing at random, and what it reads of a bundle is read in the piece of its image.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..program import PublicProgram, Step, working_bytes
from .packing import packed_bytes, word_type
from .units import OnlineRound

PIECE_BYTES = 32 << 20
"""Memory for the linear layers of one piece. Four images of a ResNet's first stage at 32x32: with more of them, the
columns of a convolution fall out of the processor's cache, and it takes up to three times as long."""

KEPT_BYTES = 64 << 20
"""What pieces may free before it goes back to the system, which costs about as much as to write all of it once more."""

_WORD_BYTES = 8

_MAPPED_BYTES = 1 << 20
"""What is held from this size on comes from the system and goes back there. On the heap, where the allocator puts it
between what pieces need, it leaves gaps that are not used again: several times the memory that is in use."""


@dataclass(frozen=True)
class RoundMemory:
    """Of one round, or of the linear steps after the last one.

    Attributes:
        linear: the round's linear steps.
        drops: for each of them the tensors of the piece that nothing in this round reads after it.
        keeps: outputs of linear steps that a later round reads.
        reads: what the round's circuits read.
        rest: circuits that leave some elements out; the server keeps its shares of those.
        forgets: tensors that are read in this round for the last time.
        image_bytes: working memory for one image of a piece, at most.
    """

    linear: tuple[Step, ...]
    drops: tuple[frozenset[int], ...]
    keeps: frozenset[int]
    reads: frozenset[int]
    rest: tuple[Step, ...]
    forgets: frozenset[int]
    image_bytes: int

    @property
    def piece_images(self) -> int:
        """How many images are worked on at once, at least 1."""
        return max(1, PIECE_BYTES // max(1, self.image_bytes))

    def pieces(self, images: int) -> list[slice]:
        """Cut a batch, in order."""
        size = self.piece_images
        return [slice(first, min(first + size, images)) for first in range(0, images, size)]


@dataclass(frozen=True)
class ServerMemory:
    """See the module; `Layout.memory`.

    Attributes:
        rounds: one for each of `Layout.rounds`.
        tail: of the linear steps after them.
        held_bytes: shares and messages for one image, at most.
        unit_bytes: what one unit of one image takes, at most; whatever the batch.
    """

    rounds: tuple[RoundMemory, ...]
    tail: RoundMemory
    held_bytes: int
    unit_bytes: int

    def of(self, images: int) -> int:
        """Return the most memory that the server takes for the online phase of some images, in bytes.

        The program with its weights is not counted, nor are the buffers of TLS and of the system.
        """
        largest = max(one.image_bytes * min(images, one.piece_images) for one in (*self.rounds, self.tail))
        return images * self.held_bytes + largest + self.unit_bytes

    def images(self, limit_bytes: int) -> int:
        """Return how many images of one online phase go into some memory: the largest number, at least 1."""
        low, high = 1, max(1, int(limit_bytes) // max(1, self.held_bytes)) + 1
        while high - low > 1:  # `of` only grows
            middle = (low + high) // 2
            low, high = (middle, high) if self.of(middle) <= limit_bytes else (low, middle)
        return low


def server_memory(
    public: PublicProgram, rounds: Sequence[OnlineRound], tail: tuple[Step, ...], unit_bytes: int
) -> ServerMemory:
    """Find out what a program needs.

    Args:
        public: the program.
        rounds: of its layout.
        tail: linear steps after the last round.
        unit_bytes: what the largest unit takes.
    """
    stretches: list[tuple[tuple[Step, ...], tuple[Step, ...]]] = [(one.linear, one.circuits) for one in rounds]
    stretches.append((tail, (public.steps[-1],)))
    last: dict[int, int] = {}
    for number, (steps, readers) in enumerate(stretches):
        last |= {tensor: number for step in (*steps, *readers) for tensor in step.inputs}
    found = []
    for number, (steps, readers) in enumerate(stretches):
        reads = frozenset(tensor for step in readers for tensor in step.inputs)
        keeps = frozenset(step.output for step in steps if last.get(step.output, -1) > number)
        drops = _drops(steps, reads)
        rest = tuple(step for step in readers if _leaves_rest(step))
        forgets = frozenset(tensor for tensor, when in last.items() if when == number)
        size = _working(public, steps, drops, reads)
        found.append(RoundMemory(steps, drops, keeps, reads, rest, forgets, size))
    held = _held(public, rounds, found)
    return ServerMemory(tuple(found[:-1]), found[-1], held, unit_bytes)


def hold(shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """Return zeros for what is held between two messages."""
    size = math.prod(shape) * kind.itemsize
    if size < _MAPPED_BYTES:
        return np.zeros(shape, kind)
    pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # unmapped with the last view of it
    return np.frombuffer(pages, kind).reshape(shape)


def give_back() -> None:
    """Return memory that was freed to the system, if the allocator can be told to: glibc's, in the arenas of all
    threads. Gaps between what is in use go back, too.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim.argtypes = [ctypes.c_size_t]
    return trim


def _leaves_rest(step: Step) -> bool:
    """Tell whether the parties keep their shares of the elements that a circuit leaves out."""
    op = step.circuit
    return op is not None and op.kept is not None and not op.rest_in_circuit


def _drops(steps: Sequence[Step], reads: frozenset[int]) -> tuple[frozenset[int], ...]:
    """Return what can be forgotten of a piece after each step; `reads` is what its circuits read."""
    found: list[frozenset[int]] = []
    needed = set(reads)
    for step in reversed(steps):
        touched = {*step.inputs, step.output}
        found.append(frozenset(touched - needed))
        needed |= set(step.inputs)
    return tuple(reversed(found))


def _working(
    public: PublicProgram, steps: Sequence[Step], drops: Sequence[frozenset[int]], reads: frozenset[int]
) -> int:
    """Return the most bytes that a round takes for one image of a piece, from the first linear step to the labels."""

    def of(*tensors: int) -> dict[int, int]:
        return {tensor: _WORD_BYTES * public.tensors[tensor].size for tensor in tensors}

    alive: dict[int, int] = {}
    most = 0
    for step, dropped in zip(steps, drops, strict=True):
        alive |= of(*step.inputs)
        most = max(most, sum(alive.values()) + working_bytes(public, step))
        alive |= of(step.output)
        for tensor in dropped:
            alive.pop(tensor)
    alive |= of(*reads)
    return max(most, sum(alive.values()) + 3 * max(of(*reads).values()))  # the low bits are dropped from copies


def _held(public: PublicProgram, rounds: Sequence[OnlineRound], memory: Sequence[RoundMemory]) -> int:
    """Return the most bytes that are held for one image: shares, and the message that becomes some of them."""

    def of(tensor: int) -> int:
        form = public.tensors[tensor]
        return word_type(form.ring_bits).itemsize * form.size

    alive = {0: of(0)}
    most = alive[0] + packed_bytes(public.input.size, public.input.ring_bits)
    for one, own in zip(rounds, memory[:-1], strict=True):
        alive |= {tensor: of(tensor) for tensor in (*own.keeps, *(step.output for step in own.rest))}
        asked = {step.output: of(step.output) for step in one.circuits if step.circuit and step.circuit.tested}
        bits = sum(public.tensors[tensor].size for tensor in asked)
        most = max(most, sum((alive | asked).values()) + bits)
        for tensor in own.forgets:
            alive.pop(tensor, None)
        alive |= {step.output: of(step.output) for step in one.circuits}
        most = max(most, sum(alive.values()) + sum(unit.words_bytes for unit in one.units) + bits)
    logits = public.tensors[public.logits]
    return max(most, sum(alive.values()) + packed_bytes(logits.size, logits.ring_bits))
