"""Alpha and rho for reference networks and for a user's, against shapes and weights that can be worked out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from deepreduce.census import find_relus, take_census, trace
from deepreduce.errors import NetworkError, UsageError
from deepreduce.networks import NetworkSpec, build
from deepreduce.reduction import (
    Base,
    Candidate,
    build_candidate,
    census_of,
    kept_layers,
    make_base,
    narrow_channels,
    removed_layers,
    scale_channels,
    scale_resolution,
)
from deepreduce.reduction.reduced import build_fresh

from ...census.zoo import CLASSES, INPUT, ZOO, Head, randomise

SPEC = NetworkSpec("Users", INPUT, CLASSES)
IMAGES = torch.randn(2, *INPUT, generator=torch.Generator().manual_seed(0))
ALPHA = [name for name in ZOO if name != "functional"]
RHO = [name for name in ZOO if name not in ("functional", "one dimension")]


def everything(base: Base, *, alpha: float = 1.0, rho: float = 1.0) -> Candidate:
    return Candidate(keep=tuple(stage.name for stage in base.census.stages), alpha=alpha, rho=rho)


def test_an_example() -> None:
    base = make_base(NetworkSpec("resnet18", (3, 32, 32), 10, width=0.25))
    candidate = Candidate(keep=("S2", "S3"), thin=True, alpha=0.5, rho=0.5)
    network = build_candidate(base, candidate)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert len(find_relus(network)) == 4
    assert take_census(network, (3, 32, 32)).relus == census_of(base, candidate).relus == 12_288 // 4


@pytest.mark.parametrize(
    ("name", "alpha", "rho"),
    [
        ("resnet18", 0.5, 1.0),
        ("mobilenet_v1", 0.3, 0.25),
        ("vgg16", 0.3, 0.5),
        ("vgg16", 1.0, 0.5),
        ("wide_resnet_22_8", 0.5, 0.5),
    ],
)
def test_reference_networks_are_counted_as_they_are_built(name: str, alpha: float, rho: float) -> None:
    """The count comes from the builder; warm weights come from channel pruning. Both are the same network."""
    base = make_base(NetworkSpec(name, (3, 32, 32), 10, width=0.125))
    candidate = everything(base, alpha=alpha, rho=rho)
    counted = census_of(base, candidate)
    for network in (build_candidate(base, candidate), build_candidate(base, candidate, warm=False)):
        measured = take_census(network, (3, 32, 32))
        assert (measured.relus, measured.macs, measured.params) == (counted.relus, counted.macs, counted.params)
        assert sum(parameter.numel() for parameter in network.parameters()) == counted.params


@pytest.mark.parametrize("name", ALPHA)
def test_alpha_halves_the_channels_of_users_networks(name: str) -> None:
    base = make_base(SPEC, randomise(ZOO[name]()))
    full = {layer.name: layer.size for layer in base.census.layers if layer.shape != (CLASSES,)}
    scaled = census_of(base, everything(base, alpha=0.5))
    for layer in scaled.layers:
        if layer.name in full:
            assert 2 * layer.size == full[layer.name]
    network = build_candidate(base, everything(base, alpha=0.5))
    assert network(IMAGES).shape == (2, CLASSES)
    network.train()(IMAGES).sum().backward()


@pytest.mark.parametrize("name", RHO)
def test_rho_halves_the_resolution_of_users_networks(name: str) -> None:
    base = make_base(SPEC, randomise(ZOO[name]()))
    full = {layer.name: layer.shape for layer in base.census.layers}
    scaled = census_of(base, everything(base, rho=0.5))
    assert scaled.params == base.census.params
    for layer in scaled.layers:
        vector = len(full[layer.name]) < 3 or full[layer.name][-1] == 1
        assert layer.size * (1 if vector else 4) == torch.Size(full[layer.name]).numel()
    assert [stage.name for stage in scaled.stages] == [stage.name for stage in base.census.stages]


def test_alpha_keeps_the_strongest_channels() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([0.1, 3.0, 0.2, 2.0]).reshape(4, 1, 1, 1).expand(4, 3, 1, 1))
        network[4].weight.copy_(torch.arange(20.0).reshape(5, 4) / 1000)
    scaled = scale_channels(network, 0.5, INPUT)
    assert scaled.get_submodule("0").weight[:, 0, 0, 0].tolist() == [3.0, 2.0]  # type: ignore[union-attr,index]
    torch.testing.assert_close(scaled.get_submodule("4").weight, network[4].weight[:, [1, 3]])


@pytest.mark.parametrize(
    ("alpha", "channels"), [(0.01, 1), (0.1, 1), (0.3, 3), (0.6, 6), (0.7, 7), (0.99, 9), (1.0, 10)]
)
def test_alpha_rounds_down_and_leaves_one_channel(alpha: float, channels: int) -> None:
    network = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    scaled = scale_channels(network, alpha, INPUT)
    assert scaled.get_submodule("0").out_channels == channels
    assert scaled.get_submodule("2").out_channels == 7  # it makes the output: the classifier


def test_the_classifier_is_what_makes_the_output_and_not_what_comes_last() -> None:
    class DefinedFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, CLASSES)
            self.extra = nn.Linear(8, CLASSES)
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x)).mean((2, 3))
            return self.fc(x) + self.extra(x)

    base = make_base(SPEC, DefinedFirst())
    network = build_candidate(base, everything(base, alpha=0.5))
    assert network(IMAGES).shape == (2, CLASSES)
    assert network.get_submodule("conv").out_channels == 4


def test_a_network_in_double_precision_on_another_name() -> None:
    base = make_base(SPEC, ZOO["lists"]().double())
    assert "converted to float32" in base.census.notes[-1]
    assert {p.dtype for p in build_candidate(base, everything(base, alpha=0.5)).parameters()} == {torch.float32}


def test_a_users_network_with_a_reference_name_stays_the_users() -> None:
    base = make_base(NetworkSpec("resnet18", INPUT, CLASSES), ZOO["unet"]())
    assert not base.reference
    candidate = everything(base, alpha=0.5)
    assert census_of(base, candidate).relus == 2566
    assert "mix.weight" in build_candidate(base, candidate, warm=False).state_dict()
    own = NetworkSpec("resnet18", INPUT, CLASSES, width=0.1)
    assert make_base(own, build(own)).reference
    wider = build(NetworkSpec("resnet18", INPUT, CLASSES, width=0.2))
    base = make_base(own, wider)
    assert not base.reference
    assert base.census.params == sum(parameter.numel() for parameter in wider.parameters())


def test_what_is_not_carried_over_is_noted() -> None:
    network = ZOO["lists"]()
    network.auxiliary = nn.Linear(3, 4)
    base = make_base(SPEC, network)
    assert base.census.notes == (
        "parameters that evaluation does not use are left out: auxiliary.weight, auxiliary.bias (2 in all)",
    )
    assert "auxiliary.weight" not in base.network.state_dict()


def test_scaling_leaves_the_network_itself_alone() -> None:
    base = make_base(SPEC, randomise(ZOO["resnet50"]()))
    before = copy.deepcopy(base.network.state_dict())
    build_candidate(base, everything(base, alpha=0.5, rho=0.5))
    after = base.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_warm_starts_from_the_weights_and_fresh_does_not() -> None:
    base = make_base(SPEC, randomise(ZOO["resnet50"]()))
    candidate = Candidate(keep=("S1",))
    warm, fresh = build_candidate(base, candidate), build_fresh(base, candidate)
    own = base.network.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in warm.state_dict().items())
    assert not torch.equal(fresh.state_dict()["conv1.weight"], own["conv1.weight"])
    assert fresh.state_dict()["bn1.running_var"].unique().tolist() == [1.0]
    reference = make_base(NetworkSpec("vgg16", (3, 32, 32), 10, width=0.05))
    half = build_candidate(reference, everything(reference, rho=0.5)).state_dict()
    assert torch.equal(half["features.0.weight"], reference.network.state_dict()["features.0.weight"])


@pytest.mark.parametrize(
    "candidate",
    [Candidate(("S3",), beta=(0.5,)), Candidate(("S3",), alpha=0.5), Candidate(("S3",), trim=(1,), collapse=True)],
)
def test_a_frozen_network_is_reshaped_and_stays_frozen(candidate: Candidate) -> None:
    spec = NetworkSpec("resnet18", (3, 32, 32), 10, width=0.125)
    for frozen in (True, False):
        base = make_base(spec, build(spec).requires_grad_(not frozen))
        network = build_candidate(base, candidate)
        assert {parameter.requires_grad for parameter in network.parameters()} == {not frozen}
        assert take_census(network, spec.input).relus == census_of(base, candidate).relus
        assert not candidate.collapse or hasattr(network, "deepreduce_head_0")


def test_a_parameter_of_whole_numbers_does_not_hinder() -> None:
    class Offset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), Head(8)
            self.offset = nn.Parameter(torch.ones(1, dtype=torch.int64), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.conv2(F.relu(self.conv1(x + self.offset)))))

    base = make_base(SPEC, Offset())
    assert 2 * census_of(base, Candidate(("S1",), alpha=0.5)).relus == base.census.stages[0].relus


def test_counts_are_remembered_by_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(SPEC, ZOO["unet"]())
    first = census_of(base, Candidate(keep=("S1",), alpha=0.5))
    monkeypatch.setattr("deepreduce.reduction.reduced.build_full", None)
    second = census_of(base, Candidate(keep=("S2",), alpha=0.5))
    assert (first.relus, second.relus) == (2 * 4 * 256, 8 * 64)


def test_what_cannot_be_scaled_is_remembered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(SPEC, ZOO["functional"]())
    with pytest.raises(NetworkError) as first:
        census_of(base, Candidate(keep=("S1",), alpha=0.5))
    monkeypatch.setattr("deepreduce.reduction.reduced.build_full", None)
    with pytest.raises(NetworkError) as second:
        census_of(base, Candidate(keep=("S2",), alpha=0.5))
    assert str(first.value) == str(second.value)


def test_kept_and_removed_layers_are_all_layers() -> None:
    base = make_base(SPEC, ZOO["resnet50"]())
    candidate = Candidate(keep=("S2", "S3"), thin=True, drop=("layer2.1.relu#2",))
    kept, removed = kept_layers(base, candidate), removed_layers(base, candidate)
    assert kept | removed == {layer.name for layer in base.census.layers}
    assert not kept & removed
    assert "layer2.1.relu#2" in removed
    assert kept < kept_layers(base, Candidate(keep=("S2", "S3"), thin=True))


def test_zero_effect_is_an_error() -> None:
    base = make_base(SPEC, ZOO["unet"]())
    with pytest.raises(UsageError, match="fewer ReLUs than the full network"):
        census_of(base, everything(base))
    with pytest.raises(UsageError, match="Thinning must remove"):
        census_of(base, Candidate(keep=("S2",), thin=True))
    with pytest.raises(UsageError, match="Reshaping must remove"):
        census_of(base, Candidate(keep=("S3",), rho=0.5))  # vectors have no resolution


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (Candidate(keep=("S9",)), "stages of Users are S1, S2, S3"),
        (Candidate(keep=("S1",), drop=("net:relu#9",)), "did you mean net:relu"),
    ],
)
def test_what_is_not_there_is_refused(candidate: Candidate, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        census_of(make_base(SPEC, ZOO["unet"]()), candidate)


def test_networks_that_cannot_be_scaled(capsys: pytest.CaptureFixture[str]) -> None:
    base = make_base(SPEC, ZOO["functional"]())
    with pytest.raises(NetworkError, match="no layer could be made narrower"):
        census_of(base, everything(base, alpha=0.5))
    with pytest.raises(NetworkError, match=r"one nn\.Conv2d that reads the image"):
        census_of(base, everything(base, rho=0.5))

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 256, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.conv(x)).reshape(-1, 8 * 256))

    base = make_base(SPEC, Fixed())
    with pytest.raises(NetworkError, match=r"resolution scaled by 0\.5.*global average pooling"):
        census_of(base, everything(base, rho=0.5))
    with pytest.raises(NetworkError, match=r"must be scalable.*Where: reshape test_scaling\.py:\d+\.$"):
        census_of(base, everything(base, alpha=0.5))
    assert capsys.readouterr().err == ""  # torch.fx would print a traceback of its own


def test_a_head_that_nobody_reads_does_not_hinder() -> None:
    """Its ReLU keeps its name, so that those behind it keep theirs."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
            self.fc, self.norm, self.aux = nn.Linear(6, CLASSES), nn.BatchNorm2d(8), nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv1(x))
            F.relu(self.aux(self.norm(x).mean((2, 3))))
            return self.fc(F.relu(self.conv2(x)).mean((2, 3)))

    base = make_base(SPEC, Heads())
    assert [layer.name for layer in base.census.layers] == ["net:relu", "net:relu#3"]
    network = build_candidate(base, everything(base, alpha=0.5))
    assert [site.name for site in find_relus(network)] == ["net:relu", "net:relu#3"]
    assert network(IMAGES).shape == (2, CLASSES) and network.get_submodule("conv1").out_channels == 4
    narrow, read = narrow_channels(base.network, {"net:relu": 0.5}, INPUT)
    assert narrow(IMAGES).shape == (2, CLASSES) and len(read["conv2"]) == 4


def test_channels_that_depend_on_each_other_without_end() -> None:
    """As in ReXNet: the first channels of every block go on beside the others."""

    class Partial(nn.Module):
        def __init__(self, channels: int, more: int) -> None:
            super().__init__()
            self.conv, self.channels = nn.Conv2d(channels, channels + more, 1), channels

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.cat([y[:, : self.channels] + x, y[:, self.channels :]], 1)

    blocks = [Partial(8 + 3 * number, 3) for number in range(12)]
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(44, 5)
    )
    for scale in (
        lambda: scale_channels(trace(network), 0.5, (3, 8, 8)),
        lambda: narrow_channels(trace(network), {"1": 0.5}, (3, 8, 8)),
    ):
        with pytest.raises(NetworkError, match="depend on each other without end"):
            scale()


def test_large_vectors_are_no_endless_dependence() -> None:
    layers = [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 182 * 182, 2), nn.ReLU(), nn.Linear(2, 5)]
    own = scale_channels(trace(nn.Sequential(*layers)), 0.5, (3, 182, 182))
    assert own.get_submodule("3").weight.shape == (1, 2 * 182 * 182)


def test_two_stems_or_a_stem_called_twice_cannot_carry_a_stride() -> None:
    class Stems(nn.Module):
        def __init__(self, shared: bool) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 8, 3)
            self.two = self.one if shared else nn.Conv2d(3, 8, 3)
            self.head = Head(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.one(x)) + self.two(x.flip(3)))

    for shared in (True, False):
        with pytest.raises(NetworkError, match="to carry the stride"):
            scale_resolution(trace(Stems(shared)), 0.5)


class Outputs(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.head = kind, nn.Conv2d(3, 8, 3), Head(8)

    def forward(self, x: Tensor) -> object:
        y = self.head(F.relu(self.conv(x)))
        return {"tuple": (y, y), "dict": {"logits": y}, "flat": y.flatten()}[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "dict", "flat"])
def test_a_network_returns_its_logits_alone(kind: str) -> None:
    with pytest.raises(NetworkError, match="one logit for each of 5 classes"):
        make_base(SPEC, Outputs(kind))


def test_a_network_returns_as_many_logits_as_there_are_classes() -> None:
    with pytest.raises(NetworkError, match=r"one logit for each of 7 classes. Got: shape \(1, 5\)"):
        make_base(NetworkSpec("Users", INPUT, 7), ZOO["unet"]())
