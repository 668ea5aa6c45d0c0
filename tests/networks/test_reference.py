"""The reference networks have the sizes that were published or that a formula gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from deepreduce.errors import UsageError
from deepreduce.networks import REFERENCE, NetworkSpec, build, is_reference, resnet18


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def basic_resnet(blocks: tuple[int, ...], classes: int, width: float = 1) -> int:
    """Count the parameters of a ResNet of basic blocks: 9 i o per convolution, 2 o per batch norm."""
    c = int(64 * width)
    total, inputs = 27 * c + 2 * c, c
    for number, count in enumerate(blocks):
        outputs = int(64 * 2**number * width)
        for position in range(count):
            total += 9 * inputs * outputs + 9 * outputs**2 + 4 * outputs
            if number and not position:
                total += inputs * outputs + 2 * outputs
            inputs = outputs
    return total + inputs * classes + classes


def on_meta(name: str, **options: float) -> nn.Module:
    with torch.device("meta"):
        return build(NetworkSpec(name, (3, 32, 32), 100), **options)


def test_an_example() -> None:
    network = resnet18(input=(3, 32, 32), classes=10, alpha=0.25)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_220_132),  # 11,173,962 at 10 classes, a figure many repositories print
        ("resnet34", 21_328_292),
        ("mobilenet_v1", 3_217_226 + 90 * 1025),
    ],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    assert parameters(on_meta(name)) == count


@pytest.mark.parametrize("width", [1, 0.5, 0.25])
def test_parameters_of_resnets_by_formula(width: float) -> None:
    assert parameters(on_meta("resnet18", alpha=width)) == basic_resnet((2, 2, 2, 2), 100, width)
    assert parameters(on_meta("resnet34", alpha=width)) == basic_resnet((3, 4, 6, 3), 100, width)


def test_parameters_of_vgg16_by_formula() -> None:
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = sum(9 * i * o + 2 * o for i, o in itertools.pairwise(channels))
    classifier = 512 * 4096 + 4096 + 4096**2 + 4096 + 4096 * 100 + 100
    assert parameters(on_meta("vgg16")) == convolutions + classifier


def test_wide_resnet_has_seventeen_million_parameters() -> None:
    """The original paper prints 17.2 M for WRN-22-8."""
    assert round(parameters(on_meta("wide_resnet_22_8")) / 1e6, 1) == 17.2


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize(("alpha", "rho"), [(0.5, 1.0), (1.0, 0.5), (0.25, 0.125)])
def test_every_scale_runs_and_halves_its_feature_maps(name: str, alpha: float, rho: float) -> None:
    network = on_meta(name, alpha=alpha, rho=rho)
    seen: list[torch.Size] = []
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert network(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 100)
    full = {"mobilenet_v1": 32, "wide_resnet_22_8": 16}.get(name, 64)
    assert seen == [torch.Size([2, int(full * alpha), int(32 * rho), int(32 * rho)])]


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 8, 8), (2, 28, 20), (3, 33, 47)])
@pytest.mark.parametrize("name", REFERENCE)
def test_any_image_size_and_channel_count(name: str, size: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        network = build(NetworkSpec(name, size, 7, width=0.1))
        assert network(torch.zeros(2, *size)).shape == (2, 7)


def test_width_and_alpha_multiply() -> None:
    wide = build(NetworkSpec("resnet18", (3, 8, 8), 10, width=0.5), alpha=0.25)
    assert parameters(wide) == basic_resnet((2, 2, 2, 2), 10, 0.125)


def test_a_width_leaves_at_least_one_channel() -> None:
    network = build(NetworkSpec("mobilenet_v1", (3, 8, 8), 10, width=0.001))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("rho", [0, -0.5, 0.3, 0.75, 2, float("nan")])
def test_refuses_a_rho_that_is_no_stride(rho: float) -> None:
    with pytest.raises(UsageError, match=r"stride of 1/rho"):
        resnet18(input=(3, 8, 8), classes=10, rho=rho)


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf")])
def test_refuses_a_width_that_is_none(alpha: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        resnet18(input=(3, 8, 8), classes=10, alpha=alpha)


def test_names() -> None:
    assert is_reference("resnet18")
    assert not is_reference("timm:resnet18")
    assert list(REFERENCE) == ["resnet18", "resnet34", "mobilenet_v1", "vgg16", "wide_resnet_22_8"]
