"""Batch norms in place of norms of single images, against the network that its owner would have written with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deepreduce._pricing import our_pricer
from deepreduce.census import trace
from deepreduce.errors import UsageError
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import exchange_activations, exchange_norms, make_base

INPUT = (3, 6, 6)


class Net(nn.Module):
    """A convolution, a norm of any kind, a ReLU and a classifier."""

    def __init__(self, norm: nn.Module, function: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, padding=1), norm, nn.Linear(4, 5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.norm(x) if self.function is None else self.function(self.norm, x)
        return self.fc(F.relu(x).mean((2, 3)))


def images() -> Tensor:
    return torch.randn(7, *INPUT, generator=torch.Generator().manual_seed(1))


def settle(norm: Any) -> Any:
    """Give a norm weights and biases that tell its channels apart."""
    generator = torch.Generator().manual_seed(2)
    for parameter in norm.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) + 0.5
    return norm


def same_as(own: nn.Module, written: nn.Module) -> None:
    """Hold a network against another one, by the statistics of a batch and by those that stay from it."""
    for mode in (True, False):
        torch.testing.assert_close(own.train(mode)(images()), written.train(mode)(images()))


def batch_norm(norm: Any, shape: tuple[int, ...] = (4,)) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(4)
    if norm.weight is not None:
        module.weight.data = norm.weight.detach().reshape(4, -1).mean(1)
        module.bias.data = norm.bias.detach().reshape(4, -1).mean(1)
    return module


NORMS: dict[str, Callable[[], nn.Module]] = {
    "group": lambda: nn.GroupNorm(2, 4),
    "group without weights": lambda: nn.GroupNorm(2, 4, affine=False),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance without weights": lambda: nn.InstanceNorm2d(4),
    "layer, over maps": lambda: nn.LayerNorm([4, 6, 6]),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_of_maps_becomes_a_batch_norm(name: str) -> None:
    norm = settle(NORMS[name]())
    network = trace(Net(norm))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    own = exchange_activations(network, INPUT)
    same_as(own, Net(batch_norm(norm)))
    assert {key for key in own.state_dict() if "norm" in key} == {
        f"deepreduce_norm_0.{key}" for key in nn.BatchNorm2d(4).state_dict()
    }
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "group": lambda norm, x: F.group_norm(x, 2, norm.weight, norm.bias, 1e-5),
    "group, by name": lambda norm, x: F.group_norm(x, num_groups=2, weight=norm.weight, bias=norm.bias),
    "group of torch": lambda norm, x: torch.group_norm(x, 2, norm.weight, norm.bias),
    "layer, channels last": lambda norm, x: F.layer_norm(
        x.permute(0, 2, 3, 1), (4,), norm.weight, norm.bias, 1e-6
    ).permute(0, 3, 1, 2),
    "layer, channels last, otherwise": lambda norm, x: torch.permute(
        F.layer_norm(torch.permute(x, [0, 2, 3, -3]), [4], norm.weight, bias=norm.bias), (0, -1, 1, 2)
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_becomes_a_batch_norm(name: str) -> None:
    norm = settle(nn.GroupNorm(2, 4))
    own = exchange_activations(trace(Net(norm, FUNCTIONS[name])), INPUT)
    same_as(own, Net(batch_norm(norm)))
    assert "permute" not in own.code and not any(key.startswith("norm.") for key in own.state_dict())


def test_a_norm_of_features() -> None:
    norm = settle(nn.LayerNorm(4))
    own = exchange_activations(
        trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm)), INPUT
    )
    module = own.get_submodule("deepreduce_norm_0")
    assert isinstance(module, nn.BatchNorm1d) and torch.equal(module.weight, norm.weight)


class Block(nn.Module):
    """As in ConvNeXt: norm and linear layers on maps with their channels last; and the same with channels first."""

    def __init__(self, exchanged: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, padding=1), settle(nn.LayerNorm(4)), nn.Linear(4, 5)
        self.wide, self.narrow, self.gamma = nn.Linear(4, 8), nn.Linear(8, 4, bias=False), nn.Parameter(torch.rand(4))
        self.again, self.drop, self.exchanged = nn.Linear(4, 4), nn.Dropout(0.5), exchanged
        self.batch_norm = batch_norm(self.norm) if exchanged else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = x.permute(0, 2, 3, 1)
        if self.batch_norm is None:
            y = self.norm(y)
            y = self.drop(self.narrow(F.gelu(self.wide(y))))
        else:
            y = self.batch_norm(x).permute(0, 2, 3, 1)
            y = self.narrow(F.relu(self.wide(y))).permute(0, 3, 1, 2).contiguous()
            y = self.drop(y).permute(0, 2, 3, 1)
        y = self.again(self.again(y) * 0.5 + y)
        z = (self.gamma * y).permute(0, 3, 1, 2) + x
        return self.fc(z.mean((2, 3)) + y.mean((1, 2)))


def test_layers_with_channels_last_have_them_first() -> None:
    network = Block(exchanged=False)
    own, written = exchange_activations(trace(network), INPUT), Block(exchanged=True)
    for mode in (True, False):
        torch.manual_seed(5)
        expected = written.train(mode)(images())
        torch.manual_seed(5)
        torch.testing.assert_close(own.train(mode)(images()), expected)
    assert own.code.count("permute(") == 1  # for the mean over what has its channels last
    assert sum(isinstance(module, nn.Conv2d) for module in own.modules()) == 4
    assert "gamma" in own.state_dict() and not any(key.startswith(("norm.", "wide.")) for key in own.state_dict())


def test_the_network_runs_privately_then() -> None:
    class Small(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            y = self.narrow(F.gelu(self.wide(self.norm(x.permute(0, 2, 3, 1)))))
            return self.fc((self.gamma * y).permute(0, 3, 1, 2).add(x).mean((2, 3)))

    network: Any = Small(exchanged=False)
    base = make_base(NetworkSpec("Users", INPUT, 5, exchange_activations=True), network)
    assert base.census.relus == 8 * 36 and base.census.layers[0].shape == (8, 6, 6)
    assert our_pricer().objection(base.network, INPUT) is None
    assert our_pricer().objection(trace(network), INPUT) is not None


def test_a_norm_over_something_else_stays() -> None:
    network = trace(Net(nn.LayerNorm([6, 6])))
    assert exchange_norms(network, INPUT) == 0
    with pytest.raises(UsageError, match="must be something to exchange"):
        exchange_activations(network, INPUT)
