"""How formats are chosen: the few numbers that a user may set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...errors import UsageError, problem

MOST_FAILURE_BITS = 40
"""So rarely nothing fails at all: nearly all refreshes are then circuits."""

MOST_SIGN_BITS = 30
"""More than any ReLU's input has."""

MOST_TABLE_BITS = 13
"""Each bit more doubles the table in which a sign is looked up: with 13, half a kilobyte for each ReLU and party."""


@dataclass(frozen=True)
class FormatSettings:
    """What decides accuracy and cost of a program.

    Attributes:
        margin: how far beyond the largest magnitude seen in calibration a value may go, as a factor, 1 to 64. A value
            beyond its range wraps and spoils its image, so the range is then rounded up to a power of two besides.
        doubt: with n calibration images single channels are taken to go 1 + doubt / n times beyond what these showed,
            0 to 1000; the margin comes on top. In 2,500 other images those of a network trained on CIFAR-100 went 2.4,
            2.0 and 1.6 times beyond what 16, 64 and 256 images had shown.
        activation_bits: magnitude bits of what leaves a circuit, 4 to 30; the sign bit comes on top.
        sign_bits: bits of a ReLU's input, sign included, that decide whether it is positive, at least, 3 to 30. Where
            its input has fewer, all of them do. Up to 13 are looked up; for more the ReLU is garbled, and all bits
            decide.
        weight_bits: log2 of the least typical magnitude (geometric mean over outputs of the root mean square) of a
            layer's integer weights, 2 to 20. The relative rounding error of a layer is about 0.2 · 2^-weight_bits.
        input_bits: magnitude bits of a pixel, 4 to 30.
        logit_bits: magnitude bits of the logits that enter the arg-max, 4 to 40.
        max_ring_bits: largest ring, 16 to 62; 59 is the largest power of two that SEAL takes as a plaintext modulus.
        failure_bits: a ring is refreshed by truncation where that fails in one element of 2^failure_bits images at
            most, 8 to 40; otherwise by circuits, which never fail. Where there is room it is a sixteenth of that. An
            image with such an element may get a wrong answer, and nobody sees it.
        tolerance: largest root mean square error of the logits on the calibration images, in units of the standard
            deviation of the logits, above 0. A program beyond it gets more bits for the signs of the layers where they
            matter, and up to six more for weights, activations and input; it is refused if that does not do. At 0.01
            the trained networks that were measured keep about 99 % of their labels, and their accuracy; see
            docs/choices.md.
        merge: whether neighbouring linear layers are merged where that is cheaper.
        equalise: whether channels are scaled so that they fill the ranges of their ReLUs.
    """

    margin: float = 2.0
    doubt: float = 16.0
    activation_bits: int = 12
    sign_bits: int = 8
    weight_bits: int = 8
    input_bits: int = 12
    logit_bits: int = 20
    max_ring_bits: int = 59
    failure_bits: int = 16
    tolerance: float = 0.01
    merge: bool = True
    equalise: bool = True

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: naming the setting that is out of range.
        """
        ranges = {
            "margin": (1, 64), "doubt": (0, 1000), "activation_bits": (4, 30), "sign_bits": (3, MOST_SIGN_BITS),
            "weight_bits": (2, 20), "input_bits": (4, 30), "logit_bits": (4, 40), "max_ring_bits": (16, 62),
            "failure_bits": (8, MOST_FAILURE_BITS), "tolerance": (1e-9, 1e9),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if (
                not (whole or (name in ("margin", "doubt", "tolerance") and isinstance(value, float)))
                or not low <= value <= high
            ):
                raise UsageError(
                    problem(
                        f"the setting {name} lies between {low:g} and {high:g}",
                        got=value,
                        remedy="leave it at its default",
                        where=name,
                    )
                )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)
