"""Saving a reduced network as recipe and weights, and loading it again with proof that it is the same.

Nothing is unpickled. The weights are checked against their hash, their names and shapes against the rebuilt network,
and the rebuilt network against the hash of its outputs on a stored probe (random numbers, never a user's image).
"""

from __future__ import annotations

import copy
import hashlib
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
from ..errors import DeepReduceError, RecipeError, problem
from ..networks import NetworkSpec, is_reference
from .candidate import Candidate
from .reduced import build_fresh, census_of, make_base, removed_layers
from .removal import remove_relus

FORMAT, VERSION = "deepreduce.recipe", 1
_PROBE = "deepreduce.probe"


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
        """Rebuild a recipe from `to_json`'s form."""
        candidate = value["candidate"]
        return cls(
            spec=NetworkSpec.from_json(value["network"]),
            candidate=None if candidate is None else Candidate.from_json(candidate),
            relus=int(value["relus"]),
            macs=int(value["macs"]),
            params=int(value["params"]),
            mean=tuple(float(x) for x in value["normalisation"]["mean"]),
            std=tuple(float(x) for x in value["normalisation"]["std"]),
            classes=tuple(str(x) for x in value["classes"]),
            extra=dict(value.get("extra", {})),
        )


def save_network(folder: Path, network: nn.Module, recipe: Recipe) -> None:
    """Write `recipe.json` and `weights.safetensors` into a folder, each whole or not at all.

    Args:
        folder: made if missing.
        network: trained; its state dictionary is stored.
        recipe: what it is.

    Raises:
        RunError: if the disk is full or the folder cannot be written.
    """
    probe = torch.from_numpy(np.random.default_rng(0).standard_normal((2, *recipe.spec.input)).astype(np.float32))
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    with replacing(folder / "weights.safetensors") as temporary:
        save_file({**tensors, _PROBE: probe}, temporary)
    value = recipe.to_json()
    value["probe"] = {"sha256": probe_hash(network, probe)}
    value["weights_sha256"] = sha256_of(folder / "weights.safetensors")
    write_json(folder / "recipe.json", value)


def load_network(folder: Path | str, network: nn.Module | None = None) -> tuple[fx.GraphModule, Recipe]:
    """Rebuild a saved network and prove that it is the one that was saved.

    Args:
        folder: holds `recipe.json` and `weights.safetensors`.
        network: the full network, for one that is not a reference network: a recipe may not make this program import
            and run code of its choosing, so the caller brings the network.

    Returns:
        The network in evaluation mode, and its recipe.

    Raises:
        RecipeError: if a file is damaged, was changed, or does not fit the network.
        RunError: if a file is missing or of another format.
    """
    folder = Path(folder)
    path, weights = folder / "recipe.json", folder / "weights.safetensors"
    value = read_json(path)
    check_format(value, FORMAT, VERSION, path)
    try:
        recipe = Recipe.from_json(value)
        expected_weights, expected_probe = str(value["weights_sha256"]), str(value["probe"]["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError, DeepReduceError) as error:
        raise RecipeError(
            problem(
                "a recipe must be complete and in range",
                got=f"{type(error).__name__}: {error}",
                remedy="restore the file as it was saved",
                where=path,
            )
        ) from error
    if network is None and not is_reference(recipe.spec.name):
        raise RecipeError(
            problem(
                "a recipe may not choose which code runs, so a network that is not one of ours comes from the caller",
                got=f"the network {recipe.spec.name!r}",
                remedy="pass the full network as `network`",
                where=path,
            )
        )
    if not weights.exists() or sha256_of(weights) != expected_weights:
        raise RecipeError(
            problem(
                "the weights must be those that were saved with the recipe",
                got="another hash" if weights.exists() else "no file",
                remedy="restore weights.safetensors as it was saved",
                where=weights,
            )
        )
    tensors = read_tensors(weights)
    probe = tensors.pop(_PROBE, None)
    rebuilt = rebuild(recipe, network)
    load_tensors(rebuilt, tensors, weights)
    if probe is None or tuple(probe.shape[1:]) != recipe.spec.input or probe_hash(rebuilt, probe) != expected_probe:
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
    """Build a recipe's network without its weights, and check its ReLU count."""
    base = make_base(recipe.spec, network)
    if recipe.candidate is None:
        return base.network
    relus = census_of(base, recipe.candidate).relus
    if relus != recipe.relus:
        raise RecipeError(
            problem(
                "the rebuilt network must have the ReLUs that the recipe states",
                got=f"{relus:,} instead of {recipe.relus:,}",
                remedy="use the code of the network that was saved",
                where=recipe.spec.name,
            )
        )
    return remove_relus(build_fresh(base, recipe.candidate), removed_layers(base, recipe.candidate))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        RecipeError: if it is damaged or hostile; safetensors checks every offset before it reads.
    """
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise RecipeError(
            problem("the weights must be a safetensors file", got=error, remedy="restore the file", where=path)
        ) from error


def load_tensors(network: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Load a state dictionary after checking that names, shapes and types are exactly those of the network.

    Raises:
        RecipeError: naming the first difference.
    """
    own = network.state_dict()
    different = sorted(set(own) ^ set(tensors))
    if different:
        name = different[0]
        got = f"{name!r} is missing" if name in own else f"{name!r} is unknown to the network"
    else:
        wrong = [n for n in own if own[n].shape != tensors[n].shape or own[n].dtype != tensors[n].dtype]
        if not wrong:
            network.load_state_dict(tensors)
            return
        name = wrong[0]
        got = f"{name!r} is {tuple(tensors[name].shape)} {tensors[name].dtype}, not {tuple(own[name].shape)} {own[name].dtype}"
    raise RecipeError(
        problem(
            "the weights must fit the network tensor by tensor",
            got=f"{got} ({len(different) or len(wrong)} in all)",
            remedy="use the weights that were trained for this network",
            where=where,
        )
    )


def probe_hash(network: nn.Module, probe: Float[Tensor, "n channels height width"]) -> str:
    """Hash the network's outputs on the probe.

    They are computed in float64 and rounded to a ten-thousandth of the largest, so that every machine, with any
    number of threads, finds the same hash.
    """
    own = copy.deepcopy(network).cpu().double().eval()
    with torch.no_grad():
        outputs = own(probe.double()).numpy()
    scale = max(float(np.abs(outputs).max()), 1e-30)
    return hashlib.sha256(np.round(outputs / scale * 1e4).astype("<i4").tobytes()).hexdigest()
