"""Average pooling in place of max pooling.

In private inference an average is a sum of shares, which costs nothing online. A maximum is a tournament: with a window
of 2x2 three ReLUs for each output and two round trips, with 3x3 six and four. CryptoNets (Gilad-Bachrach et al., ICML
2016) took averages because they are linear. It is a step of reduction: the network is trained afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import fx, nn

from ...census import argument
from .plain import is_extended
from .removal import replace_call

_PREFIX = "deepreduce_average"
_MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def has_max_pooling(network: fx.GraphModule) -> bool:
    """Tell whether a traced network has max pooling that average pooling can replace."""
    return any(_average(node, network) is not None for node in network.graph.nodes)


def average_pools(network: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a traced network with an average over each window of max pooling in place of the maximum.

    Padding is not part of a window, as it is not in a maximum. Pooling that is dilated, returns indices or has a size
    that is computed stays. So does pooling of a map that was padded with another number than zero, such as minus
    infinity, which no average could leave out; and what is not pooling of feature maps.

    Args:
        network: not changed; the copy shares no parameter with it.
    """
    own = copy.deepcopy(network)
    for node in list(own.graph.nodes):
        module = _average(node, own)
        if module is not None:
            replace_call(own, node, _PREFIX, module)
    own.delete_all_unused_submodules()
    own.recompile()
    return own


def _average(node: fx.Node, network: fx.GraphModule) -> nn.Module | None:
    """Return the average pooling that can take the place of a node, None where there is none."""
    if any(_is_bordered(above, network) for above in node.all_input_nodes):
        return None
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if isinstance(module, nn.MaxPool2d) and not is_extended(module, nn.MaxPool2d):
            return _pool({name: getattr(module, name) for name in _MAX_POOL[1:]})
        if isinstance(module, nn.AdaptiveMaxPool2d) and not is_extended(module, nn.AdaptiveMaxPool2d):
            return _adaptive(module.output_size, module.return_indices)
    if node.op == "call_function":
        read = _READERS.get(node.target)
        return None if read is None else read(node)
    return None


def _is_bordered(node: fx.Node, network: fx.GraphModule) -> bool:
    """Tell whether a node pads with another number than zero."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return isinstance(module, nn.ConstantPad2d) and module.value != 0
    padded = node.op == "call_function" and node.target is F.pad
    return padded and argument(node, 3, "value") not in (None, 0)


def _pool_of_call(node: fx.Node) -> nn.Module | None:
    defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
    found = {name: argument(node, at, name, defaults.get(name)) for at, name in enumerate(_MAX_POOL) if at}
    return _pool(found)


def _adaptive_of_call(node: fx.Node) -> nn.Module | None:
    return _adaptive(argument(node, 1, "output_size"), argument(node, 2, "return_indices", False))


def _pool(found: dict[str, Any]) -> nn.Module | None:
    dilation = found["dilation"]
    dilated = any(step != 1 for step in (dilation if isinstance(dilation, (tuple, list)) else (dilation,)))
    if dilated or _is_computed(list(found.values())) or found["return_indices"]:
        return None
    stride = found["stride"] or found["kernel_size"]  # torch takes an empty list for none
    return nn.AvgPool2d(found["kernel_size"], stride, found["padding"], found["ceil_mode"], count_include_pad=False)


def _adaptive(size: Any, indices: bool) -> nn.Module | None:
    return None if indices or _is_computed(size) else nn.AdaptiveAvgPool2d(size)


def _is_computed(value: Any) -> bool:
    """Tell whether a number, or one of several, comes out of the network itself."""
    if isinstance(value, (tuple, list)):
        return any(_is_computed(each) for each in value)
    return isinstance(value, fx.Node)


_READERS: dict[object, Callable[[fx.Node], nn.Module | None]] = {
    F.max_pool2d: _pool_of_call,
    torch.max_pool2d: _pool_of_call,
    F.adaptive_max_pool2d: _adaptive_of_call,
}
