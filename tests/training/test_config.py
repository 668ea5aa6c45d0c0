"""Settings: ranges, round trips, and the two schedules."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.errors import UsageError
from deepreduce.training import RunOptions, SearchSettings, TrainingConfig
from deepreduce.training.config import fade_at, learning_rate_at


def test_example_a_round_trip_through_json() -> None:
    config = TrainingConfig(epochs=3, fade=0.4, crop=0, precision="bf16")
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_the_learning_rate_rises_and_falls_along_half_a_cosine() -> None:
    config = TrainingConfig(learning_rate=0.2, warmup=0.25)
    assert learning_rate_at(config, 0.0) == 0
    assert learning_rate_at(config, 0.125) == pytest.approx(0.1)
    assert learning_rate_at(config, 0.25) == pytest.approx(0.2)
    assert learning_rate_at(config, 0.625) == pytest.approx(0.1)  # half way down
    assert learning_rate_at(config, 0.5) == pytest.approx(0.1 * (1 + math.cos(math.pi / 3)))
    assert learning_rate_at(config, 1.0) == pytest.approx(0, abs=1e-12)


@given(st.floats(0, 0.99), st.floats(0, 1), st.floats(0, 1))
def test_the_learning_rate_has_one_peak(warmup: float, a: float, b: float) -> None:
    config = TrainingConfig(learning_rate=0.1, warmup=warmup)
    early, late = sorted((a, b))
    first, second = learning_rate_at(config, early), learning_rate_at(config, late)
    assert 0 <= first <= 0.1 + 1e-12
    if late <= warmup:
        assert first <= second + 1e-12
    if early >= warmup:
        assert second <= first + 1e-12


def test_fading_rises_evenly_and_ends_before_training_does() -> None:
    config = TrainingConfig(fade=0.5)
    assert [fade_at(config, progress) for progress in (0, 0.25, 0.5, 1)] == [0, 0.5, 1, 1]
    assert fade_at(TrainingConfig(fade=0), 0.0) == 1  # removed at once
    with pytest.raises(UsageError, match=r"from 0 to 0\.9"):
        TrainingConfig(fade=0.95)  # the network as it will be would hardly be trained


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("epochs", 2.5), ("epochs", True), ("batch_size", 1), ("learning_rate", 0), ("momentum", 1),
        ("learning_rate", math.nan), ("learning_rate", math.inf), ("warmup", 1), ("weight_decay", -1e-9), ("crop", -1),
        ("distillation", 1.1), ("temperature", 0), ("fade", -0.1), ("precision", "fp8"), ("compile", "yes"),
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}"):
        TrainingConfig(**{name: value})


def test_an_unknown_setting_is_named_with_its_near_misses() -> None:
    with pytest.raises(UsageError, match="learning_rate"):
        TrainingConfig.from_json({"learning_rat": 0.1})


@pytest.mark.parametrize(
    ("name", "value"),
    [("seeds", 0), ("exponent", math.nan), ("budget", 0), ("criticality_epochs", 0), ("method", "deepreduse")],
)
def test_a_search_setting_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}"):
        SearchSettings(**{name: value})


def test_the_remedy_is_what_is_allowed() -> None:
    with pytest.raises(UsageError) as error:
        TrainingConfig(epochs=0)
    assert str(error.value) == (
        "Epochs must be a whole number from 1 to 100,000. Got: 0. Do: give such a value, or leave it out for 100. "
        "Where: --epochs."
    )
    with pytest.raises(UsageError, match=r"'masks' \(did you mean deepreduce-masks\?\)"):
        SearchSettings(method="masks")


@pytest.mark.parametrize(
    ("name", "value"),
    [("executor", "rya"), ("workers", 0), ("workers", 2000), ("threads", 0), ("checkpoint_seconds", -1)],
)
def test_a_run_option_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}"):
        RunOptions(**{name: value})


def test_criticality_may_have_epochs_of_its_own() -> None:
    settings = SearchSettings(training=TrainingConfig(epochs=10), criticality_epochs=3)
    assert settings.criticality_config() == TrainingConfig(epochs=3)
    assert SearchSettings().criticality_config() == TrainingConfig()
    assert settings.to_json()["criticality_epochs"] == 3
