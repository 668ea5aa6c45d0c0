"""By how many bits each ReLU layer decides its signs: few where tables are many, more where a wrong sign matters.

A number x within half a step D of zero may be taken for one of the other sign (`evaluate.rectified`): by a chance of
1/2 - |x| / D its ReLU is off by -|x|. What that does to the logits is linear as long as it is little. So the mean
square error that a layer causes follows from its inputs near zero and from the derivatives of the logits there, for any
D. Each bit more halves D and doubles the layer's tables.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .formats import Formats
from .graph import Graph, Node, evaluate
from .operations import RELU, Circuit
from .settings import MOST_TABLE_BITS

EXACT = MOST_TABLE_BITS + 1
"""In place of a number of bits: all bits decide, in a garbled circuit."""

_IMAGES = 64
"""So many, spread over all, show what a layer does."""

_BATCH = 8
_SEED = 0
_EXACT_BYTES = 20_000
"""What a garbled ReLU weighs: before the image no more than with 13 bits, but online ten times as many bytes."""

SignErrors = dict[Node, NDArray[np.float64]]
"""Of each ReLU layer, by bits that decide from 0 to `EXACT`: the mean square error that it causes in the logits."""


def sign_errors(graph: Graph, images: Float[Tensor, "n channels height width"], formats: Formats) -> SignErrors:
    """Return what unsure signs do to the logits, by layer and bits.

    Layers are taken as independent, and so are the chances within one, the client's share being uniform. Squared
    derivatives come from one backward pass: signs at the logits, drawn at random, make it the mean square over them.

    Args:
        graph: lowered, without refreshes.
        images: for calibration, float64.
        formats: of a plan of the graph: how large the layers' ranges are.
    """
    images = images[np.linspace(0, len(images) - 1, min(len(images), _IMAGES)).round().astype(int)]
    draw = torch.Generator().manual_seed(_SEED)
    found: SignErrors = {}
    for start in range(0, len(images), _BATCH):
        for node, x, derivative in _derivatives(graph, images[start : start + _BATCH], draw):
            range_bits = formats.width[node] - formats.fraction[node]
            own = found.setdefault(node, np.zeros(EXACT + 1))
            own[:EXACT] += _unsure(node, x.abs(), derivative, range_bits) / (len(images) * graph.output.size)
    return found


def _derivatives(graph: Graph, images: Tensor, draw: torch.Generator) -> list[tuple[Node, Tensor, Tensor]]:
    """Return of each ReLU layer its input, and by its output the derivative of the logits' sum under random signs."""
    values: dict[Node, Tensor] = {}
    layers = []
    with torch.inference_mode(False):  # whatever the caller has switched off; with it gradients are on
        for node in graph.order():
            values[node] = images.clone() if node is graph.input else evaluate(node, [values[i] for i in node.inputs])
            if isinstance(node.op, Circuit) and node.op.kind == RELU:
                layers.append(node)
                if not values[node].requires_grad:
                    values[node].requires_grad_()
        if not layers:
            return []
        logits = values[graph.output]
        signs = torch.randint(0, 2, logits.shape, generator=draw).to(logits.dtype) * 2 - 1
        found = torch.autograd.grad((logits * signs).sum(), [values[node] for node in layers])
    return [(node, values[node.inputs[0]].detach(), derivative) for node, derivative in zip(layers, found, strict=True)]


def _unsure(node: Node, x: Tensor, derivative: Tensor, range_bits: int) -> NDArray[np.float64]:
    """Return the square error of a batch for each number of bits below `EXACT`, its inputs being of 2^range_bits.

    By chance p an element is off by -x. So the error has a mean, which adds up over the elements of an image, and a
    variance.
    """
    assert isinstance(node.op, Circuit)
    x, derivative = x.flatten(1), derivative.flatten(1)
    if node.op.kept is not None:
        kept = torch.from_numpy(node.op.kept.astype(np.int64))
        x, derivative = x[:, kept], derivative[:, kept]
    image = torch.arange(len(x))[:, None].expand_as(x)
    means = x.new_zeros(len(x))
    errors = np.zeros(EXACT)
    for bits in range(EXACT):
        step = 2.0 ** (range_bits - bits)
        near = x < step / 2
        x, derivative, image = x[near], derivative[near], image[near]  # what is sure now is so with smaller steps
        chance = 0.5 - x / step
        mean = derivative * x * chance
        variance = (derivative * x).square() * chance * (1 - chance)
        errors[bits] = float(means.index_add(0, image, mean).square().sum() + variance.sum())
    return errors


def decide(formats: Formats, signs: Mapping[Node, int]) -> None:
    """Let layers decide by at least so many bits; the formats are changed in place."""
    for node, bits in signs.items():
        if bits >= EXACT or not formats.tested[node]:
            formats.tested[node] = 0
        else:
            formats.tested[node] = min(max(formats.tested[node], bits), formats.width[node])


def total(errors: SignErrors, bits: Mapping[Node, int], width: Mapping[Node, int]) -> float:
    """Return the mean square error of all layers together.

    Args:
        errors: see `sign_errors`.
        bits: that decide; 0 is `EXACT`, as in `Formats.tested`.
        width: of each layer's input; where all of it decides, there is no error.
    """
    return float(sum(own[bits[node] or EXACT] for node, own in errors.items() if bits[node] < width[node]))


def share_bits(errors: SignErrors, formats: Formats, width: Mapping[Node, int], target: float) -> dict[Node, int]:
    """Return by how many bits each layer decides, so that the error is at most `target`: the cheapest that is found.

    Bits go one by one to the layer where they take most of the error for their bytes. Where no error was seen they go
    to all layers alike.

    Args:
        errors: see `sign_errors`.
        formats: no layer gets fewer bits than there.
        width: bits of each layer's input; more do not help.
        target: mean square error of the logits.

    Returns:
        From 2 to 13, or `EXACT`.
    """
    least = {node: formats.tested[node] or EXACT for node in errors}
    most = {node: max(least[node], min(width[node], EXACT)) for node in errors}
    if not any(own.any() for own in errors.values()):
        return {node: min(bits + 1, most[node]) for node, bits in least.items()}
    chosen = dict(least)

    def error(node: Node, bits: int) -> float:
        return float(errors[node][bits]) if bits < width[node] else 0.0

    def worth(node: Node) -> float:
        bits = chosen[node]
        return (error(node, bits) - error(node, bits + 1)) / (_bytes(node, bits + 1) - _bytes(node, bits))

    while total(errors, chosen, width) > target:
        open_layers = [node for node in chosen if chosen[node] < most[node] and error(node, chosen[node])]
        if not open_layers:
            break
        chosen[max(open_layers, key=worth)] += 1
    for node in sorted(chosen, key=lambda node: _bytes(node, chosen[node]), reverse=True):
        while chosen[node] > least[node] and total(errors, chosen | {node: chosen[node] - 1}, width) <= target:
            chosen[node] -= 1  # an earlier bit that later ones made needless
    return chosen


def lookup_bytes(signs: Mapping[Node, int]) -> int:
    """Return what all layers send before the image for their signs, with these bits."""
    return sum(_bytes(node, bits) for node, bits in signs.items())


def online_bytes(signs: Mapping[Node, int], formats: Formats) -> int:
    """Return what all layers send online, with these bits, if all are looked up (docs/protocol.md, section 5)."""
    sent = 0
    for node, bits in signs.items():
        ring, upper = formats.ring[node], formats.ring[node] - formats.width[node]
        sent += _elements(node) * (-(-bits // 8) + 3 * -(-ring // 8) + 2 * -(-upper // 8))
    return sent


def _bytes(node: Node, bits: int) -> int:
    """Return what a layer sends before the image for its signs; see docs/protocol.md, section 5."""
    if bits == EXACT:
        return _elements(node) * _EXACT_BYTES
    return _elements(node) * (8 * (bits - 1) * max(1 << 7, 1 << (bits - 1)) // (1 << 7) + 4 * bits)


def _elements(node: Node) -> int:
    assert isinstance(node.op, Circuit)
    return node.size if node.op.kept is None else len(node.op.kept)
