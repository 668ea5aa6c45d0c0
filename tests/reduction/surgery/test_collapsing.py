"""Collapsing: the convolution is the stack away from the border, and stands in its place."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import Tensor, nn

from deepreduce.census import take_census, trace
from deepreduce.errors import UsageError
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import (
    Base,
    Candidate,
    Masks,
    build_candidate,
    census_of,
    collapse,
    finish_fading,
    head_of,
    make_base,
    set_fade,
)
from deepreduce.reduction.surgery import collapsing

from ...census.zoo import CLASSES, INPUT, ZOO, Head, randomise

SPEC = NetworkSpec("Users", INPUT, CLASSES)


class Stack(nn.Module):
    """All that a linear stretch is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.inside = nn.Conv2d(4, 4, (3, 1), padding=(1, 0), groups=2, bias=False)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2)
        self.pool = nn.AvgPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.conv3 = nn.Conv2d(6, 5, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = Head(5)

    def before(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = x + self.inside(x)
        return self.drop(self.pool(self.conv2(x) + self.shortcut(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.head(self.relu(self.conv3(x)) + x[:, :5])


def statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics of their own, as training does."""
    random = torch.Generator().manual_seed(seed)
    for module in randomise(network).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=random))
            module.running_var.copy_(torch.rand(module.num_features, generator=random) + 0.5)
    return network.eval()


def test_example_away_from_the_border_the_convolution_is_the_stack() -> None:
    stack = statistics(Stack())
    assert isinstance(stack, Stack)
    input = (3, 48, 48)
    network = trace(stack)
    node = head_of(network, input)
    assert node is not None and node.name == "drop"
    expected = network(images := torch.randn(2, *input, generator=torch.Generator().manual_seed(1)))
    collapsed = collapse(network, node.name, input).eval()
    (head,) = [module for module in collapsed.modules() if isinstance(module, nn.Conv2d) and module.stride == (4, 4)]
    # Offsets of a row: 1 either way by the first layer, 1 by the second, 2 by the third, and 2 further by the pool.
    assert (head.kernel_size, head.padding) == ((4 + 1 + 4 + 2, 3 + 1 + 3 + 2), (4, 3))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in collapsed.modules())
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    torch.testing.assert_close(head(images)[inner], stack.before(images)[inner], rtol=1e-4, atol=1e-5)
    assert collapsed(images).shape == expected.shape
    assert [n.name for n in collapsed.graph.nodes if n.op == "placeholder"] == ["x"]


@pytest.mark.parametrize("size", [16, 17, 18, 19, 23])
@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d((3, 2), (3, 1), (1, 0), ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(2, 3, ceil_mode=True, divisor_override=3),
    ],
    ids=str,
)
def test_averages_are_what_they_are_away_from_the_border(pool: nn.AvgPool2d, size: int) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
    linear = nn.Sequential(first, pool, second)
    network, input = trace(nn.Sequential(linear, nn.ReLU(), Head(5))), (3, size, size)
    node = head_of(network, input)
    assert node is not None
    collapsed = collapse(network, node.name, input).eval()
    (head,) = [module for module in collapsed.modules() if isinstance(module, nn.Conv2d)]
    images = torch.randn(2, *input)
    found, expected = head(images), linear(images)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert found.shape == expected.shape and expected[inner].numel()
    torch.testing.assert_close(found[inner], expected[inner], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "keep"),
    [("resnet18", ("S3", "S4")), ("resnet34", ("S2", "S3", "S4")), ("mobilenet_v1", ("S4", "S5")),
     ("vgg16", ("S2", "S3")), ("wide_resnet_22_8", ("S2", "S3"))],
)  # fmt: skip
def test_reference_networks(name: str, keep: tuple[str, ...]) -> None:
    """On images so large that the border is far away from their middle the two networks' features are the same."""
    torch.manual_seed(0)
    base = make_base(NetworkSpec(name, (3, 32, 32), 10, 0.125))
    statistics(base.network)
    candidate = Candidate(keep=keep, thin=True, collapse=True)
    counted = census_of(base, candidate)
    for network in (build_candidate(base, candidate), build_candidate(base, candidate, warm=False)):
        measured = take_census(network, (3, 32, 32))
        assert (measured.relus, measured.macs, measured.params) == (counted.relus, counted.macs, counted.params)
    assert counted.relus == census_of(base, Candidate(keep=keep, thin=True)).relus
    assert {layer.name for layer in counted.layers} == {layer.name for layer in base.census.layers}
    collapsed, stacked = (
        build_candidate(base, Candidate(keep=keep, thin=True, collapse=merged)).double().eval()
        for merged in (True, False)
    )
    large = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2)).double()
    seen = [_first_input(network, large) for network in (collapsed, stacked)]
    middle = (..., *(slice(n // 2 - 1, n // 2 + 1) for n in seen[0].shape[-2:]))
    assert seen[0].shape == seen[1].shape
    rounding = 1e-5 * float(seen[1][middle].detach().abs().max())  # the weights of the convolution are float32
    torch.testing.assert_close(seen[0][middle], seen[1][middle], rtol=0, atol=rounding)


def _first_input(network: nn.Module, images: Tensor) -> Tensor:
    """Return what the first ReLU of a network reads."""
    seen: list[Tensor] = []
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with contextlib.suppress(RuntimeError):  # a classifier that fits no images of this size comes later
        network(images)
    return seen[0]


def test_what_cannot_be_reached_is_cut_off() -> None:
    """An image of 8x8 has no two pixels further than 7 apart."""
    base = make_base(NetworkSpec("resnet18", (3, 8, 8), 10, 0.125))
    network = build_candidate(base, Candidate(keep=("S3", "S4"), collapse=True))
    head = network.get_submodule("deepreduce_head_0")
    assert isinstance(head, nn.Conv2d) and head.kernel_size == (14, 14) and head.padding == (6, 6)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_relus_in_the_convolution_go_at_once_and_others_fade() -> None:
    base = make_base(NetworkSpec("resnet18", (3, 16, 16), 10, 0.125))
    candidate = Candidate(keep=("S3", "S4"), thin=True, collapse=True)
    fading = build_candidate(base, candidate, fading=True)
    names = [type(module).__name__ for module in fading.modules()]
    assert names.count("FadingReLU") == 5  # behind the additions of S3 and S4, and of S2's last block
    set_fade(fading, 1.0)
    images = torch.randn(2, 3, 16, 16)
    finished = finish_fading(fading).eval()
    torch.testing.assert_close(finished(images), fading.eval()(images))
    assert take_census(finished, (3, 16, 16)).relus == census_of(base, candidate).relus


class TwoReaders(nn.Module):
    """The output sees the image through two ways: nothing can stand for all of what comes before the ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.relu, self.head = nn.ReLU(), Head(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.relu(self.conv2(self.conv1(x))))


def test_where_nothing_can_be_collapsed_the_network_stays() -> None:
    assert head_of(trace(TwoReaders()), INPUT) is None
    base = make_base(NetworkSpec("resnet18", (3, 16, 16), 10, 0.125))
    first = Candidate(keep=("S1", "S2"), thin=True)  # the stem alone comes before the first ReLU of a block
    assert census_of(base, Candidate(keep=("S1", "S2"), thin=True, collapse=True)).relus == census_of(base, first).relus
    whole = build_candidate(base, Candidate(keep=("S1", "S2"), collapse=True))
    assert "deepreduce_head_0" not in dict(whole.named_modules())


@pytest.mark.parametrize("name", [name for name in ZOO if name != "augmented"])  # it has one ReLU
def test_users_networks(name: str) -> None:
    base = make_base(SPEC, randomise(ZOO[name]()))
    layers = [layer.name for layer in base.census.layers]
    stages = tuple(stage.name for stage in base.census.stages)
    candidate = Candidate(keep=stages, drop=tuple(layers[: len(layers) // 2]), collapse=True)
    counted = census_of(base, candidate)
    network = build_candidate(base, candidate)
    measured = take_census(network, INPUT)
    assert (measured.relus, measured.macs, measured.params) == (counted.relus, counted.macs, counted.params)
    assert copy.deepcopy(network).train()(torch.randn(2, *INPUT)).shape == (2, CLASSES)


class Written(TwoReaders):
    """A channel is set to zero in place: no convolution, and nothing that may be lost."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))
        x.select(1, 0).zero_()
        return self.head(self.relu(x))


class Hooked(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv2(self.conv1(x))))


def test_what_is_written_or_hooked_is_left_alone() -> None:
    assert head_of(trace(Written()), INPUT) is None
    network = trace(Hooked())
    assert head_of(network, INPUT) is not None
    network.get_submodule("conv2").register_forward_hook(lambda *_: None)
    assert head_of(network, INPUT) is None


def test_a_convolution_that_needs_too_much_memory_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe from a stranger must not make the proof of its network take the machine's memory."""
    network = trace(Hooked())
    monkeypatch.setattr(collapsing, "MOST_BYTES", 8 * 3 * 25 * 16 * 16)
    assert head_of(network, INPUT) is not None
    monkeypatch.setattr(collapsing, "MOST_BYTES", 8 * 3 * 25 * 16 * 16 - 1)
    assert head_of(network, INPUT) is None
    large = NetworkSpec("resnet34", (3, 256, 256), 10, 0.02)
    monkeypatch.undo()
    candidate = Candidate(keep=("S4",), collapse=True)
    assert census_of(make_base(large), candidate).macs < 10**9


def test_masks_are_not_collapsed() -> None:
    with pytest.raises(UsageError, match="Masks belong"):
        Candidate(keep=("S4",), collapse=True, masks=Masks("snl", "element", 3))


def test_a_base_is_not_changed() -> None:
    base: Base = make_base(NetworkSpec("resnet18", (3, 16, 16), 10, 0.125))
    state = copy.deepcopy(base.network.state_dict())
    build_candidate(base, Candidate(keep=("S4",), collapse=True))
    assert all(torch.equal(value, base.network.state_dict()[name]) for name, value in state.items())
