"""ReLUs in place of other activations, so that a network that was made with those can be reduced and run privately.

A leaky or a smooth rectifier has no circuit here, and is no ReLU that could be removed. ReLU is what all of them
resemble, and a network learns to use it: the teacher is trained with ReLUs, from the weights that the network has.
Gates become constants, see `deepreduce.reduction.fix_gates`. Sigmoids, softmaxes and their like elsewhere stay, since
no ReLU can stand for them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import fx, nn

from ..census import argument
from ..errors import UsageError, problem
from .gates import fix_gates
from .products import find_products, scaled_by_numbers

_MODULES = (
    nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Hardswish,
)  # fmt: skip
_FUNCTIONS = {
    F.leaky_relu, F.prelu, F.rrelu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.softplus, F.hardswish,
    torch.prelu, torch.rrelu, torch.celu, torch.selu,
}  # fmt: skip


def exchange_activations(network: fx.GraphModule, input: tuple[int, int, int]) -> fx.GraphModule:
    """Return a copy of a traced network with a ReLU wherever it has another activation that is one but for its shape.

    Activations that are written out, as x * sigmoid(x), are known too. Gates become constants.

    Args:
        network: not changed. The copy keeps the names of its layers, and loses the weights of PReLUs and of gates.
        input: channels, height and width of one image.

    Raises:
        UsageError: if there is no such activation, and no gate.
    """
    own, gates = fix_gates(network, input)
    found, weights = gates > 0, set[str]()
    for product in find_products(own):
        if product.source is not None:
            node = scaled_by_numbers(product.node)
            with own.graph.inserting_before(node):
                relu = own.graph.call_function(F.relu, (product.source,))
            relu.meta.update(product.node.meta)
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
            weights |= {str(above.target) for above in node.all_input_nodes if above.op == "get_attr"}
            node.replace_all_uses_with(relu)
            own.graph.erase_node(node)
            found = True
    if not found:
        raise UsageError(
            problem(
                "there must be an activation to exchange for ReLU, or a gate to exchange for a constant",
                got="none that resembles a ReLU, such as LeakyReLU, GELU or SiLU, and no product with a sigmoid",
                remedy="leave it out",
                where="--exchange-activations",
            )
        )
    own.graph.eliminate_dead_code()
    for target in weights - {str(node.target) for node in own.graph.nodes if node.op == "get_attr"}:
        parent, _, name = target.rpartition(".")  # of a functional PReLU: nothing else reads it
        delattr(own.get_submodule(parent), name)
    own.delete_all_unused_submodules()
    own.recompile()
    return own
