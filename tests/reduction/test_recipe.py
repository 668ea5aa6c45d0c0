"""Saving and loading give the same network, or an error: never another network, never foreign code."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deepreduce._files import sha256_of
from deepreduce.errors import DeepReduceError, NetworkError, RecipeError, RunError
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import Candidate, build_candidate, census_of, make_base
from deepreduce.reduction.recipe import Recipe, load_network, load_tensors, probe_hash, read_tensors, save_network

from ..census.zoo import CLASSES, INPUT, ZOO, randomise

REFERENCE = NetworkSpec("resnet18", (3, 16, 16), CLASSES, width=0.1)
USERS = NetworkSpec("Users", INPUT, CLASSES)
CANDIDATE = Candidate(keep=("S2", "S3"), thin=True, alpha=0.5, rho=0.5)


def save(
    folder: Path, spec: NetworkSpec, network: nn.Module | None, candidate: Candidate | None
) -> tuple[nn.Module, Recipe]:
    base = make_base(spec, network)
    census = base.census if candidate is None else census_of(base, candidate)
    reduced = randomise(base.network if candidate is None else build_candidate(base, candidate)).eval()
    recipe = Recipe(
        spec=spec,
        candidate=candidate,
        relus=census.relus,
        macs=census.macs,
        params=census.params,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        classes=tuple("abcde"),
        extra={"validation_accuracy": 0.5},
    )
    save_network(folder, reduced, recipe)
    return reduced, recipe


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    save(folder, REFERENCE, None, CANDIDATE)
    return folder


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    """A saved network that a test may damage."""
    return Path(shutil.copytree(original, tmp_path, dirs_exist_ok=True))


def test_an_example(tmp_path: Path) -> None:
    reduced, recipe = save(tmp_path, REFERENCE, None, CANDIDATE)
    loaded, again = load_network(tmp_path)
    assert again == recipe
    images = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(loaded(images), reduced(images))
    assert not loaded.training
    assert list(loaded.state_dict()) == list(reduced.state_dict())


@pytest.mark.parametrize(
    "candidate", [None, CANDIDATE, Candidate(keep=("S1",), drop=("relu",)), Candidate(keep=("S1",), rho=0.5)]
)
def test_reference_networks_come_back(tmp_path: Path, candidate: Candidate | None) -> None:
    reduced, _ = save(tmp_path, REFERENCE, None, candidate)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(load_network(tmp_path)[0](images), reduced(images))
    loaded = load_network(tmp_path)[0].train()
    loaded(images).sum().backward()
    assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())


@pytest.mark.parametrize("collapse", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v1", "vgg16"])
def test_narrow_networks_come_back(tmp_path: Path, name: str, collapse: bool) -> None:
    """They are built without weights, on which other channels would be taken: the shapes must be those of the file."""
    spec = NetworkSpec(name, (3, 16, 16), CLASSES, width=0.1)
    stages = tuple(stage.name for stage in make_base(spec).census.stages)
    reduced, recipe = save(
        tmp_path, spec, None, Candidate(keep=stages[-2:], thin=True, beta=(0.3, 0.6), rho=0.5, collapse=collapse)
    )
    loaded, again = load_network(tmp_path)
    assert again == recipe and again.candidate is not None and again.candidate.beta == (0.3, 0.6)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(loaded(images), reduced(images))
    for beta in (0.3, [], [0.3], [0.3, 0], [1e-300, 0.6], [0.3, 1], [1, 1], [0.3, 2], [0.3, float("nan")], "0.3", None):
        change(tmp_path, "candidate.beta", beta)
        with pytest.raises((RecipeError, RunError)):
            load_network(tmp_path)
    change(tmp_path, "candidate.beta", [0.3, 0.6])
    load_network(tmp_path)
    if name != "vgg16":  # there the first pooling compares, and one convolution comes before it: nothing to collapse
        change(tmp_path, "candidate.collapse", not collapse)
        with pytest.raises(RecipeError):
            load_network(tmp_path)


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet_22_8"])
def test_bypassed_networks_come_back(tmp_path: Path, name: str) -> None:
    spec = NetworkSpec(name, (3, 16, 16), CLASSES, width=0.1)
    candidate = Candidate(keep=("S2", "S3"), thin=True, beta=(0.3, 1.0), trim=(1, 0), bypass=True)
    reduced, recipe = save(tmp_path, spec, None, candidate)
    loaded, again = load_network(tmp_path)
    assert again == recipe and again.candidate == candidate
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(loaded(images), reduced(images))
    for bypass in (False, 1, "true", None):
        change(tmp_path, "candidate.bypass", bypass)
        with pytest.raises((RecipeError, RunError)):
            load_network(tmp_path)


def test_trimmed_networks_come_back(tmp_path: Path) -> None:
    """No weight tells how much is trimmed; the counts do."""
    spec = NetworkSpec("resnet18", (3, 16, 16), CLASSES, width=0.1)
    candidate = Candidate(keep=("S2", "S3"), thin=True, beta=(0.5, 1.0), trim=(1, 1))
    reduced, recipe = save(tmp_path, spec, None, candidate)
    loaded, again = load_network(tmp_path)
    assert again == recipe and again.candidate is not None and again.candidate.trim == (1, 1)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(loaded(images), reduced(images))
    for trim in (
        1,
        [],
        [1],
        [1, 0],
        [0, 0],
        [2, 1],
        [1, 2],
        [1, 1.0],
        [1, -1],
        [1, True],
        [10**30, 1],
        ["1", "1"],
        None,
    ):
        change(tmp_path, "candidate.trim", trim)
        with pytest.raises((RecipeError, RunError)):
            load_network(tmp_path)
    change(tmp_path, "candidate.trim", [1, 1])
    load_network(tmp_path)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("name", ["resnet50", "timm", "functional", "lists"])
def test_users_networks_come_back(tmp_path: Path, name: str, alpha: float, beta: float) -> None:
    candidate = None if name == "functional" else Candidate(("S1",), alpha=alpha, beta=(beta,))
    reduced, recipe = save(tmp_path, USERS, ZOO[name](), candidate)
    loaded, again = load_network(tmp_path, ZOO[name]())
    assert again == recipe
    images = torch.rand(2, *INPUT)
    torch.testing.assert_close(loaded(images), reduced.eval()(images))


def test_the_files_are_json_and_safetensors(saved: Path) -> None:
    value = json.loads((saved / "recipe.json").read_text())
    assert (value["format"], value["version"]) == ("deepreduce.recipe", 1)
    assert value["weights_sha256"] == sha256_of(saved / "weights.safetensors")
    tensors = load_file(saved / "weights.safetensors")
    assert tensors["deepreduce.probe"].shape == (2, 3, 16, 16)
    assert sorted(path.name for path in saved.iterdir()) == ["recipe.json", "weights.safetensors"]


def test_the_probe_hash_holds_for_threads_layouts_and_modes() -> None:
    network = randomise(make_base(REFERENCE).network)
    probe = torch.randn(2, 3, 16, 16)
    expected = probe_hash(network.eval(), probe)
    assert probe_hash(network.train(), probe) == expected
    torch.set_num_threads(2)
    assert probe_hash(network, probe) == expected
    assert probe_hash(network.to(memory_format=torch.channels_last), probe) == expected  # type: ignore[call-overload]
    assert probe_hash(network, probe.to(memory_format=torch.channels_last)) == expected
    with torch.no_grad():
        network.get_submodule("layer4.1.bn2").bias.add_(0.01)  # type: ignore[union-attr,operator]
    assert probe_hash(network, probe) != expected


def change(folder: Path, path: str, value: Any) -> None:
    """Set a field of the recipe, given as `a.b.c`; `...` removes it."""
    recipe = json.loads((folder / "recipe.json").read_text())
    *parents, last = path.split(".")
    place = recipe
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    (folder / "recipe.json").write_text(json.dumps(recipe))


HOSTILE: list[tuple[str, Any]] = [
    ("network", ...),
    ("network", [1]),
    ("network.name", 7),
    ("network.input", [3, 16]),
    ("network.input", [3, 10**30, 16]),
    ("network.input", [3, 16.0, 16]),
    ("network.input", [3, 4096, 4096]),
    ("network.classes", -1),
    ("network.classes", 6),
    ("network.width", float("nan")),
    ("network.width", 16),
    ("network.width", 10**400),
    ("candidate", ...),
    ("candidate", "S1"),
    ("candidate", None),
    ("candidate.keep", ["../../../etc/passwd"]),
    ("candidate.keep", ["__proto__"]),
    ("candidate.keep", ["S9"]),
    ("candidate.keep", ["S2", "S2"]),
    ("candidate.keep", ["S2"]),
    ("candidate.thin", "yes"),
    ("candidate.alpha", 0),
    ("candidate.alpha", 1e-300),
    ("candidate.alpha", 1),
    ("candidate.rho", 0.3),
    ("candidate.rho", 1),
    ("candidate.drop", ["no.such.relu"]),
    ("candidate.drop", [{}]),
    ("relus", -1),
    ("relus", 1e400),
    ("relus", True),
    ("params", 0),
    ("macs", "many"),
    ("normalisation.mean", [0.5]),
    ("normalisation.std", [0.25]),
    ("normalisation.std", [0, 0, 0]),
    ("normalisation.std", [1, 1, float("inf")]),
    ("classes", ["a"]),
    ("classes", [1, 2, 3, 4, 5]),
    ("extra", []),
    ("probe", ...),
    ("probe", {}),
    ("probe.sha256", "0" * 64),
    ("probe.sha256", 0),
    ("weights_sha256", ...),
    ("weights_sha256", "0" * 64),
]


@pytest.mark.parametrize(("path", "value"), HOSTILE, ids=[f"{path}={str(value)[:20]}" for path, value in HOSTILE])
def test_a_changed_recipe_is_refused(saved: Path, path: str, value: Any) -> None:
    change(saved, path, value)
    with pytest.raises((RecipeError, RunError)):
        load_network(saved)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "one JSON object"),
        ("[]", "one JSON object"),
        ("null", "one JSON object"),
        ('{"format": "deepreduce.recipe"', "one JSON object"),
        ("[" * 100_000, "one JSON object"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "one JSON object"),
        ('{"format": "deepreduce.recipe", "version": 1, "version": 1}', "twice"),
        ('{"format": "deepreduce.recipe", "version": NaN}', "NaN"),
        ('{"format": "deepreduce.recipe", "version": ' + "9" * 5000 + "}", "one JSON object"),
        ('{"format": "deepreduce.recipe", "version": 2}', "version 1"),
        ('{"format": "deepreduce.front", "version": 1}', "deepreduce.recipe"),
        ('{"__proto__": {"format": "deepreduce.recipe", "version": 1}}', "deepreduce.recipe"),
    ],
)
def test_a_recipe_that_is_no_recipe(saved: Path, text: str, words: str) -> None:
    (saved / "recipe.json").write_text(text)
    with pytest.raises(RunError, match=words):
        load_network(saved)


def test_a_recipe_that_is_no_text_or_no_file(saved: Path) -> None:
    (saved / "recipe.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(RunError, match="one JSON object"):
        load_network(saved)
    for make in (lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        path = saved / "recipe.json"
        path.unlink() if path.is_file() or path.is_symlink() else path.rmdir()
        make(path)
        with pytest.raises(RunError, match="no regular file"):
            load_network(saved)
        if not path.is_dir():
            path.unlink()
            path.write_text("")


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must exist"):
        load_network(tmp_path / "nothing")


def test_loading_never_imports_what_the_recipe_names(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved / "evil.py").write_text("raise SystemExit('this code must never run')\n")
    monkeypatch.chdir(saved)
    monkeypatch.syspath_prepend(saved)
    for name in ("evil:network", "os:system", "timm:resnet18", "timm:hf_hub:someone/model", "../evil", "resnet18:evil"):
        change(saved, "network.name", name)
        with pytest.raises(RecipeError, match="may not choose which code runs"):
            load_network(saved)
        with pytest.raises(DeepReduceError):
            load_network(saved, ZOO["unet"]())
    assert "evil" not in sys.modules


def test_another_network_of_the_caller_is_refused(tmp_path: Path) -> None:
    save(tmp_path, USERS, ZOO["unet"](), None)
    with pytest.raises(RecipeError, match="ReLUs and parameters that the recipe states"):
        load_network(tmp_path, ZOO["lists"]())


def test_another_computation_with_the_same_weights_is_refused(tmp_path: Path) -> None:
    """The names, shapes and counts agree; only the outputs on the probe tell."""

    def network(kind: type[nn.Module]) -> nn.Module:
        layers = (
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            kind(2),
            nn.Conv2d(8, 5, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        return nn.Sequential(*layers)

    save(tmp_path, USERS, network(nn.MaxPool2d), None)
    with pytest.raises(RecipeError, match="outputs that were recorded"):
        load_network(tmp_path, network(nn.AvgPool2d))


Tensors = dict[str, torch.Tensor]


def rewrite(folder: Path, edit: Callable[[Tensors], object]) -> None:
    """Change the tensors, and the hash in the recipe with them, as an attacker would."""
    tensors = load_file(folder / "weights.safetensors")
    edit(tensors)
    save_file(tensors, folder / "weights.safetensors")
    change(folder, "weights_sha256", sha256_of(folder / "weights.safetensors"))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("fc.bias"), "'fc.bias' is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "'more' is unknown"),
        (lambda t: t.update({"fc.bias": torch.zeros(6)}), r"'fc.bias' is \(6,\)"),
        (lambda t: t.update({"fc.bias": torch.zeros(5, dtype=torch.float64)}), "float64, not"),
        (lambda t: t["fc.bias"].fill_(float("nan")), "'fc.bias' holds a NaN"),
        (lambda t: t["fc.bias"].fill_(float("inf")), "finite"),
        (lambda t: t["fc.bias"].add_(1), "recorded on the probe"),
        (lambda t: t["bn1.running_var"].fill_(-1), "finite"),
        (lambda t: t.pop("deepreduce.probe"), "hold a probe"),
        (lambda t: t.update({"deepreduce.probe": torch.zeros(0, 3, 16, 16)}), "hold a probe"),
        (lambda t: t.update({"deepreduce.probe": torch.zeros(2, 3, 8, 8)}), "hold a probe"),
        (lambda t: t.update({"deepreduce.probe": torch.zeros(2, 3, 16, 16, dtype=torch.int64)}), "hold a probe"),
        (lambda t: t["deepreduce.probe"].fill_(float("nan")), "finite"),
        (lambda t: t["deepreduce.probe"].zero_(), "recorded on the probe"),
    ],
)
def test_changed_weights_are_refused(saved: Path, edit: Callable[[Tensors], object], words: str) -> None:
    rewrite(saved, edit)
    with pytest.raises(RecipeError, match=words):
        load_network(saved)


def header(text: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        header(b"{}", length=10 * 2**30),
        header(b"{}", length=2**64 - 1),
        header(b"not json"),
        header(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        header(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', data=b"\0" * 4),
        header(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', data=b"\0" * 8),
        header(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}', data=b"\0" * 8),
        header(b'{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'),
        header(b'{"w":{"dtype":"PICKLE","shape":[1],"data_offsets":[0,4]}}', data=b"\0" * 4),
        b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.",
        b"PK\x03\x04" + b"\0" * 100,
    ],
)
def test_weights_that_are_no_safetensors(saved: Path, content: bytes) -> None:
    (saved / "weights.safetensors").write_bytes(content)
    with pytest.raises(RecipeError, match="those that were saved"):
        load_network(saved)
    change(saved, "weights_sha256", sha256_of(saved / "weights.safetensors"))
    with pytest.raises(RecipeError, match="safetensors"):
        load_network(saved)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights(saved: Path, part: float) -> None:
    path = saved / "weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(RecipeError, match="those that were saved"):
        load_network(saved)
    with pytest.raises(RecipeError, match="must be a safetensors file"):
        read_tensors(path)


def test_weights_that_are_missing_or_no_file(saved: Path) -> None:
    path = saved / "weights.safetensors"
    path.unlink()
    with pytest.raises(RecipeError, match="no file"):
        load_network(saved)
    for make in (lambda: path.symlink_to("/dev/zero"), lambda: os.mkfifo(path), path.mkdir):
        make()
        with pytest.raises(RecipeError, match="no file"):
            load_network(saved)
        with pytest.raises(RecipeError, match="no such file"):
            read_tensors(path)
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_huge_network_is_refused_before_its_memory_is_taken(saved: Path) -> None:
    """Width 16 would be 11 GB of weights; the file holds a few KB, and the counts can be made to agree."""
    change(saved, "network.width", 16)
    change(saved, "candidate", None)
    change(saved, "relus", 557_056 * 16 // 4)
    with pytest.raises(RecipeError, match="parameters that the recipe states") as caught:
        load_network(saved)
    params = int(str(caught.value).split(" and ")[2].split(" ")[0].replace(",", ""))
    assert params > 2 * 10**9
    change(saved, "params", params)
    with pytest.raises(RecipeError, match=r"(weights must fit|small enough)"):
        load_network(saved)


def test_a_network_that_takes_too_long_to_prove_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepreduce.reduction.recipe._MOST_MACS", 10)
    with pytest.raises(RecipeError, match="small enough"):
        load_network(saved)


def test_saving_a_network_with_infinite_outputs_is_refused(tmp_path: Path) -> None:
    base = make_base(USERS, ZOO["unet"]())
    with torch.no_grad():
        base.network.get_submodule("out").bias.fill_(float("inf"))  # type: ignore[union-attr,operator]
    recipe = Recipe(USERS, None, 1, 1, 1, (0.5,) * 3, (0.25,) * 3, tuple("abcde"))
    with pytest.raises(NetworkError, match="finite"):
        save_network(tmp_path, base.network, recipe)
    assert list(tmp_path.iterdir()) == []


def test_load_tensors_counts_the_differences(tmp_path: Path) -> None:
    network = nn.Linear(2, 3)
    with pytest.raises(RecipeError, match=r"'bias' is missing.*\(2 in all\)"):
        load_tensors(network, {"weight": torch.zeros(3, 2), "wight": torch.zeros(1)}, tmp_path)
    load_tensors(network, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, tmp_path)
    assert network.weight.sum() == 6
