"""Linear layers behind flattened maps as convolutions for a while, so that torch-pruning can count their channels.

Such a layer reads H W numbers of each of C channels. torch-pruning finds out how many from the widths of the layers in
front, and loses count where maps are concatenated there. A convolution as large as the map computes the same from the
map itself, and reads each channel once:

    y_o = sum over c, h, w of W[o, (c, h, w)] x[c, h, w]
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...census import FunctionalDropout, function_name
from .plain import is_extended, is_transparent


@contextlib.contextmanager
def as_convolutions(network: fx.GraphModule, images: Tensor) -> Iterator[dict[nn.Module, nn.Conv2d]]:
    """Put convolutions in the place of linear layers that read a flattened map, and put them back afterwards.

    Whatever the convolutions have lost by then, of the channels that they read and those that they make, the linear
    layers have lost too. A linear layer that is called several times stays.

    Args:
        network: traced; changed in place. It must not be called while it has convolutions, but to prune them: fixed
            sizes in the flattening are not looked at.
        images: what it is run on, to see the shapes of its maps.

    Yields:
        The convolutions, by the linear layers whose place they take.
    """
    meter = _Shapes(network)
    with torch.no_grad():
        meter.run(images)
    calls = Counter(network.get_submodule(str(node.target)) for node in network.graph.find_nodes(op="call_module"))
    own, graph = network.graph, fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(own, copies))
    stand_ins: dict[nn.Module, nn.Conv2d] = {}
    places: dict[nn.Linear, str] = {}
    for node in own.find_nodes(op="call_module"):
        layer = network.get_submodule(str(node.target))
        if type(layer) is not nn.Linear or is_extended(layer, nn.Linear) or calls[layer] > 1:
            continue
        way = _way_from_map(network, node, meter.found)
        if not way:
            continue
        source = way[0].all_input_nodes[0]
        stand_ins[layer], places[layer] = _convolution(layer, meter.found[source]), str(node.target)
        _read_map(copies[node], copies[source], way[1:])
    for layer, place in places.items():
        _put(network, place, stand_ins[layer])
    network.graph = graph
    try:
        yield stand_ins
    finally:
        for layer, place in places.items():
            _take_over(layer, stand_ins[layer])
            _put(network, place, layer)
        network.graph = own


class _Shapes(fx.Interpreter):
    """Runs a network and notes the shapes of all values that are one tensor."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.found: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = result.shape
        return result


def _way_from_map(network: fx.GraphModule, layer: fx.Node, shapes: dict[fx.Node, torch.Size]) -> list[fx.Node]:
    """Return what lies between a map and the linear layer that reads it, the flattening first; nothing without one.

    ReLUs and dropout may follow: they work on each number by itself, before the flattening as well as behind.
    """
    node, way = layer.all_input_nodes[0], list[fx.Node]()
    while node.op != "placeholder":
        way.insert(0, node)
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        name = function_name(node) if node.op in ("call_function", "call_method") else ""
        if isinstance(module, nn.Flatten) or name in ("flatten", "view", "reshape"):
            before, after = shapes.get(node.all_input_nodes[0], ()), shapes.get(node, ())
            whole = len(before) == 4 and len(after) == 2 and before[0] == after[0]
            return way if whole and math.prod(before[2:]) > 1 else []
        if not (isinstance(module, nn.ReLU | FunctionalDropout) or is_transparent(module) or name == "relu"):
            break
        node = node.all_input_nodes[0]
    return []


def _read_map(layer: fx.Node, source: fx.Node, steps: list[fx.Node]) -> None:
    """Let a layer read a map, through copies of what worked on the flattened one, and flatten what it gives."""
    graph, users, read = layer.graph, list(layer.users), source
    with graph.inserting_before(layer):
        for step in steps:
            read = graph.node_copy(step, {step.all_input_nodes[0]: read}.__getitem__)
    layer.replace_input_with(layer.all_input_nodes[0], read)
    with graph.inserting_after(layer):
        vector = graph.call_function(torch.flatten, (layer, 1))
    for user in users:
        user.replace_input_with(layer, vector)


def _convolution(layer: nn.Linear, shape: torch.Size) -> nn.Conv2d:
    """Return the convolution that is a linear layer on maps of a shape."""
    _, channels, height, width = shape
    made = nn.Conv2d(channels, layer.out_features, (height, width), bias=layer.bias is not None, device="meta")
    made.weight = nn.Parameter(layer.weight.detach().reshape(-1, channels, height, width))
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach())
    return made


def numbers_of(convolution: nn.Conv2d, channels: list[int]) -> list[int]:
    """Return the places that channels of a map have once it is flattened, for the convolution that reads it."""
    size = math.prod(convolution.kernel_size)
    return [channel * size + place for channel in channels for place in range(size)]


def _take_over(layer: nn.Linear, convolution: nn.Conv2d) -> None:
    """Give a linear layer what is left of the convolution that stood in its place."""
    weight = convolution.weight.detach().flatten(1)
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight)
    if convolution.bias is not None:
        layer.bias = nn.Parameter(convolution.bias.detach())


def _put(network: nn.Module, place: str, module: nn.Module) -> None:
    path, _, name = place.rpartition(".")
    setattr(network.get_submodule(path), name, module)
