"""The benchmark of homomorphic layers: what it measures of one, and what it adds up for a network."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import homomorphic
import pytest

from deepreduce.private.homomorphic import (
    Layer,
    Parameters,
    _backends,
    choose_parameters,
    generate_keys,
    open_pool,
    plan_layer,
)
from deepreduce.private.homomorphic._backends import available_backends

LAYER = Layer(3, 4, 6, 6, (3, 3), (1, 1), (1, 1))


def test_a_layer_is_measured_with_every_way_to_compute_and_is_exact(tmp_path: Path) -> None:
    parameters = choose_parameters([plan_layer(LAYER)], ring_bits=27, weight_bits=8)
    assert isinstance(parameters, Parameters)
    kernel = _backends.kernel
    with open_pool(1) as pool:
        row = homomorphic.measure(LAYER, generate_keys(parameters), pool, tmp_path, 8)
    assert _backends.kernel is kernel
    assert row["exact"] and row["noise_budget_bits"] > 1
    assert set(row["seconds_per_answer"]) == set(available_backends())
    assert all(set(parts) == {"multiply", "blind", "decrypt"} for parts in row["seconds_per_answer"].values())
    sums = homomorphic.total(Counter({LAYER: 3}), {LAYER: row})
    assert sums["exact"] and sums["products"] == 3 * row["products"]
    for name, parts in row["seconds_per_answer"].items():
        expected = 3 * row["ciphertexts_returned"] * sum(parts.values())
        assert sums["answers_seconds_on_one_core"][name] == pytest.approx(expected)
    assert sums["seconds"] == pytest.approx(3 * sum(row["seconds"][step] for step in homomorphic.STEPS))
    assert "exact: True" in homomorphic.line(row)
