"""How a network is trained: one frozen object, with a JSON round trip."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from .._arguments import as_plain, check_fields, is_number, is_whole
from ..errors import UsageError, near_misses, problem

_LONGEST_FADE = 0.9
_MOST_EPOCHS = 100_000
_ABOVE_0, _BELOW_1 = "a number above 0 and finite", "a number from 0 to below 1"

_PLACES = {
    "flip": "--no-flip",
    "warm_start": "--no-warm-start",
    "epochs_before": "epochs_before",
    "epochs_after": "epochs_after",
}
"""Where a setting is set that has no option of its name."""


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of one training job.

    Attributes:
        epochs: passes over the training images, at least 1.
        batch_size: images per step over all devices, at least 2.
        learning_rate: at its peak; it rises over `warmup` and falls to zero along a half cosine.
        warmup: fraction of training in which the learning rate rises, in [0, 1).
        momentum: of SGD with Nesterov's correction, in [0, 1).
        weight_decay: at least 0.
        crop: pixels of reflected border from which a random crop is taken; 0 switches it off, None takes an eighth
            of the image (4 at 32x32).
        flip: random horizontal flips.
        distillation: weight of the teacher's answers against the labels, in [0, 1]; 0 switches the teacher off.
        temperature: of distillation, above 0.
        warm_start: start a student from its teacher's weights wherever shapes agree, and from the teacher's strongest
            channels where the student is narrower.
        fade: fraction of training over which removed ReLUs turn into the identity, in [0, 0.9]; 0 removes them at
            once. What a line takes the place of goes at once at any fade. The last tenth at least trains the network as
            it will be, and settles its batch statistics.
        epochs_before, epochs_after: epochs of the same schedule that another job trains before this one or after it.
            Learning rate and fading go on from there to there.
        precision: `auto` (bf16 on a GPU that has it, else full precision), `no`, `bf16` or `fp16` (on a GPU).
        compile: `auto` (on a GPU, if it trains for 20,000 steps or more), `on` or `off`.
    """

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 0.1
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: int | None = None
    flip: bool = True
    distillation: float = 0.9
    temperature: float = 4.0
    warm_start: bool = True
    fade: float = 0.4
    epochs_before: int = 0
    epochs_after: int = 0
    precision: str = "auto"
    compile: str = "auto"

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            UsageError: naming the first setting that is out of range.
        """
        as_plain(self)
        check_fields(
            self,
            ("epochs", is_whole(self.epochs) and 1 <= self.epochs <= _MOST_EPOCHS, "a whole number from 1 to 100,000"),
            (
                "batch_size",
                is_whole(self.batch_size) and 2 <= self.batch_size <= 1_000_000,
                "a whole number from 2 to 1,000,000",
            ),
            ("learning_rate", is_number(self.learning_rate) and 0 < self.learning_rate < math.inf, _ABOVE_0),
            ("warmup", is_number(self.warmup) and 0 <= self.warmup < 1, _BELOW_1),
            ("momentum", is_number(self.momentum) and 0 <= self.momentum < 1, _BELOW_1),
            ("weight_decay", is_number(self.weight_decay) and 0 <= self.weight_decay < 1, _BELOW_1),
            (
                "crop",
                self.crop is None or (is_whole(self.crop) and 0 <= self.crop <= 64),
                "a whole number from 0 to 64",
            ),
            ("distillation", is_number(self.distillation) and 0 <= self.distillation <= 1, "a number from 0 to 1"),
            ("temperature", is_number(self.temperature) and 0 < self.temperature < math.inf, _ABOVE_0),
            (
                "fade",
                is_number(self.fade) and 0 <= self.fade <= _LONGEST_FADE,
                f"a number from 0 to {_LONGEST_FADE}",
            ),
            *(
                (name, is_whole(value) and 0 <= value <= _MOST_EPOCHS, "a whole number from 0 to 100,000")
                for name, value in (("epochs_before", self.epochs_before), ("epochs_after", self.epochs_after))
            ),
            *(
                (name, isinstance(value, bool), "True or False")
                for name, value in (("flip", self.flip), ("warm_start", self.warm_start))
            ),
            ("precision", self.precision in ("auto", "no", "bf16", "fp16"), "auto, no, bf16 or fp16"),
            ("compile", self.compile in ("auto", "on", "off"), "auto, on or off"),
            places=_PLACES,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings by name; a schedule that is the job's own goes without saying."""
        parts = ("epochs_before", "epochs_after")
        return {name: value for name, value in asdict(self).items() if value or name not in parts}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TrainingConfig:
        """Rebuild the settings; names that this release does not know are refused.

        Raises:
            UsageError: naming the first unknown setting.
        """
        known = [f.name for f in fields(cls)]
        for name in value:
            if name not in known:
                raise UsageError(
                    problem(
                        "every setting must be known",
                        got=f"{name!r}{near_misses(name, known)}",
                        remedy=f"use {', '.join(known)}",
                    )
                )
        return cls(**value)


def learning_rate_at(config: TrainingConfig, progress: float) -> float:
    """Return the learning rate when a fraction `progress` of the job, in [0, 1], is done."""
    progress = _of_schedule(config, progress)
    if progress < config.warmup:
        return config.learning_rate * progress / config.warmup
    rest = (progress - config.warmup) / (1 - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))


def fade_at(config: TrainingConfig, progress: float) -> float:
    """Return how far removed ReLUs are on their way to the identity, in [0, 1], rising evenly."""
    return 1.0 if config.fade == 0 else min(1.0, _of_schedule(config, progress) / config.fade)


def _of_schedule(config: TrainingConfig, progress: float) -> float:
    """Return the fraction of the whole schedule that is done when a fraction of the job is."""
    total = config.epochs_before + config.epochs + config.epochs_after
    return (config.epochs_before + progress * config.epochs) / total
