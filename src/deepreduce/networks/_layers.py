"""The few pieces that the reference networks share."""

from __future__ import annotations

from torch import nn


def scaled(channels: int, width: float) -> int:
    """Return `channels * width`, rounded down, at least 1.

    The same rounding as channel pruning uses, so that a network built narrow and a network pruned to that width
    have the same shapes.
    """
    return max(1, int(channels * width + 1e-9))


def stem_stride(rho: float) -> int:
    """Return the stride of the first convolution that scales every feature map by `rho` (facts: stride 1/rho)."""
    return round(1 / rho)


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
