"""Trimming: a ReLU layer works on the middle of its feature map alone (our own).

In a residual block the layers between the two ends of the way around it are computed on a part of the map: without
the outermost positions, as a convolution without padding does. Behind the ReLU zeros take their place. The windows of
the convolutions still see every position, and what lies at the border goes around the block. On a map of 4x4 that
leaves a quarter of the ReLUs, without losing a channel.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import fx, nn

from ...census import take_census
from ...errors import NetworkError, problem
from .plain import is_affine, is_plain_convolution, padding_of
from .removal import relu_nodes

_NAMED = 3  # call sites in a message
_DIMENSIONS = 3  # of a feature map: channels, height, width


def trim_maps(network: fx.GraphModule, trims: Mapping[str, int], input: tuple[int, int, int]) -> fx.GraphModule:
    """Return a copy of a traced network in which some ReLU layers see the middle of their feature maps alone.

    Where the ReLU lies between two convolutions, these change their padding and compute nothing that is not used;
    elsewhere the map is trimmed before the ReLU and padded behind it. A layer that the image reaches the output through
    alone keeps its size: nothing goes around it, and its border would be lost.

    Args:
        network: traced, with all its ReLUs; not changed.
        trims: by call site, the positions that go on each of the four sides, 0 or more.
        input: channels, height and width of one image.

    Raises:
        NetworkError: if a call site does not exist, a map is too small or no feature map, or nothing could be trimmed.
    """
    own = copy.deepcopy(network)
    asked = {name: trim for name, trim in trims.items() if trim > 0}
    nodes = relu_nodes(own, asked)
    layers = {layer.name: layer for layer in take_census(own, input).layers} if asked else {}
    nodes = {name: node for name, node in nodes.items() if layers[name].has_skip}
    if asked and not nodes:
        raise NetworkError(
            problem(
                "trimming needs a ReLU with a way around it, as in a residual block",
                got=f"none among {', '.join(sorted(asked)[:_NAMED])}" + (" and others" if len(asked) > _NAMED else ""),
                remedy="leave trim at 0",
                where=type(network).__name__,
            )
        )
    for name in nodes:
        _check(name, layers[name].shape, asked[name])
    for name, node in nodes.items():
        _trim_before(own, node, asked[name])
        _pad_behind(own, node, asked[name])
    own.recompile()
    return own


def _check(name: str, shape: tuple[int, ...], trim: int) -> None:
    if len(shape) != _DIMENSIONS or min(shape[1:]) <= 2 * trim:
        got = "x".join(map(str, shape))
        raise NetworkError(
            problem(
                "trimming must leave a part of the feature map",
                got=f"{trim} from each side of {got}",
                remedy="trim less than half of its height and width",
                where=name,
            )
        )


def _trim_before(own: fx.GraphModule, relu: fx.Node, trim: int) -> None:
    """Let the ReLU read the middle of its input: by less padding of the convolution in front, if that has no other."""
    node = relu.all_input_nodes[0]
    while len(node.users) == 1 and is_affine(_module(own, node)):
        node = node.all_input_nodes[0]
    convolution = _padded(own, node) if len(node.users) == 1 else None
    if convolution is None:
        with own.graph.inserting_before(relu):
            middle = own.graph.call_function(F.pad, (relu.all_input_nodes[0], [-trim] * 4))
        relu.replace_input_with(relu.all_input_nodes[0], middle)
        return
    # Output position o begins at o * stride - padding: the first that stays is `trim`.
    high, wide = (pad - stride * trim for pad, stride in zip(padding_of(convolution), convolution.stride, strict=True))
    convolution.padding = max(0, high), max(0, wide)
    if min(high, wide) < 0:
        high, wide = min(0, high), min(0, wide)
        with own.graph.inserting_before(node):
            source = node.all_input_nodes[0]
            middle = own.graph.call_function(F.pad, (source, [wide, wide, high, high]))
        node.replace_input_with(source, middle)


def _pad_behind(own: fx.GraphModule, relu: fx.Node, trim: int) -> None:
    """Put zeros where positions went: by more padding of the convolution behind the ReLU, if nothing else reads it."""
    users = list(relu.users)
    convolution = _padded(own, users[0]) if len(users) == 1 else None
    if convolution is not None:
        high, wide = padding_of(convolution)
        convolution.padding = high + trim, wide + trim
        return
    with own.graph.inserting_after(relu):
        whole = own.graph.call_function(F.pad, (relu, [trim] * 4))
    relu.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)


def _module(own: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return own.get_submodule(str(node.target)) if node.op == "call_module" else None


def _padded(own: fx.GraphModule, node: fx.Node) -> nn.Conv2d | None:
    """Return the convolution that a node calls, if it pads with so many zeros and is called here alone."""
    module = _module(own, node)
    calls = sum(_module(own, other) is module for other in own.graph.nodes)
    return module if isinstance(module, nn.Conv2d) and calls == 1 and is_plain_convolution(module) else None
