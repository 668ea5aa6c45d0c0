"""Criticality, culling, thinning, reshaping, the algorithm that ties them, its rivals, and the Pareto front."""

from .algorithm import deepreduce
from .bypassing import add_bypasses
from .candidate import Candidate, for_each
from .channel_pruning import channel_pruning, comparison_row
from .collapsing import collapse, head_of
from .criticality import (
    DEFAULT_EXPONENT,
    Criticality,
    criticality_candidates,
    least_critical_first,
    measure_criticality,
)
from .culling import cull
from .exchanging import exchange_activations
from .finding import MaskFinder, MaskOrder, SlopedReLU, Survey, check_granularity, is_slope, watch, with_slopes
from .gates import fix_gates
from .masks import GRANULARITIES, LayerMask, Mask, Masks
from .narrowing import narrowing
from .nonlinearity import linear_fit, nonlinear_variance
from .norms import exchange_norms
from .pareto import pareto_front
from .pooling import average_pools, has_max_pooling
from .reduced import Base, build_candidate, census_of, cut, kept_layers, make_base, removed_layers
from .reducers import REDUCERS, Propose, Reducer, find_reducer
from .relupruner import importance
from .removal import FadingReLU, finish_fading, remove_relus, replace_relus, set_fade
from .reshaping import DEFAULT_SCALES, narrow_channels, reshape, scale_channels, scale_resolution
from .selection import choose, masked_candidate, smallest_budget
from .thinning import thin, thinned_layers
from .trimming import trim_maps

__all__ = [
    "DEFAULT_EXPONENT",
    "DEFAULT_SCALES",
    "GRANULARITIES",
    "REDUCERS",
    "Base",
    "Candidate",
    "Criticality",
    "FadingReLU",
    "LayerMask",
    "Mask",
    "MaskFinder",
    "MaskOrder",
    "Masks",
    "Propose",
    "Reducer",
    "SlopedReLU",
    "Survey",
    "add_bypasses",
    "average_pools",
    "build_candidate",
    "census_of",
    "channel_pruning",
    "check_granularity",
    "choose",
    "collapse",
    "comparison_row",
    "criticality_candidates",
    "cull",
    "cut",
    "deepreduce",
    "exchange_activations",
    "exchange_norms",
    "find_reducer",
    "finish_fading",
    "fix_gates",
    "for_each",
    "has_max_pooling",
    "head_of",
    "importance",
    "is_slope",
    "kept_layers",
    "least_critical_first",
    "linear_fit",
    "make_base",
    "masked_candidate",
    "measure_criticality",
    "narrow_channels",
    "narrowing",
    "nonlinear_variance",
    "pareto_front",
    "remove_relus",
    "removed_layers",
    "replace_relus",
    "reshape",
    "scale_channels",
    "scale_resolution",
    "set_fade",
    "smallest_budget",
    "thin",
    "thinned_layers",
    "trim_maps",
    "watch",
    "with_slopes",
]
