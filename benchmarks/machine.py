"""What several benchmarks share: the processor's name, and repeated measurements in a few figures."""

from __future__ import annotations

import platform
import statistics
from pathlib import Path


def summary(values: list[float]) -> dict[str, float]:
    """Return median, mean, standard deviation, extremes, and number."""
    return {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def processor_name() -> str:
    """Return the processor's name as Linux reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
