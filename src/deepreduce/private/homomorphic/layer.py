"""A linear layer as the homomorphic engine sees it: shapes only, all of them public."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import problem
from .errors import LayerError

_LIMIT = 1 << 16
"""Largest channel count, side, kernel, stride or padding; it keeps every index far inside 64 bits."""


@dataclass(frozen=True)
class Layer:
    """A 2-d convolution without bias; a fully connected layer is one with a 1x1 map (`Layer.linear`).

    Attributes:
        in_channels: channels of the input.
        out_channels: channels of the output.
        height: rows of the input.
        width: columns of the input.
        kernel: rows and columns of the kernel.
        stride: rows and columns from one output to the next.
        padding: rows of zeros above and below, columns of zeros left and right.
        groups: the channels fall into this many groups; output group g sees input group g alone. Depthwise
            convolutions have as many groups as input channels.

    Raises:
        LayerError: a value is out of range, the groups do not divide the channels, or nothing comes out.
    """

    in_channels: int
    out_channels: int
    height: int = 1
    width: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    def __post_init__(self) -> None:
        counts = {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "height": self.height,
            "width": self.width,
            "groups": self.groups,
        }
        for name, pair, least in (("kernel", self.kernel, 1), ("stride", self.stride, 1), ("padding", self.padding, 0)):
            if len(pair) != 2:
                raise LayerError(problem(f"{name} must be a pair", got=pair, remedy="give rows and columns"))
            counts |= {f"{name} rows": pair[0] + 1 - least, f"{name} columns": pair[1] + 1 - least}
        for name, count in counts.items():
            if not 1 <= count <= _LIMIT:
                raise LayerError(
                    problem(f"{name} must be in range up to {_LIMIT}", got=self, remedy="check the layer's shape")
                )
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise LayerError(
                problem("groups must divide both channel counts", got=self, remedy="check the layer's shape")
            )
        if self.out_height < 1 or self.out_width < 1:
            raise LayerError(
                problem("the kernel must fit into the padded map", got=self, remedy="check kernel, padding and map")
            )

    @classmethod
    def linear(cls, inputs: int, outputs: int) -> Layer:
        """Return the fully connected layer from `inputs` to `outputs` features."""
        return cls(inputs, outputs)

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return (self.height + 2 * self.padding[0] - self.kernel[0]) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return (self.width + 2 * self.padding[1] - self.kernel[1]) // self.stride[1] + 1

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """Shape of the input: channel, row, column."""
        return self.in_channels, self.height, self.width

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Shape of the output: channel, row, column."""
        return self.out_channels, self.out_height, self.out_width

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weights as PyTorch has them: output channel, input channel of the group, row, column."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @property
    def outputs(self) -> int:
        """Number of output values."""
        return self.out_channels * self.out_height * self.out_width

    @property
    def fan_in(self) -> int:
        """Number of weights in one output value."""
        return self.in_channels // self.groups * self.kernel[0] * self.kernel[1]
