"""A ReLU layer of which only some elements are left."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..errors import NetworkError, problem


class MaskedReLU(nn.Module):
    """ReLU where a mask says so, the identity elsewhere.

    Both are one clamping: from below at 0 where the ReLU stays and at minus infinity where it does not (ReLU6 clamps
    from above in the same way), so the layer costs one pass over its input. The bounds lie in no state dictionary:
    they belong to the recipe.

    Attributes:
        kind: `relu` or `relu6`.
        site: the call site whose place it takes, see `CallSite.name`.
        floor: the lower bounds, `[1, *shape of one image]`.
        ceiling: the upper bounds of ReLU6.
    """

    floor: Tensor
    ceiling: Tensor | None

    def __init__(self, kind: str, mask: Bool[Tensor, "*shape"], site: str) -> None:
        """Make the layer.

        Args:
            kind: `relu` or `relu6`.
            mask: which elements keep their ReLU, of the shape of the layer's output for one image.
            site: the call site.
        """
        super().__init__()
        self.kind = kind
        self.site = site
        kept = mask.detach().bool().unsqueeze(0)
        infinite = torch.full_like(kept, torch.inf, dtype=torch.float32)
        self.register_buffer("floor", infinite.neg().masked_fill(kept, 0.0), persistent=False)
        ceiling = infinite.masked_fill(kept, 6.0) if kind == "relu6" else None
        self.register_buffer("ceiling", ceiling, persistent=False)

    @property
    def mask(self) -> Bool[Tensor, "*shape"]:
        """Which elements keep their ReLU."""
        return self.floor[0] == 0

    def forward(self, x: Tensor) -> Tensor:
        """Return x, [n, *shape], with a ReLU where the mask says so.

        Raises:
            NetworkError: if x is not of the mask's shape.
        """
        if x.shape[1:] != self.floor.shape[1:]:
            raise NetworkError(
                problem(
                    f"the input of a masked ReLU layer is of shape {tuple(self.floor.shape[1:])} for one image",
                    got=tuple(x.shape[1:]),
                    remedy="use images of the size that the masks were found for",
                    where=self.site,
                )
            )
        ceiling = None if self.ceiling is None else self.ceiling.to(x.dtype)
        return torch.clamp(x, self.floor.to(x.dtype), ceiling)

    def extra_repr(self) -> str:
        """Say what is left."""
        return f"{self.kind}, {int(self.mask.sum()):,} of {self.floor.numel():,}, {self.site}"
