"""Finding the products of a network's own values: gates, and activations that are written out.

Both multiply a tensor by a factor between bounds. Where the product is computed from one tensor element by element and
has the shape of a ReLU, as x * sigmoid(x), it is an activation; where the factor comes from elsewhere, as in
squeeze-and-excitation, it is a gate.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...census import argument, function_name, image_nodes
from ..surgery import is_transparent

_FACTORS = ("mul", "multiply")
_DIVISIONS = ("div", "truediv", "divide")
_SCALINGS = (*_FACTORS, *_DIVISIONS)
_SUMS = ("add", "sub", "subtract")
_SHIFTS = (*_SUMS, "rsub", "neg")
_CLAMPS = ("clamp", "clip", "hardtanh", "relu6")
_CLAMP_MODULES = (nn.Hardtanh,)  # nn.ReLU6 is one
_SIGMOIDS = ("sigmoid", "hardsigmoid", "softmax")
_SIGMOID_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softmax2d)
_ODD = ("tanh", "erf")
_ODD_MODULES = (nn.Tanh,)
_ELEMENTWISE = (
    *_SCALINGS, *_SHIFTS, *_CLAMPS, *_ODD, "sigmoid", "hardsigmoid", "softplus", "exp", "log", "log1p", "pow", "square",
)  # fmt: skip
_ELEMENTWISE_MODULES = (*_CLAMP_MODULES, *_ODD_MODULES, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)
_RESHAPES = (
    "view", "view_as", "reshape", "flatten", "unflatten", "expand", "expand_as", "repeat", "unsqueeze", "squeeze",
    "permute", "transpose", "getitem", "chunk", "split", "unbind", "contiguous", "clone", "type_as", "to", "float",
    "interpolate", "mean",
)  # fmt: skip

SIGMOID, CLAMP, ODD = range(3)
"""How surely a factor between bounds is a gate: most surely a sigmoid, least a hyperbolic tangent around one."""

_FAR = 20.0  # where smooth activations are a ReLU but for rounding
_CLOSE = 0.05


@dataclass(frozen=True)
class Gate:
    """A factor between bounds of a product.

    Attributes:
        node: the factor.
        tensor: the other one.
        kind: `SIGMOID`, `CLAMP` or `ODD`.
        positive: whether it is never below zero, whatever the weights are.
    """

    node: fx.Node
    tensor: fx.Node
    kind: int
    positive: bool


@dataclass(frozen=True)
class Activation:
    """An activation that is written out as a product.

    Attributes:
        node: gives the activation.
        source: the tensor that it is a function of.
        slope: how steep it is far on the positive side; 1 where it is so but for rounding.
    """

    node: fx.Node
    source: fx.Node
    slope: float


def find_gates(network: fx.GraphModule) -> dict[fx.Node, list[Gate]]:
    """Return by product which of its factors can be a gate, in the order of computation; one or two each."""
    image = image_nodes(network.graph)
    found = {}
    for node in network.graph.nodes:
        factors = _factors(node, image)
        if not factors or _source(node, network, image) is not None:
            continue
        gates = []
        for gate, tensor in (factors, factors[::-1]):
            found_kind = _bounded(gate, network, image)
            if found_kind is not None and not _depends(tensor, gate):
                gates.append(Gate(gate, tensor, *found_kind))
        if gates:
            found[node] = gates
    return found


def find_activations(network: fx.GraphModule) -> list[Activation]:
    """Return the activations of a traced network that are written out as products, in the order of computation.

    One that is left with a factor, as x * relu6(x + 3) / 6, ends with it: where it has the slope of a ReLU.
    """
    image = image_nodes(network.graph)
    found = []
    for node in network.graph.nodes:
        source = _source(node, network, image) if _factors(node, image) else None
        slope = None if source is None else _slope(node, source, network)
        if source is None or slope is None:
            continue
        slopes = {end: _slope(end, source, network) for end in (node, *_scaled_by_numbers(node))}
        ends = [end for end, of in slopes.items() if of is not None and abs(of - 1) < _CLOSE]
        found.append(Activation(ends[0], source, 1.0) if ends else Activation(node, source, slope))
    return found


def _factors(node: fx.Node, image: set[fx.Node]) -> list[fx.Node]:
    """Return the two factors of a product of values of the image, none if it is none."""
    factors = [above for above in node.all_input_nodes if above in image]  # a square has one
    return factors if _is_named(node, _FACTORS) and len(factors) == 2 else []


def _is_named(node: fx.Node, names: Collection[str]) -> bool:
    return node.op in ("call_function", "call_method") and function_name(node) in names


def _bounded(node: fx.Node, network: fx.GraphModule, image: set[fx.Node]) -> tuple[int, bool] | None:
    """Return of which kind a value between bounds is, and whether it is never below zero.

    It may be moved, scaled or reshaped, and products and sums of such values are values between bounds. A clamp counts
    where it reads what a number was added to, as in relu6(x + 3) / 6, and an odd function where a number is added to
    it, since otherwise its mean says nothing.
    """
    clamped = moved = False
    positive = True
    while True:
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _SIGMOID_MODULES) or _is_named(node, _SIGMOIDS):
            return SIGMOID, positive
        if isinstance(module, _ODD_MODULES) or _is_named(node, _ODD):
            return (ODD, False) if moved else None
        read = [above for above in node.all_input_nodes if above in image]
        if len(read) == 2 and _is_named(node, (*_FACTORS, *_SUMS)):
            both = [_bounded(above, network, image) for above in read]
            found = [each for each in both if each is not None]
            apart = _is_named(node, ("sub", "subtract"))
            whole = positive and not apart and all(each[1] for each in found)
            return (max(each[0] for each in found), whole) if len(found) == len(both) else None
        shifted = len(node.all_input_nodes) == 1 and _is_named(node, _SHIFTS)
        if shifted and clamped:
            return CLAMP, positive
        clamp = isinstance(module, _CLAMP_MODULES) or (_is_named(node, _CLAMPS) and _has_bounds(node))
        scaled = len(read) == 1 and _is_named(node, (*_SCALINGS, *_SHIFTS, "pow", "sqrt"))
        if not (clamp or scaled or is_transparent(module) or _is_named(node, _RESHAPES)):
            return None
        if clamp:
            positive = positive and _low(node, module) == 0
        elif scaled:
            positive = positive and _keeps_sign(node)
        clamped, moved = clamped or clamp, moved or shifted
        node = read[0]


def _low(node: fx.Node, module: nn.Module | None) -> Any:
    """Return the lower bound of a clamp."""
    if isinstance(module, nn.Hardtanh):
        return module.min_val
    if _is_named(node, ("relu6",)):
        return 0
    return argument(node, 1, "min_val", -1) if _is_named(node, ("hardtanh",)) else argument(node, 1, "min")


def _keeps_sign(node: fx.Node) -> bool:
    """Tell whether a step with a number leaves what is not below zero so: times, over, or plus a positive one."""
    numbers = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, (int, float))]
    kept = _is_named(node, (*_SCALINGS, "add", "pow", "sqrt")) and len(node.all_input_nodes) == 1
    return kept and all(number > 0 for number in numbers)


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


def _slope(node: fx.Node, source: fx.Node, network: fx.GraphModule) -> float | None:
    """Return the slope of a function of single elements far on the positive side, if it has the shape of a ReLU.

    That is: nothing on the negative side, and a line through zero on the positive one. Parameters count as ones, since
    what a network is made of must not depend on its weights.
    """
    values: dict[fx.Node, Any] = {source: torch.tensor([-2 * _FAR, -_FAR, _FAR, 2 * _FAR]).view(-1, 1, 1, 1)}

    def value(each: fx.Node) -> Any:
        if each not in values:
            if each.op == "get_attr":
                values[each] = torch.ones(())
            else:
                args = fx.node.map_arg(each.args, value)
                kwargs = fx.node.map_arg(each.kwargs, value)
                values[each] = _call(each, network, args, kwargs)
        return values[each]

    try:
        with torch.no_grad():
            found: Tensor = value(node).float().flatten(1)
    except Exception:  # anything: a user's shapes need not fit single numbers
        return None
    low, lower, high, higher = found
    slope = float(high.mean() / _FAR)
    line, flat = torch.stack([high, higher / 2]) / _FAR, torch.stack([low, lower])
    shaped = (line / slope - 1).abs().max() < _CLOSE and flat.abs().max() < _CLOSE * slope
    return slope if math.isfinite(slope) and slope > 0 and shaped else None


def _call(node: fx.Node, network: fx.GraphModule, args: Any, kwargs: Any) -> Any:
    if node.op == "call_module":
        return network.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op != "call_function":
        raise ValueError(node.op)
    function: Any = node.target
    return function(*args, **kwargs)


def _scaled_by_numbers(node: fx.Node) -> list[fx.Node]:
    """Return the multiplications and divisions by numbers behind a value, as far as nothing else reads it."""
    found = []
    while len(node.users) == 1:
        user = next(iter(node.users))
        factor = _is_named(user, _FACTORS) or (_is_named(user, _DIVISIONS) and argument(user, 0, "input") is node)
        if not factor or user.all_input_nodes != [node]:
            break
        found.append(user)
        node = user
    return found
