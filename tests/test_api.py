"""The verbs of the package, as a user calls them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import deepreduce
from deepreduce import NetworkSpec, RunOptions, SearchSettings, TrainingConfig
from deepreduce.cli._console import Watcher
from deepreduce.errors import DataError, NetworkError, RecipeError, RunError, UsageError
from deepreduce.reduction.recipe import fit_tensors


class Net(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu3(self.conv3(self.relu2(self.conv2(self.relu1(self.conv1(x))))))
        return self.fc(torch.flatten(self.pool(x), 1))


@pytest.fixture
def data() -> Any:
    random = np.random.default_rng(0)
    labels = np.arange(80) % 2
    images = (random.integers(0, 100, (80, 8, 8)) + 120 * labels[:, None, None]).astype(np.uint8)
    return deepreduce.from_arrays(images, labels)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(3)
    return Net()


QUICK = SearchSettings(training=TrainingConfig(epochs=1, flip=False), criticality_plain=False)
ONE = RunOptions(threads=1)


def test_example_reduce_then_ask_the_front(network: nn.Module, data: Any, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    front = deepreduce.reduce(network, data, out=tmp_path / "run", settings=QUICK, options=ONE)
    entry = front.best(relus=400)
    reduced, recipe = front.load(entry, network=network)
    assert recipe.relus == entry["relus"] <= 400
    assert reduced(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    assert json.loads((tmp_path / "run" / "front.json").read_text()) == front.content
    assert deepreduce.Front.read(tmp_path / "run").content == front.content
    assert front.content["teacher"]["latency"]["delphi"] > entry["latency"]["delphi"] > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Smooth(nn.Module):
    """Has a layer that cannot run privately."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU()), Net()
        self.rest.conv1 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x))


def test_a_network_that_cannot_run_privately_is_reduced_all_the_same(data: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = deepreduce.plan_reduce(Smooth(), data, out=tmp_path / "run", settings=QUICK, options=ONE)
    assert "not run privately as it is" in plan["note"] and "SiLU" in plan["note"]
    front = deepreduce.reduce(Smooth(), data, out=tmp_path / "run", settings=QUICK, options=ONE)
    reasons = [entry["private"]["reason"] for entry in front.finished]
    assert len(reasons) > 1 and all("SiLU" in reason or "silu" in reason for reason in reasons)
    assert front.content["fronts_in_seconds"] == {"lan": [], "wan": []}
    with pytest.raises(UsageError, match="no network with seconds"):
        front.best(seconds=1.0)


class Gated(nn.Module):
    """What newer networks have: group and layer norms, maps with their channels last, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Linear(8, 2)
        self.inside, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.gate = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.norm(self.conv(x)))
        y = self.narrow(nn.functional.gelu(self.wide(self.inside(x.permute(0, 2, 3, 1)))))
        y = y * torch.sigmoid(self.gate(y.mean((1, 2), keepdim=True)))
        return self.fc((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


def test_gates_and_norms_are_exchanged_and_come_back_in_a_network_with_other_weights(data: Any, tmp_path: Path) -> None:
    training = replace(QUICK.training, epochs=5)
    settings = replace(QUICK, method="deepreduce-masks", budget=300, training=training)
    front = deepreduce.reduce(Gated(), data, out=tmp_path, settings=settings, exchange_activations=True, options=ONE)
    (entry,) = front.content["candidates"]
    assert front.content["teacher"]["relus"] == 24 * 64 and entry["relus"] <= 300 and "online" in entry["private"]
    images = torch.rand(3, 1, 8, 8)
    for each in (entry, front.content["teacher"]):
        first, second = (front.load(each, network=Gated())[0].eval() for _ in range(2))
        assert torch.equal(first(images), second(images))
        assert {type(module).__name__ for module in first.modules()}.isdisjoint(
            {"GroupNorm", "LayerNorm", "SiLU", "GELU"}
        )


def test_activations_that_are_no_relus_are_exchanged_and_learnt(data: Any, tmp_path: Path) -> None:
    """The teacher trains with ReLUs from the weights that come, and the networks run privately."""
    torch.manual_seed(3)
    network = Net()
    network.relu1, network.relu2, network.relu3 = nn.SiLU(), nn.LeakyReLU(0.1), nn.GELU()
    with pytest.raises(NetworkError, match="exchange-activations"):
        deepreduce.reduce(network, data, out=tmp_path / "refused", settings=QUICK, options=ONE)
    slow = replace(QUICK, method="snl", budget=100, training=replace(QUICK.training, learning_rate=1e-6))
    more = {"exchange_activations": True, "options": ONE}
    front = deepreduce.reduce(network, data, out=tmp_path / "run", settings=slow, **more)
    assert front.content["settings"]["trained"] is False and front.content["teacher"]["epochs"] == 1
    assert front.content["network"]["exchange_activations"] is True and front.content["teacher"]["relus"] == 384
    given = network.state_dict()
    trained = load_file(tmp_path / "run" / "teacher" / "seed0" / "weights.safetensors")
    assert all(torch.allclose(trained[name], value, atol=1e-3) for name, value in given.items())
    (entry,) = front.content["candidates"]
    assert entry["relus"] <= 100 and "online" in entry["private"]
    for each in (entry, front.content["teacher"]):
        reduced, _ = front.load(each, network=network)
        assert not any(isinstance(module, (nn.SiLU, nn.LeakyReLU, nn.GELU)) for module in reduced.modules())
    assert isinstance(network.relu1, nn.SiLU)
    save_file(given, tmp_path / "weights.safetensors")
    again = deepreduce.reduce(
        Net2(), data, out=tmp_path / "file", settings=slow, weights=tmp_path / "weights.safetensors", **more
    )
    assert again.content["settings"]["trained"] is False
    from_file = load_file(tmp_path / "file" / "teacher" / "seed0" / "weights.safetensors")
    assert all(torch.allclose(from_file[name], value, atol=1e-3) for name, value in given.items())
    outcome = deepreduce.train(network, data, out=tmp_path / "teacher", settings=slow, **more)
    assert outcome.complete
    assert deepreduce.profile(network, input=(1, 8, 8), classes=2, exchange_activations=True)["relus"] == 384
    estimate = deepreduce.estimate(network, input=(1, 8, 8), classes=2, exchange_activations=True, protocols=("ours",))
    assert estimate["relus"] == 384
    plan = deepreduce.plan_reduce(network, data, out=tmp_path / "plan", settings=slow, **more)
    assert next(job for job in plan["jobs"] if job["kind"] == "teacher")["epochs"] == 1


class Net2(Net):
    def __init__(self) -> None:
        super().__init__()
        self.relu1, self.relu2, self.relu3 = nn.Mish(), nn.ELU(), nn.Hardswish()


def test_private_cost_can_be_left_out_and_added_later(network: nn.Module, data: Any, tmp_path: Path) -> None:
    more: dict[str, Any] = {"out": tmp_path / "run", "settings": QUICK}
    without = deepreduce.reduce(network, data, **more, options=RunOptions(threads=1, private=False))
    assert without.content["private"] is None and without.content["fronts_in_seconds"] == {}
    assert all(entry["private"] is None for entry in without.finished)
    later = deepreduce.reduce(network, data, **more, options=ONE)
    assert all(entry["private"]["online"]["seconds"]["lan"] > 0 for entry in later.finished)
    assert without.content["front"] == later.content["front"]


def test_profile_counts_before_and_after() -> None:
    full = deepreduce.profile("resnet18", input=(3, 32, 32))
    assert full["relus"] == 557_056  # the paper's count
    cut = deepreduce.profile("resnet18", input=(3, 32, 32), keep=["S2", "S3", "S4"], thin=True)
    assert cut["relus"] == 114_688 and cut["before"]["relus"] == 557_056
    with pytest.raises(UsageError):
        deepreduce.profile("resnet18", input=(3, 32, 32), keep=["S9"])


def test_a_module_brings_its_weights_unless_it_is_trained_here(network: nn.Module, data: Any, tmp_path: Path) -> None:
    outcome = deepreduce.train(network, data, out=tmp_path / "trained", settings=QUICK, options=ONE)
    assert outcome.runs[0]["epochs"] == 1
    defaults = deepreduce._api._Order(network=network, data=data, out=tmp_path)  # type: ignore[attr-defined]
    assert defaults.search_settings().trained and defaults.search_settings().training.flip


@pytest.mark.parametrize(("trained", "epochs"), [(None, 0), (True, 0), (False, 1)])
def test_a_module_with_settings_brings_its_weights_unless_they_say_otherwise(
    trained: bool | None, epochs: int, network: nn.Module, data: Any, tmp_path: Path
) -> None:
    settings = replace(QUICK, trained=trained)
    front = deepreduce.reduce(network, data, out=tmp_path / "run", settings=settings, options=ONE)
    teacher = front.content["teacher"]
    assert teacher["epochs"] == epochs and front.content["settings"]["trained"] is (epochs == 0)
    kept = torch.equal(front.load(teacher, network=network)[0].fc.weight, network.fc.weight)  # type: ignore
    assert kept is (epochs == 0)


def test_another_method_in_the_same_folder_says_whose_front_it_is(
    network: nn.Module, data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, told in (("deepreduce", False), ("deepreduce", False), ("channel-pruning", True)):
        with Watcher() as watcher:
            settings = replace(QUICK, method=method)
            deepreduce.reduce(network, data, out=tmp_path / "run", settings=settings, options=ONE, progress=watcher)
        shown = capsys.readouterr().err
        assert ("those of deepreduce come back when its command is repeated" in shown) is told


def test_other_pooling_in_the_same_folder_says_whose_front_it_is(
    data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    network = Net()
    network.relu2 = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
    for keeps, told in ((False, ""), (True, "those of snl with average pooling"), (False, "those of snl come back")):
        with Watcher() as watcher:
            settings = replace(QUICK, method="snl", budget=100, keep_max_pooling=keeps)
            deepreduce.reduce(network, data, out=tmp_path / "run", settings=settings, options=ONE, progress=watcher)
        shown = " ".join(capsys.readouterr().err.split())
        assert told in shown and ("come back when its command" in shown) is bool(told)


def test_weights_as_people_have_them_fit(network: nn.Module, data: Any, tmp_path: Path) -> None:
    """Saved from DataParallel, in half precision, without the counters of batch norm."""
    network.add_module("bn", nn.BatchNorm2d(4))
    state = network.state_dict()
    as_saved = {f"module.{name}": value.half() for name, value in state.items() if "num_batches" not in name}
    save_file(as_saved, tmp_path / "w.safetensors")
    fitted = fit_tensors(state, load_file(tmp_path / "w.safetensors"))
    assert fitted.keys() == state.keys() and all(fitted[name].dtype == state[name].dtype for name in state)
    assert torch.equal(fitted["fc.weight"], state["fc.weight"].half().float())
    plain = Net()
    state = plain.state_dict()
    save_file({f"module.{name}": value.half() for name, value in state.items()}, tmp_path / "w.safetensors")
    front = deepreduce.reduce(
        plain, data, out=tmp_path / "run", settings=QUICK, options=ONE, weights=tmp_path / "w.safetensors"
    )
    taught, _ = front.load(front.content["teacher"], network=plain)
    assert torch.equal(taught.fc.weight, state["fc.weight"].half().float())  # type: ignore[union-attr,arg-type]
    other = {name.replace("fc", "head"): value for name, value in state.items()}
    assert fit_tensors(state, other).keys() == other.keys()  # what matters is refused as before


def test_a_network_that_came_trained_and_guesses_is_told_at_once(
    network: nn.Module, data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.no_grad():
        network.fc.weight.zero_()  # type: ignore[union-attr,operator]
    with Watcher() as watcher:
        deepreduce.reduce(network, data, out=tmp_path / "run", settings=QUICK, options=ONE, progress=watcher)
    lines = capsys.readouterr().err.splitlines()
    told = next(number for number, line in enumerate(lines) if "no better than chance with 2 classes" in line)
    assert "--mean" in lines[told] and told < next(n for n, line in enumerate(lines) if line.startswith("Criticality"))


def test_weights_come_from_a_safetensors_file_and_the_module_stays(
    network: nn.Module, data: Any, tmp_path: Path
) -> None:
    other = Net()
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    kept = network.fc.weight.detach().clone()  # type: ignore[union-attr]
    front = deepreduce.reduce(
        network, data, out=tmp_path / "run", settings=QUICK, options=ONE, weights=tmp_path / "w.safetensors"
    )
    teacher, _ = front.load(front.content["teacher"], network=network)
    assert torch.equal(teacher.fc.weight, other.fc.weight)  # type: ignore[union-attr]
    assert torch.equal(network.fc.weight, kept)  # type: ignore[union-attr,arg-type]
    with pytest.raises(RunError, match="other weights"):
        deepreduce.reduce(network, data, out=tmp_path / "run", settings=QUICK, options=ONE)


def test_weights_that_do_not_fit_are_refused(network: nn.Module, data: Any, tmp_path: Path) -> None:
    save_file(Net(classes=5).state_dict(), tmp_path / "w.safetensors")
    torch.save(network.state_dict(), tmp_path / "w.pt")
    with pytest.raises(RecipeError, match=r"a file of torch\.save.*save_file\(torch\.load"):
        deepreduce.reduce(network, data, out=tmp_path / "run", weights=tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        with pytest.raises(RecipeError):
            deepreduce.reduce(network, data, out=tmp_path / "run", settings=QUICK, weights=tmp_path / name)
    assert not (tmp_path / "run").exists()


def test_trained_needs_a_network_that_brings_weights(data: Any, tmp_path: Path) -> None:
    trained = SearchSettings(training=QUICK.training, trained=True)
    for name in ("resnet18", "timm:resnet18"):
        with pytest.raises(UsageError, match="random weights"):
            deepreduce.reduce(name, data, out=tmp_path / "run", settings=trained)
    with pytest.raises(UsageError, match="leave the width at 1"):
        deepreduce.reduce(Net(), data, out=tmp_path / "run", width=0.5)


def test_names_are_checked_before_images_are_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="random weights"):
        deepreduce.reduce("resnet18", "no/such-data", out=tmp_path / "run", settings=SearchSettings(trained=True))
    with pytest.raises(UsageError, match="must be importable"):
        deepreduce.reduce("no_such_module:net", "no/such-data", out=tmp_path / "run")
    with pytest.raises(UsageError, match="resnet18"):
        deepreduce.reduce("resnet81", "no/such-data", out=tmp_path / "run")
    with pytest.raises((UsageError, DataError), match="digits"):
        deepreduce.reduce("resnet18", "digitz", out=tmp_path / "run")
    with pytest.raises(UsageError, match="tensorboard"):
        deepreduce.reduce("resnet18", "digitz", out=tmp_path / "run", options=RunOptions(tracker="tensorbord"))


SIZE = (1, 8, 8)

WRONG: list[tuple[str, Callable[[], object], str]] = [
    ("profile", lambda: deepreduce.profile(42, input=SIZE), "NETWORK"),
    ("profile, a list", lambda: deepreduce.profile([Net()], input=SIZE), "NETWORK"),
    ("input missing", lambda: deepreduce.profile("resnet18", input=None), "--input"),
    ("input, a number", lambda: deepreduce.profile("resnet18", input=8), "--input"),
    ("input, a text", lambda: deepreduce.profile("resnet18", input="3x32x32"), "--input"),
    ("classes", lambda: deepreduce.profile("resnet18", input=(3, 8, 8), classes="10"), "--classes"),
    ("keep, a number", lambda: deepreduce.profile(Net(), input=SIZE, classes=2, keep=2), "--keep"),
    ("keep, a text", lambda: deepreduce.profile(Net(), input=SIZE, classes=2, keep="S2"), "--keep"),
    ("thin", lambda: deepreduce.profile(Net(), input=SIZE, classes=2, thin="no"), "--thin"),
    ("alpha", lambda: deepreduce.profile(Net(), input=SIZE, classes=2, alpha="0.5"), "--alpha"),
    ("rho", lambda: deepreduce.profile(Net(), input=SIZE, classes=2, rho="0.5"), "--rho"),
    ("beta missing", lambda: deepreduce.profile(Net(), input=SIZE, classes=2, beta=None), "--beta"),
    ("beta", lambda: deepreduce.profile(Net(), input=SIZE, classes=2, beta="0.5"), "--beta"),
    ("trim", lambda: deepreduce.profile(Net(), input=SIZE, classes=2, trim=[0.5]), "--trim"),
    ("width", lambda: deepreduce.profile(Net(), input=SIZE, classes=2, width="1"), "--width"),
    ("exchange", lambda: deepreduce.profile(Net(), input=SIZE, classes=2, exchange_activations=3), "--exchange-activations"),
    ("take_census", lambda: deepreduce.take_census(None, SIZE), "network"),
    ("take_census, input", lambda: deepreduce.take_census(Net(), "1x8x8"), "--input"),
    ("build", lambda: deepreduce.build("resnet18"), "spec"),
    ("build, alpha", lambda: deepreduce.build(NetworkSpec("resnet18", (3, 8, 8), 10), alpha="1"), "--alpha"),
    ("spec, name", lambda: NetworkSpec(3, (3, 8, 8), 10), "NETWORK"),
    ("spec, width", lambda: NetworkSpec("resnet18", (3, 8, 8), 10, "1"), "--width"),
    ("save", lambda: deepreduce.save(3, 3, 3), "folder"),
    ("save, network", lambda: deepreduce.save("nowhere", 3, 3), "network"),
    ("save, recipe", lambda: deepreduce.save("nowhere", Net(), 3), "recipe"),
    ("load", lambda: deepreduce.load(3), "folder"),
    ("load, network", lambda: deepreduce.load("nowhere", network="Net"), "network"),
    ("load_data", lambda: deepreduce.load_data(3), "--data"),
    ("from_arrays", lambda: deepreduce.from_arrays(np.zeros((4, 8, 8), np.uint8), [0, 1] * 2, classes="ab"), "classes"),
    ("Front.read", lambda: deepreduce.Front.read(3), "folder"),
    ("Front.best", lambda: deepreduce.Front({}, Path("run")).best(relus="50000"), "--relus"),
    ("Front.load", lambda: deepreduce.Front({}, Path("run")).load("teacher"), "entry"),
    ("reduce", lambda: deepreduce.reduce(3, "digits", out="run"), "NETWORK"),
    ("reduce, data", lambda: deepreduce.reduce("resnet18", 3, out="run"), "--data"),
    ("reduce, out", lambda: deepreduce.reduce("resnet18", "digits", out=None), "--out"),
    ("reduce, settings", lambda: deepreduce.reduce("resnet18", "digits", out="run", settings={}), "settings"),
    ("reduce, width", lambda: deepreduce.reduce("resnet18", "digits", out="run", width="1"), "--width"),
    ("reduce, weights", lambda: deepreduce.reduce("resnet18", "digits", out="run", weights=3), "--weights"),
    ("reduce, workers", lambda: deepreduce.reduce("resnet18", "digits", out="run", workers="2"), "--workers"),
    ("reduce, options", lambda: deepreduce.reduce("resnet18", "digits", out="run", options={}), "options"),
    ("plan_reduce", lambda: deepreduce.plan_reduce("resnet18", "digits", out="run", settings={}), "settings"),
    ("train", lambda: deepreduce.train("resnet18", "digits", out="run", settings={}), "settings"),
    ("plan_train", lambda: deepreduce.plan_train("resnet18", "digits", out="run", options=3), "options"),
    ("estimate", lambda: deepreduce.estimate(42), "RECIPE_OR_NETWORK"),
    ("estimate, nothing", lambda: deepreduce.estimate(None), "RECIPE_OR_NETWORK"),
    ("estimate, links", lambda: deepreduce.estimate("resnet18", input=(3, 8, 8), links=[3]), "--link"),
    ("estimate, a link", lambda: deepreduce.estimate("resnet18", input=(3, 8, 8), links="lan"), "--link"),
    ("estimate, protocols", lambda: deepreduce.estimate("resnet18", input=(3, 8, 8), protocols=[3]), "--protocol"),
    ("estimate, cores", lambda: deepreduce.estimate("resnet18", input=(3, 8, 8), cores="2"), "--cores"),
    ("estimate, relus", lambda: deepreduce.estimate("resnet18", relus="9"), "--relus"),
    ("estimate, full", lambda: deepreduce.estimate("resnet18", full="Net"), "full"),
    ("export", lambda: deepreduce.export(42, out="deploy", relus=1), "RUN"),
    ("export, out", lambda: deepreduce.export("run", out=None, relus=1), "--out"),
    ("export, images", lambda: deepreduce.export("run", out="deploy", relus=1, images="512"), "--images"),
    ("export, settings", lambda: deepreduce.export("run", out="deploy", relus=1, settings={}), "settings"),
    ("export, entry", lambda: deepreduce.export("run", out="deploy", entry=3), "entry"),
    ("settings, budget", lambda: SearchSettings(budget="x"), "--budget"),
    ("settings, budgets", lambda: SearchSettings(method="snl", budget=9, budgets=9), "--budget"),
    ("settings, training", lambda: SearchSettings(training={}), "training"),
    ("settings, method", lambda: SearchSettings(method=3), "--method"),
    ("settings, flag", lambda: SearchSettings(criticality_plain="no"), "--distilled-only"),
    ("training, a text", lambda: TrainingConfig(learning_rate="x"), "--learning-rate"),
    ("training, flag", lambda: TrainingConfig(flip="no"), "--no-flip"),
    ("options, workers", lambda: RunOptions(workers="x"), "--workers"),
    ("options, executor", lambda: RunOptions(executor=3), "--executor"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "where"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG])
def test_what_is_of_another_type_is_refused_in_four_parts(
    call: Callable[[], object], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        call()
    assert re.fullmatch(rf"[^.].*\. Got: .+\. Do: .+\. Where: {where}\.", str(error.value))
    assert not any(tmp_path.iterdir())


def test_a_text_that_looks_like_a_number_is_shown_as_a_text() -> None:
    for error, call in (
        ("Got: '0.5'. Do: use 0.5,", lambda: deepreduce.profile(Net(), input=SIZE, classes=2, alpha="0.5")),
        ("Got: '1'. Do: leave the width at 1", lambda: deepreduce.profile(Net(), input=SIZE, classes=2, width="1")),
        ("Got: '3x32x32'. Do: write it like 3x32x32", lambda: NetworkSpec("resnet18", "3x32x32", 10)),
    ):
        with pytest.raises(UsageError, match=re.escape(error)):
            call()


def test_a_saved_network_comes_back_from_a_path_that_is_a_text(tmp_path: Path) -> None:
    spec = NetworkSpec("resnet18", (3, 8, 8), 10, 0.0625)
    network = deepreduce.build(spec).eval()
    counted = deepreduce.take_census(network, spec.input)
    recipe = deepreduce.Recipe(
        spec, None, counted.relus, counted.macs, counted.params, (0.5,) * 3, (0.25,) * 3, tuple("abcdefghij")
    )
    deepreduce.save(str(tmp_path / "saved"), network, recipe)
    again, read = deepreduce.load(str(tmp_path / "saved"))
    images = torch.rand(2, 3, 8, 8)
    assert read == recipe and torch.equal(again(images), network(images))


def test_a_plan_writes_nothing(network: nn.Module, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepreduce.training.estimate._MEASURE_SECONDS", 0.02)
    found = deepreduce.plan_reduce(network, data, out=tmp_path / "run", settings=QUICK, options=ONE, workers=3)
    assert found["workers"] == 3 and found["hours"] > 0
    alone = deepreduce.plan_train(network, data, out=tmp_path / "run", settings=QUICK, options=ONE)
    assert [(job["kind"], job["seeds"], job["status"]) for job in alone["jobs"]] == [("teacher", 1, "to do")]
    assert 0 < alone["hours"] < found["hours"] * 3
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_versions_and_device() -> None:
    found = deepreduce.environment()
    assert found["deepreduce"] == deepreduce.__version__
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"]
    assert found["cores"] >= 1 and isinstance(found["devices"], list)


def test_one_beta_and_one_trim_are_for_all_stages() -> None:
    asked = {"input": (3, 32, 32), "keep": ["S3", "S4"], "thin": True, "width": 0.125}
    counted = deepreduce.profile("resnet18", **asked, beta=0.5, trim=1)  # type: ignore[arg-type]
    assert counted == deepreduce.profile("resnet18", **asked, beta=[0.5, 0.5], trim=[1, 1])  # type: ignore[arg-type]
    assert counted["relus"] == 2 * 16 * 6 * 6 + 2 * 32 * 2 * 2
