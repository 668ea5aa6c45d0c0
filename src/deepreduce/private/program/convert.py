"""From a traced PyTorch network to the graph that a program is made of.

The network runs once on a few blank images; beside every tensor that depends on them stands a graph node. Sizes,
constants and everything else in the user's code are whatever PyTorch computes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ...census import argument, final_softmax, find_relus, masked_relu, trace
from ...census.trace import layer_words, source_line
from ...errors import NetworkError, near_misses, problem
from .calls import Call, Unsupported
from .graph import Affine, Array, Graph, Input, Node
from .movements import NEAREST, SHAPE_FUNCTIONS, SHAPE_METHODS, SHAPE_MODULES, movement
from .operations import RELU, RELU6, Circuit, Gather, Sum
from .operators import FUNCTIONS, METHODS, MODULES, TRACED_MODULES

_BATCH = 3
_EXACT = 2**24  # whole numbers that float32 holds
REMEDY = (
    "use only convolution, linear layers, batch norm, dropout, sums, differences and means, products with constants, "
    "concatenation, average and max pooling, padding with zeros or the map's own elements, reshaping and all else that "
    "moves elements, nearest-neighbour resizing, ReLU and ReLU6; or train with another operator in its place: "
    "--exchange-activations does that for most activations, gates and norms"
)


def convert(network: nn.Module, input: tuple[int, int, int], *, masks: Mapping[str, Any] | None = None) -> Graph:
    """Turn a network into a graph of linear operations and circuits, with float64 weights.

    Args:
        network: any module that torch.fx can trace, in any mode; its evaluation mode is converted. Not changed.
        input: channels, height and width of one image.
        masks: for call sites of ReLUs (see `deepreduce.census.CallSite`), which elements keep theirs: boolean, of the
            shape of the layer's output for one image; the others become the identity. A mask must keep at least one.
            A `MaskedReLU` of the network brings its own, and keeps what both keep; where it has lines, all others
            lie on them.

    Raises:
        NetworkError: if an operator does not convert, with its place in the user's source and the remedy; if the
            output is not one vector of logits; if a mask does not fit.
    """
    traced = without_softmax(trace(network)).cpu().double().eval()
    converter = _Converter(traced, input, dict(masks or {}))
    with torch.no_grad():
        converter.run(torch.zeros(_BATCH, *input, dtype=torch.float64))
    return converter.finish()


def without_softmax(traced: fx.GraphModule) -> fx.GraphModule:
    """Return a network without the softmax over the classes that it may end with: the class is the same without it.

    A softmax costs exponentials, and the largest logit has the largest probability. So what is revealed with
    `--reveal logits` are the logits in front of it.

    Args:
        traced: not changed.
    """
    if final_softmax(traced) is None:
        return traced
    own = copy.deepcopy(traced)
    last = final_softmax(own)
    assert last is not None
    (output,) = own.graph.find_nodes(op="output")
    output.args = (last.args[0] if last.args else next(iter(last.kwargs.values())),)
    own.graph.eliminate_dead_code()
    own.recompile()
    return own


class _Converter(fx.Interpreter):
    """Runs the traced network and builds the graph beside it."""

    def __init__(self, traced: fx.GraphModule, input: tuple[int, int, int], masks: dict[str, Any]) -> None:
        super().__init__(copy.deepcopy(traced), garbage_collect_values=False)
        self.extra_traceback = False  # our errors are complete
        own = self.module
        assert isinstance(own, fx.GraphModule)
        self.traced = own
        self.sites = {site.node: site for site in find_relus(own)}
        self.masks = masks
        self.input = Node(Input(), [], input, "image")
        self.made: dict[fx.Node, Any] = {}
        self.live = _live(own.graph)
        self.answer: Any = None
        names = {site.name for site in self.sites.values()}
        unknown = sorted(set(masks) - names)
        if unknown:
            raise NetworkError(
                problem(
                    "every mask belongs to a ReLU of the network",
                    got=f"{unknown[0]!r}{near_misses(unknown[0], sorted(names))}",
                    remedy="name its call site as the census does",
                )
            )

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and convert it, if what it computes depends on the image."""
        try:
            result = super().run_node(n)
        except Exception as error:  # any operator's own error
            raise self._refuse(
                n, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            ) from error
        if n.op == "placeholder":
            if self.made:
                raise self._refuse(n, "a network with more than one input")
            self.made[n] = self.input
        elif n.op == "output":
            self.answer = self._node_of(n.args[0])
        elif n in self.live and any(before in self.made for before in n.all_input_nodes):
            converted = self._convert(n, result)
            if converted is not None:
                self.made[n] = converted
        return result

    def finish(self) -> Graph:
        """Check what came out."""
        output = self.answer
        if not isinstance(output, Node) or len(output.shape) != 1:
            got = f"an output of shape {output.shape}" if isinstance(output, Node) else f"{type(output).__name__}"
            raise NetworkError(
                problem(
                    "a network to run privately returns one vector of logits per image, and nothing else",
                    got=got,
                    remedy="return the logits alone, flattened to (batch, classes)",
                )
            )
        return Graph(self.input, output)

    def _refuse(self, n: fx.Node, what: str, remedy: str = REMEDY) -> NetworkError:
        place = f"{layer_words(self._name(n))} {source_line(n)}".strip()
        return NetworkError(
            problem("every operator of a network to run privately must convert", got=what, remedy=remedy, where=place)
        )

    def _name(self, n: fx.Node) -> str:
        if n.name in self.sites:
            return self.sites[n.name].name
        if n.op == "call_module":
            return str(n.target)
        stack = n.meta.get("nn_module_stack") or {}
        inner = next(reversed(list(stack.values())), ("", None))[0] if stack else ""
        return f"{inner or 'net'}:{n.name}"

    def _node_of(self, argument: Any) -> Any:
        """Return the graph node that stands beside an argument, or the argument's own value."""
        if isinstance(argument, fx.Node):
            return self.made.get(argument, self.env.get(argument))
        if isinstance(argument, (tuple, list)):
            return type(argument)(self._node_of(each) for each in argument)
        return argument

    def _convert(self, n: fx.Node, result: Any) -> Any:
        if n.name in self.sites:
            return self._relu(n)
        if not _tensors(result):
            return None  # a size or another plain value
        module = self.traced.get_submodule(str(n.target)) if n.op == "call_module" else None
        handler: Callable[[Call], Node] | None = None
        moves = False
        if module is not None:
            if isinstance(module, SHAPE_MODULES) or (isinstance(module, nn.Upsample) and module.mode in NEAREST):
                moves = True
            else:
                handler = TRACED_MODULES.get(type(module).__name__)
                handler = handler or next((made for kind, made in MODULES.items() if isinstance(module, kind)), None)
        elif n.op == "call_method":
            moves, handler = n.target in SHAPE_METHODS, METHODS.get(str(n.target))
        else:
            moves, handler = n.target in SHAPE_FUNCTIONS, FUNCTIONS.get(n.target)
            moves |= n.target is F.interpolate and argument(n, 3, "mode", "nearest") in NEAREST
        call = Call(
            name=self._name(n),
            source=source_line(n),
            args=tuple(self._node_of(each) for each in n.args),
            kwargs={key: self._node_of(each) for key, each in n.kwargs.items()},
            module=module,
            result=result,
        )
        try:
            if moves:
                return self._move(n, call)
            if handler is None:
                raise Unsupported(f"{type(module).__name__ if module is not None else _words(n.target)}")
            return handler(call)
        except Unsupported as reason:
            raise self._refuse(n, str(reason), reason.remedy or REMEDY) from None

    def _move(self, n: fx.Node, call: Call) -> Any:
        """Convert an operation that only moves elements, by running it on the elements' own numbers."""
        source = call.args[0] if call.args else next(iter(call.kwargs.values()))
        if isinstance(source, (tuple, list)):  # one of the parts of a split
            return source[n.args[1]]  # type: ignore[index]
        if not isinstance(source, Node):
            raise Unsupported(f"{_words(n.target)} of something that is not the image's")
        # In float32 as far as it goes: which element is nearest depends on the type of the numbers.
        kind = torch.float32 if _BATCH * source.size < _EXACT else torch.float64
        numbers = torch.arange(1, _BATCH * source.size + 1, dtype=kind).reshape(_BATCH, *source.shape)
        args, kwargs = fx.map_arg(
            (n.args, n.kwargs), lambda each: numbers if self.made.get(each) is source else self.env[each]
        )
        if call.module is not None:
            moved = call.module(*args, **kwargs)
        elif n.op == "call_method":
            moved = getattr(args[0], str(n.target))(*args[1:], **kwargs)
        else:
            assert callable(n.target)
            moved = n.target(*args, **kwargs)
        if isinstance(moved, Tensor):
            return movement(source, moved, _BATCH, call)
        return tuple(
            movement(source, part, _BATCH, replace(call, name=f"{call.name}[{i}]")) for i, part in enumerate(moved)
        )

    def _relu(self, n: fx.Node) -> Node:
        site = self.sites[n.name]
        source = self._node_of(n.args[0] if n.args else next(iter(n.kwargs.values())))
        assert isinstance(source, Node)
        op = Circuit(RELU6 if site.kind == "relu6" else RELU, width=0, dropped=0)
        mask = self.masks.get(site.name)
        own = masked_relu(n, self.traced)
        if own is not None:
            mask = own.mask.numpy() if mask is None else np.logical_and(own.mask.numpy(), mask)
        if mask is not None:
            chosen: Array = np.asarray(mask)
            if chosen.shape != source.shape or chosen.dtype != np.bool_ or not chosen.any():
                raise NetworkError(
                    problem(
                        f"the mask of {site.name} is boolean, of shape {source.shape}, and keeps at least one element",
                        got=f"{chosen.dtype} of shape {chosen.shape}, keeping {int(np.count_nonzero(chosen))}",
                        remedy="remove the whole ReLU layer instead of masking all of it",
                        where=site.source,
                    )
                )
            if not chosen.all():
                op = replace(op, kept=np.flatnonzero(chosen).astype(np.int32))
        relu = Node(op, [source], source.shape, site.name, site.source)
        if own is None or own.line is None or op.kept is None:
            return relu
        slope, intercept = own.line.detach().double().numpy().reshape(2, -1, *[1] * (len(source.shape) - 1))
        return _on_lines(relu, slope, intercept)


def _on_lines(relu: Node, slope: Array, intercept: Array) -> Node:
    """Return a masked ReLU layer whose other elements lie on lines, from one whose other elements are as they were.

    Args:
        relu: the masked layer.
        slope: by channel, broadcastable to the layer's shape.
        intercept: likewise.
    """
    assert isinstance(relu.op, Circuit) and relu.op.kept is not None
    stays = np.zeros(relu.size, dtype=np.bool_)
    stays[relu.op.kept] = True
    line = Node(Affine(), [relu], relu.shape, f"{relu.name}:line", relu.source, slope, intercept)
    parts = [
        Node(_chosen(own), [source], relu.shape, f"{relu.name}:{name}", relu.source)
        for own, source, name in ((stays, relu, "kept"), (~stays, line, "removed"))
    ]
    return Node(Sum((0, 0), (1, 1)), parts, relu.shape, f"{relu.name}:both", relu.source)


def _chosen(own: NDArray[np.bool_]) -> Gather:
    """Return what leaves some elements where they are, and puts zeros for the others."""
    return Gather(np.where(own, np.arange(own.size), -1).astype(np.int32))


def _live(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that the output needs."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or any(user in live for user in node.users):
            live.add(node)
    return live


def _tensors(result: Any) -> bool:
    if isinstance(result, (tuple, list)) and not isinstance(result, torch.Size):
        return any(isinstance(each, Tensor) for each in result)
    return isinstance(result, Tensor)


def _words(target: Any) -> str:
    return str(target) if isinstance(target, str) else getattr(target, "__name__", str(target))
