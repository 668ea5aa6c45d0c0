"""Bypassing: what a block loses with its ReLUs goes on as linear layers beside it (our own).

Where a block becomes narrow or is trimmed, channels and positions are lost altogether, although only their ReLUs cost
messages. Here the block gets a second, linear path: a copy of its layers as they were, every ReLU in it replaced by the
best linear fit, which reads what the block reads and is added to what its last convolution writes. For private
inference it is a part of the linear way around the block. Its convolutions have all their padding in front, so that
together they are exactly one convolution, also at the border.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.parametrize import is_parametrized

from ...census import example_images, find_relus
from .nonlinearity import linear_fit
from .plain import is_affine, is_plain_convolution, is_transparent, padding_of
from .removal import relu_nodes

_NAME = "deepreduce_bypass"
_DIMENSIONS = 3  # of a feature map: channels, height, width

Channels = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class _Stretch:
    """The layers around a ReLU, up to where the channels are those of the wide network again, by name of their nodes.

    Attributes:
        source: what the first of them reads.
        inside: one behind the other; the first and the last are convolutions.
    """

    source: str
    inside: tuple[str, ...]


def add_bypasses(
    network: fx.GraphModule,
    wide: fx.GraphModule,
    names: Collection[str],
    input: tuple[int, int, int],
    *,
    read: Channels = MappingProxyType({}),
) -> fx.GraphModule:
    """Return a copy of a narrowed network in which linear layers go around some ReLU layers.

    They go from the last place before the ReLU where the network has as many channels as the wide one to the first
    behind it, where only plain convolutions, batch norms and ReLUs lie between, one behind the other. Elsewhere the
    ReLU has none.

    They hold the weights of the wide network, and the last convolution begins with zeros for the channels that it still
    reads in the narrow block. So with the best linear fit in place of the ReLUs they give what the lost channels gave,
    away from the border; behind two narrow layers that are not depthwise, without what the first of them lost for the
    channels that the second one keeps. Where no channel was lost they begin with nothing. A copy of a batch norm with
    weights in front of a ReLU takes over slope and intercept (`nonlinearity.linear_fit`); where there is none the
    slope is one half.

    Args:
        network: traced, with all its ReLUs; not changed.
        wide: the network before it was narrowed, with the same graph.
        names: call sites.
        input: channels, height and width of one image.
        read: by name of the layers of `network` that read fewer channels than in `wide`, which they read, as
            `narrow_channels` returns.

    Raises:
        NetworkError: if a call site does not exist.
    """
    own = copy.deepcopy(network)
    nodes = relu_nodes(own, names)
    shapes, before = _shapes(own, input), _shapes(wide, input)
    fixed = {name for name, shape in shapes.items() if len(shape) == _DIMENSIONS and before.get(name) == shape}
    found = [_stretch(own, node, fixed) for node in nodes.values()]
    stretches = dict.fromkeys(stretch for stretch in found if stretch is not None)
    made = {stretch: layers for stretch in stretches if (layers := _linear_copies(wide, stretch)) is not None}
    # The last one first: what an earlier one adds to is then what this one reads as well.
    for number, (stretch, layers) in reversed(list(enumerate(made.items()))):
        last = next(node for node in own.graph.nodes if node.name == stretch.inside[-1])
        _silence(layers[-1], read.get(str(last.target)))
        _insert(own, stretch, layers, f"{_NAME}_{number}")
    own.recompile()
    return own


def _shapes(network: fx.GraphModule, input: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors for one image, without the batch dimension, by name of their nodes."""
    own = copy.deepcopy(network).eval()
    with torch.no_grad():
        ShapeProp(own).propagate(example_images(own, input))
    metas = {node.name: node.meta.get("tensor_meta") for node in own.graph.nodes}
    return {name: tuple(meta.shape[1:]) for name, meta in metas.items() if hasattr(meta, "shape")}


def _stretch(own: fx.GraphModule, relu: fx.Node, fixed: Collection[str]) -> _Stretch | None:
    """Return the stretch around a ReLU; None where it branches, or never comes to the wide network's channels."""
    inside = [relu]
    while not (_is_convolution(own, inside[0]) and inside[0].all_input_nodes[0].name in fixed):
        above = inside[0].all_input_nodes
        if len(above) != 1 or len(above[0].users) != 1:
            return None
        inside.insert(0, above[0])
    while not (_is_convolution(own, inside[-1]) and inside[-1].name in fixed):
        if len(inside[-1].users) != 1:
            return None
        inside.extend(inside[-1].users)
    return _Stretch(inside[0].all_input_nodes[0].name, tuple(node.name for node in inside))


def _is_convolution(own: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(own.get_submodule(str(node.target)), nn.Conv2d)


@torch.no_grad()
def _linear_copies(wide: fx.GraphModule, stretch: _Stretch) -> list[nn.Module] | None:
    """Return copies of a stretch's layers with linear fits for ReLUs; None where a layer is no plain one."""
    nodes = {node.name: node for node in wide.graph.nodes}
    relus = {site.node for site in find_relus(wide)}
    layers: list[nn.Module] = []
    halved = False
    for name in stretch.inside:
        if name in relus:
            if layers and isinstance(layers[-1], nn.BatchNorm2d) and layers[-1].affine:
                slope, intercept = linear_fit(layers[-1].weight.double(), layers[-1].bias.double())
                layers[-1].bias.copy_(slope * layers[-1].bias + intercept)
                layers[-1].weight.mul_(slope)
            else:
                halved = True
            continue
        module = wide.get_submodule(str(nodes[name].target)) if nodes[name].op == "call_module" else None
        if is_transparent(module):
            continue
        if module is None or not (is_plain_convolution(module) or is_affine(module)):
            return None
        if is_parametrized(module):  # there is no weight that could be changed
            return None
        layers.append(copy.deepcopy(module))
        if halved:
            _halve_input(layers[-1])
            halved = False
    _pad_in_front([layer for layer in layers if isinstance(layer, nn.Conv2d)])
    return layers


def _halve_input(layer: nn.Module) -> None:
    """Change a layer so that it gives for an input what it gave for half of it."""
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.mul_(2)
        layer.running_var.mul_(4)
    else:
        layer.get_parameter("weight").mul_(0.5)


def _pad_in_front(convolutions: Sequence[nn.Conv2d]) -> None:
    """Give the first of several convolutions so much padding that the others need none for their outputs' sizes."""
    padding, step = [0, 0], [1, 1]
    for layer in convolutions:
        padding = [p + s * own for p, s, own in zip(padding, step, padding_of(layer), strict=True)]
        step = [s * own for s, own in zip(step, layer.stride, strict=True)]
        layer.padding = (0, 0)
    convolutions[0].padding = padding[0], padding[1]


@torch.no_grad()
def _silence(last: nn.Module, read: Sequence[int] | None) -> None:
    """Let the last convolution begin with what was lost alone, and without a bias: the block still has its own."""
    assert isinstance(last, nn.Conv2d)
    inputs, outputs = last.in_channels // last.groups, last.out_channels // last.groups
    for channel in range(last.in_channels) if read is None else read:
        group = channel // inputs
        last.weight[group * outputs : (group + 1) * outputs, channel % inputs] = 0
    last.bias = None


def _insert(own: fx.GraphModule, stretch: _Stretch, layers: Sequence[nn.Module], name: str) -> None:
    """Let layers read what a stretch reads, and add what they give to what the stretch gives."""
    nodes = {node.name: node for node in own.graph.nodes}
    value, first, last = nodes[stretch.source], nodes[stretch.inside[0]], nodes[stretch.inside[-1]]
    own.add_submodule(name, nn.Sequential(*layers).train(own.training))
    with own.graph.inserting_before(first):  # what it reads may be written to later
        for place in range(len(layers)):
            value = own.graph.call_module(f"{name}.{place}", (value,))
    with own.graph.inserting_after(last):
        whole = own.graph.call_function(operator.add, (last, value))
    last.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)
