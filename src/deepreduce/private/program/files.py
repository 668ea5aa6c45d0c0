"""Programs as bytes: a public part and a secret part, each one safetensors blob. Nothing is unpickled.

Public (`deepreduce.program`, version 3): the tensor `structure` holds UTF-8 JSON as bytes: `format`, `version`,
`tensors` ([shape, fraction_bits, ring_bits] each) and `steps` ({"op", "inputs", "name", and the operation's own
numbers}); `bias` where it is true. Step n makes tensor n + 1. Indices (`index`, `kept`) are int32 tensors `n.index`,
`n.kept`, n the step's number.

Secret (`deepreduce.weights`, version 3): `structure` with `format`, `version` and `program`, the SHA-256 of the
public blob that it belongs to; `n.weight` and `n.bias` in the smallest of int8, int16, int32, int64 that holds them.

Everything is bounded before it is allocated and checked before it is used; keys that are not known are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..._json import parse_json
from ...errors import RecipeError, problem
from .check import MAX_STEPS, check_public, check_weights
from .operations import (
    Circuit,
    Concatenate,
    Convolution,
    Gather,
    Matrix,
    Operation,
    Reshape,
    Sum,
    SumPool,
    Truncation,
)
from .program import Program, PublicProgram, Step, TensorFormat, Weights

PUBLIC, SECRET, VERSION = "deepreduce.program", "deepreduce.weights", 3
MAX_PUBLIC_BYTES = 1 << 30
MAX_SECRET_BYTES = 1 << 32
MAX_STRUCTURE_BYTES = 1 << 22
"""Bounds on the two blobs and on the JSON in them."""

_OPERATIONS: dict[str, tuple[type[Any], tuple[str, ...], tuple[str, ...]]] = {
    "convolution": (Convolution, ("weight_shape", "stride", "padding", "dilation", "groups"), ()),
    "matrix": (Matrix, ("weight_shape",), ()),
    "sum_pool": (SumPool, ("kernel", "stride", "padding", "factor"), ()),
    "sum": (Sum, ("shifts", "signs"), ()),
    "concatenate": (Concatenate, ("axis", "shifts"), ()),
    "reshape": (Reshape, (), ()),
    "gather": (Gather, (), ("index",)),
    "truncation": (Truncation, ("dropped",), ()),
    "circuit": (Circuit, ("kind", "width", "dropped", "rest_in_circuit", "tested"), ("kept",)),
}
_NAMES = {kind: name for name, (kind, _, _) in _OPERATIONS.items()}
_INTEGERS = (np.int8, np.int16, np.int32, np.int64)


def public_to_bytes(public: PublicProgram) -> bytes:
    """Return the public part as bytes; equal programs give equal bytes."""
    arrays: dict[str, NDArray[Any]] = {}
    steps = []
    for number, step in enumerate(public.steps):
        name = _NAMES[type(step.op)]
        value: dict[str, Any] = {"op": name, "inputs": list(step.inputs), "name": step.name}
        if step.has_bias:
            value["bias"] = True
        for key in _OPERATIONS[name][1]:
            own = getattr(step.op, key)
            value[key] = list(own) if isinstance(own, tuple) else own
        for key in _OPERATIONS[name][2]:
            own = getattr(step.op, key)
            if own is not None:
                arrays[f"{number}.{key}"] = own
        steps.append(value)
    tensors = [[list(t.shape), t.fraction_bits, t.ring_bits] for t in public.tensors]
    return _pack({"format": PUBLIC, "version": VERSION, "tensors": tensors, "steps": steps}, arrays)


def public_from_bytes(data: bytes) -> PublicProgram:
    """Read a public part that may come from anyone.

    Raises:
        RecipeError: if it is damaged, too large, of another version, or inconsistent.
    """
    structure, arrays = _unpack(data, PUBLIC, MAX_PUBLIC_BYTES)
    try:
        if set(structure) != {"format", "version", "tensors", "steps"}:
            raise ValueError("other keys")
        if len(structure["steps"]) > MAX_STEPS or len(structure["tensors"]) != len(structure["steps"]) + 1:
            raise ValueError("too many steps, or more tensors than they make")
        tensors = tuple(TensorFormat(_numbers(shape), f, k) for shape, f, k in structure["tensors"])
        steps = tuple(_step(value, number, arrays) for number, value in enumerate(structure["steps"]))
        if arrays:
            raise ValueError(f"an array {sorted(arrays)[0]!r} that no step has")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(error) from error
    public = PublicProgram(tensors, steps)
    check_public(public)
    return public


def weights_to_bytes(program: Program) -> bytes:
    """Return the secret part as bytes, tied to the public part by its hash."""
    arrays: dict[str, NDArray[Any]] = {}
    for output, own in program.weights.items():
        for key, value in (("weight", own.weight), ("bias", own.bias)):
            if value is not None:
                arrays[f"{output - 1}.{key}"] = _small(value)
    public = hashlib.sha256(public_to_bytes(program.public)).hexdigest()
    return _pack({"format": SECRET, "version": VERSION, "program": public}, arrays)


def program_from_bytes(public: bytes, weights: bytes) -> Program:
    """Read a whole program.

    Raises:
        RecipeError: if a part is damaged, too large, of another version, or does not belong to the other.
    """
    program = public_from_bytes(public)
    structure, arrays = _unpack(weights, SECRET, MAX_SECRET_BYTES)
    if structure.get("program") != hashlib.sha256(public).hexdigest() or len(structure) != 3:
        raise _damaged("weights of another program")
    found: dict[int, dict[str, NDArray[np.int64]]] = {}
    try:
        for name, array in arrays.items():
            number, key = name.split(".")
            if key not in ("weight", "bias") or array.dtype not in _INTEGERS or str(int(number)) != number:
                raise ValueError(f"an array {name!r} of {array.dtype}")
            found.setdefault(int(number) + 1, {})[key] = array.astype(np.int64)
    except ValueError as error:
        raise _damaged(error) from error
    own = {output: Weights(values.get("weight"), values.get("bias")) for output, values in found.items()}
    check_weights(program, own)
    return Program(program, own)


def _step(value: Mapping[str, Any], number: int, arrays: dict[str, NDArray[Any]]) -> Step:
    kind, keys, indices = _OPERATIONS[value["op"]]
    unknown = set(value) - {"op", "inputs", "name", "bias", *keys}
    if unknown:
        raise ValueError(f"step {number} has {sorted(unknown)[0]!r}")
    own = {key: _numbers(value[key]) if isinstance(value[key], list) else value[key] for key in keys}
    own |= {key: arrays.pop(f"{number}.{key}") for key in indices if f"{number}.{key}" in arrays}
    op: Operation = kind(**own)
    return Step(op, _numbers(value["inputs"]), number + 1, value["name"], value.get("bias", False))


def _numbers(values: Any) -> Any:
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise ValueError(f"{repr(values)[:80]} where whole numbers stand")
    return tuple(values)


def _small(values: NDArray[np.int64]) -> NDArray[Any]:
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    kind = next(k for k in _INTEGERS if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    return np.ascontiguousarray(values, dtype=kind)


def _pack(structure: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    text = json.dumps(structure, separators=(",", ":"), ensure_ascii=False).encode()
    return save({"structure": np.frombuffer(text, dtype=np.uint8), **arrays})


def _unpack(data: bytes, form: str, limit: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    if len(data) > limit:
        raise _damaged(f"{len(data):,} bytes, more than {limit:,}")
    try:
        arrays = load(data)
        text = arrays.pop("structure", np.zeros(0, dtype=np.uint8))
        if text.dtype != np.uint8 or text.ndim != 1 or text.size > MAX_STRUCTURE_BYTES:
            raise ValueError("a structure that is not text, or too long")
        structure = parse_json(text.tobytes())
        if not isinstance(structure, dict) or (structure.get("format"), structure.get("version")) != (form, VERSION):
            raise ValueError(f"not of format {form!r}, version {VERSION}")
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(error) from error
    return structure, arrays


def _damaged(error: object) -> RecipeError:
    return RecipeError(
        problem("a program is a complete file of this release", got=str(error)[:300], remedy="export it again")
    )
