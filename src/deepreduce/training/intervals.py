"""What a measured accuracy is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_Z95 = 1.959964  # two-sided 95 % point of the normal distribution


def wilson_interval(accuracy: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson, 1927).

    Args:
        accuracy: measured share, in [0, 1].
        n: number of images, at least 1.
    """
    centre = (accuracy + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * math.sqrt(accuracy * (1 - accuracy) / n + _Z95**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def summarise(runs: Sequence[float], n: int) -> dict[str, Any]:
    """Summarise the accuracies of one network trained with several seeds.

    Args:
        runs: one accuracy per seed, in [0, 1].
        n: number of images each was measured on.

    Returns:
        `accuracy` (the mean), `low` and `high` (95 % interval for n images; seeds share the images, so they do not
        narrow it), `n`, `runs`, `mean`, and `sd` (over seeds; None for one).
    """
    mean = sum(runs) / len(runs)
    sd = math.sqrt(sum((run - mean) ** 2 for run in runs) / (len(runs) - 1)) if len(runs) > 1 else None
    low, high = wilson_interval(mean, n)
    return {"accuracy": mean, "low": low, "high": high, "n": n, "runs": list(runs), "mean": mean, "sd": sd}
