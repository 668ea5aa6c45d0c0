"""What does not convert is refused with the place in the user's source and the remedy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deepreduce.census import take_census, trace
from deepreduce.errors import DataError, NetworkError, UsageError
from deepreduce.private.program import FormatSettings, make_program
from deepreduce.private.program.convert import convert

from .small import Lambda, images

REFUSED: list[tuple[str, Callable[..., Tensor], dict[str, nn.Module]]] = [
    ("Sigmoid", lambda net, x: net.s(x).flatten(1), {"s": nn.Sigmoid()}),
    ("softmax", lambda net, x: F.softmax(x.flatten(1), 1) + 1, {}),
    ("softmax", lambda net, x: F.softmax(x.flatten(1), 0), {}),
    ("product of two tensors", lambda net, x: (x * x.mean((2, 3), keepdim=True)).flatten(1), {}),
    ("GroupNorm", lambda net, x: net.g(x).flatten(1), {"g": nn.GroupNorm(1, 3)}),
    ("interpolate", lambda net, x: F.interpolate(x, scale_factor=2, mode="bilinear").flatten(1), {}),
    ("Upsample", lambda net, x: net.u(x).flatten(1), {"u": nn.Upsample(None, 2, "bilinear")}),
    ("stack of images", lambda net, x: torch.stack([x, x]).flatten(1), {}),
    ("stack with a constant", lambda net, x: torch.stack([x, net.c.weight], 1).flatten(1), {"c": nn.Conv2d(3, 3, 6)}),
    ("keep one", lambda net, x: x.mean((1, 2, 3)) * 2, {}),
    ("keep one", lambda net, x: x.select(1, 0).select(1, 0).select(1, 0), {}),
    ("mixes images", lambda net, x: x.roll(2, 0).flatten(1), {}),
    ("mixes images", lambda net, x: x.index_select(0, torch.tensor([0, 1])).flatten(1), {}),
    (
        "alpha or beta",
        lambda net, x: torch.addmm(net.f.bias, x.flatten(1), net.f.weight.T, beta=2),
        {"f": nn.Linear(108, 2)},
    ),
    (
        "batch dimension",
        lambda net, x: torch.addmm(net.g.weight, x.flatten(1), net.f.weight),
        {"f": nn.Linear(2, 108), "g": nn.Linear(2, 3)},
    ),
    ("leave out dtype", lambda net, x: x.mean(1, dtype=torch.float16).flatten(1), {}),
    ("leave out dtype", lambda net, x: x.sum(1, dtype=torch.int64).flatten(1), {}),
    ("leave the batch", lambda net, x: x.sum(0).flatten(1), {}),
    ("depend on the image", lambda net, x: (x @ x.flip(2)).flatten(1), {}),
    ("constant matrix behind it", lambda net, x: (x @ net.f.weight).flatten(1), {"f": nn.Linear(2, 6)}),
    (
        "without running statistics",
        lambda net, x: net.b(x).flatten(1),
        {"b": nn.BatchNorm2d(3, track_running_stats=False)},
    ),
    ("values other than zero", lambda net, x: F.pad(x, (1, 1), value=1.0).flatten(1), {}),
    ("ConvTranspose2d", lambda net, x: net.c(x).flatten(1), {"c": nn.ConvTranspose2d(3, 3, 2)}),
    ("max_pool2d_with_indices", lambda net, x: F.max_pool2d(x, 2, return_indices=True)[0].flatten(1), {}),
    ("shapes", lambda net, x: (x + x.mean((2, 3), keepdim=True)).flatten(1), {}),
    ("linear layer over", lambda net, x: net.f(x).flatten(1), {"f": nn.Linear(6, 2)}),
    (
        "sees padding alone",
        lambda net, x: F.max_pool2d(x[:, :, :3, :3], 2, 1, padding=1, dilation=4).flatten(1),
        {},
    ),
]


@pytest.mark.parametrize(("what", "function", "layers"), REFUSED, ids=[case[0] for case in REFUSED])
def test_operators_without_a_linear_form(
    what: str, function: Callable[..., Tensor], layers: dict[str, nn.Module]
) -> None:
    with pytest.raises(NetworkError) as caught:
        convert(Lambda(function, **layers), (3, 6, 6))
    message = str(caught.value)
    assert what in message
    assert "Do: " in message
    assert "Where: " in message
    assert ".py:" in message


def test_a_layer_without_a_name_and_what_converts() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(NetworkError, match=r"Where: layer 1\.$") as caught:
        convert(network, (3, 6, 6))
    for words in ("dropout", "differences and means", "products with constants", "resizing", "padding"):
        assert words in str(caught.value)


def test_a_map_instead_of_logits() -> None:
    with pytest.raises(NetworkError, match="one vector of logits"):
        convert(Lambda(lambda net, x: F.relu(x)), (3, 6, 6))


def test_an_operator_that_nothing_reads_is_no_obstacle() -> None:
    def function(net: nn.Module, x: Tensor) -> Tensor:
        torch.sigmoid(x)
        return x.flatten(1)

    convert(Lambda(function), (3, 6, 6))


@pytest.mark.parametrize("mask", [np.ones((3, 6, 5), dtype=bool), np.zeros((3, 6, 6), dtype=bool), np.ones((3, 6, 6))])
def test_masks_that_do_not_fit(mask: np.ndarray) -> None:
    with pytest.raises(NetworkError, match="keeps at least one element"):
        convert(Lambda(lambda net, x: F.relu(x).flatten(1)), (3, 6, 6), masks={"net:relu": mask})


def test_a_mask_for_a_relu_that_is_not_there() -> None:
    with pytest.raises(NetworkError, match="did you mean net:relu"):
        convert(Lambda(lambda net, x: F.relu(x).flatten(1)), (3, 6, 6), masks={"net:rely": np.ones((3, 6, 6), bool)})


def test_values_that_are_not_finite() -> None:
    net = Lambda(lambda net, x: net.f(x.flatten(1)), f=nn.Linear(12, 2))
    with torch.no_grad():
        net.f.weight[0, 0] = float("inf")
    with pytest.raises(NetworkError, match="finite"):
        make_program(net, images(4, 3, 2, 2))


@pytest.mark.parametrize("batch", [torch.zeros(4, 3, 2), torch.zeros(1, 3, 2, 2), torch.zeros(4, 3, 2, 2).int()])
def test_calibration_images_of_another_form(batch: Tensor) -> None:
    with pytest.raises(DataError, match="normalised training images"):
        make_program(Lambda(lambda net, x: x.flatten(1)), batch)


def test_a_ring_beyond_the_limit() -> None:
    settings = FormatSettings(max_ring_bits=16, input_bits=14)
    with pytest.raises(NetworkError, match="at most 16 bits"):
        make_program(
            Lambda(lambda net, x: net.f(x.flatten(1)), f=nn.Linear(12, 2)), images(4, 3, 2, 2), settings=settings
        )


def test_an_accuracy_out_of_reach() -> None:
    settings = FormatSettings(weight_bits=2, activation_bits=4, tolerance=1e-6)
    net = Lambda(lambda net, x: net.f(F.relu(x.flatten(1))), f=nn.Linear(12, 2))
    with pytest.raises(NetworkError, match="raise tolerance"):
        make_program(net, images(8, 3, 2, 2), settings=settings)


@pytest.mark.parametrize(
    "setting", [{"margin": 0.5}, {"weight_bits": 1}, {"weight_bits": 2.5}, {"max_ring_bits": 63}, {"tolerance": 0}]
)
def test_settings_out_of_range(setting: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        FormatSettings(**setting)


@pytest.mark.parametrize(
    "activation", [nn.GELU(), nn.SiLU(), nn.LeakyReLU(), nn.Tanh(), nn.Hardtanh(), nn.Softmax(2)], ids=repr
)
def test_what_a_census_says_cannot_run_privately_does_not_convert(activation: nn.Module) -> None:
    layers = [nn.Conv2d(1, 2, 3), nn.ReLU(), activation, nn.Flatten(), nn.Linear(8, 3)]
    network = nn.Sequential(*layers)
    (note,) = take_census(network, (1, 4, 4)).notes
    assert "cannot run privately" in note
    with pytest.raises(NetworkError, match=type(activation).__name__):
        convert(trace(network), (1, 4, 4))
