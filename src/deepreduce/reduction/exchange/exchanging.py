"""ReLUs in place of other activations, so that a network that was made with those can be reduced and run privately.

A leaky or a smooth rectifier does not run privately here, and is no ReLU that could be removed. ReLU is what they all
resemble, and a network learns to use it: the teacher is trained with ReLUs, from the weights that the network has.
What else such networks have and cannot run privately goes with them: gates become constants (`fix_gates`), norms of
single images batch norms (`exchange_norms`). Sigmoids, softmaxes and their like elsewhere stay, since no ReLU can stand
for them.
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import fx, nn

from ...census import argument, check_input
from ...errors import UsageError, problem
from .gates import absorb_constants, fix_gates
from .norms import exchange_norms, has_norms
from .products import find_activations, find_gates

_MODULES = (
    nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Hardswish,
)  # fmt: skip
_FUNCTIONS = {
    F.leaky_relu, F.prelu, F.rrelu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.softplus, F.hardswish,
    torch.prelu, torch.rrelu, torch.celu, torch.selu,
}  # fmt: skip


def exchange_activations(network: fx.GraphModule, input: tuple[int, int, int]) -> fx.GraphModule:
    """Return a copy of a traced network with a ReLU wherever it has another activation that is one but for its shape.

    Activations that are written out, as x * sigmoid(x), are known too. Gates become constants, norms of single images
    batch norms.

    Args:
        network: not changed. The copy keeps the names of its other layers, and loses the weights of PReLUs and gates.
        input: channels, height and width of one image.

    Raises:
        NetworkError: if the network does not take such images.
        UsageError: if there is none of them.
    """
    check_input(network, input)
    before = _attributes(network)
    own, gates = fix_gates(network, input)
    found = gates > 0
    for activation in reversed(find_activations(own)):  # one behind the other: the later one first
        node = activation.node
        with own.graph.inserting_before(node):
            relu = own.graph.call_function(F.relu, (activation.source,))
            relu.meta.update(node.meta)
            if activation.slope != 1:
                relu = own.graph.call_function(operator.mul, (relu, activation.slope))
        node.replace_all_uses_with(relu)
        found = True
    own.graph.eliminate_dead_code()
    for node in list(own.graph.nodes):
        if node.op == "call_module" and type(own.get_submodule(str(node.target))) in _MODULES:
            parent, _, name = str(node.target).rpartition(".")
            setattr(own.get_submodule(parent), name, nn.ReLU())
            found = True
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            with own.graph.inserting_before(node):
                relu = own.graph.call_function(F.relu, (argument(node, 0, "input"),))
            relu.meta.update(node.meta)
            node.replace_all_uses_with(relu)
            own.graph.erase_node(node)
            found = True
    found = exchange_norms(own, input) > 0 or found
    if not found:
        raise UsageError(
            problem(
                "there must be something to exchange",
                got="no activation that resembles a ReLU, no gate of feature maps, no norm of single images",
                remedy="leave it out",
                where="--exchange-activations",
            )
        )
    own.graph.eliminate_dead_code()
    absorb_constants(own)
    called = {str(node.target) for node in own.graph.nodes if node.op == "call_module"}
    modules = dict(own.named_modules())
    for target in before - _attributes(own):  # as of a functional PReLU: nothing else reads it
        parent, _, name = target.rpartition(".")
        if parent in modules and parent not in called:
            delattr(modules[parent], name)
    own.delete_all_unused_submodules()
    own.recompile()
    return own


def can_exchange(network: fx.GraphModule) -> bool:
    """Tell whether a traced network has what `exchange_activations` exchanges; a gate may turn out to stay."""
    modules = {type(network.get_submodule(str(node.target))) for node in network.graph.find_nodes(op="call_module")}
    functions = {node.target for node in network.graph.nodes if node.op == "call_function"}
    if modules.intersection(_MODULES) or functions.intersection(_FUNCTIONS):
        return True
    return bool(has_norms(network) or find_gates(network) or find_activations(network))


def _attributes(network: fx.GraphModule) -> set[str]:
    """Return the paths of the tensors that a graph reads by themselves."""
    return {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
