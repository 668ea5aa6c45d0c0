"""`deepreduce.estimate`: every kind of network, and every refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import deepreduce
from deepreduce.errors import NetworkError, RecipeError, RunError, UsageError
from deepreduce.networks import NetworkSpec
from deepreduce.private.deployment import About, make_model, save_model
from deepreduce.private.estimate import Link
from deepreduce.reduction import Candidate, census_of, make_base
from deepreduce.reduction.recipe import Recipe, save_network
from deepreduce.reduction.reduced import build_candidate

from ..protocol.harness import residual

SIZE = (3, 16, 16)
OTHERS = ("delphi", "cheetah")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one network, a thinned ResNet18 of an eighth of the width."""
    run = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    spec, candidate = NetworkSpec("resnet18", SIZE, 10, 0.125), Candidate(keep=("S2", "S3"), thin=True)
    base = make_base(spec)
    census = census_of(base, candidate)
    network = build_candidate(base, candidate).eval()
    recipe = Recipe(
        spec, candidate, census.relus, census.macs, census.params, (0.5,) * 3, (0.25,) * 3, tuple("abcdefghij")
    )
    save_network(run / "candidate" / candidate.id / "seed0", network, recipe)
    entry = {
        "id": candidate.id, "label": candidate.label, "relus": census.relus,
        "validation": {"accuracy": 0.5, "runs": [0.5]},
    }  # fmt: skip
    teacher = {"id": "teacher", "relus": 10**6, "label": "full", "validation": {"accuracy": 0.9, "runs": [0.9]}}
    front = {
        "format": "deepreduce.front", "version": 1, "teacher": teacher, "candidates": [entry],
        "front": [candidate.id, "teacher"],
    }  # fmt: skip
    (run / "front.json").write_text(json.dumps(front))
    return run


def folder_of(run: Path) -> Path:
    return next((run / "candidate").iterdir()) / "seed0"


def test_example_a_named_network_with_all_protocols() -> None:
    found = deepreduce.estimate("resnet18", input=SIZE, classes=10, width=0.125, keep=["S2", "S3"], thin=True)
    counted = deepreduce.profile("resnet18", input=SIZE, classes=10, width=0.125, keep=["S2", "S3"], thin=True)
    assert (found["relus"], found["macs"]) == (counted["relus"], counted["macs"])
    assert list(found["protocols"]) == ["ours", "delphi", "cheetah"]
    assert "random" in " ".join(found["notes"])
    kept = sum(layer["kept"] for stage in counted["stages"] for layer in stage["layers"])
    assert found["relu_layers"] == kept and found["linear_layers"] == 21
    # besides the ReLU layers and the arg-max some rounds refresh the ring of a long linear stretch
    assert kept + 1 <= found["protocols"]["ours"]["online"]["round_trips"] <= kept + 3
    assert set(found["links"]) == set(found["protocols"]["ours"]["online"]["seconds"]) == {"lan", "wan"}
    again = deepreduce.estimate("resnet18", input=SIZE, classes=10, width=0.125, keep=["S2", "S3"], thin=True)
    assert found == again and json.loads(json.dumps(found)) is not None


def test_the_randomness_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    deepreduce.estimate("resnet18", input=SIZE, width=0.125, protocols=["delphi"])
    assert torch.equal(torch.rand(3), expected)


def test_a_recipe_and_a_run(saved: Path) -> None:
    recipe = deepreduce.estimate(folder_of(saved))
    assert recipe["relus"] > 0 and "images" in " ".join(recipe["notes"]) and recipe["network"].startswith("resnet18, ")
    run = deepreduce.estimate(str(saved), relus=recipe["relus"])
    assert run["protocols"] == recipe["protocols"] and run["network"] == recipe["network"]
    assert deepreduce.estimate(folder_of(saved) / "recipe.json") == recipe
    fewer = deepreduce.estimate(folder_of(saved), protocols=OTHERS, links=["wan", Link("mine", 1e7, 0.1)])
    assert set(fewer["protocols"]) == set(OTHERS) and set(fewer["links"]) == {"wan", "mine"}
    assert fewer["protocols"]["delphi"]["client_bytes"] == recipe["protocols"]["delphi"]["client_bytes"]


def test_exported_files_have_the_numbers_of_their_program(tmp_path: Path) -> None:
    program = residual()
    classes = tuple(map(str, range(program.public.classes)))
    model = make_model(program, About("small", program.public.relus, classes, (0.0,) * 3, (1.0,) * 3))
    server, client = save_model(model, tmp_path)
    found = deepreduce.estimate(client)
    assert found == deepreduce.estimate(str(server))
    assert found["network"] == "small" and found["relus"] == program.public.relus and found["relu_layers"] == 5
    online = found["protocols"]["ours"]["online"]
    assert online["round_trips"] == len(model.client.layout.rounds) + 1
    gates = sum(unit.and_gates for unit in model.client.layout.units)
    assert online["and_gates"] == gates
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(RecipeError, match=r"Got: .*Do: "):
        deepreduce.estimate(tmp_path / "broken.safetensors")


class Wide(nn.Module):
    """A convolution of a map whose rows are too long for one polynomial."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fc = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.first(x)), 1).flatten(1))


def test_a_layer_that_is_too_large_is_named() -> None:
    with pytest.raises(NetworkError, match=r"every linear layer.*Got: .*Do: .*delphi or cheetah.*Where: first"):
        deepreduce.estimate(Wide(), input=(1, 4, 4096), classes=3)
    found = deepreduce.estimate(Wide(), input=(1, 4, 4096), classes=3, protocols=["cheetah"])
    assert found["linear_layers"] == 2 and found["network"] == "Wide"


def test_a_module_keeps_its_weights_and_says_so() -> None:
    module = Wide().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = deepreduce.estimate(module, input=(1, 8, 8), classes=3, protocols=["ours"], links=["lan"])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert "weights are random" not in " ".join(found["notes"])


@pytest.mark.parametrize(
    ("network", "more", "words"),
    [
        ("resnet18", {}, "--input"),
        ("resnet81", {"input": SIZE}, "did you mean resnet18"),
        ("resnet18", {"input": SIZE, "relus": 5}, "--relus"),
        ("resnet18", {"input": SIZE, "full": nn.ReLU()}, "Where: full"),
        ("resnet18", {"input": SIZE, "protocols": ["delfi"]}, "did you mean delphi"),
        ("resnet18", {"input": SIZE, "links": ["man"]}, "--link"),
        ("resnet18", {"input": SIZE, "cores": 0}, "--cores"),
        ("resnet18", {"input": SIZE, "together": 0}, "--together"),
        ("resnet18", {"input": SIZE, "together": 1025}, "--together"),
        ("resnet18", {"input": SIZE, "keep": ["S9"]}, "S9"),
        ("nowhere/at/all", {}, "must exist"),
        ("none.safetensors", {}, "must exist"),
    ],
)  # fmt: skip
def test_wrong_usage_names_the_place(network: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=r"Got: [\s\S]*Do: ") as error:
        deepreduce.estimate(network, **more)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"input": SIZE}, "--input"),
        ({"classes": 10}, "--classes"),
        ({"keep": ["S2"]}, "--keep"),
        ({"thin": True}, "--thin"),
        ({"alpha": 0.5}, "--alpha"),
        ({"rho": 0.5}, "--rho"),
        ({"width": 0.5}, "--width"),
        ({"relus": 1000}, "--relus"),
    ],
)
def test_what_is_saved_is_not_reduced_again(saved: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        deepreduce.estimate(folder_of(saved), **more)
    assert words in str(error.value)


def test_a_run_needs_a_budget_and_a_folder_something_in_it(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--relus"):
        deepreduce.estimate(saved)
    with pytest.raises(UsageError, match=r"smallest has"):
        deepreduce.estimate(saved, relus=1)
    with pytest.raises(UsageError, match=r"recipe.json.*Got: neither"):
        deepreduce.estimate(tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(RunError):
        deepreduce.estimate(tmp_path)


def test_only_our_engine_needs_the_extra() -> None:
    code = (
        "import sys; sys.modules['seal'] = None\n"
        "import deepreduce\n"
        "asked = dict(input=(3, 16, 16), width=0.125, classes=10)\n"
        "assert deepreduce.estimate('resnet18', protocols=['delphi', 'cheetah'], **asked)['relus'] > 0\n"
        "try:\n    deepreduce.estimate('resnet18', **asked)\n"
        "except deepreduce.DeepReduceError as error:\n    assert \"pip install 'deepreduce[private]'\" in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
