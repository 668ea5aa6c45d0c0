"""Choosing how a layer is cut into polynomials: all tilings that fit are priced, the cheapest is taken.

The number of products hardly depends on the tiling (about input channels x output channels x map size / N); what does
is the balance between ciphertexts sent and returned. The choice depends on public shapes and on fixed prices alone, so
both parties make the same one.
"""

from __future__ import annotations

import bisect
import functools
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...errors import problem
from .errors import LayerError
from .layer import Layer
from .packing import Axis, Plan, Tiling, axis_of, spread

DEGREE = 8192
"""N: the smallest degree at which 128-bit security leaves room for the ring, the weights and the flooding."""

MAX_PLANNING = 1 << 19
"""Bound on the tilings that are priced, and on the bands that are looked at for it, for all layers of a program
together: about 15 seconds. The reference networks with images of 224x224 need 6,000 to 15,000, the widest grouped
convolutions that we could think of 72,000."""


MOST_SHARED = 256
"""Bound on the ciphertexts of one plan of several images in either direction, unless that of one image has more: they
are in memory at once, up to 0.7 MB each while a server adds them up."""


@dataclass(frozen=True)
class Prices:
    """What one unit of work costs, in milliseconds of one core, and of a link of 1 Gbit/s for what travels.

    Measured with the compiled kernel at N = 8192 and two data primes on a 2-core AMD EPYC (Zen 4), see
    `benchmarks/private_constants.py`. Only the ratios matter.

    Attributes:
        request: encrypting, sending (115 KB) and unpacking one ciphertext.
        answer: blinding, sending (60 KB) and decrypting one ciphertext.
        product: multiplying by a polynomial of weights and adding up.
        tap: multiplying by one weight and adding up, see `plan_images`.
    """

    request: float = 1.7
    answer: float = 1.55
    product: float = 0.04
    tap: float = 0.0016

    def of(self, plan: Plan) -> float:
        """Return the price of a plan, of all its images."""
        work = plan.products * self.product
        if plan.tiling.images > 1:
            work = plan.answers * plan.weights_per_answer * self.tap
        return plan.requests * self.request + plan.answers * self.answer + work


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


def plan_images(layer: Layer, images: int, *, degree: int = DEGREE, prices: Prices | None = None) -> tuple[Plan, ...]:
    """Choose the cheapest way to run a layer for several images.

    Either each has ciphertexts of its own, as `plan_layer` cuts them; or several share them. Then fewer travel, in
    both directions, the fewer the more images there are. No more weights meet in a coefficient than in the plan of
    one image, so that parameters which hide the weights there hide them here.

    Args:
        layer: the layer.
        images: how many, at least 1.
        degree: N.
        prices: as in `plan_layer`.

    Returns:
        Plans of so many images together, in their order.

    Raises:
        LayerError: not even one row of one channel fits into a polynomial.
    """
    prices = prices or Prices()
    single = plan_layer(layer, degree=degree, prices=prices)
    best, least = None, images * prices.of(single)
    most = max(MOST_SHARED, single.requests, single.answers)
    for tiling, price in _shared(layer, images, degree, single.weights_per_answer // layer.fan_in, most, prices):
        if price < least:
            best, least = tiling, price
    if best is None:
        return (single,) * images
    whole, rest = divmod(images, best.images)
    plans = (Plan(layer, best, degree),) * whole
    return plans + (plan_images(layer, rest, degree=degree, prices=prices) if rest else ())


def _shared(
    layer: Layer, images: int, degree: int, widest: int, most: int, prices: Prices
) -> Iterator[tuple[Tiling, float]]:
    """Yield the tilings in which several images share a polynomial, and their prices.

    A polynomial has up to `widest` output channels, and there are up to `most` of them in either direction. A price is
    that of all images, as if each ciphertext that the last ones need were as full as the others.
    """
    per_group = layer.out_channels // layer.groups
    channels = _shares(per_group)
    for split, rows, axis, columns in _cuts(layer):
        room = degree - (axis.length - 1) * columns.pitch - columns.length
        blocks = room // (axis.pitch * columns.pitch) + 1 if room >= 0 else 0
        all_planes = layer.in_channels // layer.groups * axis.phases * columns.phases
        planes = _shares(all_planes)
        for inside in planes[_first(planes, blocks // 2) :]:
            requests = layer.groups * -(-all_planes // inside) * axis.bands
            for together in _shares(images):
                fitting = min(widest, blocks // (inside * together))
                if together > 1 and fitting:
                    outside = channels[_first(channels, fitting)]
                    answers = layer.groups * -(-per_group // outside) * axis.bands
                    if max(requests, answers) > most:
                        continue
                    taps = answers * outside * layer.fan_in
                    price = requests * prices.request + answers * prices.answer + taps * prices.tap
                    yield Tiling(rows, split, inside, outside, 1, together), images / together * price


def check_planning(layers: Iterable[Layer], *, degree: int = DEGREE) -> int:
    """Refuse layers whose planning would take long; both parties plan what is in the client's file.

    Args:
        layers: of one program. Equal ones are planned once.
        degree: N.

    Returns:
        An upper bound on the tilings and bands that `plan_layer` looks at.

    Raises:
        LayerError: there are more than MAX_PLANNING.
    """
    work = 0
    for layer in dict.fromkeys(layers):
        for some in _work(layer, degree):
            work += some
            if work > MAX_PLANNING:
                raise LayerError(
                    problem(
                        f"the linear layers of a program must be cut in at most {MAX_PLANNING:,} ways together",
                        got=f"more, with {layer}",
                        remedy="give grouped convolutions fewer channels per group, or the network fewer layers that "
                        "differ in shape",
                    )
                )
    return work


def _work(layer: Layer, degree: int) -> Iterator[int]:
    """Yield what `_tilings` does for a layer, in portions: bands, and tilings or more, without looking at a band."""
    channels = _shares(layer.out_channels // layer.groups)
    for _, _, axis, columns in _cuts(layer):
        yield axis.phases * axis.bands + columns.phases
        # The pitch of two directions that share all the zeros they may.
        pitch = (axis.length - axis.taps + 1) * (columns.length - columns.taps + 1)
        if (axis.length - 1) * (columns.length - columns.taps + 1) + columns.length > degree:
            continue
        planes = _shares(layer.in_channels // layer.groups * axis.phases * columns.phases)
        for inside in planes[_first(planes, degree // pitch + 1) :]:
            yield 1 if layer.groups == 1 else len(channels) - _first(channels, (degree // pitch + 1) // inside)


def _cuts(layer: Layer) -> Iterator[tuple[tuple[bool, bool], int, Axis, Axis]]:
    """Yield every way to split the strides and to cut rows into bands: (split, rows), and both geometries."""
    for split_rows in _splits(layer.stride[0]):
        for split_columns in _splits(layer.stride[1]):
            columns = axis_of(layer, 1, split_columns, layer.out_width)
            for rows in _shares(layer.out_height):
                yield (split_rows, split_columns), rows, axis_of(layer, 0, split_rows, rows), columns


def _tilings(layer: Layer, degree: int) -> Iterator[Tiling]:
    """Yield every tiling that fits and that no other one obviously beats."""
    channels = _shares(layer.out_channels // layer.groups)
    for split, rows, axis, columns in _cuts(layer):
        pitch = axis.pitch * columns.pitch
        room = degree - (axis.length - 1) * columns.pitch - columns.length
        if room < 0:
            continue
        blocks = room // pitch + 1
        planes = _shares(layer.in_channels // layer.groups * axis.phases * columns.phases)
        for inside in planes[_first(planes, blocks) :]:
            for outside in channels[_first(channels, blocks // inside) :]:
                groups = min(layer.groups, _spread_groups((blocks // (inside * outside) - 1) // 2))
                groups = _even(layer.groups, groups)
                yield Tiling(rows, split, inside, outside, groups)
                if layer.groups == 1:
                    break  # shares descend: fewer output channels at the same price of requests


@functools.lru_cache(maxsize=DEGREE)
def _spread_groups(limit: int) -> int:
    return len(spread(limit))


def _first(descending: list[int], most: int) -> int:
    """Return the place of the first number that is at most `most`."""
    return bisect.bisect_left(descending, -most, key=operator.neg)


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
