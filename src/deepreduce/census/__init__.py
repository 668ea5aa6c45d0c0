"""Looking at a network: its ReLU layers by call site, its stages, its ReLUs, MACs and parameters."""

from ._canonical import FunctionalDropout
from ._graph import all_pass, argument, function_name, image_nodes, live_nodes, writes_in_place
from .call_sites import CallSite, final_softmax, find_relus, masked_relu, other_nonlinearities
from .census import Census, ReluLayer, Stage, check_input, failing_place, take_census
from .masked_relu import MaskedReLU, on_line
from .trace import check_trace, evaluating, example_images, is_traced, source_line, trace, training_path, unwrap

__all__ = [
    "CallSite",
    "Census",
    "FunctionalDropout",
    "MaskedReLU",
    "ReluLayer",
    "Stage",
    "all_pass",
    "argument",
    "check_input",
    "check_trace",
    "evaluating",
    "example_images",
    "failing_place",
    "final_softmax",
    "find_relus",
    "function_name",
    "image_nodes",
    "is_traced",
    "live_nodes",
    "masked_relu",
    "on_line",
    "other_nonlinearities",
    "source_line",
    "take_census",
    "trace",
    "training_path",
    "unwrap",
    "writes_in_place",
]
