"""The methods behind `--method`: DeepReDuce step by step, two of ours, and the rivals."""

from .algorithm import deepreduce
from .channel_pruning import channel_pruning
from .criticality import (
    DEFAULT_EXPONENT,
    Criticality,
    criticality_candidates,
    least_critical_first,
    measure_criticality,
)
from .culling import cull
from .finding import MaskFinder, MaskOrder, SlopedReLU, Survey, check_granularity, is_slope, watch, with_slopes
from .narrowing import narrowing
from .reducers import REDUCERS, Propose, Reducer, find_reducer
from .relupruner import importance
from .reshaping import DEFAULT_SCALES, reshape
from .selection import choose, masked_candidate, smallest_budget
from .thinning import thin

__all__ = [
    "DEFAULT_EXPONENT",
    "DEFAULT_SCALES",
    "REDUCERS",
    "Criticality",
    "MaskFinder",
    "MaskOrder",
    "Propose",
    "Reducer",
    "SlopedReLU",
    "Survey",
    "channel_pruning",
    "check_granularity",
    "choose",
    "criticality_candidates",
    "cull",
    "deepreduce",
    "find_reducer",
    "importance",
    "is_slope",
    "least_critical_first",
    "masked_candidate",
    "measure_criticality",
    "narrowing",
    "reshape",
    "smallest_budget",
    "thin",
    "watch",
    "with_slopes",
]
