"""Questions about a traced graph: who reads what, which values depend on the image, which are only sizes."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

_LIKE_ANOTHER = {"type_as", "expand_as", "view_as", "reshape_as"}
_SIZES = {"size", "dim", "numel", "stride", "ndimension", "element_size"}


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of a call, however it was passed."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def function_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls."""
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def writes_in_place(node: fx.Node) -> bool:
    """Tell whether a node changes a tensor that others may hold."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = function_name(node)
    return node.target is operator.setitem or (name.endswith("_") and not name.endswith("__"))


def image_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose values are tensors that depend on the image; sizes and shapes are not among them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or (any(above in found for above in node.all_input_nodes) and not _is_size(node)):
            found.add(node)
    return found


def all_pass(graph: fx.Graph, node: fx.Node) -> bool:
    """Tell whether the output depends on the image through this node alone."""
    image = image_nodes(graph)
    ends, seen = [end for end in graph.nodes if end.op == "output"], {node}
    while ends:
        for above in _read(ends.pop()):
            if above.op == "placeholder":
                return False
            if above not in seen and above in image:
                seen.add(above)
                ends.append(above)
    return True


def _read(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose values a node reads, and not only their type or size."""
    if node.op in ("call_function", "call_method"):
        name = function_name(node)
        if name.startswith("new_") or name.endswith("_like"):
            return []
        if name in _LIKE_ANOTHER:
            return node.all_input_nodes[:1]
    return node.all_input_nodes


def live_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that the output depends on."""
    nodes = list(graph.nodes)
    live = {node for node in nodes if node.op == "output"}
    image = image_nodes(graph)
    for node in reversed(nodes):
        if node in live or (writes_in_place(node) and image.intersection(node.all_input_nodes)):
            live.add(node)
            live.update(node.all_input_nodes)
    return live


def is_live(node: fx.Node, live: set[fx.Node]) -> bool:
    """Tell whether a node is among the live ones and computes something."""
    return node in live and node.op in ("call_function", "call_method", "call_module")


def _is_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SIZES
    return (
        node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")
    )
