"""Criticality, culling, thinning, reshaping, the algorithm that ties them, and the Pareto front."""

from .candidate import Candidate
from .criticality import (
    DEFAULT_EXPONENT,
    Criticality,
    criticality_candidates,
    least_critical_first,
    measure_criticality,
)
from .culling import cull
from .methods import METHODS, Method, deepreduce, method
from .pareto import pareto_front
from .reduced import Base, build_candidate, census_of, kept_layers, make_base, removed_layers
from .removal import FadingReLU, finish_fading, remove_relus, set_fade
from .reshaping import DEFAULT_SCALES, reshape, scale_channels, scale_resolution
from .thinning import thin, thinned_layers

__all__ = [
    "DEFAULT_EXPONENT",
    "DEFAULT_SCALES",
    "METHODS",
    "Base",
    "Candidate",
    "Criticality",
    "FadingReLU",
    "Method",
    "build_candidate",
    "census_of",
    "criticality_candidates",
    "cull",
    "deepreduce",
    "finish_fading",
    "kept_layers",
    "least_critical_first",
    "make_base",
    "measure_criticality",
    "method",
    "pareto_front",
    "remove_relus",
    "removed_layers",
    "reshape",
    "scale_channels",
    "scale_resolution",
    "set_fade",
    "thin",
    "thinned_layers",
]
