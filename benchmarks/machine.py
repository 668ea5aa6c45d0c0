"""What several benchmarks share: names of processors and results files, and repeated measurements in a few figures."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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


def device_of(environment: Mapping[str, Any]) -> str:
    """Return what a training ran on: the first accelerator, or the processor."""
    return str(environment["devices"][0] if environment["devices"] else environment["processor"])


def public(command: str) -> str:
    """Return a command without folders of this machine: of absolute paths the last part stays."""
    return " ".join(
        re.sub(r"^((?:--?[\w-]+=)?)(?:\w+://)?[/~].*?([^/]*)/*$", r"\1\2", word) for word in command.split()
    )


def results_path(folder: Path, benchmark: str, device: str, *, date: str | None = None, suffix: str = "") -> Path:
    """Return where a benchmark's results belong, in a folder that is made: `BENCHMARK-DEVICE-DATE.json`.

    Args:
        folder: of results files.
        benchmark: its name.
        device: what was measured, by the name that it gives itself.
        date: of the measurement; None takes today.
        suffix: of the name, for variants.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return folder / f"{benchmark}-{named}-{date or time.strftime('%Y-%m-%d')}{suffix}.json"
