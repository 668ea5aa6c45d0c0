"""Taking ReLUs out of a traced network: at once, or by letting them fade into the identity."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, fx, nn

from ..census import find_relus, writes_in_place
from ..errors import NetworkError, near_misses, problem


class FadingReLU(nn.Module):
    """A ReLU on its way to the identity: f(x) = (1 - fade) * relu(x) + fade * x.

    `fade` is a tensor, so that changing it during training does not recompile the network.
    """

    fade: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("fade", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the blend of ReLU and identity."""
        return torch.lerp(F.relu6(x) if self.kind == "relu6" else F.relu(x), x, self.fade.to(x.dtype))


def remove_relus(network: fx.GraphModule, names: Collection[str], *, fading: bool = False) -> fx.GraphModule:
    """Return a copy of a traced network without the ReLUs at the named call sites.

    Args:
        network: traced; not changed. The copy shares no parameter with it.
        names: call sites, see `deepreduce.census.CallSite`.
        fading: put a `FadingReLU` (at 0, still a ReLU) in place of each instead of the identity.

    Raises:
        NetworkError: if a call site does not exist.
    """
    own = copy.deepcopy(network)
    sites = {site.name: site for site in find_relus(own)}
    unknown = sorted(set(names) - set(sites))
    if unknown:
        raise NetworkError(
            problem(
                "every call site to remove must be a ReLU of the network",
                got=f"{unknown[0]!r}{near_misses(unknown[0], list(sites))}",
                remedy="list the call sites with deepreduce profile --layers",
            )
        )
    nodes = {node.name: node for node in own.graph.nodes}
    shared = any(writes_in_place(node) for node in own.graph.nodes)
    for index, (name, site) in enumerate(sites.items()):
        if name not in names:
            continue
        node = nodes[site.node]
        source = node.all_input_nodes[0]
        if fading:
            own.add_submodule(f"deepreduce_fade_{index}", FadingReLU(site.kind))
            with own.graph.inserting_before(node):
                replacement = own.graph.call_module(f"deepreduce_fade_{index}", (source,))
        elif shared:  # a later write into the result must not reach the ReLU's input
            with own.graph.inserting_before(node):
                replacement = own.graph.call_method("clone", (source,))
        else:
            replacement = source
        node.replace_all_uses_with(replacement)
        own.graph.erase_node(node)
    own.delete_all_unused_submodules()
    own.recompile()
    return own


def set_fade(network: nn.Module, fade: float) -> None:
    """Set how far every fading ReLU of a network is on its way: from 0, the ReLU, to 1, the identity."""
    for module in network.modules():
        if isinstance(module, FadingReLU):
            module.fade.fill_(fade)


def finish_fading(network: fx.GraphModule) -> fx.GraphModule:
    """Return a copy without fading ReLUs: each becomes the identity, however far it had faded."""
    own = copy.deepcopy(network)
    for node in list(own.graph.nodes):
        if node.op == "call_module" and isinstance(own.get_submodule(str(node.target)), FadingReLU):
            node.replace_all_uses_with(node.all_input_nodes[0])
            own.graph.erase_node(node)
    own.delete_all_unused_submodules()
    own.recompile()
    return own
