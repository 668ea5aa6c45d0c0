"""Scaled channels: the network stays the same, its ReLUs' ranges are filled, and what must have one scale has it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from deepreduce.networks.registry import REFERENCE
from deepreduce.private.program import Circuit, FormatSettings, make_program
from deepreduce.private.program.build import _calibrate
from deepreduce.private.program.convert import convert
from deepreduce.private.program.equalise import MOST_BOOST, equalise
from deepreduce.private.program.fold import fold
from deepreduce.private.program.graph import Graph
from deepreduce.private.program.merge import merge

from .small import Lambda, images, photographs, settle

SETTINGS = FormatSettings(margin=2.0, doubt=0.0)
FILL = 0.5
"""What the margin leaves of a range, but for some thousandths."""


def prepared(network: nn.Module, batch: torch.Tensor) -> Graph:
    graph = convert(network, tuple(batch.shape[1:]))
    fold(graph, batch.double())
    merge(graph)
    return graph


def equalised(graph: Graph, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits before and after."""
    before = graph.run(batch.double())[graph.output]
    ranges = _calibrate(graph, batch.double()).ranges
    equalise(graph, ranges, SETTINGS)
    return before, graph.run(batch.double())[graph.output]


def branches(net: Lambda, x: torch.Tensor) -> torch.Tensor:
    """A residual, a depthwise layer, max and average pools, concatenation of maps, a ReLU6, and flattening."""
    a = F.relu(net.first(x))
    b = F.relu(net.second(a) + a)
    c = F.max_pool2d(F.relu(net.depthwise(b)), 2)
    d = F.relu6(net.capped(F.avg_pool2d(a, 2)))
    e = torch.cat([c, d], dim=1).flatten(1)
    return net.last(F.relu(net.hidden(e)))


def mixed() -> nn.Module:
    torch.manual_seed(3)
    layers = {
        "first": nn.Conv2d(3, 4, 3, padding=1), "second": nn.Conv2d(4, 4, 3, padding=1),
        "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4), "capped": nn.Conv2d(4, 2, 1),
        "hidden": nn.Linear(6 * 16, 12), "last": nn.Linear(12, 5),
    }  # fmt: skip
    return settle(Lambda(branches, **layers), images(32, 3, 8, 8))


@pytest.mark.parametrize("name", ["mixed", *sorted(REFERENCE)])
def test_the_network_stays_the_same(name: str) -> None:
    torch.manual_seed(0)
    if name == "mixed":
        network, batch = mixed(), images(8, 3, 8, 8)
    else:
        network, batch = REFERENCE[name](input=(3, 32, 32), classes=10, alpha=0.125), photographs(8)
        settle(network, batch)
    graph = prepared(network.eval(), batch)
    weights = {node: node.weight for node in graph.order() if node.weight is not None}
    before, after = equalised(graph, batch)
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-9 * float(before.abs().max()))
    assert any(not np.array_equal(weight, node.weight) for node, weight in weights.items())


def test_the_largest_channel_fills_its_range_and_others_come_nearer() -> None:
    torch.manual_seed(1)
    network = Lambda(lambda net, x: net.b(F.relu(net.a(x)).flatten(1)), a=nn.Conv2d(1, 3, 1), b=nn.Linear(48, 4))
    with torch.no_grad():
        network.a.weight[:] = torch.tensor([3.0, 2.5, 0.1]).view(3, 1, 1, 1)
        network.a.bias.zero_()
    batch = images(16, 1, 4, 4)
    graph = prepared(network, batch)
    equalised(graph, batch)
    (relu,) = (node for node in graph.order() if isinstance(node.op, Circuit))
    ranges = _calibrate(graph, batch.double()).ranges
    first, second, third = ranges[relu.inputs[0]].channels / FILL
    assert 0.99 < first / 2.0 ** round(math.log2(first)) <= 1 and second == pytest.approx(first)
    assert third == pytest.approx(0.1 / 3.0 * MOST_BOOST * first)


def test_branches_that_are_added_have_one_scale() -> None:
    graph = prepared(mixed(), images(8, 3, 8, 8))
    ranges = _calibrate(graph, images(8, 3, 8, 8).double()).ranges
    equalise(graph, ranges, SETTINGS)
    scaled = _calibrate(graph, images(8, 3, 8, 8).double()).ranges
    for node in graph.order():
        ratio = scaled[node].channels / np.where(ranges[node].channels > 0, ranges[node].channels, 1)
        if node in (graph.input, graph.output) or (isinstance(node.op, Circuit) and node.op.kind.endswith("6")):
            assert ratio[ratio > 0] == pytest.approx(1)
        for before in node.inputs:
            if len(scaled[before].channels) == len(ratio) and type(node.op).__name__ in ("Sum", "Circuit", "SumPool"):
                own = scaled[before].channels / ranges[before].channels
                assert own == pytest.approx(np.where(ratio > 0, ratio, own))


@pytest.mark.parametrize("count", [2, 8, 16, 17, 64])
def test_few_images_leave_more_room(count: int) -> None:
    """Whatever the number of images: no ReLU's input may come nearer to the end of its range than is stated."""
    batch = images(count, 3, 8, 8)
    program = make_program(mixed(), batch, settings=FormatSettings(tolerance=1e9))
    assert program.report is not None
    rows = [row for row in program.report.rows if row.get("tested")]
    assert rows
    for row in rows:
        room = row["allowed"] / row["seen"]
        assert 2 * (1 + 16 / count) < room < 1.01 * 4 * (1 + 16 / count)
    assert min(row["allowed"] / row["seen"] for row in rows) < 1.01 * 2 * (1 + 16 / count)  # the range is filled


def test_whole_numbers_stay_whole() -> None:
    """Signs between two ReLUs need no fraction bits: they are scaled by nothing."""
    torch.manual_seed(1)
    network = Lambda(
        lambda net, x: net.last(F.relu(net.sign(F.relu(net.first(x)))).flatten(1)),
        first=nn.Conv2d(1, 3, 3, padding=1), sign=nn.Conv2d(3, 3, 1, groups=3, bias=False), last=nn.Linear(48, 4),
    )  # fmt: skip
    with torch.no_grad():
        network.sign.weight[:] = torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1, 1)
    batch = images(32, 1, 4, 4)
    graph = convert(network, (1, 4, 4))
    before, after = equalised(graph, batch)
    assert torch.allclose(before, after, rtol=1e-9)
    (signs,) = (node for node in graph.order() if node.weight is not None and node.name == "sign")
    assert set(np.abs(signs.weight).ravel().tolist()) == {1.0}


def test_signs_are_surer_with_it_and_it_can_be_left_out() -> None:
    batch = photographs(32, 8)
    network = mixed()
    errors = []
    for chosen in (False, True):
        settings = FormatSettings(
            equalise=chosen, doubt=0.0, sign_bits=6, activation_bits=16, weight_bits=16, tolerance=1e9
        )
        program = make_program(network, batch, settings=settings)
        assert program.report is not None
        errors.append(program.report.agreement.rms_error)
    assert errors[1] < 0.9 * errors[0]
