"""Which tensors the client's share masks evenly: those may be truncated, others may not.

The client's share of an image, of a weighted layer's output and of what leaves a circuit is uniform in its ring. Local
steps carry that on, or lose it: zeros that are padded in, multiples of a power of two, truncated shares, and sums in
which a mask meets itself are not uniform. A truncation of those would fail more often than planned, or always.

The rules are safe, not complete: where they say that a share is uniform it is, element for element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .operations import Circuit, Concatenate, Convolution, Gather, Matrix, Reshape, Sum


@dataclass(frozen=True)
class Masking:
    """What is known of the client's share of a tensor.

    Attributes:
        uniform: whether every element is uniform in the ring.
        sources: the tensors whose masks it is made of, one bit each.
    """

    uniform: bool
    sources: int


def masked_by(op: object, inputs: Sequence[Masking], source: int, shifts: Sequence[int]) -> Masking:
    """Return what is known of a step's output.

    Args:
        op: the operation; anything that is none, like a graph's input, draws a new mask.
        inputs: of the tensors that it reads.
        source: the bit of its output.
        shifts: of a sum or concatenation: by which powers of two the inputs are multiplied; else not looked at.
    """
    drawn = isinstance(op, (Convolution, Matrix)) or (
        isinstance(op, Circuit) and (op.kept is None or op.rest_in_circuit)
    )
    if drawn or not inputs:
        return Masking(True, source)
    sources = shared = 0
    for each in inputs:
        shared |= sources & each.sources
        sources |= each.sources
    if isinstance(op, Sum):  # one input is enough whose masks are in none of the others
        alone = [each.uniform and not each.sources & shared for each in inputs]
        return Masking(any(own and not shift for own, shift in zip(alone, shifts, strict=True)), sources)
    if isinstance(op, Concatenate):
        return Masking(all(each.uniform for each in inputs) and not any(shifts), sources)
    if isinstance(op, Circuit):  # what is kept has a new mask, the rest drops bits of the one that it has
        return Masking(inputs[0].uniform, sources | source)
    if isinstance(op, Gather):
        return Masking(inputs[0].uniform and bool((op.index >= 0).all()), sources)
    return Masking(inputs[0].uniform and isinstance(op, Reshape), sources)
