"""Finding the products of a network's own values: gates, and activations that are written out.

Both multiply a tensor by a factor between bounds. Where that factor is computed from the tensor element by element, as
in x * sigmoid(x), the product is an activation; otherwise, as in squeeze-and-excitation, the factor is a gate.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import fx, nn

from ..census import argument, function_name, image_nodes
from .plain import is_transparent

_FACTORS = ("mul", "multiply")
_DIVISIONS = ("div", "truediv", "divide")
_SCALINGS = (*_FACTORS, *_DIVISIONS)
_SHIFTS = ("add", "sub", "subtract", "rsub", "neg")
_CLAMPS = ("clamp", "clip", "hardtanh", "relu6")
_CLAMP_MODULES = (nn.Hardtanh,)  # nn.ReLU6 is one
_SHARES = ("softmax",)
_SHARE_MODULES = (nn.Softmax, nn.Softmax2d)
_SIGMOIDS = ("sigmoid", "hardsigmoid", "tanh", "erf")
_SIGMOID_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.Tanh)
_ELEMENTWISE = (*_SCALINGS, *_SHIFTS, *_CLAMPS, *_SIGMOIDS, "softplus", "exp", "log", "log1p", "pow", "square")
_ELEMENTWISE_MODULES = (*_CLAMP_MODULES, *_SIGMOID_MODULES, nn.Softplus)
_RESHAPES = (
    "view", "view_as", "reshape", "flatten", "unflatten", "expand", "expand_as", "repeat", "unsqueeze", "squeeze",
    "permute", "transpose", "getitem", "chunk", "split", "contiguous", "clone", "type_as", "to", "float",
)  # fmt: skip


@dataclass(frozen=True)
class Product:
    """A tensor times a factor between bounds, both of which depend on the image.

    Attributes:
        node: the product.
        tensor: what is multiplied.
        gate: the factor.
        source: where the product is an activation, the tensor of which it is a function element by element; None where
            the factor is a gate.
    """

    node: fx.Node
    tensor: fx.Node
    gate: fx.Node
    source: fx.Node | None


def find_products(network: fx.GraphModule) -> list[Product]:
    """Return the gates and the activations written out of a traced network, in the order of computation."""
    image = image_nodes(network.graph)
    found = []
    for node in network.graph.nodes:
        factors = [above for above in node.all_input_nodes if above in image]
        if not _is_named(node, _FACTORS) or len(factors) != 2:
            continue
        for gate, tensor in (factors, reversed(factors)):
            if _is_bounded(gate, network, image) and not _depends(tensor, gate):
                found.append(Product(node, tensor, gate, _source(node, network, image)))
                break
    return found


def scaled_by_numbers(node: fx.Node) -> fx.Node:
    """Follow a value through multiplications and divisions by numbers, as far as nothing else reads it."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        factor = _is_named(user, _FACTORS) or (_is_named(user, _DIVISIONS) and argument(user, 0, "input") is node)
        if not factor or user.all_input_nodes != [node]:
            break
        node = user
    return node


def _is_named(node: fx.Node, names: Collection[str]) -> bool:
    return node.op in ("call_function", "call_method") and function_name(node) in names


def _is_bounded(node: fx.Node, network: fx.GraphModule, image: set[fx.Node]) -> bool:
    """Tell whether a value is that of a sigmoid or a softmax, moved, scaled or reshaped.

    A clamp between bounds is a sigmoid where what it reads was moved, as in relu6(x + 3) / 6.
    """
    clamped = False
    while True:
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, (*_SIGMOID_MODULES, *_SHARE_MODULES)) or _is_named(node, (*_SIGMOIDS, *_SHARES)):
            return True
        alone = len(image.intersection(node.all_input_nodes)) == 1
        shifted = alone and _is_named(node, _SHIFTS)
        if shifted and clamped:
            return True
        clamp = isinstance(module, _CLAMP_MODULES) or (_is_named(node, _CLAMPS) and _has_bounds(node))
        scaled = alone and _is_named(node, _SCALINGS)
        if not (clamp or shifted or scaled or is_transparent(module) or _is_named(node, _RESHAPES)):
            return False
        clamped = clamped or clamp
        node = next(above for above in node.all_input_nodes if above in image)


def _has_bounds(node: fx.Node) -> bool:
    if not _is_named(node, ("clamp", "clip")):
        return True
    return argument(node, 1, "min") is not None and argument(node, 2, "max") is not None


def _depends(node: fx.Node, other: fx.Node) -> bool:
    """Tell whether a node is computed from another one."""
    ends, seen = [node], {node}
    while ends:
        end = ends.pop()
        if end is other:
            return True
        ends += [above for above in end.all_input_nodes if above not in seen]
        seen.update(end.all_input_nodes)
    return False


def _source(node: fx.Node, network: fx.GraphModule, image: set[fx.Node]) -> fx.Node | None:
    """Return the nearest tensor of which a node is a function element by element, None if there is none."""
    order = {each: index for index, each in enumerate(network.graph.nodes)}
    read = {node}
    while len(read) > 1 or node in read:
        last = max(read, key=order.__getitem__)
        module = network.get_submodule(str(last.target)) if last.op == "call_module" else None
        if not (isinstance(module, _ELEMENTWISE_MODULES) or _is_named(last, _ELEMENTWISE)):
            return None
        read = (read - {last}) | image.intersection(last.all_input_nodes)
    return read.pop()
