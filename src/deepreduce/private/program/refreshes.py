"""Places where a ring can be refreshed, and the change to the graph that does it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from .graph import Graph, Node
from .operations import RESCALE, Circuit, Concatenate, Convolution, Matrix, Sum, SumPool, Truncation

TRUNCATION = "truncation"
"""The kind of refresh beside the circuit `RESCALE`."""


def candidates(graph: Graph) -> Iterable[Refresh]:
    """Return the possible refreshes: behind layers and sums, and at masked ReLU layers whose rest stays outside."""
    readers = graph.readers()
    for node in graph.order():
        op, behind = node.op, readers[node]
        if isinstance(op, Circuit):
            if op.kept is not None and not op.rest_in_circuit:
                yield Refresh(node, behind, RESCALE)
        elif isinstance(op, (Convolution, Matrix, Sum, SumPool, Concatenate)) and node is not graph.output:
            served = any(isinstance(reader.op, Truncation) for reader in behind)
            if not served and not all(isinstance(reader.op, Circuit) and reader.op.kept is None for reader in behind):
                yield Refresh(node, behind, RESCALE)
                if not isinstance(op, SumPool):  # what a pool gives is never uniform, see `masking`
                    yield Refresh(node, behind, TRUNCATION)


class Refresh:
    """One refresh of a ring: a `rescale` circuit or a truncation behind a node, or the rest of a masked ReLU layer in
    the circuit.

    ReLUs that read the node itself go on reading it: they refresh on their own.
    """

    def __init__(self, node: Node, readers: Sequence[Node], kind: str) -> None:
        self.node = node
        self.kind = kind
        self._op = node.op
        self._moved: list[Node] = []
        self.fresh: Node | None = None
        if not isinstance(node.op, Circuit):
            op = Truncation(0) if kind == TRUNCATION else Circuit(RESCALE, 0, 0)
            self.fresh = Node(op, [node], node.shape, f"{node.name}:{kind}", node.source)
            self._moved = [
                reader
                for reader in dict.fromkeys(readers)
                if not (isinstance(reader.op, Circuit) and reader.op.kept is None)
            ]

    def do(self) -> None:
        """Change the graph."""
        if isinstance(self._op, Circuit):
            self.node.op = replace(self._op, rest_in_circuit=True)
        if self.fresh is not None:
            self._redirect(self.node, self.fresh)

    def undo(self) -> None:
        """Change it back."""
        self.node.op = self._op
        if self.fresh is not None:
            self._redirect(self.fresh, self.node)

    def _redirect(self, old: Node, new: Node) -> None:
        for reader in self._moved:
            reader.inputs = [new if before is old else before for before in reader.inputs]
