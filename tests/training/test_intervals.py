"""Intervals against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from deepreduce.training import summarise, wilson_interval


def test_example_nine_of_ten() -> None:
    low, high = wilson_interval(0.9, 10)
    assert (round(low, 3), round(high, 3)) == (0.596, 0.982)


@given(st.integers(1, 100_000), st.data())
def test_the_interval_is_that_of_scipy(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    expected = binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    np.testing.assert_allclose(wilson_interval(k / n, n), (expected.low, expected.high), atol=1e-7)


def test_several_seeds_have_mean_and_sample_sd_and_the_interval_of_the_images() -> None:
    found = summarise([0.8, 0.9, 0.7], 50)
    assert found["accuracy"] == found["mean"] == pytest.approx(np.mean([0.8, 0.9, 0.7]))
    assert found["sd"] == pytest.approx(np.std([0.8, 0.9, 0.7], ddof=1))
    assert (found["low"], found["high"]) == wilson_interval(found["mean"], 50)
    assert found["runs"] == [0.8, 0.9, 0.7] and found["n"] == 50
    assert summarise([0.8], 50)["sd"] is None
