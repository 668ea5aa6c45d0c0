"""The weighted steps of a program as layers of this room.

A `Convolution` of a program may have another padding on each side, negative padding, and a dilation; a `Layer` has
one padding for both sides of a direction. `plan_step` finds the layer that does the same on an input which the client
has rearranged, and weights which the server has rearranged. All of it is linear and public, so that it may be done to
a share. In each direction, in this order:

1. Taps of the kernel that meet the padding alone, for every output, are cut off: of a 3x3 kernel on a 1x1 map with
   padding 1 one tap stays.
2. Windows begin at multiples of the stride and their taps lie at multiples of the dilation. So only every g-th row is
   read, g = gcd(stride, dilation), where a stride between fewer than two outputs and a dilation between fewer than
   two taps do not count: 1x1 kernels read every stride-th row, and the rest of the map is not sent. Where the stride
   alone is large, the packing leaves out by itself what no tap reads.
3. What remains of the dilation becomes zeros in the kernel. They count as weights in `noise.py`: the bounds there stay
   true, the flood is somewhat larger than it must be.
4. Zeros around the map become the layer's own padding as far as both sides can have the same; the packing lets
   neighbours share those. The rest becomes rows of explicit zeros.

A `Matrix` is a 1x1 convolution of a 1x1 map.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import problem
from .errors import LayerError
from .layer import Layer
from .packing import Integers, Plan, Words
from .tiling import check_planning, plan_images, plan_layer

if TYPE_CHECKING:
    from ..program.operations import Convolution, Matrix

MAX_REQUESTS = 1 << 16
"""Bound on the ciphertexts that a client sends for one image: 13 GB. The reference networks send 2,000 to 11,000
with images of 224x224."""

MAX_LAYER_CIPHERTEXTS = 1 << 13
"""Bound on the ciphertexts of one layer in either direction: they are in memory at once, 0.4 MB each while a client
makes them. A 3x3 convolution of 64 channels takes 450 each way at 224x224, 2,600 at 512x512."""

_ZERO = -1
"""In `Direction.sources`: a row or column of zeros."""


@dataclass(frozen=True)
class Direction:
    """Rows or columns of a step, as its layer has them.

    Attributes:
        sources: for every row of the layer's input the row of the step's input that stands there, or -1 for zeros.
        taps: the taps of the step's kernel that are used: first, and one after the last.
        dilation: distance of two of them in the layer's kernel.
        stride: of the layer.
        padding: of the layer.
        outputs: number of output rows.
    """

    sources: tuple[int, ...] = (0,)
    taps: tuple[int, int] = (0, 1)
    dilation: int = 1
    stride: int = 1
    padding: int = 0
    outputs: int = 1

    @property
    def kernel(self) -> int:
        """Taps of the layer's kernel, zeros between them included."""
        return (self.taps[1] - self.taps[0] - 1) * self.dilation + 1

    def is_identity(self, size: int) -> bool:
        """Tell whether the layer reads the step's input as it is."""
        return self.sources == tuple(range(size))


@dataclass(frozen=True)
class StepPlan:
    """How a weighted step of a program is run here; `plan_step` makes it. Public.

        step = plan_step(op, in_shape, out_shape)
        prepared = prepare_weights(parameters, step.plan, step.fit_weights(weight), weight_bits=w)        # server
        message = request(keys, step.plan, step.fit_input(x_C))                                           # client
        response = respond(prepared, public_key, message)                                                 # server
        y_C, s = step.fit_output(receive(keys, response.answer)), step.fit_output(response.share)

    Attributes:
        plan: the layer and its cut.
        in_shape: shape of the step's input.
        out_shape: shape of its output.
        weight_shape: shape of its weights.
        rows: the vertical direction.
        columns: the horizontal direction.
    """

    plan: Plan
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    rows: Direction
    columns: Direction

    def of_images(self, images: int) -> tuple[StepPlan, ...]:
        """Return how the step is run for several images: plans of so many together, in their order.

        Args:
            images: how many, at least 1.
        """
        return tuple(dataclasses.replace(self, plan=plan) for plan in plan_images(self.plan.layer, images))

    @property
    def images(self) -> int:
        """How many images the plan is for."""
        return self.plan.tiling.images

    def fit_input(self, x: Words) -> Words:
        """Return a share of the step's input as the plan reads it: rows picked, and zeros added.

        Args:
            x: shape [images, *in_shape].

        Returns:
            Shape `plan.in_shape`.

        Raises:
            LayerError: it has another shape.
        """
        _check_shape("the input of the step", (self.images, *self.in_shape), x.shape)
        channels, height, width = _as_map(self.in_shape)
        found = x.reshape(self.images, channels, height, width)
        if not self.rows.is_identity(height):
            found = _pick(found, 2, self.rows.sources)
        if not self.columns.is_identity(width):
            found = _pick(found, 3, self.columns.sources)
        return found.reshape(self.plan.in_shape)

    def fit_weights(self, weights: Integers) -> Integers:
        """Return the step's weights as the layer has them: unused taps cut off, zeros for the dilation between others.

        Args:
            weights: shape `weight_shape`.

        Raises:
            LayerError: they have another shape.
        """
        _check_shape("the weights of the step", self.weight_shape, weights.shape)
        outputs, inputs = weights.shape[:2]
        kernel = weights.shape[2:] or (1, 1)
        rows, columns = self.rows, self.columns
        used = weights.reshape(outputs, inputs, *kernel)[:, :, slice(*rows.taps), slice(*columns.taps)]
        found = np.zeros(self.plan.layer.weight_shape, np.int64)
        found[:, :, :: rows.dilation, :: columns.dilation] = used
        return found

    def fit_output(self, y: Words) -> Words:
        """Return a share of the plan's output in the shape of the step's, [images, *out_shape].

        Raises:
            LayerError: it has another shape than the plan's output.
        """
        _check_shape("the output of the layer", self.plan.out_shape, y.shape)
        return y.reshape(self.images, *self.out_shape)


def plan_step(op: Convolution | Matrix, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> StepPlan:
    """Plan a weighted step of a program.

    Args:
        op: the step's operation.
        in_shape: shape of its input: (channels, height, width), for a matrix (inputs,).
        out_shape: shape of its output, likewise.

    Returns:
        The plan. It depends on public numbers alone, so both parties make the same one.

    Raises:
        LayerError: operation and shapes contradict each other, or no polynomial holds a row of the layer; or planning
            or ciphertexts are beyond the bounds of `plan_steps`.
    """
    return plan_steps([(op, in_shape, out_shape)])[0]


def plan_steps(
    steps: Iterable[tuple[Convolution | Matrix, tuple[int, ...], tuple[int, ...]]],
) -> list[StepPlan]:
    """Plan the weighted steps of a program, if planning them takes seconds and not hours.

    A client does this with a file that it was given, which names shapes and has no weights to show for them.

    Args:
        steps: the arguments of `plan_step` for each.

    Returns:
        The plans in the same order.

    Raises:
        LayerError: as `plan_step`; or the layers can be cut in more than MAX_PLANNING ways together, or take more than
            MAX_REQUESTS ciphertexts in all or MAX_LAYER_CIPHERTEXTS in one.
    """
    fitted = [_fit(*step) for step in steps]
    check_planning(layer for layer, _, _, _, _, _ in fitted)
    plans = [
        StepPlan(plan_layer(layer), in_shape, out_shape, weight_shape, rows, columns)
        for layer, in_shape, out_shape, weight_shape, rows, columns in fitted
    ]
    for step in plans:
        _check_ciphertexts("a layer takes", max(step.plan.requests, step.plan.answers), MAX_LAYER_CIPHERTEXTS, step)
    largest = max(plans, key=lambda step: step.plan.requests, default=None)
    if largest is not None:
        _check_ciphertexts("an image takes", sum(step.plan.requests for step in plans), MAX_REQUESTS, largest)
    return plans


def _check_ciphertexts(what: str, ciphertexts: int, most: int, step: StepPlan) -> None:
    if ciphertexts > most:
        raise LayerError(
            problem(
                f"{what} at most {most:,} ciphertexts in one direction",
                got=f"{ciphertexts:,}",
                remedy="take smaller images, fewer channels, or smaller kernels on large maps",
                where=step.plan.layer,
            )
        )


def _fit(
    op: Convolution | Matrix, in_shape: tuple[int, ...], out_shape: tuple[int, ...]
) -> tuple[Layer, tuple[int, ...], tuple[int, ...], tuple[int, ...], Direction, Direction]:
    """Find the layer that does what a step does, and what `StepPlan` keeps beside its plan."""
    from ..program.operations import Matrix  # it brings PyTorch along, which the worker processes do without

    if isinstance(op, Matrix):
        outputs, inputs = op.weight_shape
        _check_shape("the input of the matrix", (inputs,), in_shape)
        rows = columns = Direction()
        groups = 1
        _check_shape("the output of the step", (outputs,), out_shape)
    else:
        outputs, per_group, *kernel = op.weight_shape
        if len(in_shape) != 3 or in_shape[0] != per_group * op.groups:
            raise LayerError(
                problem(
                    f"the input must be a map of {per_group} x {op.groups} channels",
                    got=in_shape,
                    remedy="pass the shape of one image, channel first",
                )
            )
        rows, columns = (
            _direction(in_shape[1 + d], kernel[d], op.stride[d], op.dilation[d], op.padding[2 * d : 2 * d + 2])
            for d in range(2)
        )
        groups = op.groups
        _check_shape("the output of the step", (outputs, rows.outputs, columns.outputs), out_shape)
    layer = Layer(
        in_shape[0],
        outputs,
        len(rows.sources),
        len(columns.sources),
        (rows.kernel, columns.kernel),
        (rows.stride, columns.stride),
        (rows.padding, columns.padding),
        groups,
    )
    return layer, in_shape, out_shape, op.weight_shape, rows, columns


def _direction(size: int, kernel: int, stride: int, dilation: int, padding: tuple[int, ...]) -> Direction:
    """Fit one direction; the numbers are those of the head of this module."""
    before, after = padding
    outputs = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    if min(size, kernel, stride, dilation, outputs) < 1:
        raise LayerError(
            problem(
                "a window must fit into the padded map",
                got=f"{size} rows with padding {padding}, kernel {kernel}, stride {stride}, dilation {dilation}",
                remedy="check the operation against its input",
            )
        )
    # 1. A tap is used if the first of its positions that is not above the map lies in it.
    offset = np.arange(kernel) * dilation - before
    output = np.maximum(0, -(offset // stride))
    used = np.flatnonzero((output < outputs) & (output * stride + offset < size))
    first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 1)
    before, kernel = before - first * dilation, last - first
    # 2. Virtual positions are those that are read, from the first window's first tap on.
    every = math.gcd(stride if outputs > 1 else 0, dilation if kernel > 1 else 0) or 1
    stride, dilation = (stride // every if outputs > 1 else 1), (dilation // every if kernel > 1 else 1)
    length = (outputs - 1) * stride + (kernel - 1) * dilation + 1
    position = np.arange(length) * every - before
    real = np.flatnonzero((position >= 0) & (position < size))
    if not real.size:
        return Direction((_ZERO,) * length, (first, last), dilation, stride, 0, outputs)
    # 4. With padding p on both sides the layer must have `length` to length + stride - 1 virtual positions, all of
    #    them zeros that are not among its sources.
    lead, trail = int(real[0]), length - 1 - int(real[-1])
    shared = min(lead, trail + stride - 1)
    sources = np.where((position >= 0) & (position < size), position, _ZERO)[shared : length - min(shared, trail)]
    return Direction(tuple(sources.tolist()), (first, last), dilation, stride, shared, outputs)


def _pick(x: Words, axis: int, sources: tuple[int, ...]) -> Words:
    """Return the rows or columns of a map in another order, zeros where the source is -1."""
    shape = list(x.shape)
    shape[axis] = 1
    found: Words = np.take(np.concatenate([x, np.zeros(shape, x.dtype)], axis), sources, axis)
    return found


def _as_map(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = (*shape, 1, 1)[:3]
    return channels, height, width


def _check_shape(what: str, expected: tuple[int, ...], got: tuple[int, ...]) -> None:
    if tuple(got) != tuple(expected):
        raise LayerError(
            problem(f"{what} must have the shape {expected}", got=got, remedy="take both from one public program")
        )
