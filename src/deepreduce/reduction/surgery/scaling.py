"""Scaling a network: fewer channels (alpha), smaller feature maps (rho), and fewer channels in some layers (beta).

Reference networks take alpha and rho when they are built. Any other network is scaled afterwards: its channels by
the dependency graph of torch-pruning, its resolution by the stride of its first convolution. Narrowing takes channels
only from the layers that keep their ReLUs, and is done in the same way for every network.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...census import example_images, failing_place, image_nodes, live_nodes, source_line, trace
from ...errors import DeepReduceError, NetworkError, problem
from .flattening import as_convolutions, numbers_of
from .nonlinearity import by_nonlinearity
from .removal import relu_nodes

_SCALABLE = (nn.modules.conv._ConvNd, nn.Linear)
_LARGEST_GROUP = 4096
"""How many layers may depend on each other; in DenseNet, HRNet and ResNet152 it is 182 at most."""

_MOST_INDICES = 1 << 17
"""How many channels one of them may have there, in a network without larger layers."""

_ONE_AT_A_TIME = threading.RLock()


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
    own = _without_unread(trace(network).eval())
    classifier = _outermost(own, from_output=True)
    layers = [module for module in own.modules() if isinstance(module, _SCALABLE) and module not in classifier]
    with _with_gradients(own):
        _pruned(own, dict.fromkeys(layers, alpha), f"scaling by alpha {alpha:g}", input)
    return own.train(network.training)


def narrow_channels(
    network: fx.GraphModule, betas: Mapping[str, float], input: tuple[int, int, int]
) -> tuple[fx.GraphModule, dict[str, list[int]]]:
    """Return a copy of a traced network in which some ReLU layers have a part of their channels.

    The layers before such a ReLU become narrow; every other layer keeps its width. Where channels are tied to those of
    other layers, by an addition or a depthwise convolution, all of them are narrowed alike. So in a residual block
    whose ReLU lies between two convolutions only the block becomes narrow, and what goes around it stays wide.

    The channels whose ReLUs are least linear stay, see `by_nonlinearity`, with their weights; without batch norm those
    of largest weight norm; on the `meta` device, where no weight is known, the first ones, which makes a network of the
    same shapes.

    Args:
        network: traced, with all its ReLUs; not changed.
        betas: by call site, in (0, 1]: the layers before that ReLU keep int(beta * channels), at least one. Where
            layers are tied the smallest counts.
        input: channels, height and width of one image.

    Returns:
        The copy, and by name of its layers, where they read fewer channels than they did, which of them.

    Raises:
        NetworkError: if a call site does not exist, the dependency graph cannot be built, the network cannot run when
            it is narrowed, or nothing could be narrowed.
    """
    own = _without_unread(copy.deepcopy(network).eval())
    nodes = relu_nodes(own, betas)
    wanted: dict[nn.Module, float] = {}
    for name, node in nodes.items():
        for module in _writers(own, node):
            wanted[module] = min(betas[name], wanted.get(module, 1.0))
    what = f"narrowing by beta {', '.join(f'{beta:g}' for beta in dict.fromkeys(betas.values()))}"
    with _with_gradients(own):
        with _refusing(what, own, input), _within_bounds(own):
            tied = _tied(own, wanted, _outermost(own, from_output=True), input)
        read = _pruned(own, tied, what, input, by_nonlinearity)
    names = {module: name for name, module in own.named_modules()}
    return own.train(network.training), {names[module]: channels for module, channels in read.items()}


def _without_unread(own: fx.GraphModule) -> fx.GraphModule:
    """Take the layers with weights out of a network, in place, whose results it never reads, and return it.

    torch-pruning sees none of them: they would not fit behind what becomes narrow.
    """
    live = live_nodes(own.graph)
    for node in reversed(list(own.graph.find_nodes(op="call_module"))):
        inputs, weights = node.all_input_nodes, list(own.get_submodule(str(node.target)).parameters())
        if node not in live and len(inputs) == 1 and weights:
            node.replace_all_uses_with(inputs[0])
            own.graph.erase_node(node)
    own.recompile()
    return own


def _writers(network: fx.GraphModule, node: fx.Node) -> set[nn.Module]:
    """Return the layers with weights whose channels a node reads, straight or through what keeps channels apart."""
    found: set[nn.Module] = set()
    ends, seen = list(node.all_input_nodes), set()
    while ends:
        end = ends.pop()
        if end in seen:
            continue
        seen.add(end)
        module = network.get_submodule(str(end.target)) if end.op == "call_module" else None
        if isinstance(module, _SCALABLE):
            found.add(module)
        else:
            ends.extend(end.all_input_nodes)
    return found


def _tied(
    network: fx.GraphModule, shares: Mapping[nn.Module, float], fixed: list[nn.Module], input: tuple[int, int, int]
) -> dict[nn.Module, float]:
    """Return the shares of layers and of those whose output channels are tied to theirs."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph()
    images = example_images(network, input, count=2)
    found: dict[nn.Module, float] = {}
    with as_convolutions(network, images) as stand_ins:
        layers: dict[nn.Module, nn.Module] = {stand_in: layer for layer, stand_in in stand_ins.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.build_dependency(network, example_inputs=images)
        ignored = [stand_ins.get(layer, layer) for layer in fixed]
        for group in graph.get_all_groups(ignored_layers=ignored, root_module_types=_SCALABLE):
            modules = [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
            members = [layers.get(module, module) for module in modules if isinstance(module, _SCALABLE)]
            asked = [shares[member] for member in members if member in shares]
            if asked:
                found.update(dict.fromkeys(members, min(asked)))
    return found


def _pruned(
    own: fx.GraphModule,
    shares: Mapping[nn.Module, float],
    what: str,
    input: tuple[int, int, int],
    rank: Callable[[Any, Any], Tensor | None] = lambda graph, group: None,
) -> dict[nn.Module, list[int]]:
    """Take channels from layers of a network, in place: each keeps its share.

    Args:
        own: the network.
        shares: by layer.
        what: for messages.
        input: channels, height and width of one image.
        rank: gives a number for each channel of a group of layers, of which the largest stay; None leaves it to the
            norm of their weights.

    Returns:
        By layer, where it reads fewer channels than it did, which of them.

    Raises:
        NetworkError: if that cannot be done, or changes nothing.
    """
    import torch_pruning

    on_meta = any(parameter.is_meta for parameter in own.parameters())
    norm = torch_pruning.importance.GroupMagnitudeImportance(p=2)

    def importance(group: Any) -> Tensor:
        ranks = _first_channels(group) if on_meta else rank(pruner.DG, group)
        return norm(group) if ranks is None else ranks

    before = sum(parameter.numel() for parameter in own.parameters())
    images = example_images(own, input, count=2)
    read: dict[nn.Module, list[int]] = {}
    with _refusing(what, own, input), _within_bounds(own), torch.no_grad():
        outputs = own.forward(images)  # a call of what is traced would print what it raises
        with as_convolutions(own, images) as stand_ins, torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch-pruning tells of parameters outside modules; the run below judges
            ratios = {stand_ins.get(layer, layer): 1 - _share(layer, share) for layer, share in shares.items()}
            pruner = torch_pruning.pruner.MagnitudePruner(
                own,
                example_inputs=images,
                forward_fn=lambda model, batch: model.forward(batch),
                importance=importance,
                pruning_ratio=0.0,
                pruning_ratio_dict=ratios,
                ignored_layers=_outermost(own, from_output=True),
            )
            for group in pruner.step(interactive=True):
                for dependency, lost in group:
                    if pruner.DG.is_in_channel_pruning_fn(dependency.handler):
                        _forget(read, dependency.target.module, set(lost))
                group.prune()
        for layer, stand_in in stand_ins.items():
            if stand_in in read:
                read[layer] = numbers_of(stand_in, read.pop(stand_in))
        got = own.forward(images)
        if got.shape != outputs.shape:
            raise ValueError(f"the output came out as {tuple(got.shape)} instead of {tuple(outputs.shape)}")
    after = sum(parameter.numel() for parameter in own.parameters())
    if after == before and (not shares or min(shares.values()) < 1):
        raise NetworkError(
            problem(
                f"{what} must remove channels",
                got="no layer could be made narrower",
                remedy="leave it at 1",
            )
        )
    return read


def _forget(read: dict[nn.Module, list[int]], layer: nn.Module, lost: set[int]) -> None:
    """Note that a layer reads some channels no more, counted as it reads them now."""
    if isinstance(layer, _SCALABLE):
        known = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        channels = read.get(layer) or list(range(int(known)))
        read[layer] = [channel for place, channel in enumerate(channels) if place not in lost]


def _first_channels(group: Any) -> Tensor:
    """Rank the channels of a group of layers by their number, the first highest."""
    return torch.arange(len(group[0].idxs), 0, -1, device="cpu")


@contextlib.contextmanager
def _with_gradients(own: fx.GraphModule) -> Iterator[None]:
    """Let every weight have gradients for a while: torch-pruning follows them from layer to layer."""
    frozen = {name for name, parameter in own.named_parameters() if not parameter.requires_grad}
    try:
        for parameter in own.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        yield
    finally:
        for name, parameter in own.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)


@contextlib.contextmanager
def _within_bounds(own: nn.Module) -> Iterator[None]:
    """Let torch-pruning give up a group of layers that grows without end.

    Where channels are mixed as numbers are, by a one-dimensional convolution over them or by slices that overlap, it
    follows ever new sets of indices.
    """
    from torch_pruning.dependency.group import Group

    widest = max((sum(layer.weight.shape[:2]) for layer in own.modules() if isinstance(layer, _SCALABLE)), default=0)
    most = max(_MOST_INDICES, 2 * widest)

    def add_within_bounds(self: Any, dep: Any, idxs: Any) -> None:
        if len(self) > _LARGEST_GROUP or len(idxs) > most:
            raise ValueError("its channels depend on each other without end")
        add(self, dep, idxs)

    with _ONE_AT_A_TIME:
        add = Group.add_dep
        Group.add_dep = add_within_bounds
        try:
            yield
        finally:
            Group.add_dep = add


@contextlib.contextmanager
def _refusing(what: str, network: fx.GraphModule, input: tuple[int, int, int]) -> Iterator[None]:
    """Turn what torch-pruning and a user's forward raise, which is of any type, into our own error.

    Its place is the first layer that what is left of the network cannot run.
    """
    try:
        yield
    except DeepReduceError:
        raise
    except Exception as error:
        raise NetworkError(
            problem(
                "the channels of the network must be scalable",
                got=f"{what}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
                remedy="leave it at 1, replace channel counts that are fixed in forward, or use a method that scales "
                "nothing, such as deepreduce-masks",
                where=failing_place(network, input),
            )
        ) from error


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
                where=", ".join(filter(None, dict.fromkeys(map(source_line, calls)))) or None,
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
