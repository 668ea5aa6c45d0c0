"""Real numbers as integers with a number of fraction bits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, problem
from .arithmetic import Words, check_bits, signed, unsigned


def encode(values: NDArray[np.floating], *, fraction_bits: int, bits: int) -> Words:
    """Round reals to fixed point, half to even, as ring elements.

    Args:
        values: any shape, finite, and within the ring: -2^(bits-1) <= value · 2^fraction_bits < 2^(bits-1).
        fraction_bits: how many binary digits after the point; may be negative.
        bits: of the ring.

    Raises:
        DataError: if a value is not finite or does not fit; nothing wraps silently.
    """
    check_bits(bits)
    scaled = np.rint(np.ldexp(np.asarray(values, dtype=np.float64), fraction_bits))
    limit = 2.0 ** (bits - 1)
    inside = (scaled >= -limit) & (scaled < limit)
    if not inside.all():
        worst = np.asarray(values, dtype=np.float64)[~inside].flat[0]
        allowed = math.ldexp(limit, -fraction_bits)
        raise DataError(
            problem(
                f"a value to encode lies within {-allowed:g} and {allowed:g}",
                got=worst,
                remedy="normalise the images as the network was trained, or calibrate with a larger margin",
            )
        )
    return unsigned(scaled.astype(np.int64), bits)


def decode(values: Words, *, fraction_bits: int, bits: int) -> NDArray[np.float64]:
    """Return the reals that ring elements stand for; exact up to 53 significant bits."""
    return np.ldexp(signed(values, bits).astype(np.float64), -fraction_bits)


def magnitude_bits(limit: float) -> int:
    """Return the smallest e with limit <= 2^e, for a limit above 0; negative for small limits."""
    mantissa, exponent = math.frexp(limit)
    return exponent - 1 if mantissa == 0.5 else exponent
