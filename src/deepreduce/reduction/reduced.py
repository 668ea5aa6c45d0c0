"""From a candidate to its network and its counts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from ..census import Census, take_census, trace
from ..errors import NetworkError, UsageError, near_misses, problem
from ..networks import NetworkSpec, build, is_reference
from .candidate import Candidate
from .removal import remove_relus
from .reshaping import scale_channels, scale_resolution
from .thinning import thinned_layers


@dataclass(frozen=True)
class Base:
    """The full network that candidates are cut from.

    Attributes:
        spec: its name and sizes.
        network: traced, with the weights it was built or trained with.
        census: its ReLUs, MACs and parameters.
    """

    spec: NetworkSpec
    network: fx.GraphModule
    census: Census


def make_base(spec: NetworkSpec, network: nn.Module | None = None) -> Base:
    """Build (unless given), trace and count the full network.

    Raises:
        NetworkError: if it cannot be traced, does not take such images, gives other than one logit per class, or has
            no ReLU.
    """
    traced = trace(build(spec) if network is None else network)
    census = take_census(traced, spec.input)
    _check_logits(traced, spec)
    return Base(spec, traced, census)


def kept_layers(base: Base, candidate: Candidate) -> set[str]:
    """Return the call sites at which a candidate keeps its ReLUs.

    Raises:
        UsageError: if the candidate names a stage or call site that the network lacks.
    """
    stages = {stage.name: stage for stage in base.census.stages}
    for name in candidate.keep:
        if name not in stages:
            raise UsageError(
                problem(
                    "every stage to keep must be a stage of the network",
                    got=f"{name!r}{near_misses(name, list(stages))}",
                    remedy=f"the stages of {base.spec.name} are {', '.join(stages)}",
                    where="keep",
                )
            )
    names = {layer.name for layer in base.census.layers}
    unknown = sorted(set(candidate.drop) - names)
    if unknown:
        raise UsageError(
            problem(
                "every call site to drop must be a ReLU of the network",
                got=f"{unknown[0]!r}{near_misses(unknown[0], sorted(names))}",
                remedy="list the call sites with deepreduce profile --layers",
                where="drop",
            )
        )
    kept: set[str] = set()
    for name in candidate.keep:
        stage = stages[name]
        kept |= set(thinned_layers(stage)) if candidate.thin else {layer.name for layer in stage.layers}
    return kept - set(candidate.drop)


def build_full(base: Base, candidate: Candidate) -> fx.GraphModule:
    """Build the candidate's network at its alpha and rho with all ReLUs still in place.

    Narrow layers hold the weights of the base's strongest channels, the others the base's weights: the warm start.

    Raises:
        NetworkError: if this network cannot be reshaped so.
    """
    network: nn.Module = base.network
    if candidate.alpha != 1:
        network = trace(scale_channels(network, candidate.alpha, base.spec.input))
    if candidate.rho != 1:
        network = scale_resolution(trace(network), candidate.rho)
        if is_reference(base.spec.name):
            network = _with_weights_of(base.spec, candidate, network)
    return trace(network)


def build_fresh(base: Base, candidate: Candidate) -> fx.GraphModule:
    """Build the candidate's network with all ReLUs and freshly drawn weights: no warm start.

    A user's own network draws its weights in its own constructor; modules without `reset_parameters` keep theirs.
    """
    if is_reference(base.spec.name):
        return trace(build(base.spec, alpha=candidate.alpha, rho=candidate.rho))
    network = build_full(base, candidate)
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return network


def census_of(base: Base, candidate: Candidate) -> Census:
    """Count what a candidate keeps; stages carry the names they have in the full network.

    Raises:
        UsageError: if the candidate removes nothing, or names what is not there.
        NetworkError: if this network cannot be reshaped so.
    """
    kept = kept_layers(base, candidate)
    if candidate.alpha == 1 and candidate.rho == 1:
        census = base.census.keeping(kept)
    else:
        stages = {layer.name: stage for stage in base.census.stages for layer in stage.layers}
        census = take_census(build_full(base, candidate), base.spec.input, stages=stages).keeping(kept)
    if census.relus == base.census.relus:
        raise UsageError(
            problem(
                "a candidate must have fewer ReLUs than the full network",
                got=f"{candidate.label}: {census.relus:,} of {base.census.relus:,}",
                remedy="keep fewer stages, thin, or set alpha or rho below 1",
            )
        )
    return census


def removed_layers(base: Base, candidate: Candidate) -> set[str]:
    """Return the call sites at which a candidate removes ReLUs."""
    return {layer.name for layer in base.census.layers} - kept_layers(base, candidate)


def build_candidate(base: Base, candidate: Candidate, *, warm: bool = True, fading: bool = False) -> fx.GraphModule:
    """Build a candidate's network, ready to train.

    Args:
        base: the full network; with `warm` its weights are where the candidate starts.
        candidate: what to keep.
        warm: start from the base's weights; otherwise from fresh ones.
        fading: leave a fading ReLU at every call site that goes, see `FadingReLU`.

    Raises:
        UsageError, NetworkError: as `census_of`.
    """
    full = build_full(base, candidate) if warm else build_fresh(base, candidate)
    return remove_relus(full, removed_layers(base, candidate), fading=fading)


def _with_weights_of(spec: NetworkSpec, candidate: Candidate, scaled: fx.GraphModule) -> fx.GraphModule:
    """Build a reference network at alpha and rho and give it the weights of its scaled twin wherever shapes agree.

    VGG16 at rho < 1 has another number of inputs to its classifier, which only its builder knows.
    """
    network = trace(build(spec, alpha=candidate.alpha, rho=candidate.rho))
    own = network.state_dict()
    taken = {name: value for name, value in scaled.state_dict().items() if name in own and own[name].shape == value.shape}
    network.load_state_dict({**own, **taken})
    return network


def _check_logits(traced: fx.GraphModule, spec: NetworkSpec) -> None:
    import torch
    from torch import Tensor

    was_training = traced.training
    with torch.no_grad():
        output = traced.eval()(torch.zeros(1, *spec.input))
    traced.train(was_training)
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
