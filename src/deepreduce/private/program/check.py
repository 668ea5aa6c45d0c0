"""Checking a program that came from outside, before anything is computed or allocated by it.

Every shape is recomputed from the inputs, every ring from its readers, every index held against its range. A program
that passes can be executed: no step reads beyond a tensor or needs a ring that its inputs do not have. Laying it out
and running it takes memory and time within bounds that a short file cannot push up by naming large numbers; how its
layers are cut for the encryption has bounds of its own there (`homomorphic.plan_steps`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ...errors import RecipeError, problem
from ..ring import MAX_RING_BITS, UNIFORM_BITS
from .masking import Masking, masked_by
from .operations import (
    ARGMAX,
    CIRCUIT_KINDS,
    RELU,
    Circuit,
    Concatenate,
    Convolution,
    Gather,
    Indices,
    Matrix,
    Reshape,
    Sum,
    SumPool,
    Truncation,
)
from .program import PublicProgram, Step, TensorFormat, Weights, argmax_format, is_argmax
from .settings import MOST_TABLE_BITS

MAX_STEPS = 4096
MAX_ELEMENTS = 1 << 26
MAX_TOTAL = 1 << 26
"""Bounds on steps, on elements of one tensor, padded map or weight, and on elements of all tensors together."""

MAX_SIDES = 1 << 20
"""Bound on heights and widths of all feature maps together, and on those of all padded maps that windows go over:
layers list the rows and columns that they read."""

MAX_READS = 1 << 32
"""Bound on the elements that all local steps read, so often as they read them; a read counts as 64 at least. Maps that
windows go over count with their padding, those of layers with weights too: a client copies them in front of it."""

MAX_CIRCUIT_BITS = 1 << 20
"""Bound on the bits that go through one instance of each step's circuit, share and index of every class for an arg-max:
one of 20,000 classes has 720,000."""

_TAP_READS = 4096
"""What a tap of a pooling window counts at least: it is a call of its own, however small the map is."""

_MAX_SIDE = 1 << 12
_MAX_FRACTION = 256


class _Broken(Exception):  # noqa: N818 - becomes a RecipeError with its place
    """What a step violates."""


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise _Broken(what)


def check_public(public: PublicProgram) -> None:
    """Check a public program.

    Raises:
        RecipeError: naming the first step that is inconsistent or beyond the bounds.
    """
    try:
        _check_tensors(public)
    except (_Broken, TypeError, ValueError, OverflowError) as reason:
        raise _refuse(str(reason), "the tensors") from None
    reads = circuit_bits = sides = 0
    known = [Masking(True, 1)]
    for number, step in enumerate(public.steps):
        try:
            _check_step(public, step, number)
            known.append(_masking(step, known))
            reads += _reads(public, step)
            circuit_bits += _circuit_bits(public, step)
            sides += sum(_padded(public, step)[1:])
            _require(reads <= MAX_READS, f"{reads} reads by local steps")
            _require(circuit_bits <= MAX_CIRCUIT_BITS, f"circuits of {circuit_bits} bits")
            _require(sides <= MAX_SIDES, f"{sides} rows and columns under windows")
        except (_Broken, TypeError, ValueError, OverflowError) as reason:
            raise _refuse(str(reason), f"step {number}") from None


def _masking(step: Step, known: list[Masking]) -> Masking:
    """Return what is known of the client's share of a step's output; truncate none that may not be uniform."""
    op, inputs = step.op, [known[tensor] for tensor in step.inputs]
    _require(not isinstance(op, Truncation) or inputs[0].uniform, "a truncation of shares that may not be uniform")
    return masked_by(op, inputs, 1 << step.output, op.shifts if isinstance(op, (Sum, Concatenate)) else ())


def check_weights(public: PublicProgram, weights: Mapping[int, Weights]) -> None:
    """Check the secret part of a program against its public part.

    Raises:
        RecipeError: naming the first step whose weights are missing, superfluous or of another shape.
    """
    expected = {step.output: step for step in public.steps if step.weighted or step.has_bias}
    if set(weights) != set(expected):
        wrong = sorted(set(weights) ^ set(expected))[0]
        raise _refuse("weights are there for the steps that need them and for no others", f"tensor {wrong}")
    for output, step in expected.items():
        own, shape = weights[output], public.tensors[output].shape
        try:
            _require((own.weight is not None) == step.weighted, "a weight for a step that has none, or none for one")
            _require((own.bias is not None) == step.has_bias, "a bias for a step that has none, or none for one")
            if own.weight is not None and isinstance(step.op, (Convolution, Matrix)):
                _require(own.weight.shape == step.op.weight_shape, f"a weight of shape {own.weight.shape}")
                _require(own.weight.dtype == np.int64, "weights are int64")
            if own.bias is not None:
                per_channel = (shape[0], *[1] * (len(shape) - 1))
                _require(own.bias.shape in (shape, per_channel), f"a bias of shape {own.bias.shape}")
                _require(own.bias.dtype == np.int64, "biases are int64")
        except _Broken as reason:
            raise _refuse(str(reason), step.name) from None


def _refuse(what: str, where: str) -> RecipeError:
    return RecipeError(
        problem("a program must be consistent", got=what, remedy="use the file as it was exported", where=where)
    )


def _whole(*values: object) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def _check_tensors(public: PublicProgram) -> None:
    _require(1 <= len(public.steps) <= MAX_STEPS, f"{len(public.steps)} steps")
    _require(len(public.tensors) == len(public.steps) + 1, "a tensor for the image and one for each step")
    total = 0
    for tensor in public.tensors:
        _require(1 <= len(tensor.shape) <= 3 and _whole(*tensor.shape), f"a shape {tensor.shape}")
        _require(all(1 <= side <= MAX_ELEMENTS for side in tensor.shape), f"a shape {tensor.shape}")
        _require(tensor.size <= MAX_ELEMENTS, f"a tensor of {tensor.size} elements")
        _require(_whole(tensor.ring_bits) and 1 <= tensor.ring_bits <= MAX_RING_BITS, f"{tensor.ring_bits} ring bits")
        _require(
            _whole(tensor.fraction_bits) and abs(tensor.fraction_bits) <= _MAX_FRACTION,
            f"{tensor.fraction_bits} fraction bits",
        )
        total += tensor.size
    _require(total <= MAX_TOTAL, f"{total} elements in all")
    sides = sum(sum(tensor.shape[1:]) for tensor in public.tensors if len(tensor.shape) == 3)
    _require(sides <= MAX_SIDES, f"{sides} rows and columns in all")
    _require(len(public.tensors[0].shape) == 3, "an image of channels, height and width")
    _require([is_argmax(step) for step in public.steps].count(True) == 1, "one arg-max")
    _require(is_argmax(public.steps[-1]), "an arg-max at the end")


def _check_step(public: PublicProgram, step: Step, number: int) -> None:
    _require(step.output == number + 1, "steps make tensors in their order")
    _require(1 <= len(step.inputs) <= MAX_STEPS and _whole(*step.inputs), "inputs")
    _require(all(0 <= i < step.output for i in step.inputs), "a step that reads a tensor before it is made")
    named = isinstance(step.name, str) and len(step.name) <= 4096 and step.name.isprintable()
    _require(named, "a name of printable characters")
    _require(isinstance(step.has_bias, bool), "has_bias")
    inputs, out = [public.tensors[i] for i in step.inputs], public.tensors[step.output]
    _require(
        not (step.has_bias and isinstance(step.op, (Circuit, Reshape, Gather, Concatenate, Truncation))), "a bias here"
    )
    several = isinstance(step.op, (Sum, Concatenate))
    _require(several or len(inputs) == 1, "one input")
    shape = _shape(step, inputs, out)
    _require(shape == out.shape, f"an output of shape {out.shape} where it is {shape}")
    _check_rings(step, inputs, out)


def _shape(step: Step, inputs: list[TensorFormat], out: TensorFormat) -> tuple[int, ...]:
    """Return the shape that a step makes."""
    op, x = step.op, inputs[0].shape
    if isinstance(op, Convolution):
        _require(len(x) == 3 and len(op.weight_shape) == 4 and _whole(*op.weight_shape, op.groups), "a convolution")
        _require(all(1 <= side <= MAX_ELEMENTS for side in op.weight_shape), f"a weight of {op.weight_shape}")
        _require(math.prod(op.weight_shape) <= MAX_ELEMENTS, f"a weight of {op.weight_shape}")
        outputs, per_group, *kernel = op.weight_shape
        _require(1 <= op.groups <= outputs and outputs % op.groups == 0, f"{op.groups} groups")
        _require(per_group * op.groups == x[0], f"{op.groups} groups of {per_group} inputs where there are {x[0]}")
        sides = _windows(x, (kernel[0], kernel[1]), op.stride, op.dilation, op.padding)
        return (outputs, *sides)
    if isinstance(op, Matrix):
        _require(len(x) == 1 and len(op.weight_shape) == 2 and _whole(*op.weight_shape), "a matrix")
        _require(op.weight_shape[0] >= 1 and op.weight_shape[1] == x[0], f"a matrix of {op.weight_shape}")
        _require(math.prod(op.weight_shape) <= MAX_ELEMENTS, f"a matrix of {op.weight_shape}")
        return (op.weight_shape[0],)
    if isinstance(op, SumPool):
        _require(len(x) == 3 and _whole(op.factor) and 1 <= op.factor < 1 << 40, "a pool")
        return (x[0], *_windows(x, op.kernel, op.stride, (1, 1), op.padding))
    if isinstance(op, Sum):
        _require(len(op.shifts) == len(op.signs) == len(inputs), "a shift and a sign for each input")
        _require(all(sign in (1, -1) for sign in op.signs) and _whole(*op.signs), "signs")
        _require(all(each.shape == x for each in inputs), "a sum of different shapes")
        return x
    if isinstance(op, Concatenate):
        _require(len(op.shifts) == len(inputs) and _whole(op.axis) and 0 <= op.axis < len(x), "a concatenation")
        rests = {each.shape[: op.axis] + each.shape[op.axis + 1 :] for each in inputs}
        _require(
            len(rests) == 1 and all(len(each.shape) == len(x) for each in inputs), "a concatenation of other shapes"
        )
        return (*x[: op.axis], sum(each.shape[op.axis] for each in inputs), *x[op.axis + 1 :])
    if isinstance(op, Reshape):
        _require(inputs[0].size == out.size, "a reshape to another size")
        return out.shape
    if isinstance(op, Gather):
        _check_indices(op.index, (out.size,), inputs[0].size, lowest=-1)
        return out.shape
    if isinstance(op, Truncation):
        bits = inputs[0].ring_bits
        _require(_whole(op.dropped) and 0 <= op.dropped < bits, f"{op.dropped} dropped bits of {bits}")
        _require(bits - op.dropped >= min(UNIFORM_BITS, out.ring_bits), f"{op.dropped} dropped bits of {bits}")
        return x
    return _circuit_shape(op, inputs[0], out)


def _reads(public: PublicProgram, step: Step) -> int:
    """Return how many elements a step reads locally, those of many windows many times, zeros of the padding too."""
    padded = math.prod(_padded(public, step))
    if step.weighted or step.circuit is not None:
        return padded
    if isinstance(step.op, SumPool):
        return padded + max(_TAP_READS, public.tensors[step.output].size) * math.prod(step.op.kernel)
    return sum(max(64, public.tensors[i].size) for i in step.inputs)


def _padded(public: PublicProgram, step: Step) -> tuple[int, ...]:
    """Return the shape of the padded map that a step's windows go over; nothing where there are none."""
    if not isinstance(step.op, (Convolution, SumPool)):
        return (0,)
    return _padded_shape(public.tensors[step.inputs[0]].shape, step.op.padding)


def _padded_shape(x: tuple[int, ...], padding: tuple[int, int, int, int]) -> tuple[int, int, int]:
    return x[0], x[1] + padding[0] + padding[1], x[2] + padding[2] + padding[3]


def _circuit_bits(public: PublicProgram, step: Step) -> int:
    """Return how many bits of each party enter one instance of a step's circuit."""
    op = step.circuit
    if op is None:
        return 0
    if op.kind != ARGMAX:
        return op.width
    classes = public.tensors[step.inputs[0]].size
    return classes * (op.width + (classes - 1).bit_length())  # an index goes along with each value


def _windows(
    x: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int, int, int],
) -> tuple[int, int]:
    _require(len(kernel) == len(stride) == len(dilation) == 2 and len(padding) == 4, "a window")
    _require(_whole(*kernel, *stride, *dilation, *padding), "a window of whole numbers")
    _require(all(1 <= value <= _MAX_SIDE for value in (*kernel, *stride, *dilation)), "a window in range")
    _require(all(-_MAX_SIDE <= value <= _MAX_SIDE for value in padding), "a padding in range")
    sides = []
    for axis in range(2):
        size, (before, after) = x[1 + axis], padding[2 * axis : 2 * axis + 2]
        _require(size + min(0, before) + min(0, after) >= 1, "a padding that leaves something")
        room = size + before + after - dilation[axis] * (kernel[axis] - 1) - 1
        _require(room >= 0, "a window within the map")
        sides.append(room // stride[axis] + 1)
    padded = math.prod(_padded_shape(x, padding))  # it is made, and may be far larger than what goes in and comes out
    _require(padded <= MAX_ELEMENTS, f"a padded map of {padded} elements")
    return (sides[0], sides[1])


def _circuit_shape(op: Circuit, x: TensorFormat, out: TensorFormat) -> tuple[int, ...]:
    _require(op.kind in CIRCUIT_KINDS, f"a circuit of kind {op.kind!r}")
    numbers = _whole(op.width, op.dropped, op.tested) and isinstance(op.rest_in_circuit, bool)
    _require(numbers, "a circuit's numbers")
    _require(2 <= op.width <= MAX_RING_BITS and 0 <= op.dropped < MAX_RING_BITS, "a width and dropped bits in range")
    _require(op.width + op.dropped <= x.ring_bits, f"{op.width} + {op.dropped} bits of a ring of {x.ring_bits}")
    _require(op.kept is None or op.kind == RELU, "kept elements of a ReLU")
    tested = op.tested == 0 or (op.kind == RELU and 2 <= op.tested <= min(op.width, MOST_TABLE_BITS))
    _require(tested, f"{op.tested} bits that are tested")
    _require(not op.rest_in_circuit or op.kept is not None, "a rest beside kept elements")
    _require(op.windows is None and op.below == 0, "a circuit without windows and bounds")
    if op.kind == ARGMAX:
        _require(len(x.shape) == 1 and out == argmax_format(x.size), "an arg-max of a vector")
        return (1,)
    _require(out.fraction_bits == x.fraction_bits - op.dropped, "the fraction bits that dropping leaves")
    if op.kept is not None:
        _require(op.kept.ndim == 1 and 1 <= len(op.kept) < x.size, "kept elements, fewer than all")
        _check_indices(op.kept, (len(op.kept),), x.size, lowest=0)
        _require(bool((np.diff(op.kept) > 0).all()), "kept elements in rising order")
    return x.shape


def _check_indices(indices: Indices, shape: tuple[int, ...], size: int, *, lowest: int) -> None:
    _require(isinstance(indices, np.ndarray) and indices.dtype == np.int32, "indices as int32")
    _require(indices.shape == shape, f"indices of shape {indices.shape} where it is {shape}")
    _require(bool(((indices >= lowest) & (indices < size)).all()), "indices within the tensor")


def _check_rings(step: Step, inputs: list[TensorFormat], out: TensorFormat) -> None:
    """Check that every input's ring holds what the step needs of it."""
    op, k = step.op, out.ring_bits
    if isinstance(op, Circuit):
        if op.kind == ARGMAX:
            return
        _require(k >= op.width, f"a ring of {k} bits for values of {op.width}")
        if op.kept is not None and not op.rest_in_circuit:
            _require(inputs[0].ring_bits >= k + op.dropped, "a ring that the elements outside the circuit can keep")
        return
    if isinstance(op, (Sum, Concatenate)):
        _require(_whole(*op.shifts) and all(0 <= shift <= MAX_RING_BITS for shift in op.shifts), "shifts in range")
        for each, shift in zip(inputs, op.shifts, strict=True):
            _require(each.fraction_bits + shift == out.fraction_bits, "branches of one format")
            _require(each.ring_bits >= k - shift, f"a ring of {each.ring_bits} bits for one of {k}")
        return
    if isinstance(op, Truncation):
        fraction = inputs[0].fraction_bits - op.dropped
        _require(out.fraction_bits == fraction, "the fraction bits that truncation leaves")
        return
    _require(inputs[0].ring_bits >= k, f"a ring of {inputs[0].ring_bits} bits for one of {k}")
    if isinstance(op, (Reshape, Gather)):
        _require(inputs[0].fraction_bits == out.fraction_bits, "the format of its input")
