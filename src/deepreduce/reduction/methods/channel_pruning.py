"""Channel pruning, the baseline of the paper's comparison (DeepReDuce, section 5): fewer channels, every ReLU kept.

The pruning is torch-pruning's: along its dependency graph the channels of smallest weight norm go, the same share in
every layer (`scale_channels`), and what is left is fine-tuned like any candidate, from the teacher's weights and with
distillation. The paper compares with a pruner that chooses the share of each layer; that one is not reproduced here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...census import Census
from ..candidate import Candidate

DEFAULT_SHARES = (0.75, 0.5, 0.25)
"""Of the channels that stay, where no budget is given."""

_STEPS = 10_000


def channel_pruning(census: Census, budgets: Sequence[int] = ()) -> tuple[Candidate, ...]:
    """Propose the network with all its ReLU layers and fewer channels.

    Args:
        census: of the full network.
        budgets: numbers of ReLUs; each gives the share of channels that meets it. None gives the default shares.
    """
    shares = [math.floor(_STEPS * budget / census.relus) / _STEPS for budget in budgets] or DEFAULT_SHARES
    stages = tuple(stage.name for stage in census.stages)
    return tuple(Candidate(keep=stages, alpha=share) for share in dict.fromkeys(shares) if 0 < share < 1)


def comparison_row(front: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the paper's comparison of methods.

    Args:
        front: content of a `front.json`.
        entry: one of its entries that was trained.

    Returns:
        `data`, `method`, `network`, `split` (whose images), `baseline`, `pruned`, `change` (accuracies, in percent and
        points), `macs` and `relus`. The paper's column "FLOPs" counts multiply-accumulates, as `macs` does.
    """
    split = "test" if entry["test"] and front["teacher"]["test"] else "validation"
    baseline, pruned = (100 * which[split]["accuracy"] for which in (front["teacher"], entry))
    return {
        "data": front["data"]["name"],
        "method": front["settings"]["method"],
        "network": entry["label"],
        "split": split,
        "baseline": baseline,
        "pruned": pruned,
        "change": pruned - baseline,
        "macs": entry["macs"],
        "relus": entry["relus"],
    }
