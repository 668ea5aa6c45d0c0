"""A network whose ReLU layers are masked converts by itself, and its program keeps what it keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from deepreduce.census import trace
from deepreduce.networks import NetworkSpec
from deepreduce.private.program import FormatSettings
from deepreduce.private.program.convert import convert
from deepreduce.private.program.fold import fold
from deepreduce.private.program.operations import Circuit, Convolution, Gather
from deepreduce.reduction import build_candidate, choose, make_base, masked_candidate, remove_relus

from .small import Lambda, agree, images, photographs, settle


@pytest.mark.parametrize("kind", ["relu", "relu6"])
def test_example_a_masked_layer_becomes_a_circuit_for_what_it_keeps(kind: str) -> None:
    function = F.relu if kind == "relu" else F.relu6
    mask = np.random.default_rng(0).random((3, 4, 4)) < 0.4
    traced = trace(Lambda(lambda net, x: function(4 * x).flatten(1)))
    masked = remove_relus(traced, [], masks={f"net:{kind}": mask})
    graph = convert(masked, (3, 4, 4))
    (circuit,) = [node for node in graph.order() if isinstance(node.op, Circuit)]
    assert circuit.op.kind == kind and np.array_equal(circuit.op.kept, np.flatnonzero(mask))
    assert circuit.name == f"net:{kind}"
    batch = images(2, 3, 4, 4).double()
    assert torch.equal(graph.run(batch)[graph.output].reshape(2, 3, 4, 4), masked(batch).reshape(2, 3, 4, 4))


def test_further_masks_keep_what_both_keep() -> None:
    first, second = (np.random.default_rng(seed).random((3, 4, 4)) < 0.6 for seed in (0, 1))
    masked = remove_relus(trace(Lambda(lambda net, x: F.relu(x).flatten(1))), [], masks={"net:relu": first})
    graph = convert(masked, (3, 4, 4), masks={"net:relu": second})
    (circuit,) = [node for node in graph.order() if isinstance(node.op, Circuit)]
    assert np.array_equal(circuit.op.kept, np.flatnonzero(first & second))


def test_masks_before_and_after_max_pooling() -> None:
    mask = np.random.default_rng(0).random((4, 8, 8)) < 0.5
    net = Lambda(
        lambda net, x: net.fc(F.max_pool2d(F.relu(net.conv(x)), 2).flatten(1)),
        conv=nn.Conv2d(3, 4, 3, padding=1),
        fc=nn.Linear(64, 5),
    )
    program = agree(remove_relus(trace(net), [], masks={"net:relu": mask}).eval(), images(60, 3, 8, 8))
    assert program.public.relus >= int(mask.sum())


@pytest.mark.parametrize("lines", [False, True])
def test_the_twin_of_a_masked_resnet_agrees_with_the_float_network(lines: bool) -> None:
    spec = NetworkSpec("resnet18", (3, 16, 16), 10, width=0.125)
    base = make_base(spec)
    batch = photographs(64, 16)
    settle(base.network, batch)
    random = np.random.default_rng(0)
    masks = choose({layer.name: random.random(layer.shape) for layer in base.census.layers}, 900)
    candidate = masked_candidate(base.census, masks, method="snl", granularity="element", budget=900, lines=lines)
    program = agree(settle(build_candidate(base, candidate), batch), batch)
    assert program.public.relus == 900


def line_net(mask: np.ndarray, reader: nn.Module, other: nn.Module | None = None) -> nn.Module:
    """Convolution, masked ReLU with lines, and one or two layers that read it."""
    torch.manual_seed(0)
    line = torch.randn(2, 4)

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        x = net.relu(net.conv(x))
        return (net.read(x) if other is None else net.read(x) + net.other(x)).flatten(1)

    net = Lambda(run, conv=nn.Conv2d(3, 4, 3), relu=nn.ReLU(), read=reader, **({"other": other} if other else {}))
    return remove_relus(trace(net), [], masks={"relu": mask}, lines={"relu": line}).eval()


def test_a_convolution_reads_what_lies_on_lines_as_channels_of_its_own() -> None:
    """Also at its padding, whose zeros have no intercept. Whole channels are read once."""
    mask = np.random.default_rng(0).random((4, 6, 6)) < 0.5
    mask[1], mask[2] = True, False
    net = line_net(mask, nn.Conv2d(4, 2, 3, padding=1, stride=2)).double()
    batch = images(8, 3, 8, 8).double()
    graph = convert(net, (3, 8, 8))
    assert torch.allclose(graph.run(batch)[graph.output], net(batch), atol=1e-12)
    fold(graph, batch)
    assert torch.allclose(graph.run(batch)[graph.output], net(batch), atol=1e-12)
    layers = [node.op for node in graph.order() if isinstance(node.op, Convolution)]
    assert [layer.weight_shape for layer in layers] == [(4, 3, 3, 3), (2, 6, 3, 3)]
    (split,) = [node for node in graph.order() if isinstance(node.op, Gather)]
    assert split.shape == (6, 6, 6) and isinstance(split.inputs[0].op, Circuit)


@pytest.mark.parametrize("groups", [1, 2])
def test_lines_that_no_single_convolution_reads_become_a_layer(groups: int) -> None:
    mask = np.random.default_rng(0).random((4, 6, 6)) < 0.5
    net = line_net(mask, nn.Conv2d(4, 2, 3, groups=groups), nn.Conv2d(4, 2, 3) if groups == 1 else None)
    program = agree(net, images(60, 3, 8, 8), FormatSettings(merge=False))
    assert program.public.relus == int(mask.sum())
    layers = [step.op for step in program.public.steps if isinstance(step.op, Convolution)]
    assert (4, 1, 1, 1) in [layer.weight_shape for layer in layers]


def test_further_masks_leave_a_line_where_the_relu_goes() -> None:
    mask = np.random.default_rng(0).random((4, 6, 6)) < 0.5
    further = np.random.default_rng(1).random((4, 6, 6)) < 0.5
    net = line_net(mask, nn.Conv2d(4, 2, 3)).double()
    graph = convert(net, (3, 8, 8), masks={"relu": further})
    expected = line_net(mask & further, nn.Conv2d(4, 2, 3)).double()
    expected.load_state_dict(net.state_dict())
    batch = images(4, 3, 8, 8).double()
    assert torch.allclose(graph.run(batch)[graph.output], expected(batch), atol=1e-12)


@pytest.mark.parametrize("how", ["plain", "flipped", "sliced"])
def test_sums_of_a_networks_own_are_not_taken_for_lines(how: str) -> None:
    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(net.a(x))
        both = {
            "plain": lambda: y + net.norm(y),
            "flipped": lambda: y.flip(1) + net.norm(y).flip(1),
            "sliced": lambda: y[:, :4] + net.norm(y)[:, 4:],
        }[how]()
        return net.b(both).flatten(1)

    inputs = 4 if how == "sliced" else 8
    net = Lambda(run, a=nn.Conv2d(3, 8, 3, padding=1), norm=nn.BatchNorm2d(8), b=nn.Conv2d(inputs, 5, 3))
    batch = images(8, 3, 8, 8)
    settle(net, batch)
    with torch.no_grad():
        net.norm.weight.uniform_(0.2, 2)
        net.norm.bias.normal_()
    net.double().eval()
    graph = convert(net, (3, 8, 8))
    fold(graph, batch.double())
    assert torch.allclose(graph.run(batch.double())[graph.output], net(batch.double()), atol=1e-9)
