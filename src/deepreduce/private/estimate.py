"""Estimates of what one private inference costs, from measured constants.

The constants of DELPHI (Mishra et al., USENIX Security 2020) come from its published raw logs, see `delphi.json`.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any


@functools.cache
def delphi_constants() -> dict[str, Any]:
    """Return DELPHI's measured constants with their units and source."""
    text = (resources.files("deepreduce.private") / "delphi.json").read_text(encoding="utf-8")
    constants: dict[str, Any] = json.loads(text)
    return constants


def delphi_online_seconds(relus: int, macs: int) -> float:
    """Estimate the online time of one private inference with DELPHI.

    ReLUs are 97 % of it in the full networks. Network latency is not accounted for.

    Args:
        relus: number of ReLUs, for one image.
        macs: MACs, for one image.

    Returns:
        Seconds.
    """
    constants = delphi_constants()
    return relus * float(constants["online_seconds_per_relu"]) + macs * float(constants["online_seconds_per_mac"])
