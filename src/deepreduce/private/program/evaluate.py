"""Computing the steps of a program over the integers: linear steps on values or shares, circuits on values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..ring import (
    MAX_RING_BITS,
    ExactConvolution,
    ExactMatrix,
    Words,
    default_backend,
    reduce,
    shift_left,
    signed,
    threads,
    truncate_client,
    truncate_server,
    unsigned,
)
from .operations import (
    ARGMAX,
    RESCALE,
    Circuit,
    Concatenate,
    Convolution,
    Gather,
    Matrix,
    Reshape,
    Sum,
    SumPool,
    Truncation,
)
from .program import PublicProgram, Step, Weights

Side = Literal["values", "server", "client"]
"""What a linear step is computed on: the values themselves, the server's share, or the client's."""

_PANEL = 48
"""Most words in a panel of the compiled kernel for each tap."""

_MOST_LIMBS = 4
"""Of a number of 62 bits, with weights of 20 bits and 2^15 of them for an output."""

_WORD_BYTES = 8
"""Of a ring element, an int64 and a float64."""


class LinearEvaluator:
    """Computes linear steps mod 2^k on batches: values, or one party's shares.

    Weights are prepared once, so keep the object for as long as the program is used. Its memory grows with the batch,
    see `working_bytes`: cut large ones.

    Args:
        public: the program.
        weights: the server's secret; without it only steps that have no weights can be computed.
    """

    def __init__(self, public: PublicProgram, weights: Mapping[int, Weights] | None = None) -> None:
        self._public = public
        self._products: dict[int, ExactConvolution | ExactMatrix] = {}
        self._biases: dict[int, NDArray[np.int64]] = {}
        for step in public.steps:
            own = None if weights is None else weights.get(step.output)
            if own is None:
                continue
            if own.bias is not None:
                self._biases[step.output] = own.bias
            if own.weight is not None and isinstance(step.op, Convolution):
                self._products[step.output] = ExactConvolution(
                    own.weight,
                    stride=step.op.stride,
                    padding=step.op.padding,
                    dilation=step.op.dilation,
                    groups=step.op.groups,
                )
            elif own.weight is not None:
                self._products[step.output] = ExactMatrix(own.weight)

    def __call__(self, step: Step, inputs: list[Words], *, side: Side, headroom: int = 0) -> Words:
        """Compute one linear step.

        Args:
            step: any but a circuit.
            inputs: [n, *shape] of each input tensor.
            side: what the inputs are. The client's share gets no bias; values are truncated to nearest, ties upwards.
            headroom: compute in a ring of so many bits more, up to 62; the inputs must have them too. For values only:
                what leaves the ring is then seen.

        Returns:
            [n, *shape] of the output, mod 2^k for its ring.
        """
        bits = min(MAX_RING_BITS, self._public.tensors[step.output].ring_bits + headroom)
        if isinstance(step.op, Truncation):
            before = min(MAX_RING_BITS, self._public.tensors[step.inputs[0]].ring_bits + headroom)
            return _truncated(inputs[0], before, step.op.dropped, bits, side)
        out = self._linear(step, inputs, bits)
        if side != "client" and step.output in self._biases:
            out = reduce(out + unsigned(self._biases[step.output], bits), bits)
        return out

    def _linear(self, step: Step, inputs: list[Words], bits: int) -> Words:
        op, x = step.op, inputs[0]
        shape = self._public.tensors[step.output].shape
        batch = x.shape[0]
        match op:
            case Convolution() | Matrix():
                return self._products[step.output](x, bits)
            case SumPool():
                return _pool(op, x, shape, bits)
            case Sum():
                total = np.zeros((batch, *shape), dtype=np.uint64)
                for each, shift, sign in zip(inputs, op.shifts, op.signs, strict=True):
                    shifted = shift_left(each, shift, bits)
                    total = total + shifted if sign > 0 else total - shifted
                return reduce(total, bits)
            case Concatenate():
                parts = [shift_left(each, shift, bits) for each, shift in zip(inputs, op.shifts, strict=True)]
                return np.concatenate(parts, axis=op.axis + 1)
            case Reshape():
                return reduce(x.reshape(batch, *shape), bits)
            case Gather():
                flat = np.concatenate([x.reshape(batch, -1), np.zeros((batch, 1), dtype=np.uint64)], axis=1)
                return reduce(flat[:, op.index].reshape(batch, *shape), bits)
            case _:
                raise AssertionError(f"{op} is not linear")


def working_bytes(public: PublicProgram, step: Step) -> int:
    """Return how much memory `LinearEvaluator` takes at most for a linear step, in bytes per image of the batch.

    The output is counted, the inputs are not. The compiled kernel (`ring.products`) takes a padded copy of the input,
    or in float64 one for each limb. PyTorch in its place mostly takes more, and the larger is the bound: of a
    convolution most are its columns, a copy of the input for every tap of the kernel, of the whole batch at once.
    """
    inputs = sum(public.tensors[tensor].size for tensor in step.inputs)
    output, columns, padded = public.tensors[step.output].size, 0, inputs
    if isinstance(step.op, (Convolution, SumPool)):
        channels, height, width = public.tensors[step.inputs[0]].shape
        top, bottom, left, right = step.op.padding
        padded = max(inputs, channels * (height + top + bottom) * (width + left + right))
    if isinstance(step.op, Convolution):
        outputs, *taps = step.op.weight_shape
        # Of one group; the outputs of all of them are then joined. Of the kernel's panels each thread has one.
        columns = max(output // outputs, _PANEL * threads()) * math.prod(taps)
    elif isinstance(step.op, Matrix):
        columns = _PANEL * threads() * inputs
    # The input's rest and the sum of the limbs stay. Beside them a limb is cut, or padded and multiplied, or its
    # product joins the sum. Steps without weights take less.
    copies = _MOST_LIMBS if default_backend() == "fma" else 1
    multiplied = inputs + copies * padded + output + max(columns, output)
    return _WORD_BYTES * (inputs + output + max(3 * inputs, multiplied, inputs + 4 * output))


def _truncated(x: Words, bits: int, dropped: int, to: int, side: Side) -> Words:
    if side == "server":
        return truncate_server(x, bits, dropped, to)
    if side == "client":
        return truncate_client(x, bits, dropped, to)
    return unsigned(nearest(x, bits, dropped), to)


def nearest(x: Words, bits: int, dropped: int) -> NDArray[np.int64]:
    """Return values of a ring divided by 2^dropped, as signed numbers: to nearest, ties upwards."""
    return (signed(x, bits) + np.int64((1 << dropped) >> 1)) >> np.int64(dropped)


def _pool(op: SumPool, x: Words, shape: tuple[int, ...], bits: int) -> Words:
    top, bottom, left, right = op.padding
    x = x[:, :, max(0, -top) : x.shape[2] - max(0, -bottom), max(0, -left) : x.shape[3] - max(0, -right)]
    sides = ((0, 0), (0, 0), (max(0, top), max(0, bottom)), (max(0, left), max(0, right)))
    if any(amount for side in sides for amount in side):
        x = np.pad(x, sides)
    total = np.zeros((x.shape[0], *shape), dtype=np.uint64)
    height, width = shape[1:]
    for i in range(op.kernel[0]):
        for j in range(op.kernel[1]):
            rows = slice(i, i + (height - 1) * op.stride[0] + 1, op.stride[0])
            columns = slice(j, j + (width - 1) * op.stride[1] + 1, op.stride[1])
            total += x[:, :, rows, columns]
    return reduce(total * np.uint64(op.factor), bits)


def rectified(op: Circuit, server: Words, client: Words) -> NDArray[np.int64]:
    """Compute what becomes of shares in a ReLU whose sign the upper bits decide.

    With T = 2^(width - tested), x counts as positive where the upper `tested` bits of the shares of x + T/2 have a sum
    without sign. The sum lacks the carry of the lower bits. So within `rectified_range` x counts as positive always
    from T/2 on, never below -T/2, and in between with a probability that rises evenly, if the client's share is uniform
    in its low bits. Where it does, it goes on as it is.

    Args:
        op: a circuit with `tested`.
        server, client: shares mod 2^width without the dropped bits, any shape.

    Returns:
        The outputs before the ring is taken; some are negative, from -T/2 on.
    """
    lower = op.width - op.tested
    half = 1 << lower >> 1
    moved = reduce(server + np.uint64(half), op.width)
    upper = reduce((moved >> np.uint64(lower)) + (client >> np.uint64(lower)), op.tested)
    positive = upper < np.uint64(1 << (op.tested - 1))
    value = reduce(moved + client, op.width).astype(np.int64) - half
    return np.where(positive, value, 0)


def rectified_range(op: Circuit) -> tuple[int, int]:
    """Return the lowest and the highest number that `rectified` never takes for one from the other end of the range."""
    half, most = 1 << (op.width - op.tested) >> 1, 1 << (op.width - 1)
    return half - most, most - half - 1


def circuit_function(op: Circuit, t: NDArray[np.int64]) -> NDArray[np.int64]:
    """Compute what a circuit computes of the numbers that entered it, before the ring is taken.

    Args:
        op: the circuit; `kept` is not looked at: this is what it does to the elements it applies to. Nor is `tested`:
            what that does depends on the shares, see `rectified`.
        t: signed numbers of `op.width` bits, [n, elements].

    Returns:
        [n, outputs], for `argmax` [n, 1].
    """
    if op.kind == ARGMAX:
        winners: NDArray[np.int64] = np.argmax(t, axis=1).astype(np.int64)[:, None]
        return winners
    if op.kind == RESCALE:
        return t
    positive: NDArray[np.int64] = np.maximum(t, 0)
    return positive
