"""Reshaping: fewer channels (alpha), smaller feature maps (rho) (DeepReDuce, section 3).

Reference networks take alpha and rho when they are built. Any other network is scaled afterwards: its channels by
the dependency graph of torch-pruning, its resolution by the stride of its first convolution.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from ..errors import NetworkError, problem
from .candidate import Candidate

Scale = tuple[float, float]
DEFAULT_SCALES: tuple[Scale, ...] = ((0.5, 1.0), (1.0, 0.5), (0.5, 0.5))
"""(alpha, rho): each of the paper's scalings alone, then both."""


def reshape(candidate: Candidate, scales: Sequence[Scale] = DEFAULT_SCALES) -> tuple[Candidate, ...]:
    """Return the candidate at every scale (alpha, rho)."""
    return tuple(replace(candidate, alpha=alpha, rho=rho) for alpha, rho in scales)


def scale_channels(network: nn.Module, alpha: float, input: tuple[int, int, int]) -> nn.Module:
    """Return a copy of a network in which every layer but the classifier has `alpha` times the channels.

    The channels of largest weight norm stay, with their weights, so that a narrow student starts from its teacher.

    Args:
        network: any module; not changed.
        alpha: in (0, 1]; every layer keeps int(alpha * channels), at least one.
        input: channels, height and width of one image.

    Raises:
        NetworkError: if the dependency graph cannot be built or nothing could be scaled.
    """
    import torch_pruning

    own = copy.deepcopy(network).eval()
    before = sum(parameter.numel() for parameter in own.parameters())
    image = torch.zeros(2, *input)
    last = _last_linear(own)
    try:
        pruner = torch_pruning.pruner.MagnitudePruner(
            own,
            example_inputs=image,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=1 - alpha,
            ignored_layers=[] if last is None else [last],
        )
        pruner.step()
        with torch.no_grad():
            own(image)
    except Exception as error:  # torch-pruning and the user's forward raise any type
        raise NetworkError(
            problem(
                "the channels of the network must be scalable",
                got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
                remedy="leave alpha at 1, or replace channel counts that are fixed in forward",
                where=type(network).__name__,
            )
        ) from error
    after = sum(parameter.numel() for parameter in own.parameters())
    if after == before:
        raise NetworkError(
            problem(
                f"scaling by alpha {alpha:g} must remove channels",
                got="no layer could be made narrower",
                remedy="leave alpha at 1",
                where=type(network).__name__,
            )
        )
    return own.train(network.training)


def scale_resolution(network: fx.GraphModule, rho: float) -> fx.GraphModule:
    """Return a copy of a traced network whose first convolution has 1/rho times its stride.

    Args:
        network: traced; not changed.
        rho: 1, 1/2, 1/4 or 1/8.

    Raises:
        NetworkError: if the network does not begin with one convolution.
    """
    own = copy.deepcopy(network)
    for node in own.graph.nodes:
        if node.op == "call_module":
            module = own.get_submodule(str(node.target))
            if isinstance(module, nn.Conv2d):
                factor = round(1 / rho)
                height, width = module.stride
                module.stride = (height * factor, width * factor)
                return own
    raise NetworkError(
        problem(
            "scaling the resolution needs a first convolution to carry the stride",
            got="no nn.Conv2d module",
            remedy="leave rho at 1",
            where=type(network).__name__,
        )
    )


def _last_linear(network: nn.Module) -> nn.Module | None:
    """Return the classifier: the last linear or convolution module in the order of definition."""
    found = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return found[-1] if found else None
