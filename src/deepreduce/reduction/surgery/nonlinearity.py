"""How far the ReLUs of a channel are from linear, and the linear function next to them (our own).

The first tells which channels stay where a ReLU layer becomes narrow, the second how the others go on without.

A channel whose ReLUs nearly always pass their input, or nearly never do, gives the layers behind it what linear
layers could give them as well. Batch norm says without any image how often they do: in front of the ReLU a channel has
mean `bias` and standard deviation |`weight`|.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

_READERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_FAR = 38.0  # standard deviations: beyond it a ReLU is linear in float64, and the squares only cost digits


def nonlinear_variance(weight: Float64[Tensor, " c"], bias: Float64[Tensor, " c"]) -> Float64[Tensor, " c"]:
    """Return the part of the variance of a ReLU's output that no linear function of its input explains.

    For an input x ~ N(bias, weight^2), t = bias / |weight|, and the normal distribution Phi with density phi:
    E[relu(x)] = |weight| (t Phi(t) + phi(t)), E[relu(x)^2] = weight^2 ((t^2 + 1) Phi(t) + t phi(t)), and the covariance
    with x is weight^2 Phi(t); what is left of the variance behind the best linear function of x is returned.

    Args:
        weight: of the batch norm in front, by channel.
        bias: likewise.
    """
    scale = weight.abs()
    t, probability, density = _normal(scale, bias)
    mean = t * probability + density
    square = (t.square() + 1) * probability + t * density
    left: Tensor = scale.square() * (square - mean.square() - probability.square()).clamp_min(0.0)
    return left


def linear_fit(
    weight: Float64[Tensor, " c"], bias: Float64[Tensor, " c"]
) -> tuple[Float64[Tensor, " c"], Float64[Tensor, " c"]]:
    """Return slope and intercept of the linear function that is next to a ReLU, in squares.

    With x, t, Phi and phi as for `nonlinear_variance`: the slope is cov(relu(x), x) / weight^2 = Phi(t), and
    slope * bias + intercept = E[relu(x)], so that the intercept is |weight| phi(t).

    Args:
        weight: of the batch norm in front, by channel.
        bias: likewise.
    """
    scale = weight.abs()
    _, probability, density = _normal(scale, bias)
    return probability, scale * density


def _normal(scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return t = bias / scale, and the normal distribution and density there."""
    t = (bias / scale.clamp_min(torch.finfo(torch.float64).tiny)).clamp(-_FAR, _FAR)
    return t, torch.special.ndtr(t), torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)


def by_nonlinearity(graph: Any, group: Any) -> Float64[Tensor, " c"] | None:
    """Rank the channels of a group of layers: nonlinear variance, as far as the layers behind let it through.

    Args:
        graph: torch-pruning's graph of dependencies.
        group: one of its groups: the layers that lose a channel together.

    Returns:
        A number for each channel: the nonlinear variance behind the group's batch norms times the squared weights
        that read the channel. None where no batch norm, or nothing with weights, is in the group channel by channel.
    """
    channels = list(group[0].idxs)
    variance = torch.zeros(len(channels), dtype=torch.float64)
    read = torch.zeros(len(channels), dtype=torch.float64)
    for dependency, indices in group:
        module = dependency.target.module
        if list(indices) != channels:
            return None
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            variance += nonlinear_variance(module.weight.detach().double(), module.bias.detach().double())[channels]
        elif graph.is_in_channel_pruning_fn(dependency.handler) and isinstance(module, _READERS):
            weight = module.weight.detach().double()
            if weight.shape[1] < len(channels):  # of a grouped convolution
                return None
            read += weight.transpose(0, 1).flatten(1).square().sum(1)[channels]
    return variance * read if bool((read > 0).any()) and bool((variance > 0).any()) else None
