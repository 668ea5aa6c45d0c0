"""Saving a reduced network as recipe and weights, and loading it again with proof that it is the same.

Nothing is unpickled. The weights are checked against their hash, their names and shapes against the rebuilt network,
and the rebuilt network against the hash of its outputs on a stored probe (random numbers, never a user's image).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from .._files import check_format, read_json, replacing, sha256_of, write_json
from .._json import json_field, json_list
from ..errors import NetworkError, RecipeError, UsageError, problem
from ..networks import NetworkSpec, is_reference
from .base import Base, make_base, make_reference_base
from .candidate import Candidate
from .reduced import build_fresh, build_full, census_of, cut

FORMAT, VERSION = "deepreduce.recipe", 1
RECIPE = "recipe.json"
"""The name of the file that says what a saved network is."""

_PROBE = "deepreduce.probe"
_MOST_MACS = 2 * 10**12  # of one image: hundreds of times ResNet50 at 224x224
_MOST_ELEMENTS = 2**28  # of one ReLU layer: 2 GiB in float64


_PICKLED = "a file of torch.save, which is a program that loading would run"
_CONVERT = (
    "convert it where you trust it: safetensors.torch.save_file(torch.load('FILE', weights_only=True), "
    "'weights.safetensors'); of a checkpoint that holds more, take its state dictionary"
)
_PREFIXES = ("module.", "_orig_mod.")
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Recipe:
    """What a saved network is, without its weights.

    Attributes:
        spec: the full network that it was cut from.
        candidate: what was kept; None for the full network itself.
        relus: number of ReLUs, for one image.
        macs: for one image.
        params: number of parameters.
        mean, std: per channel, for pixel values in [0, 1].
        classes: class names.
        extra: anything else worth keeping, such as accuracies; not needed to load.
    """

    spec: NetworkSpec
    candidate: Candidate | None
    relus: int
    macs: int
    params: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, see docs/formats.md; `save` adds the two hashes."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "network": self.spec.to_json(),
            "candidate": None if self.candidate is None else self.candidate.to_json(),
            "relus": self.relus,
            "macs": self.macs,
            "params": self.params,
            "normalisation": {"mean": list(self.mean), "std": list(self.std)},
            "classes": list(self.classes),
            "extra": self.extra,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Recipe:
        """Rebuild a recipe from `to_json`'s form.

        Raises:
            ValueError: if a field is missing, of another type, or does not fit the others.
            UsageError: if the network or the candidate is out of range.
        """
        spec = NetworkSpec.from_json(json_field(value, "network", dict))
        normalisation = json_field(value, "normalisation", dict)
        recipe = cls(
            spec=spec,
            candidate=None
            if value.get("candidate", 0) is None
            else Candidate.from_json(json_field(value, "candidate", dict)),
            relus=json_field(value, "relus", int),
            macs=json_field(value, "macs", int),
            params=json_field(value, "params", int),
            mean=tuple(json_list(normalisation, "mean", float, length=spec.input[0])),
            std=tuple(json_list(normalisation, "std", float, length=spec.input[0])),
            classes=tuple(json_list(value, "classes", str, length=spec.classes)),
            extra=json_field(value, "extra", dict) if "extra" in value else {},
        )
        if min(recipe.std) <= 0:
            raise ValueError("the field 'std' must be above 0")
        return recipe


def save_network(folder: Path, network: nn.Module, recipe: Recipe) -> None:
    """Write `recipe.json` and `weights.safetensors` into a folder, each whole or not at all.

    Args:
        folder: made if missing.
        network: trained; its state dictionary is stored.
        recipe: what it is.

    Raises:
        NetworkError: if the network's outputs are not finite; nothing is written then.
        RunError: if the disk is full or the folder cannot be written.
    """
    probe = torch.from_numpy(np.random.default_rng(0).standard_normal((2, *recipe.spec.input)).astype(np.float32))
    value = recipe.to_json()
    value["probe"] = {"sha256": probe_hash(network, probe)}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    with replacing(folder / "weights.safetensors") as temporary:
        save_file({**tensors, _PROBE: probe}, temporary)
    value["weights_sha256"] = sha256_of(folder / "weights.safetensors")
    write_json(folder / RECIPE, value)


def load_network(folder: Path | str, network: nn.Module | None = None) -> tuple[fx.GraphModule, Recipe]:
    """Rebuild a saved network and prove that it is the one that was saved.

    Nothing that the files say makes this program import code, or reserve memory for more weights than the files hold.

    Args:
        folder: holds `recipe.json` and `weights.safetensors`.
        network: the full network, for one that is not a reference network: a recipe may not make this program import
            and run code of its choosing, so the caller brings the network.

    Returns:
        The network in evaluation mode, and its recipe.

    Raises:
        RecipeError: if a file is damaged, was changed, or does not fit the network.
        RunError: if `recipe.json` is missing or of another format.
    """
    folder = Path(folder)
    path, weights = folder / RECIPE, folder / "weights.safetensors"
    value = read_json(path)
    check_format(value, FORMAT, VERSION, path)
    try:
        recipe = Recipe.from_json(value)
        expected_weights = json_field(value, "weights_sha256", str)
        expected_probe = json_field(json_field(value, "probe", dict), "sha256", str)
    except (ValueError, UsageError) as error:
        raise RecipeError(
            problem(
                "a recipe must be complete and in range",
                got=error,
                remedy="restore the file as it was saved",
                where=path,
            )
        ) from error
    if network is None and not is_reference(recipe.spec.name):
        raise RecipeError(
            problem(
                "a recipe may not choose which code runs, so a network that is not one of ours comes from the caller",
                got=f"the network {recipe.spec.name!r}",
                remedy="pass the full network: --network, from Python network=",
                where=path,
            )
        )
    if not weights.is_file() or sha256_of(weights) != expected_weights:
        raise RecipeError(
            problem(
                "the weights must be those that were saved with the recipe",
                got="another hash" if weights.is_file() else "no file",
                remedy="restore weights.safetensors as it was saved",
                where=weights,
            )
        )
    tensors = read_tensors(weights)
    probe = tensors.pop(_PROBE, None)
    if probe is None or tuple(probe.shape) != (2, *recipe.spec.input) or probe.dtype != torch.float32:
        raise RecipeError(
            problem(
                "the weights must hold a probe of two images of the network's size",
                got="none" if probe is None else f"{tuple(probe.shape)} {probe.dtype}",
                remedy="restore weights.safetensors as it was saved",
                where=weights,
            )
        )
    try:
        rebuilt = rebuild(recipe, network)
        load_tensors(rebuilt, tensors, weights)
        found_probe = probe_hash(rebuilt, probe)
    except (NetworkError, UsageError) as error:
        raise RecipeError(
            problem("the network of the recipe must be buildable", got=error, remedy="restore the folder", where=path)
        ) from error
    if found_probe != expected_probe:
        raise RecipeError(
            problem(
                "the rebuilt network must give the outputs that were recorded on the probe",
                got="other outputs",
                remedy="use the release, and for a network of your own the code, that saved it",
                where=folder,
            )
        )
    return rebuilt.eval(), recipe


def rebuild(recipe: Recipe, network: nn.Module | None = None) -> fx.GraphModule:
    """Build a recipe's network without its weights, and check its counts.

    Args:
        recipe: what to build.
        network: the full network, where it is not a reference network.

    Returns:
        The network; a reference network lies on the `meta` device, without memory, until `load_tensors` fills it.

    Raises:
        RecipeError: if its counts are not those of the recipe, or it is too large to be run here.
        NetworkError, UsageError: if it cannot be built.
    """
    if network is None:
        with torch.device("meta"):
            return _rebuild(recipe, make_reference_base(recipe.spec))
    return _rebuild(recipe, make_base(recipe.spec, network))


def _rebuild(recipe: Recipe, base: Base) -> fx.GraphModule:
    census = base.census if recipe.candidate is None else census_of(base, recipe.candidate)
    if (census.relus, census.params) != (recipe.relus, recipe.params):
        raise RecipeError(
            problem(
                "the rebuilt network must have the ReLUs and parameters that the recipe states",
                got=f"{census.relus:,} and {census.params:,} instead of {recipe.relus:,} and {recipe.params:,}",
                remedy="use the code of the network that was saved",
                where=recipe.spec.name,
            )
        )
    if census.macs > _MOST_MACS or max(layer.size for layer in census.layers) > _MOST_ELEMENTS:
        raise RecipeError(
            problem(
                "a saved network must be small enough to be proved by running it",
                got=f"{census.macs:,} MACs for one image of {'x'.join(map(str, recipe.spec.input))}",
                remedy="check where the recipe comes from",
                where=recipe.spec.name,
            )
        )
    if recipe.candidate is None:
        return base.network
    full = build_fresh(base, recipe.candidate) if base.reference else build_full(base, recipe.candidate)
    return cut(full, base, recipe.candidate)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        RecipeError: if it is damaged or hostile; safetensors checks every offset before it reads.
    """
    try:
        if not path.is_file():
            raise ValueError("no such file")
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        got, remedy = (_PICKLED, _CONVERT) if _is_pickled(path) else (error, "restore the file")
        raise RecipeError(
            problem("the weights must be a safetensors file", got=got, remedy=remedy, where=path)
        ) from error


def _is_pickled(path: Path) -> bool:
    """Tell whether a file looks like one of `torch.save`: a zip archive, or a bare pickle."""
    if not path.is_file():  # a pipe would wait for its other end
        return False
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return head[:2] == b"PK" or (head[:1] == b"\x80" and head[8:] != b"{")  # there safetensors has its header


def fit_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dictionary as a network wants it, where it differs in nothing that matters.

    A prefix that `DataParallel` or `torch.compile` puts in front of every name goes, half precision becomes the
    network's, and counters of batches, which nothing here reads, may be missing. What else differs stays as it is.

    Args:
        own: by name, those of the network.
        tensors: by name, those that were read.
    """
    found = dict(tensors)
    for prefix in _PREFIXES:
        if found and all(name.startswith(prefix) for name in found) and not any(n.startswith(prefix) for n in own):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    for name, tensor in own.items():
        if name not in found and name.endswith("num_batches_tracked"):
            found[name] = tensor.clone()
        elif name in found and found[name].dtype in _HALF and tensor.dtype == torch.float32:
            found[name] = found[name].float()
    return found


def load_tensors(network: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Load a state dictionary after checking that names, shapes and types are exactly those of the network.

    Args:
        network: filled in place; on the `meta` device it takes the tensors themselves.
        tensors: by name.
        where: the file they come from, for the message.

    Raises:
        RecipeError: naming the first difference, or the first tensor that holds a NaN.
    """
    own = network.state_dict()
    check_tensors(own, tensors, where)
    network.load_state_dict(tensors, assign=any(tensor.is_meta for tensor in own.values()))


def check_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: Path) -> None:
    """Check that tensors have exactly the names, shapes and types of others, and hold no NaN.

    Args:
        own: by name, those of the network.
        tensors: by name, those that were read.
        where: the file they come from, for the message.

    Raises:
        RecipeError: naming the first difference, or the first tensor that holds a NaN.
    """
    different = sorted(set(own) ^ set(tensors))
    if different:
        name = different[0]
        got = f"{name!r} is missing" if name in own else f"{name!r} is unknown to the network"
    else:
        different = [n for n in own if own[n].shape != tensors[n].shape or own[n].dtype != tensors[n].dtype]
        if different:
            name = different[0]
            theirs, ours = tensors[name], own[name]
            got = f"{name!r} is {tuple(theirs.shape)} {theirs.dtype}, not {tuple(ours.shape)} {ours.dtype}"
        else:
            different = [n for n in own if tensors[n].isnan().any()]
            if not different:
                return
            got = f"{different[0]!r} holds a NaN"
    raise RecipeError(
        problem(
            "the weights must fit the network tensor by tensor",
            got=f"{got} ({len(different)} in all)",
            remedy="use the weights that were trained for this network",
            where=where,
        )
    )


def probe_hash(network: nn.Module, probe: Float[Tensor, "n channels height width"]) -> str:
    """Hash the network's outputs on the probe.

    They are computed in float64 and rounded to a ten-thousandth of the largest, so that every machine, with any
    number of threads, finds the same hash.

    Args:
        network: in any mode, on any device; not changed.
        probe: images, at least one.

    Raises:
        NetworkError: if an output is not finite.
    """
    own = copy.deepcopy(network).cpu().double().eval()
    with torch.no_grad():
        outputs = own(probe.double().contiguous()).numpy()
    if not np.isfinite(outputs).all():
        raise NetworkError(
            problem(
                "the outputs of a network on its probe must be finite",
                got="NaN or infinity",
                remedy="train it again with a lower learning rate",
            )
        )
    scale = max(float(np.abs(outputs).max()), 1e-30)
    return hashlib.sha256(np.round(outputs / scale * 1e4).astype("<i4").tobytes()).hexdigest()
