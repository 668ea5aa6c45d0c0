"""Collapsing: what comes before the first ReLU that is left becomes a single convolution.

Where the first stages have lost their ReLUs, only convolutions, batch norms, sums and average pools lie between the
image and the first ReLU: a linear map, and away from the border of the image one convolution with a large kernel. Its
input has three channels, so it is cheap: on ResNet18 without ReLUs in S1 and S2 it is 25x25 with stride 2, and a fifth
of the MACs. For private inference it matters more that it is one layer. A long stretch of linear layers needs an
encrypted product for each of them, and more and more bits, which in the end only circuits can take away again.

At the border the two differ: a stack of layers pads every layer's input with zeros, the convolution only the image. So
this is a step of reduction, after which the network is trained, and not an optimisation that changes nothing.
"""

from __future__ import annotations

import itertools
import operator

import torch
from torch import fx, nn

from ..census import all_pass, writes_in_place
from .linear_map import LinearMap, as_convolution, identity_map, summed, through

_NAME = "deepreduce_head"


def head_of(network: fx.GraphModule, input: tuple[int, int, int]) -> fx.Node | None:
    """Return the last node before the first ReLU through which the output depends on the image, and through no other.

    Args:
        network: traced, without the ReLUs that go.
        input: channels, height and width of one image.

    Returns:
        The node, None where fewer than two convolutions come before it, something is written in place, or the
        convolution would need more memory than `linear_map.MOST_BYTES`.
    """
    nodes = list(network.graph.nodes)
    convolutions = any(isinstance(module, nn.Conv2d) for module in network.modules())
    single = sum(node.op == "placeholder" for node in nodes) == 1
    if not convolutions or not single or any(writes_in_place(node) for node in nodes):
        return None
    maps = {node: each for node, each in _maps(network, input).items() if len(each.layers) > 1}
    heads = [node for node in maps if maps[node].fits and all_pass(network.graph, node)]
    return heads[-1] if heads else None


def collapse(network: fx.GraphModule, head: str, input: tuple[int, int, int]) -> fx.GraphModule:
    """Put one convolution in the place of a node and of all that comes before it.

    Its weights are those that make it the same map away from the border; batch norms count as in evaluation.

    Args:
        network: traced; changed in place, and returned. On the `meta` device the convolution has no weights either.
        head: name of a node as `head_of` returns, in this network or one with the same graph.
        input: channels, height and width of one image; what no image reaches is cut off the kernel.
    """
    node = next(node for node in network.graph.nodes if node.name == head)
    convolution = as_convolution(_maps(network, input, before(network, head) | {head})[node])
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


def before(network: fx.GraphModule, node: str) -> set[str]:
    """Return the names of the nodes that a node depends on."""
    ends, seen = [each for each in network.graph.nodes if each.name == node], set()
    while ends:
        for above in ends.pop().all_input_nodes:
            if above.name not in seen:
                seen.add(above.name)
                ends.append(above)
    return seen


def _maps(
    network: fx.GraphModule, input: tuple[int, int, int], wanted: set[str] | None = None
) -> dict[fx.Node, LinearMap]:
    """Return the nodes, of those that are wanted, that are linear maps from the image as a convolution is."""
    found: dict[fx.Node, LinearMap] = {}
    device = next(network.parameters()).device
    for node in network.graph.nodes:
        if wanted is not None and node.name not in wanted:
            continue
        made = identity_map(input, device) if node.op == "placeholder" else _map(node, network, found)
        if made is not None:
            found[node] = made
    return found


@torch.no_grad()
def _map(node: fx.Node, network: fx.GraphModule, maps: dict[fx.Node, LinearMap]) -> LinearMap | None:
    above = [maps.get(source) for source in node.all_input_nodes]
    if not above or any(one is None for one in above):
        return None
    known = [one for one in above if one is not None]
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return through(known[0], module, str(node.target))
    if node.op == "call_method" and node.target in ("clone", "contiguous"):
        return known[0]
    if node.op in ("call_function", "call_method") and node.target in (operator.add, operator.iadd, torch.add, "add"):
        return summed(known[0], known[1]) if len(known) == len(node.args) == 2 and not node.kwargs else None
    return None
