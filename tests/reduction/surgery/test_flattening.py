"""Flattened maps: linear layers that read every channel several times, behind concatenations too."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from deepreduce.census import trace
from deepreduce.reduction import narrow_channels, scale_channels
from deepreduce.reduction.surgery.flattening import as_convolutions

INPUT = (3, 16, 16)
IMAGES = torch.randn(2, *INPUT, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """Two branches, concatenated, and pooled to 2x2 before they are flattened."""

    def __init__(self, flatten: Callable[[Tensor], Tensor] = lambda x: torch.flatten(x, 1)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.wide, self.slim = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.pool, self.drop = nn.AdaptiveAvgPool2d(2), nn.Dropout()
        self.hidden, self.fc = nn.Linear(10 * 4, 12), nn.Linear(12, 5)
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([F.relu(self.wide(x)), F.relu(self.slim(x))], 1)
        return self.fc(F.relu(self.hidden(self.drop(self.flatten(self.pool(x))))))


FLATTENING: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: torch.flatten(x, 1),
    "method": lambda x: x.flatten(1),
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "relu behind": lambda x: torch.relu(x.flatten(1)),
}


def kept(scaled: Tensor, full: Tensor) -> list[int]:
    """Return which filters of the full layer a scaled one has, by their biases."""
    return [int((full == bias).nonzero()) for bias in scaled]


@pytest.mark.parametrize("name", FLATTENING)
def test_an_example_behind_a_concatenation(name: str) -> None:
    """The scaled network is the full one computed with the channels that stay, by hand."""
    full = Branches(FLATTENING[name]).eval()
    own = scale_channels(full, 0.5, INPUT)
    layers = {n: (own.get_submodule(n), full.get_submodule(n)) for n in ("stem", "wide", "slim", "hidden", "fc")}
    left = {n: kept(mine.bias, whole.bias) for n, (mine, whole) in layers.items()}  # type: ignore[arg-type]
    assert {n: len(channels) for n, channels in left.items()} == {"stem": 4, "wide": 3, "slim": 2, "hidden": 6, "fc": 5}
    assert own.get_submodule("hidden").in_features == 5 * 4
    x = F.relu(F.conv2d(IMAGES, full.stem.weight[left["stem"]], full.stem.bias[left["stem"]]))  # type: ignore[index]
    parts = [
        F.conv2d(x, conv.weight[left[n]][:, left["stem"]], conv.bias[left[n]], padding=conv.padding)  # type: ignore[index]
        for n, conv in (("wide", full.wide), ("slim", full.slim))
    ]
    x = F.adaptive_avg_pool2d(torch.cat([F.relu(part) for part in parts], 1), 2)
    read = full.hidden.weight.reshape(12, 10, 4)[left["hidden"]][:, left["wide"] + [6 + c for c in left["slim"]]]
    x = F.relu(x.flatten(1) @ read.flatten(1).T + full.hidden.bias[left["hidden"]])
    torch.testing.assert_close(own(IMAGES), x @ full.fc.weight[:, left["hidden"]].T + full.fc.bias)


def test_narrow_layers_say_which_numbers_of_a_flattened_map_are_left() -> None:
    full = trace(Branches())
    own, read = narrow_channels(full, {"net:relu#3": 0.5}, INPUT)
    slim = kept(own.get_submodule("slim").bias, full.get_submodule("slim").bias)  # type: ignore[arg-type]
    assert read == {"hidden": [*range(24), *(4 * (6 + c) + place for c in slim for place in range(4))]}
    assert own.get_submodule("wide").out_channels == 6 and own(IMAGES).shape == (2, 5)


def test_convolutions_compute_the_same_and_leave_nothing_behind() -> None:
    own = trace(Branches()).eval()
    before, names = copy.deepcopy(own), [node.name for node in own.graph.nodes]
    layer = own.get_submodule("hidden")
    with as_convolutions(own, IMAGES) as stand_ins:
        assert list(stand_ins) == [layer] and own.get_submodule("hidden") is stand_ins[layer]  # type: ignore[index]
        assert stand_ins[layer].weight.shape == (12, 10, 2, 2)  # type: ignore[index]
        torch.testing.assert_close(own(IMAGES), before(IMAGES))
    assert own.get_submodule("hidden") is layer and names == [node.name for node in own.graph.nodes]
    assert torch.equal(own(IMAGES), before(IMAGES))
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in own.state_dict().items())


def test_a_flattened_map_that_two_layers_read() -> None:
    class Heads(Branches):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(10 * 4, 12)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([F.relu(self.wide(y := F.relu(self.stem(x)))), F.relu(self.slim(y))], 1)
            x = self.pool(x).flatten(1)
            return self.fc(F.relu(self.hidden(self.drop(x)) + self.other(x)))

    own = scale_channels(Heads(), 0.5, INPUT)
    assert [own.get_submodule(name).weight.shape for name in ("hidden", "other")] == [(6, 20), (6, 20)]
    assert own(IMAGES).shape == (2, 5)


class Read(nn.Module):
    """A layer that is called twice, or one that reads a map of one position."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        size = 1 if kind == "one position" else 2
        self.conv, self.pool, self.kind = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(size), kind
        self.fc = nn.Linear(8 * size**2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv(x)))
        y = self.fc(x.flatten(1))
        return y + self.fc(x.flatten(1)) if self.kind == "called twice" else y


@pytest.mark.parametrize("kind", ["called twice", "one position"])
def test_what_stays_a_linear_layer(kind: str) -> None:
    own = trace(Read(kind))
    with as_convolutions(own, IMAGES) as stand_ins:
        assert not stand_ins
    assert scale_channels(Read(kind), 0.5, INPUT)(IMAGES).shape == (2, 5)
