"""Taking ReLUs out of a traced network: at once, into the identity or lines, or by fading into the identity."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from jaxtyping import Bool
from torch import Tensor, fx, nn

from ...census import CallSite, MaskedReLU, find_relus, writes_in_place
from ...errors import NetworkError, near_misses, problem
from ..masks import Mask

SEARCH_PREFIX = "deepreduce_search"
"""Of the names of the modules that `replace_relus` puts in."""


class FadingReLU(nn.Module):
    """A ReLU on its way to the identity: f(x) = (1 - fade) * relu(x) + fade * x.

    With a mask, only the elements that it does not keep are on their way. `fade` is a tensor, so that changing it
    during training does not recompile the network.
    """

    fade: Tensor
    leaving: Tensor | None

    def __init__(self, kind: str, mask: Bool[Tensor, "*shape"] | None = None, site: str = "") -> None:
        """Make the layer.

        Args:
            kind: `relu` or `relu6`.
            mask: which elements stay, of the shape of the layer's output for one image; None for none.
            site: the call site.
        """
        super().__init__()
        self.kind = kind
        self.site = site
        self.register_buffer("fade", torch.zeros(()), persistent=False)
        leaving = None if mask is None else (~mask.bool()).float().unsqueeze(0)
        self.register_buffer("leaving", leaving, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the blend of ReLU and identity."""
        fade = self.fade if self.leaving is None else self.fade * self.leaving
        return torch.lerp(F.relu6(x) if self.kind == "relu6" else F.relu(x), x, fade.to(x.dtype))

    def finished(self) -> MaskedReLU | None:
        """Return what is left when everything has faded; None for the identity."""
        return None if self.leaving is None else MaskedReLU(self.kind, self.leaving[0] == 0, self.site)


def remove_relus(
    network: fx.GraphModule,
    names: Collection[str],
    *,
    masks: Mapping[str, Mask] = MappingProxyType({}),
    fading: bool = False,
    at_once: Collection[str] = (),
    lines: Mapping[str, Tensor] = MappingProxyType({}),
) -> fx.GraphModule:
    """Return a copy of a traced network without the ReLUs at the named call sites.

    Args:
        network: traced; not changed. The copy shares no parameter with it.
        names: call sites, see `deepreduce.census.CallSite`.
        masks: for further call sites, which elements keep their ReLU; a `MaskedReLU` takes the place of each.
        fading: put a `FadingReLU` (at 0, still a ReLU) in place of each instead of the identity or `MaskedReLU`.
        at_once: call sites among `names` that do not fade.
        lines: for call sites with a mask, where the lines begin that take the place of removed ReLUs, [2, channels];
            such a layer does not fade.

    Raises:
        NetworkError: if a call site does not exist.
    """
    own = copy.deepcopy(network)
    shared = any(writes_in_place(node) for node in own.graph.nodes)

    def replacement(site: CallSite) -> nn.Module | None:
        mask = None if site.name in names else torch.from_numpy(masks[site.name])
        line = None if mask is None else lines.get(site.name)
        if fading and line is None and site.name not in at_once:
            return FadingReLU(site.kind, mask, site.name)
        return None if mask is None else MaskedReLU(site.kind, mask, site.name, line)

    for site, node in _calls(own, {*names, *masks}):
        module = replacement(site)
        source = node.all_input_nodes[0]
        if module is not None:
            kind = "deepreduce_fade" if isinstance(module, FadingReLU) else "deepreduce_masked"
            replace_call(own, node, kind, module)
            continue
        if shared:  # a later write into the result must not reach the ReLU's input
            with own.graph.inserting_before(node):
                source = own.graph.call_method("clone", (source,))
        node.replace_all_uses_with(source)
        own.graph.erase_node(node)
    own.delete_all_unused_submodules()
    own.recompile()
    return own


def replace_relus(
    network: fx.GraphModule, names: Collection[str], make: Callable[[CallSite], nn.Module]
) -> tuple[fx.GraphModule, dict[str, nn.Module]]:
    """Return a copy of a traced network with other modules in place of its ReLUs.

    Args:
        network: traced; not changed.
        names: call sites.
        make: gives the module for each of them, called once in the order of computation.

    Returns:
        The copy, and the modules by call site.

    Raises:
        NetworkError: if a call site does not exist.
    """
    own = copy.deepcopy(network)
    made: dict[str, nn.Module] = {}
    for site, node in _calls(own, names):
        made[site.name] = make(site)
        replace_call(own, node, SEARCH_PREFIX, made[site.name])
    own.delete_all_unused_submodules()
    own.recompile()
    return own, made


def replace_call(own: fx.GraphModule, node: fx.Node, prefix: str, module: nn.Module) -> None:
    """Let a module take the place of a node that reads one tensor; the graph is not recompiled."""
    number = 0
    while hasattr(own, f"{prefix}_{number}"):
        number += 1
    own.add_submodule(f"{prefix}_{number}", module)
    with own.graph.inserting_before(node):
        call = own.graph.call_module(f"{prefix}_{number}", (node.all_input_nodes[0],))
    call.meta.update(node.meta)
    node.replace_all_uses_with(call)
    own.graph.erase_node(node)


def relu_nodes(network: fx.GraphModule, names: Collection[str]) -> dict[str, fx.Node]:
    """Return the nodes of call sites by name, in the order of computation.

    Raises:
        NetworkError: if a call site does not exist.
    """
    return {site.name: node for site, node in _calls(network, names)}


def _calls(own: fx.GraphModule, names: Collection[str]) -> list[tuple[CallSite, fx.Node]]:
    """Return the named call sites with their nodes, in the order of computation."""
    sites = {site.name: site for site in find_relus(own)}
    unknown = sorted(set(names) - set(sites))
    if unknown:
        raise NetworkError(
            problem(
                "every call site must be a ReLU of the network",
                got=f"{unknown[0]!r}{near_misses(unknown[0], list(sites))}",
                remedy="list the call sites with deepreduce profile --layers",
            )
        )
    nodes = {node.name: node for node in own.graph.nodes}
    return [(site, nodes[site.node]) for site in sites.values() if site.name in names]


def set_fade(network: nn.Module, fade: float) -> None:
    """Set how far every fading ReLU of a network is on its way: from 0, the ReLU, to 1, the identity."""
    for module in network.modules():
        if isinstance(module, FadingReLU):
            module.fade.fill_(fade)


def finish_fading(network: fx.GraphModule) -> fx.GraphModule:
    """Return a copy without fading ReLUs: each becomes the identity or a `MaskedReLU`, however far it had faded."""
    own = copy.deepcopy(network)
    for node in list(own.graph.nodes):
        module = own.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, FadingReLU):
            continue
        masked = module.finished()
        if masked is not None:
            replace_call(own, node, "deepreduce_masked", masked)
            continue
        node.replace_all_uses_with(node.all_input_nodes[0])
        own.graph.erase_node(node)
    own.delete_all_unused_submodules()
    own.recompile()
    return own
