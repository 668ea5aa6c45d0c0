"""Batch norms in place of norms that an image's own values decide, so that a network with those can run privately.

A group norm divides by the deviation of the very values it normalises: a square root and a quotient of secret values,
which have no private form here. A batch norm divides by a constant. Networks have group norms where batches are small
or where one image must not touch another, as in training with differential privacy, and layer norms as ConvNeXt does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from ...census import FunctionalDropout, argument, evaluating, example_images, find_relus, function_name, image_nodes
from ..surgery import is_extended, is_transparent
from .layouts import TO_FIRST, TO_LAST, channels_last, permutes

_NORM, _CONVOLUTION = "deepreduce_norm", "deepreduce_convolution"
_MAP, _FEATURES = 4, 2  # dimensions of a batch of feature maps, and of feature vectors
_COPIES = ("contiguous", "clone", "to", "type_as", "float")
_ELEMENTWISE = (
    *_COPIES, "add", "sub", "mul", "multiply", "div", "truediv", "neg", "sigmoid", "hardsigmoid", "tanh", "clamp",
)  # fmt: skip
_ELEMENTWISE_MODULES = (FunctionalDropout, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh)
_WEIGHTS: dict[object, int] = {
    F.group_norm: 2, torch.group_norm: 2, F.layer_norm: 2, torch.layer_norm: 2, F.instance_norm: 3,
}  # fmt: skip
"""Which argument of a function the weight is; the bias follows."""


@dataclass(frozen=True)
class _Norm:
    """A norm of single images.

    Attributes:
        source: what it normalises.
        shape: for a layer norm, the shape of what it normalises together.
        weight: as many numbers as it has channels, or as `shape` says; None for ones.
        bias: likewise, for zeros.
    """

    source: fx.Node
    shape: tuple[int, ...] | None
    weight: Tensor | None
    bias: Tensor | None


def has_norms(network: fx.GraphModule) -> bool:
    """Tell whether a traced network has group, instance or layer norms."""
    return any(_norm_of(node, network) is not None for node in network.graph.nodes)


def exchange_norms(network: fx.GraphModule, input: tuple[int, int, int]) -> int:
    """Put a batch norm in the place of every group, instance and layer norm of feature maps or feature vectors.

    It takes over weights and biases; its statistics come with training. What works on maps with their channels last, as
    layer norms do between two permutations, works on maps with their channels first then, and a linear layer there is a
    convolution of 1x1.

    Args:
        network: traced; changed in place.
        input: channels, height and width of one image.

    Returns:
        How many norms there were.
    """
    norms = {node: norm for node in network.graph.nodes if (norm := _norm_of(node, network)) is not None}
    if not norms:
        return 0
    with evaluating(network), torch.no_grad():
        ShapeProp(network).propagate(example_images(network, input, count=2))
    rewriting = _Rewriting(network)
    count = 0
    for node in list(network.graph.nodes):
        if node in norms and rewriting.exchange(node, norms[node]):
            count += 1
        else:
            rewriting.follow(node)
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()
    return count


def _norm_of(node: fx.Node, network: fx.GraphModule) -> _Norm | None:
    """Return the norm that a node computes, None if it computes something else."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        for kind in (nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm):
            if isinstance(module, kind) and not is_extended(module, kind):
                shape = tuple(module.normalized_shape) if isinstance(module, nn.LayerNorm) else None
                return _Norm(node.all_input_nodes[0], shape, module.weight, module.bias)
    if node.op == "call_function" and node.target in _WEIGHTS:
        layer = node.target in (F.layer_norm, torch.layer_norm)
        first = _WEIGHTS[node.target]
        given = [argument(node, first + at, name) for at, name in enumerate(("weight", "bias"))]
        found = [_tensor(value, network) for value in given]
        if all(tensor is not None or value is None for tensor, value in zip(found, given, strict=True)):
            shape = tuple(argument(node, 1, "normalized_shape")) if layer else None
            return _Norm(argument(node, 0, "input"), shape, *found)
    return None


def _tensor(value: Any, network: fx.GraphModule) -> Tensor | None:
    """Return the parameter that an argument stands for, None if it is none."""
    while isinstance(value, fx.Node) and value.op == "call_method" and value.target in _COPIES:
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    path, _, name = str(value.target).rpartition(".")
    found: Tensor = getattr(network.get_submodule(path), name)
    return found


class _Rewriting:
    """Going through a graph in order, with a twin for every map that has its channels last: the map with them first."""

    def __init__(self, network: fx.GraphModule) -> None:
        self.network, self.graph = network, network.graph
        self.twins: dict[fx.Node, fx.Node] = {}
        self.convolutions: dict[object, str] = {}
        relus = {site.node for site in find_relus(network)}
        self.relus = {node for node in self.graph.nodes if node.name in relus}
        self.image, self.last = image_nodes(self.graph), channels_last(network)
        self.example = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(0))

    def exchange(self, node: fx.Node, norm: _Norm) -> bool:
        """Put a batch norm in the place of a norm, if its kind and shape have one."""
        shape = _shape(norm.source)
        last = norm.source in self.last
        if last and (len(shape) != _MAP or norm.shape not in (shape[3:], shape[1:])):
            return False
        if not last and (len(shape) not in (_MAP, _FEATURES) or norm.shape not in (None, shape[1:])):
            return False
        kind = nn.BatchNorm2d if len(shape) == _MAP else nn.BatchNorm1d
        module: Any = kind(shape[3 if last else 1]).to(self.example)
        for own, given in ((module.weight, norm.weight), (module.bias, norm.bias)):
            if given is not None:  # a layer norm over whole maps has one number for each element of a channel
                each = given.detach() if given.dim() == 1 else given.detach().movedim(-1 if last else 0, 0).flatten(1)
                own.data = each.clone() if given.dim() == 1 else each.mean(1)
        source = node.all_input_nodes[0] if node.op == "call_module" else argument(node, 0, "input")
        with self.graph.inserting_before(node):
            new = self._call(_NORM, module, self._first(source) if last else source)
        new.meta.update(node.meta)
        if last:
            self.twins[node] = new
        else:
            node.replace_all_uses_with(new)
        return True

    def follow(self, node: fx.Node) -> None:
        """Make the twin of a node that reads maps with twins, or give it such maps with their channels last again."""
        if permutes(node, TO_LAST):
            self.twins[node] = node.all_input_nodes[0]
        read = [above for above in node.all_input_nodes if above in self.twins]
        if not read:
            return
        with self.graph.inserting_before(node):
            if permutes(node, TO_FIRST):
                node.replace_all_uses_with(self.twins[read[0]])
            elif (twin := self._twin(node, read)) is not None:
                self.twins[node] = twin
            else:
                for above in read:
                    node.replace_input_with(above, self.graph.call_method("permute", (self.twins[above], *TO_LAST)))

    def _first(self, node: fx.Node) -> fx.Node:
        """Return a map with its channels first."""
        twin = self.twins.get(node)
        return self.graph.call_method("permute", (node, *TO_FIRST)) if twin is None else twin

    def _twin(self, node: fx.Node, read: list[fx.Node]) -> fx.Node | None:
        module = self.network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Linear) and not is_extended(module, nn.Linear):
            return self._convolution(module, module.weight, module.bias, self.twins[read[0]])
        if node.op == "call_function" and node.target is F.linear:
            given = [argument(node, at, name) for at, name in ((1, "weight"), (2, "bias"))]
            weight, bias = _tensor(given[0], self.network), _tensor(given[1], self.network)
            if weight is None or (bias is None and given[1] is not None):
                return None
            return self._convolution(tuple(given), weight, bias, self.twins[read[0]])
        named = node.op in ("call_function", "call_method") and function_name(node) in _ELEMENTWISE
        alike = isinstance(module, _ELEMENTWISE_MODULES) or is_transparent(module)
        others = [above for above in node.all_input_nodes if above not in self.twins]
        if not (node in self.relus or alike or named) or not all(len(_shape(above)) <= _MAP for above in others):
            return None
        places = {above: self.twins[above] for above in read} | {above: self._other(above) for above in others}
        return self.graph.node_copy(node, places.__getitem__)

    def _other(self, node: fx.Node) -> fx.Node:
        """Return an operand that has no twin as it stands beside maps with their channels first."""
        shape = _shape(node)
        if math.prod(shape) == 1:
            return node
        if math.prod(shape) == shape[-1]:  # a number for each channel
            return self.graph.call_method("view", (node, 1, -1, 1, 1))
        whole = node
        if len(shape) < _MAP:
            whole = self.graph.call_method("view", (node, *[1] * (_MAP - len(shape)), *shape))
        return self.graph.call_method("permute", (whole, *TO_FIRST))

    def _convolution(self, key: object, weight: Tensor, bias: Tensor | None, source: fx.Node) -> fx.Node:
        """Call the convolution of 1x1 that a linear layer is; the same one if the layer is called again."""
        if key not in self.convolutions:
            skip_init: Any = nn.utils.skip_init
            module = skip_init(nn.Conv2d, weight.shape[1], weight.shape[0], 1, bias=bias is not None)
            module.weight = nn.Parameter(weight.detach()[:, :, None, None].clone())
            if bias is not None:
                module.bias = nn.Parameter(bias.detach().clone())
            new = self._call(_CONVOLUTION, module, source)
            self.convolutions[key] = str(new.target)
            return new
        return self.graph.call_module(self.convolutions[key], (source,))

    def _call(self, prefix: str, module: nn.Module, source: fx.Node) -> fx.Node:
        number = 0
        while hasattr(self.network, f"{prefix}_{number}"):
            number += 1
        self.network.add_submodule(f"{prefix}_{number}", module.train(self.network.training))
        return self.graph.call_module(f"{prefix}_{number}", (source,))


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Return the shape that an example gave, that of a number if it gave none."""
    known: Any = node.meta.get("tensor_meta")
    return tuple(known.shape) if hasattr(known, "shape") else ()
