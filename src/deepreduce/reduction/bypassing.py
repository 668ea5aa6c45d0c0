"""Bypassing: what a block loses with its ReLUs goes on in a convolution beside it (our own).

Where a block becomes narrow or is trimmed, channels and positions are lost altogether, although only their ReLUs cost
circuits. A linear channel of a block, from one convolution to the next, is a convolution too, and all that go fit into
a single one, which reads what the block reads and is added to what it writes. It begins as the best linear fit of what
was lost, cut to the middle of its kernel, and is trained with the rest. Private inference computes it as a part of the
linear way around the block.
"""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from ..census import example_images, find_relus
from .linear_map import LinearMap, as_convolution, identity_map, summed, through
from .nonlinearity import linear_fit
from .removal import relu_nodes

_NAME = "deepreduce_bypass"
_DIMENSIONS = 3  # of a feature map: channels, height, width

KERNEL = 3
"""Most taps of the convolution by dimension: two of 3x3 make one of 5x5, which is no more accurate once trained."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Stretch:
    """The layers around a ReLU, up to where the channels are those of the wide network again, by name of their nodes.

    Attributes:
        source: what the first of them reads.
        inside: one behind the other.
    """

    source: str
    inside: tuple[str, ...]


def add_bypasses(
    network: fx.GraphModule,
    wide: fx.GraphModule,
    names: Collection[str],
    input: tuple[int, int, int],
    *,
    kernel: int = KERNEL,
) -> fx.GraphModule:
    """Return a copy of a narrowed network in which a convolution goes around some ReLU layers.

    It goes from the last place before the ReLU where the network has as many channels as the wide one to the first
    behind it, where only convolutions, batch norms and ReLUs lie between, one behind the other. Elsewhere, and where it
    would need more memory than `linear_map.MOST_BYTES`, the ReLU has none.

    Its weights are the linear map of the wide network's layers less that of the narrow one's, with the best linear fit
    in the place of every ReLU (`nonlinearity.linear_fit`): zeros where no channel was lost.

    Args:
        network: traced, with all its ReLUs; not changed.
        wide: the network before it was narrowed, with the same graph.
        names: call sites.
        input: channels, height and width of one image.
        kernel: most taps of a convolution by dimension; the outer ones of a larger kernel are left out.

    Raises:
        NetworkError: if a call site does not exist.
    """
    own = copy.deepcopy(network)
    nodes = relu_nodes(own, names)
    shapes, before = _shapes(own, input), _shapes(wide, input)
    fixed = {name for name, shape in shapes.items() if len(shape) == _DIMENSIONS and before.get(name) == shape}
    stretches = [_stretch(own, node, fixed) for node in nodes.values()]
    for stretch in dict.fromkeys(found for found in stretches if found is not None):
        read = shapes[stretch.source]
        lost = _difference(_linear(wide, stretch, read), _linear(own, stretch, read))
        if lost is not None and lost.cut(kernel).fits:
            _add(own, stretch, as_convolution(lost.cut(kernel)))
    own.recompile()
    return own


def _shapes(network: fx.GraphModule, input: tuple[int, int, int]) -> Shapes:
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
def _linear(network: fx.GraphModule, stretch: _Stretch, shape: tuple[int, ...]) -> LinearMap | None:
    """Return a stretch with the best linear fit in the place of every ReLU; None where a layer is something else."""
    channels, height, width = shape
    found: LinearMap | None = identity_map((channels, height, width), next(network.parameters()).device)
    nodes = {node.name: node for node in network.graph.nodes}
    relus = {site.node for site in find_relus(network)}
    norm: nn.Module | None = None
    for name in stretch.inside:
        if found is None:
            return None
        if name in relus:
            found = found.scaled(*_fit(norm, found.bias))
            continue
        if nodes[name].op != "call_module":
            return None
        norm = network.get_submodule(str(nodes[name].target))
        found = through(found, norm, name)
    return found


def _fit(layer: nn.Module | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and intercept of a ReLU behind a layer; without a batch norm half of the input, by symmetry."""
    if isinstance(layer, nn.BatchNorm2d) and layer.affine:
        return linear_fit(layer.weight.double(), layer.bias.double())
    return torch.full_like(like, 0.5), torch.zeros_like(like)


def _difference(one: LinearMap | None, other: LinearMap | None) -> LinearMap | None:
    if one is None or other is None:
        return None
    return summed(one, replace(other, kernel=-other.kernel, bias=-other.bias))


def _add(own: fx.GraphModule, stretch: _Stretch, convolution: nn.Conv2d) -> None:
    """Let a convolution read what a stretch reads, and add it to what the stretch gives."""
    nodes = {node.name: node for node in own.graph.nodes}
    source, first, last = nodes[stretch.source], nodes[stretch.inside[0]], nodes[stretch.inside[-1]]
    name = next(f"{_NAME}_{number}" for number in itertools.count() if not hasattr(own, f"{_NAME}_{number}"))
    convolution.requires_grad_(any(parameter.requires_grad for parameter in own.parameters()))
    own.add_submodule(name, convolution.to(next(own.parameters()).dtype).train(own.training))
    with own.graph.inserting_before(first):  # what it reads may be written to later
        beside = own.graph.call_module(name, (source,))
    with own.graph.inserting_after(last):
        whole = own.graph.call_function(operator.add, (last, beside))
    last.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)
