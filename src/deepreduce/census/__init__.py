"""Looking at a network: its ReLU layers by call site, its stages, its ReLUs, MACs and parameters."""

from .call_sites import CallSite, find_relus, other_nonlinearities
from .census import Census, ReluLayer, Stage, take_census
from .trace import trace

__all__ = ["CallSite", "Census", "ReluLayer", "Stage", "find_relus", "other_nonlinearities", "take_census", "trace"]
