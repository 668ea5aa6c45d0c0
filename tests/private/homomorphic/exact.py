"""Ground truth for the homomorphic layers: plain integer convolution, and polynomials modulo X^N + 1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from torch.nn.functional import conv2d

import deepreduce
from deepreduce.private.homomorphic import Keys, Layer
from deepreduce.private.homomorphic.scheme import Form, scheme

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Hypothesis on a machine that does other work as well."""


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


def network_layers(name: str) -> list[Layer]:
    """Return the distinct linear layers of a reference network at 32x32 with 100 classes, by running it once."""
    found: dict[Layer, None] = {}

    def see(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Linear):
            found[Layer.linear(module.in_features, module.out_features)] = None
        elif isinstance(module, torch.nn.Conv2d):
            _, channels, height, width = inputs[0].shape
            pairs = [module.kernel_size, module.stride, module.padding]
            kernel, stride, padding = ((pair[0], pair[1]) for pair in pairs)
            shape = Layer(channels, module.out_channels, height, width, kernel, stride, padding, module.groups)
            found[shape] = None

    with torch.device("meta"), torch.no_grad():
        network = deepreduce.build(deepreduce.NetworkSpec(name, (3, 32, 32), 100)).eval()
        for module in network.modules():
            module.register_forward_hook(see)
        network(torch.zeros(1, 3, 32, 32))
    return list(found)


def phases(keys: Keys, words: NDArray[np.uint64], form: Form) -> NDArray[np.object_]:
    """Return c_0 + c_1 S modulo all primes of a ciphertext in coefficients (polynomial, prime, ...), as integers."""
    context = scheme(keys.parameters)
    secret, primes = context.secret_weights(keys), context.primes
    if form == "answer":
        secret = context.evaluator.mod_switch_to(secret, context.answer_level)
        primes = context.answer_primes
    both = context.ciphertext(np.stack([words[1], words[1]]), form)  # SEAL refuses one that is zero
    product = context.evaluator.multiply_plain(context.evaluator.transform_to_ntt(both), secret)
    masked = context.words(context.evaluator.transform_from_ntt(product))[0]
    modulus, total = math.prod(primes), np.zeros(words.shape[-1], object)
    for prime, line, other in zip(primes, words[0], masked, strict=True):
        rest = modulus // prime
        total += (line.astype(object) + other) % prime * (rest * pow(rest, -1, prime))
    return total % modulus


def noise(keys: Keys, words: NDArray[np.uint64], form: Form = "coefficients") -> NDArray[np.object_]:
    """Return the exact noise of a ciphertext, in units of 1 / t: the phase minus (q / t) m, times t."""
    context = scheme(keys.parameters)
    modulus = math.prod(context.answer_primes if form == "answer" else context.primes)
    scaled = phases(keys, words, form) << keys.parameters.ring_bits
    return (scaled + modulus // 2) % modulus - modulus // 2


def coefficients(keys: Keys, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Transform a ciphertext back, with SEAL."""
    context = scheme(keys.parameters)
    return context.words(context.evaluator.transform_from_ntt(context.ciphertext(words, "transformed")))


def decrypt(keys: Keys, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Decrypt all N coefficients of a ciphertext modulo all data primes."""
    context = scheme(keys.parameters)
    return context.values(context.decryptor(keys).decrypt(context.ciphertext(words, "coefficients")))
