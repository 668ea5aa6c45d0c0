"""The few pieces that the reference networks share."""

from __future__ import annotations

import math

from torch import nn

from ..errors import UsageError, problem


def scaled(channels: int, width: float) -> int:
    """Return `channels * width`, rounded down, at least 1.

    The same rounding as channel pruning uses, so that a network built narrow and a network pruned to that width
    have the same shapes.

    Args:
        channels: of the full network.
        width: above 0.

    Raises:
        UsageError: if `width` is not above 0.
    """
    if not 0 < width < math.inf:
        raise UsageError(
            problem(
                "the width is above 0",
                got=width,
                remedy="use 1 for the published network",
                where="--alpha or --width",
            )
        )
    return max(1, int(channels * width + 1e-9))


def stem_stride(rho: float) -> int:
    """Return the stride of the first convolution that scales every feature map by `rho`: 1/rho.

    Raises:
        UsageError: if 1/rho is not a whole number.
    """
    stride = round(1 / rho) if 0 < rho <= 1 else 0
    if stride == 0 or abs(stride * rho - 1) > 1e-9:
        raise UsageError(
            problem(
                "rho is 1, 0.5, 0.25 or 0.125, because it becomes a stride of 1/rho",
                got=rho,
                remedy="use 0.5, as the paper does",
                where="--rho",
            )
        )
    return stride


def convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Build a convolution that keeps the resolution at stride 1 and has no bias, because batch norm follows."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)


def initialise(network: nn.Module) -> None:
    """Draw convolution and linear weights as He et al. (2015) do for networks of ReLUs; biases start at zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
