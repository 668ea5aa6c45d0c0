"""The search: what it trains, what it chooses by, and what it does when something fails."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deepreduce.errors import Interrupted, RunError, TrainingError, UsageError
from deepreduce.reduction import Criticality, make_base
from deepreduce.training import (
    Context,
    Front,
    Job,
    Outcome,
    RunOptions,
    SearchSettings,
    describe,
    jobs,
    pareto_search,
    search,
    train_teacher,
)
from deepreduce.training.phases import Phases
from deepreduce.training.proposals import Proposal, first_jobs

from .conftest import Small


def weights(folder: Path) -> dict[str, str]:
    found = folder.rglob("weights.safetensors")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def front_of(context: Context, settings: SearchSettings, **more: Any) -> Front:
    return Front(describe(search(context, settings, **more), context, environment={}), context.folder)


def poison(monkeypatch: pytest.MonkeyPatch, *places: str, attempts: int = 99) -> None:
    """Make the weights of some jobs infinite, so that their loss is, in their first attempts."""
    honest = jobs._networks

    def networks(job: Job, *rest: Any) -> Any:
        network, teacher = honest(job, *rest)
        if job.place in places and job.attempt < attempts:
            with torch.no_grad():
                network.fc.weight.fill_(float("inf"))
        return network, teacher

    monkeypatch.setattr(jobs, "_networks", networks)


def test_example_teacher_criticality_candidates_front(context: Context, settings: SearchSettings, watch: Any) -> None:
    front = front_of(context, settings, progress=watch)
    content = front.content
    assert [c["stage"] for c in content["criticality"]] == ["S1", "S2"]
    assert [phase[0][0].split("/")[0] for phase in watch.begun] == ["teacher", "criticality", "candidate"]
    assert {entry["status"] for entry in content["candidates"]} == {"done"}
    assert content["teacher"]["relus"] == 2 * 8 * 8 * 8 + 2 * 8 * 4 * 4
    relus = [entry["relus"] for entry in front.entries]
    accuracies = [entry["validation"]["accuracy"] for entry in front.entries]
    assert relus == sorted(relus) and accuracies == sorted(set(accuracies))
    for entry in [content["teacher"], *content["candidates"]]:
        beaten = any(
            other["relus"] <= entry["relus"] and other["validation"]["accuracy"] >= entry["validation"]["accuracy"]
            and other is not entry for other in [content["teacher"], *content["candidates"]]
        )  # fmt: skip
        assert entry["on_front"] or beaten
        assert (entry["test"] is not None) is (entry["on_front"] or entry["id"] == "teacher")
    assert front.best(relus=10**6) == front.entries[-1]
    network, recipe = front.load(front.entries[0], network=context.network)
    assert recipe.relus == front.entries[0]["relus"] and network(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


class Guarded:
    """A test split that counts who looks."""

    def __init__(self, split: Any) -> None:
        self.split, self.looks = split, 0
        self.labels = split.labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Any:
        self.looks += 1
        return self.split.images


def test_the_test_images_are_read_once_at_the_end_and_choose_nothing(
    context: Context, settings: SearchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = Guarded(context.data.test)
    context = replace(context, data=replace(context.data, test=guarded))  # type: ignore[arg-type]
    chosen: list[int] = []
    honest = pareto_search._front

    def choose(*arguments: Any) -> Any:
        chosen.append(guarded.looks)
        return honest(*arguments)

    monkeypatch.setattr(pareto_search, "_front", choose)
    first = front_of(context, settings)
    assert chosen == [0]  # nobody had looked when the front was made
    networks = {*first.content["front"], "teacher"}
    assert guarded.looks == len(networks)
    reads = json.loads((context.folder / "test.json").read_text())
    again = front_of(context, settings)
    assert guarded.looks == len(networks)  # and nobody looked again
    assert json.loads((context.folder / "test.json").read_text()) == reads
    assert again.content["front"] == first.content["front"]
    # With wrong test labels everything but the test accuracies stays.
    wrong = replace(context.data.test.split, labels=(guarded.labels + 1) % 3)  # type: ignore[attr-defined]
    other = replace(context, data=replace(context.data, test=wrong), folder=context.folder.with_name("other"))
    assert front_of(other, settings).content["front"] == first.content["front"]
    assert weights(other.folder) == weights(context.folder)


def test_training_the_teacher_alone_does_not_look_at_the_test_images(
    context: Context, settings: SearchSettings
) -> None:
    guarded = Guarded(context.data.test)
    train_teacher(replace(context, data=replace(context.data, test=guarded)), settings)  # type: ignore[arg-type]
    assert guarded.looks == 0
    assert (context.folder / "teacher" / "seed0" / "metrics.json").exists()


def test_a_second_run_trains_nothing(context: Context, settings: SearchSettings, watch: Any, monkeypatch: Any) -> None:
    first = front_of(context, settings)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(jobs, "train", never)
    again = front_of(context, settings, progress=watch)
    assert all(finished for phase in watch.begun for _, finished in phase)
    assert again.content == first.content


def test_an_interrupted_run_ends_like_one_that_was_not(
    context: Context, settings: SearchSettings, monkeypatch: Any, watch: Any
) -> None:
    whole = replace(context, folder=context.folder.with_name("whole"))
    expected = front_of(whole, settings)
    honest, calls = jobs.train, iter(range(1000))

    def interrupted(*arguments: Any, should_stop: Any, **more: Any) -> Any:
        stop = next(calls) % 2 == 0  # every other training is cut off in its second epoch
        asked = iter(range(1000))
        return honest(*arguments, should_stop=lambda: stop and next(asked) >= 4, **more)

    monkeypatch.setattr(jobs, "train", interrupted)
    for _ in range(40):
        try:
            found = front_of(context, settings, progress=watch)
            break
        except Interrupted:
            continue
    assert weights(context.folder) == weights(whole.folder)
    assert found.content["front"] == expected.content["front"]
    assert not list(context.folder.rglob("*checkpoint*")) and not watch.notes


def test_ctrl_c_stops_the_running_job_and_says_how_to_go_on(context: Context, settings: SearchSettings) -> None:
    class Impatient:
        def begin(self, jobs: Any) -> None: ...
        def end(self, job: Any, failure: Any) -> None: ...
        def note(self, text: str) -> None: ...
        def step(self, what: str, done: int, total: int) -> None: ...
        def update(self, job: Any, epochs: int) -> None:
            raise KeyboardInterrupt

    long = replace(settings, training=replace(settings.training, epochs=10_000))
    with pytest.raises(Interrupted, match="same command again"):
        search(context, long, progress=Impatient())
    assert not list(context.folder.rglob("metrics.json"))
    assert list(context.folder.rglob("checkpoint.safetensors"))


def test_a_candidate_that_fails_leaves_the_others_alone(
    context: Context, settings: SearchSettings, watch: Any, monkeypatch: Any
) -> None:
    whole = replace(context, folder=context.folder.with_name("whole"))
    front_of(whole, settings)
    name = next(path.parent.name for path in (whole.folder / "candidate").glob("*thin-a0.5/seed0"))
    with monkeypatch.context() as patched:
        poison(patched, f"candidate/{name}/seed0")
        front = front_of(context, settings, progress=watch)
    entries = {entry["id"]: entry for entry in front.content["candidates"]}
    assert entries[name]["status"] == "failed" and "loss must stay finite" in entries[name]["reason"]
    assert entries[name]["validation"] is None and not entries[name]["on_front"]
    assert "finite" in str(watch.ended[f"candidate/{name}/seed0"])
    others = {place: digest for place, digest in weights(whole.folder).items() if name not in place.split("/")}
    assert weights(context.folder) == others
    front_of(context, settings)  # the next command tries it again
    assert weights(context.folder) == weights(whole.folder)


def test_a_teacher_that_diverges_ends_the_run_and_says_what_helps(
    context: Context, settings: SearchSettings, monkeypatch: Any
) -> None:
    poison(monkeypatch, "teacher/seed0", attempts=1)
    with pytest.raises(
        TrainingError, match=r"teacher could not be.*rate 0\.05\. Do: .* such as 0\.013, and another folder"
    ):
        search(context, settings)
    assert not (context.folder / "criticality").exists()


def test_criticality_that_fails_for_want_of_memory_ends_the_run(
    context: Context, settings: SearchSettings, monkeypatch: Any
) -> None:
    honest = jobs._networks

    def networks(job: Job, *rest: Any) -> Any:
        if job.place == "criticality/S2/seed0":
            raise MemoryError("no more")
        return honest(job, *rest)

    monkeypatch.setattr(jobs, "_networks", networks)
    with pytest.raises(TrainingError, match=r"S2 alone, distilled.*no more.*--workers"):
        search(context, settings)
    assert not (context.folder / "candidate").exists()
    assert (context.folder / "criticality/S1/seed0/metrics.json").exists()


def test_what_diverges_is_trained_with_a_smaller_learning_rate_and_says_so(
    context: Context, settings: SearchSettings, watch: Any, monkeypatch: Any
) -> None:
    whole = replace(context, folder=context.folder.with_name("whole"))
    unharmed = front_of(whole, settings).content
    name = next(entry["id"] for entry in unharmed["candidates"] if entry["status"] == "done")
    places = {f"candidate/{name}/seed0": 0.0125, "criticality/S1/seed0": 0.0125}
    with monkeypatch.context() as patched:
        poison(patched, *places, attempts=1)
        content = front_of(context, settings, progress=watch).content
    said = "trained with learning rate 0.0125, for it diverged with 0.05"
    assert {c["stage"]: c["reason"] for c in content["criticality"]} == {"S1": said, "S2": ""}
    reasons = {entry["id"]: entry["reason"] for entry in content["candidates"] if entry["status"] == "done"}
    assert reasons == {**dict.fromkeys(reasons, ""), name: said}
    notes = [note for note in watch.notes if said in note]
    assert len(notes) == 2 and notes[0] == f"S1 alone, distilled: {said}"
    for path in context.folder.rglob("metrics.json"):
        metrics = json.loads(path.read_text())
        place = str(path.parent.relative_to(context.folder))
        assert metrics["learning_rate"] == places.get(place, 0.05) and metrics["config"]["learning_rate"] == 0.05
    history = (context.folder / f"candidate/{name}/seed0/history.jsonl").read_text().splitlines()
    assert len(history) == 2 and json.loads(history[0])["learning_rate"] < 0.0125
    monkeypatch.setattr(jobs, "train", None)
    again = type(watch)()
    assert front_of(context, settings, progress=again).content == content  # nothing is trained, and it is said again
    assert [note for note in again.notes if said in note] == notes


def test_a_stage_whose_network_diverges_counts_as_chance(
    context: Context, settings: SearchSettings, watch: Any, monkeypatch: Any
) -> None:
    poison(monkeypatch, "criticality/S1/seed0")
    found = search(context, settings, progress=watch)
    s1, s2 = found.criticality
    assert s1.accuracy is None and s1.value == 0 and "chance" in s1.reason
    assert s2.accuracy is not None and not s2.reason
    assert watch.notes == [f"S1 alone, distilled: {s1.reason}"]
    assert any(outcome.complete for outcome in found.outcomes)


def test_chance_takes_the_place_of_an_accuracy_that_is_not_known(context: Context, settings: SearchSettings) -> None:
    base = make_base(context.spec, context.network)
    failed, trained = first_jobs(base, replace(settings, criticality_plain=False))[1]
    metrics = {"validation": {"correct": 24, "n": 30}, "seed": 0, "config": settings.training.to_json()}
    results: list[Any] = [(failed, None, "it diverged"), (trained, metrics, None)]
    s1, s2 = pareto_search.criticality_of(results, base, settings, {failed.place})
    assert (s1.accuracy, s1.value, s2.accuracy) == (None, 0, 0.8)
    assert s2.value == pytest.approx(100 * (0.8 - 1 / 3) / s2.relus**settings.exponent)
    with pytest.raises(TrainingError, match="S1 alone, distilled could not be: it diverged"):
        pareto_search.criticality_of(results, base, settings)


def test_a_search_whose_criticality_diverges_altogether_is_an_error(
    context: Context, settings: SearchSettings, monkeypatch: Any
) -> None:
    poison(monkeypatch, "criticality/S1/seed0", "criticality/S2/seed0")
    with pytest.raises(TrainingError, match=r"S1 alone, distilled could not be.*rate 0\.003125\. Do: .*another folder"):
        search(context, settings)


def test_criticality_without_distillation_may_fail(
    context: Context, settings: SearchSettings, monkeypatch: Any
) -> None:
    poison(monkeypatch, "criticality/S1-plain/seed0")
    found = {c["stage"]: c for c in front_of(context, settings).content["criticality"]}
    assert found["S1"]["accuracy_plain"] is None and found["S2"]["accuracy_plain"] is not None


def test_a_search_without_any_candidate_left_is_an_error(
    context: Context, settings: SearchSettings, monkeypatch: Any
) -> None:
    honest = jobs._networks

    def networks(job: Job, *rest: Any) -> Any:
        network, teacher = honest(job, *rest)
        if job.kind == "candidate":
            with torch.no_grad():
                network.fc.weight.fill_(float("nan"))
        return network, teacher

    monkeypatch.setattr(jobs, "_networks", networks)
    with pytest.raises(TrainingError, match=r"Got: none of the .* Do: .* Where: candidate/.*seed0\.$"):
        search(context, settings)
    assert not (context.folder / "test.json").exists()


def test_seeds_give_mean_and_spread(context: Context, settings: SearchSettings) -> None:
    front = front_of(context, replace(settings, seeds=3, criticality_plain=False))
    for entry in [front.content["teacher"], *front.content["candidates"]]:
        name = "teacher" if entry["id"] == "teacher" else f"candidate/{entry['id']}"
        runs = []
        for seed in range(3):
            metrics = json.loads((context.folder / name / f"seed{seed}" / "metrics.json").read_text())
            runs.append(metrics["validation"]["correct"] / metrics["validation"]["n"])
        assert entry["validation"]["runs"] == runs
        assert entry["validation"]["accuracy"] == pytest.approx(np.mean(runs))
        assert entry["validation"]["sd"] == pytest.approx(np.std(runs, ddof=1))
    assert len(set(weights(context.folder / "teacher").values())) == 3
    entry = front.entries[0]
    best = int(np.argmax(entry["validation"]["runs"]))
    assert front.place(entry).name == f"seed{best}"


@pytest.mark.parametrize(
    ("busy", "threads", "told"), [(0.6, 2, True), (0.1, 2, False), (None, 2, False), (0.6, 1, False)]
)
def test_threads_that_would_stall_are_told_once(
    busy: float | None,
    threads: int,
    told: bool,
    context: Context,
    settings: SearchSettings,
    watch: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deepreduce.training.phases.busy_share", lambda: busy)
    run = Phases(replace(context, threads=threads), settings, RunOptions(), watch)
    with run.folder:
        for seed in range(2):
            run.carry_out([Job("teacher", None, seed, False, settings.training)])
    notes = [note for note in watch.notes if "--threads 1" in note]
    assert len(notes) == told and all("use 60% of the processor" in note for note in notes)


def test_a_budget_skips_what_is_above_it(context: Context, settings: SearchSettings) -> None:
    front = front_of(context, replace(settings, budget=100))
    for entry in front.content["candidates"]:
        assert (entry["status"] == "skipped") is (entry["relus"] > 100)
        assert entry["status"] == "done" or "budget of 100" in entry["reason"]
        assert (context.folder / "candidate" / entry["id"]).exists() is (entry["status"] == "done")
    best = front.best(relus=100)
    assert best["relus"] <= 100
    fitting = [e["validation"]["accuracy"] for e in front.content["candidates"] if e["validation"]]
    assert best["validation"]["accuracy"] == max(fitting)


@pytest.mark.parametrize(
    ("budget", "words"), [(1280, "1,280"), (5000, "below the network's own"), (3, "smallest candidate has")]
)
def test_a_budget_out_of_reach_is_refused_before_any_training(
    budget: int, words: str, context: Context, settings: SearchSettings
) -> None:
    with pytest.raises(UsageError, match=words):
        search(context, replace(settings, budget=budget))
    assert not context.folder.exists()


def test_a_method_that_cannot_build_any_candidate_says_why(context: Context, settings: SearchSettings) -> None:
    class Fixed(Small):
        """Channels shuffled by numbers that stand in forward."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.relu1(self.bn1(self.conv1(x))).reshape(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)
            x = self.relu2(self.bn2(self.conv2(x))).reshape(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)
            return self.fc(torch.flatten(self.pool(x), 1))

    fixed = replace(context, network=Fixed())
    with pytest.raises(UsageError, match=r"can be built.*channels of the network must be scalable.*deepreduce-masks"):
        search(fixed, replace(settings, method="deepreduce-narrow", budget=300))
    assert not context.folder.exists()


def test_a_network_of_one_stage_is_thinned_and_reshaped(
    context: Context, settings: SearchSettings, one_stage: nn.Module
) -> None:
    front = front_of(replace(context, network=one_stage), settings)
    assert front.content["criticality"] == []
    assert not (context.folder / "criticality").exists()
    done = [entry["id"] for entry in front.content["candidates"] if entry["status"] == "done"]
    assert "S1-thin" in done and len(done) >= 3


def outcome(name: str, relus: int, accuracy: float) -> Outcome:
    from deepreduce.reduction import Candidate

    class Count:
        def __init__(self) -> None:
            self.relus = relus

    kind = "teacher" if name == "teacher" else "candidate"
    candidate = None if name == "teacher" else Candidate(keep=(name,))
    job = Job(kind, candidate, 0, True, SearchSettings().training)
    proposal = None if candidate is None else Proposal(candidate, Count())  # type: ignore[arg-type]
    return Outcome(job, proposal, ({"validation": {"correct": round(100 * accuracy), "n": 100}},))


@pytest.mark.parametrize(("small", "front"), [(0.8, ("S2", "teacher")), (0.9, ("S2",)), (0.95, ("S2",))])
def test_the_teacher_is_the_end_of_the_front_unless_a_smaller_network_is_as_good(
    small: float, front: tuple[str, ...]
) -> None:
    assert pareto_search._front(outcome("teacher", 100, 0.9), [outcome("S2", 10, small)]) == front


def test_a_trained_network_is_not_trained_again(context: Context, settings: SearchSettings, network: Any) -> None:
    front_of(context, replace(settings, trained=True, seeds=2))
    assert [path.name for path in (context.folder / "teacher").iterdir()] == ["seed0"]
    with torch.no_grad():
        network.fc.bias += 1
    with pytest.raises(RunError, match="other weights"):
        search(context, replace(settings, trained=True))


def test_damage_between_two_commands_is_mended(context: Context, settings: SearchSettings, watch: Any) -> None:
    front_of(context, settings)
    expected = weights(context.folder)
    victim = next((context.folder / "candidate").glob("*-thin/seed0"))
    (victim / "weights.safetensors").write_bytes(b"damaged")
    (context.folder / "teacher/seed0/metrics.json").write_text("{")
    front_of(context, settings, progress=watch)
    assert len(watch.notes) == 2 and all("is damaged and is trained again" in note for note in watch.notes)
    found = {place: digest for place, digest in weights(context.folder).items() if "damaged" not in place}
    assert found == expected


@pytest.mark.slow
def test_workers_give_the_same_networks_as_one_process_with_as_many_threads(
    context: Context, settings: SearchSettings, monkeypatch: Any
) -> None:
    """The network's class is a local one: its graph is sent, which needs no class of the user's."""

    class Local(type(context.network)):  # type: ignore[misc]
        pass

    torch.manual_seed(7)
    context = replace(context, network=Local(), threads=None)
    settings = replace(settings, criticality_plain=False)
    alone = replace(context, folder=context.folder.with_name("alone"))
    first = front_of(alone, settings, options=RunOptions(threads=1))
    second = front_of(context, settings, options=RunOptions(workers=2, threads=1))
    assert weights(alone.folder) == weights(context.folder)
    assert second.content["front"] == first.content["front"]


def test_criticality_ranks_by_the_distilled_accuracy(context: Context, settings: SearchSettings) -> None:
    found = search(context, settings)
    for c in found.criticality:
        assert isinstance(c, Criticality)
        metrics = json.loads((context.folder / f"criticality/{c.stage}/seed0/metrics.json").read_text())
        assert c.accuracy == metrics["validation"]["correct"] / metrics["validation"]["n"]
