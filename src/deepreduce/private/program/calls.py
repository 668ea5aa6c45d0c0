"""One call of an operator in the user's network, and how one is refused that does not convert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .graph import Node


class Unsupported(Exception):  # noqa: N818 - becomes a NetworkError with its place
    """What does not convert, and what to do if that is not the general remedy."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


@dataclass(frozen=True)
class Call:
    """One call in the user's network.

    Attributes:
        name, source: its place.
        args, kwargs: as called, with graph nodes in place of the tensors that depend on the image.
        module: that was called, or None for a function or method.
        result: what PyTorch computed for a few blank images.
    """

    name: str
    source: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: nn.Module | None
    result: Any

    def node(self, op: Any, inputs: list[Node], shape: tuple[int, ...], **rest: Any) -> Node:
        """Make a node at this place."""
        return Node(op, inputs, shape, self.name, self.source, **rest)

    def bound(self, *names: str, **defaults: Any) -> list[Any]:
        """Return arguments by position or name, in the order of `names`."""
        values = dict(zip(names, self.args, strict=False)) | dict(self.kwargs)
        return [values.get(name, defaults.get(name)) for name in names]

    @property
    def source_node(self) -> Node:
        """The first argument, which must depend on the image."""
        first = self.args[0] if self.args else next(iter(self.kwargs.values()))
        if not isinstance(first, Node):
            raise Unsupported("an operator whose first argument does not depend on the image")
        return first
