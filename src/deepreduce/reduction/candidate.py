"""A candidate: the frozen description of one reduced network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, problem

_RHO = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Candidate:
    """What is left of the full network.

    Attributes:
        keep: names of the stages that keep ReLUs, in order.
        thin: whether alternate ReLU layers of those stages go.
        alpha: channel scale, in (0, 1].
        rho: resolution scale: 1, 1/2, 1/4 or 1/8.
        drop: call sites whose ReLUs go besides; for methods finer than stages.
    """

    keep: tuple[str, ...]
    thin: bool = False
    alpha: float = 1.0
    rho: float = 1.0
    drop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: if alpha or rho is out of range, or a stage or call site stands twice.
        """
        if not 0 < self.alpha <= 1:
            raise UsageError(
                problem("alpha is above 0 and at most 1", got=self.alpha, remedy="use 0.5, as the paper does", where="alpha")
            )
        if self.rho not in _RHO:
            raise UsageError(
                problem(
                    "rho is 1, 0.5, 0.25 or 0.125, because it becomes a stride of 1/rho",
                    got=self.rho,
                    remedy="use 0.5, as the paper does",
                    where="rho",
                )
            )
        if len(set(self.keep)) != len(self.keep) or len(set(self.drop)) != len(self.drop):
            raise UsageError(
                problem(
                    "every stage and call site is named once",
                    got=", ".join(self.keep + self.drop),
                    remedy="remove the repetition",
                    where="keep",
                )
            )

    @property
    def id(self) -> str:
        """Short name, unique among candidates of one network, fit for a folder."""
        parts = ["".join(self.keep) or "none"]
        if self.thin:
            parts.append("thin")
        if self.alpha != 1:
            parts.append(f"a{self.alpha:g}")
        if self.rho != 1:
            parts.append(f"r{self.rho:g}")
        if self.drop:
            import hashlib

            parts.append("d" + hashlib.sha256("\n".join(self.drop).encode()).hexdigest()[:8])
        return "-".join(parts)

    @property
    def label(self) -> str:
        """What a person reads: `S2 S3 S4, thinned, alpha 0.5`."""
        parts = [" ".join(self.keep) or "no ReLU"]
        if self.thin:
            parts.append("thinned")
        if self.alpha != 1:
            parts.append(f"alpha {self.alpha:g}")
        if self.rho != 1:
            parts.append(f"rho {self.rho:g}")
        if self.drop:
            parts.append(f"without {len(self.drop)} more ReLU layers")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, as in a recipe."""
        return {
            "keep": list(self.keep),
            "thin": self.thin,
            "alpha": self.alpha,
            "rho": self.rho,
            "drop": list(self.drop),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Candidate:
        """Rebuild a candidate from `to_json`'s form."""
        return cls(
            keep=tuple(str(name) for name in value["keep"]),
            thin=bool(value["thin"]),
            alpha=float(value["alpha"]),
            rho=float(value["rho"]),
            drop=tuple(str(name) for name in value["drop"]),
        )
