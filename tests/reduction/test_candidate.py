"""A candidate is a description: it survives JSON, has one id, and refuses what it cannot mean."""

from __future__ import annotations

import json
import re
from pathlib import PurePath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.errors import UsageError
from deepreduce.reduction import Candidate

names = st.lists(st.integers(1, 9999).map(lambda n: f"S{n}"), unique=True, max_size=4).map(tuple)
scales = st.floats(0, 1, exclude_min=True)


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    keep = draw(names)
    return Candidate(
        keep=keep,
        thin=draw(st.booleans()),
        alpha=draw(scales),
        rho=draw(st.sampled_from([1.0, 0.5, 0.25, 0.125])),
        drop=draw(st.lists(st.text(), unique=True, max_size=3).map(tuple)),
        beta=draw(st.sampled_from([(), tuple(draw(scales) for _ in keep)])),
        collapse=draw(st.booleans()),
        average_pooling=draw(st.booleans()),
        trim=draw(st.sampled_from([(), tuple(draw(st.integers(0, 9)) for _ in keep)])),
    )


def test_an_example() -> None:
    candidate = Candidate(keep=("S2", "S3", "S4"), thin=True, alpha=0.5)
    assert candidate.id == "S2S3S4-thin-a0.5"
    assert candidate.label == "S2 S3 S4, thinned, alpha 0.5"
    assert candidate.to_json() == {"keep": ["S2", "S3", "S4"], "thin": True, "alpha": 0.5, "rho": 1.0, "drop": []}


def test_further_names() -> None:
    assert Candidate(keep=()).id == "none"
    assert Candidate(keep=()).label == "no ReLU"
    assert Candidate(keep=("S1",), alpha=1, rho=0.125).id == "S1-r0.125"
    narrow = Candidate(keep=("S3", "S4"), thin=True, beta=(0.25, 0.5), collapse=True)
    assert (narrow.id, narrow.label) == ("S3S4-thin-b0.25-0.5-c", "S3 S4, thinned, beta 0.25 0.5, collapsed")
    assert narrow.to_json()["beta"] == [0.25, 0.5] and narrow.to_json()["collapse"] is True
    assert Candidate(keep=("S3", "S4"), beta=(0.5, 0.5)).label == "S3 S4, beta 0.5"
    assert Candidate(keep=("S3", "S4"), beta=(1, 1.0)) == Candidate(keep=("S3", "S4"))
    trimmed = Candidate(keep=("S3", "S4"), beta=(0.5, 1), trim=(1, 0), collapse=True)
    assert (trimmed.id, trimmed.label) == ("S3S4-b0.5-1.0-t1-0-c", "S3 S4, beta 0.5 1, trim 1 0, collapsed")
    assert trimmed.to_json()["trim"] == [1, 0] and Candidate(keep=("S3",), trim=(0,)) == Candidate(keep=("S3",))
    assert Candidate(keep=("S3", "S4"), trim=(1, 1)).label == "S3 S4, trim 1"
    averaged = Candidate(keep=("S3",), thin=True, average_pooling=True)
    assert (averaged.id, averaged.label) == ("S3-thin-p", "S3, thinned, average pooling")
    assert averaged.to_json()["average_pooling"] is True
    dropping = Candidate(keep=("S1",), drop=("layer1.0:relu", "relu"))
    assert re.fullmatch(r"S1-d[0-9a-f]{16}", dropping.id)
    assert dropping.label == "S1, without 2 more ReLU layers"
    assert dropping.id == Candidate(keep=("S1",), drop=("relu", "layer1.0:relu")).id


@given(candidates())
def test_json_gives_the_same_candidate_back(candidate: Candidate) -> None:
    again = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
    assert again == candidate
    assert hash(again) == hash(candidate)


@given(candidates(), candidates())
def test_an_id_is_a_folder_and_means_one_candidate(one: Candidate, other: Candidate) -> None:
    assert re.fullmatch(r"[A-Za-z0-9.\-]+", one.id)
    assert PurePath(one.id).name == one.id
    if one.id == other.id:
        assert (
            one.keep,
            one.thin,
            one.alpha,
            one.beta,
            one.trim,
            one.collapse,
            one.average_pooling,
            one.rho,
            set(one.drop),
        ) == (
            other.keep,
            other.thin,
            other.alpha,
            other.beta,
            other.trim,
            other.collapse,
            other.average_pooling,
            other.rho,
            set(other.drop),
        )


def test_close_alphas_have_different_ids() -> None:
    assert Candidate(keep=("S1",), alpha=0.12345678).id != Candidate(keep=("S1",), alpha=0.12345679).id


@pytest.mark.parametrize("name", ["..", "../../etc", "S", "S0", "s1", "S1/S2", "S1\n", "", "S²", "stem", "S99999"])
def test_a_stage_has_a_stages_name(name: str) -> None:
    with pytest.raises(UsageError, match="Stages are called S1"):
        Candidate(keep=(name,))


def test_a_text_is_no_list_of_stages() -> None:
    with pytest.raises(UsageError, match=r"must be a list. Got: 'S2,S3'. Do: give one, such as \['S2', 'S3'\]"):
        Candidate(keep="S2,S3")  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0, -0.5, 1.0001, float("nan"), float("inf"), "0.5", None])
def test_alpha_is_in_range(alpha: Any) -> None:
    with pytest.raises(UsageError, match="Alpha is a number above 0") as error:
        Candidate(keep=("S1",), alpha=alpha)
    assert f"Got: {alpha!r}. " in str(error.value) and str(error.value).endswith("Where: --alpha.")


@pytest.mark.parametrize("rho", [0, 0.3, 2, -1, 0.0625, float("nan"), "0.5"])
def test_rho_is_a_stride(rho: Any) -> None:
    with pytest.raises(UsageError, match=r"Rho is 1, 0\.5, 0\.25 or 0\.125"):
        Candidate(keep=("S1",), rho=rho)


def test_nothing_is_named_twice() -> None:
    for options in ({"keep": ("S1", "S1")}, {"keep": (), "drop": ("relu", "relu")}):
        with pytest.raises(UsageError, match="named once"):
            Candidate(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("keep", "S1"),
        ("keep", [1]),
        ("keep", {"S1": 1}),
        ("keep", None),
        ("thin", 1),
        ("thin", "true"),
        ("alpha", "0.5"),
        ("alpha", float("nan")),
        ("alpha", 10**400),
        ("alpha", True),
        ("rho", [1]),
        ("drop", [None]),
    ],
)
def test_json_of_another_type_is_refused(field: str, value: Any) -> None:
    good = Candidate(keep=("S1",)).to_json()
    with pytest.raises(ValueError, match=field):
        Candidate.from_json({**good, field: value})
    del good[field]
    with pytest.raises(ValueError, match=field):
        Candidate.from_json(good)
