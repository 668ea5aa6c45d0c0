"""ReLUs in place of other activations: the network that its owner would have written with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deepreduce.census import find_relus, trace
from deepreduce.errors import NetworkError, UsageError
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import exchange_activations, make_base

MODULES = [
    nn.LeakyReLU(0.1), nn.PReLU(), nn.PReLU(4), nn.RReLU(), nn.ELU(), nn.CELU(), nn.SELU(), nn.GELU(), nn.SiLU(),
    nn.Mish(), nn.Softplus(), nn.Hardswish(), nn.LeakyReLU(0.2, inplace=True), nn.SiLU(inplace=True),
]  # fmt: skip
FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    lambda x: F.leaky_relu(x, 0.1), F.gelu, F.silu, F.elu, F.hardswish, F.mish, torch.selu, torch.celu,
    lambda x: F.gelu(input=x, approximate="tanh"), lambda x: F.leaky_relu(x, 0.1, inplace=True), F.softplus,
]  # fmt: skip


class Net(nn.Module):
    """Three activations, one module called twice."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.act, self.function = module, function

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv1(x))
        x = self.function(self.conv2(x)) + x
        return self.fc(self.act(x).mean((2, 3)))


@pytest.mark.parametrize("module", MODULES, ids=str)
@pytest.mark.parametrize("number", range(len(FUNCTIONS)))
def test_it_is_the_network_with_relus(module: nn.Module, number: int) -> None:
    network = trace(Net(module, FUNCTIONS[number]))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    own = exchange_activations(network, (3, 6, 6))
    written = Net(nn.ReLU(), F.relu)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(own.eval()(x), written.eval()(x))
    assert own.state_dict().keys() == written.state_dict().keys()
    assert [site.name for site in find_relus(own)] == ["act", "net:relu", "act#2"]
    assert network.state_dict().keys() == before.keys() and not find_relus(network)


def test_the_weights_of_a_functional_prelu_go_with_it() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.slope, self.fc = nn.Conv2d(3, 4, 3), nn.Parameter(torch.ones(1)), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.prelu(weight=self.slope, input=self.conv(x)).mean((2, 3)))

    own = exchange_activations(trace(Functional()), (3, 5, 5))
    assert "slope" not in own.state_dict() and own(torch.randn(1, 3, 5, 5)).shape == (1, 5)
    assert len(find_relus(own)) == 1


def test_norms_with_an_activation_inside_keep_their_statistics() -> None:
    """As timm writes them: functions on the tensors of a module that is never called itself."""

    class NormAct(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
            return F.silu(x)

    network = nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    base = make_base(NetworkSpec("Users", (3, 6, 6), 5, exchange_activations=True), network)
    assert base.census.relus == 4 * 16
    assert base.network.state_dict().keys() == network.state_dict().keys()


def test_nothing_to_exchange_is_an_error() -> None:
    for name in ("resnet18", "vgg16"):
        with pytest.raises(UsageError, match="something to exchange"):
            make_base(NetworkSpec(name, (3, 32, 32), 10, 0.125, exchange_activations=True))
    gated = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UsageError, match="something to exchange"):
        make_base(NetworkSpec("Users", (3, 8, 8), 4, exchange_activations=True), gated)


def test_a_base_counts_them_and_its_name_says_so() -> None:
    network: Any = Net(nn.SiLU(), F.gelu)
    with pytest.raises(NetworkError, match="exchange-activations"):
        make_base(NetworkSpec("Users", (3, 6, 6), 5), network)
    spec = NetworkSpec("Users", (3, 6, 6), 5, exchange_activations=True)
    base = make_base(spec, network)
    assert base.census.relus == 3 * 4 * 36
    assert NetworkSpec.from_json(spec.to_json()) == spec
    assert "exchange_activations" not in NetworkSpec("Users", (3, 6, 6), 5).to_json()
    with pytest.raises(ValueError, match="exchange_activations"):
        NetworkSpec.from_json({**spec.to_json(), "exchange_activations": 1})
