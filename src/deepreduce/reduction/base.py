"""The full network that candidates are cut from: traced, counted, with its weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn

from ..census import (
    Census,
    check_trace,
    evaluating,
    example_images,
    is_traced,
    take_census,
    trace,
    training_path,
    unwrap,
)
from ..errors import NetworkError, problem
from ..networks import NetworkSpec, build, is_reference
from .exchange import can_exchange, exchange_activations

Scaling = tuple[object, ...]
"""A candidate's scales, and the stages and call sites that stay, where shapes depend on them."""


@dataclass(frozen=True)
class Base:
    """The full network that candidates are cut from.

    Attributes:
        spec: its name and sizes.
        network: traced, with the weights it was built or trained with.
        census: its ReLUs, MACs and parameters.
        reference: whether it is the reference network of that name, whose builder takes alpha and rho.
    """

    spec: NetworkSpec
    network: fx.GraphModule
    census: Census
    reference: bool
    _scaled: dict[Scaling, Census | NetworkError] = field(default_factory=dict, compare=False, repr=False)


def make_base(spec: NetworkSpec, network: nn.Module | None = None) -> Base:
    """Build (unless given), trace and count the full network.

    Args:
        spec: what it is called, the size of its images, and its classes.
        network: the network itself; not changed. Its weights are taken over in float32, on the CPU.

    Raises:
        NetworkError: if it cannot be traced, does not take such images, gives other than one logit per class, or has
            no ReLU; or if the traced network does not compute what the network computes.
        UsageError: if no network has this name, or there is no activation to exchange.
    """
    counted = make_reference_base(spec) if is_reference(spec.name) else None
    if counted is not None and spec.exchange_activations:
        exchange_activations(counted.network, spec.input)  # has none to exchange, and says so
    if network is None and counted is not None:
        full = copy.deepcopy(counted.network)
        full.load_state_dict(build(spec).state_dict(), assign=True)
        return replace(counted, network=full)
    own = build(spec) if network is None else network
    traced = trace(own)
    if counted is not None and _same_network(counted.network, traced):
        return replace(counted, network=traced)
    notes: list[str] = []
    if not is_traced(own):
        check_trace(own, traced, spec.input)
        notes += _notes(own, traced)
    if any(p.is_floating_point() and p.dtype != torch.float32 for p in traced.parameters()):
        notes.append("the weights are converted to float32")
    traced = traced.cpu().float()
    if spec.exchange_activations:
        traced = exchange_activations(traced, spec.input)
    elif can_exchange(traced):
        notes.append(
            "--exchange-activations puts what runs privately in the place of most activations, gates and norms"
        )
    census = take_census(traced, spec.input)
    check_logits(traced, spec)
    return Base(spec, traced, replace(census, notes=(*census.notes, *notes)), reference=False)


def make_reference_base(spec: NetworkSpec) -> Base:
    """Trace and count a reference network on the `meta` device, without memory for its weights."""
    twin = reference_twin(spec)
    return Base(spec, twin, take_census(twin, spec.input), reference=True)


def reference_twin(spec: NetworkSpec, *, alpha: float = 1.0, rho: float = 1.0) -> fx.GraphModule:
    """Build and trace a reference network without memory for its weights: enough to count, in no time."""
    with torch.device("meta"):
        return trace(build(spec, alpha=alpha, rho=rho))


def _same_network(twin: fx.GraphModule, traced: fx.GraphModule) -> bool:
    """Tell whether a network is the reference network of its name, and not a user's that only has the same name."""
    shapes = [{name: (t.shape, t.dtype) for name, t in network.state_dict().items()} for network in (twin, traced)]
    calls = [[(node.op, str(node.target)) for node in network.graph.nodes] for network in (twin, traced)]
    return shapes[0] == shapes[1] and calls[0] == calls[1]


def _notes(network: nn.Module, traced: fx.GraphModule) -> list[str]:
    """Say what of the user's network is not carried over."""
    used = {name for name, _ in traced.named_parameters(remove_duplicate=False)}
    unused = [name for name, _ in unwrap(network).named_parameters() if name not in used]
    notes = []
    if unused:
        notes.append(
            f"parameters that evaluation does not use are left out: {', '.join(unused[:3])} ({len(unused)} in all)"
        )
    path = training_path(network)
    return [*notes, path] if path else notes


def check_logits(traced: fx.GraphModule, spec: NetworkSpec) -> None:
    """Check that a network gives one logit for each class.

    Raises:
        NetworkError: if it gives anything else.
    """
    with evaluating(traced), torch.no_grad():
        output = traced.forward(example_images(traced, spec.input))  # a call would print what it raises
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (1, spec.classes):
        raise NetworkError(
            problem(
                f"the network must return one logit for each of {spec.classes} classes",
                got=f"shape {shape} for one image",
                remedy="match its last layer to the number of classes, and return the logits alone",
                where=spec.name,
            )
        )
