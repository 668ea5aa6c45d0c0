"""Our own masks: which structure a budget gets, and which ReLUs stay inside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepreduce.census import take_census
from deepreduce.errors import UsageError
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import Base, MaskOrder, build_candidate, census_of, kept_layers, make_base
from deepreduce.reduction.structured_masks import ladder, structured_masks

PER_RELU = {"S1": 1.0, "S2": 2.0, "S3": 4.0, "S4": 3.0}


@pytest.fixture(scope="module")
def base() -> Base:
    torch.manual_seed(0)
    return make_base(NetworkSpec("resnet18", (3, 32, 32), 10, 0.125))


def worths(base: Base, per_relu: dict[str, float] = PER_RELU, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    stages = base.census.stage_of()
    return {
        layer.name: per_relu[stages[layer.name]] * random.uniform(0.5, 1.5, layer.shape) for layer in base.census.layers
    }


def kept_by(base: Base, candidate: Any) -> dict[str, int]:
    return {layer.name: layer.relus for stage in census_of(base, candidate).stages for layer in stage.layers}


def test_example_the_structure_follows_the_budget(base: Base) -> None:
    worth = worths(base)
    steps = ladder(base.census, worth)
    assert [(step.keep, step.thin, step.rho) for step in steps] == [
        (("S2", "S3", "S4"), False, 1), (("S2", "S3", "S4"), True, 1), (("S2", "S3", "S4"), True, 0.5),
    ]  # fmt: skip
    sizes = [census_of(base, step).relus for step in steps]
    assert sizes == [28_672, 14_336, 3_584]  # an eighth of 229,376, 114,688 and 28,672: rows of the paper's table
    for budget, rho in ((20_000, 1), (14_336, 1), (14_335, 1), (3_585, 1), (3_584, 0.5), (500, 0.5)):
        found = structured_masks(base, worth, MaskOrder("deepreduce-masks", "element", budget))
        assert found.rho == rho and census_of(base, found).relus == budget
        network = build_candidate(base, found).eval()
        assert take_census(network, (3, 32, 32)).relus == budget


def test_a_budget_of_a_structure_gives_that_network(base: Base) -> None:
    worth = worths(base)
    for step in ladder(base.census, worth)[1:]:
        budget = census_of(base, step).relus
        found = structured_masks(base, worth, MaskOrder("deepreduce-masks", "element", budget))
        assert kept_layers(base, found) == kept_layers(base, step) and found.rho == step.rho
        assert found.masks is not None and found.masks.layers == ()


def test_layers_keep_equal_shares_and_in_them_the_most_important(base: Base) -> None:
    worth = worths(base)
    found = structured_masks(base, worth, MaskOrder("deepreduce-masks", "element", 7_000))
    assert found.masks is not None
    shares = [mask.kept / mask.size for mask in found.masks.layers]
    assert len(shares) == 6 and max(shares) - min(shares) < 0.01
    for mask in found.masks.layers:
        array = mask.array()
        assert worth[mask.name][array].min() >= worth[mask.name][~array].max()


def test_at_half_the_resolution_an_element_counts_as_those_it_stands_for(base: Base) -> None:
    worth = worths(base)
    name = "layer2.0.relu1"
    worth[name] = np.zeros_like(worth[name])
    worth[name][3, 4:6, 8:10] = [[9.0, 0.0], [0.0, 0.0]]
    found = structured_masks(base, worth, MaskOrder("deepreduce-masks", "element", 1_000))
    assert found.masks is not None
    mask = next(mask for mask in found.masks.layers if mask.name == name).array()
    assert mask.shape == (16, 8, 8) and mask[3, 2, 4]


def test_above_the_structures_the_whole_network_is_masked(base: Base) -> None:
    found = structured_masks(base, worths(base), MaskOrder("deepreduce-masks", "element", 60_000))
    assert found.rho == 1 and census_of(base, found).relus == 60_000 and len(kept_layers(base, found)) == 17


@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_whole_channels_and_layers_stay_within_the_budget(base: Base, granularity: str) -> None:
    found = structured_masks(base, worths(base), MaskOrder("deepreduce-masks", granularity, 3_000))
    relus = census_of(base, found).relus
    assert 0.9 * 3_000 < relus <= 3_000 if granularity == "channel" else 1_000 < relus <= 3_000
    assert found.masks is not None
    for mask in found.masks.layers:
        assert granularity == "channel" and (mask.array() == mask.array()[:, :1, :1]).all()


class OneStage(nn.Module):
    """A single stage of two layers, whose last layer is a vector that depends on the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.fc = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.relu2(self.conv2(self.relu1(self.conv1(x)))), 1))


def test_whole_layers_come_from_the_lowest_structure_that_spends_the_budget(base: Base) -> None:
    worth = worths(base)

    def kept(budget: int) -> tuple[float, dict[str, int]]:
        found = structured_masks(base, worth, MaskOrder("deepreduce-masks", "layer", budget))
        return found.rho, {name: count for name, count in kept_by(base, found).items() if count}

    inner = [f"layer{stage}.{block}.relu1" for stage in (2, 3, 4) for block in (0, 1)]
    assert kept(3_584) == (0.5, dict(zip(inner, [1024, 1024, 512, 512, 256, 256], strict=True)))
    assert kept(1_536) == (0.5, dict(zip(inner[2:], [512, 512, 256, 256], strict=True)))  # S3 is worth more than S2
    assert kept(7_168) == (1, dict(zip(inner[2:], [2048, 2048, 1024, 1024], strict=True)))  # of the rest 3,584 are half
    assert kept(14_336)[1].keys() == set(inner)


def test_a_network_that_cannot_be_culled_or_scaled_is_thinned_and_masked() -> None:
    base = make_base(NetworkSpec("mine", (1, 8, 8), 3), OneStage())
    worth = {layer.name: np.ones(layer.shape) for layer in base.census.layers}
    found = structured_masks(base, worth, MaskOrder("deepreduce-masks", "element", 100))
    assert found.rho == 1 and kept_by(base, found) == {"relu1": 100, "relu2": 0}
    wide = structured_masks(base, worth, MaskOrder("deepreduce-masks", "element", 400))
    assert kept_by(base, wide) == {"relu1": 200, "relu2": 200}


@given(st.integers(1, 70_000), st.integers(0, 3), st.permutations(list(PER_RELU)))
@settings(max_examples=25, deadline=None)
def test_every_budget_is_met_exactly(base: Base, budget: int, seed: int, order: list[str]) -> None:
    worth = worths(base, {name: 1.0 + place for place, name in enumerate(order)}, seed)
    if budget >= base.census.relus:
        return
    found = structured_masks(base, worth, MaskOrder("deepreduce-masks", "element", budget))
    assert census_of(base, found).relus == budget
    assert found.masks is not None
    assert all(0 < mask.kept < math.prod(mask.shape) for mask in found.masks.layers)
    if budget < 10_000:
        assert order[0] not in found.keep


def test_a_budget_below_every_group_is_refused(base: Base) -> None:
    with pytest.raises(UsageError, match="must keep a ReLU"):
        structured_masks(base, worths(base), MaskOrder("deepreduce-masks", "layer", 10))
