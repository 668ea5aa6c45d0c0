"""A ReLU layer of which only some elements are left."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import NetworkError, problem


class MaskedReLU(nn.Module):
    """ReLU where a mask says so, the identity or a line elsewhere.

    ReLU and identity are one clamping: from below at 0 where the ReLU stays and at minus infinity where it does not
    (ReLU6 clamps from above in the same way), so they cost one pass over the input. The bounds lie in no state
    dictionary: they belong to the recipe. A line is trained and lies there.

    Attributes:
        kind: `relu` or `relu6`.
        site: the call site whose place it takes, see `CallSite.name`.
        floor: the lower bounds, `[1, *shape of one image]`.
        ceiling: the upper bounds of ReLU6.
        line: [2, channels]: slope and intercept of what takes the place of a ReLU that is gone; None for the identity.
    """

    floor: Tensor
    ceiling: Tensor | None

    def __init__(
        self,
        kind: str,
        mask: Bool[Tensor, "*shape"],
        site: str,
        line: Float[Tensor, "2 channels"] | None = None,
    ) -> None:
        """Make the layer.

        Args:
            kind: `relu` or `relu6`.
            mask: which elements keep their ReLU, of the shape of the layer's output for one image.
            site: the call site.
            line: where lines begin, of a layer whose first dimension is channels; None for the identity.
        """
        super().__init__()
        self.kind = kind
        self.site = site
        kept = mask.detach().bool().unsqueeze(0)
        infinite = torch.full_like(kept, torch.inf, dtype=torch.float32)
        self.register_buffer("floor", infinite.neg().masked_fill(kept, 0.0), persistent=False)
        ceiling = infinite.masked_fill(kept, 6.0) if kind == "relu6" else None
        self.register_buffer("ceiling", ceiling, persistent=False)
        self.line = None if line is None else nn.Parameter(line.detach().clone())

    @property
    def mask(self) -> Bool[Tensor, "*shape"]:
        """Which elements keep their ReLU."""
        return self.floor[0] == 0

    def forward(self, x: Tensor) -> Tensor:
        """Return x, [n, *shape], with a ReLU where the mask says so, and else as it is or on its line.

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
        clamped = torch.clamp(x, self.floor.to(x.dtype), ceiling)
        return clamped if self.line is None else torch.where(self.floor == 0, clamped, on_line(x, self.line))

    def extra_repr(self) -> str:
        """Say what is left."""
        return f"{self.kind}, {int(self.mask.sum()):,} of {self.floor.numel():,}, {self.site}" + (
            "" if self.line is None else ", lines"
        )


def on_line(
    x: Float[Tensor, "n channels *rest"], line: Float[Tensor, "2 channels"]
) -> Float[Tensor, "n channels *rest"]:
    """Return slope * x + intercept, by channel."""
    slope, intercept = line.to(x.dtype).reshape(2, 1, -1, *(1,) * (x.dim() - 2))
    return torch.addcmul(intercept, slope, x)
