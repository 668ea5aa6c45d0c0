"""Linear layers as one convolution: what a stretch of convolutions, batch norms and sums is away from the border."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from jaxtyping import Float
from torch import Tensor, nn

MOST_BYTES = 2**28
"""Of one image where the input of the convolution is unfolded, as PyTorch does on a CPU in float64."""

_TRANSPARENT = (nn.Identity, nn.modules.dropout._DropoutNd)

Pair = tuple[int, int]


@dataclass(frozen=True)
class LinearMap:
    """A linear map of feature maps (or the image) that is a convolution away from the border.

    y[c, o] = bias[c] + sum over i, d of kernel[i, c, d - low] x[i, stride * o + d]

    Attributes:
        kernel: input channels first.
        bias: of every output channel.
        low: smallest offset d, by dimension.
        stride: of the output's positions on the input, by dimension.
        size: height and width of the output.
        read: height and width of the input.
        layers: names of the convolutions in it.
    """

    kernel: Float[Tensor, "i c h w"]
    bias: Float[Tensor, " c"]
    low: Pair
    stride: Pair
    size: Pair
    read: Pair
    layers: frozenset[str]

    @property
    def fits(self) -> bool:
        """Whether the convolution of this map takes no more memory than `MOST_BYTES`."""
        inputs, _, *taps = self.kernel.shape
        return 8 * inputs * math.prod(taps) * math.prod(self.size) <= MOST_BYTES

    def cut(self, side: int) -> LinearMap:
        """Return the map with the middle of its kernel alone, of at most so many taps by dimension; another map."""
        taps = self.kernel.shape[-2:]
        begin = [max(0, (size - side) // 2) for size in taps]
        rows, columns = (slice(first, first + side) for first in begin)
        low = [before + first for before, first in zip(self.low, begin, strict=True)]
        return replace(self, kernel=self.kernel[:, :, rows, columns], low=_pair(low))

    def scaled(self, scale: Tensor, shift: Tensor) -> LinearMap:
        """Return the map followed by a scale and a shift of every channel."""
        return replace(self, kernel=self.kernel * scale[:, None, None], bias=self.bias * scale + shift)


def identity_map(shape: tuple[int, int, int], device: torch.device) -> LinearMap:
    """Return the map that changes nothing of feature maps of that shape, in float64: many kernels are multiplied."""
    channels, height, width = shape
    kernel = torch.eye(channels, dtype=torch.float64, device=device).reshape(channels, channels, 1, 1)
    return LinearMap(kernel, kernel.new_zeros(channels), (0, 0), (1, 1), (height, width), (height, width), frozenset())


@torch.no_grad()
def through(above: LinearMap, module: nn.Module, name: str) -> LinearMap | None:
    """Return the map followed by a layer; None for what is not linear, or where hooks may change it."""
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if isinstance(module, _TRANSPARENT):
        return above
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
        scale = torch.rsqrt(module.running_var.double() + module.eps)
        if module.weight is not None:
            scale = scale * module.weight
        shift = -module.running_mean * scale
        return above.scaled(scale, shift if module.bias is None else shift + module.bias)
    if isinstance(module, nn.AvgPool2d):
        size, stride, padding = (_pair(value) for value in (module.kernel_size, module.stride, module.padding))
        if module.ceil_mode or not (module.count_include_pad or padding == (0, 0)):
            return None
        channels = above.kernel.shape[1]
        area = module.divisor_override or math.prod(size)
        weight = above.kernel.new_full((channels, 1, *size), 1 / area)
        return _convolved(above, weight, None, stride, padding, (1, 1), channels, above.layers)
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        stride, padding, dilation = (_pair(value) for value in (module.stride, module.padding, module.dilation))
        layers = above.layers | {name}
        return _convolved(above, module.weight, module.bias, stride, padding, dilation, module.groups, layers)
    return None


def _convolved(
    above: LinearMap,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    layers: frozenset[str],
) -> LinearMap:
    """Return the map followed by a convolution: kernels are convolved, the second spread by the stride of the first."""
    spread = [s * d for s, d in zip(above.stride, dilation, strict=True)]
    around = [n * (k - 1) for n, k in zip(spread, weight.shape[-2:], strict=True)]
    weight = weight.double()
    kernel = F.conv2d(above.kernel, weight.flip(2, 3), padding=around, dilation=spread, groups=groups)
    constant = F.conv2d(above.bias.reshape(1, -1, 1, 1), weight.sum((2, 3), keepdim=True), groups=groups).flatten()
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(above.size, padding, dilation, weight.shape[-2:], stride, strict=True)
    ]
    low = [first - s * p for first, s, p in zip(above.low, above.stride, padding, strict=True)]
    steps = [one * other for one, other in zip(above.stride, stride, strict=True)]
    shifted = constant if bias is None else constant + bias
    return _cropped(LinearMap(kernel, shifted, _pair(low), _pair(steps), _pair(sizes), above.read, layers))


def _cropped(each: LinearMap) -> LinearMap:
    """Cut off what no pixel of the image ever meets, so that kernels stay small on small images."""
    low = [max(low, -s * (size - 1)) for low, s, size in zip(each.low, each.stride, each.size, strict=True)]
    high = [min(high, whole - 1) for high, whole in zip(_high(each), each.read, strict=True)]
    if any(last < first for first, last in zip(low, high, strict=True)):
        return each
    begin = [after - before for after, before in zip(low, each.low, strict=True)]
    rows, columns = (slice(b, b + last - first + 1) for b, first, last in zip(begin, low, high, strict=True))
    return replace(each, kernel=each.kernel[:, :, rows, columns], low=_pair(low))


def summed(one: LinearMap, other: LinearMap) -> LinearMap | None:
    """Return the sum of two maps of the same input; None where they do not fit."""
    if (one.stride, one.size, one.kernel.shape[:2]) != (other.stride, other.size, other.kernel.shape[:2]):
        return None
    low = [min(pair) for pair in zip(one.low, other.low, strict=True)]
    high = [max(pair) for pair in zip(_high(one), _high(other), strict=True)]

    def placed(each: LinearMap) -> Tensor:
        before = [first - least for first, least in zip(each.low, low, strict=True)]
        after = [most - last for last, most in zip(_high(each), high, strict=True)]
        return F.pad(each.kernel, (before[1], after[1], before[0], after[0]))

    kernel, bias = placed(one) + placed(other), one.bias + other.bias
    return replace(one, kernel=kernel, bias=bias, low=_pair(low), layers=one.layers | other.layers)


def _high(each: LinearMap) -> list[int]:
    """Return the largest offset, by dimension."""
    return [first + size - 1 for first, size in zip(each.low, each.kernel.shape[-2:], strict=True)]


def as_convolution(each: LinearMap) -> nn.Conv2d:
    """Return the convolution that a map is away from the border."""
    low, high = [min(first, 0) for first in each.low], [max(last, 0) for last in _high(each)]
    for axis, (stride, size, whole) in enumerate(zip(each.stride, each.size, each.read, strict=True)):
        # Zeros behind the last tap, or in front of the first, make the sizes come out.
        while (whole - low[axis] - high[axis] - 1) // stride + 1 > size:
            high[axis] += 1
        while (whole - low[axis] - high[axis] - 1) // stride + 1 < size:
            low[axis] -= 1
    grow = [value for axis in (1, 0) for value in (each.low[axis] - low[axis], high[axis] - _high(each)[axis])]
    kernel = F.pad(each.kernel, grow).transpose(0, 1)
    convolution = nn.Conv2d(
        kernel.shape[1],
        kernel.shape[0],
        _pair(kernel.shape[-2:]),
        stride=each.stride,
        padding=(-low[0], -low[1]),
        device=kernel.device,
        dtype=kernel.dtype,
    )
    convolution.load_state_dict({"weight": kernel, "bias": each.bias}, assign=True)
    return convolution


def _pair(value: object) -> Pair:
    first, second = value if isinstance(value, (tuple, list)) else (value, value)
    return int(first), int(second)
