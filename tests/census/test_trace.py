"""Tracing: same outputs in both modes, same names, nothing shared; and an error with a line where it cannot be done."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, fx, nn

from deepreduce.census import (
    check_trace,
    is_traced,
    other_nonlinearities,
    take_census,
    trace,
    training_path,
    unwrap,
)
from deepreduce.errors import NetworkError

from .zoo import INPUT, ZOO, Head, TimmLike, randomise


class Net(nn.Module):
    """A convolution, and a forward that each test writes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), Head(8)


def refusal(network: nn.Module) -> str:
    with pytest.raises(NetworkError) as caught:
        take_census(network, INPUT)
    return str(caught.value)


def test_an_example() -> None:
    network = ZOO["resnet50"]()
    traced = trace(network)
    assert list(traced.state_dict()) == list(network.state_dict())
    assert traced.training and not trace(network.eval()).training


@pytest.mark.parametrize("name", ZOO)
def test_same_outputs_in_evaluation(name: str) -> None:
    network = randomise(ZOO[name]()).eval()
    images = torch.rand(3, *INPUT, generator=torch.Generator().manual_seed(1))
    traced = trace(network)
    torch.testing.assert_close(traced(images.clone()), network(images.clone()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_same_outputs_and_statistics_in_training(name: str) -> None:
    """Batch norm and dropout follow the mode, as functions too: the same seed gives the same masks."""
    network = randomise(ZOO[name]()).train()
    traced = trace(network)
    images = torch.rand(4, *INPUT, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    expected = network(images.clone())
    torch.manual_seed(3)
    torch.testing.assert_close(traced(images.clone()), expected, rtol=1e-4, atol=1e-5)
    statistics = dict(network.named_buffers())
    for key, value in traced.named_buffers():
        torch.testing.assert_close(value, statistics[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_names_stay_through_copies_and_nothing_is_shared(name: str) -> None:
    network = ZOO[name]()
    before = copy.deepcopy(network.state_dict())
    traced = copy.deepcopy(trace(network))
    assert set(traced.state_dict()) == set(before)
    with torch.no_grad():
        for parameter in traced.parameters():
            parameter.fill_(7)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    traced.load_state_dict(before)


def test_a_traced_network_is_copied_and_a_users_graph_is_traced() -> None:
    traced = trace(ZOO["lists"]())
    again = trace(traced)
    assert is_traced(again) and again is not traced
    theirs = fx.symbolic_trace(ZOO["shared in place"]())
    assert not is_traced(theirs)
    assert len(take_census(theirs, INPUT).layers) == 3


def test_wrappers_are_taken_off() -> None:
    network = ZOO["unet"]()
    assert unwrap(nn.DataParallel(network)) is network
    assert set(trace(nn.DataParallel(network)).state_dict()) == set(network.state_dict())

    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = network

    assert unwrap(nn.DataParallel(Compiled())) is network


def test_a_users_batch_norm_becomes_a_plain_one() -> None:
    traced = trace(TimmLike())
    assert type(traced.get_submodule("bn1")) is nn.BatchNorm2d
    assert type(traced.get_submodule("bn2")) is nn.BatchNorm2d


def test_control_flow_on_data_names_the_line() -> None:
    class Branches(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x))
            if x.sum() > 0:
                x = x + 1
            return self.head(x)

    line = inspect.getsourcelines(Branches.forward)[1] + 2
    message = refusal(Branches())
    assert f"test_trace.py, line {line} (if x.sum() > 0:)" in message
    assert "no branch or loop may depend on the values" in message


def forwards() -> dict[str, tuple[Callable[[Net, Tensor], object], str]]:
    def loop(self: Net, x: Tensor) -> Tensor:
        return torch.stack([self.head(F.relu(self.conv(row[None]))) for row in x])

    def number(self: Net, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)) * float(x.mean()))

    def item(self: Net, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x[:, 0] = 0
        return self.head(x)

    return {
        "loop": (loop, "cannot be iterated"),
        "number": (number, "real number"),
        "item assignment": (item, "item assignment"),
    }


@pytest.mark.parametrize("name", forwards())
def test_what_cannot_be_traced_names_the_line(name: str) -> None:
    forward, words = forwards()[name]
    message = refusal(type("Users", (Net,), {"forward": forward})())
    assert words in message and "test_trace.py, line" in message


def test_in_place_on_a_part_of_a_tensor_is_refused() -> None:
    class Slices(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x[:, :4].relu_()
            return self.head(x)

    class Views(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x))
            x.flatten(1).sub_(0.1)
            return self.head(x)

    for kind in (Slices, Views):
        message = refusal(kind())
        assert "must give the outputs of the network itself" in message
        assert f"test_trace.py:{inspect.getsourcelines(kind.forward)[1] + 2}" in message


def test_stochastic_depth_of_torchvision_follows_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its function is a leaf for a tracer. Here a stand-in has its name and its arguments."""
    path = "torchvision.ops.stochastic_depth"
    module = ModuleType(path)
    source = """
import torch
def stochastic_depth(input, p, mode, training=True):
    return input * torch.empty(len(input), 1, 1, 1).bernoulli_(1 - p) if training and mode == "row" else input
torch.fx.wrap("stochastic_depth")
"""
    for name in ("torchvision", "torchvision.ops", path):
        monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, path, "exec"), module.__dict__)

    class Deep(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.head(x + module.stochastic_depth(F.relu(x), 0.5, "row", self.training))

    network = Deep()
    traced = trace(network)
    images = torch.rand(6, *INPUT, generator=torch.Generator().manual_seed(1))
    assert "stochastic_depth" not in traced.code
    assert not other_nonlinearities(traced)
    for mode in (False, True):
        network.train(mode), traced.train(mode)
        torch.manual_seed(3)
        expected = network(images)
        torch.manual_seed(3)
        torch.testing.assert_close(traced(images), expected)


def test_noise_in_evaluation_is_refused() -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(F.relu(self.conv(x)), 0.5))

    assert "same outputs twice" in refusal(Noisy())


def test_scripted_lazy_and_empty_modules_are_refused() -> None:
    class Scripted(Net):
        def __init__(self) -> None:
            super().__init__()
            self.inner = object.__new__(torch.jit.ScriptModule)
            nn.Module.__init__(self.inner)

    assert "scripted module" in refusal(Scripted())
    assert "inner" in refusal(Scripted())
    assert "seen no image" in refusal(nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU()))
    assert "meta device" in refusal(ZOO["lists"]().to("meta"))
    assert "forward" in refusal(Net())


def test_a_training_path_of_its_own_is_reported() -> None:
    class DropsPaths(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x))
            if self.training:
                x = x * torch.rand(1)
            return self.head(x)

    class Auxiliary(Net):
        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = F.relu(self.conv(x))
            y = self.head(x)
            return (y, self.head(x + 1)) if self.training else y

    class Refuses(Net):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and x.sum() > 0:
                return x
            return self.head(F.relu(self.conv(x)))

    line = inspect.getsourcelines(DropsPaths.forward)[1] + 3
    assert f"test_trace.py:{line}" in training_path(DropsPaths())
    assert "training takes" in training_path(Auxiliary())
    assert "cannot be traced" in training_path(Refuses())


@pytest.mark.parametrize("name", ZOO)
def test_batch_norm_and_dropout_are_no_path_of_their_own(name: str) -> None:
    assert training_path(ZOO[name]()) == ""


def test_check_trace_tells_a_wrong_graph() -> None:
    network = randomise(ZOO["unet"]())
    traced = trace(network)
    check_trace(network, traced, INPUT)
    with torch.no_grad():
        next(traced.parameters()).add_(0.1)
    with pytest.raises(NetworkError, match="outputs of the network itself"):
        check_trace(network, traced, INPUT)
