"""Average pooling in place of max pooling: the same windows, everywhere in a network, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deepreduce.census import take_census, trace
from deepreduce.errors import UsageError
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import (
    Candidate,
    Mask,
    average_pools,
    build_candidate,
    census_of,
    choose,
    has_max_pooling,
    make_base,
    masked_candidate,
)


class Pooled(nn.Module):
    """A convolution, a ReLU and a pooling of the test's choice."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.relu(self.conv(x)))


def window_means(x: Tensor, pool: nn.MaxPool2d | nn.AdaptiveMaxPool2d) -> np.ndarray:
    """Average every window by hand: which elements a window has is found from the maxima of single bright pixels."""
    shape = tuple(pool(x[:1, :1]).shape[2:])
    inside = np.zeros((*x.shape[2:], *shape), dtype=bool)
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            bright = torch.full((1, 1, *x.shape[2:]), -1.0)
            bright[0, 0, row, column] = 1
            inside[row, column] = (pool(bright)[0, 0] > 0).numpy()
    sums = np.einsum("nchw,hwij->ncij", x.double().numpy(), inside)
    return sums / inside.sum((0, 1))


@pytest.mark.parametrize(
    ("module", "call"),
    [
        (nn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2)),
        (nn.MaxPool2d(3, 2, 1), lambda x: F.max_pool2d(x, kernel_size=3, stride=2, padding=1)),
        (nn.MaxPool2d((2, 3), (1, 2), (0, 1)), lambda x: torch.max_pool2d(x, (2, 3), (1, 2), (0, 1))),
        (nn.MaxPool2d(2, ceil_mode=True), lambda x: F.max_pool2d(x, 2, ceil_mode=True)),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), lambda x: torch.max_pool2d(x, 3, [2], [1], [1], True)),
        (nn.MaxPool2d(3, 1), lambda x: F.max_pool2d(x, 3, 1)),
        (nn.AdaptiveMaxPool2d(1), lambda x: F.adaptive_max_pool2d(x, 1)),
        (nn.AdaptiveMaxPool2d((3, 2)), lambda x: F.adaptive_max_pool2d(x, output_size=(3, 2))),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "call",
)
def test_every_window_is_averaged(module: Any, call: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    for pool in (module, call):
        network = trace(Pooled(pool))
        before = network(x)
        averaged = average_pools(network)
        assert has_max_pooling(network) and not has_max_pooling(averaged)
        with torch.no_grad():
            expected = window_means(network.relu(network.conv(x)), module)
            np.testing.assert_allclose(averaged(x).numpy(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(network(x), before) and list(averaged.state_dict()) == list(network.state_dict())
        assert not {id(p) for p in network.parameters()} & {id(p) for p in averaged.parameters()}


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x, 2, dilation=2),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[0],
        lambda x: F.max_pool2d(x, x.shape[-1]),
        lambda x: F.max_pool2d(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3))),
        lambda x: F.adaptive_max_pool2d(x, (x.size(2) // 2, 2)),
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2),
        nn.Sequential(nn.ConstantPad2d(1, -1.0), nn.MaxPool2d(3, 2)),
        lambda x: F.max_pool1d(x.flatten(2), 2),
        lambda x: F.avg_pool2d(x, 2),
        nn.MaxPool2d(2, dilation=2),
        nn.Dropout(),
    ],
)
def test_what_has_no_average_of_its_kind_stays(pool: Any) -> None:
    network = trace(Pooled(pool))
    assert not has_max_pooling(network)
    assert [node.target for node in average_pools(network).graph.nodes] == [node.target for node in network.graph.nodes]


class Named(nn.MaxPool2d):
    """Another name for the same."""


class Other(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(-input, self.kernel_size)


def test_a_subclass_is_averaged_unless_it_computes_something_of_its_own() -> None:
    x = torch.randn(1, 3, 8, 8)
    named, plain = (average_pools(trace(Pooled(pool(2)))) for pool in (Named, nn.MaxPool2d))
    named.load_state_dict(plain.state_dict())
    assert torch.equal(named(x), plain(x)) and not has_max_pooling(named)
    other = trace(Pooled(Other(2)))  # its forward is seen for what it calls
    assert has_max_pooling(other)
    averaged = average_pools(other)
    with torch.no_grad():
        assert torch.allclose(averaged(x), F.avg_pool2d(-other.relu(other.conv(x)), 2), atol=1e-6)


def test_padding_with_zeros_is_part_of_the_map() -> None:
    network = trace(Pooled(lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2)))
    assert has_max_pooling(network) and average_pools(network)(torch.randn(1, 3, 8, 8)).isfinite().all()


def test_a_module_that_is_called_twice_is_averaged_twice() -> None:
    pool = nn.MaxPool2d(2)
    network = average_pools(trace(Pooled(nn.Sequential(pool, pool))))
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(network(x), F.avg_pool2d(network.relu(network.conv(x)), 4), atol=1e-6)


SPEC = NetworkSpec("vgg16", (3, 32, 32), 5, width=0.0625)


def pooling_names(network: nn.Module) -> set[str]:
    return {type(module).__name__ for module in network.modules() if "Pool" in type(module).__name__}


def masked() -> Candidate:
    base = make_base(SPEC)
    random = np.random.default_rng(0)
    masks: dict[str, Mask] = choose({layer.name: random.random(layer.shape) for layer in base.census.layers}, 900)
    return masked_candidate(
        base.census, masks, method="snl", granularity="element", budget=900, lines=True, average_pooling=True
    )


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate(("S2", "S3"), thin=True, average_pooling=True),
        Candidate(("S3",), alpha=0.5, rho=0.5, average_pooling=True),
        Candidate(("S3", "S4"), beta=(0.5, 0.5), average_pooling=True),
        Candidate(("S4",), collapse=True, average_pooling=True),
        masked(),
    ],
    ids=lambda candidate: candidate.id,
)
@pytest.mark.parametrize("warm", [False, True])
def test_a_candidate_says_so_and_is_built_so(candidate: Candidate, warm: bool) -> None:
    base = make_base(SPEC)
    x = torch.randn(2, 3, 32, 32)
    for fading in (False, True):
        network = build_candidate(base, candidate, warm=warm, fading=fading)
        assert pooling_names(network) <= {"AvgPool2d"} and network.eval()(x).shape == (2, 5)
    other = replace(candidate, average_pooling=False)
    assert pooling_names(build_candidate(base, other, warm=warm)) == {"MaxPool2d"}
    census, kept = census_of(base, candidate), census_of(base, other)
    if not candidate.collapse:
        assert (census.relus, census.macs, census.params) == (kept.relus, kept.macs, kept.params)
    assert any("MaxPool2d" in note for note in kept.notes) and not any("MaxPool2d" in note for note in census.notes)
    assert census.relus == take_census(build_candidate(base, candidate), SPEC.input).relus
    assert candidate.id != other.id and candidate.label == f"{other.label}, average pooling"
    assert pooling_names(base.network) == {"MaxPool2d"}


def test_collapsing_reaches_through_averages() -> None:
    """A maximum ends what is linear in front of the first ReLU, an average does not."""
    base = make_base(SPEC)
    network = build_candidate(base, Candidate(("S4",), collapse=True, average_pooling=True))
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 1 + 13 - 8  # of the first three stages, and the first of the fourth, one is left


def test_pooling_alone_is_an_effect_and_none_is_an_error() -> None:
    base = make_base(SPEC)
    whole = Candidate(tuple(stage.name for stage in base.census.stages), average_pooling=True)
    assert census_of(base, whole).relus == base.census.relus
    with pytest.raises(UsageError, match="fewer ReLUs"):
        census_of(base, replace(whole, average_pooling=False))
    without = make_base(NetworkSpec("resnet18", (3, 32, 32), 5, width=0.0625))
    with pytest.raises(UsageError, match="no max pooling"):
        census_of(without, Candidate(("S3",), average_pooling=True))
