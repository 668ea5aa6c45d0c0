"""Reshaping: fewer channels (alpha), smaller feature maps (rho) (DeepReDuce, section 3).

Reference networks take alpha and rho when they are built. Any other network is scaled afterwards: its channels by
the dependency graph of torch-pruning, its resolution by the stride of its first convolution.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from ..census import example_images, image_nodes, trace
from ..errors import NetworkError, problem
from .candidate import Candidate

Scale = tuple[float, float]
DEFAULT_SCALES: tuple[Scale, ...] = ((0.5, 1.0), (1.0, 0.5), (0.5, 0.5))
"""(alpha, rho): each of the paper's scalings alone, then both."""

_SCALABLE = (nn.modules.conv._ConvNd, nn.Linear)


def reshape(candidate: Candidate, scales: Sequence[Scale] = DEFAULT_SCALES) -> tuple[Candidate, ...]:
    """Return the candidate at every scale (alpha, rho)."""
    return tuple(replace(candidate, alpha=alpha, rho=rho) for alpha, rho in scales)


def scale_channels(network: nn.Module, alpha: float, input: tuple[int, int, int]) -> fx.GraphModule:
    """Return a traced copy of a network in which every layer but the classifier has `alpha` times the channels.

    The channels of largest weight norm stay, with their weights, so that a narrow student starts from its teacher.
    Layers whose channels are added to the image or to constants of fixed size keep their width.

    Args:
        network: any module that torch.fx can trace; not changed.
        alpha: in (0, 1]; every layer keeps int(alpha * channels), at least one.
        input: channels, height and width of one image.

    Raises:
        NetworkError: if the dependency graph cannot be built, the scaled network cannot run, or nothing was scaled.
    """
    import torch_pruning

    own = trace(network).eval()
    before = sum(parameter.numel() for parameter in own.parameters())
    images = example_images(own, input, count=2)
    classifier = _outermost(own, from_output=True)
    layers = [module for module in own.modules() if isinstance(module, _SCALABLE) and module not in classifier]
    try:
        with torch.no_grad():
            outputs = own(images)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch-pruning tells of parameters outside modules; the run below judges
            torch_pruning.pruner.MagnitudePruner(
                own,
                example_inputs=images,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=1 - alpha,
                pruning_ratio_dict={layer: 1 - _share(layer, alpha) for layer in layers},
                ignored_layers=classifier,
            ).step()
        with torch.no_grad():
            got = own(images)
        if got.shape != outputs.shape:
            raise ValueError(f"the output came out as {tuple(got.shape)} instead of {tuple(outputs.shape)}")
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
    if after == before and alpha < 1:
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
        NetworkError: if the network does not begin with one convolution, called once.
    """
    own = copy.deepcopy(network)
    first = _outermost(own, from_output=False)
    calls = [
        node for node in own.graph.nodes if node.op == "call_module" and own.get_submodule(str(node.target)) in first
    ]
    if len(calls) != 1 or not isinstance(first[0], nn.Conv2d):
        found = [f"{node.target} ({type(own.get_submodule(str(node.target))).__name__})" for node in calls]
        raise NetworkError(
            problem(
                "scaling the resolution needs one nn.Conv2d that reads the image, to carry the stride",
                got=", ".join(found) or "no layer with weights",
                remedy="leave rho at 1",
                where=type(network).__name__,
            )
        )
    factor = round(1 / rho)
    height, width = first[0].stride
    first[0].stride = (height * factor, width * factor)
    return own


def _share(layer: nn.Module, alpha: float) -> float:
    """Return the share of its channels that a layer keeps, so that rounding down gives int(alpha * channels)."""
    channels: int = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # type: ignore[assignment]
    return (max(1, int(channels * alpha + 1e-9)) + 1e-6) / channels


def _outermost(network: fx.GraphModule, *, from_output: bool) -> list[nn.Module]:
    """Return the layers that make the output (the classifier), or those that read the image."""
    image = image_nodes(network.graph)
    found: list[nn.Module] = []
    ends = [node for node in network.graph.nodes if node.op == ("output" if from_output else "placeholder")]
    seen: set[fx.Node] = set()
    while ends:
        node = ends.pop()
        if node in seen or (node.op != "output" and node not in image):
            continue
        seen.add(node)
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _SCALABLE):
            if module not in found:
                found.append(module)
        else:
            ends.extend(node.all_input_nodes if from_output else node.users)
    return found
