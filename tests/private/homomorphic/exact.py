"""Ground truth for the homomorphic layers: plain integer convolution, and polynomials modulo X^N + 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import conv2d

from deepreduce.private.homomorphic import Layer


def layer(i: int, o: int, side: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> Layer:
    """Return a square layer with the padding that networks use."""
    return Layer(i, o, side, side, (kernel, kernel), (stride, stride), ((kernel - 1) // 2,) * 2, groups)


def convolve(of: Layer, values: NDArray[np.integer[Any]], weights: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Convolve with PyTorch's integer convolution, whose overflow wraps modulo 2^64."""
    x = torch.from_numpy(values.astype(np.uint64).view(np.int64))[None]
    y = conv2d(x, torch.from_numpy(weights), stride=of.stride, padding=of.padding, groups=of.groups)
    return y[0].numpy().view(np.uint64)


def negacyclic(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Multiply two integer polynomials modulo X^N + 1, modulo 2^64."""
    n = a.size
    found = np.zeros(n, np.int64)
    for exponent in np.flatnonzero(b):
        found[exponent:] += a[: n - exponent] * b[exponent]
        found[:exponent] -= a[n - exponent :] * b[exponent]
    return found


# Every distinct layer shape of the reference networks at 32x32 with 100 classes, with how often it occurs.
RESNET18 = [
    ("stem", layer(3, 64, 32), 1),
    ("layer1", layer(64, 64, 32), 4),
    ("layer2.0.conv1", layer(64, 128, 32, stride=2), 1),
    ("layer2.0.shortcut", layer(64, 128, 32, 1, 2), 1),
    ("layer2", layer(128, 128, 16), 3),
    ("layer3.0.conv1", layer(128, 256, 16, stride=2), 1),
    ("layer3.0.shortcut", layer(128, 256, 16, 1, 2), 1),
    ("layer3", layer(256, 256, 8), 3),
    ("layer4.0.conv1", layer(256, 512, 8, stride=2), 1),
    ("layer4.0.shortcut", layer(256, 512, 8, 1, 2), 1),
    ("layer4", layer(512, 512, 4), 3),
    ("fc", Layer.linear(512, 100), 1),
]
