"""The benchmark of products in rings: what it counts, and that it holds the arithmetics against each other."""

from __future__ import annotations

import pytest
import ring
import torch
from torch import nn

from deepreduce.private.program import Program, make_program
from deepreduce.private.ring import available_backends


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    return make_program(network.eval(), torch.rand(16, 3, 6, 6))


def test_every_linear_layer_is_timed_by_every_arithmetic(program: Program) -> None:
    row = ring.measure("tiny", program, 1)
    assert row["macs"] == 3 * 9 * 4 * 36 + 4 * 36 * 5
    assert [layer["weights"] for layer in row["layers"]] == [[4, 3, 3, 3], [5, 144]]
    assert set(row["seconds"]) == set(available_backends())
    for backend, seconds in row["seconds"].items():
        assert 0 < seconds == sum(layer["seconds"][backend] for layer in row["layers"])


@pytest.mark.skipif(len(available_backends()) < 2, reason="there is one arithmetic here")
def test_arithmetics_that_differ_end_it(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ring.ExactMatrix

    def wrong(weight: object, *, backend: str) -> object:
        return own(weight if backend == "torch" else -weight, backend=backend)  # type: ignore[operator,arg-type]

    monkeypatch.setattr(ring, "ExactMatrix", wrong)
    with pytest.raises(SystemExit, match="differ"):
        ring.measure("tiny", program, 1)
