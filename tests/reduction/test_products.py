"""Gates and activations among the products of a network's own values."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deepreduce.census import find_relus, trace
from deepreduce.errors import UsageError
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import exchange_activations, fix_gates, make_base
from deepreduce.reduction.products import find_products

INPUT = (3, 6, 6)


class Net(nn.Module):
    """A convolution, any function of its map that may use two further layers, and a classifier."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.other, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)
        self.relu6, self.sigmoid, self.function = nn.ReLU6(), nn.Sigmoid(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.function(self, self.conv(x)).mean((2, 3)))


def images() -> Tensor:
    return torch.randn(5, *INPUT, generator=torch.Generator().manual_seed(1))


def swish_of_a_sum(net: Net, x: Tensor) -> Tensor:
    x = x + net.other(x)
    return x * torch.sigmoid(x)


ACTIVATIONS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "swish": lambda _, x: x * torch.sigmoid(x),
    "swish with a module": lambda net, x: net.sigmoid(x) * x,
    "swish in place": lambda _, x: x.mul_(x.sigmoid()),
    "quick gelu": lambda _, x: x * torch.sigmoid(1.702 * x),
    "hard swish, divided last": lambda _, x: x * F.relu6(x + 3) / 6,
    "hard swish, divided first": lambda net, x: x * (net.relu6(x + 3) / 6),
    "hard swish in place": lambda _, x: x.mul(F.relu6(x + 3).div_(6)),
    "hard swish with a clamp": lambda _, x: x * (x + 3).clamp(0, 6) * (1 / 6),
    "mish": lambda _, x: x * torch.tanh(F.softplus(x)),
    "gelu": lambda _, x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "gelu, halved last": lambda _, x: x * (1.0 + torch.erf(x / math.sqrt(2.0))) * 0.5,
    "gelu by tanh": lambda _, x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3)))),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_that_is_written_out_becomes_a_relu(name: str) -> None:
    network = trace(Net(ACTIVATIONS[name]))
    own = exchange_activations(network, INPUT)
    torch.testing.assert_close(own.eval()(images()), Net(lambda _, x: F.relu(x)).eval()(images()))
    assert len(find_relus(own)) == 1 and not find_products(own)
    assert own.state_dict().keys() <= network.state_dict().keys()


def test_the_nearest_tensor_is_the_source() -> None:
    own = exchange_activations(trace(Net(swish_of_a_sum)), INPUT).eval()
    torch.testing.assert_close(own(images()), Net(lambda net, x: F.relu(x + net.other(x))).eval()(images()))


def squeeze(net: Net, x: Tensor) -> Tensor:
    count, channels, _, _ = x.size()
    gate = torch.sigmoid(net.fc(F.relu(x.mean((2, 3)).view(count, channels))))
    return x * gate.view(count, channels, 1, 1).expand_as(x)


def hard_squeeze(net: Net, x: Tensor) -> Tensor:
    x = net.relu6(x)
    return x.mul_(F.relu6(net.other(F.adaptive_avg_pool2d(x, 1)) + 3) / 6)


GATES: dict[str, tuple[Callable[[Net, Tensor], Tensor], Callable[[Net, Tensor], Tensor]]] = {
    "squeeze and excitation": (squeeze, lambda net, x: torch.sigmoid(net.fc(F.relu(x.mean((2, 3)))))[:, :, None, None]),
    "with a hard sigmoid": (
        hard_squeeze, lambda net, x: F.relu6(net.other(F.relu6(x).mean((2, 3), keepdim=True)) + 3) / 6,
    ),
    "by index": (
        lambda net, x: x * net.fc(x.mean((2, 3))).sigmoid()[:, :, None, None],
        lambda net, x: torch.sigmoid(net.fc(x.mean((2, 3))))[:, :, None, None],
    ),
    "a clamp": (
        lambda net, x: x * (0.2 * net.other(x.mean((2, 3), keepdim=True)) + 0.5).clamp(0, 1),
        lambda net, x: (0.2 * net.other(x.mean((2, 3), keepdim=True)) + 0.5).clamp(0, 1),
    ),
    "of positions": (
        lambda _, x: torch.sigmoid(x.mean(1, keepdim=True)) * x, lambda _, x: torch.sigmoid(x.mean(1, keepdim=True)),
    ),
    "around one": (
        lambda net, x: x * (1 + torch.tanh(net.other(x.mean((2, 3), keepdim=True)))),
        lambda net, x: 1 + torch.tanh(net.other(x.mean((2, 3), keepdim=True))),
    ),
    "of shares": (
        lambda net, x: x * torch.softmax(net.other(x.mean((2, 3), keepdim=True)), 1),
        lambda net, x: torch.softmax(net.other(x.mean((2, 3), keepdim=True)), 1),
    ),
    "of every element": (
        lambda net, x: x * torch.sigmoid(net.other(x)), lambda net, x: torch.sigmoid(net.other(x)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GATES)
def test_a_gate_becomes_its_mean_for_each_channel(name: str) -> None:
    function, gate = GATES[name]
    network = trace(Net(function)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    own, count = fix_gates(network, INPUT)
    assert count == 1 and not find_products(own) and own.training
    plain = Net(function).eval()
    noise = torch.randn(8, *INPUT, generator=torch.Generator().manual_seed(0))
    map_of = F.relu6 if function is hard_squeeze else (lambda x: x)
    with torch.no_grad():
        mean = gate(plain, plain.conv(noise)).expand(8, 4, 6, 6).mean((0, 2, 3))
        expected = plain.fc((map_of(plain.conv(images())) * mean[:, None, None]).mean((2, 3)))
        torch.testing.assert_close(own.eval()(images()), expected)
    assert set(own.state_dict()) == {
        "conv.weight", "conv.bias", "fc.weight", "fc.bias", "deepreduce_scale_0.weight",
    }  # fmt: skip
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


NEITHER: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "a square": lambda _, x: x * x,
    "a map of ReLU6 times what has no bounds": (lambda net, x: net.relu6(x) * net.other(x.mean((2, 3), keepdim=True))),
    "two maps": lambda net, x: x * net.other(x),
    "a constant": lambda net, x: x * torch.sigmoid(net.fc.bias)[None, :, None, None],
    "a clamp with one bound": lambda net, x: x * net.other(x).clamp(min=1),
}


@pytest.mark.parametrize("name", NEITHER)
def test_other_products_stay(name: str) -> None:
    network = trace(Net(NEITHER[name]))
    assert not find_products(network)
    with pytest.raises(UsageError, match="something to exchange"):
        exchange_activations(network, INPUT)


def test_a_gate_of_what_is_no_feature_map_stays() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return (x.flatten(2) * torch.sigmoid(net.fc(x.mean((2, 3))))[:, :, None]).unflatten(2, (6, 6))

    network = trace(Net(forward))
    assert [product.source for product in find_products(network)] == [None]
    assert fix_gates(network, INPUT)[1] == 0


def test_a_gated_network_is_counted_without_its_gates() -> None:
    """The ReLU inside the gate is gone with it; weights that the network brings decide the constants."""
    network = Net(lambda net, x: squeeze(net, F.relu(x)))
    assert make_base(NetworkSpec("Users", INPUT, 4), network).census.relus == 4 * 36 + 4
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.bias.copy_(torch.tensor([-2.0, 0.0, 1.0, 3.0]))
    base = make_base(NetworkSpec("Users", INPUT, 4, exchange_activations=True), network)
    assert base.census.relus == 4 * 36
    constants = base.network.get_parameter("deepreduce_scale_0.weight").flatten()
    torch.testing.assert_close(constants, torch.sigmoid(network.fc.bias))


def test_a_batch_norm_in_front_takes_the_constants_over() -> None:
    """Also through an activation that becomes a ReLU; where something else reads it, they stay a layer."""

    class Gated(nn.Module):
        def __init__(self, gated: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.convs = nn.ModuleList(nn.Conv2d(3 if index == 0 else 4, 4, 3, padding=1) for index in range(4))
            self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))
            self.gates, self.fc, self.gated = (
                nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(4)),
                nn.Linear(4, 4),
                gated,
            )
            for norm in self.norms:
                nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.uniform_(norm.bias)

        def gate(self, index: int, x: Tensor) -> Tensor:
            if self.gated:
                gate = torch.sigmoid(self.gates[index](x.mean((2, 3), keepdim=True)))
                return x * (gate - 2 if index == 3 else gate)
            return x * self.means[index]

        def forward(self, x: Tensor) -> Tensor:
            act = F.silu if self.gated else F.relu
            x = self.gate(0, act(self.norms[0](self.convs[0](x))))
            x = self.gate(1, self.norms[1](self.convs[1](x))) + x
            y = act(self.norms[2](self.convs[2](x)))
            x = self.gate(2, y) + y
            x = self.gate(3, act(self.norms[3](self.convs[3](x))))
            return self.fc(x.mean((2, 3)))

    network, written = Gated(gated=True).eval(), Gated(gated=False).eval()
    constants = fix_gates(trace(network), INPUT)[0]
    written.means = [constants.get_submodule(f"deepreduce_scale_{index}").weight.view(1, 4, 1, 1) for index in range(4)]
    own = exchange_activations(trace(network), INPUT).eval()
    torch.testing.assert_close(own(images()), written(images()))
    left = {key.split(".")[0] for key in own.state_dict() if key.startswith("deepreduce_scale")}
    assert left == {"deepreduce_scale_2", "deepreduce_scale_3"}  # read twice; not positive
    assert set(own.norms.state_dict()) == set(network.norms.state_dict())
