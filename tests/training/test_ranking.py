"""Cheap search: what the short trainings drop, what they may not, and what is left for the full schedule."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.errors import TrainingError, UsageError
from deepreduce.reduction import Candidate
from deepreduce.training import Context, Front, SearchSettings, describe, plan, ranking, search
from deepreduce.training.proposals import Proposal
from deepreduce.training.ranking import ranking_jobs, short_list, tolerance
from tests.training.test_search import front_of, poison


def proposal(name: int, relus: int) -> Proposal:
    counts: Any = SimpleNamespace(relus=relus)  # of a census nothing else is read
    return Proposal(Candidate(keep=(f"S{name}",)), counts)


@pytest.fixture
def ranked(settings: SearchSettings) -> SearchSettings:
    return replace(settings, training=replace(settings.training, epochs=3), rank_epochs=1, criticality_plain=False)


def test_example_short_trainings_choose_who_is_trained_in_full(
    context: Context, ranked: SearchSettings, watch: Any
) -> None:
    front = front_of(context, ranked, progress=watch)
    phases = [phase[0][0].split("/")[0] for phase in watch.begun]
    assert phases == ["teacher", "criticality", "ranking-1", "candidate"]
    entries = {entry["id"]: entry for entry in front.content["candidates"]}
    rows = front.content["ranking"]
    assert {row["id"] for row in rows} == set(entries) and any(row["kept"] for row in rows)
    assert [row["relus"] for row in rows] == sorted(row["relus"] for row in rows)
    for row in rows:
        entry = entries[row["id"]]
        assert (entry["status"] == "done") is row["kept"]
        assert row["kept"] or "ranked" in entry["reason"]
        assert row["seconds"] > 0 and 0 <= row["accuracy"] <= 1
    assert {job["epochs"] for job in entries.values() if job["status"] == "done"} == {3}
    assert front.content["settings"]["rank_epochs"] == front.content["settings"]["criticality_epochs"] == 1


def test_kept_candidates_are_those_of_a_full_search(context: Context, ranked: SearchSettings) -> None:
    cheap = front_of(context, ranked)
    full = replace(ranked, rank_epochs=None, criticality_epochs=1)
    whole = front_of(replace(context, folder=context.folder.with_name("whole")), full)
    everything = {entry["id"]: entry for entry in whole.content["candidates"]}
    kept = [entry for entry in cheap.content["candidates"] if entry["status"] == "done"]
    assert kept and all(entry["validation"] == everything[entry["id"]]["validation"] for entry in kept)


def test_rankings_of_several_lengths_share_a_folder_but_criticality_is_measured_once(
    context: Context, ranked: SearchSettings
) -> None:
    from deepreduce.errors import RunError

    front_of(context, ranked)
    with pytest.raises(RunError, match="--criticality-epochs 1 to keep"):
        search(context, replace(ranked, rank_epochs=2))
    longer = front_of(context, replace(ranked, rank_epochs=2, criticality_epochs=1))
    assert (
        longer.content["ranking"]
        and (context.folder / "ranking-2").is_dir()
        and (context.folder / "ranking-1").is_dir()
    )


def test_a_second_run_trains_nothing(context: Context, ranked: SearchSettings, watch: Any, monkeypatch: Any) -> None:
    first = front_of(context, ranked)
    monkeypatch.setattr("deepreduce.training.jobs.train", None)
    assert front_of(context, ranked, progress=watch).content == first.content
    assert not watch.ended


def test_a_candidate_whose_short_training_fails_is_skipped(
    context: Context, ranked: SearchSettings, monkeypatch: Any
) -> None:
    front_of(replace(context, folder=context.folder.with_name("whole")), ranked)
    place = next((context.folder.with_name("whole") / "ranking-1").iterdir())
    poison(monkeypatch, f"ranking-1/{place.name}/seed0")
    content = front_of(context, ranked).content
    entry = next(e for e in content["candidates"] if e["id"] == place.name)
    assert entry["status"] == "skipped" and "short training failed" in entry["reason"] and "finite" in entry["reason"]
    assert next(row for row in content["ranking"] if row["id"] == place.name)["accuracy"] is None


def test_a_ranking_that_fails_altogether_ends_the_run(
    context: Context, ranked: SearchSettings, monkeypatch: Any
) -> None:
    front_of(replace(context, folder=context.folder.with_name("whole")), ranked)
    places = [f"ranking-1/{p.name}/seed0" for p in (context.folder.with_name("whole") / "ranking-1").iterdir()]
    poison(monkeypatch, *places)
    with pytest.raises(TrainingError, match=r"could be ranked; the first: .*finite.* Where: ranking-1/.*seed0\.$"):
        search(context, ranked)


def test_the_plan_counts_short_trainings_and_says_what_it_does_not_know(
    context: Context, ranked: SearchSettings, monkeypatch: Any
) -> None:
    monkeypatch.setattr("deepreduce.training.estimate._MEASURE_SECONDS", 0.02)
    before = plan(context, ranked)
    kinds = [job["kind"] for job in before["jobs"]]
    assert kinds.count("ranking") == kinds.count("candidate") == 5 and "all are counted" in before["note"]
    few = plan(context, replace(ranked, budget=600, finalists=1))
    todo = [job for job in few["jobs"] if job["kind"] == "candidate" and job["status"] == "to do"]
    assert len(todo) == 1 and "largest are counted" in few["note"]
    content = front_of(context, ranked).content
    after = plan(context, ranked)
    assert after["hours"] == 0 and "are counted" not in after["note"]
    dropped = {row["id"] for row in content["ranking"] if not row["kept"]}
    assert {job["id"] for job in after["jobs"] if job["status"] == "skipped"} == dropped


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank_epochs": 0}, "rank_epochs must be at least 1"),
        ({"rank_epochs": 3}, "below the full schedule"),
        ({"rank_epochs": 1, "method": "snl"}, "proposes candidates to choose from"),
        ({"rank_epochs": 1, "method": "channel-pruning"}, "proposes candidates to choose from"),
        ({"finalists": 0, "budget": 500}, "Finalists must be at least 1"),
        ({"finalists": 2}, "without a budget"),
        ({"finalists": 2, "budget": 500, "rank_epochs": None}, "without a ranking"),
    ],
)
def test_bad_settings_are_refused(ranked: SearchSettings, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        replace(ranked, **change)


def test_one_proposal_is_not_ranked(ranked: SearchSettings) -> None:
    assert ranking_jobs([proposal(1, 10)], ranked) == []
    assert len(ranking_jobs([proposal(1, 10), proposal(2, 5)], ranked)) == 2
    assert ranking_jobs([proposal(1, 10), proposal(2, 5)], replace(ranked, rank_epochs=None)) == []


rows = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 100)), min_size=1, max_size=12)


@given(rows, st.integers(10, 10_000))
def test_what_stays_and_what_goes(rows: list[tuple[int, int]], n: int) -> None:
    proposals = [proposal(place + 1, relus) for place, (relus, _) in enumerate(rows)]
    accuracy = {p.candidate.id: right / 100 for p, (_, right) in zip(proposals, rows, strict=True)}
    left = short_list(proposals, accuracy, n, {})
    assert [p.candidate for p in left] == [p.candidate for p in proposals]
    for p, (relus, right) in zip(left, rows, strict=True):
        better = [(r, a) for r, a in rows if r <= relus and a > right]
        clearly = [a for _, a in better if (a - right) / 100 > tolerance(a / 100, right / 100, n)]
        assert better or not p.reason  # the front itself always stays
        best = max((a for _, a in better), default=None)
        assert bool(p.reason) == (best in clearly)


def test_reasons_name_who_is_better_and_by_how_much() -> None:
    proposals = [proposal(1, 10), replace(proposal(2, 20), reason="above the budget"), proposal(3, 30)]
    left = short_list(proposals, {"S1": 0.9, "S3": 0.5}, 1000, {})
    assert [p.reason for p in left][:2] == ["", "above the budget"]
    assert "40.0 points below S1" in left[2].reason


def test_finalists_are_the_most_accurate_that_the_ranking_leaves(
    context: Context, ranked: SearchSettings, monkeypatch: Any
) -> None:
    proposals = [proposal(1, 10), proposal(2, 20), proposal(3, 30), proposal(4, 40)]
    accuracy = {"S1": 0.4, "S2": 0.6, "S3": 0.7, "S4": 0.3}
    left = short_list(proposals, accuracy, 1000, {}, finalists=2)
    assert [p.reason[:13] for p in left] == ["ranked behind", "", "", "ranked 40.0 p"]
    assert [p.reason for p in short_list(proposals[:2], accuracy, 1000, {}, finalists=2)] == ["", ""]
    equal = short_list(proposals[:2], {"S1": 0.5, "S2": 0.5}, 1000, {}, finalists=1)
    assert [bool(p.reason) for p in equal] == [False, True]
    content = front_of(context, replace(ranked, budget=600, finalists=1)).content
    (kept,) = [row for row in content["ranking"] if row["kept"]]
    assert kept["accuracy"] == max(row["accuracy"] for row in content["ranking"])
    assert [e["id"] for e in content["candidates"] if e["status"] == "done"] == [kept["id"]]


def test_tolerance_is_two_standard_errors_of_a_difference() -> None:
    assert tolerance(0.5, 0.5, 100) == pytest.approx(2 * math.sqrt(0.005))
    assert tolerance(1.0, 0.0, 7) == 0


def test_the_front_keeps_its_ranking_on_disk(context: Context, ranked: SearchSettings) -> None:
    found = search(context, ranked)
    content = Front(describe(found, context, environment={}), context.folder).content
    assert [row["id"] for row in content["ranking"]] == [r.id for r in found.ranking]
    assert isinstance(found.ranking[0], ranking.Ranked)
