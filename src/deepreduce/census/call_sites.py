"""Finding ReLUs by call site, and naming what else is not linear."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import fx, nn

from .trace import source_line


@dataclass(frozen=True)
class CallSite:
    """One place where the network computes a ReLU.

    Attributes:
        name: unique and stable: the path of the module that was called (`layer1.0.relu`), or of the module that
            called a function, with the function (`layer1.0:relu`); `#2`, `#3` for further calls of the same name.
        node: the node's name in the graph.
        kind: `relu` or `relu6`.
        source: `file.py:line` of the user's code.
    """

    name: str
    node: str
    kind: str
    source: str


_ACTIVATION_MODULES = (
    nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus,
    nn.Softsign, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold,
    nn.LogSigmoid, nn.RReLU, nn.GLU, nn.Softmax, nn.LogSoftmax,
)  # fmt: skip
_POOLING_MODULES = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool1d)
_NORM_MODULES = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm)
_OPAQUE_MODULES = (
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.TransformerEncoder, nn.TransformerDecoder,
    nn.Transformer, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip
_ACTIVATION_FUNCTIONS = {
    "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "celu", "selu", "gelu", "silu", "mish", "sigmoid", "sigmoid_",
    "tanh", "tanh_", "softplus", "hardswish", "hardsigmoid", "hardtanh", "softmax", "log_softmax", "exp", "sqrt",
    "abs", "maximum", "minimum", "max", "clamp", "clamp_", "clip", "clamp_min", "threshold", "where", "rrelu", "glu",
    "max_pool2d", "adaptive_max_pool2d", "max_pool1d", "boolean_dispatch", "layer_norm", "group_norm", "instance_norm",
}  # fmt: skip


def find_relus(traced: fx.GraphModule) -> tuple[CallSite, ...]:
    """Return every ReLU of a traced network in the order in which it is computed.

    Counted are `nn.ReLU`, `nn.ReLU6`, `F.relu`, `F.relu6`, `torch.relu`, `Tensor.relu`, their in-place forms, and the
    same functions in other clothes: clamping at 0 from below (and at 6 from above), `Hardtanh(0, 6)`,
    `Threshold(0, 0)`. A module that is called twice is two call sites.
    """
    seen: Counter[str] = Counter()
    sites = []
    for node in traced.graph.nodes:
        kind = _relu_kind(node, traced)
        if kind is None:
            continue
        base = str(node.target) if node.op == "call_module" else f"{_caller(node)}:{kind}"
        seen[base] += 1
        name = base if seen[base] == 1 else f"{base}#{seen[base]}"
        sites.append(CallSite(name, node.name, kind, source_line(node)))
    return tuple(sites)


def other_nonlinearities(traced: fx.GraphModule) -> tuple[str, ...]:
    """Name what is neither linear nor a ReLU, each with its place: it stays, and costs its own private protocol."""
    notes = []
    for node in traced.graph.nodes:
        if _relu_kind(node, traced) is not None:
            continue
        what = _other_kind(node, traced)
        if what is not None:
            place = source_line(node)
            name = str(node.target) if node.op == "call_module" else f"{_caller(node)}:{_function_name(node)}"
            notes.append(f"{name}: {what}" + (f" ({place})" if place else ""))
    return tuple(notes)


def _function_name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))


def _caller(node: fx.Node) -> str:
    """Return the path of the module whose forward made the call; the network itself is `net`."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    path = next(reversed(list(stack.values())), ("", None))[0] if stack else ""
    return path or "net"


def _relu_kind(node: fx.Node, traced: fx.GraphModule) -> str | None:
    if node.op == "call_module":
        return _module_relu_kind(traced.get_submodule(str(node.target)))
    if node.op == "call_method":
        if node.target in ("relu", "relu_"):
            return "relu"
        if node.target in ("clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_"):
            return _clamp_kind(*_bounds(node))
    if node.op == "call_function":
        if node.target in (F.relu, torch.relu, torch.relu_):
            return "relu"
        if node.target is F.relu6:
            return "relu6"
        if node.target in (torch.clamp, torch.clip, torch.clamp_min):
            return _clamp_kind(*_bounds(node))
        if node.target is F.hardtanh:
            low, high = (*node.args[1:3], -1.0, 1.0)[:2] if len(node.args) > 1 else (-1.0, 1.0)
            return _clamp_kind(node.kwargs.get("min_val", low), node.kwargs.get("max_val", high))
        if node.target is F.threshold and (*node.args[1:], *node.kwargs.values())[:2] == (0, 0):
            return "relu"
    return None


def _module_relu_kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.ReLU):
        return "relu"
    if isinstance(module, nn.Hardtanh):  # nn.ReLU6 is one
        return _clamp_kind(module.min_val, module.max_val)
    if isinstance(module, nn.Threshold) and module.threshold == 0 and module.value == 0:
        return "relu"
    return None


def _bounds(node: fx.Node) -> tuple[object, object]:
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get("max")
    return low, high


def _clamp_kind(low: object, high: object) -> str | None:
    if isinstance(low, (int, float)) and low == 0:
        if high is None or (isinstance(high, (int, float)) and math.isinf(high)):
            return "relu"
        if isinstance(high, (int, float)) and high == 6:
            return "relu6"
    return None


def _other_kind(node: fx.Node, traced: fx.GraphModule) -> str | None:
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        if isinstance(module, _OPAQUE_MODULES):
            return f"{type(module).__name__} is opaque: ReLUs inside it are not counted and cannot be removed"
        if isinstance(module, _ACTIVATION_MODULES):
            return f"{type(module).__name__} is an activation, not a ReLU, and stays"
        if isinstance(module, _POOLING_MODULES):
            return f"{type(module).__name__} compares values and stays"
        if isinstance(module, _NORM_MODULES):
            return f"{type(module).__name__} cannot be folded into a convolution and stays"
        return None
    if node.op in ("call_function", "call_method"):
        target: str | Callable[..., Any] = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if name == "fn":  # torch wraps pooling functions that may also return indices
            return "a pooling function compares values and stays"
        if name in _ACTIVATION_FUNCTIONS:
            return f"{name} is not linear, not a ReLU, and stays"
    return None
