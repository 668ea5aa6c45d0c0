"""ReLUs are found by call site, in whatever words; everything else that is not linear is named."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from deepreduce.census import find_relus, other_nonlinearities, trace

from .zoo import INPUT, SPELLINGS, ZOO, Bottleneck, Functions, Head, without_relus


def test_an_example() -> None:
    sites = find_relus(trace(Bottleneck(16, 4, 1, inplace=True)))
    assert [site.name for site in sites] == ["relu", "relu#2", "relu#3"]
    assert all(site.source.startswith("zoo.py:") for site in sites)
    lines = [int(site.source.split(":")[1]) for site in sites]
    assert lines[0] + 1 == lines[1] < lines[2]


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_found(name: str) -> None:
    sites = find_relus(trace(Functions(SPELLINGS[name])))
    six = "6" in name or "hardtanh" in name.lower()
    assert [site.kind for site in sites] == ["relu6" if six else "relu"] * 2


@pytest.mark.parametrize("name", ZOO)
def test_as_many_as_pytorch_computes(name: str) -> None:
    network = ZOO[name]().eval()
    with without_relus(set()) as eager:
        network(torch.rand(1, *INPUT))
    sites = find_relus(trace(network))
    assert len(sites) == len(eager.sizes) > 0
    assert len({site.name for site in sites}) == len(sites)
    assert all(site.source.startswith("zoo.py:") for site in sites)


class Unlike(nn.Module):
    """Functions that are near a ReLU and are none."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(x) + x.clamp(min=0.1) + x.clamp(max=0) + x.clamp(-1, 1) + x.clamp(0, 5)
        x = x + F.threshold(x, 0, 1) + F.threshold(x, 1, 0) + F.hardtanh(x) + torch.clamp(x, False)
        return x + F.relu6(x).abs() + x.clamp(min=x.mean()) + F.gelu(x)


def test_near_relus_are_none() -> None:
    traced = trace(Unlike())
    assert [site.kind for site in find_relus(traced)] == ["relu6"]
    notes = other_nonlinearities(traced)
    assert len(notes) == 12
    assert [note.split(":")[1] for note in notes].count("clamp") == 6
    assert all("test_call_sites.py:" in note for note in notes)


def test_what_compares_or_multiplies_is_named() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.norm = nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.GroupNorm(2, 8)
            self.gain, self.head = nn.Parameter(torch.ones(8, 1, 1)), Head(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.pool(F.relu(self.conv(x)))) * self.gain
            rows = y.shape[0] * y.size(2) // 2
            z = F.max_pool2d(y, 2).reshape(rows * 2 // y.size(2), 8, -1, 1)
            return self.head(z * torch.sigmoid(z) / z.sum())

    notes = other_nonlinearities(trace(Gated()))
    assert [note.split(":")[0] + ":" + note.split(":")[1].strip().split(" ")[0] for note in notes] == [
        "pool:MaxPool2d",
        "norm:GroupNorm",
        "net:max_pool2d",
        "net:sigmoid",
        "net:mul",
        "net:truediv",
    ]


def test_a_relu_inside_an_opaque_module_is_reported() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
            self.mix = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x)).flatten(2).transpose(1, 2)
            return self.out(self.mix(x).mean(1))

    traced = trace(Attends())
    assert len(find_relus(traced)) == 1
    (note,) = other_nonlinearities(traced)
    assert note.startswith("mix: TransformerEncoderLayer is opaque")


def test_dead_and_constant_relus_are_reported_and_not_counted() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), Head(8)
            self.gain = nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            F.relu(x)
            x = F.relu(x) * F.relu(self.gain)
            return self.head(x)

    traced = trace(Odd())
    (site,) = find_relus(traced)
    assert site.name == "net:relu#2"
    notes = other_nonlinearities(traced)
    assert [note.split(": ")[1].split(",")[0] for note in notes] == [
        "its result is never read",
        "it does not depend on the image",
    ]


def test_names_do_not_depend_on_copies_or_mode() -> None:
    traced = trace(ZOO["resnet50"]().train())
    again = trace(ZOO["resnet50"]().eval())
    names = [site.name for site in find_relus(traced)]
    assert names == [site.name for site in find_relus(again)] == [s.name for s in find_relus(copy.deepcopy(traced))]
    assert names[:5] == ["relu", "layer1.0.relu", "layer1.0.relu#2", "layer1.0.relu#3", "layer1.1.relu"]
