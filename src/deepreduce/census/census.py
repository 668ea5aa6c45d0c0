"""The census of a network: ReLUs, MACs and parameters per ReLU layer and stage.

A stage is the set of ReLU layers at one feature-map resolution (DeepReDuce, section 3). A MAC is one
multiply-accumulate of a convolution or matrix product; batch norm, additions and pooling are not counted, as the
paper does not count them. Nothing trains here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import NetworkError, problem
from ._canonical import FunctionalBatchNorm, FunctionalDropout
from ._graph import all_pass, function_name, image_nodes
from .call_sites import CallSite, find_relus, masked_relu, other_nonlinearities
from .trace import check_trace, evaluating, example_images, is_traced, layer_words, source_line, trace

_TRANSPARENT = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    FunctionalBatchNorm,
    FunctionalDropout,
)


@dataclass(frozen=True)
class ReluLayer:
    """One call site and what leads to it.

    Attributes:
        name: call site, see `CallSite.name`.
        kind: `relu` or `relu6`.
        shape: of its output for one image, without the batch dimension.
        macs: of the linear operations that feed it and no earlier ReLU layer, for one image; what follows the last
            ReLU layer counts to that one, so that layers sum to the network.
        params: of the same operations, batch norm included; shared parameters count once.
        after_addition: whether its input is the sum of two branches (batch norm and dropout in between allowed).
        source: `file.py:line` of the user's code.
        has_skip: whether a skip connection leads around this layer, as around the inside of a residual block.
        kept: false once the ReLU layer was removed.
        masked: how many of its elements keep their ReLU, where a mask says which; None where all do.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    macs: int
    params: int
    after_addition: bool
    source: str
    has_skip: bool = False
    kept: bool = True
    masked: int | None = None

    @property
    def size(self) -> int:
        """Number of elements, for one image."""
        return math.prod(self.shape)

    @property
    def relus(self) -> int:
        """Number of ReLUs, for one image: all elements, those of a mask, or none."""
        if not self.kept:
            return 0
        return self.size if self.masked is None else self.masked


@dataclass(frozen=True)
class Stage:
    """The ReLU layers of one feature-map resolution.

    Attributes:
        name: `S1` for the largest resolution, then `S2`, ...
        resolution: height and width of the full network's feature maps; `(1, 1)` for vectors.
        layers: in the order of computation.
    """

    name: str
    resolution: tuple[int, ...]
    layers: tuple[ReluLayer, ...]

    @property
    def relus(self) -> int:
        """Number of ReLUs of the stage, for one image."""
        return sum(layer.relus for layer in self.layers)

    @property
    def macs(self) -> int:
        """MACs of the stage, for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def params(self) -> int:
        """Number of parameters of the stage."""
        return sum(layer.params for layer in self.layers)


@dataclass(frozen=True)
class Census:
    """What a network holds.

    Attributes:
        input: channels, height and width of one image.
        stages: by falling resolution.
        notes: what is not linear and not a ReLU, with its place.
    """

    input: tuple[int, int, int]
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()

    @property
    def relus(self) -> int:
        """Number of ReLUs, for one image."""
        return sum(stage.relus for stage in self.stages)

    @property
    def capped(self) -> int:
        """Number of ReLU6 among the ReLUs: in private each takes up to two ReLUs."""
        return sum(layer.relus for layer in self.layers if layer.kind == "relu6")

    @property
    def macs(self) -> int:
        """MACs, for one image."""
        return sum(stage.macs for stage in self.stages)

    @property
    def params(self) -> int:
        """Number of parameters."""
        return sum(stage.params for stage in self.stages)

    @property
    def layers(self) -> tuple[ReluLayer, ...]:
        """All ReLU layers, stage by stage."""
        return tuple(layer for stage in self.stages for layer in stage.layers)

    def stage_of(self) -> dict[str, str]:
        """Return the stage's name for every call site."""
        return {layer.name: stage.name for stage in self.stages for layer in stage.layers}

    def keeping(self, kept: set[str], masked: Mapping[str, int] = MappingProxyType({})) -> Census:
        """Return the census with only the call sites in `kept` counted as ReLUs; MACs and parameters stay.

        Args:
            kept: call sites.
            masked: for those of them that have a mask, how many elements it keeps.
        """
        stages = tuple(
            replace(
                stage,
                layers=tuple(
                    replace(layer, kept=layer.name in kept, masked=masked.get(layer.name)) for layer in stage.layers
                ),
            )
            for stage in self.stages
        )
        return replace(self, stages=stages)

    def to_json(self) -> dict[str, Any]:
        """Return `relus`, `macs`, `params`, `stages[]` and `notes`, see docs/formats.md."""
        capped = f"{self.capped:,} of the ReLUs are ReLU6: each counts once here, and takes up to two in private"
        return {
            "relus": self.relus,
            "macs": self.macs,
            "params": self.params,
            "stages": [
                {
                    "name": stage.name,
                    "resolution": list(stage.resolution),
                    "relus": stage.relus,
                    "macs": stage.macs,
                    "params": stage.params,
                    "layers": [
                        {
                            "name": layer.name,
                            "kind": layer.kind,
                            "relus": layer.relus,
                            "macs": layer.macs,
                            "params": layer.params,
                            "shape": list(layer.shape),
                            "kept": layer.kept,
                            "after_addition": layer.after_addition,
                            "has_skip": layer.has_skip,
                            "source": layer.source,
                        }
                        for layer in stage.layers
                    ],
                }
                for stage in self.stages
            ],
            "notes": [*self.notes, *([capped] if self.capped else [])],
        }


def take_census(
    network: nn.Module, input: tuple[int, int, int], *, stages: Mapping[str, Stage] | None = None
) -> Census:
    """Count the ReLUs, MACs and parameters of a network.

    Args:
        network: any module that torch.fx can trace; not changed.
        input: channels, height and width of one image.
        stages: for a reshaped network, the stage of every call site in the full network, because two stages can come
            to have the same resolution; without it stages are made from the resolutions found.

    Raises:
        NetworkError: if the network cannot be traced, does not take such images, has no ReLU, or if the traced
            network does not compute what the network itself computes.
    """
    if is_traced(network):
        traced = network
    else:
        traced = trace(network)
        check_trace(network, traced, input)
    sites = find_relus(traced)
    notes = other_nonlinearities(traced)
    if not sites:
        raise NetworkError(
            problem(
                "a network to reduce must have ReLUs",
                got="none" + (f"; found instead: {'; '.join(notes[:5])}" if notes else ""),
                remedy="train it with ReLU activations; --exchange-activations puts them in the place of others",
                where=type(network).__name__,
            )
        )
    layers = _layers(traced, sites, _measure(traced, input))
    if stages is None:
        return Census(input, _by_resolution(layers), notes)
    made: dict[str, list[ReluLayer]] = {}
    for layer in layers:
        made.setdefault(stages[layer.name].name, []).append(layer)
    unique = {stage.name: stage for stage in stages.values()}
    ordered = sorted(made, key=lambda name: int(name.removeprefix("S")))
    return Census(input, tuple(replace(unique[name], layers=tuple(made[name])) for name in ordered), notes)


@dataclass
class _NodeCost:
    """What running one node showed."""

    shape: tuple[int, ...] = ()
    macs: int = 0
    params: int = 0


class _Meter(fx.Interpreter):
    """Runs one image through the graph and notes output shape and MACs of every node."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.costs: dict[fx.Node, _NodeCost] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node under the FLOP counter of PyTorch; one MAC is two of its FLOPs."""
        with FlopCounterMode(display=False) as counter:
            try:
                result = super().run_node(n)
            except Exception as error:  # any operator's own error
                raise _NodeError(n, error) from error
        shape = tuple(result.shape) if isinstance(result, Tensor) else ()
        shape = shape[1:] if shape[:1] == (1,) else shape  # a user may fold the batch into another dimension
        self.costs[n] = _NodeCost(shape, counter.get_total_flops() // 2)
        return result


class _NodeError(Exception):
    def __init__(self, node: fx.Node, error: Exception) -> None:
        super().__init__(str(error))
        name = str(node.target) if node.op == "call_module" else node.name
        self.place = f"{layer_words(name)} {source_line(node)}".strip()
        self.error = error


def check_input(traced: fx.GraphModule, input: tuple[int, int, int]) -> None:
    """Run one image through a traced network.

    Args:
        traced: what `trace` returned, or a network made from it.
        input: channels, height and width of one image.

    Raises:
        NetworkError: naming the layer, if it does not take such images.
    """
    _measure(traced, input)


def failing_place(traced: fx.GraphModule, input: tuple[int, int, int]) -> str | None:
    """Return the first layer of a traced network that fails, and its line of source; None if it takes such images."""
    try:
        with torch.no_grad():
            _Meter(traced).run(example_images(traced, input))
    except _NodeError as failure:
        return failure.place
    return None


def _measure(traced: fx.GraphModule, input: tuple[int, int, int]) -> dict[fx.Node, _NodeCost]:
    meter = _Meter(traced)
    try:
        with evaluating(traced), torch.no_grad():
            meter.run(example_images(traced, input))
    except _NodeError as failure:
        raise NetworkError(
            problem(
                f"the network must take images of {'x'.join(map(str, input))}",
                got=f"{type(failure.error).__name__}: {(str(failure.error) or 'no message').splitlines()[0]}",
                remedy="give the input that the network was made for",
                where=failure.place,
            )
        ) from failure.error
    counted: set[int] = set()
    for node, cost in meter.costs.items():
        for parameter in _parameters(node, traced):
            if id(parameter) not in counted:
                counted.add(id(parameter))
                cost.params += parameter.numel()
    return meter.costs


def _parameters(node: fx.Node, traced: fx.GraphModule) -> list[nn.Parameter]:
    if node.op == "call_module":
        return list(traced.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        value: Any = traced
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return [value] if isinstance(value, nn.Parameter) else []
    return []


def _layers(
    traced: fx.GraphModule, sites: tuple[CallSite, ...], costs: dict[fx.Node, _NodeCost]
) -> tuple[ReluLayer, ...]:
    """Give every node's cost to the first ReLU layer downstream of it."""
    nodes = list(traced.graph.nodes)
    by_node = {site.node: index for index, site in enumerate(sites)}
    last = len(sites) - 1
    owner: dict[fx.Node, int] = {}
    for node in reversed(nodes):
        if node.name in by_node:
            owner[node] = by_node[node.name]
        else:
            owner[node] = min((owner[user] for user in node.users if user in owner), default=last)
    macs, params = [0] * len(sites), [0] * len(sites)
    for node, cost in costs.items():
        macs[owner[node]] += cost.macs
        params[owner[node]] += cost.params
    named = {node.name: node for node in nodes}
    image = image_nodes(traced.graph)
    return tuple(
        ReluLayer(
            name=site.name,
            kind=site.kind,
            shape=costs[named[site.node]].shape,
            macs=macs[index],
            params=params[index],
            after_addition=_after_addition(named[site.node], traced, image),
            source=site.source,
            has_skip=not all_pass(traced.graph, named[site.node]),
            masked=_masked(named[site.node], traced),
        )
        for index, site in enumerate(sites)
    )


def _masked(node: fx.Node, traced: fx.GraphModule) -> int | None:
    module = masked_relu(node, traced)
    return None if module is None else int(module.mask.sum())


def _after_addition(node: fx.Node, traced: fx.GraphModule, image: set[fx.Node]) -> bool:
    """Walk up through batch norm and dropout to an addition of two values of the image."""
    above = node.all_input_nodes[0]
    while above.op == "call_module" and isinstance(traced.get_submodule(str(above.target)), _TRANSPARENT):
        above = above.all_input_nodes[0]
    branches = [branch for branch in above.all_input_nodes if branch in image]
    return above.op in ("call_function", "call_method") and function_name(above) == "add" and len(branches) > 1


def _by_resolution(layers: tuple[ReluLayer, ...]) -> tuple[Stage, ...]:
    groups: dict[tuple[int, ...], list[ReluLayer]] = {}
    for layer in layers:
        resolution = layer.shape[-2:] if len(layer.shape) > 2 else layer.shape[1:] or (1, 1)
        groups.setdefault(resolution, []).append(layer)
    ordered = sorted(groups.items(), key=lambda item: -math.prod(item[0]))
    return tuple(Stage(f"S{number}", size, tuple(group)) for number, (size, group) in enumerate(ordered, 1))
