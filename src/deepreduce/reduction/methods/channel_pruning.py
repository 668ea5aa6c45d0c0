"""Channel pruning, the baseline of the paper's comparison (DeepReDuce, section 5): fewer channels, every ReLU kept.

The pruning is torch-pruning's: along its dependency graph the channels of smallest weight norm go, the same share in
every layer (`scale_channels`), and what is left is fine-tuned like any candidate, from the teacher's weights and with
distillation. The paper compares with a pruner that chooses the share of each layer; that one is not reproduced here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...census import Census
from ..candidate import Candidate
from .criticality import Criticality

DEFAULT_SHARES = (0.75, 0.5, 0.25)
"""Of the channels that stay, where no budget is given."""

_STEPS = 10_000


def channel_pruning(
    census: Census, criticality: tuple[Criticality, ...] = (), budgets: Sequence[int] = ()
) -> tuple[Candidate, ...]:
    """Propose the network with all its ReLU layers and fewer channels.

    Args:
        census: of the full network.
        criticality: not asked for.
        budgets: numbers of ReLUs; each gives the share of channels that meets it. None gives the default shares.
    """
    shares = [math.floor(_STEPS * budget / census.relus) / _STEPS for budget in budgets] or DEFAULT_SHARES
    stages = tuple(stage.name for stage in census.stages)
    return tuple(Candidate(keep=stages, alpha=share) for share in dict.fromkeys(shares) if 0 < share < 1)
