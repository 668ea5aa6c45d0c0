"""A candidate: the frozen description of one reduced network."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, TypeVar

from .._arguments import check_type, is_number, is_whole, listed, shown
from .._json import json_field, json_list
from ..census import Stage
from ..errors import UsageError, problem
from .masks import Masks

_LARGEST_TRIM = 1024
_RHO = (1.0, 0.5, 0.25, 0.125)
_LISTS = {
    "keep": ("--keep", "['S2', 'S3']"),
    "drop": ("drop", "['layer1.0.relu1']"),
    "beta": ("--beta", "0.5 or [0.5, 0.25]"),
    "trim": ("--trim", "1 or [1, 0]"),
}
"""Where a list is given, and one that could be."""

Number = TypeVar("Number", int, float)

_STAGE = re.compile(r"S[1-9][0-9]{0,3}")


def for_each(name: str, values: Number | Sequence[Number], keep: Sequence[str]) -> tuple[Number, ...]:
    """Return one value for each stage from one for all of them, alone or in a list; several are taken as they are.

    Raises:
        UsageError: if `values`, which a caller knows by `name`, is neither a number nor a list.
    """
    several = (values,) if isinstance(values, (int, float)) else _listed(name, values)
    return several * len(keep) if len(several) == 1 else several


@dataclass(frozen=True)
class Candidate:
    """What is left of the full network.

    Attributes:
        keep: names of the stages that keep ReLUs, in order: `S1` has the largest feature maps.
        thin: whether alternate ReLU layers of those stages go.
        alpha: channel scale, in (0, 1].
        rho: resolution scale: 1, 1/2, 1/4 or 1/8.
        beta: for each stage in `keep`, the channel scale, in (0, 1], of the layers that keep their ReLUs alone; see
            `narrow`. Empty where all keep their width.
        trim: for each stage in `keep`, how many positions go on every side of the feature maps of those layers, where
            there is a way around them; see `trim_maps`. Empty where all keep their size.
        collapse: whether what comes before the first ReLU that stays becomes one convolution, where it is several; see
            `head_of`.
        bypass: whether those layers have linear ones beside them, in place of the channels and positions that they
            lose, where there is a way around them already and only plain layers lie around them; see `add_bypasses`.
        average_pooling: whether average pooling takes the place of max pooling, see `average_pools`.
        drop: call sites whose ReLUs go besides; for methods finer than stages.
        masks: which elements of further call sites keep their ReLU; for methods finer than layers. They are of the
            shapes that the layers have at `rho`, and go with neither thinning (which `drop` can say), alpha, beta,
            trim, bypass nor collapse.
    """

    keep: tuple[str, ...]
    thin: bool = False
    alpha: float = 1.0
    rho: float = 1.0
    drop: tuple[str, ...] = ()
    masks: Masks | None = None
    beta: tuple[float, ...] = ()
    collapse: bool = False
    trim: tuple[int, ...] = ()
    bypass: bool = False
    average_pooling: bool = False

    def __post_init__(self) -> None:
        """Check the ranges; whether the stages and call sites exist is checked against a network.

        Raises:
            UsageError: if something is of another type, alpha, beta, trim or rho is out of range, a stage has no
                stage's name, a stage or call site stands twice, or masks are combined with what changes the shapes that
                they are for.
        """
        for name in _LISTS:
            object.__setattr__(self, name, _listed(name, getattr(self, name)))
        for name in ("thin", "bypass", "collapse", "average_pooling"):
            check_type(name, getattr(self, name), bool, where=f"--{name.replace('_', '-')}")
        check_type("masks", self.masks, Masks, NoneType)
        self._check_names()
        self._check_scales()
        object.__setattr__(self, "beta", () if all(scale == 1 for scale in self.beta) else self.beta)
        object.__setattr__(self, "trim", () if all(trim == 0 for trim in self.trim) else self.trim)
        self._check_combination()

    def _check_names(self) -> None:
        for name in self.keep:
            if not isinstance(name, str) or not _STAGE.fullmatch(name):
                raise UsageError(
                    problem(
                        "stages are called S1, S2, and so on",
                        got=shown(name),
                        remedy="give them like S2,S3, from Python ['S2', 'S3']",
                        where="--keep",
                    )
                )
        for name in self.drop:
            check_type("a call site", name, str, where="drop")
        for where, names in (("--keep", self.keep), ("drop", self.drop)):
            if len(set(names)) != len(names):
                raise UsageError(
                    problem(
                        "every stage and call site is named once",
                        got=", ".join(names),
                        remedy="remove the repetition",
                        where=where,
                    )
                )

    def _check_scales(self) -> None:
        for name, scale in (("alpha", self.alpha), *(("beta", scale) for scale in self.beta)):
            if not is_number(scale) or not 0 < scale <= 1:
                raise UsageError(
                    problem(
                        f"{name} is a number above 0 and at most 1",
                        got=shown(scale),
                        remedy="use 0.5, for example",
                        where=f"--{name}",
                    )
                )
        for trim in self.trim:
            if not is_whole(trim) or not 0 <= trim <= _LARGEST_TRIM:
                raise UsageError(
                    problem(
                        f"trim is a number of positions from 0 to {_LARGEST_TRIM:,}",
                        got=shown(trim),
                        remedy="use 1, for example",
                        where="--trim",
                    )
                )
        if not is_number(self.rho) or self.rho not in _RHO:
            raise UsageError(
                problem(
                    "rho is 1, 0.5, 0.25 or 0.125, because it becomes a stride of 1/rho",
                    got=shown(self.rho),
                    remedy="use 0.5, as the paper does",
                    where="--rho",
                )
            )

    def _check_combination(self) -> None:
        for what, values in (("beta", self.beta), ("trim", self.trim)):
            if len(values) not in (0, len(self.keep)):
                raise UsageError(
                    problem(
                        f"{what} has one number for each stage that is kept",
                        got=f"{len(values)} for {', '.join(self.keep) or 'no stage'}",
                        remedy="give as many as stages, in their order",
                        where=f"--{what}",
                    )
                )
        shaped = self.thin or self.alpha != 1 or self.beta or self.trim or self.bypass or self.collapse
        if self.masks is not None and shaped:
            raise UsageError(
                problem(
                    "masks belong to the channels of the full network, and say themselves what is thinned",
                    got="masks together with thinning, alpha, beta, trim, bypass or collapse",
                    remedy="find masks for the network as it is; a narrower one starts from --width",
                    where="masks",
                )
            )

    @property
    def id(self) -> str:
        """Short name, unique among candidates of one network, of letters, digits, `.` and `-`: fit for a folder."""
        parts = ["".join(self.keep) or "none"]
        if self.thin:
            parts.append("thin")
        if self.alpha != 1:
            parts.append(f"a{float(self.alpha)!r}")
        if self.rho != 1:
            parts.append(f"r{float(self.rho)!r}")
        if self.beta:
            parts.append("b" + "-".join(repr(float(scale)) for scale in self.beta))
        if self.trim:
            parts.append("t" + "-".join(map(str, self.trim)))
        if self.bypass:
            parts.append("y")
        if self.collapse:
            parts.append("c")
        if self.average_pooling:
            parts.append("p")
        if self.drop:
            parts.append("d" + hashlib.sha256("\n".join(sorted(self.drop)).encode()).hexdigest()[:16])
        if self.masks is not None:
            parts.append("m" + self.masks.digest[:16])
        return "-".join(parts)

    @property
    def scales(self) -> tuple[object, ...]:
        """What gives the layers their shapes, beside the ReLUs that stay; equal for equal shapes."""
        return self.alpha, self.rho, self.beta, self.trim, self.bypass, self.collapse

    @property
    def is_unscaled(self) -> bool:
        """Whether the layers have the shapes of the full network."""
        return self.scales == (1.0, 1.0, (), (), False, False)

    @property
    def depends_on_kept(self) -> bool:
        """Whether the shapes of the layers depend on which ReLUs stay."""
        return bool(self.beta or self.trim or self.bypass or self.collapse)

    @property
    def label(self) -> str:
        """What a person reads: `S2 S3 S4, thinned, alpha 0.5`; for masks `snl by element, budget 12,288`."""
        pooling = ", average pooling" if self.average_pooling else ""
        if self.masks is not None:
            scale = "" if self.rho == 1 else f", rho {self.rho:g}"
            return self.masks.label + scale + pooling
        parts = [" ".join(self.keep) or "no ReLU"]
        if self.thin:
            parts.append("thinned")
        if self.alpha != 1:
            parts.append(f"alpha {self.alpha:g}")
        if self.rho != 1:
            parts.append(f"rho {self.rho:g}")
        if self.beta:
            same = len(set(self.beta)) == 1
            parts.append("beta " + " ".join(f"{scale:g}" for scale in (self.beta[:1] if same else self.beta)))
        if self.trim:
            parts.append("trim " + " ".join(map(str, self.trim[:1] if len(set(self.trim)) == 1 else self.trim)))
        if self.bypass:
            parts.append("bypassed")
        if self.collapse:
            parts.append("collapsed")
        if self.drop:
            parts.append(f"without {len(self.drop)} more ReLU layer{'s' if len(self.drop) > 1 else ''}")
        return ", ".join(parts) + pooling

    def to_json(self, *, bits: bool = True) -> dict[str, Any]:
        """Return the JSON form, as in a recipe; without `bits` masks are described and cannot be read back."""
        masks = {} if self.masks is None else {"masks": self.masks.to_json(bits=bits)}
        return {
            "keep": list(self.keep),
            "thin": self.thin,
            "alpha": self.alpha,
            "rho": self.rho,
            "drop": list(self.drop),
            **({"beta": list(self.beta)} if self.beta else {}),
            **({"trim": list(self.trim)} if self.trim else {}),
            **({"bypass": True} if self.bypass else {}),
            **({"collapse": True} if self.collapse else {}),
            **({"average_pooling": True} if self.average_pooling else {}),
            **masks,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Candidate:
        """Rebuild a candidate from `to_json`'s form.

        Raises:
            ValueError: if a field is missing, of another type, or not finite.
            UsageError: if a value is out of range.
        """
        return cls(
            keep=tuple(json_list(value, "keep", str)),
            thin=json_field(value, "thin", bool),
            alpha=json_field(value, "alpha", float),
            rho=json_field(value, "rho", float),
            drop=tuple(json_list(value, "drop", str)),
            masks=Masks.from_json(json_field(value, "masks", dict)) if "masks" in value else None,
            beta=tuple(json_list(value, "beta", float)) if "beta" in value else (),
            trim=tuple(json_list(value, "trim", int)) if "trim" in value else (),
            bypass=json_field(value, "bypass", bool) if "bypass" in value else False,
            collapse=json_field(value, "collapse", bool) if "collapse" in value else False,
            average_pooling=json_field(value, "average_pooling", bool) if "average_pooling" in value else False,
        )


def _listed(name: str, values: Any) -> tuple[Any, ...]:
    where, example = _LISTS[name]
    return listed(name, values, example=example, where=where)


def thinned_layers(stage: Stage) -> tuple[str, ...]:
    """Return the call sites of a stage that stay when it is thinned.

    Every other ReLU layer goes. The layer behind an addition ends a residual block; counted back from there, that
    layer goes, the one before it stays, the next goes, and so on: in a block of two convolutions the ReLU between
    them stays, as in the released networks; in a bottleneck of three the one behind the wide convolution. Where no
    addition follows, the first layer stays, the next goes, and so on. A stage always keeps a layer.
    """
    kept: list[str] = []
    block: list[str] = []
    for layer in stage.layers:
        block.append(layer.name)
        if layer.after_addition:
            kept += reversed(block[-2::-2])
            block = []
    kept += block[::2]
    return tuple(kept or [layer.name for layer in stage.layers[::2]])
