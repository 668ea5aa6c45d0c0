"""Removing ReLUs gives what plain PyTorch gives with the same calls patched into the identity."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, fx, nn

from deepreduce.census import find_relus, trace
from deepreduce.errors import NetworkError
from deepreduce.reduction import FadingReLU, finish_fading, remove_relus, set_fade

from ...census.zoo import INPUT, SPELLINGS, ZOO, Functions, randomise, without_relus

IMAGES = torch.randn(2, *INPUT, generator=torch.Generator().manual_seed(0))


def eager(network: nn.Module, removed: set[int] | None) -> Tensor:
    with torch.no_grad(), without_relus(removed):
        output: Tensor = network.eval()(IMAGES.clone())
    return output


def compare(network: nn.Module, removed: set[int]) -> fx.GraphModule:
    traced = trace(network)
    names = [site.name for site in find_relus(traced)]
    reduced = remove_relus(traced, {names[index] for index in removed})
    with torch.no_grad():
        torch.testing.assert_close(reduced.eval()(IMAGES.clone()), eager(network, removed), rtol=1e-5, atol=1e-6)
    assert len(find_relus(reduced)) == len(names) - len(removed)
    assert set(reduced.state_dict()) == set(network.state_dict())
    return reduced


def test_an_example() -> None:
    network = randomise(ZOO["resnet50"]())
    traced = trace(network)
    reduced = remove_relus(traced, ["relu", "layer1.0.relu#3"])
    assert [site.name for site in find_relus(reduced)][:3] == ["layer1.0.relu", "layer1.0.relu#2", "layer1.1.relu"]
    torch.testing.assert_close(reduced.eval()(IMAGES), eager(network, {0, 3}), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_each_alone_and_all_together(name: str) -> None:
    network = randomise(ZOO[name]())
    count = len(find_relus(trace(network)))
    assert not torch.allclose(eager(network, None), eager(network, set()), rtol=0.01)  # so that the test can fail
    for index in range(count):
        compare(network, {index})
    reduced = compare(network, set(range(count)))
    reduced.train()(IMAGES).square().sum().backward()
    assert all(parameter.grad is not None for parameter in reduced.parameters())


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling(name: str) -> None:
    network = randomise(Functions(SPELLINGS[name]))
    for removed in ({0}, {1}, {0, 1}):
        compare(network, removed)


@pytest.mark.parametrize("name", ["shared in place", "statements", "augmented"])
def test_every_subset_of_relus_in_place(name: str) -> None:
    network = randomise(ZOO[name]())
    count = len(find_relus(trace(network)))
    for size in range(count + 1):
        for removed in itertools.combinations(range(count), size):
            compare(network, set(removed))


def test_a_later_write_does_not_reach_the_input_of_a_removed_relu() -> None:
    """`copy_` has no out-of-place form, so it stays: the identity must then be a copy."""

    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 8, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            y = self.relu(x)
            y.copy_(y + 1)
            return y - x

    reduced = remove_relus(trace(Overwrites()), ["relu"])
    torch.testing.assert_close(reduced(IMAGES), torch.ones(2, 8, 14, 14))


def test_gradients_flow_past_a_relu_in_place_that_shares_the_input_of_a_removed_one() -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
            self.relu1, self.relu2 = nn.ReLU(), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv1(x)
            y = self.conv2(self.relu1(x))
            return y + self.relu2(x)

    reduced = remove_relus(trace(Shares()), ["relu1"])
    reduced(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in reduced.parameters())


def test_fading_goes_from_relu_to_identity() -> None:
    network = randomise(ZOO["mobilenet_v2"]())
    traced = trace(network).eval()
    names = [site.name for site in find_relus(traced)]
    fading = remove_relus(traced, names, fading=True).eval()
    assert sum(isinstance(module, FadingReLU) for module in fading.modules()) == len(names)
    assert set(fading.state_dict()) == set(network.state_dict())
    close = {"rtol": 1e-4, "atol": 1e-5}
    with torch.no_grad():
        torch.testing.assert_close(fading(IMAGES), eager(network, set()), **close)
        set_fade(fading, 1)
        torch.testing.assert_close(fading(IMAGES), eager(network, None), **close)
        set_fade(fading, 0.3)
        finished = finish_fading(fading)
        torch.testing.assert_close(finished(IMAGES), eager(network, None), **close)
    assert not any(isinstance(module, FadingReLU) for module in finished.modules())
    assert any(isinstance(module, FadingReLU) for module in fading.modules())


@pytest.mark.parametrize("kind", ["relu", "relu6"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_fading_relu_is_the_blend(kind: str, dtype: torch.dtype) -> None:
    module = FadingReLU(kind)
    set_fade(module, 0.25)
    x = torch.tensor([-8.0, 0.0, 4.0, 16.0], dtype=dtype)
    expected = [-2.0, 0.0, 4.0, 16.0 if kind == "relu" else 0.75 * 6 + 4]
    assert module(x).tolist() == expected
    assert module(x).dtype == dtype


def test_the_network_itself_stays() -> None:
    traced = trace(ZOO["lists"]())
    names = [site.name for site in find_relus(traced)]
    reduced = remove_relus(traced, names)
    assert [site.name for site in find_relus(traced)] == names
    with torch.no_grad():
        next(reduced.parameters()).fill_(7)
    assert not torch.equal(next(traced.parameters()), next(reduced.parameters()))


def test_an_unknown_call_site_gets_near_misses() -> None:
    with pytest.raises(NetworkError, match=r"did you mean layer1\.0\.relu"):
        remove_relus(trace(ZOO["resnet50"]()), ["layer1.0.relu9"])
