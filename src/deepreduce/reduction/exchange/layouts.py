"""Which maps of a traced network have their channels last, as between the permutations of ConvNeXt."""

from __future__ import annotations

from typing import Any

from torch import fx

from ...census import argument, function_name, image_nodes

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_MAP = 4  # dimensions of a batch of feature maps


def permutes(node: fx.Node, dims: tuple[int, ...]) -> bool:
    """Tell whether a node permutes the dimensions of feature maps in a given way."""
    if node.op not in ("call_function", "call_method") or function_name(node) != "permute":
        return False
    given: Any = node.args[1:] if len(node.args) > 2 else (argument(node, 1, "dims"),)
    flat: Any = given[0] if isinstance(given[0], (tuple, list)) else given
    whole = len(flat) == _MAP and all(isinstance(dim, int) for dim in flat)
    return whole and tuple(dim % _MAP for dim in flat) == dims


def channels_last(network: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes between a permutation that brings the channels last and one that brings them first again."""
    image = image_nodes(network.graph)
    found: set[fx.Node] = set()
    for node in network.graph.nodes:
        if permutes(node, TO_LAST) or (node in image and not permutes(node, TO_FIRST) and _reads(node, found)):
            found.add(node)
    return found


def _reads(node: fx.Node, found: set[fx.Node]) -> bool:
    return any(above in found for above in node.all_input_nodes)
