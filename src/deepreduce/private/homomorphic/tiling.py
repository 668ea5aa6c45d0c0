"""Choosing how a layer is cut into polynomials: all tilings that fit are priced, the cheapest is taken.

The number of products hardly depends on the tiling (about input channels x output channels x map size / N); what does
is the balance between ciphertexts sent and returned. The choice depends on public shapes and on fixed prices alone, so
both parties make the same one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import problem
from .errors import LayerError
from .layer import Layer
from .packing import Axis, Plan, Tiling, spread

DEGREE = 8192
"""N: the smallest degree at which 128-bit security leaves room for the ring, the weights and the flooding."""


@dataclass(frozen=True)
class Prices:
    """What one unit of work costs, in milliseconds of one core, and of a link of 1 Gbit/s for what travels.

    Measured with SEAL 4.4 at N = 8192 and two data primes on a 2-core AMD EPYC (Zen 4), see
    `benchmarks/homomorphic.py`. Only the ratios matter.

    Attributes:
        request: encrypting, sending (115 KB) and unpacking one ciphertext.
        answer: inverse transform, blinding, sending (60 KB) and decrypting one ciphertext.
        product: multiplying by a polynomial of weights and adding up.
    """

    request: float = 6.5
    answer: float = 5.8
    product: float = 0.21

    def of(self, plan: Plan) -> float:
        """Return the price of a plan."""
        return plan.requests * self.request + plan.answers * self.answer + plan.products * self.product


@functools.lru_cache(maxsize=1024)
def plan_layer(layer: Layer, *, degree: int = DEGREE, prices: Prices | None = None) -> Plan:
    """Choose the cheapest tiling of a layer.

    Args:
        layer: the layer.
        degree: N, a power of two.
        prices: what to minimise; the measured prices by default. Both parties must use the same.

    Returns:
        The plan.

    Raises:
        LayerError: not even one row of one channel fits into a polynomial.
    """
    prices = prices or Prices()
    best = min((Plan(layer, tiling, degree) for tiling in _tilings(layer, degree)), key=prices.of, default=None)
    if best is None:
        raise LayerError(
            problem(
                f"one output row must fit into {degree} coefficients",
                got=layer,
                remedy="reduce the width of the map or the kernel",
            )
        )
    return best


def _tilings(layer: Layer, degree: int) -> Iterator[Tiling]:
    """Yield every tiling that fits and that no other one obviously beats."""
    channels = layer.out_channels // layer.groups
    for split_rows in _splits(layer.stride[0]):
        for split_columns in _splits(layer.stride[1]):
            columns = _axis(layer, 1, split_columns, layer.out_width)
            for rows in _shares(layer.out_height):
                axis = _axis(layer, 0, split_rows, rows)
                pitch = axis.pitch * columns.pitch
                room = degree - (axis.length - 1) * columns.pitch - columns.length
                if room < 0:
                    continue
                blocks = room // pitch + 1
                planes = layer.in_channels // layer.groups * axis.phases * columns.phases
                for inside in _shares(planes):
                    for outside in _shares(channels):
                        size = inside * outside
                        if size > blocks:
                            continue
                        groups = min(layer.groups, len(spread((blocks // size - 1) // 2)))
                        groups = _even(layer.groups, groups)
                        yield Tiling(rows, (split_rows, split_columns), inside, outside, groups)
                        if layer.groups == 1:
                            break  # shares descend: fewer output channels at the same price of requests


def _axis(layer: Layer, direction: int, split: bool, band: int) -> Axis:
    return Axis(
        (layer.height, layer.width)[direction],
        (layer.out_height, layer.out_width)[direction],
        layer.kernel[direction],
        layer.stride[direction],
        layer.padding[direction],
        split,
        band,
    )


def _splits(stride: int) -> tuple[bool, ...]:
    return (False, True) if stride > 1 else (False,)


def _even(total: int, most: int) -> int:
    """Return the smallest tile that needs no more tiles than `most` does."""
    return -(-total // -(-total // most))


def _shares(total: int) -> list[int]:
    """Return the distinct ceil(total / n), descending: other tile sizes need as many tiles and more room."""
    found = []
    size = total
    while True:
        found.append(size)
        if size == 1:
            return found
        size = _even(total, size - 1)
