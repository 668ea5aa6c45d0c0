"""Batch norms in place of norms of single images, against the network that its owner would have written with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deepreduce._pricing import our_pricer
from deepreduce.census import take_census, trace
from deepreduce.errors import UsageError
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import exchange_activations, exchange_norms, make_base
from deepreduce.reduction.exchange.exchanging import can_exchange

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
    "instance": lambda norm, x: F.instance_norm(x, weight=norm.weight, bias=norm.bias),
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


class Last(nn.Module):
    """Two permutations around any function, which is given its layers with an argument that says where channels are."""

    def __init__(self, function: Callable[[Last, Tensor], Tensor], exchanged: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        self.lin, self.again, self.function = nn.Linear(4, 4), nn.Linear(4, 4), function
        self.squeeze, self.excite = nn.Linear(4, 2), nn.Linear(2, 4)
        self.gamma, self.scalar = nn.Parameter(torch.rand(1, 1, 1, 4)), nn.Parameter(torch.tensor(0.3))
        self.place = nn.Parameter(torch.rand(6, 8, 4))
        norms = [settle(nn.LayerNorm(4)), settle(nn.LayerNorm(4)), settle(nn.LayerNorm([6, 8, 4]))]
        self.norms = nn.ModuleList(norms)
        self.batch_norms = nn.ModuleList()
        if exchanged:
            for norm in norms:
                module = nn.BatchNorm2d(4)
                module.weight.data = norm.weight.detach().reshape(-1, 4).mean(0)
                module.bias.data = norm.bias.detach().reshape(-1, 4).mean(0)
                self.batch_norms.append(module)

    def norm(self, index: int, y: Tensor) -> Tensor:
        if not self.batch_norms:
            return self.norms[index](y)
        return self.batch_norms[index](y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.function(self, self.conv(x)).mean((2, 3)))


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def residual(net: Last, x: Tensor) -> Tensor:
    y = last(x).contiguous()
    y = y + net.again(F.relu(net.lin(net.norm(0, y))))
    return first(F.relu(net.lin(y)).contiguous())


STRETCHES: dict[str, Callable[[Last, Tensor], Tensor]] = {
    "a residual inside": residual,
    "two norms, one behind the other": lambda net, x: first(net.lin(F.relu(net.norm(1, net.norm(0, last(x)))))),
    "parameters of other shapes": lambda net, x: first(
        net.lin(F.relu(net.gamma * net.norm(0, last(x)) * net.scalar + net.place))
    ),
    "a function": lambda net, x: first(F.relu(F.linear(net.norm(0, last(x)), net.lin.weight, net.lin.bias))),
    "a norm of whole maps": lambda net, x: first(F.relu(net.lin(net.norm(2, last(x))))),
    "another map beside": lambda net, x: first(F.relu(net.norm(0, last(x)) + torch.permute(x, (0, 2, 3, 1)))),
}


@pytest.mark.parametrize("name", STRETCHES)
def test_stretches_with_channels_last(name: str) -> None:
    shape, batch = (3, 6, 8), torch.randn(7, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    function = STRETCHES[name]
    own, written = exchange_activations(trace(Last(function, False)), shape), Last(function, True)
    for mode in (True, False):
        torch.testing.assert_close(own.train(mode)(batch), written.train(mode)(batch))
    layers = take_census(own, shape).layers
    assert all(layer.shape == (4, 6, 8) for layer in layers) and not can_exchange(own)
    assert our_pricer().objection(own, shape) is None


def test_a_gate_of_channels_that_are_last() -> None:
    def function(net: Last, x: Tensor) -> Tensor:
        y = F.gelu(net.lin(net.norm(0, last(x))))
        y = y * torch.sigmoid(4 * net.excite(net.squeeze(y.mean((1, 2), keepdim=True))))
        return first(net.again(y))

    network = Last(function, False)
    own = exchange_activations(trace(network), (3, 6, 8))
    constants = next(value for key, value in own.state_dict().items() if "scale" in key)
    assert constants.shape == (4, 1, 1, 1) and constants.std() > 0.01
    assert "permute" not in own.code and our_pricer().objection(own, (3, 6, 8)) is None


def test_one_norm_behind_another() -> None:
    """The second reads what takes the first one's place; in evaluation the copy is in evaluation as a whole."""
    norm = settle(nn.GroupNorm(2, 4))
    own = exchange_activations(trace(Net(norm, lambda norm, x: norm(norm(x)))), INPUT)
    module, other = batch_norm(norm), batch_norm(norm)
    same_as(own, Net(nn.Sequential(module, other)))
    own = exchange_activations(trace(Net(norm).double().eval()), INPUT)
    assert not any(module.training for module in own.modules())
    assert all(value.dtype == torch.float64 for value in own.state_dict().values() if value.is_floating_point())
    own(images().double())


def test_a_weight_in_another_type_is_found_and_one_that_is_computed_is_left() -> None:
    norm = settle(nn.GroupNorm(2, 4))
    cast = trace(Net(norm, lambda norm, x: F.group_norm(x, 2, norm.weight.to(x.dtype), norm.bias)))
    same_as(exchange_activations(cast, INPUT), Net(batch_norm(norm)))
    computed = trace(Net(norm, lambda norm, x: F.group_norm(x, 2, norm.weight + 1, norm.bias)))
    assert exchange_norms(computed, INPUT) == 0


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
