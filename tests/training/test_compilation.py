"""What a GPU compiles: one graph for each network, kept for all steps. Here a backend counts them and runs them as is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from deepreduce.data import Dataset
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import Candidate, MaskOrder, build_candidate, make_base, masked_candidate
from deepreduce.training import TrainingConfig, make_accelerator, train
from deepreduce.training.batches import DeviceSplit, Normalisation
from deepreduce.training.mask_search import MaskSearch

BASE = make_base(NetworkSpec("resnet18", (1, 8, 8), 3, 0.0625))
KEPT = {layer.name: np.random.default_rng(0).random(layer.shape) < 0.3 for layer in BASE.census.layers}
CANDIDATES = {
    "thinned": Candidate(("S2", "S3"), thin=True),
    "masked": masked_candidate(BASE.census, KEPT, method="snl", granularity="element", budget=4000),
    "lines": masked_candidate(
        BASE.census, KEPT, method="deepreduce-masks", granularity="element", budget=4000, lines=True
    ),
    "narrow": Candidate(("S2", "S3"), thin=True, beta=(0.5, 1.0), trim=(1, 0), bypass=True),
    "collapsed": Candidate(("S3",), thin=True, collapse=True),
}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    found: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        found.append(len(graph.graph.nodes))
        return graph.forward

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend=backend))
    counters.clear()
    yield found
    torch.compiler.reset()


@pytest.fixture
def split(data: Dataset) -> DeviceSplit:
    return DeviceSplit.of(data.train, Normalisation(data.mean, data.std), torch.device("cpu"))


@pytest.mark.parametrize("name", CANDIDATES)
def test_student_and_teacher_are_one_graph_each(
    name: str, graphs: list[int], split: DeviceSplit, config: TrainingConfig
) -> None:
    config = replace(config, epochs=3, precision="bf16", compile="on")
    student = build_candidate(BASE, CANDIDATES[name], fading=True)
    teacher = build_candidate(BASE, Candidate(("S1", "S2", "S3", "S4"), thin=True))
    train(student, split, split, config, accelerator=make_accelerator(config), teacher=teacher)
    assert len(graphs) == 2
    assert not counters["graph_break"]


@pytest.mark.parametrize(("method", "expected"), [("deepreduce-masks", 2), ("snl", 2), ("relupruner", 2), ("senet", 0)])
def test_a_search_is_compiled_unless_its_loss_looks_into_the_networks(
    method: str, expected: int, graphs: list[int], split: DeviceSplit, config: TrainingConfig
) -> None:
    found = []
    for compile in ("off", "on"):
        settings = replace(config, epochs=3, compile=compile)
        order = MaskOrder(method, "element", BASE.census.relus // 4)
        search = MaskSearch(order, BASE.census, settings, make_accelerator(settings), 0)
        found.append(search.run(BASE.network, split)[0])
        assert len(graphs) == (expected if compile == "on" else 0)
    assert not counters["graph_break"]
    plain, compiled = found
    assert all(np.array_equal(plain[name], compiled[name]) for name in plain)
