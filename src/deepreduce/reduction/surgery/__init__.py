"""Changes to a network's graph: ReLUs, channels, borders and pools that go, and what takes their place."""

from .bypassing import add_bypasses
from .collapsing import collapse, head_of, nodes_before
from .lines import first_lines, line_sites
from .nonlinearity import linear_fit, nonlinear_variance
from .plain import is_affine, is_extended, is_transparent
from .pooling import average_pools, has_max_pooling
from .removal import SEARCH_PREFIX, FadingReLU, finish_fading, remove_relus, replace_call, replace_relus, set_fade
from .scaling import narrow_channels, scale_channels, scale_resolution
from .trimming import trim_maps

__all__ = [
    "SEARCH_PREFIX",
    "FadingReLU",
    "add_bypasses",
    "average_pools",
    "collapse",
    "finish_fading",
    "first_lines",
    "has_max_pooling",
    "head_of",
    "is_affine",
    "is_extended",
    "is_transparent",
    "line_sites",
    "linear_fit",
    "narrow_channels",
    "nodes_before",
    "nonlinear_variance",
    "remove_relus",
    "replace_call",
    "replace_relus",
    "scale_channels",
    "scale_resolution",
    "set_fade",
    "trim_maps",
]
