"""From a module to a graph in which every operation is a node, with the user's source line beside it."""

from __future__ import annotations

import copy
import traceback
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, fx, nn

from ..errors import NetworkError, problem


class _FunctionalBatchNorm(nn.Module):
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


class _FunctionalDropout(nn.Module):
    """`F.dropout` that follows the training mode of the graph."""

    def forward(self, x: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
        """Drop; `training` as traced is ignored."""
        return F.dropout(x, p, self.training)


class _Tracer(fx.Tracer):
    """fx's tracer, which also notes the source line of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.record_stack_traces = True


def trace(module: nn.Module) -> fx.GraphModule:
    """Trace a network into a graph module of its own, which shares nothing with the original.

    The graph follows the evaluation branch of the user's code; batch norm and dropout in it obey `train()` and
    `eval()` as before. In-place ReLUs become out-of-place ones, with the same result, so that each can be removed
    without touching its neighbours. Parameter names stay.

    Args:
        module: the user's network; not changed.

    Raises:
        NetworkError: if the control flow depends on the data, with the line of the user's source.
    """
    if isinstance(module, fx.GraphModule):
        return copy.deepcopy(module)
    own = copy.deepcopy(module).eval()
    tracer = _Tracer()
    try:
        graph = tracer.trace(own)
    except Exception as error:  # fx raises many types, and the user's code any other
        raise NetworkError(
            problem(
                "the network must be traceable by torch.fx: no branch or loop may depend on the values of a tensor",
                got=f"{type(error).__name__}: {_first_line(error)}",
                remedy="move that branch out of forward, or make it depend on the configuration alone",
                where=_user_line(error),
            )
        ) from error
    traced = fx.GraphModule(own, graph, class_name=type(module).__name__)
    _unfreeze_modes(traced)
    _separate_in_place_relus(traced)
    traced.recompile()
    traced.train(module.training)
    return traced


def source_line(node: fx.Node) -> str:
    """Return `file.py:line` of the user's source that made the call, or an empty string if it is not known."""
    frames = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File ")]
    for frame in reversed(frames):
        parts = frame.split('"')
        if len(parts) < 3 or _belongs_to_torch(parts[1]):
            continue
        line = parts[2].split(",")[1].replace("line", "").strip()
        return f"{Path(parts[1]).name}:{line}"
    return ""


def _belongs_to_torch(file: str) -> bool:
    return Path(torch.__file__).parent in Path(file).parents


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def _user_line(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _belongs_to_torch(f.filename)]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    code = f" ({last.line})" if last.line else ""
    return f"{last.filename}, line {last.lineno}{code}"


def _unfreeze_modes(traced: fx.GraphModule) -> None:
    """Put modules in place of functions whose `training` argument was frozen to the traced mode."""
    replacements: dict[object, type[nn.Module]] = {F.batch_norm: _FunctionalBatchNorm, F.dropout: _FunctionalDropout}
    position = {"training": {F.batch_norm: 5, F.dropout: 2}}["training"]
    for index, node in enumerate(list(traced.graph.nodes)):
        kind = replacements.get(node.target) if node.op == "call_function" else None
        if kind is None:
            continue
        place = position[node.target]
        training = node.args[place] if len(node.args) > place else node.kwargs.get("training", node.target is F.dropout)
        if training is True:  # hard-coded by the user: the trace ran in evaluation mode
            continue
        name = f"deepreduce_mode_{index}"
        traced.add_submodule(name, kind())
        with traced.graph.inserting_before(node):
            new = traced.graph.call_module(name, node.args, node.kwargs)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        traced.graph.erase_node(node)


def _is_in_place_relu(node: fx.Node, traced: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False)) and isinstance(
            traced.get_submodule(str(node.target)), (nn.ReLU, nn.ReLU6, nn.Hardtanh)
        )
    if node.op == "call_method":
        return node.target in ("relu_", "clamp_", "clamp_min_")
    if node.op == "call_function":
        if node.target in (torch.relu_, F.relu_, F.hardtanh_):
            return True
        names = {F.relu: 1, F.relu6: 1}
        if node.target in names:
            place = names[node.target]
            return bool(node.args[place] if len(node.args) > place else node.kwargs.get("inplace", False))
    return False


def _separate_in_place_relus(traced: fx.GraphModule) -> None:
    """Let every later reader of a tensor that an in-place ReLU overwrote read the ReLU's result instead."""
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        if not _is_in_place_relu(node, traced):
            continue
        overwritten = node.args[0]
        if isinstance(overwritten, fx.Node):
            later = [user for user in overwritten.users if order.get(user, -1) > order[node]]
            for user in later:
                user.replace_input_with(overwritten, node)
        if node.op == "call_module":
            traced.get_submodule(str(node.target)).inplace = False
        elif node.op == "call_method":
            node.target = str(node.target).removesuffix("_")
        elif node.target in (torch.relu_, F.relu_):
            node.target = torch.relu
        elif node.target is F.hardtanh_:
            node.target = F.hardtanh
        else:
            node.args = node.args[:1]
            node.kwargs = {}
