"""Finding ReLUs by call site, and naming what else is not linear."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import fx, nn

from ._canonical import FunctionalBatchNorm, FunctionalDropout
from ._graph import argument, function_name, image_nodes, is_live, live_nodes
from .masked_relu import MaskedReLU
from .trace import source_line


@dataclass(frozen=True)
class CallSite:
    """One place where the network computes a ReLU.

    Attributes:
        name: unique and stable: the path of the module that was called (`layer1.0.relu`), or of the module that
            called a function, with the function (`layer1.0:relu`); `#2`, `#3` for further calls of the same name.
        node: the node's name in the graph.
        kind: `relu` or `relu6`.
        source: `file.py:line` of the user's code; empty if it is not known.
    """

    name: str
    node: str
    kind: str
    source: str


_ACTIVATIONS = (
    nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus,
    nn.Softsign, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold,
    nn.LogSigmoid, nn.RReLU, nn.GLU, nn.Softmax, nn.LogSoftmax,
)  # fmt: skip
_POOLINGS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool1d)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm)
# By name: torch keeps a common base for some of these families only.
_LINEAR_MODULES = {
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear", "Identity",
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d",
    "AlphaDropout", "FeatureAlphaDropout", "Flatten", "Unflatten", "AvgPool1d", "AvgPool2d", "AvgPool3d",
    "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "ZeroPad1d", "ZeroPad2d", "ConstantPad1d",
    "ConstantPad2d", "ReflectionPad1d", "ReflectionPad2d", "ReplicationPad1d", "ReplicationPad2d", "CircularPad2d",
    "Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle",
    "Fold", "Unfold",
}  # fmt: skip
_LINEAR_FUNCTIONS = {
    "add", "sub", "neg", "sum", "mean", "cat", "concat", "stack", "flatten", "unflatten", "view", "view_as", "reshape",
    "reshape_as", "permute", "transpose", "t", "swapaxes", "movedim", "contiguous", "clone", "detach", "getitem",
    "getattr", "chunk", "split", "tensor_split", "unbind", "narrow", "select", "index_select", "squeeze", "unsqueeze",
    "expand", "expand_as", "repeat", "repeat_interleave", "roll", "flip", "pad", "to", "float", "double", "type_as",
    "type",
    "conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "batch_norm", "dropout", "dropout1d", "dropout2d",
    "dropout3d", "alpha_dropout", "feature_alpha_dropout", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "interpolate", "upsample", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "fold", "unfold", "setitem", "positive",
}  # fmt: skip
_PRODUCTS = {"mul", "multiply", "matmul", "mm", "bmm", "baddbmm", "addmm", "einsum", "div", "truediv", "divide"}
_MAX_POOLINGS = {"max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d"}


def find_relus(traced: fx.GraphModule) -> tuple[CallSite, ...]:
    """Return every ReLU of a traced network in the order in which it is computed.

    Counted are `nn.ReLU`, `nn.ReLU6`, `F.relu`, `F.relu6`, `torch.relu`, `Tensor.relu`, their in-place forms, and the
    same functions in other clothes: clamping at 0 from below (and at 6 from above), `Hardtanh(0, 6)`,
    `Threshold(0, 0)`. A module that is called twice is two call sites. A `MaskedReLU` has the name of the call site
    whose place it takes. A ReLU whose result nothing reads, and one of a value that does not depend on the image, are
    not counted; `other_nonlinearities` names them.

    Args:
        traced: what `deepreduce.census.trace` returned, or a network made from it.
    """
    seen: Counter[str] = Counter()
    live, image = live_nodes(traced.graph), image_nodes(traced.graph)
    masked = {node: module.site for node in traced.graph.nodes if (module := masked_relu(node, traced)) is not None}
    taken = set(masked.values())
    sites = []
    for node in traced.graph.nodes:
        kind = _relu_kind(node, traced)
        if kind is None:
            continue
        if node in masked:
            name = masked[node]
        else:
            base = str(node.target) if node.op == "call_module" else f"{_caller(node)}:{kind}"
            name = _next_name(base, seen)
            while name in taken:
                name = _next_name(base, seen)
        if node in live and node in image:
            sites.append(CallSite(name, node.name, kind, source_line(node)))
    return tuple(sites)


def masked_relu(node: fx.Node, traced: fx.GraphModule) -> MaskedReLU | None:
    """Return the masked ReLU that a node calls, None if it calls something else."""
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, MaskedReLU) else None


def _next_name(base: str, seen: Counter[str]) -> str:
    seen[base] += 1
    return base if seen[base] == 1 else f"{base}#{seen[base]}"


def other_nonlinearities(traced: fx.GraphModule) -> tuple[str, ...]:
    """Name what is not known to be linear and no ReLU that can be removed, each with its place.

    It costs a private protocol of its own, or has none. It stays in every reduced network, but for most max pooling,
    see `deepreduce.reduction.average_pools`.
    """
    live, image = live_nodes(traced.graph), image_nodes(traced.graph)
    notes = []
    for node in traced.graph.nodes:
        relu = _relu_kind(node, traced) is not None
        if relu and node not in live:
            what: str | None = "its result is never read, so it is not counted"
        elif relu and node not in image:
            what = "it does not depend on the image, so it is not counted and stays"
        elif relu or not is_live(node, live) or node not in image:
            what = None
        else:
            what = _other_kind(node, traced, image)
        if what is not None:
            place = source_line(node)
            name = str(node.target) if node.op == "call_module" else f"{_caller(node)}:{function_name(node)}"
            notes.append(f"{name}: {what}" + (f" ({place})" if place else ""))
    return tuple(notes)


def _caller(node: fx.Node) -> str:
    """Return the path of the module whose forward made the call; the network itself is `net`."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    path = next(reversed(list(stack.values())))[0] if stack else ""
    return path or "net"


def _relu_kind(node: fx.Node, traced: fx.GraphModule) -> str | None:
    if node.op == "call_module":
        return _module_relu_kind(traced.get_submodule(str(node.target)))
    if node.op == "call_method":
        if node.target == "relu":
            return "relu"
        if node.target in ("clamp", "clip", "clamp_min"):
            return _clamp_kind(argument(node, 1, "min"), argument(node, 2, "max"))
    if node.op == "call_function":
        if node.target in (F.relu, torch.relu):
            return "relu"
        if node.target is F.relu6:
            return "relu6"
        if node.target in (torch.clamp, torch.clip, torch.clamp_min):
            return _clamp_kind(argument(node, 1, "min"), argument(node, 2, "max"))
        if node.target is F.hardtanh:
            return _clamp_kind(argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0))
        if node.target in (F.threshold, torch.threshold):
            bounds = argument(node, 1, "threshold"), argument(node, 2, "value")
            return "relu" if all(_is_number(bound) and bound == 0 for bound in bounds) else None
    return None


def _module_relu_kind(module: nn.Module) -> str | None:
    if isinstance(module, MaskedReLU):
        return module.kind
    if isinstance(module, nn.ReLU):
        return "relu"
    if isinstance(module, nn.Hardtanh):  # nn.ReLU6 is one
        return _clamp_kind(module.min_val, module.max_val)
    if isinstance(module, nn.Threshold) and module.threshold == 0 and module.value == 0:
        return "relu"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _clamp_kind(low: Any, high: Any) -> str | None:
    if not _is_number(low) or low != 0:
        return None
    if high is None or (_is_number(high) and math.isinf(high) and high > 0):
        return "relu"
    return "relu6" if _is_number(high) and high == 6 else None


def final_softmax(traced: fx.GraphModule) -> fx.Node | None:
    """Return the softmax over the classes, or its logarithm, that a network ends with, None if it does not."""
    (output,) = traced.graph.find_nodes(op="output")
    last = output.args[0]
    if not isinstance(last, fx.Node):
        return None
    if last.op == "call_module":
        module = traced.get_submodule(str(last.target))
        return last if isinstance(module, (nn.Softmax, nn.LogSoftmax)) and module.dim in (1, -1) else None
    named = last.op in ("call_function", "call_method") and function_name(last) in ("softmax", "log_softmax")
    return last if named and argument(last, 1, "dim") in (1, -1) else None


def _other_kind(node: fx.Node, traced: fx.GraphModule, image: set[fx.Node]) -> str | None:
    if node is final_softmax(traced):
        return "it does not change the class, and is left out privately"
    if node.op == "call_module":
        return _other_module(traced.get_submodule(str(node.target)))
    name = function_name(node)
    if name in _LINEAR_FUNCTIONS:
        return None
    if name in _PRODUCTS:
        factors = [above for above in node.all_input_nodes if above in image]
        divided = name in ("div", "truediv", "divide") and argument(node, 1, "other") in image
        return "it multiplies or divides values of the image, and stays" if len(factors) > 1 or divided else None
    if name in _MAX_POOLINGS:
        return "it compares values, which costs more in private than a ReLU"
    return "it is not known to be linear, is no ReLU, and stays"


def _other_module(module: nn.Module) -> str | None:
    name = type(module).__name__
    bases = {base.__name__ for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules.")}
    if isinstance(module, (FunctionalBatchNorm, FunctionalDropout)) or bases & _LINEAR_MODULES:
        return None
    if isinstance(module, _ACTIVATIONS):
        return f"{name} is an activation, not a ReLU, and stays; with it the network cannot run privately"
    if isinstance(module, _POOLINGS):
        return f"{name} compares values, which costs more in private than a ReLU"
    if isinstance(module, _NORMS):
        return f"{name} cannot be folded into a convolution and stays"
    return f"{name} is opaque: what is not linear in it is not counted and cannot be removed"
