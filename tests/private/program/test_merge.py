"""One map in place of several: exact at the borders, and only where it is cheaper."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from deepreduce.errors import NetworkError
from deepreduce.private.program import Circuit, Convolution, Matrix
from deepreduce.private.program.compose import Region, constant, matrix_weight, plan
from deepreduce.private.program.convert import convert
from deepreduce.private.program.fold import fold
from deepreduce.private.program.graph import Graph
from deepreduce.private.program.merge import Cost, compose, merge, node_cost, regions
from deepreduce.private.program.operations import SumPool, Weighted

from .small import Lambda, images


def weighted(graph: Graph) -> list[str]:
    return [node.name for node in graph.order() if isinstance(node.op, Weighted)]


def macs(graph: Graph) -> float:
    return sum((node_cost(node) for node in graph.order()), Cost()).macs


def forced(graph: Graph) -> Graph:
    """Merge everything between the image and the last feature map into one region, whatever it costs."""
    output = graph.output.inputs[0]  # in front of the flattening
    inside = [node for node in graph.order() if node not in (graph.input, graph.output)]
    graph.replace(output, compose(Region(output, tuple(inside), (graph.input,))))
    return graph


def test_a_tail_without_relu_becomes_one_matrix() -> None:
    torch.manual_seed(0)
    net = Lambda(
        lambda net, x: net.fc(F.adaptive_avg_pool2d(net.c2(net.c1(F.relu(x)) + x), 1).flatten(1)),
        c1=nn.Conv2d(8, 8, 3, padding=1),
        c2=nn.Conv2d(8, 32, 3, padding=1),
        fc=nn.Linear(32, 4),
    )
    graph = convert(net, (8, 8, 8))
    batch = images(3, 8, 8, 8).double()
    fold(graph, batch)
    before, expected = macs(graph), graph.run(batch)[graph.output]
    merge(graph)
    assert macs(graph) < before / 10
    assert all(isinstance(node.op, Matrix) for node in graph.order() if isinstance(node.op, Weighted))
    assert torch.allclose(graph.run(batch)[graph.output], expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_chain_of_padded_convolutions_is_exact_at_the_borders(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    layers = {}
    for number in range(draw(st.integers(2, 3))):
        kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        layers[f"c{number}"] = nn.Conv2d(
            2,
            2,
            kernel,
            stride=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
            padding=(draw(st.integers(0, kernel[0])), draw(st.integers(0, kernel[1]))),
            dilation=draw(st.integers(1, 2)),
            groups=draw(st.integers(1, 2)),
        )

    def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        for name in layers:
            x = getattr(net, name)(x)
        return x.flatten(1)

    batch = images(2, 2, 16, 13).double()
    try:
        run(Lambda(run, **layers), batch.float())
    except RuntimeError:  # strides have left less than a kernel: no network
        assume(False)
    graph = convert(Lambda(run, **layers), (2, 16, 13))
    expected = graph.run(batch)[graph.output]
    assert torch.allclose(forced(graph).run(batch)[graph.output], expected, rtol=1e-11, atol=1e-11)
    assert len(weighted(graph)) <= 9


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_pool_between_convolutions_is_exact_at_the_borders(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pool = nn.AvgPool2d(
        kernel,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding=(draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))),
        ceil_mode=draw(st.booleans()),
        count_include_pad=draw(st.booleans()),
    )
    first = nn.Conv2d(2, 2, 3, stride=draw(st.integers(1, 2)), padding=draw(st.integers(0, 2)))
    net = Lambda(lambda net, x: net.last(net.pool(net.first(x))).flatten(1), first=first, pool=pool)
    net.last = nn.Conv2d(2, 2, draw(st.integers(1, 3)), stride=draw(st.integers(1, 2)), padding=draw(st.integers(0, 2)))
    size = draw(st.integers(8, 13))
    batch = images(2, 2, size, size + 1).double()
    try:
        graph = convert(net, (2, size, size + 1))
    except NetworkError:  # a window is larger than what is left of the map: no network
        assume(False)
    fold(graph, batch)
    expected = graph.run(batch)[graph.output]
    forced(graph)
    assert not any(isinstance(node.op, SumPool) for node in graph.order())
    assert torch.allclose(graph.run(batch)[graph.output], expected, rtol=1e-12, atol=1e-12)


def test_windows_cut_short_at_the_border_have_kernels_of_their_own() -> None:
    net = Lambda(lambda net, x: net.pool(net.c(x)).flatten(1), c=nn.Conv2d(3, 8, 7, stride=2, padding=3))
    net.pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
    graph = convert(net, (3, 64, 64))
    fold(graph, images(2, 3, 64, 64).double())
    layers = [node for node in forced(graph).order() if isinstance(node.op, Convolution)]
    inner = max(layers, key=lambda node: node.size)
    assert inner.op == Convolution((8, 3, 11, 11), (4, 4), (1, 2, 1, 2))
    assert (len(layers), inner.shape) == (4, (8, 15, 15))


def test_a_pool_behind_a_convolution_makes_its_stride_longer() -> None:
    net = Lambda(lambda net, x: net.pool(net.c(x)).flatten(1), c=nn.Conv2d(8, 8, 3, padding=1), pool=nn.AvgPool2d(2))
    graph = convert(net, (8, 32, 32))
    batch = images(2, 8, 32, 32).double()
    before, expected = macs(graph), graph.run(batch)[graph.output]
    merge(graph)
    layers = [node for node in graph.order() if isinstance(node.op, (Convolution, SumPool))]
    assert [node.op for node in layers] == [Convolution((8, 8, 4, 4), (2, 2), (1, 1, 1, 1))]
    assert [node.name for node in layers] == ["c..pool"]
    assert macs(graph) < before / 2
    assert torch.allclose(graph.run(batch)[graph.output], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "pool",
    [nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AdaptiveAvgPool2d(4)],
    ids=["ceil", "border", "adaptive"],
)
def test_rows_beyond_a_map_of_several_parts_are_of_its_longest(pool: nn.Module) -> None:
    """A kernel is computed for the first of its rows, whose window may begin where there is padding."""
    torch.manual_seed(0)
    net = Lambda(lambda net, x: net.c2(net.pool(net.c1(x))).flatten(1), c1=nn.Conv2d(16, 64, 1), pool=pool)
    net.c2 = nn.Conv2d(64, 16, 3, padding=1)
    graph = convert(net, (16, 15, 15))
    batch = images(2, 16, 15, 15).double()
    expected = graph.run(batch)[graph.output]
    merge(graph)
    assert torch.allclose(graph.run(batch)[graph.output], expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(forced(graph).run(batch)[graph.output], expected, rtol=1e-12, atol=1e-12)


def test_regions_are_found_in_time_however_often_branches_meet() -> None:
    """A walk along every path would double with each block."""

    def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = net.first(x)
        for _ in range(40):
            x = x + F.avg_pool2d(x, 1)
        return net.last(x).flatten(1)

    graph = convert(Lambda(run, first=nn.Conv2d(1, 2, 1), last=nn.Conv2d(2, 1, 1)), (1, 4, 4))
    assert len(regions(graph)) > 40


def test_pools_alone_are_not_merged() -> None:
    net = Lambda(lambda net, x: net.two(net.one(F.relu(x))).flatten(1), one=nn.AvgPool2d(2), two=nn.AvgPool2d(2))
    graph = convert(net, (3, 8, 8))
    merge(graph)
    assert sum(isinstance(node.op, SumPool) for node in graph.order()) == 2


def test_a_residual_region_with_pooling_and_concatenation_is_exact() -> None:
    torch.manual_seed(0)

    def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = net.c2(net.c1(x)) + x
        return torch.cat([F.avg_pool2d(y, 2), net.c3(y)], 1).flatten(1)

    net = Lambda(
        run,
        c1=nn.Conv2d(2, 4, 3, padding=1),
        c2=nn.Conv2d(4, 2, 3, padding=1),
        c3=nn.Conv2d(2, 3, 3, stride=2, padding=1),
    )
    graph = convert(net, (2, 12, 12))
    batch = images(2, 2, 12, 12).double()
    expected = graph.run(batch)[graph.output]
    assert torch.allclose(forced(graph).run(batch)[graph.output], expected, rtol=1e-11, atol=1e-11)


def test_convolutions_whose_border_needs_no_care_stay_one_convolution() -> None:
    """A pointwise one before or behind a padded one, and one without padding behind any other."""
    torch.manual_seed(0)
    for first, second in (((1, 0), (3, 1)), ((3, 1), (1, 0)), ((3, 1), (3, 0))):
        net = Lambda(
            lambda net, x: net.c2(net.c1(x)).flatten(1),
            c1=nn.Conv2d(3, 4, first[0], padding=first[1]),
            c2=nn.Conv2d(4, 3, second[0], padding=second[1]),
        )
        graph = convert(net, (3, 9, 9))
        batch = images(2, 3, 9, 9).double()
        expected = graph.run(batch)[graph.output]
        assert torch.allclose(forced(graph).run(batch)[graph.output], expected, rtol=1e-12, atol=1e-12)
        assert len(weighted(graph)) == 1


def test_the_matrix_of_a_region_is_the_region() -> None:
    net = Lambda(
        lambda net, x: net.c2(net.c1(x)).flatten(1), c1=nn.Conv2d(2, 2, 3, padding=2), c2=nn.Conv2d(2, 2, 3, 2, 1)
    )
    graph = convert(net, (2, 3, 3))
    inside = tuple(node for node in graph.order() if node is not graph.input)
    region = Region(graph.output, inside, (graph.input,))
    batch = images(4, 2, 3, 3).double()
    assert plan(region, graph.input) is None
    got = batch.flatten(1).numpy() @ matrix_weight(region, graph.input).T + constant(region)
    assert np.allclose(got, graph.run(batch)[graph.output].numpy(), atol=1e-12)


def test_wide_convolutions_in_a_row_stay_apart() -> None:
    """Their composition would have 25/18 of the MACs, and pieces at the borders besides."""
    net = Lambda(
        lambda net, x: F.relu(net.c2(net.c1(F.relu(x)))).flatten(1),
        c1=nn.Conv2d(64, 8, 1),
        c2=nn.Conv2d(8, 64, 3, padding=1),
    )
    graph = convert(net, (64, 32, 32))
    fold(graph, images(1, 64, 32, 32).double())
    merge(graph)
    assert weighted(graph) == ["c1", "c2"]


def test_what_another_layer_reads_is_not_merged_away() -> None:
    net = Lambda(
        lambda net, x: (net.c2(y := net.c1(x)) + F.relu(y)).flatten(1),
        c1=nn.Conv2d(3, 3, 1),
        c2=nn.Conv2d(3, 3, 1),
    )
    graph = convert(net, (3, 8, 8))
    batch = images(2, 3, 8, 8).double()
    expected = graph.run(batch)[graph.output]
    merge(graph)
    relu = next(node for node in graph.order() if isinstance(node.op, Circuit))
    assert isinstance(relu.inputs[0].op, Convolution)
    assert torch.allclose(graph.run(batch)[graph.output], expected, atol=1e-12)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 4), (4, 1)])
def test_a_matrix_is_computed_in_portions_from_its_smaller_end(
    monkeypatch: pytest.MonkeyPatch, inputs: int, outputs: int
) -> None:
    torch.manual_seed(0)
    net = Lambda(
        lambda net, x: net.c2(net.c1(x) + x.flip(3)).flatten(1),
        c1=nn.Conv2d(inputs, inputs, 3, padding=1),
        c2=nn.Conv2d(inputs, outputs, 3, padding=1),
    )
    graph = convert(net, (inputs, 5, 6))
    inside = tuple(node for node in graph.order() if node not in (graph.input, graph.output))
    region = Region(inside[-1], inside, (graph.input,))
    composing = importlib.import_module("deepreduce.private.program.compose")
    portions: list[int] = []
    units = composing._units

    def recorded(part: slice, size: int) -> torch.Tensor:
        portions.append(part.stop - part.start)
        return units(part, size)

    monkeypatch.setattr(composing, "_PORTION", 7 * 30 * max(inputs, outputs))
    monkeypatch.setattr(composing, "_units", recorded)
    weight = matrix_weight(region, graph.input)
    assert sum(portions) == 30 * min(inputs, outputs)
    assert max(portions) == 7
    batch = images(4, inputs, 5, 6).double()
    expected = graph.run(batch)[region.output].flatten(1).numpy()
    assert np.allclose(batch.flatten(1).numpy() @ weight.T + constant(region).reshape(-1), expected, atol=1e-12)


def test_a_matrix_that_takes_too_long_to_compute_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = Lambda(lambda net, x: net.f2(net.f1(x.flatten(1))), f1=nn.Linear(16, 16), f2=nn.Linear(16, 16))
    merging = importlib.import_module("deepreduce.private.program.merge")
    for most, layers in ((2 * 256 * 16, 1), (2 * 256 * 16 - 1, 2)):
        monkeypatch.setattr(merging, "LARGEST_WORK", most)
        graph = convert(net, (1, 4, 4))
        merge(graph)
        assert len(weighted(graph)) == layers


def test_pieces_that_take_too_long_to_compute_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = Lambda(
        lambda net, x: F.relu(net.c2(net.c1(x))).flatten(1),
        c1=nn.Conv2d(4, 4, 3, padding=1),
        c2=nn.Conv2d(4, 4, 1),
    )
    merging = importlib.import_module("deepreduce.private.program.merge")
    for most, layers in ((1e11, 1), (0.0, 2)):
        monkeypatch.setattr(merging, "LARGEST_WORK", most)
        graph = convert(net, (4, 16, 16))
        merge(graph)
        assert len(weighted(graph)) == layers
