"""From a module to a graph in which every operation is a node, with the user's source line beside it."""

from __future__ import annotations

import contextlib
import copy
import operator
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedParameter

from ..errors import NetworkError, problem
from ._canonical import canonicalise
from ._graph import is_live, live_nodes

_OURS = "deepreduce.traced"
_TRANSIENT = "deepreduce.transient"


class _Proxy(fx.Proxy):
    """fx's proxy, which also sees `x += y` as what it is: it writes into x, whoever else holds it."""


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, object], fx.Proxy]:
    def call(self: fx.Proxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return call


for _function in (operator.iadd, operator.isub, operator.imul, operator.itruediv):
    setattr(_Proxy, f"__{_function.__name__}__", _in_place(_function))


class _Tracer(fx.Tracer):
    """fx's tracer, which also notes the source line of every call and whose leaves are all layers of PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.record_stack_traces = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wrap a node."""
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Stop at layers of PyTorch, and at a user's subclass of one that keeps its forward."""
        inherited = (
            type(m).forward.__module__.startswith("torch.nn.modules.") and type(m).forward is not nn.Module.forward
        )
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        return (super().is_leaf_module(m, module_qualified_name) or inherited) and not isinstance(m, containers)


def trace(module: nn.Module) -> fx.GraphModule:
    """Trace a network into a graph module of its own, which shares nothing with the original.

    The graph follows the evaluation branch of the user's code; batch norm and dropout in it obey `train()` and
    `eval()` as before. Operations in place become out-of-place ones, with the same result, so that each ReLU can be
    removed without touching its neighbours. The names of the state dictionary stay; what evaluation does not use is
    not in it.

    Args:
        module: the user's network; not changed. `torch.compile` and `DataParallel` wrappers are taken off. A network
            that this function traced before is copied.

    Raises:
        NetworkError: if the control flow depends on the data, with the line of the user's source, or if the network
            holds a scripted module.
    """
    module = unwrap(module)
    if is_traced(module):
        return copy.deepcopy(module)
    _refuse_unready(module)
    try:
        own = copy.deepcopy(module).eval()
        graph = _Tracer().trace(own)
    except Exception as error:  # fx raises many types, and the user's code any other
        raise NetworkError(
            problem(
                "the network must be traceable by torch.fx: no branch or loop may depend on the values of a tensor, or "
                "its shape",
                got=f"{type(error).__name__}: {_first_line(error)}",
                remedy="move that branch out of forward, or make it depend on the configuration alone",
                where=_user_line(error),
            )
        ) from error
    canonicalise(own, graph)
    traced = fx.GraphModule(own, graph, class_name=type(module).__name__)
    stored = set(module.state_dict())
    traced.meta[_OURS] = True
    traced.meta[_TRANSIENT] = [name for name, _ in traced.named_buffers() if name not in stored]
    _forget_transient(traced)
    traced._register_deepcopy_hook(_forget_transient)
    return traced.train(module.training)


def is_traced(module: nn.Module) -> TypeGuard[fx.GraphModule]:
    """Tell whether `trace` made this network."""
    return isinstance(module, fx.GraphModule) and bool(module.meta.get(_OURS))


def unwrap(module: nn.Module) -> nn.Module:
    """Return the user's own module from inside `torch.compile`, `DataParallel` and `DistributedDataParallel`."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def check_trace(module: nn.Module, traced: fx.GraphModule, input: tuple[int, int, int]) -> None:
    """Prove on two random images that a traced network computes what the user's network computes in evaluation mode.

    Args:
        module: the user's network; not changed.
        traced: what `trace` made of it.
        input: channels, height and width of one image.

    Raises:
        NetworkError: if the outputs differ, naming the operations in place, the usual cause; if they differ from one
            run to the next; or if the weights have no memory (the `meta` device).
    """
    if any(parameter.is_meta for parameter in traced.parameters()):
        raise NetworkError(
            problem(
                "a network to reduce must have its weights in memory",
                got="weights on the meta device",
                remedy="load the weights first",
                where=type(module).__name__,
            )
        )
    own, ours = copy.deepcopy(unwrap(module)).eval(), copy.deepcopy(traced).eval()
    images = example_images(own, input, count=2)
    images = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    try:
        with torch.no_grad():
            # A call of what is traced would print a traceback of its own where it fails.
            expected, again, got = (run(images.clone()) for run in (own, own, ours.forward))
    except Exception:  # it does not take such images at all: the census says where and why
        return
    if not all(isinstance(output, Tensor) for output in (expected, again, got)):
        return
    if not _close(again, expected):
        raise NetworkError(
            problem(
                "the network must give the same outputs twice in evaluation mode",
                got="other outputs the second time",
                remedy="let dropout and noise depend on self.training",
                where=type(module).__name__,
            )
        )
    if not _close(got, expected):
        suspects = [f"{node.name} ({source_line(node)})" for node in ours.graph.nodes if "_in_place" in node.meta]
        raise NetworkError(
            problem(
                "the traced network must give the outputs of the network itself",
                got="other outputs; usually of an operation in place on part of a tensor that is read later",
                remedy="write it out of place",
                where=", ".join(suspects) or type(module).__name__,
            )
        )


def training_path(module: nn.Module) -> str:
    """Say where a network does something else in training than in evaluation, batch norm and dropout aside.

    Returns:
        A note, or an empty string if it takes the same path.
    """
    module = unwrap(module)
    try:
        paths = []
        for training in (False, True):
            own = copy.deepcopy(module).train(training)
            graph = _Tracer().trace(own)
            live = live_nodes(graph)
            paths.append([node for node in graph.nodes if is_live(node, live)])
    except Exception as error:  # the training branch may do anything
        return f"the path of training cannot be traced, so the path of evaluation is trained ({_first_line(error)})"
    for one, other in zip(*paths, strict=False):
        if (one.op, str(one.target)) != (other.op, str(other.target)):
            place = source_line(other) or other.name
            return f"training takes another path from {place} on; the path of evaluation is trained"
    if len(paths[0]) != len(paths[1]):
        return "training takes a longer or shorter path; the path of evaluation is trained"
    return ""


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Have a network in evaluation mode for a while; every module of it then has the mode again that it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def example_images(network: nn.Module, input: tuple[int, int, int], *, count: int = 1) -> Tensor:
    """Return black images of the type and on the device of a network's parameters: `[count, *input]`."""
    parameter = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(0))
    return torch.zeros(count, *input, dtype=parameter.dtype, device=parameter.device)


def source_line(node: fx.Node) -> str:
    """Return `file.py:line` of the user's source that made the call, or an empty string if it is not known."""
    frames = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File ")]
    for frame in reversed(frames):
        parts = frame.split('"')
        if len(parts) < 3 or not _is_users(parts[1]):
            continue
        line = parts[2].split(",")[1].replace("line", "").strip()
        return f"{Path(parts[1]).name}:{line}"
    return ""


def layer_words(name: str) -> str:
    """Return the path of a layer as an error names it: `layer features.3` where its last part is a number alone."""
    return f"layer {name}" if name.rpartition(".")[2].isdigit() else name


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True)


def _forget_transient(traced: fx.GraphModule) -> None:
    """Keep buffers out of the state dictionary that are not in the user's; fx makes every tensor a stored one."""
    for name in traced.meta.get(_TRANSIENT, ()):
        path, _, field = name.rpartition(".")
        traced.get_submodule(path)._non_persistent_buffers_set.add(field)


def _refuse_unready(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise NetworkError(
                problem(
                    "every weight of the network must have its size",
                    got="a lazy module that has seen no image yet",
                    remedy="run one image through the network first",
                    where=name,
                )
            )
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise NetworkError(
                problem(
                    "a network is made of ordinary modules",
                    got="a scripted module, whose ReLUs cannot be seen or removed",
                    remedy="use the module that was given to torch.jit.script or torch.jit.trace",
                    where=name or type(module).__name__,
                )
            )


def _is_users(file: str) -> bool:
    path = Path(file)
    return Path(torch.__file__).parent not in path.parents and path.parent != Path(__file__).parent


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def _user_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if _is_users(frame.filename)), None)
    if last is None:
        return "the network itself"
    return f"{last.filename}, line {last.lineno}" + (f" ({last.line})" if last.line else "")
