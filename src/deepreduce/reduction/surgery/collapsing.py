"""Collapsing: what comes before the first ReLU that is left becomes a single convolution.

Where the first stages have lost their ReLUs, only convolutions, batch norms, sums and average pools lie between the
image and the first ReLU: a linear map, and away from the border of the image one convolution with a large kernel. Its
input has three channels, so it is cheap: on ResNet18 without ReLUs in S1 and S2 it is 25x25 with stride 2, and a fifth
of the MACs. For private inference it matters more that it is one layer. A long stretch of linear layers needs an
encrypted product for each of them, and more and more bits, which have to be truncated away again.

At the border the two differ: a stack of layers pads every layer's input with zeros, the convolution only the image. So
this is a step of reduction, after which the network is trained, and not an optimisation that changes nothing.
"""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from jaxtyping import Float
from torch import Tensor, fx, nn

from ...census import all_pass, writes_in_place
from .plain import is_transparent

_NAME = "deepreduce_head"

MOST_BYTES = 2**28
"""Of one image where the input of the convolution is unfolded, as PyTorch does on a CPU in float64."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class _Map:
    """A linear map from the image that is a convolution away from the border.

    y[c, o] = bias[c] + sum over i, d of kernel[i, c, d - low] x[i, stride * o + d]

    Attributes:
        kernel: input channels first.
        bias: of every output channel.
        low: smallest offset d, by dimension.
        stride: of the output's positions on the image, by dimension.
        size: height and width of the output.
        image: height and width of the image.
        layers: names of the convolutions in it.
    """

    kernel: Float[Tensor, "i c h w"]
    bias: Float[Tensor, " c"]
    low: Pair
    stride: Pair
    size: Pair
    image: Pair
    layers: frozenset[str]


def head_of(network: fx.GraphModule, input: tuple[int, int, int]) -> fx.Node | None:
    """Return the last node before the first ReLU through which the output depends on the image, and through no other.

    Args:
        network: traced, without the ReLUs that go.
        input: channels, height and width of one image.

    Returns:
        The node, None where fewer than two convolutions come before it, something is written in place, or the
        convolution would need more memory than `MOST_BYTES`.
    """
    nodes = list(network.graph.nodes)
    convolutions = any(isinstance(module, nn.Conv2d) for module in network.modules())
    single = sum(node.op == "placeholder" for node in nodes) == 1
    if not convolutions or not single or any(writes_in_place(node) for node in nodes):
        return None
    maps = {node: each for node, each in _maps(network, input).items() if len(each.layers) > 1}
    heads = [node for node in maps if _bytes(maps[node]) <= MOST_BYTES and all_pass(network.graph, node)]
    return heads[-1] if heads else None


def _bytes(each: _Map) -> int:
    """Return what a convolution of this map takes for one image in float64 where its input is unfolded."""
    inputs, _, *taps = each.kernel.shape
    return 8 * inputs * math.prod(taps) * math.prod(each.size)


def collapse(network: fx.GraphModule, head: str, input: tuple[int, int, int]) -> fx.GraphModule:
    """Put one convolution in the place of a node and of all that comes before it.

    Its weights are those that make it the same map away from the border; batch norms count as in evaluation.

    Args:
        network: traced; changed in place, and returned. On the `meta` device the convolution has no weights either.
        head: name of a node as `head_of` returns, in this network or one with the same graph.
        input: channels, height and width of one image; what no image reaches is cut off the kernel.
    """
    node = next(node for node in network.graph.nodes if node.name == head)
    convolution = _convolution(_maps(network, input, nodes_before(network, head) | {head})[node])
    image = next(node for node in network.graph.nodes if node.op == "placeholder")
    name = next(f"{_NAME}_{number}" for number in itertools.count() if not hasattr(network, f"{_NAME}_{number}"))
    convolution.requires_grad_(any(parameter.requires_grad for parameter in network.parameters()))
    network.add_submodule(name, convolution)
    with network.graph.inserting_before(node):
        call = network.graph.call_module(name, (image,))
    call.meta.update(node.meta)
    convolution.to(next(network.parameters()).dtype).train(network.training)
    node.replace_all_uses_with(call)
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()
    return network


def nodes_before(network: fx.GraphModule, node: str) -> set[str]:
    """Return the names of the nodes that a node depends on."""
    ends, seen = [each for each in network.graph.nodes if each.name == node], set()
    while ends:
        for above in ends.pop().all_input_nodes:
            if above.name not in seen:
                seen.add(above.name)
                ends.append(above)
    return seen


def _maps(network: fx.GraphModule, input: tuple[int, int, int], wanted: set[str] | None = None) -> dict[fx.Node, _Map]:
    """Return the nodes, of those that are wanted, that are linear maps from the image as a convolution is."""
    found: dict[fx.Node, _Map] = {}
    for node in network.graph.nodes:
        if wanted is not None and node.name not in wanted:
            continue
        made = _image(network, input) if node.op == "placeholder" else _map(node, network, found)
        if made is not None:
            found[node] = made
    return found


def _image(network: fx.GraphModule, input: tuple[int, int, int]) -> _Map:
    """Return the map that changes nothing, in float64: many kernels are multiplied."""
    channels, height, width = input
    device = next(network.parameters()).device
    kernel = torch.eye(channels, dtype=torch.float64, device=device).reshape(channels, channels, 1, 1)
    return _Map(kernel, kernel.new_zeros(channels), (0, 0), (1, 1), (height, width), (height, width), frozenset())


@torch.no_grad()
def _map(node: fx.Node, network: fx.GraphModule, maps: dict[fx.Node, _Map]) -> _Map | None:
    above = [maps.get(source) for source in node.all_input_nodes]
    if not above or any(one is None for one in above):
        return None
    known = [one for one in above if one is not None]
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return _through(known[0], module, str(node.target))
    if node.op == "call_method" and node.target in ("clone", "contiguous"):
        return known[0]
    if node.op in ("call_function", "call_method") and node.target in (operator.add, operator.iadd, torch.add, "add"):
        return _sum(known[0], known[1]) if len(known) == len(node.args) == 2 and not node.kwargs else None
    return None


def _through(above: _Map, module: nn.Module, name: str) -> _Map | None:
    """Return the map followed by a layer; None for what is not linear, or where hooks may change it."""
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if is_transparent(module):
        return above
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
        scale = torch.rsqrt(module.running_var.double() + module.eps)
        if module.weight is not None:
            scale = scale * module.weight
        bias = (above.bias - module.running_mean) * scale
        if module.bias is not None:
            bias = bias + module.bias
        return replace(above, kernel=above.kernel * scale[:, None, None], bias=bias)
    if isinstance(module, nn.AvgPool2d):
        return _averaged(above, module)
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        stride, padding, dilation = (_pair(value) for value in (module.stride, module.padding, module.dilation))
        layers = above.layers | {name}
        return _convolved(above, module.weight, module.bias, stride, padding, dilation, module.groups, layers)
    return None


def _averaged(above: _Map, pool: nn.AvgPool2d) -> _Map:
    """Return the map followed by an average over windows; those at the border count as if they were whole."""
    size, stride, padding = (_pair(value) for value in (pool.kernel_size, pool.stride, pool.padding))
    channels = above.kernel.shape[1]
    area = pool.divisor_override or math.prod(size)
    weight = above.kernel.new_full((channels, 1, *size), 1 / area)
    after = _convolved(above, weight, None, stride, padding, (1, 1), channels, above.layers)
    if not pool.ceil_mode:
        return after
    # One more window where there is a rest, if it begins on the map or the padding in front of it.
    return replace(
        after,
        size=_pair(
            [
                n + 1 if (whole + 2 * p - k) % s and n * s < whole + p else n
                for n, whole, p, k, s in zip(after.size, above.size, padding, size, stride, strict=True)
            ]
        ),
    )


def _convolved(
    above: _Map,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    layers: frozenset[str],
) -> _Map:
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
    return _cropped(_Map(kernel, shifted, _pair(low), _pair(steps), _pair(sizes), above.image, layers))


def _cropped(each: _Map) -> _Map:
    """Cut off what no pixel of the image ever meets, so that kernels stay small on small images."""
    low = [max(low, -s * (size - 1)) for low, s, size in zip(each.low, each.stride, each.size, strict=True)]
    high = [min(high, whole - 1) for high, whole in zip(_high(each), each.image, strict=True)]
    if any(last < first for first, last in zip(low, high, strict=True)):
        return each
    begin = [after - before for after, before in zip(low, each.low, strict=True)]
    rows, columns = (slice(b, b + last - first + 1) for b, first, last in zip(begin, low, high, strict=True))
    return replace(each, kernel=each.kernel[:, :, rows, columns], low=_pair(low))


def _sum(one: _Map, other: _Map) -> _Map | None:
    """Return the sum of two maps."""
    if (one.stride, one.size, one.kernel.shape[:2]) != (other.stride, other.size, other.kernel.shape[:2]):
        return None
    low = [min(pair) for pair in zip(one.low, other.low, strict=True)]
    high = [max(pair) for pair in zip(_high(one), _high(other), strict=True)]

    def placed(each: _Map) -> Tensor:
        before = [first - least for first, least in zip(each.low, low, strict=True)]
        after = [most - last for last, most in zip(_high(each), high, strict=True)]
        return F.pad(each.kernel, (before[1], after[1], before[0], after[0]))

    kernel, bias = placed(one) + placed(other), one.bias + other.bias
    return replace(one, kernel=kernel, bias=bias, low=_pair(low), layers=one.layers | other.layers)


def _high(each: _Map) -> list[int]:
    """Return the largest offset, by dimension."""
    return [first + size - 1 for first, size in zip(each.low, each.kernel.shape[-2:], strict=True)]


def _convolution(each: _Map) -> nn.Conv2d:
    """Return the convolution that a map is away from the border."""
    low, high = [min(first, 0) for first in each.low], [max(last, 0) for last in _high(each)]
    for axis, (stride, size, whole) in enumerate(zip(each.stride, each.size, each.image, strict=True)):
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
