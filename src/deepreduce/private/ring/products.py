"""Exact integer convolutions and matrix products mod 2^k through float64 arithmetic.

float64 adds and multiplies integers exactly as long as every intermediate sum stays within ±2^53. With x centred in
[-2^(b-1), 2^(b-1)) every partial sum of Σ w·x, in whatever order a library adds, is at most 2^(b-1) · Σ|w|. So one
product is exact for b bits with 2^(b-1) · max_row Σ|w| <= 2^53, and a k-bit x is cut into ceil(k / b) limbs: the
lower ones unsigned of b - 1 bits, the highest signed, so that all obey the bound. Fused multiply-add only rounds
less often and changes nothing. The algorithms that a library may use here (direct, im2col and matrix product) add
products of the given numbers; a transform such as Winograd's, which would scale them, is not implemented for float64
in PyTorch, and the tests compare with integer arithmetic at the bound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from numpy.typing import NDArray
from torch import Tensor

from ...errors import UsageError, problem
from .arithmetic import Words, check_bits, reduce, signed

_EXACT_BITS = 53


class _Exact:
    """The limbs common to convolution and matrix product."""

    def __init__(self, weight: NDArray[np.int64]) -> None:
        flat = np.abs(weight.reshape(weight.shape[0], -1).astype(np.float64))
        if not flat.size:
            raise UsageError(problem("a weight has elements", got=weight.shape, remedy="leave the layer out"))
        # the sum is exact below 2^53, and anything near that is refused below
        heaviest = max(1, int(flat.sum(axis=1).max()))
        self.limb_bits = _EXACT_BITS - (heaviest - 1).bit_length()
        if self.limb_bits < 4:
            raise UsageError(
                problem(
                    "the absolute weights of one output sum to less than 2^50",
                    got=f"about 2^{heaviest.bit_length()}",
                    remedy="use fewer weight bits",
                )
            )

    def _limb(self, x: Words, bits: int, shift: int) -> NDArray[np.float64]:
        """Return the limb of k-bit elements that begins at bit `shift`, float64 within ±2^limb_bits."""
        rest = x >> np.uint64(shift) if shift else x
        if bits - shift <= self.limb_bits + 1:
            return signed(rest, bits - shift).astype(np.float64)
        return reduce(rest, self.limb_bits).astype(np.float64)

    def _apply(self, x: Words, bits: int, product: Callable[[Tensor], Tensor]) -> Words:
        check_bits(bits)
        total: Words | None = None
        for shift in range(0, max(1, bits - 1), self.limb_bits):  # one limb at a time is in memory
            part = product(torch.from_numpy(self._limb(x, bits, shift))).to(torch.int64).numpy().view(np.uint64)
            part <<= np.uint64(shift)
            total = part if total is None else total + part
        assert total is not None
        return reduce(total, bits)


class ExactConvolution(_Exact):
    """A 2-D cross-correlation (what PyTorch calls convolution) over the integers mod 2^k.

    Args:
        weight: `int64`, [outputs, inputs / groups, height, width]; Σ|w| of one output below 2^49.
        stride, dilation: (vertical, horizontal), at least 1.
        padding: rows and columns of zeros added at (top, bottom, left, right); negative numbers cut away instead.
        groups: as in PyTorch.

    Raises:
        UsageError: if the weights are too large to be exact.
    """

    def __init__(
        self,
        weight: NDArray[np.int64],
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__(weight)
        self._weight = torch.from_numpy(weight.astype(np.float64))
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def __call__(self, x: Words, bits: int) -> Words:
        """Return the convolution of `x`, [n, inputs, height, width], mod 2^bits."""
        return self._apply(x, bits, self._convolve)

    def _convolve(self, x: Tensor) -> Tensor:
        top, bottom, left, right = self.padding
        if top == bottom >= 0 and left == right >= 0:
            return F.conv2d(x, self._weight, None, self.stride, (top, left), self.dilation, self.groups)
        return F.conv2d(
            F.pad(x, (left, right, top, bottom)), self._weight, None, self.stride, 0, self.dilation, self.groups
        )


class ExactMatrix(_Exact):
    """A matrix product over the integers mod 2^k.

    Args:
        weight: `int64`, [outputs, inputs]; Σ|w| of one output below 2^49.

    Raises:
        UsageError: if the weights are too large to be exact.
    """

    def __init__(self, weight: NDArray[np.int64]) -> None:
        super().__init__(weight)
        self._weight = torch.from_numpy(weight.astype(np.float64))

    def __call__(self, x: Words, bits: int) -> Words:
        """Return x · weightᵀ mod 2^bits for `x` of [n, inputs]."""
        return self._apply(x, bits, lambda limb: limb @ self._weight.T)
