"""From a candidate to its network and its counts."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import fx

from ..census import Census, ReluLayer, find_relus, take_census, trace
from ..errors import NetworkError, UsageError, near_misses, problem
from ..networks import NetworkSpec, build
from .base import Base, check_logits, reference_twin
from .candidate import Candidate, thinned_layers
from .surgery import (
    add_bypasses,
    average_pools,
    collapse,
    first_lines,
    has_max_pooling,
    head_of,
    line_sites,
    narrow_channels,
    nodes_before,
    remove_relus,
    scale_channels,
    scale_resolution,
    trim_maps,
)


def kept_layers(base: Base, candidate: Candidate) -> set[str]:
    """Return the call sites at which a candidate keeps its ReLUs.

    Raises:
        UsageError: if the candidate names a stage or call site that the network lacks, or thinning has no effect.
    """
    stages = {stage.name: stage for stage in base.census.stages}
    for name in candidate.keep:
        if name not in stages:
            raise UsageError(
                problem(
                    "every stage to keep must be a stage of the network",
                    got=f"{name!r}{near_misses(name, list(stages))}",
                    remedy=f"the stages of {base.spec.name} are {', '.join(stages)}",
                    where="--keep",
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
    kept = {layer.name for name in candidate.keep for layer in stages[name].layers}
    if candidate.thin and candidate.keep:
        thinned = {layer for name in candidate.keep for layer in thinned_layers(stages[name])}
        if thinned == kept:
            raise UsageError(
                problem(
                    "thinning must remove ReLU layers",
                    got=f"{', '.join(candidate.keep)} with one ReLU layer each",
                    remedy="leave out thinning, or keep a stage with more layers",
                    where="--thin",
                )
            )
        kept = thinned
    kept -= set(candidate.drop)
    _check_masks(base, candidate, kept)
    return kept


def _check_masks(base: Base, candidate: Candidate, kept: set[str]) -> None:
    if candidate.masks is None:
        return
    shapes = {layer.name: layer.shape for layer in scaled_census(base, candidate).layers if layer.name in kept}
    for mask in candidate.masks.layers:
        if shapes.get(mask.name) != mask.shape:
            got = f"shape {mask.shape} where {shapes[mask.name]} belongs" if mask.name in shapes else "none is kept"
            raise UsageError(
                problem(
                    "every mask must be of a ReLU layer that the candidate keeps, and of its shape",
                    got=f"{mask.name!r}: {got}",
                    remedy="use the masks with the network that they were found for",
                    where="masks",
                )
            )


def build_full(base: Base, candidate: Candidate) -> fx.GraphModule:
    """Build the candidate's network with its scales and its pooling, and all ReLUs still in place.

    Narrow layers hold the weights of the base's strongest channels, the others the base's weights: the warm start.

    Raises:
        NetworkError: if this network cannot be reshaped so.
    """
    network = base.network
    if candidate.alpha != 1:
        network = scale_channels(network, candidate.alpha, base.spec.input)
    if candidate.rho != 1:
        network = scale_resolution(network, candidate.rho)
        if base.reference:
            network = _with_weights_of(base.spec, candidate, network)
        else:
            _check_resolution(network, base.spec, candidate.rho)
    network = _altered(network, base, candidate)
    return trace(network) if network is base.network else network


def build_fresh(base: Base, candidate: Candidate) -> fx.GraphModule:
    """Build the candidate's network with all ReLUs and freshly drawn weights: no warm start.

    A user's own network draws its weights in its own constructor; modules without `reset_parameters` keep theirs.

    Raises:
        NetworkError: if this network cannot be reshaped so.
    """
    if base.reference:
        return _altered(trace(build(base.spec, alpha=candidate.alpha, rho=candidate.rho)), base, candidate)
    network = copy.deepcopy(base.network)
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return build_full(replace(base, network=network), candidate)


def _altered(network: fx.GraphModule, base: Base, candidate: Candidate) -> fx.GraphModule:
    """Return a network of the base's call sites with the candidate's pooling, beta, bypass and trim."""
    if candidate.average_pooling:
        network = average_pools(network)
    if not (candidate.beta or candidate.bypass or candidate.trim):
        return network
    wide, read = network, dict[str, list[int]]()
    stages, kept = base.census.stage_of(), sorted(kept_layers(base, candidate))
    if candidate.beta:
        beta = dict(zip(candidate.keep, candidate.beta, strict=True))
        network, read = narrow_channels(network, {name: beta[stages[name]] for name in kept}, base.spec.input)
    if candidate.bypass:
        around = [layer.name for layer in base.census.layers if layer.name in kept and layer.has_skip]
        network = add_bypasses(network, wide, around, base.spec.input, read=read)
    if candidate.trim:
        trim = dict(zip(candidate.keep, candidate.trim, strict=True))
        with_skip = {stages[layer.name] for layer in base.census.layers if layer.name in kept and layer.has_skip}
        useless = [name for name, size in trim.items() if size > 0 and name not in with_skip]
        if useless:
            raise NetworkError(
                problem(
                    "trimming needs a ReLU with a way around it, as in a residual block",
                    got=f"none that stays in {', '.join(useless)}",
                    remedy="leave trim at 0 for these stages",
                    where=base.spec.name,
                )
            )
        network = trim_maps(network, {name: trim[stages[name]] for name in kept}, base.spec.input)
    return network


def census_of(base: Base, candidate: Candidate) -> Census:
    """Count what a candidate keeps; stages carry the names they have in the full network.

    Counts are remembered by scales, because a search asks for the same scales again and again.

    Raises:
        UsageError: if the candidate removes nothing, a step of it has no effect, or it names what is not there.
        NetworkError: if this network cannot be reshaped so.
    """
    kept = kept_layers(base, candidate)
    scaled = scaled_census(base, candidate)
    census = scaled.keeping(kept, {} if candidate.masks is None else candidate.masks.counts())
    if candidate.average_pooling and not has_max_pooling(base.network):
        raise UsageError(
            problem(
                "average pooling takes the place of max pooling",
                got="no max pooling that it could replace",
                remedy="leave it out",
                where="--average-pooling",
            )
        )
    if census.relus == base.census.relus and not candidate.average_pooling:
        raise UsageError(
            problem(
                "a candidate must have fewer ReLUs than the full network",
                got=f"{candidate.label}: {census.relus:,} of {base.census.relus:,}",
                remedy="keep fewer stages, thin, trim, or set alpha, beta or rho below 1",
            )
        )
    before = base.census.keeping(kept).relus
    reshaped = not replace(candidate, bypass=False, collapse=False).is_unscaled
    if reshaped and scaled.keeping(kept).relus == before > 0:
        raise UsageError(
            problem(
                "reshaping must remove ReLUs",
                got=f"{candidate.label}: {before:,} before and after",
                remedy="leave alpha, beta and rho at 1, and trim at 0, for these stages",
            )
        )
    return census if candidate.masks is None or not candidate.masks.lines else _with_lines(census, base, candidate)


def _with_lines(census: Census, base: Base, candidate: Candidate) -> Census:
    """Count the parameters of the lines, too: two for each channel of the layers that have them."""
    sites = line_sites(base.network)
    masked = () if candidate.masks is None else candidate.masks.layers
    more = {layer.name: 2 * layer.shape[0] for layer in masked if layer.name in sites}

    def counted(layer: ReluLayer) -> ReluLayer:
        return replace(layer, params=layer.params + more.get(layer.name, 0))

    stages = (replace(stage, layers=tuple(map(counted, stage.layers))) for stage in census.stages)
    return replace(census, stages=tuple(stages))


def scaled_census(base: Base, candidate: Candidate) -> Census:
    """Count a candidate's network with all its ReLUs; that of the base itself where nothing but ReLUs changes.

    Raises:
        NetworkError: if this network cannot be reshaped so.
    """
    if candidate.is_unscaled and not candidate.average_pooling:
        return base.census
    kept: tuple[object, ...] = ()
    if candidate.depends_on_kept:
        kept = candidate.keep, frozenset(kept_layers(base, candidate))
    scale = *candidate.scales, candidate.average_pooling, *kept
    if scale not in base._scaled:
        try:
            base._scaled[scale] = (_count_collapsed if candidate.collapse else _count_scaled)(base, candidate)
        except NetworkError as error:  # to be found again takes seconds
            base._scaled[scale] = error
    found = base._scaled[scale]
    if isinstance(found, NetworkError):
        raise NetworkError(str(found))
    return found


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
    return cut(full, base, candidate, fading=fading)


def cut(full: fx.GraphModule, base: Base, candidate: Candidate, *, fading: bool = False) -> fx.GraphModule:
    """Return a copy of a candidate's network without the ReLUs that it removes; see `build_candidate`.

    Where it is collapsed, the ReLUs in what becomes one convolution go at once.
    """
    masks = {} if candidate.masks is None else candidate.masks.arrays()
    lines = first_lines(full, masks) if candidate.masks is not None and candidate.masks.lines else {}
    removed = removed_layers(base, candidate)
    head = _head(full, base, candidate)
    if head is None:
        return remove_relus(full, removed, masks=masks, fading=fading, lines=lines)
    node, inside = head
    return collapse(remove_relus(full, removed, masks=masks, fading=fading, at_once=inside), node, base.spec.input)


def _head(full: fx.GraphModule, base: Base, candidate: Candidate) -> tuple[str, set[str]] | None:
    """Return the last node of what is collapsed, and the call sites before it; None where nothing is."""
    if not candidate.collapse:
        return None
    shapes = remove_relus(full, removed_layers(base, candidate)).to("meta")
    node = head_of(shapes, base.spec.input)
    if node is None:
        return None
    inside = nodes_before(full, node.name)
    return node.name, {site.name for site in find_relus(full) if site.node in inside}


def _count_scaled(base: Base, candidate: Candidate) -> Census:
    """Count the network with the candidate's scales and pooling."""
    stages = {layer.name: stage for stage in base.census.stages for layer in stage.layers}
    return take_census(_to_count(base, candidate), base.spec.input, stages=stages)


def _count_collapsed(base: Base, candidate: Candidate) -> Census:
    """Count the network as it is before, without the cost of what is collapsed, and with that of the convolution.

    The layers in it stay listed; the convolution counts to the first layer behind it.
    """
    counted = scaled_census(base, replace(candidate, collapse=False))
    full = _to_count(base, candidate)
    head = _head(full, base, candidate)
    if head is None:
        return counted
    whole = take_census(cut(full, base, candidate), base.spec.input)
    first = next(site.name for site in find_relus(full) if site.name not in head[1])
    others = [layer for layer in counted.layers if layer.name not in head[1] and layer.name != first]
    rest = whole.macs - sum(layer.macs for layer in others), whole.params - sum(layer.params for layer in others)

    def cost(layer: ReluLayer) -> ReluLayer:
        macs, params = rest if layer.name == first else (0, 0)
        return layer if layer in others else replace(layer, macs=macs, params=params)

    stages = tuple(replace(stage, layers=tuple(map(cost, stage.layers))) for stage in counted.stages)
    return replace(counted, stages=stages)


def _to_count(base: Base, candidate: Candidate) -> fx.GraphModule:
    """Build a candidate's network with all its ReLUs; that of a reference network without memory for its weights."""
    if not base.reference:
        return build_full(base, candidate)
    return _altered(reference_twin(base.spec, alpha=candidate.alpha, rho=candidate.rho), base, candidate)


def _with_weights_of(spec: NetworkSpec, candidate: Candidate, scaled: fx.GraphModule) -> fx.GraphModule:
    """Build a reference network at alpha and rho and give it the weights of its scaled twin wherever shapes agree.

    VGG16 at rho < 1 has another number of inputs to its classifier, which only its builder knows.
    """
    network = trace(build(spec, alpha=candidate.alpha, rho=candidate.rho))
    own = network.state_dict()
    taken = {
        name: value for name, value in scaled.state_dict().items() if name in own and own[name].shape == value.shape
    }
    network.load_state_dict({**own, **taken})
    return network


def _check_resolution(network: fx.GraphModule, spec: NetworkSpec, rho: float) -> None:
    try:
        check_logits(network, spec)
    except Exception as error:  # any operator's own error
        raise NetworkError(
            problem(
                f"the network must run with its resolution scaled by {rho:g}",
                got=f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}",
                remedy="leave rho at 1, or end the network with global average pooling",
                where=spec.name,
            )
        ) from error
