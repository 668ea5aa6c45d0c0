"""A network whose ReLU layers are masked converts by itself, and its program keeps what it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from deepreduce.census import trace
from deepreduce.networks import NetworkSpec
from deepreduce.private.program import convert
from deepreduce.private.program.operations import Circuit
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


def test_the_twin_of_a_masked_resnet_agrees_with_the_float_network() -> None:
    spec = NetworkSpec("resnet18", (3, 16, 16), 10, width=0.125)
    base = make_base(spec)
    batch = photographs(64, 16)
    settle(base.network, batch)
    random = np.random.default_rng(0)
    masks = choose({layer.name: random.random(layer.shape) for layer in base.census.layers}, 900)
    candidate = masked_candidate(base.census, masks, method="snl", granularity="element", budget=900)
    program = agree(settle(build_candidate(base, candidate), batch), batch)
    assert program.public.relus == 900
