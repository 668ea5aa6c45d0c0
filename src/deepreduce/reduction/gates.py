"""Constants in place of gates, so that a network that was made with them can be reduced and run privately.

A gate is a factor between bounds that a network computes for its own feature maps, such as the sigmoids of
squeeze-and-excitation (Hu, Shen, Sun, CVPR 2018). A product of two secret values has no private form here. What a gate
is on average is a constant for each channel: a linear layer, which costs nothing online.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..census import find_relus
from .plain import is_affine
from .products import find_products
from .removal import replace_call

_PREFIX = "deepreduce_scale"
_IMAGES = 8
_DIMENSIONS = 4  # of feature maps: images, channels, height, width


def fix_gates(network: fx.GraphModule, input: tuple[int, int, int]) -> tuple[fx.GraphModule, int]:
    """Return a copy of a traced network in which every gate of feature maps is a constant for each channel.

    The constant is the gate's mean over images of noise and over positions, with the weights that the network has. It
    is a weight of a depthwise convolution of 1x1, and is trained like any other. What only the gate needed is gone.

    Args:
        network: not changed.
        input: channels, height and width of one image.

    Returns:
        The copy, and how many gates it has lost.
    """
    own = copy.deepcopy(network)
    gates = {each.node: each for each in find_products(own) if each.source is None}
    if not gates:
        return own, 0
    means = _means(own, {node: each.gate for node, each in gates.items()}, input)
    for node, mean in means.items():
        scale = nn.Conv2d(len(mean), len(mean), 1, groups=len(mean), bias=False)
        scale.weight = nn.Parameter(mean.reshape(-1, 1, 1, 1))
        node.args, node.kwargs = (gates[node].tensor,), {}
        replace_call(own, node, _PREFIX, scale)
    own.graph.eliminate_dead_code()
    own.delete_all_unused_submodules()
    own.recompile()
    return own, len(means)


@torch.no_grad()
def absorb_constants(network: fx.GraphModule) -> None:
    """Let the batch norm in front of a gate's constants give what they give, where one is and nothing else reads it.

    A ReLU between the two does not matter, since what is positive goes through it. The network then has the layers that
    it would have without gates.

    Args:
        network: with constants from `fix_gates`; changed in place, and not recompiled.
    """
    relus = {site.node for site in find_relus(network) if site.kind == "relu"}
    called = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    shared = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    for node in list(network.graph.nodes):
        if node.op != "call_module" or not str(node.target).startswith(_PREFIX):
            continue
        constants = network.get_parameter(f"{node.target}.weight").flatten()
        source = node.all_input_nodes[0]
        norm = source
        while norm.name in relus and len(norm.users) == 1 and bool((constants > 0).all()):
            norm = norm.all_input_nodes[0]
        module = network.get_submodule(str(norm.target)) if norm.op == "call_module" else None
        alone = len(norm.users) == 1 and called[str(norm.target)] == 1
        if not (alone and isinstance(module, nn.BatchNorm2d) and is_affine(module) and module.affine):
            continue
        if all(shared[id(parameter)] == 1 for parameter in module.parameters()):
            module.weight.mul_(constants)
            module.bias.mul_(constants)
            node.replace_all_uses_with(source)
            network.graph.erase_node(node)


def _means(
    network: fx.GraphModule, gates: Mapping[fx.Node, fx.Node], input: tuple[int, int, int]
) -> dict[fx.Node, Tensor]:
    """Return the mean of the gate of every product that is a feature map, [channels], by product."""
    means: dict[fx.Node, Tensor] = {}

    class Means(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n in gates and result.dim() == _DIMENSIONS:
                means[n] = self.env[gates[n]].expand_as(result).mean((0, 2, 3))
            return result

    parameter = next(network.parameters())
    noise = torch.randn(_IMAGES, *input, generator=torch.Generator().manual_seed(0)).to(parameter)
    was_training = network.training
    with torch.no_grad():
        Means(network.eval()).run(noise)
    network.train(was_training)
    return means
