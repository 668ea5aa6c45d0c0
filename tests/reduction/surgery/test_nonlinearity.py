"""Which channels stay in a narrow layer: the formula against drawn numbers, and its use against a sort by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deepreduce.census import trace
from deepreduce.reduction import linear_fit, narrow_channels, nonlinear_variance

from ...census.zoo import Head

INPUT = (3, 8, 8)


def measured(weight: float, bias: float) -> float:
    """Fit a line to the ReLUs of many drawn inputs, and return the variance of what is left."""
    x = weight * torch.randn(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + bias
    y = x.relu()
    slope = ((x - x.mean()) * y).mean() / x.var(correction=0)
    return float((y - slope * x).var(correction=0))


@pytest.mark.parametrize(
    ("weight", "bias"), [(1.0, 0.0), (2.0, 0.5), (-2.0, 0.5), (0.5, -0.6), (1.0, 2.0), (3.0, -4.0)]
)
def test_an_example(weight: float, bias: float) -> None:
    got = nonlinear_variance(torch.tensor([weight]).double(), torch.tensor([bias]).double())
    assert float(got) == pytest.approx(measured(weight, bias), rel=0.02)


@pytest.mark.parametrize(("weight", "bias"), [(1.0, 0.0), (2.0, 0.5), (-2.0, 0.5), (0.5, -0.6), (1.0, 2.0)])
def test_the_line_next_to_a_relu(weight: float, bias: float) -> None:
    """Against a fit to drawn numbers."""
    x = weight * torch.randn(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + bias
    slope = float(((x - x.mean()) * x.relu()).mean() / x.var(correction=0))
    intercept = float(x.relu().mean() - slope * x.mean())
    got = [float(value) for value in linear_fit(torch.tensor([weight]).double(), torch.tensor([bias]).double())]
    assert got == [pytest.approx(slope, abs=0.005), pytest.approx(intercept, abs=0.01)]


def test_a_dead_channel_has_a_line_too() -> None:
    slope, intercept = linear_fit(torch.zeros(2).double(), torch.tensor([3.0, -3.0]).double())
    assert slope.tolist() == [1.0, 0.0] and intercept.tolist() == [0.0, 0.0]


def test_a_centred_channel_by_hand() -> None:
    """For a standard normal input: E[relu^2] = 1/2, E[relu]^2 = 1 / (2 pi), and the slope 1/2 explains 1/4."""
    got = nonlinear_variance(torch.ones(1).double(), torch.zeros(1).double())
    assert float(got) == pytest.approx(0.5 - 1 / (2 * torch.pi) - 0.25)


@given(st.floats(-1e3, 1e3), st.floats(-1e6, 1e6))
def test_it_is_finite_and_within_the_variance(weight: float, bias: float) -> None:
    got = float(nonlinear_variance(torch.tensor([weight]).double(), torch.tensor([bias]).double()))
    assert 0 <= got <= weight**2
    if abs(bias) > 40 * abs(weight):
        assert got == pytest.approx(0, abs=1e-9 * weight**2)


class Block(nn.Module):
    """A residual block, with batch norm or without."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv1, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), norm, nn.ReLU()
        self.conv2, self.around, self.head = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(3, 4, 1), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv2(self.relu(self.norm(self.conv1(x)))) + self.around(x))


def kept(block: Block) -> list[int]:
    network = trace(block).eval()
    (site,) = [str(node.target) for node in network.graph.nodes if str(node.target) == "relu"]
    rows = narrow_channels(network, {site: 0.5}, INPUT)[0].get_parameter("conv1.bias").tolist()
    return [block.conv1.bias.tolist().index(row) for row in rows]  # type: ignore[union-attr]


def test_the_least_linear_channels_stay() -> None:
    torch.manual_seed(0)
    block = Block(nn.BatchNorm2d(8))
    with torch.no_grad():
        block.norm.weight.copy_(torch.tensor([1, 1, -1, 1, 1, 0.1, 2, 1]))  # type: ignore[union-attr,operator]
        block.norm.bias.copy_(torch.tensor([0, 9, 0.1, -9, 0.2, 0, 5, -0.1]))  # type: ignore[union-attr,operator]
        block.conv1.weight[[1, 3]] *= 100  # the norm of the weights would keep these
        block.conv2.weight.copy_(block.conv2.weight.sign())
    assert kept(block) == [0, 2, 4, 7]
    with torch.no_grad():
        block.conv2.weight[:, 7] /= 1000  # nothing reads it, so its ReLUs are of no use
    assert 7 not in kept(block)


def test_without_batch_norm_the_norm_of_the_weights_decides() -> None:
    torch.manual_seed(0)
    block = Block(nn.Identity())
    with torch.no_grad():
        block.conv1.weight[[1, 3, 4, 6]] *= 100
    assert kept(block) == [1, 3, 4, 6]
