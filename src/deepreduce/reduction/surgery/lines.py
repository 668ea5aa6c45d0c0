"""Lines in place of removed ReLUs, where they cost nothing (our own).

Elsewhere a removed ReLU becomes the identity. Among ReLUs that stay, in the same channel, that is twice as steep as
they are on average, and the layer behind reads both with one weight. With a line for each channel, trained like any
weight, it reads them with two. Where a batch norm stands before a ReLU and one convolution reads it, the line is as
good as free in private inference: its slope goes into a second set of the convolution's weights, its intercept into
the bias. There it begins as the linear function that is next to the ReLU (`nonlinearity.linear_fit`). At other places,
such as behind an addition, a slope would be a layer of its own, and the identity stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor, fx, nn

from ...census import find_relus
from .nonlinearity import linear_fit
from .plain import is_affine, is_plain_convolution

LINE_PREFIX = "deepreduce_line."
"""Of the names under which a search for masks leaves its lines, followed by the call site."""


def line_sites(network: fx.GraphModule) -> dict[str, str]:
    """Return the call sites where a line is free, each with the name of the batch norm in front of it.

    Args:
        network: traced.
    """
    nodes = {node.name: node for node in network.graph.nodes}
    found: dict[str, str] = {}
    for site in find_relus(network):
        relu = nodes[site.node]
        norm, convolution = (_module(network, node) for node in (relu.all_input_nodes[0], next(iter(relu.users))))
        alone = len(relu.users) == len(relu.all_input_nodes[0].users) == 1
        if (
            site.kind == "relu"
            and alone
            and isinstance(norm, nn.BatchNorm2d)
            and is_affine(norm)
            and norm.affine
            and isinstance(convolution, nn.Conv2d)
            and is_plain_convolution(convolution)
            and convolution.groups == 1
        ):
            found[site.name] = str(relu.all_input_nodes[0].target)
    called = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    shared = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    return {
        site: norm
        for site, norm in found.items()
        if called.count(norm) == 1 and all(shared[id(own)] == 1 for own in network.get_submodule(norm).parameters())
    }


def _module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


@torch.no_grad()
def first_lines(network: fx.GraphModule, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return the linear functions next to the ReLUs at those of the named call sites where a line is free.

    Args:
        network: traced, with weights.
        names: call sites; None for all.

    Returns:
        By call site, [2, channels]: slopes and intercepts.
    """
    found = {}
    for site, norm in line_sites(network).items():
        if names is None or site in names:
            module = network.get_submodule(norm)
            assert isinstance(module, nn.BatchNorm2d)
            fit = linear_fit(module.weight.double(), module.bias.double())
            found[site] = torch.stack(fit).to(module.weight.dtype)
    return found


@torch.no_grad()
def absorb_line(network: fx.GraphModule, norm: str, line: Tensor) -> None:
    """Let a batch norm give what a line behind it gives: for a call site that has lost all its ReLUs.

    Args:
        network: changed in place.
        norm: name of the batch norm, see `line_sites`.
        line: [2, channels]: slopes and intercepts.
    """
    module = network.get_submodule(norm)
    assert isinstance(module, nn.BatchNorm2d)
    module.bias.mul_(line[0]).add_(line[1])
    module.weight.mul_(line[0])
