"""A program: what both parties compute, as pure data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .operations import ARGMAX, RELU, Circuit, Convolution, Matrix, Operation, Weighted
from .settings import FormatSettings

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class TensorFormat:
    """One tensor of a program.

    Attributes:
        shape: for one image.
        fraction_bits: the tensor's integer v stands for v / 2^fraction_bits; may be negative.
        ring_bits: k: its shares are elements of the ring mod 2^k.
    """

    shape: tuple[int, ...]
    fraction_bits: int
    ring_bits: int

    @property
    def size(self) -> int:
        """Number of elements for one image."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Step:
    """One operation on tensors.

    Attributes:
        op: what it computes.
        inputs: tensors it reads. Their rings may be larger than the step needs: the parties reduce their shares.
        output: the tensor it makes; its ring is the one the step computes in.
        name: of the layers it came from, for people.
        has_bias: whether the server adds a bias (secret) to its share of the output.
    """

    op: Operation
    inputs: tuple[int, ...]
    output: int
    name: str
    has_bias: bool = False

    @property
    def weighted(self) -> bool:
        """Whether the step has secret weights, so that the client's share goes through encryption offline."""
        return isinstance(self.op, Weighted)

    @property
    def circuit(self) -> Circuit | None:
        """The step's circuit, or None for a linear step."""
        return self.op if isinstance(self.op, Circuit) else None


@dataclass(frozen=True)
class Round:
    """What happens between two messages: linear steps, then circuits that go in one message each way."""

    linear: tuple[Step, ...]
    circuits: tuple[Step, ...]


@dataclass(frozen=True)
class PublicProgram:
    """What the client knows: architecture, shapes, formats and which ReLUs are kept; no weights.

    Attributes:
        tensors: formats by tensor id; tensor 0 is the image, and each step makes one tensor.
        steps: in an order in which they can be computed. The last is the arg-max: a circuit of kind `argmax` that
            reads the logits. Its output, one number, is the class; the other circuits' outputs are shared anew.
    """

    tensors: tuple[TensorFormat, ...]
    steps: tuple[Step, ...]

    @property
    def input(self) -> TensorFormat:
        """Format of the image: channels, height, width."""
        return self.tensors[0]

    @property
    def logits(self) -> int:
        """The tensor that holds the logits."""
        return self.steps[-1].inputs[0]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.tensors[self.logits].size

    @property
    def relus(self) -> int:
        """Number of ReLUs that are computed for one image, those that maxima and ReLU6 are made of included."""
        total = 0
        for step in self.steps:
            if step.circuit is not None and step.circuit.kind == RELU:
                kept = step.circuit.kept
                total += self.tensors[step.output].size if kept is None else len(kept)
        return total

    @property
    def macs(self) -> int:
        """Multiplications of the linear steps for one image, bounded by what convolutions do without padding."""
        total = 0
        for step in self.steps:
            if isinstance(step.op, (Convolution, Matrix)):
                total += self.tensors[step.output].size * math.prod(step.op.weight_shape[1:])
        return total

    def rounds(self) -> tuple[Round, ...]:
        """Group the steps so that as few messages as possible are exchanged: a round for each level of circuits."""
        level = {0: 0}
        linear: dict[int, list[Step]] = {}
        circuits: dict[int, list[Step]] = {}
        for step in self.steps:
            own = max(level[before] for before in step.inputs)
            if step.circuit is None:
                linear.setdefault(own, []).append(step)
                level[step.output] = own
            else:
                circuits.setdefault(own, []).append(step)
                level[step.output] = own + 1
        return tuple(Round(tuple(linear.get(n, ())), tuple(circuits[n])) for n in sorted(circuits))


@dataclass(frozen=True, eq=False)
class Weights:
    """The secret of one step.

    Attributes:
        weight: of a convolution or matrix, `int64`, in the step's weight shape; None for other steps.
        bias: what the server adds to its share, `int64`, (channels, 1, 1) or the whole shape of the output; None if
            the step has none.
    """

    weight: Integers | None
    bias: Integers | None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and all(
            (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))
            for a, b in ((self.weight, other.weight), (self.bias, other.bias))
        )


@dataclass(frozen=True)
class Agreement:
    """How far a program's twin is from the float network on the calibration images.

    Attributes:
        images: how many.
        same_label: fraction of them with the same class.
        rms_error: root mean square error of the logits.
        max_error: largest error of a logit.
        spread: standard deviation of the float network's logits over classes, root mean square over the images.
        bound: the stated bound on a logit's error: `max_error` times the calibration margin.
    """

    images: int
    same_label: float
    rms_error: float
    max_error: float
    spread: float
    bound: float


@dataclass(frozen=True)
class FormatReport:
    """What was chosen, for the owner of the network; it depends on weights and calibration images, so it is secret.

    Attributes:
        settings: what it was chosen with.
        rows: one per step, in order; see `to_json`.
        agreement: with the float network.
    """

    settings: FormatSettings
    rows: tuple[Mapping[str, Any], ...]
    agreement: Agreement

    @property
    def failures(self) -> float:
        """How many elements of an image truncations get wrong on average: its chance of an answer that is spoilt."""
        return float(sum(row.get("failures", 0.0) for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """Return `settings`, `agreement`, `failures` and `formats`.

        A row has `name`, `source`, `kind`, `elements` (of the output), `seen` and `allowed` (largest magnitude in
        calibration, and the range that the format allows; of a circuit's input, of another step's output),
        `fraction_bits`, `ring_bits` (of the output); circuits also `width`, `tested`, `dropped`, `ring_bits_in`; layers
        with weights also `weight_fraction_bits`, `weight_max`, `macs`; truncations also `dropped` and `failures`, their
        part of the report's.
        """
        return {
            "settings": self.settings.to_json(),
            "agreement": vars(self.agreement),
            "failures": self.failures,
            "formats": [dict(row) for row in self.rows],
        }


@dataclass(frozen=True)
class Program:
    """What the server knows.

    Attributes:
        public: the client's part.
        weights: by the id of the tensor that a step makes; steps without weight and bias are left out.
        report: how the formats came about; None for a program that was read from a file.
    """

    public: PublicProgram
    weights: Mapping[int, Weights]
    report: FormatReport | None = field(default=None, compare=False)


def argmax_format(classes: int) -> TensorFormat:
    """Return the format of the arg-max: one class index."""
    return TensorFormat((1,), 0, max(1, (classes - 1).bit_length()))


def is_argmax(step: Step) -> bool:
    """Tell whether a step is the arg-max."""
    return step.circuit is not None and step.circuit.kind == ARGMAX
