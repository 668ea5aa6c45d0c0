"""Convolutions and fully connected layers as products of polynomials (coefficient packing).

The product of two polynomials modulo X^N + 1 adds up products of coefficients whose exponents have the same sum, so a
convolution needs neither rotations nor a plaintext modulus with special factors: any ring Z_t will do. The encoding is
that of Cheetah (Huang, Lu, Hong, Ding: "Cheetah: Lean and Fast Secure Two-Party Deep Neural Network Inference",
USENIX Security 2022, section 3), with five changes, each of which saves ciphertexts:

* *Shared borders.* Rows and planes overlap where both hold zeros of the padding: a 32x32 map with padding 1 takes
  33 x 33 coefficients, not 34 x 34.
* *Phases.* A convolution of stride s is the sum of s x s convolutions of stride 1, one for each phase of the input
  (rows = phase modulo s, columns likewise); phases without a tap of the kernel are not sent at all.
* *Groups spread without arithmetic progressions.* Several groups g of a grouped convolution share one polynomial: their
  inputs at block p_g, their kernels at block p_g too, so that group g's result lands at block 2 p_g, while kernels meet
  foreign inputs at p_g + p_h. No such sum hits a result if no p is the mean of two others. So the p are numbers
  without the digit 2 in base 3 (Erdős and Turán, "On some sequences of integers", 1936). Eight depthwise channels fit
  where a grid of all pairs would hold five.
* *Outputs side by side.* One polynomial of weights carries several output channels.
* *Images side by side.* Inputs of several images share a polynomial, block behind block, and meet the same weights. The
  results of one lie where the sums of its neighbours leave room.

Letters, here and below: a *plane* is one phase of one input channel; V x W' is its size with padding, R the distance of
two rows, U the distance of two planes; C_w planes, M_w output channels and r groups share a polynomial; B = C_w M_w.
For image n, plane c, virtual row j and column i of the input, output channel m and tap (d, e) of the kernel (v x w
taps):

    input exponent    (n + p_g) B U + c U + j R + i
    weight exponent   p_g B U + m C_w U + (C_w - 1 - c) U + (v - 1 - d) R + (w - 1 - e)
    result exponent   (n + 2 p_g) B U + (m C_w + C_w - 1) U + (y s + v - 1) R + (x s' + w - 1)

with s = 1 where the rows were split into phases. All results are exact if the largest result exponent is below N: a
product's overflow past N wraps to exponents below the smallest result. (The highest exponent of input times weights
exceeds the highest result by at most (C_w - 1) U + (v - 1) R + w - 1, which is the lowest result.)

Nothing here knows of encryption; the tests check it against plain convolution with a product of integer polynomials.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import problem
from .errors import LayerError
from .layer import Layer

Words = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]


def spread(limit: int) -> list[int]:
    """Return the numbers from 0 to `limit` without the digit 2 in base 3; no three of them are equally spaced."""
    chosen: list[int] = []
    number = 0
    while True:
        value = int(f"{number:b}", 3)
        if value > limit:
            return chosen
        chosen.append(value)
        number += 1


@dataclass(frozen=True)
class Axis:
    """The geometry of one direction, rows or columns, over one band of outputs.

    Attributes:
        size: input positions.
        outputs: output positions in all.
        kernel: taps.
        stride: distance of two outputs in the input.
        padding: zeros on either side.
        split: whether the input is split into phases, which makes the stride 1.
        band: outputs per band.
    """

    size: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    split: bool
    band: int

    @property
    def phases(self) -> int:
        """Planes into which this direction splits a channel."""
        return min(self.stride, self.kernel) if self.split else 1

    @property
    def step(self) -> int:
        """Distance of two outputs inside a plane."""
        return 1 if self.split else self.stride

    @property
    def taps(self) -> int:
        """Taps of the kernel inside a plane."""
        return -(-self.kernel // self.stride) if self.split else self.kernel

    @property
    def bands(self) -> int:
        """Number of bands; the last one may be partly empty."""
        return -(-self.outputs // self.band)

    @property
    def length(self) -> int:
        """Virtual positions that one band reads, padding included."""
        return (self.band - 1) * self.step + self.taps

    def tap(self, phase: int) -> Integers:
        """Return for every tap inside a plane the tap of the layer's kernel, which may lie past its end."""
        taps = np.arange(self.taps)
        return taps * self.stride + phase if self.split else taps

    def source(self, phase: int, band: int) -> tuple[Integers, Integers]:
        """Return the virtual positions of a plane that hold input values, and the input positions they hold."""
        last = int((self.tap(phase) < self.kernel).sum()) - 1
        virtual = np.arange((self.band - 1) * self.step + last + 1)
        whole = virtual + band * self.band * self.step
        position = (whole * self.stride + phase if self.split else whole) - self.padding
        real = (position >= 0) & (position < self.size)
        return virtual[real], position[real]

    @functools.cached_property
    def overlap(self) -> int:
        """Number of trailing zeros of every plane that coincide with as many leading zeros of every other.

        At most taps - 1, so that no two results coincide even where a window lies in the padding entirely.
        """
        lead, trail = self.length, self.length
        for phase in range(self.phases):
            for band in range(self.bands):
                virtual, _ = self.source(phase, band)
                if virtual.size:
                    lead = min(lead, int(virtual[0]))
                    trail = min(trail, self.length - 1 - int(virtual[-1]))
        return min(lead, trail, self.taps - 1)

    @property
    def pitch(self) -> int:
        """Distance of two neighbours of this direction's length, laid end to end with shared zeros."""
        return self.length - self.overlap


@functools.lru_cache(maxsize=1024)
def axis_of(layer: Layer, direction: int, split: bool, band: int) -> Axis:
    """Return the geometry of rows (direction 0) or columns (1); many tilings of a layer share one."""
    return Axis(
        (layer.height, layer.width)[direction],
        (layer.out_height, layer.out_width)[direction],
        layer.kernel[direction],
        layer.stride[direction],
        layer.padding[direction],
        split,
        band,
    )


@dataclass(frozen=True)
class Tiling:
    """How a layer is cut into polynomials.

    Attributes:
        rows: output rows in one polynomial.
        split: whether rows, and whether columns, are split into phases.
        planes: C_w, input planes of one group in one polynomial.
        channels: M_w, output channels of one group in one polynomial.
        groups: r, groups in one polynomial.
        images: in one polynomial; with more than one, `groups` is 1.
    """

    rows: int
    split: tuple[bool, bool]
    planes: int
    channels: int
    groups: int = 1
    images: int = 1


@dataclass(frozen=True)
class Taps:
    """Where the weights of an answer stand, of a plan with one group in a polynomial; the same for every answer.

    Two may have one exponent where both meet zeros alone for every result. `Plan.encode_weights` keeps one of them.

    Attributes:
        tiles: of each the tile of planes whose request it multiplies.
        exponents: where it stands in its polynomial.
        channels: its output channel, from the first of the answer.
        sources: its place among the weights of that channel, laid flat.
    """

    tiles: npt.NDArray[np.int64]
    exponents: npt.NDArray[np.int64]
    channels: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """A layer with its tiling: which value stands at which coefficient of which ciphertext. Public, like the layer.

    Inputs and outputs are those of `tiling.images` images; with more than one they stand first in the shapes.

    Requests (ciphertexts to the server) are numbered (tile of groups, tile of planes, band), answers (tile of groups,
    tile of output channels, band), products (answer without its band, tile of planes); the last index runs fastest.

    Attributes:
        layer: the layer.
        tiling: its cut.
        degree: N, the number of coefficients of a polynomial.

    Raises:
        LayerError: the tiling does not fit into N coefficients.
    """

    layer: Layer
    tiling: Tiling
    degree: int

    def __post_init__(self) -> None:
        tiling, layer = self.tiling, self.layer
        fits = (
            1 <= tiling.rows <= layer.out_height
            and 1 <= tiling.planes <= self.planes
            and 1 <= tiling.channels <= self.channels
            and 1 <= tiling.groups <= layer.groups
            and tiling.images >= 1
            and 1 in (tiling.images, tiling.groups)
        )
        if not fits or self._end > self.degree:
            raise LayerError(
                problem(
                    f"a tile must fit into {self.degree} coefficients",
                    got=f"{tiling} of {layer}",
                    remedy="let plan_layer choose the tiling; maps wider than the degree are not supported",
                )
            )

    def __reduce__(self) -> tuple[Callable[[Layer, Tiling, int], Plan], tuple[Layer, Tiling, int]]:
        return _kept, (self.layer, self.tiling, self.degree)  # without the tables; a worker makes them once

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of the input; of several images theirs."""
        return self._of_images(self.layer.in_shape)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output; of several images theirs."""
        return self._of_images(self.layer.out_shape)

    def _of_images(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.tiling.images == 1 else (self.tiling.images, *shape)

    @property
    def outputs(self) -> int:
        """Number of output values."""
        return self.tiling.images * self.layer.outputs

    @functools.cached_property
    def rows(self) -> Axis:
        """The vertical geometry."""
        return axis_of(self.layer, 0, self.tiling.split[0], self.tiling.rows)

    @functools.cached_property
    def columns(self) -> Axis:
        """The horizontal geometry; columns are never cut into bands."""
        return axis_of(self.layer, 1, self.tiling.split[1], self.layer.out_width)

    @property
    def planes(self) -> int:
        """Input planes of one group."""
        return self.layer.in_channels // self.layer.groups * self.rows.phases * self.columns.phases

    @property
    def channels(self) -> int:
        """Output channels of one group."""
        return self.layer.out_channels // self.layer.groups

    @property
    def pitch(self) -> int:
        """U, the distance of two planes."""
        return self.rows.pitch * self.columns.pitch

    @property
    def _end(self) -> int:
        """One more than the largest exponent of a result."""
        block = self.tiling.planes * self.tiling.channels
        last = (spread_blocks(self.tiling.groups) + self.tiling.images - 1) * block - 1
        return last * self.pitch + (self.rows.length - 1) * self.columns.pitch + self.columns.length

    @property
    def group_tiles(self) -> int:
        """Number of tiles of groups."""
        return -(-self.layer.groups // self.tiling.groups)

    @property
    def plane_tiles(self) -> int:
        """Number of tiles of planes: products that are added up into one answer."""
        return -(-self.planes // self.tiling.planes)

    @property
    def channel_tiles(self) -> int:
        """Number of tiles of output channels."""
        return -(-self.channels // self.tiling.channels)

    @property
    def requests(self) -> int:
        """Ciphertexts that the client sends."""
        return self.group_tiles * self.plane_tiles * self.rows.bands

    @property
    def answers(self) -> int:
        """Ciphertexts that the server returns."""
        return self.group_tiles * self.channel_tiles * self.rows.bands

    @property
    def weight_polynomials(self) -> int:
        """Polynomials of weights; all bands share them."""
        return self.group_tiles * self.channel_tiles * self.plane_tiles

    @property
    def products(self) -> int:
        """Products of a ciphertext with a polynomial of weights."""
        return self.weight_polynomials * self.rows.bands

    @property
    def weights_per_answer(self) -> int:
        """Largest number of weights that meet in one coefficient of an answer, all its tiles taken together."""
        return self.tiling.groups * self.tiling.channels * self.layer.fan_in

    @functools.cached_property
    def digest(self) -> bytes:
        """16 bytes that name this plan in messages."""
        return hashlib.sha256(f"deepreduce plan 1 {self!r}".encode()).digest()[:16]

    def answer_place(self, answer: int) -> tuple[int, int, int]:
        """Return the tile of groups, the tile of output channels and the band of an answer."""
        rest, band = divmod(answer, self.rows.bands)
        group_tile, channel_tile = divmod(rest, self.channel_tiles)
        return group_tile, channel_tile, band

    def request_of(self, group_tile: int, plane_tile: int, band: int) -> int:
        """Return the number of a request."""
        return (group_tile * self.plane_tiles + plane_tile) * self.rows.bands + band

    def _groups(self, group_tile: int) -> list[tuple[int, int]]:
        """Return the groups of a tile and their blocks p_g."""
        blocks = spread(spread_blocks(self.tiling.groups))[: self.tiling.groups]
        first = group_tile * self.tiling.groups
        return [(first + slot, p) for slot, p in enumerate(blocks) if first + slot < self.layer.groups]

    def _planes(self, plane_tile: int) -> list[tuple[int, int, int, int]]:
        """Return slot, row phase, column phase and channel within its group, of the planes of a tile."""
        first = plane_tile * self.tiling.planes
        per_phase = self.layer.in_channels // self.layer.groups
        found = []
        for slot in range(min(self.tiling.planes, self.planes - first)):
            phase, channel = divmod(first + slot, per_phase)
            found.append((slot, *divmod(phase, self.columns.phases), channel))
        return found

    @functools.cached_property
    def sources(self) -> npt.NDArray[np.int32]:
        """For every coefficient of every request the flat index of the input value there, or -1 for zero.

        Shape (requests, degree).
        """
        layer, tiling = self.layer, self.tiling
        block = tiling.planes * tiling.channels * self.pitch
        found = np.full((self.requests, self.degree), -1, np.int32)
        image = np.arange(tiling.images)[:, None, None]
        rows = {
            (phase, band): self.rows.source(phase, band)
            for phase in range(self.rows.phases)
            for band in range(self.rows.bands)
        }
        columns = {phase: self.columns.source(phase, 0) for phase in range(self.columns.phases)}
        per_group = layer.in_channels // layer.groups
        for group_tile in range(self.group_tiles):
            for plane_tile in range(self.plane_tiles):
                planes = self._planes(plane_tile)
                for band in range(self.rows.bands):
                    line = found[self.request_of(group_tile, plane_tile, band)]
                    for group, p in self._groups(group_tile):
                        for slot, row_phase, column_phase, channel in planes:
                            virtual, row = rows[row_phase, band]
                            across, column = columns[column_phase]
                            place = p * block + slot * self.pitch + virtual[:, None] * self.columns.pitch + across
                            index = ((group * per_group + channel) * layer.height + row[:, None]) * layer.width + column
                            line[place + image * block] = index + image * math.prod(layer.in_shape)
        return found

    def encode_input(self, values: Words, first: int = 0, last: int | None = None) -> Words:
        """Return the polynomials of the requests `first` to `last` (exclusive).

        Args:
            values: the input, shape `in_shape`, elements of any ring of at most 64 bits.
            first: number of the first request.
            last: number after the last request; all by default.

        Returns:
            Coefficients, shape (last - first, degree).

        Raises:
            LayerError: the input has another shape.
        """
        if values.shape != self.in_shape:
            raise LayerError(
                problem(
                    f"the input must have the shape {self.in_shape}",
                    got=values.shape,
                    remedy="pass the share of as many images as the plan has, channel first",
                )
            )
        padded = np.concatenate([values.astype(np.uint64, copy=False).ravel(), np.zeros(1, np.uint64)])
        return padded[self.sources[first:last]]

    def encode_weights(self, weights: Integers, group_tile: int, channel_tile: int) -> Integers:
        """Return the polynomials of weights that make up the answers of one tile.

        Args:
            weights: as PyTorch has them: output channel, input channel of the group, row, column.
            group_tile: tile of groups.
            channel_tile: tile of output channels.

        Returns:
            Coefficients, shape (plane tiles, degree).

        Raises:
            LayerError: the weights have another shape.
        """
        if weights.shape != self.layer.weight_shape:
            raise LayerError(
                problem(
                    f"the weights must have the shape {self.layer.weight_shape}",
                    got=weights.shape,
                    remedy="pass the layer's integer weights as PyTorch lays them out",
                )
            )
        tiling = self.tiling
        block = tiling.planes * tiling.channels * self.pitch
        found = np.zeros((self.plane_tiles, self.degree), np.int64)
        first = channel_tile * tiling.channels
        count = min(tiling.channels, self.channels - first)
        down = (self.rows.taps - 1 - np.arange(self.rows.taps)) * self.columns.pitch
        across = self.columns.taps - 1 - np.arange(self.columns.taps)
        side = np.arange(count) * tiling.planes * self.pitch
        for plane_tile in range(self.plane_tiles):
            for slot, row_phase, column_phase, channel in self._planes(plane_tile):
                row, column = self.rows.tap(row_phase), self.columns.tap(column_phase)
                tall, wide = row < self.layer.kernel[0], column < self.layer.kernel[1]
                base = (tiling.planes - 1 - slot) * self.pitch
                place = base + side[:, None, None] + down[tall][:, None] + across[wide]
                for group, p in self._groups(group_tile):
                    output = group * self.channels + first
                    taps = weights[output : output + count, channel][:, row[tall]][:, :, column[wide]]
                    found[plane_tile, p * block + place] = taps
        return found

    @functools.cached_property
    def taps(self) -> Taps:
        """Where the weights of an answer stand, as single ones."""
        assert self.tiling.groups == 1
        shape = self.layer.weight_shape[1:]
        tiles, exponents, sources = [], [], []
        for plane_tile in range(self.plane_tiles):
            for slot, row_phase, column_phase, channel in self._planes(plane_tile):
                row, column = self.rows.tap(row_phase), self.columns.tap(column_phase)
                tap = np.argwhere((row[:, None] < shape[1]) & (column < shape[2]))
                down, across = self.rows.taps - 1 - tap[:, 0], self.columns.taps - 1 - tap[:, 1]
                base = (self.tiling.planes - 1 - slot) * self.pitch
                exponents.append(base + down * self.columns.pitch + across)
                sources.append((channel * shape[1] + row[tap[:, 0]]) * shape[2] + column[tap[:, 1]])
                tiles.append(np.full(len(tap), plane_tile))
        side = np.arange(self.tiling.channels)[:, None]
        tile, exponent, source = (np.concatenate(each) for each in (tiles, exponents, sources))
        shifted = exponent + side * self.tiling.planes * self.pitch
        channels, all_tiles, all_sources = np.broadcast_arrays(side, tile, source)
        return Taps(all_tiles.ravel(), shifted.ravel(), channels.ravel(), all_sources.ravel())

    @functools.cached_property
    def results(self) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        """For every answer what `result` returns."""
        return [self._result(answer) for answer in range(self.answers)]

    def result(self, answer: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return the coefficients of an answer that are results, ascending, and the flat indices of the outputs there.

        Of one image the tables of all answers are kept. Of several they are large, and not kept.
        """
        return self.results[answer] if self.tiling.images == 1 else self._result(answer)

    def _result(self, answer: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        tiling, layer = self.tiling, self.layer
        block = tiling.planes * tiling.channels
        column = np.arange(layer.out_width)
        across = column * self.columns.step + self.columns.taps - 1
        group_tile, channel_tile, band = self.answer_place(answer)
        first = channel_tile * tiling.channels
        slot = np.arange(min(tiling.channels, self.channels - first))
        row = np.arange(min(tiling.rows, layer.out_height - band * tiling.rows))
        down = (row * self.rows.step + self.rows.taps - 1) * self.columns.pitch
        places, indices = [], []
        image = np.arange(tiling.images)[:, None]
        for group, p in self._groups(group_tile):
            unit = (image + 2 * p) * block + slot * tiling.planes + tiling.planes - 1
            place = unit[..., None, None] * self.pitch + down[:, None] + across
            output = image * layer.out_channels + group * self.channels + first + slot
            line = output[..., None] * layer.out_height + band * tiling.rows + row
            places.append(place.ravel())
            indices.append((line[..., None] * layer.out_width + column).ravel())
        flat = np.concatenate(places)
        order = np.argsort(flat)
        return flat[order].astype(np.int32), np.concatenate(indices)[order].astype(np.int32)

    def result_count(self, answer: int) -> int:
        """Return how many coefficients of an answer are results, without building their places."""
        group_tile, channel_tile, band = self.answer_place(answer)
        groups = min(self.tiling.groups, self.layer.groups - group_tile * self.tiling.groups)
        channels = min(self.tiling.channels, self.channels - channel_tile * self.tiling.channels)
        rows = min(self.tiling.rows, self.layer.out_height - band * self.tiling.rows)
        return self.tiling.images * groups * channels * rows * self.layer.out_width


@functools.lru_cache(maxsize=256)
def _kept(layer: Layer, tiling: Tiling, degree: int) -> Plan:
    """Return a plan that another process described, with the tables that this process has made for it."""
    return Plan(layer, tiling, degree)


def spread_blocks(groups: int) -> int:
    """Return how many blocks the results of `groups` groups span: twice the largest p_g, plus one."""
    return 2 * int(f"{groups - 1:b}", 3) + 1
