"""Batch norms in place of norms that an image's own values decide, so that a network with those can run privately.

A group norm divides by the deviation of the very values it normalises: a square root and a quotient of secret values,
which have no private form here. A batch norm divides by a constant. Networks have group norms where batches are small
or where one image must not touch another, as in training with differential privacy, and layer norms as ConvNeXt does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from ..census import FunctionalDropout, argument, evaluating, example_images, find_relus, function_name, image_nodes
from .plain import is_extended, is_transparent

_PREFIX = "deepreduce_norm"
_MAP, _FEATURES = 4, 2  # dimensions of a batch of feature maps, and of feature vectors
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_ELEMENTWISE = ("add", "sub", "mul", "multiply", "div", "truediv", "neg")
_GROUP_NORMS = (F.group_norm, torch.group_norm)
_LAYER_NORMS = (F.layer_norm, torch.layer_norm)


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


def _norm_of(node: fx.Node, network: fx.GraphModule) -> _Norm | None:
    """Return the norm that a node computes, None if it computes something else."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        for kind in (nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm):
            if isinstance(module, kind) and not is_extended(module, kind):
                shape = tuple(module.normalized_shape) if isinstance(module, nn.LayerNorm) else None
                return _Norm(node.all_input_nodes[0], shape, module.weight, module.bias)
    if node.op == "call_function" and node.target in (*_GROUP_NORMS, *_LAYER_NORMS):
        given = argument(node, 1, "normalized_shape") if node.target in _LAYER_NORMS else None
        weight, bias = (_tensor(argument(node, at, name), network) for at, name in ((2, "weight"), (3, "bias")))
        return _Norm(argument(node, 0, "input"), None if given is None else tuple(given), weight, bias)
    return None


def _tensor(value: Any, network: fx.GraphModule) -> Tensor | None:
    """Return the parameter that an argument stands for."""
    if not isinstance(value, fx.Node):
        return None
    path, _, name = str(value.target).rpartition(".")
    found: Tensor = getattr(network.get_submodule(path), name)
    return found


class _Rewriting:
    """Going through a graph in order, with a twin for every map that has its channels last: the map with them first."""

    def __init__(self, network: fx.GraphModule) -> None:
        self.network, self.graph = network, network.graph
        self.twins: dict[fx.Node, fx.Node] = {}
        self.convolutions: dict[nn.Module, str] = {}
        relus = {site.node for site in find_relus(network)}
        self.relus = {node for node in self.graph.nodes if node.name in relus}
        self.image = image_nodes(self.graph)

    def exchange(self, node: fx.Node, norm: _Norm) -> bool:
        """Put a batch norm in the place of a norm, if its kind and shape have one."""
        shape = tuple(norm.source.meta["tensor_meta"].shape)
        last = norm.shape is not None and len(shape) == _MAP and norm.shape == shape[3:]
        if len(shape) not in (_MAP, _FEATURES) or not (norm.shape is None or last or norm.shape == shape[1:]):
            return False
        kind = nn.BatchNorm2d if len(shape) == _MAP else nn.BatchNorm1d
        module: Any = kind(shape[3 if last else 1])
        for own, given in ((module.weight, norm.weight), (module.bias, norm.bias)):
            if given is not None:  # a layer norm over whole maps has one number for each element of a channel
                own.data = given.detach().flatten(1).mean(1) if given.dim() > 1 else given.detach().clone()
        source = norm.source
        with self.graph.inserting_before(node):
            if last:
                first = self.twins.get(source)
                source = self.graph.call_method("permute", (source, *_TO_FIRST)) if first is None else first
            new = self._call(_PREFIX, module, source)
        new.meta.update(node.meta)
        if last:
            self.twins[node] = new
        else:
            node.replace_all_uses_with(new)
        return True

    def follow(self, node: fx.Node) -> None:
        """Make the twin of a node that reads maps with twins, or give it such maps with their channels last again."""
        if self._permutes(node, _TO_LAST):
            self.twins[node] = node.all_input_nodes[0]
        read = [above for above in node.all_input_nodes if above in self.twins]
        if not read:
            return
        with self.graph.inserting_before(node):
            if self._permutes(node, _TO_FIRST):
                node.replace_all_uses_with(self.twins[read[0]])
            elif (twin := self._twin(node, read)) is not None:
                self.twins[node] = twin
            else:
                for above in read:
                    node.replace_input_with(above, self.graph.call_method("permute", (self.twins[above], *_TO_LAST)))

    def _twin(self, node: fx.Node, read: list[fx.Node]) -> fx.Node | None:
        module = self.network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Linear) and not is_extended(module, nn.Linear):
            return self._convolution(module, self.twins[read[0]])
        named = node.op in ("call_function", "call_method") and function_name(node) in _ELEMENTWISE
        others = [above for above in node.all_input_nodes if above not in self.twins]
        vectors = [above for above in others if above.op == "get_attr" and len(self._shape(above)) == 1]
        drops = isinstance(module, FunctionalDropout) or is_transparent(module)
        if not (node in self.relus or drops or named) or len(vectors) < len(others):
            return None
        places = dict(self.twins) | {above: self.graph.call_method("view", (above, -1, 1, 1)) for above in vectors}
        return self.graph.node_copy(node, places.__getitem__)

    def _convolution(self, linear: nn.Linear, source: fx.Node) -> fx.Node:
        """Call the convolution of 1x1 that a linear layer is; the same one if the layer is called again."""
        if linear in self.convolutions:
            return self.graph.call_module(self.convolutions[linear], (source,))
        module = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
        module.weight = nn.Parameter(linear.weight.detach()[:, :, None, None].clone())
        if linear.bias is not None:
            module.bias = nn.Parameter(linear.bias.detach().clone())
        new = self._call("deepreduce_convolution", module, source)
        self.convolutions[linear] = str(new.target)
        return new

    def _call(self, prefix: str, module: nn.Module, source: fx.Node) -> fx.Node:
        number = 0
        while hasattr(self.network, f"{prefix}_{number}"):
            number += 1
        self.network.add_submodule(f"{prefix}_{number}", module)
        return self.graph.call_module(f"{prefix}_{number}", (source,))

    def _permutes(self, node: fx.Node, dims: tuple[int, ...]) -> bool:
        """Tell whether a node permutes the dimensions of feature maps in a given way."""
        if node.op not in ("call_function", "call_method") or function_name(node) != "permute":
            return False
        given: Any = node.args[1:] if len(node.args) > 2 else (argument(node, 1, "dims"),)
        flat: Any = given[0] if isinstance(given[0], (tuple, list)) else given
        whole = len(flat) == _MAP and all(isinstance(dim, int) for dim in flat)
        return whole and tuple(dim % _MAP for dim in flat) == dims

    @staticmethod
    def _shape(node: fx.Node) -> tuple[int, ...]:
        return tuple(node.meta["tensor_meta"].shape)
