"""The operations of a program: what both parties know of each step.

Every operation but `Circuit` and `Truncation` is linear over the integers mod 2^k, so that each party applies it to its
own share; each truncates its own share, too.
Shapes are of one image, without the batch dimension; feature maps are (channels, height, width), vectors (elements,).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int32]

RELU, RELU6, RESCALE = "relu", "relu6", "rescale"
MAX, MAX_RELU, MAX_RELU6, ARGMAX = "max", "max_relu", "max_relu6", "argmax"
CIRCUIT_KINDS = (RELU, RESCALE, ARGMAX)
"""The kinds that a program has; those of a graph with maxima or ReLU6 are lowered before (`lowering`)."""

SIX = 6
"""Where a ReLU6 is cut."""


@dataclass(frozen=True)
class Convolution:
    """2-D cross-correlation with secret weights: the server's own, offline under encryption for the client's share.

    Attributes:
        weight_shape: outputs, inputs / groups, kernel height, kernel width.
        stride, dilation: (vertical, horizontal).
        padding: zeros at (top, bottom, left, right); a negative number cuts rows or columns away.
        groups: as in PyTorch; equal to the inputs for a depthwise convolution.
    """

    weight_shape: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class Matrix:
    """Product of a secret matrix, `weight_shape` = (outputs, inputs), and a vector."""

    weight_shape: tuple[int, int]


@dataclass(frozen=True)
class SumPool:
    """Sum over windows, times a public whole number; the average's division is in the fraction bits. Local.

    Attributes:
        kernel, stride: (vertical, horizontal).
        padding: as in `Convolution`.
        factor: what the sum is multiplied by, at least 1.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    factor: int = 1


@dataclass(frozen=True)
class Sum:
    """Sum of all inputs, input j times signs[j] · 2^shifts[j] (and the server's bias, if any). Local."""

    shifts: tuple[int, ...]
    signs: tuple[int, ...]


@dataclass(frozen=True)
class Concatenate:
    """The inputs one after another along `axis` of the shape, input j times 2^shifts[j]. Local."""

    axis: int
    shifts: tuple[int, ...]


@dataclass(frozen=True)
class Reshape:
    """The same elements in the same order in the shape of the output. Local."""


@dataclass(frozen=True, eq=False)
class Gather:
    """Output element e is input element index[e], or 0 where index[e] is -1 (flat, row-major). Local."""

    index: Indices

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gather) and _same(self.index, other.index)


@dataclass(frozen=True)
class Truncation:
    """The refresh of a ring without a circuit: each party divides its own share by 2^dropped. Local.

    The output's ring may be of any size, also larger than the input's, because the result is right over the integers:
    the value divided, rounded up or down. But only for all but (|value| + 1) / 2^k of the client's shares, k the
    input's ring bits; for those few it is grossly wrong. See `deepreduce.private.ring`.

    Attributes:
        dropped: low bits that are divided away, from 0 to the ring bits of the input less 1.
    """

    dropped: int


@dataclass(frozen=True, eq=False)
class Circuit:
    """What is not linear, and the exact refresh of a ring: a function of every element, and shares anew.

    For each input element the parties drop `dropped` low bits of their shares (`deepreduce.private.ring`) and keep the
    low `width` of the rest; the sum of the two, read as a signed number of `width` bits, is t. The output is f(t) mod
    2^k' for k' = ring bits of the output tensor, shared anew.

    The parties garble a circuit for it, but for ReLUs with `tested`, which ordinary ones are: there the upper `tested`
    bits alone decide whether t counts as positive (`evaluate.rectified`), and that is looked up. Functions of Boolean
    gates are `private.circuits.Circuit`; `protocol.units` says which of them is garbled for what.

    In a program, `windows` and `below` are unset. Only a graph has them, and the kinds beside `CIRCUIT_KINDS`: before
    it is lowered, an operation of the user's with one function of its own.

    Attributes:
        kind: `relu`: max(t, 0). `rescale`: t. `argmax`: the index of the largest t, the
            lowest index on a tie; its output is revealed or stays a number, it is not a tensor of the program.
        width: bits of each share that enter the circuit, sign included; 2 to 62.
        dropped: low bits that each party drops of its share first.
        kept: flat indices, rising, of the elements to which `kind` applies; None for all. For `relu`.
        rest_in_circuit: for the other elements, if there are any: True sends them through a `rescale` of the same
            width; False means that both parties drop the low bits and keep the shares as they are: no traffic.
        windows: in a graph, of maxima: flat input indices, [outputs, window], -1 where a window is cut short.
        below: in a graph, of a ReLU whose results matter up to that number alone; 0 for no bound.
        tested: for `relu`: bits of each share, sign included, by which the sign is looked up; the value is multiplied
            by it. From 2 to `width`, at most 13; 0 for a garbled circuit.
    """

    kind: str
    width: int
    dropped: int
    kept: Indices | None = None
    rest_in_circuit: bool = False
    windows: Indices | None = None
    below: int = 0
    tested: int = 0

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Circuit)
            and (self.kind, self.width, self.dropped, self.rest_in_circuit, self.below, self.tested)
            == (other.kind, other.width, other.dropped, other.rest_in_circuit, other.below, other.tested)
            and _same(self.kept, other.kept)
            and _same(self.windows, other.windows)
        )


Operation = Convolution | Matrix | SumPool | Sum | Concatenate | Reshape | Gather | Truncation | Circuit
Weighted = (Convolution, Matrix)
"""The operations with secret weights, for use with `isinstance`; the others cost no homomorphic work."""


def _same(a: Indices | None, b: Indices | None) -> bool:
    if a is None or b is None:
        return a is b
    return np.array_equal(a, b)
