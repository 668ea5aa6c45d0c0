"""Exact integer convolutions and matrix products mod 2^k.

Where the processor multiplies vectors of machine words, the compiled kernel (`native/ring.c`) does that: they wrap
modulo 2^64 or 2^32, which is exact in the ring.

Elsewhere float64, of the kernel or of PyTorch, adds and multiplies integers exactly as long as every intermediate sum
stays within ±2^53. With x centred in [-2^(b-1), 2^(b-1)) every partial sum of Σ w·x, in whatever order a library adds,
is at most 2^(b-1) · Σ|w|. So one product is exact for b bits with 2^(b-1) · max_row Σ|w| <= 2^53, and a k-bit x is cut
into ceil(k / b) limbs: the lower ones unsigned of b - 1 bits, the highest signed, so that all obey the bound. Fused
multiply-add only rounds less often and changes nothing. The algorithms that a library may use here (direct, im2col and
matrix product) add products of the given numbers; a transform such as Winograd's, which would scale them, is not
implemented for float64 in PyTorch, and the tests compare with integer arithmetic at the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError, problem
from ._backends import Name, choose_backend
from ._threads import threads
from .arithmetic import Words, check_bits, reduce, signed

if TYPE_CHECKING:
    from torch import Tensor

_EXACT_BITS = 53

_OUTPUTS, _FEW = 16, 4
"""Output channels of a block of the kernel's, as in `native/ring.c`; in how small groups they are taken one by one."""

_MOST_THREADS = 256

_THREAD_MACS = 1 << 21
"""Multiplications that are worth a thread of their own."""


@dataclass(frozen=True)
class _Geometry:
    """What `ExactConvolution` is told."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    def outputs(self, size: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, int]:
        """Return rows and columns of the output for those of the input."""
        rows, columns = (
            (size[axis] + sum(self.padding[2 * axis : 2 * axis + 2]) - self.dilation[axis] * (kernel[axis] - 1) - 1)
            // self.stride[axis]
            + 1
            for axis in range(2)
        )
        return rows, columns


class ExactConvolution:
    """A 2-D cross-correlation (what PyTorch calls convolution) over the integers mod 2^k.

    Args:
        weight: `int64`, [outputs, inputs / groups, height, width]; Σ|w| of one output below 2^49.
        stride, dilation: (vertical, horizontal), at least 1.
        padding: rows and columns of zeros added at (top, bottom, left, right); negative numbers cut away instead.
        groups: as in PyTorch.
        backend: "avx512", "fma" or "torch"; None takes the first of them that is there. Weights of more than 32 bits
            are multiplied by PyTorch in any case.

    Raises:
        UsageError: if the weights are too large to be exact, or the backend is not there.
    """

    def __init__(
        self,
        weight: NDArray[np.int64],
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        backend: Name | None = None,
    ) -> None:
        limb_bits = _limb_bits(weight)
        geometry = _Geometry(stride, padding, dilation, groups)
        narrow, chosen = _narrowed(weight), choose_backend(backend)
        self._product: _Compiled | _Limbs
        if narrow is not None and chosen != "torch":
            self._product = _Compiled(narrow, geometry, limb_bits if chosen == "fma" else 0)
        else:
            self._product = _Limbs(weight, geometry, limb_bits)

    def __call__(self, x: Words, bits: int) -> Words:
        """Return the convolution of `x`, [n, inputs, height, width], mod 2^bits; its ring may be larger."""
        check_bits(bits)
        return self._product(x, bits)


class ExactMatrix:
    """A matrix product over the integers mod 2^k.

    Args:
        weight: `int64`, [outputs, inputs]; Σ|w| of one output below 2^49.
        backend: as of `ExactConvolution`.

    Raises:
        UsageError: if the weights are too large to be exact, or the backend is not there.
    """

    def __init__(self, weight: NDArray[np.int64], *, backend: Name | None = None) -> None:
        self._convolution = ExactConvolution(weight[:, :, None, None], backend=backend)

    def __call__(self, x: Words, bits: int) -> Words:
        """Return x · weightᵀ mod 2^bits for `x` of [n, inputs]; its ring may be larger."""
        return self._convolution(x[:, :, None, None], bits)[:, :, 0, 0]


def _limb_bits(weight: NDArray[np.int64]) -> int:
    """Return how many bits of x float64 can multiply by these weights at a time."""
    flat = np.abs(weight.reshape(weight.shape[0], -1).astype(np.float64))
    if not flat.size:
        raise UsageError(problem("a weight has elements", got=weight.shape, remedy="leave the layer out"))
    # the sum is exact below 2^53, and anything near that is refused below
    heaviest = max(1, int(flat.sum(axis=1).max()))
    bits = _EXACT_BITS - (heaviest - 1).bit_length()
    if bits < 4:
        raise UsageError(
            problem(
                "the absolute weights of one output sum to at most 2^49",
                got=f"about 2^{heaviest.bit_length()}",
                remedy="use fewer weight bits",
            )
        )
    return bits


def _narrowed(weight: NDArray[np.int64]) -> NDArray[Any] | None:
    """Return the weights in 16 bits or 32, or None if they have more."""
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= weight.min() and weight.max() <= np.iinfo(kind).max:
            return weight.astype(kind)
    return None


class _Compiled:
    """The product by the compiled kernel: of limbs in float64, or where they are to have 0 bits, of words."""

    def __init__(self, weight: NDArray[Any], geometry: _Geometry, limb_bits: int) -> None:
        self._shape, self._geometry, self._limb_bits = weight.shape, geometry, limb_bits
        outputs, per_group = weight.shape[0], weight.shape[0] // geometry.groups
        taps = weight[0].size
        flat: NDArray[Any] = weight.reshape(geometry.groups, per_group, taps)
        self._one_by_one = geometry.groups > 1 and per_group <= _FEW
        if not self._one_by_one:  # blocks of outputs, tap by tap
            blocks = -(-per_group // _OUTPUTS)
            flat = np.pad(flat, ((0, 0), (0, blocks * _OUTPUTS - per_group), (0, 0)))
            flat = flat.reshape(geometry.groups, blocks, _OUTPUTS, taps).transpose(0, 1, 3, 2)
        self._weight = np.ascontiguousarray(flat)
        self._macs = outputs * taps

    def __call__(self, x: Words, bits: int) -> Words:
        from . import _kernel  # it is there: `choose_backend` has looked

        outputs, _, *kernel = self._shape
        images, channels, height, width = x.shape
        own = self._geometry
        rows, columns = own.outputs((height, width), tuple(kernel))
        out = np.empty((images, outputs, rows, columns), np.uint64)
        if out.size:
            top, _, left, _ = own.padding
            worth = 1 + images * rows * columns * self._macs // _THREAD_MACS
            _kernel.convolve(
                np.ascontiguousarray(x), self._weight, out,
                (images, channels, height, width, outputs, rows, columns, kernel[0], kernel[1], *own.stride,
                 *own.dilation, top, left, own.groups, bits, self._weight.itemsize, self._limb_bits),
                min(threads(), _MOST_THREADS, worth), self._one_by_one,
            )  # fmt: skip
        return out


class _Limbs:
    """The product in PyTorch's float64, limb by limb; where there is a kernel nobody waits for PyTorch."""

    def __init__(self, weight: NDArray[np.int64], geometry: _Geometry, limb_bits: int) -> None:
        import torch

        self._weight = torch.from_numpy(weight.astype(np.float64))
        self._geometry, self._limb_bits = geometry, limb_bits

    def __call__(self, x: Words, bits: int) -> Words:
        import torch

        torch.set_num_threads(threads())
        total: Words | None = None
        for shift in range(0, max(1, bits - 1), self._limb_bits):  # one limb at a time is in memory
            part = self._convolve(torch.from_numpy(self._limb(x, bits, shift))).to(torch.int64).numpy().view(np.uint64)
            part <<= np.uint64(shift)
            total = part if total is None else total + part
        assert total is not None
        return reduce(total, bits)

    def _limb(self, x: Words, bits: int, shift: int) -> NDArray[np.float64]:
        """Return the limb of k-bit elements that begins at bit `shift`, float64 within ±2^limb_bits."""
        rest = x >> np.uint64(shift) if shift else x
        if bits - shift <= self._limb_bits + 1:
            return signed(rest, bits - shift).astype(np.float64)
        return reduce(rest, self._limb_bits).astype(np.float64)

    def _convolve(self, x: Tensor) -> Tensor:
        import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation

        own = self._geometry
        top, bottom, left, right = own.padding
        if top == bottom >= 0 and left == right >= 0:
            return F.conv2d(x, self._weight, None, own.stride, (top, left), own.dilation, own.groups)
        return F.conv2d(
            F.pad(x, (left, right, top, bottom)), self._weight, None, own.stride, 0, own.dilation, own.groups
        )
