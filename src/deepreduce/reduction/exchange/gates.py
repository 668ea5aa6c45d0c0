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

from ...census import evaluating, example_images, find_relus
from ..surgery import is_affine, replace_call
from .layouts import TO_FIRST, TO_LAST, channels_last
from .products import Gate, find_gates

_PREFIX = "deepreduce_scale"
_IMAGES = 8
_LEAST = 1e-3  # of a constant that goes through a ReLU: none would let its channel go on
_DIMENSIONS = 4  # of feature maps: images, channels, height, width


class ChannelConstants(nn.Conv2d):
    """A constant for each channel, as a depthwise convolution of 1x1; drawn anew they are ones."""

    def __init__(self, constants: Tensor, *, positive: bool) -> None:
        """Make the layer.

        Args:
            constants: [channels].
            positive: whether they are the means of what is never below zero.
        """
        super().__init__(len(constants), len(constants), 1, groups=len(constants), bias=False)
        self.weight = nn.Parameter(constants.detach().reshape(-1, 1, 1, 1).clone())
        self.positive = positive

    def reset_parameters(self) -> None:
        """Set every constant to one."""
        nn.init.ones_(self.weight)


def fix_gates(network: fx.GraphModule, input: tuple[int, int, int]) -> tuple[fx.GraphModule, int]:
    """Return a copy of a traced network in which every gate of feature maps is a constant for each channel.

    The constant is the gate's mean over images of noise and over positions, with the weights that the network has. It
    is a weight of a depthwise convolution of 1x1, and is trained like any other. What only the gate needed is gone.

    Args:
        network: not changed.
        input: channels, height and width of one image.

    Returns:
        The copy, and how many products it has lost.
    """
    own = copy.deepcopy(network)
    products = find_gates(own)
    if not products:
        return own, 0
    last = channels_last(own)
    count = 0
    for node, (gate, mean) in reversed(_measure(own, products, input).items()):  # a gate behind another one first
        if node.users:  # else it was a part of such a gate
            _replace(own, node, gate, mean, last=node in last)
            count += 1
    for node in list(own.graph.nodes):
        if node.target is torch._assert:  # of a shape, in a layer that may be gone: it would keep what it reads
            own.graph.erase_node(node)
    own.graph.eliminate_dead_code()
    own.delete_all_unused_submodules()
    own.recompile()
    return own, count


def _replace(own: fx.GraphModule, node: fx.Node, gate: Gate, mean: Tensor, *, last: bool) -> None:
    """Put constants in the place of a product with a gate; `last` says where the channels are."""
    constants = ChannelConstants(mean, positive=gate.positive).train(own.training)
    source = gate.tensor
    if last:
        with own.graph.inserting_before(node):
            source = own.graph.call_method("permute", (source, *TO_FIRST))
        with own.graph.inserting_after(node):
            back = own.graph.call_method("permute", (node, *TO_LAST))
        node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)
    node.args, node.kwargs = (source,), {}
    replace_call(own, node, _PREFIX, constants)


@torch.no_grad()
def absorb_constants(network: fx.GraphModule) -> None:
    """Let the batch norm in front of a gate's constants give what they give, where one is and nothing else reads it.

    A ReLU between the two does not matter where the gate is never below zero, since what is positive goes through it.
    The network then has the layers that it would have without gates. Whether it is so does not depend on weights.

    Args:
        network: with constants from `fix_gates`; changed in place, and not recompiled.
    """
    relus = {site.node for site in find_relus(network) if site.kind == "relu"}
    called = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in network.graph.find_nodes(op="get_attr")}
    shared = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    for node in list(network.graph.nodes):
        if node.op != "call_module" or not str(node.target).startswith(_PREFIX):
            continue
        layer = network.get_submodule(str(node.target))
        assert isinstance(layer, ChannelConstants)
        source = node.all_input_nodes[0]
        norm = source
        while norm.name in relus and len(norm.users) == 1 and layer.positive:
            norm = norm.all_input_nodes[0]
        module = network.get_submodule(str(norm.target)) if norm.op == "call_module" else None
        alone = len(norm.users) == 1 and called[str(norm.target)] == 1 and str(norm.target) not in read
        if not (alone and isinstance(module, nn.BatchNorm2d) and is_affine(module) and module.affine):
            continue
        if all(shared[id(parameter)] == 1 for parameter in module.parameters()):
            constants = layer.weight.flatten()
            if norm is not source:
                constants = constants.clamp_min(_LEAST)
            module.weight.mul_(constants)
            module.bias.mul_(constants)
            node.replace_all_uses_with(source)
            network.graph.erase_node(node)


def _measure(
    network: fx.GraphModule, products: Mapping[fx.Node, list[Gate]], input: tuple[int, int, int]
) -> dict[fx.Node, tuple[Gate, Tensor]]:
    """Return the gate of every product that is a feature map, with its mean for each channel."""
    found: dict[fx.Node, tuple[Gate, Tensor]] = {}
    last = channels_last(network)

    class Measure(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n in products and result.dim() == _DIMENSIONS:
                fitting = [gate for gate in products[n] if self.env[gate.tensor].shape == result.shape]
                if fitting:  # the smaller factor is the gate, whatever it is
                    gate = min(fitting, key=lambda each: (self.env[each.node].numel(), each.kind))
                    others = (0, 1, 2) if n in last else (0, 2, 3)
                    found[n] = gate, self.env[gate.node].expand_as(result).mean(others)
            return result

    black = example_images(network, input, count=_IMAGES)
    noise = torch.randn(black.shape, generator=torch.Generator().manual_seed(0)).to(black)
    with evaluating(network), torch.no_grad():
        Measure(network).run(noise)
    return found
