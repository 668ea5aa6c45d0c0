"""A masked ReLU layer computes a ReLU where the mask says so, and is counted and named as the layer it came from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deepreduce.census import MaskedReLU, find_relus, masked_relu, take_census, trace
from deepreduce.errors import NetworkError
from deepreduce.reduction import remove_relus

from .zoo import INPUT, ZOO, randomise

MASK = torch.tensor([[True, False], [False, True]])


@pytest.mark.parametrize("kind", ["relu", "relu6"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_example(kind: str, dtype: torch.dtype) -> None:
    layer = MaskedReLU(kind, MASK, "relu")
    x = torch.tensor([[[-2.0, -3.0], [-4.0, -5.0]], [[7.0, 8.0], [9.0, 1.0]]], dtype=dtype)
    got = layer(x)
    high = 6.0 if kind == "relu6" else 7.0
    assert got.tolist() == [[[0.0, -3.0], [-4.0, 0.0]], [[high, 8.0], [9.0, 1.0]]]
    assert got.dtype == dtype
    assert torch.equal(layer.mask, MASK) and not layer.state_dict()
    assert torch.equal(copy.deepcopy(layer)(x), got)
    assert repr(layer) == f"MaskedReLU({kind}, 2 of 4, relu)"


def test_gradients_are_those_of_its_parts() -> None:
    x = torch.tensor([[[-1.0, -1.0], [2.0, 2.0]]], requires_grad=True)
    MaskedReLU("relu", MASK, "relu")(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[[0.0, 1.0], [1.0, 1.0]]]


def test_an_input_of_another_shape_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"shape \(2, 2\).*\(2, 3\).*layer1"):
        MaskedReLU("relu", MASK, "layer1")(torch.zeros(1, 2, 3))


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "functional"])
def test_a_masked_network_counts_what_it_keeps_under_the_old_names(name: str) -> None:
    network = trace(randomise(ZOO[name]()))
    full = take_census(network, INPUT)
    random = torch.Generator().manual_seed(0)
    chosen = full.layers[1::2]
    masks = {layer.name: (torch.rand(layer.shape, generator=random) < 0.3).numpy() for layer in chosen}
    gone = full.layers[0].name
    masked = remove_relus(network, [gone], masks=masks)
    census = take_census(masked, INPUT)
    kept = {layer.name: layer.relus for layer in census.layers}
    sizes = {layer.name: layer.size for layer in full.layers}
    assert sum(kept.values()) == census.relus == full.relus - sizes[gone] - sum(
        sizes[each] - int(mask.sum()) for each, mask in masks.items()
    )  # fmt: skip
    for each, mask in masks.items():
        assert kept[each] == int(mask.sum())
    assert len(set(kept)) == len(full.layers) - 1
    assert census.macs == full.macs and census.params == full.params
    assert set(masked.state_dict()) == set(network.state_dict())
    sites = {site.node: site.name for site in find_relus(masked)}
    found = [node for node in masked.graph.nodes if masked_relu(node, masked) is not None]
    assert {sites[node.name] for node in found} == set(masks)


def test_masks_compute_what_plain_pytorch_computes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.relu(self.conv(x)).flatten(1)

    net = Net()
    mask = torch.rand(4, *INPUT[1:]) < 0.5
    x = torch.randn(2, *INPUT)
    with torch.no_grad():
        got = remove_relus(trace(net), [], masks={"relu": mask.numpy()})(x)
        y = net.conv(x)
    assert torch.equal(got, torch.where(mask, y.relu(), y).flatten(1))
