"""Our own method: which structure a budget gets, how narrow its blocks become, and what stays as wide as it was."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepreduce.census import take_census
from deepreduce.errors import NetworkError, UsageError
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import (
    Base,
    Candidate,
    Masks,
    build_candidate,
    census_of,
    kept_layers,
    make_base,
    narrow_channels,
    narrowing,
)
from deepreduce.reduction.methods.narrowing import structures

from ...census.zoo import CLASSES, INPUT, ZOO, Head, randomise

NAMES = ["resnet18", "resnet34", "mobilenet_v1", "vgg16", "wide_resnet_22_8"]
SPEC = NetworkSpec("Users", INPUT, CLASSES)
IMAGES = torch.randn(2, *INPUT, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base() -> Base:
    torch.manual_seed(0)
    return make_base(NetworkSpec("resnet18", (3, 32, 32), 10, 0.125))


@functools.cache
def quarter(name: str) -> Base:
    return make_base(NetworkSpec(name, (3, 32, 32), 10, 0.25))


def channels(network: nn.Module) -> dict[str, int]:
    return {
        name: module.out_channels
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and ".conv" in f".{name}"
    }


def test_example_only_the_insides_of_blocks_that_keep_their_relus_shrink(base: Base) -> None:
    (candidate,) = narrowing(base.census, (), [1_536])  # an eighth of 12,288, the smallest network of the paper
    assert candidate == Candidate(keep=("S3", "S4"), thin=True, beta=(0.4375, 1), trim=(1, 1), bypass=True)
    assert candidate.label == "S3 S4, thinned, beta 0.4375 1, trim 1, bypassed"
    assert candidate.id == "S3S4-thin-b0.4375-1.0-t1-1-y"
    network = build_candidate(base, candidate).eval()
    relus = 2 * 14 * 6 * 6 + 2 * 64 * 2 * 2
    assert take_census(network, (3, 32, 32)).relus == census_of(base, candidate).relus == relus == 1_520
    before, after = channels(base.network), channels(network)
    assert {name: after[name] for name in before if after[name] != before[name]} == {
        "layer3.0.conv1": 14,
        "layer3.1.conv1": 14,
    }
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_stage_gets_twice_what_the_one_before_it_gets_as_long_as_it_has_use_for_it(base: Base) -> None:
    def split(budget: int) -> list[int]:
        (found,) = narrowing(base.census, (), [budget])
        return [stage.relus for stage in census_of(base, found).stages if stage.relus]

    assert split(216) == [72, 144]  # a channel of S3 costs 36 in each of two blocks, one of S4 4
    assert split(1_520) == [1_008, 512]  # S4 has no more: 64 channels of 2x2 in two blocks
    assert split(3_584) == [7 * 144, 28 * 72, 512]
    assert split(12_288) == [2_048 * 3, 4_096, 2_048]


def test_the_structure_follows_the_budget(base: Base) -> None:
    steps = structures(base.census)
    assert [step.label for step in steps] == [
        "S3 S4, thinned, trim 1",
        "S2 S3 S4, thinned, trim 2 1 1, without 1 more ReLU layer",
        "S2 S3 S4, thinned, trim 2 1 0, without 1 more ReLU layer",
        "S2 S3 S4, thinned, trim 2 1 0", "S2 S3 S4, thinned, trim 2 0 0",
        "S2 S3 S4, thinned",
        "S2 S3 S4", "S1 S2 S3 S4, thinned", "S1 S2 S3 S4",
    ]  # fmt: skip
    sizes = [census_of(base, step).relus for step in steps[:-1]]
    assert sizes == [2_816, 5_120, 6_656, 8_960, 10_752, 14_336, 28_672, 30_720]
    assert {14_336, 28_672} < set(sizes)  # an eighth of published networks
    for budget, index, whole in (
        (60_000, 8, False), (34_100, 7, True), (28_672, 6, True), (15_929, 6, False), (15_928, 5, True),
        (14_336, 5, True), (14_335, 5, False), (7_616, 3, False), (7_617, 4, False), (5_657, 2, False),
        (4_353, 2, False), (4_352, 1, False), (2_394, 1, False), (2_393, 0, False), (1_000, 0, False),
    ):  # fmt: skip
        (found,) = narrowing(base.census, (), [budget])
        assert (replace(found, beta=(), bypass=False), not found.beta) == (steps[index], whole), budget
        assert found.bypass == (len(found.keep) == 2), budget


def test_nothing_is_trimmed_or_bypassed_where_nothing_goes_around_a_relu() -> None:
    for name in ("vgg16", "mobilenet_v1"):
        census = quarter(name).census
        assert all(not step.trim for step in structures(census))
        assert not any(found.bypass for found in narrowing(census))


def test_what_is_kept_are_channels_of_the_teacher(base: Base) -> None:
    block = base.network.get_submodule("layer4.1")
    # Fresh batch norms are all alike: what reads a channel decides.
    read = block.get_parameter("conv2.weight").transpose(0, 1).flatten(1).pow(2).sum(1)
    strongest = read.topk(16).indices.sort().values
    network = build_candidate(base, Candidate(keep=("S3", "S4"), thin=True, beta=(0.25, 0.25)))
    own = network.get_submodule("layer4.1")
    assert torch.equal(own.get_parameter("conv1.weight"), block.get_parameter("conv1.weight")[strongest])
    assert torch.equal(own.get_parameter("conv2.weight"), block.get_parameter("conv2.weight")[:, strongest])
    stem = "layer1.0.conv1.weight"
    assert torch.equal(network.get_parameter(stem), base.network.get_parameter(stem))


@given(st.sampled_from(NAMES), st.floats(0.02, 0.99))
@settings(max_examples=30, deadline=None)
def test_every_budget_is_met_and_mostly_spent(name: str, share: float) -> None:
    base = quarter(name)
    budget = int(share * base.census.relus)
    (candidate,) = narrowing(base.census, (), [budget])
    relus = census_of(base, candidate).relus
    # One channel more in the widest of the layers, or in as many as share its width, would be above the budget.
    layers = [layer for layer in base.census.layers if layer.name in kept_layers(base, candidate)]
    coarse = sum(layer.size // layer.shape[0] for layer in layers)
    assert relus <= budget and (candidate.beta != () or relus >= 0.6 * budget)
    if name != "mobilenet_v1":  # there layers of two stages are tied, and the smaller beta counts for both
        assert not candidate.beta or relus > budget - coarse


@pytest.mark.parametrize("name", NAMES)
def test_reference_networks_are_counted_as_they_are_built(name: str) -> None:
    """The count comes from a network without weights, on which other channels go: the shapes must be the same."""
    base = quarter(name)
    stages = tuple(stage.name for stage in base.census.stages)
    for candidate in (
        Candidate(keep=stages[-2:], thin=True, beta=(0.3, 0.7)),
        Candidate(keep=stages[1:], beta=(0.6,) * (len(stages) - 1), rho=0.5),
        Candidate(keep=stages[-2:], thin=True, beta=(0.5, 0.5), alpha=0.5),
    ):
        counted = census_of(base, candidate)
        for network in (build_candidate(base, candidate), build_candidate(base, candidate, warm=False)):
            measured = take_census(network, (3, 32, 32))
            assert (measured.relus, measured.macs, measured.params) == (counted.relus, counted.macs, counted.params)


@pytest.mark.parametrize("name", [name for name in ZOO if name != "functional"])
def test_users_networks_are_narrowed_where_their_relus_stay(name: str) -> None:
    base = make_base(SPEC, randomise(ZOO[name]()))
    keep = tuple(stage.name for stage in base.census.stages)
    kept = kept_layers(base, Candidate(keep=keep))
    full = {layer.name: layer.size for layer in base.census.layers if layer.shape != (CLASSES,)}
    candidate = Candidate(keep=keep, beta=(0.5,) * len(keep))
    narrowed = census_of(base, candidate)
    assert all(2 * layer.size == full[layer.name] for layer in narrowed.layers if layer.name in full)
    network = build_candidate(base, candidate)
    assert network(IMAGES).shape == (2, CLASSES) and kept
    network.train()(IMAGES).sum().backward()


class Tied(nn.Module):
    """A ReLU in a block, and one behind the addition, whose channels are tied to the stem's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inside = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.back, self.wide = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu1, self.relu2, self.head = nn.ReLU(), nn.ReLU(), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu2(x + self.back(self.relu1(self.inside(x))))
        return self.head(self.wide(x))


def test_channels_that_are_tied_become_narrow_together() -> None:
    def widths(*names: str) -> tuple[int, ...]:
        own, _ = narrow_channels(make_base(SPEC, Tied()).network, dict.fromkeys(names, 0.5), INPUT)
        convolutions = [own.get_submodule(name) for name in ("stem", "inside", "back", "wide")]
        return tuple(module.out_channels for module in convolutions if isinstance(module, nn.Conv2d))

    assert widths("relu1") == (8, 4, 8, 8)
    assert widths("relu2") == (4, 8, 4, 8)
    assert widths("relu1", "relu2") == (4, 4, 4, 8)


def test_what_cannot_be_narrowed_is_refused(base: Base) -> None:
    with pytest.raises(NetworkError, match="must be a ReLU of the network"):
        narrow_channels(base.network, {"layer9.relu": 0.5}, (3, 32, 32))
    with pytest.raises(NetworkError, match="must remove channels"):
        narrow_channels(base.network, {}, (3, 32, 32))
    for beta in (0.0, 1.1, float("nan"), "0.5"):
        with pytest.raises(UsageError, match="above 0 and at most 1"):
            Candidate(keep=("S2",), beta=(beta,))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one number for each stage"):
        Candidate(keep=("S2", "S3"), beta=(0.5,))
    with pytest.raises(UsageError, match="Masks belong to the channels"):
        Candidate(keep=("S2",), beta=(0.5,), masks=Masks("snl", "element", 3))


def test_a_budget_below_one_channel_gives_the_smallest_network(base: Base) -> None:
    (candidate,) = narrowing(base.census, (), [10])
    assert census_of(base, candidate).relus == 2 * 36 + 2 * 4


class OneStage(nn.Module):
    """A single stage of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.fc = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.relu2(self.conv2(self.relu1(self.conv1(x)))), 1))


def test_a_network_that_cannot_be_culled_is_thinned_and_narrowed() -> None:
    base = make_base(NetworkSpec("mine", (1, 8, 8), 3), OneStage())
    for budget, thin, relus in ((500, False, 384), (280, True, 256), (100, True, 64)):
        (found,) = narrowing(base.census, (), [budget])
        assert (found.thin, census_of(base, found).relus) == (thin, relus)


class Block(nn.Module):
    """Two ReLU layers: in the first block of a stage nothing goes around them, as in MobileNetV2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inputs, 2 * inputs, 3, stride, 1), nn.Conv2d(2 * inputs, 2 * inputs, 3, 1, 1)
        self.conv3 = nn.Conv2d(2 * inputs, outputs, 1)
        self.around = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
        return x + y if self.around else y


def test_only_what_has_a_way_around_it_is_trimmed_whatever_else_goes() -> None:
    torch.manual_seed(0)
    blocks = [block for _ in range(4) for block in (Block(8, 8, 2), Block(8, 8, 1), Block(8, 8, 1))]
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    base = make_base(NetworkSpec("Users", (3, 64, 64), 8), network)
    trimmed = [each for each in structures(base.census) if any(each.trim)]
    assert any(each.drop for each in trimmed)
    for each in trimmed:
        assert build_candidate(base, each).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 8)
    for budget in (base.census.relus // divisor for divisor in (4, 8, 16, 32, 64)):
        (candidate,) = narrowing(base.census, (), [budget])
        assert 0.6 * budget < census_of(base, candidate).relus <= budget
