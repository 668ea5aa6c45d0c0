"""Masks: which elements of a ReLU layer keep their ReLU, packed eight to a byte."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from .._arguments import is_whole, shown
from .._json import json_field, json_list
from ..errors import UsageError, problem

GRANULARITIES = ("element", "channel", "layer")
MOST_ELEMENTS = 2**26
"""Of all masks of one network: six times ResNet50 at 224x224; unpacked they take a byte each."""

_METHOD = re.compile(r"[a-z][a-z0-9-]{0,31}")
_MOST_DIMENSIONS = 8

Mask = Bool[np.ndarray, "..."]


@dataclass(frozen=True)
class LayerMask:
    """Which elements of one ReLU layer keep their ReLU.

    Attributes:
        name: call site.
        shape: of the layer's output for one image.
        bits: the mask in row-major order, packed by `numpy.packbits` (big-endian, the last byte filled with zeros).
        kept: how many elements keep their ReLU: at least one, and not all.
    """

    name: str
    shape: tuple[int, ...]
    bits: bytes
    kept: int

    @classmethod
    def of(cls, name: str, mask: Mask) -> LayerMask:
        """Pack a mask."""
        return cls(name, tuple(int(n) for n in mask.shape), np.packbits(mask.ravel()).tobytes(), int(mask.sum()))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def array(self) -> Mask:
        """Return the mask as booleans."""
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.size).astype(bool).reshape(self.shape)

    def to_json(self, *, bits: bool = True) -> dict[str, Any]:
        """Return the JSON form; without `bits` it only says how many elements are kept."""
        packed = {"bits": base64.b64encode(zlib.compress(self.bits, 9)).decode("ascii")} if bits else {}
        return {"name": self.name, "shape": list(self.shape), "kept": self.kept, **packed}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LayerMask:
        """Rebuild a mask from `to_json`'s form; nothing larger than its shape is ever unpacked.

        Raises:
            ValueError: if a field is missing, of another type, or does not fit the others.
        """
        name = json_field(value, "name", str)
        shape = tuple(json_list(value, "shape", int))
        if not 1 <= len(shape) <= _MOST_DIMENSIONS or min(shape) < 1 or math.prod(shape) > MOST_ELEMENTS:
            raise ValueError(f"the mask of {name!r} has no possible shape")
        expected = (math.prod(shape) + 7) // 8
        unpacker = zlib.decompressobj()
        try:
            packed = base64.b64decode(json_field(value, "bits", str), validate=True)
            bits = unpacker.decompress(packed, expected + 1)
        except (binascii.Error, zlib.error, ValueError) as error:
            raise ValueError(f"the mask of {name!r} cannot be unpacked: {error}") from None
        if len(bits) != expected or not unpacker.eof or unpacker.unused_data:
            raise ValueError(f"the mask of {name!r} does not have the length of its shape")
        mask = cls(name, shape, bits, json_field(value, "kept", int))
        array = mask.array()
        if int(array.sum()) != mask.kept or not 0 < mask.kept < mask.size or LayerMask.of(name, array) != mask:
            raise ValueError(f"the mask of {name!r} does not keep as many elements as it says, or keeps all or none")
        return mask


@dataclass(frozen=True)
class Masks:
    """What a method that looks at single ReLUs found.

    Attributes:
        method: name of the method, for people.
        granularity: `element`, `channel` or `layer`: what was kept or removed as a whole.
        budget: number of ReLUs that was asked for, at least 1.
        layers: the ReLU layers of which only a part is kept, by call site. A layer that is kept or removed as a whole
            has no mask: the candidate's `keep` and `drop` speak of it.
        most_layers: how many ReLU layers may keep a ReLU, at least 1; None where that was not limited.
        lines: whether lines take the place of removed ReLUs in these layers where they are free, see
            `deepreduce.reduction.surgery.lines`; otherwise it is the identity.
    """

    method: str
    granularity: str
    budget: int
    layers: tuple[LayerMask, ...] = ()
    lines: bool = False
    most_layers: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: naming what is out of range.
        """
        object.__setattr__(self, "layers", tuple(sorted(self.layers, key=lambda layer: layer.name)))
        names = [layer.name for layer in self.layers]
        elements = sum(layer.size for layer in self.layers)
        for name, fine, allowed, got, remedy in (
            (
                "method",
                isinstance(self.method, str) and bool(_METHOD.fullmatch(self.method)),
                "a short name in small letters",
                shown(self.method),
                "name the method that found them, such as snl",
            ),
            (
                "granularity",
                self.granularity in GRANULARITIES,
                " or ".join(GRANULARITIES),
                shown(self.granularity),
                f"use {GRANULARITIES[0]}, for example",
            ),
            (
                "budget",
                is_whole(self.budget) and self.budget >= 1,
                "a whole number of at least 1",
                shown(self.budget),
                "give the ReLUs that they were found for",
            ),
            (
                "most_layers",
                self.most_layers is None or (is_whole(self.most_layers) and self.most_layers >= 1),
                "a whole number of at least 1",
                shown(self.most_layers),
                "leave it out where the layers were not limited",
            ),
            (
                "layers",
                len(set(names)) == len(names),
                "one for each call site",
                ", ".join(names[:8]),
                "join the masks of one call site",
            ),
            (
                "layers",
                elements <= MOST_ELEMENTS,
                f"of at most {MOST_ELEMENTS:,} elements",
                f"{elements:,}",
                "find masks for smaller images, or by layer: these need none",
            ),
        ):
            if not fine:
                raise UsageError(
                    problem(f"the {name} of masks must be {allowed}", got=got, remedy=remedy, where="masks")
                )

    @property
    def label(self) -> str:
        """What a person reads."""
        return mask_label(self.method, self.granularity, self.budget, self.most_layers)

    @property
    def digest(self) -> str:
        """SHA-256 of all that they say, in hex."""
        state = hashlib.sha256(f"{self.method} {self.granularity} {self.budget}".encode())
        if self.lines:
            state.update(b" lines")
        if self.most_layers is not None:
            state.update(f" {self.most_layers} layers".encode())
        for layer in self.layers:
            state.update(repr((layer.name, layer.shape)).encode() + layer.bits)
        return state.hexdigest()

    def counts(self) -> dict[str, int]:
        """Return how many elements each mask keeps, by call site."""
        return {layer.name: layer.kept for layer in self.layers}

    def arrays(self) -> dict[str, Mask]:
        """Return the masks as booleans, by call site."""
        return {layer.name: layer.array() for layer in self.layers}

    def to_json(self, *, bits: bool = True) -> dict[str, Any]:
        """Return the JSON form, see docs/formats.md; without `bits` a description that cannot be read back."""
        return {
            "method": self.method,
            "granularity": self.granularity,
            "budget": self.budget,
            "layers": [layer.to_json(bits=bits) for layer in self.layers],
            **({"lines": True} if self.lines else {}),
            **({} if self.most_layers is None else {"most_layers": self.most_layers}),
            "sha256": self.digest,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Masks:
        """Rebuild masks from `to_json`'s form.

        Raises:
            ValueError: if a field is missing, of another type, does not fit the others, or the digest is another.
            UsageError: if a value is out of range.
        """
        layers = value.get("layers")
        if not isinstance(layers, list):
            raise ValueError("the field 'layers' must be a list")
        elements, found = 0, []
        for layer in layers:
            found.append(LayerMask.from_json(layer))
            elements += found[-1].size
            if elements > MOST_ELEMENTS:
                raise ValueError("the masks have more elements than any network")
        masks = cls(
            method=json_field(value, "method", str),
            granularity=json_field(value, "granularity", str),
            budget=json_field(value, "budget", int),
            layers=tuple(found),
            lines=json_field(value, "lines", bool) if "lines" in value else False,
            most_layers=json_field(value, "most_layers", int) if "most_layers" in value else None,
        )
        if json_field(value, "sha256", str) != masks.digest:
            raise ValueError("the masks have another hash")
        return masks


def mask_label(method: str, granularity: str, budget: int, most_layers: int | None) -> str:
    """Return how people read of masks that are to be found, or were: `snl by element, budget 12,288`."""
    limit = "" if most_layers is None else f", at most {most_layers} layer{'s' if most_layers > 1 else ''}"
    return f"{method} by {granularity}, budget {budget:,}{limit}"


def split(kept: Mapping[str, Mask]) -> tuple[tuple[str, ...], tuple[LayerMask, ...]]:
    """Return the call sites that lose every ReLU, and the masks of those that keep a part, from a mask for each."""
    gone = tuple(name for name, mask in kept.items() if not mask.any())
    partial = tuple(LayerMask.of(name, mask) for name, mask in kept.items() if mask.any() and not mask.all())
    return gone, partial
