"""From a name to a network, and a clear error for every name that is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from deepreduce.errors import MissingExtraError, NetworkError, UsageError
from deepreduce.networks import NetworkSpec, build, check_name

Write = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a user's module into the working folder and return its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source: str) -> str:
        name = f"users_own_{abs(hash(source))}"
        (tmp_path / f"{name}.py").write_text(f"from torch import nn\n{source}")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


def spec(name: str) -> NetworkSpec:
    return NetworkSpec(name, (1, 8, 8), 7)


def test_an_example(module: Write) -> None:
    name = module("def net(num_classes):\n    return nn.Linear(3, num_classes)\n")
    network = build(spec(f"{name}:net"))
    assert isinstance(network, nn.Linear)
    assert network.out_features == 7


@pytest.mark.parametrize(
    ("signature", "values"),
    [
        ("num_classes, in_channels", "in_channels, num_classes"),
        ("*, classes, in_chans=3", "in_chans, classes"),
        ("", "1, 7"),
    ],
)
def test_the_function_is_given_what_it_takes(module: Write, signature: str, values: str) -> None:
    network = build(spec(module(f"def net({signature}):\n    return nn.Linear({values})\n") + ":net"))
    assert isinstance(network, nn.Linear)
    assert (network.in_features, network.out_features) == (1, 7)


def test_a_class_is_a_function_too(module: Write) -> None:
    name = module("class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(1, 7)\n")
    assert type(build(spec(f"{name}:Net"))).__name__ == "Net"


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet81", "resnet18"), ("ResNet34", "resnet34"), ("mobilenetv1", "mobilenet_v1"), ("vgg", "vgg16")],
)
def test_an_unknown_name_gets_near_misses(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}.*did you mean.*{near}"):
        build(spec(name))


def test_an_unknown_name_without_near_misses_lists_all() -> None:
    with pytest.raises(UsageError, match=r"resnet18, resnet34, mobilenet_v1, vgg16, wide_resnet_22_8"):
        build(spec("zzz"))


@pytest.mark.parametrize("name", ["no_such_module:net", ":net", ".relative:net", "a..b:net"])
def test_a_module_that_cannot_be_imported(name: str) -> None:
    with pytest.raises(UsageError, match="must be importable"):
        build(spec(name))


@pytest.mark.parametrize("source", ["raise RuntimeError('boom')", "def net(:\n", "1/0"])
def test_a_module_that_fails_on_import(module: Write, source: str) -> None:
    with pytest.raises(UsageError, match=r"must be importable.*(boom|SyntaxError|ZeroDivision)"):
        build(spec(f"{module(source)}:net"))


def test_a_missing_function_gets_near_misses(module: Write) -> None:
    name = module("def my_network():\n    return nn.Linear(1, 7)\n")
    with pytest.raises(UsageError, match="did you mean my_network") as caught:
        build(spec(f"{name}:my_netwrok"))
    assert f"{name}.py" in str(caught.value) and f"module '{name}' must" in str(caught.value)


def test_a_module_in_place_of_a_function_is_refused(module: Write) -> None:
    with pytest.raises(UsageError, match="that returns the network"):
        build(spec(module("net = nn.Linear(1, 7)\n") + ":net"))


def test_a_function_that_fails_or_needs_more(module: Write) -> None:
    name = module(
        "def fails():\n    raise ValueError('no weights')\ndef needs(depth):\n    return nn.Linear(1, depth)\n"
    )
    with pytest.raises(NetworkError, match="ValueError: no weights"):
        build(spec(f"{name}:fails"))
    with pytest.raises(NetworkError, match="depth"):
        build(spec(f"{name}:needs"))


def test_a_function_that_returns_something_else(module: Write) -> None:
    with pytest.raises(NetworkError, match=r"must return a torch\.nn\.Module\. Got: int"):
        build(spec(module("def net():\n    return 3\n") + ":net"))


def test_names_are_checked_without_building(module: Write) -> None:
    own = module("def net():\n    raise ValueError('built')\n")
    for name in ("resnet18", f"{own}:net"):
        check_name(name)
    for name, words in (
        ("resnet81", "did you mean resnet18"),
        (f"{own}:nte", "did you mean net"),
        ("no_such_module:net", "must be importable"),
    ):
        with pytest.raises(UsageError, match=words):
            check_name(name)


def test_timm_names_are_checked_without_building() -> None:
    pytest.importorskip("timm")
    check_name("timm:resnet18")
    with pytest.raises(UsageError, match="registered in timm"):
        check_name("timm:resnet81")


def test_only_reference_networks_are_scaled_when_built(module: Write) -> None:
    name = module("def net():\n    return nn.Linear(1, 7)\n") + ":net"
    for options in ({"alpha": 0.5}, {"rho": 0.5}):
        with pytest.raises(UsageError, match="Only reference networks"):
            build(spec(name), **options)
    with pytest.raises(UsageError, match=r"width 0\.5"):
        build(NetworkSpec(name, (1, 8, 8), 7, width=0.5))


def test_timm_without_the_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'deepreduce\[zoo\]'\. Where: NETWORK\.$"):
        build(spec("timm:resnet18"))


def test_timm_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package: names that are not registered never reach it, so nothing is fetched."""
    calls = []

    class Timm:
        @staticmethod
        def list_models() -> list[str]:
            return ["resnet18", "resnet26", "broken"]

        @staticmethod
        def create_model(name: str, **options: object) -> nn.Module:
            calls.append((name, options))
            if name == "broken":
                raise RuntimeError("not for one channel")
            return nn.Linear(1, 7)

    monkeypatch.setitem(sys.modules, "timm", Timm)
    assert isinstance(build(spec("timm:resnet18")), nn.Linear)
    assert calls == [("resnet18", {"pretrained": False, "num_classes": 7, "in_chans": 1})]
    with pytest.raises(UsageError, match="did you mean resnet18"):
        build(spec("timm:resnet81"))
    with pytest.raises(UsageError, match="registered in timm"):
        build(spec("timm:hf_hub:someone/something"))
    assert len(calls) == 1
    with pytest.raises(NetworkError, match="not for one channel"):
        build(spec("timm:broken"))
