"""Maxima as ReLUs: the same numbers as PyTorch's, in as few matches and levels as stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from deepreduce.private.program import (
    Circuit,
    FormatSettings,
    make_program,
    program_from_bytes,
    public_to_bytes,
    weights_to_bytes,
)
from deepreduce.private.program.graph import Graph, Input, Node
from deepreduce.private.program.lowering import lower
from deepreduce.private.program.operations import MAX, MAX_RELU, MAX_RELU6, RELU6
from deepreduce.private.program.pooling import max_pool

from .small import Lambda, agree, images, settle

EXPECTED = {MAX: lambda x: x, MAX_RELU: lambda x: x.clamp_min(0), MAX_RELU6: lambda x: x.clamp(0, 6)}


def pooled(channels: int, side: int, kernel: int, stride: int, padding: int, kind: str) -> Graph:
    x = Node(Input(), [], (channels, side, side), "image")
    outputs = (side + 2 * padding - kernel) // stride + 1
    windows = [
        [a for a in range(i * stride - padding, i * stride - padding + kernel) if 0 <= a < side] for i in range(outputs)
    ]
    node = max_pool("pool", "", x, windows, windows)
    assert isinstance(node.op, Circuit)
    node.op = Circuit(kind, 0, 0, windows=node.op.windows)
    return Graph(x, node)


def cost(graph: Graph) -> tuple[int, int]:
    """Elements of circuits, and how many of them are in a row."""
    depth: dict[Node, int] = {}
    for node in graph.order():
        depth[node] = max((depth[before] for before in node.inputs), default=0) + isinstance(node.op, Circuit)
    return sum(node.size for node in graph.order() if isinstance(node.op, Circuit)), depth[graph.output]


@pytest.mark.parametrize("kind", [MAX, MAX_RELU, MAX_RELU6])
@pytest.mark.parametrize(
    ("channels", "side", "kernel", "stride", "padding"),
    [
        (3, 8, 2, 2, 0),
        (3, 9, 3, 2, 1),
        (2, 7, 3, 1, 1),
        (2, 6, 3, 3, 0),
        (1, 7, 5, 2, 2),
        (2, 4, 4, 4, 0),
        (2, 3, 1, 1, 0),
    ],
)
def test_maxima_are_those_of_pytorch(
    channels: int, side: int, kernel: int, stride: int, padding: int, kind: str
) -> None:
    graph = pooled(channels, side, kernel, stride, padding, kind)
    batch = 5 * torch.randn(6, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = EXPECTED[kind](F.max_pool2d(batch, kernel, stride, padding))
    lower(graph)
    assert not any(isinstance(node.op, Circuit) and node.op.windows is not None for node in graph.order())
    assert torch.equal(graph.run(batch)[graph.output].round(decimals=9), expected.round(decimals=9))


def test_what_it_costs() -> None:
    """As the module says: 2x2 in two levels and three matches, with a ReLU three and four; 3x3 in four levels."""
    for kind, matches, levels in ((MAX, 3, 2), (MAX_RELU, 4, 3)):
        graph = pooled(2, 8, 2, 2, 0, kind)
        lower(graph)
        assert cost(graph) == (2 * 16 * matches, levels)
    for kind in (MAX, MAX_RELU):
        graph = pooled(1, 64, 3, 2, 1, kind)
        lower(graph)
        elements, levels = cost(graph)
        assert levels == 4 and elements / 32**2 == pytest.approx(6 if kind == MAX else 7, abs=0.2)
    graph = pooled(1, 65, 3, 1, 1, MAX)  # windows overlap: rows are shared
    lower(graph)
    assert cost(graph)[0] / 65**2 == pytest.approx(4, abs=0.1)


def test_windows_that_differ_from_channel_to_channel() -> None:
    x = Node(Input(), [], (2, 3, 2), "image")
    windows = np.array([[0, 5, 1], [2, -1, -1], [6, 7, 11], [8, 9, -1]], dtype=np.int32)
    graph = Graph(x, Node(Circuit(MAX, 0, 0, windows=windows), [x], (2, 2, 1), "pool"))
    lower(graph)
    values = torch.arange(12, dtype=torch.float64).reshape(1, 2, 3, 2)
    assert graph.run(values)[graph.output].flatten().tolist() == [5, 2, 11, 9]


@pytest.mark.parametrize("equalise", [False, True])
def test_a_relu6_comes_back_from_its_files(equalise: bool) -> None:
    net = Lambda(
        lambda net, x: net.fc(F.relu6(net.b(F.max_pool2d(F.relu6(4 * net.a(x)), 2))).flatten(1)),
        a=nn.Conv2d(3, 4, 3, padding=1),
        b=nn.Conv2d(4, 4, 3, padding=1),
        fc=nn.Linear(64, 5),
    )
    batch = images(60, 3, 8, 8)
    settings = FormatSettings(equalise=equalise, tolerance=1.0)
    program = make_program(settle(net, batch), batch, settings=settings)
    assert program_from_bytes(public_to_bytes(program.public), weights_to_bytes(program)) == program


def test_relu6_that_never_cuts_is_a_relu() -> None:
    for kind in (RELU6, MAX_RELU6):
        for reached, clipped in ((5.9, False), (6.1, True)):
            graph = pooled(1, 4, 2, 2, 0, MAX_RELU6)
            if kind == RELU6:
                graph = Graph(graph.input, Node(Circuit(RELU6, 0, 0), [graph.input], (1, 4, 4), "relu6"))
            lower(graph, {graph.input: reached})
            found = [node for node in graph.order() if isinstance(node.op, Circuit) and node.op.below]
            assert len(found) == 2 * clipped


@pytest.mark.parametrize("kernel", [2, 3])
def test_programs_with_maxima_agree_with_the_network(kernel: int) -> None:
    net = Lambda(
        lambda net, x: net.fc(F.max_pool2d(F.relu(net.b(F.max_pool2d(net.a(x), kernel, 2))), 2).flatten(1)),
        a=nn.Conv2d(3, 6, 3, padding=1),
        b=nn.Conv2d(6, 4, 3, padding=1),
        fc=nn.Linear(4 * math.prod([(16 - kernel + 2) // 2 // 2] * 2), 5),
    )
    program = agree(settle(net, images(60, 3, 16, 16)), images(60, 3, 16, 16))
    circuits = [step.circuit for step in program.public.steps if step.circuit is not None]
    assert {circuit.kind for circuit in circuits} == {"relu", "argmax"}
    assert all(circuit.tested for circuit in circuits[:-1])
