"""Trimming: the network computes what it would with zeros in the place of the ReLUs at the border."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, fx, nn

from deepreduce.census import CallSite, find_relus, take_census, trace
from deepreduce.errors import NetworkError, UsageError
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import (
    Candidate,
    build_candidate,
    census_of,
    make_base,
    replace_relus,
    trim_maps,
)

from ...census.zoo import CLASSES, INPUT, ZOO, Head, randomise

SPEC = NetworkSpec("Users", INPUT, CLASSES)
IMAGES = torch.randn(3, *INPUT, generator=torch.Generator().manual_seed(0))


class Blanked(nn.Module):
    """A ReLU, and zeros at the border: what trimming is to compute, without trimming."""

    def __init__(self, site: CallSite, trim: int) -> None:
        super().__init__()
        self.six, self.trim = site.kind == "relu6", trim

    def forward(self, x: Tensor) -> Tensor:
        inside = torch.zeros_like(x)
        high, wide = x.shape[2:]
        inside[:, :, self.trim : high - self.trim, self.trim : wide - self.trim] = 1
        return (F.relu6(x) if self.six else F.relu(x)) * inside


class Block(nn.Module):
    """A residual block, of whatever lies between the ends of the way around it."""

    def __init__(self, first: nn.Module, between: nn.Module, second: nn.Module, around: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.second, self.around = first, between, second, around
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.between(self.first(x)))) + self.around(x)))


def convolution(inputs: int, outputs: int, kernel: int | tuple[int, int] = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": 1, **options})  # type: ignore[arg-type]


class Replicating(nn.Conv2d):
    """A convolution with a border of its own."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight, bias, self.stride, 0)


def hooked(convolution: nn.Conv2d) -> nn.Conv2d:
    """Give a convolution a hook that looks at the whole map."""
    convolution.register_forward_pre_hook(lambda module, args: (args[0] - args[0].mean((2, 3), keepdim=True),))
    return convolution


class Mixed(nn.Module):
    """A residual block, and a stage behind it that nothing goes around."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.around = convolution(3, 4), convolution(4, 6), nn.Conv2d(3, 6, 1)
        self.last, self.head = convolution(6, 6, stride=2), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))) + self.around(x))
        return self.head(F.relu(self.last(x)))


BLOCKS = {
    "plain": lambda: Block(convolution(3, 4), nn.BatchNorm2d(4), convolution(4, 6), nn.Conv2d(3, 6, 1)),
    "stride": lambda: Block(
        convolution(3, 4, stride=2), nn.BatchNorm2d(4), convolution(4, 6), nn.Conv2d(3, 6, 1, stride=2)
    ),
    "two strides": lambda: Block(
        convolution(3, 4, stride=(2, 1)),
        nn.Identity(),
        convolution(4, 6, (3, 5), padding=(1, 2), stride=(1, 2)),
        nn.Conv2d(3, 6, 1, stride=2),
    ),
    "5x5 and dilated": lambda: Block(
        convolution(3, 4, 5, padding=2), nn.BatchNorm2d(4), convolution(4, 6, padding=2, dilation=2), convolution(3, 6)
    ),
    "by name": lambda: Block(
        convolution(3, 4, padding="same"), nn.Identity(), convolution(4, 6, padding="same"), convolution(3, 6)
    ),
    "reflected": lambda: Block(
        convolution(3, 4, padding_mode="reflect"),
        nn.BatchNorm2d(4),
        convolution(4, 6, padding_mode="reflect"),
        convolution(3, 6),
    ),
    "statistics of the map": lambda: Block(
        convolution(3, 4), nn.BatchNorm2d(4, track_running_stats=False), convolution(4, 6), nn.Conv2d(3, 6, 1)
    ),
    "hooks": lambda: Block(hooked(convolution(3, 4)), nn.Identity(), hooked(convolution(4, 6)), nn.Conv2d(3, 6, 1)),
    "a class of its own": lambda: Block(
        Replicating(3, 4, 3, padding=1), nn.Identity(), Replicating(4, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
    ),
    "weights of a function": lambda: Block(
        nn.utils.parametrizations.weight_norm(convolution(3, 4)), nn.Identity(), convolution(4, 6), nn.Conv2d(3, 6, 1)
    ),
    "pooled": lambda: Block(
        convolution(3, 4), nn.AvgPool2d(3, stride=1, padding=1), convolution(4, 6), nn.Conv2d(3, 6, 1)
    ),
}


def shapes(network: fx.GraphModule) -> dict[str, tuple[int, ...]]:
    return {layer.name: layer.shape for layer in take_census(network, INPUT).layers}


def inner(network: nn.Module) -> tuple[fx.GraphModule, str]:
    traced = trace(randomise(network)).eval()
    return traced, find_relus(traced)[0].name


@pytest.mark.parametrize("trim", [1, 2, 3])
@pytest.mark.parametrize("name", BLOCKS)
def test_an_example(name: str, trim: int) -> None:
    network, site = inner(BLOCKS[name]())
    trimmed = trim_maps(network, {site: trim}, INPUT)
    reference, _ = replace_relus(network, [site], lambda site: Blanked(site, trim))
    torch.testing.assert_close(trimmed(IMAGES), reference(IMAGES))
    before, after = (shapes(each)[site] for each in (network, trimmed))
    assert after == (before[0], *(size - 2 * trim for size in before[1:]))


@pytest.mark.parametrize("name", ZOO)
def test_every_users_network_is_trimmed_so_or_refused(name: str) -> None:
    network = trace(randomise(ZOO[name]())).eval()
    census = take_census(network, INPUT)
    done = 0
    for layer in census.layers:
        try:
            trimmed = trim_maps(network, {layer.name: 1}, INPUT)
        except NetworkError as error:
            assert "rimming" in str(error)
            continue
        done += 1
        reference, _ = replace_relus(network, [layer.name], lambda site: Blanked(site, 1))
        torch.testing.assert_close(trimmed(IMAGES), reference(IMAGES))
        assert take_census(trimmed, INPUT).relus < census.relus
        trimmed.train()(IMAGES).sum().backward()
    assert done > 0 or name not in ("resnet50", "unet", "shared in place")


def test_convolutions_compute_nothing_that_is_not_used() -> None:
    network, site = inner(BLOCKS["stride"]())
    full, trimmed = take_census(network, INPUT), take_census(trim_maps(network, {site: 1}, INPUT), INPUT)
    first, second = 3 * 4 * 9 * (8 * 8 - 6 * 6), 0  # the second still makes every position
    assert full.macs - trimmed.macs == first + second


def test_the_network_itself_stays_as_it_is() -> None:
    network, site = inner(BLOCKS["plain"]())
    before = network(IMAGES)
    trim_maps(network, {site: 2}, INPUT)
    torch.testing.assert_close(network(IMAGES), before, rtol=0, atol=0)
    same = trim_maps(network, {site: 0}, INPUT)
    torch.testing.assert_close(same(IMAGES), before, rtol=0, atol=0)


def test_what_is_called_twice_or_read_twice_keeps_its_padding() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same, self.relu, self.head = convolution(3, 3), nn.ReLU(), Head(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.same(x))
            return self.head(x + self.same(y) + y)

    network, site = inner(Twice())
    trimmed = trim_maps(network, {site: 2}, INPUT)
    reference, _ = replace_relus(network, [site], lambda site: Blanked(site, 2))
    torch.testing.assert_close(trimmed(IMAGES), reference(IMAGES))
    assert trimmed.get_submodule("same").padding == (1, 1)


def test_a_layer_without_a_way_around_keeps_its_size() -> None:
    network = trace(randomise(BLOCKS["plain"]())).eval()
    sites = [site.name for site in find_relus(network)]
    trimmed = shapes(trim_maps(network, dict.fromkeys(sites, 1), INPUT))
    assert [trimmed[site] for site in sites] == [(4, 14, 14), (6, 16, 16)]
    with pytest.raises(NetworkError, match="Trimming needs a ReLU with a way around it"):
        trim_maps(network, {sites[1]: 1}, INPUT)


def test_what_takes_only_type_or_size_of_the_image_is_no_way_around() -> None:
    class Plain(nn.Module):
        def __init__(self, like: str) -> None:
            super().__init__()
            self.first, self.second, self.head = convolution(3, 4), convolution(4, 6), Head(6)
            self.like = like

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.second(F.relu(self.first(x))))
            if self.like == "type_as":
                return self.head(y).type_as(x)
            zeros = x.new_zeros(1) if self.like == "new_zeros" else torch.zeros_like(x).mean()
            return self.head(y) + zeros

    for like in ("type_as", "new_zeros", "zeros_like"):
        assert not any(layer.has_skip for layer in take_census(Plain(like), INPUT).layers), like


def test_too_much_is_refused() -> None:
    network, site = inner(BLOCKS["stride"]())
    assert shapes(trim_maps(network, {site: 3}, INPUT))[site] == (4, 2, 2)
    with pytest.raises(NetworkError, match=r"Trimming must leave a part.*4 from each side of 4x8x8"):
        trim_maps(network, {site: 4}, INPUT)
    with pytest.raises(NetworkError, match="Every call site must be a ReLU"):
        trim_maps(network, {"nowhere": 1}, INPUT)


def test_a_candidate_with_it() -> None:
    base = make_base(NetworkSpec("resnet18", (3, 32, 32), 10, width=0.125))
    candidate = Candidate(keep=("S3", "S4"), thin=True, beta=(0.5, 1.0), trim=(1, 1))
    counted = census_of(base, candidate)
    assert counted.relus == 2 * 16 * 6 * 6 + 2 * 64 * 2 * 2
    for network in (build_candidate(base, candidate), build_candidate(base, candidate, warm=False)):
        measured = take_census(network, (3, 32, 32))
        assert (measured.relus, measured.macs, measured.params) == (counted.relus, counted.macs, counted.params)
    collapsed = build_candidate(base, Candidate(keep=("S3", "S4"), thin=True, trim=(1, 0), collapse=True))
    layers = {layer.name: layer.shape for layer in take_census(collapsed, (3, 32, 32)).layers}
    assert layers["layer3.0.relu1"] == (32, 6, 6)


def test_a_candidate_that_trims_nothing_is_refused() -> None:
    base = make_base(NetworkSpec("mobilenet_v1", (3, 32, 32), 10, width=0.125))
    with pytest.raises(NetworkError, match="a way around"):
        census_of(base, Candidate(keep=("S2",), trim=(1,)))
    mixed = make_base(SPEC, Mixed())
    with pytest.raises(NetworkError, match="none that stays in S2"):
        census_of(mixed, Candidate(keep=("S1", "S2"), trim=(1, 1)))
    assert census_of(mixed, Candidate(keep=("S1", "S2"), trim=(1, 0))).relus == 4 * 14 * 14 + 6 * 16 * 16 + 6 * 8 * 8
    residual = make_base(NetworkSpec("resnet18", (3, 32, 32), 10, width=0.125))
    with pytest.raises(NetworkError, match="Trimming must leave a part"):
        census_of(residual, Candidate(keep=("S3", "S4"), rho=0.5, trim=(1, 1)))
    for trim in ((-1,), (1.5,), (True,), (2000,)):
        with pytest.raises(UsageError, match="Trim is a number of positions"):
            Candidate(keep=("S3",), trim=trim)  # type: ignore[arg-type]
