"""Counts of any network against PyTorch itself: hooks that count, and parameters that are summed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepreduce.census import take_census
from deepreduce.errors import NetworkError

from .zoo import CLASSES, INPUT, ZOO, Head, without_relus


def macs_by_hooks(network: nn.Module, input: tuple[int, int, int]) -> int:
    """Count the multiplications of convolution and linear modules from their shapes, call by call."""
    total = 0

    def count(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d):
            total += args[0].numel() * module.weight[0].numel()
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    network.eval()(torch.zeros(1, *input))
    for hook in hooks:
        hook.remove()
    return total


def test_an_example() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
    census = take_census(network, INPUT)
    assert (census.relus, census.macs, census.params) == (4 * 14**2, 27 * 4 * 14**2 + 784 * 5, 108 + 785 * 5)
    (stage,) = census.stages
    assert (stage.name, stage.resolution, stage.layers[0].name, stage.layers[0].shape) == (
        "S1",
        (14, 14),
        "1",
        (4, 14, 14),
    )


@pytest.mark.parametrize("name", ZOO)
def test_counts_of_users_networks(name: str) -> None:
    network = ZOO[name]().eval()
    with without_relus(set()) as eager:
        network(torch.rand(1, *INPUT))
    census = take_census(network, INPUT)
    assert census.relus == sum(eager.sizes)
    assert census.params == sum(parameter.numel() for parameter in network.parameters())
    functional = 3 * 8 * 9 * 256 if name == "functional" else 0
    assert census.macs == macs_by_hooks(network, INPUT) + functional
    assert census.macs == sum(layer.macs for layer in census.layers)
    assert census.stage_of() == {layer.name: stage.name for stage in census.stages for layer in stage.layers}


def test_resolutions_that_come_back_are_one_stage() -> None:
    census = take_census(ZOO["unet"](), INPUT)
    assert [(stage.resolution, len(stage.layers)) for stage in census.stages] == [
        ((16, 16), 2),
        ((8, 8), 1),
        ((1, 1), 1),
    ]
    assert [layer.shape for layer in census.stages[2].layers] == [(12,)]


def test_after_addition() -> None:
    census = take_census(ZOO["resnet50"](), INPUT)
    assert [layer.after_addition for layer in census.stages[2].layers] == [False, True, False, False, True]
    assert [layer.after_addition for layer in take_census(ZOO["timm"](), INPUT).layers] == [False, True]


def test_adding_a_constant_is_no_residual_block() -> None:
    class HardSwish(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), Head(8)
            self.shift = nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = F.relu(x * F.relu6(x + 3) / 6 + self.shift)
            return self.head(F.relu(x + x.mean()))

    assert [layer.after_addition for layer in take_census(HardSwish(), INPUT).layers] == [False, False, True]


def test_keeping() -> None:
    census = take_census(ZOO["unet"](), INPUT)
    kept = census.layers[0].name
    fewer = census.keeping({kept})
    assert fewer.relus == census.layers[0].relus < census.relus
    assert (fewer.macs, fewer.params) == (census.macs, census.params)
    assert [layer.name for layer in fewer.layers if layer.kept] == [kept]
    value = fewer.to_json()
    assert value["relus"] == fewer.relus
    assert [layer["kept"] for stage in value["stages"] for layer in stage["layers"]] == [True, False, False, False]


def test_relu6_that_stay_are_said_to_take_more_in_private() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 2, 1), nn.Hardtanh(0, 6), nn.ReLU())
    census = take_census(network, (3, 2, 2))
    assert (census.relus, census.capped) == (16 + 8 + 8, 16 + 8)
    assert census.to_json()["notes"][-1].startswith("24 of the ReLUs are ReLU6")
    left = census.keeping({"1", "4"}, {"1": 5})
    assert left.capped == 5 and left.to_json()["notes"][-1].startswith("5 of the ReLUs")
    assert census.keeping({"4"}).to_json()["notes"] == []


def test_the_network_stays_as_it_was() -> None:
    network = ZOO["resnet50"]().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    take_census(network, INPUT)
    assert network.training and network.relu.inplace
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@settings(max_examples=25, deadline=None)
@given(
    channels=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    stride=st.integers(1, 3),
)
def test_any_stack_of_convolutions(channels: list[int], height: int, width: int, stride: int) -> None:
    layers: list[nn.Module] = []
    expected_relus = expected_macs = 0
    inputs, rows, columns = 3, height, width
    for outputs in channels:
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU()]
        rows, columns = -(-rows // stride), -(-columns // stride)
        expected_relus += outputs * rows * columns
        expected_macs += 9 * inputs * outputs * rows * columns
        inputs = outputs
    census = take_census(nn.Sequential(*layers), (3, height, width))
    assert (census.relus, census.macs) == (expected_relus, expected_macs)
    sizes = [stage.resolution[0] * stage.resolution[1] for stage in census.stages]
    assert sizes == sorted(sizes, reverse=True)
    assert [stage.name for stage in census.stages] == [f"S{n}" for n in range(1, len(sizes) + 1)]


def test_double_and_half_precision() -> None:
    counts = [
        take_census(ZOO["lists"]().to(kind), INPUT).to_json() for kind in (torch.float32, torch.float64, torch.bfloat16)
    ]
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize(("size", "words"), [((1, 16, 16), "to have 3 channels"), ((4, 16, 16), "to have 3 channels")])
def test_images_of_the_wrong_channel_count(size: tuple[int, int, int], words: str) -> None:
    with pytest.raises(NetworkError, match=words) as caught:
        take_census(ZOO["lists"](), size)
    assert "must take images of " + "x".join(map(str, size)) in str(caught.value).lower()
    assert "zoo.py:" in str(caught.value)


def test_images_of_the_wrong_size() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, CLASSES))
    with pytest.raises(
        NetworkError, match=r"must take images of 3x17x17.*shapes cannot be multiplied.*Where: layer 3\.$"
    ):
        take_census(network, (3, 17, 17))


def test_a_network_with_two_inputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.relu(x + y)

    with pytest.raises(NetworkError, match="parameter y"):
        take_census(Two(), INPUT)


def test_a_network_without_relus_names_what_it_has_instead() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.GELU())
    with pytest.raises(NetworkError, match="must have ReLUs") as caught:
        take_census(network, INPUT)
    assert "Tanh is an activation" in str(caught.value) and "GELU" in str(caught.value)
    assert "AvgPool2d" not in str(caught.value)
