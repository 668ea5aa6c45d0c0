"""How operators that only move or copy elements become graph nodes."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from .calls import Call, Unsupported
from .graph import Node
from .operations import Concatenate, Gather, Reshape


def bordered(call: Call, x: Node, convolution: nn.Conv2d) -> Node:
    """Return a feature map with the border of its own elements that a convolution pads it with."""
    numbers = torch.arange(1, x.size + 1, dtype=torch.float64).reshape(1, *x.shape)
    border = convolution._reversed_padding_repeated_twice
    moved = F.pad(numbers, border, mode=convolution.padding_mode)[0]
    index = (moved.reshape(-1).long().numpy() - 1).astype(np.int32)
    return Node(Gather(index), [x], tuple(moved.shape), f"{call.name}:border", call.source)


def stack(call: Call) -> Node:
    """Convert a stack of tensors along a new dimension."""
    tensors, axis = call.bound("tensors", "dim", dim=0)
    if not all(isinstance(each, Node) for each in tensors):
        raise Unsupported("a stack with a constant", "add it after the network's first layer")
    shape = tuple(call.result.shape[1:])
    axis = axis % (len(shape) + 1)
    if axis == 0:
        raise Unsupported("a stack of images along the batch")
    # Side by side as vectors, and then in their places: a shape of many dimensions goes with what reads it.
    size = tensors[0].size
    flat = [Node(Reshape(), [x], (size,), f"{call.name}:{i}", call.source) for i, x in enumerate(tensors)]
    vector = call.node(Concatenate(0, (0,) * len(flat)), flat, (size * len(flat),))
    places = np.arange(size * len(flat), dtype=np.int32).reshape(len(flat), *tensors[0].shape)
    index = np.ascontiguousarray(np.moveaxis(places, 0, axis - 1)).reshape(-1)
    return Node(Gather(index), [vector], shape, f"{call.name}:stack", call.source)


def movement(source: Node, moved: Tensor, images: int, call: Call) -> Node:
    """Make the node of an operation that only moves elements.

    Args:
        source: what it reads.
        moved: its result on images whose elements are numbered from 1; 0 is a padded zero.
        images: how many.
        call: its place.

    Raises:
        Unsupported: if elements of one image reach another, or anything but a zero was put in.
    """
    shape = tuple(moved.shape[1:])
    if not shape:
        raise Unsupported("an operation that leaves no dimension of an image", "keep one")
    rows = [row.reshape(-1).long().numpy() for row in moved]
    first = rows[0] if rows else np.zeros(0, dtype=np.int64)
    agrees = len(rows) == images and all(
        np.array_equal(row, np.where(first > 0, first + number * source.size, first)) for number, row in enumerate(rows)
    )
    if not agrees or first.min(initial=0) < 0 or first.max(initial=0) > source.size:
        raise Unsupported("an operation that mixes images or fills in values other than zero")
    index = (first - 1).astype(np.int32)
    if np.array_equal(index, np.arange(source.size)):
        return source if shape == source.shape else call.node(Reshape(), [source], shape)
    return call.node(Gather(index), [source], shape)


SHAPE_MODULES = (
    nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d,
    nn.UpsamplingNearest2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
)  # fmt: skip
SHAPE_FUNCTIONS: set[Any] = {
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.chunk,
    torch.split, operator.getitem, F.pad, F.pixel_shuffle, F.channel_shuffle, torch.unflatten, torch.flip, torch.roll,
    torch.movedim, torch.swapaxes, torch.unbind, torch.narrow, torch.select, torch.index_select, torch.tile,
    torch.repeat_interleave, torch.tensor_split, F.pixel_unshuffle,
}  # fmt: skip
SHAPE_METHODS = {
    "flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "chunk", "split", "contiguous",
    "unflatten", "clone", "flip", "view_as", "reshape_as", "roll", "movedim", "swapaxes", "unbind", "narrow", "select",
    "index_select", "tile", "repeat", "expand", "repeat_interleave", "tensor_split",
}  # fmt: skip
NEAREST = ("nearest", "nearest-exact")
"""Modes of resizing that only copy elements."""
