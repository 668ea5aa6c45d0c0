"""Constants in place of gates, so that a network that was made with them can be reduced and run privately.

A gate is a factor between bounds that a network computes for its own feature maps, such as the sigmoids of
squeeze-and-excitation (Hu, Shen, Sun, CVPR 2018). A product of two secret values has no private form here. What a gate
is on average is a constant for each channel: a linear layer, which costs nothing online.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

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
