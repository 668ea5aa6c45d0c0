"""Bringing a traced graph into the form that the rest of the program relies on.

* No operation in place, where it can be written out of place.
* Batch norm and dropout that obey `train()` and `eval()`, also where the user calls the functions.
* No `nn.Identity`: its output is its input, so it only hides who shares a tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, fx, nn

from ._graph import argument, function_name, image_nodes

_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_FLAG_POSITIONS: dict[object, int] = {
    F.relu: 1, F.relu6: 1, F.hardtanh: 3, F.threshold: 3, F.leaky_relu: 2, F.elu: 2, F.silu: 1, F.dropout: 3,
}  # fmt: skip
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)

_STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth"
"""Where its only function is, which is a leaf to a tracer; torchvision is not needed here."""


class FunctionalBatchNorm(nn.Module):
    """`F.batch_norm` that follows the training mode of the graph; tracing alone would freeze the mode it saw."""

    def forward(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Normalise; `training` as traced is ignored."""
        return F.batch_norm(x, running_mean, running_var, weight, bias, self.training, momentum, eps)


class FunctionalDropout(nn.Module):
    """`F.dropout` or a relative of it that follows the training mode of the graph.

    Args:
        function: takes the tensor, the settings of the call, and whether it drops.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, *settings: Any) -> Tensor:
        """Drop, in training; the settings are the probability, and for stochastic depth its mode."""
        return self.function(x, *settings, self.training)


def canonicalise(own: nn.Module, graph: fx.Graph) -> None:
    """Rewrite a freshly traced graph and the modules it calls, both in place; see the head of this file."""
    _bypass_identities(own, graph)
    _unfreeze_modes(own, graph)
    _leave_in_place(own, graph)


def _bypass_identities(own: nn.Module, graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op == "call_module" and type(own.get_submodule(str(node.target))) is nn.Identity:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)


def _unfreeze_modes(own: nn.Module, graph: fx.Graph) -> None:
    """Put modules in place of functions whose `training` argument was frozen to the traced mode.

    An argument that is true was hard-coded by the user, because the trace ran in evaluation mode; it stays.
    """
    for index, node in enumerate(list(graph.nodes)):
        if node.op != "call_function":
            continue
        if node.target is F.batch_norm and argument(node, 5, "training", False) is False:
            path = _as_batch_norm(own, node)
            args, kwargs = (node.args, node.kwargs) if path is None else ((argument(node, 0, "input"),), {})
            module: nn.Module = FunctionalBatchNorm()
        elif (settings := _dropout_settings(node)) is not None:
            path, args, kwargs = None, (argument(node, 0, "input"), *settings), {}
            module = FunctionalDropout(node.target)
        else:
            continue
        if path is None:
            path = f"deepreduce_mode_{index}"
            own.add_module(path, module)
        kwargs = {("x" if name == "input" else name): value for name, value in kwargs.items()}
        with graph.inserting_before(node):
            new = graph.call_module(path, args, kwargs)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _dropout_settings(node: fx.Node) -> tuple[Any, ...] | None:
    """Return the settings of a function that drops something in training, None if it is none or always drops."""
    if node.target in _DROPOUTS and argument(node, 2, "training", True) is False:
        return (argument(node, 1, "p", 0.5),)
    if getattr(node.target, "__module__", None) == _STOCHASTIC_DEPTH and argument(node, 3, "training", True) is False:
        return argument(node, 1, "p"), argument(node, 2, "mode")
    return None


def _as_batch_norm(own: nn.Module, node: fx.Node) -> str | None:
    """Turn a user's own kind of batch norm module, which calls the function, into a plain one of the same tensors.

    Others, such as the channel scaling, then know it for what it is. Returns its path, None if it is none.
    """
    names = ("running_mean", "running_var", "weight", "bias")
    tensors = [argument(node, position, name) for position, name in enumerate(names, 1)]
    paths = {
        str(tensor.target).removesuffix(name).removesuffix(".")
        for tensor, name in zip(tensors, names, strict=True)
        if isinstance(tensor, fx.Node) and tensor.op == "get_attr" and str(tensor.target).split(".")[-1] == name
    }
    present = [isinstance(tensor, fx.Node) for tensor in tensors]
    if len(paths) != 1 or not all(present[:2]) or present[2] != present[3]:
        return None
    path = paths.pop()
    theirs: Any = own.get_submodule(path)
    kind = next((k for k in (nn.BatchNorm2d, nn.BatchNorm1d, nn.BatchNorm3d) if isinstance(theirs, k)), None)
    if kind is None or type(theirs) is kind or not path or (theirs.weight is None) == present[2]:
        return None
    plain: Any = kind(
        theirs.num_features, eps=argument(node, 7, "eps", 1e-5), momentum=theirs.momentum, affine=present[2]
    )
    plain.weight, plain.bias = theirs.weight, theirs.bias
    for name, value in theirs.named_buffers(recurse=False):
        plain.register_buffer(name, value)
    for name, child in theirs.named_children():
        plain.add_module(name, child)
    own.set_submodule(path, plain)
    return path


def _leave_in_place(own: nn.Module, graph: fx.Graph) -> None:
    """Write operations in place out of place, and let every later reader of the overwritten tensor read the result."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    tensors = image_nodes(graph)
    in_place_modules = set()
    for node in list(graph.nodes):
        overwritten = argument(node, 0, "input") if node.op.startswith("call_") else None
        if not isinstance(overwritten, fx.Node):
            continue
        if node.op == "call_module":
            module = own.get_submodule(str(node.target))
            if not getattr(module, "inplace", False):
                continue
            in_place_modules.add(module)
        elif not _write_out_of_place(node):
            continue
        if overwritten in tensors:
            node.meta["_in_place"] = True
            for user in list(overwritten.users):
                if order[user] > order[node]:
                    user.replace_input_with(overwritten, node)
    for module in in_place_modules:  # after all calls were seen: a module may be called twice
        module.inplace = False  # type: ignore[assignment]


def _write_out_of_place(node: fx.Node) -> bool:
    """Change the call of a node to its out-of-place form; False if it was that already or has none."""
    name = function_name(node)
    if node.target in _OPERATORS:
        node.target = _OPERATORS[node.target]
        return True
    if name.endswith("_") and not name.endswith("__"):
        if node.op == "call_method":
            if not hasattr(Tensor, name[:-1]) or name == "requires_grad_":
                return False
            node.target = name[:-1]
            return True
        for home in (F, torch):
            if getattr(home, name, None) is node.target and hasattr(home, name[:-1]):
                node.target = getattr(home, name[:-1])
                return True
        return False
    return node.op == "call_function" and _clear_flag(node)


def _clear_flag(node: fx.Node) -> bool:
    """Set the `inplace` argument of a function of PyTorch to false; tell whether it was true."""
    if node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    position = _FLAG_POSITIONS.get(node.target)
    if position is not None and len(node.args) > position and node.args[position]:
        node.args = (*node.args[:position], False, *node.args[position + 1 :])
        return True
    return False
