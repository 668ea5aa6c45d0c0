"""Methods that find masks: a search, then a student; resumable, within the budget, its cost counted."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import deepreduce
from deepreduce.census import take_census
from deepreduce.errors import Interrupted, RecipeError, RunError, TrainingError, UsageError
from deepreduce.private.program import make_program
from deepreduce.private.twin import Twin
from deepreduce.reduction import MaskOrder, SlopedReLU, census_of, make_base
from deepreduce.reduction.methods.snl import SNL
from deepreduce.training import (
    Context,
    Front,
    Job,
    RunOptions,
    SearchSettings,
    TrainingConfig,
    describe,
    estimate,
    mask_jobs,
    plan,
    run_job,
    search,
)
from deepreduce.training.config import learning_rate_at
from deepreduce.training.loop import DivergenceError

SEARCHING = ["deepreduce-masks", "snl", "senet", "relupruner"]
TOTAL = 2 * 8 * 8 * 8 + 2 * 8 * 4 * 4


def front_of(context: Context, settings: SearchSettings, **more: Any) -> Front:
    return Front(describe(search(context, settings, **more), context, environment={}), context.folder)


def ordered(settings: SearchSettings, method: str, budget: int, **more: Any) -> SearchSettings:
    return replace(settings, method=method, budget=budget, **more)


@pytest.mark.parametrize(("method", "budget"), [("deepreduce-masks", 300), ("snl", 300), ("deepreduce-narrow", 150)])
def test_example_networks_on_digits_meet_their_budget_and_run_in_the_twin(
    method: str, budget: int, tmp_path: Path
) -> None:
    data = deepreduce.load_data("digits", validation=0.2)
    training = TrainingConfig(epochs=5 if method == "deepreduce-masks" else 3, batch_size=64, flip=False)
    settings = SearchSettings(training=training, method=method, budget=budget)
    options = RunOptions(threads=1)
    front = deepreduce.reduce("resnet18", data, out=tmp_path, settings=settings, width=0.125, options=options)
    (entry,) = front.content["candidates"]
    assert 0.8 * budget < entry["relus"] <= budget
    assert entry["validation"]["accuracy"] > 0.5
    network, recipe = front.load(entry)
    assert take_census(network, (1, 8, 8)).relus == entry["relus"] == recipe.relus
    assert recipe.candidate is not None and (recipe.candidate.masks is None) is (method == "deepreduce-narrow")
    pixels = (data.train.images[:64].double() / 255 - data.mean[0]) / data.std[0]
    program = make_program(network, pixels)
    with torch.no_grad():
        expected = network(pixels.float()).argmax(1).numpy()
    assert program.public.relus == entry["relus"]
    assert (Twin(program).run(pixels.numpy()).labels == expected).mean() >= 0.95


@pytest.mark.parametrize("method", SEARCHING)
@pytest.mark.parametrize("granularity", ["element", "channel", "layer"])
def test_every_method_at_every_granularity(
    method: str, granularity: str, context: Context, settings: SearchSettings, watch: Any
) -> None:
    front = front_of(context, ordered(settings, method, 700, granularity=granularity), progress=watch)
    assert [phase[0][0].split("/")[0] for phase in watch.begun] == ["teacher", "masks", "candidate"]
    (entry,) = front.content["candidates"]
    assert entry["status"] == "done" and entry["label"] == f"{method} by {granularity}, budget 700"
    # A layer whose ReLUs do harm is not kept for the sake of the budget.
    least = {("relupruner", "layer"): 128}
    assert least.get((method, granularity), 630) <= entry["relus"] <= 700
    network, _ = front.load(entry, network=context.network)
    assert take_census(network, (1, 8, 8)).relus == entry["relus"]
    assert front.content["criticality"] == [] and front.content["settings"]["method"] == method
    assert "bits" not in json.dumps(entry["recipe"]) and entry["recipe"]["masks"]["budget"] == 700
    metrics = json.loads((context.folder / f"masks/{method}-{granularity}-700/seed0/metrics.json").read_text())
    assert entry["search_epochs"] == metrics["epochs"]
    assert metrics["epochs"] >= 1
    shared = method == "deepreduce-masks"
    assert entry["epochs"] == settings.training.epochs + (0 if shared else metrics["epochs"])
    assert entry["seconds"] > metrics["seconds"] > 0


def test_several_budgets_make_a_front(context: Context, settings: SearchSettings) -> None:
    front = front_of(context, ordered(settings, "snl", 640, budgets=(640, 160, 40), seeds=2))
    assert sorted(entry["relus"] for entry in front.content["candidates"]) == [40, 160, 640]
    assert all(len(entry["validation"]["runs"]) == 2 for entry in front.content["candidates"])
    assert len(list((context.folder / "masks").iterdir())) == 3  # one search for both seeds
    default = replace(settings, method="snl").mask_orders(search_base(context))
    assert [order.budget for order in default] == [TOTAL // 4, TOTAL // 8, TOTAL // 16, TOTAL // 32]


def search_base(context: Context) -> Any:
    from deepreduce.reduction import make_base

    return make_base(context.spec, context.network)


def test_ours_trains_a_narrow_network_for_each_budget_from_the_teacher(
    context: Context, settings: SearchSettings, watch: Any
) -> None:
    asked = ordered(settings, "deepreduce-narrow", 300, budgets=(300, 100))
    front = front_of(context, asked, progress=watch)
    assert [phase[0][0].split("/")[0] for phase in watch.begun] == ["teacher", "candidate"]
    entries = front.content["candidates"]
    assert [(entry["relus"], entry["recipe"]["thin"]) for entry in entries] == [(96, True), (256, True)]
    for entry in entries:
        network, recipe = front.load(entry, network=context.network)
        assert take_census(network, (1, 8, 8)).relus == entry["relus"] == recipe.relus
        assert recipe.candidate is not None and recipe.candidate.beta and "beta" in entry["label"]
    assert front_of(context, asked).content == front.content
    default = front_of(
        replace(context, folder=context.folder.with_name("default")), replace(asked, budget=None, budgets=())
    )
    assert [entry["relus"] for entry in default.content["candidates"]] == [80, 160, 320]


def test_every_candidate_can_be_collapsed(context: Context, settings: SearchSettings) -> None:
    for method in ("deepreduce-narrow", "deepreduce"):
        own = replace(context, folder=context.folder.with_name(method))
        front = front_of(own, ordered(settings, method, 300, collapse=True, criticality_plain=False))
        done = [entry for entry in front.content["candidates"] if entry["status"] == "done"]
        assert done and all(entry["recipe"]["collapse"] for entry in done) and front.content["settings"]["collapse"]
        for entry in done:
            network, _ = front.load(entry, network=context.network)
            assert take_census(network, (1, 8, 8)).relus == entry["relus"]
    with pytest.raises(UsageError, match="removes whole stages"):
        ordered(settings, "snl", 300, collapse=True)


def test_example_masks_in_a_limited_number_of_layers(context: Context, settings: SearchSettings) -> None:
    base = make_base(context.spec, context.network)

    def found(most: int | None) -> tuple[dict[str, Any], int]:
        """Return the one candidate, and how many of its layers keep a ReLU."""
        asked = ordered(settings, "deepreduce-masks", 200, most_layers=most)
        (entry,) = front_of(context, asked).content["candidates"]
        order = MaskOrder("deepreduce-masks", "element", 200, most)
        candidate = mask_jobs.read_masks(context.folder / "masks" / order.id / "seed0", order)
        assert candidate.label == entry["label"]
        return entry, sum(layer.relus > 0 for layer in census_of(base, candidate).layers)

    (limited, few), (free, many) = found(1), found(None)
    assert few == 1 < many
    assert limited["label"] == f"{free['label']}, at most 1 layer" and limited["id"] != free["id"]
    folder = context.folder / "masks/deepreduce-masks-element-200-l1/seed0"
    with pytest.raises(RunError, match="the masks of another job"):
        mask_jobs.read_masks(folder, MaskOrder("deepreduce-masks", "element", 200))


@pytest.mark.parametrize("method", ["snl", "senet", "deepreduce", "deepreduce-narrow"])
def test_a_number_of_layers_is_refused_where_nothing_keeps_to_it(method: str, settings: SearchSettings) -> None:
    with pytest.raises(UsageError, match=r"can keep to it.*Where: --most-layers"):
        ordered(settings, method, 300, most_layers=3)
    with pytest.raises(UsageError, match="most_layers must be at least 1"):
        ordered(settings, "deepreduce-masks", 300, most_layers=0)
    with pytest.raises(UsageError, match="masks of single elements"):
        ordered(settings, "deepreduce-masks", 300, most_layers=1, granularity="channel")


def test_a_limit_that_limits_nothing_is_refused_and_one_that_leaves_no_room_is_told(
    context: Context, settings: SearchSettings, watch: Any
) -> None:
    layers = make_base(context.spec, context.network).census.layers
    with pytest.raises(UsageError, match="fewer than there are"):
        front_of(context, ordered(settings, "deepreduce-masks", 200, most_layers=len(layers)))
    most = max(layer.relus for layer in layers)
    asked = ordered(settings, "deepreduce-masks", most + 1, most_layers=1)
    (entry,) = front_of(context, asked, progress=watch).content["candidates"]
    assert entry["relus"] <= most
    assert any(f"there was room for {entry['relus']:,} ReLUs" in note for note in watch.notes)


def test_epochs_of_search_are_refused_where_nothing_trains(settings: SearchSettings) -> None:
    with pytest.raises(UsageError, match="a method that searches for masks"):
        ordered(settings, "deepreduce-narrow", 300, search_epochs=3)
    with pytest.raises(UsageError, match="A granularity belongs"):
        ordered(settings, "deepreduce-narrow", 300, granularity="layer")


@pytest.mark.parametrize(("method", "layers"), [*((method, None) for method in SEARCHING), ("deepreduce-masks", 1)])
def test_an_interrupted_search_ends_like_one_that_was_not(
    method: str, layers: int | None, context: Context, settings: SearchSettings
) -> None:
    order = MaskOrder(method, "element", 200, layers)
    job = Job("masks", None, 0, True, replace(settings.training, epochs=4), masks=order)
    teacher = Job("teacher", None, 0, False, settings.training)
    folders = []
    for name in ("whole", "cut"):
        own = replace(context, folder=context.folder.with_name(name))
        run_job(teacher, own)
        folders.append(own.folder / job.place)
        if name == "whole":
            run_job(job, own)
            continue
        for _ in range(20):
            asked = iter(range(1000))
            try:
                run_job(job, own, lambda asked=asked: next(asked) >= 6)  # type: ignore[misc]
                break
            except Interrupted:
                assert (own.folder / job.place / "checkpoint.safetensors").exists()
    whole, cut = folders
    assert (whole / "masks.json").read_text() == (cut / "masks.json").read_text()
    assert (whole / "weights.safetensors").read_bytes() == (cut / "weights.safetensors").read_bytes()
    assert not (cut / "checkpoint.safetensors").exists()
    history = [json.loads(line) for line in (cut / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history] == list(range(1, len(history) + 1))


def test_a_search_that_goes_on_keeps_the_masks_that_it_has(
    context: Context, settings: SearchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen anew from slopes of 0 and 1 they could be others: here they would be none of the first layer."""
    from deepreduce.reduction.methods.deepreduce_masks import DeepReDuceMasks

    monkeypatch.setattr(DeepReDuceMasks, "is_finished", lambda finder: finder.step >= 3)
    job = Job(
        "masks",
        None,
        0,
        True,
        replace(settings.training, epochs=4),
        masks=MaskOrder("deepreduce-masks", "element", 200),
    )
    own = replace(context, checkpoint_seconds=0.0)
    run_job(Job("teacher", None, 0, False, settings.training), own)
    asked = iter(range(1000))
    with pytest.raises(Interrupted):
        run_job(job, own, lambda: next(asked) >= 10)
    history = [json.loads(line) for line in (own.folder / job.place / "history.jsonl").read_text().splitlines()]
    assert history and history[-1]["relus"] == 200
    choose = DeepReDuceMasks.masks

    def other(finder: Any) -> Any:
        return {name: mask & (name != next(iter(finder.slopes))) for name, mask in choose(finder).items()}

    monkeypatch.setattr(DeepReDuceMasks, "masks", other)
    run_job(job, own)
    candidate = json.loads((own.folder / job.place / "masks.json").read_text())["candidate"]
    assert sum(layer["kept"] for layer in candidate["masks"]["layers"]) == 200


def test_every_search_takes_the_epochs_that_it_was_given(
    context: Context, settings: SearchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods are compared at equal cost: one that has its masks early trains on with them."""
    monkeypatch.setattr(SNL, "is_finished", lambda finder: finder.step >= 3)
    steps: dict[str, set[int]] = {}
    for name in ("snl", "senet"):
        front_of(context, replace(ordered(settings, name, 200), search_epochs=3))
        path = context.folder / f"masks/{name}-element-200/seed0/history.jsonl"
        history = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["epoch"] for line in history] == [1, 2, 3]
        steps[name] = {line["steps"] for line in history}
        if name == "snl":
            assert history[0]["state"]["step"] == history[2]["state"]["step"] == 3
            assert history[0]["relus"] == history[2]["relus"] == 200
            assert history[2]["loss"] != history[1]["loss"]
    assert steps["snl"] == steps["senet"] and len(steps["snl"]) == 1


def test_search_and_training_share_a_schedule(
    context: Context, settings: SearchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learning rate goes on where the search leaves it, and the search trains on with the masks that it found."""
    from deepreduce.reduction.methods.deepreduce_masks import DeepReDuceMasks
    from deepreduce.training import loop, mask_search

    rates: dict[str, list[float]] = {"search": [], "training": []}

    def spy(name: str) -> Any:
        def rate(config: TrainingConfig, progress: float) -> float:
            rates[name].append(learning_rate_at(config, progress))
            return rates[name][-1]

        return rate

    monkeypatch.setattr(DeepReDuceMasks, "is_finished", lambda finder: finder.step >= 7)
    monkeypatch.setattr(mask_search, "learning_rate_at", spy("search"))
    training = replace(settings.training, epochs=10)
    asked = ordered(replace(settings, training=training), "deepreduce-masks", 200, trained=True)
    monkeypatch.setattr(loop, "learning_rate_at", spy("training"))
    front_of(context, asked)
    folder = context.folder / "masks/deepreduce-masks-element-200/seed0"
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    steps = {line["steps"] for line in history}
    assert len(history) == 4 and len(steps) == 1 and history[-1]["relus"] == 200
    assert history[0]["relus"] > 200 and history[-1]["state"]["step"] == 7
    whole = [learning_rate_at(training, (step + 0.5) / (10 * min(steps))) for step in range(10 * min(steps))]
    assert rates["search"] + rates["training"] == pytest.approx(whole)


def test_lines_go_on_where_the_search_leaves_them(
    context: Context, settings: SearchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidate begins as the very network that the search ended with."""
    from deepreduce.reduction.recipe import read_tensors
    from deepreduce.reduction.surgery.lines import LINE_PREFIX
    from deepreduce.training import jobs

    searched: list[Any] = []
    begun: list[Any] = []
    honest_run, honest_train = mask_jobs.MaskSearch.run, jobs.train

    def run(*args: Any, **more: Any) -> Any:
        masks, network = honest_run(*args, **more)
        masks["relu1"] = np.zeros_like(masks["relu1"])  # its batch norm takes over the line
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, SlopedReLU) and module.line is not None:
                    module.line.add_(0.1)  # as training leaves it, elsewhere than where it began
                    module.set_mask(masks[module.site])
        searched.append((masks, copy.deepcopy(network)))
        return masks, network

    def train(network: Any, *args: Any, **more: Any) -> Any:
        begun.append(copy.deepcopy(network).eval())
        return honest_train(network, *args, **more)

    monkeypatch.setattr(mask_jobs.MaskSearch, "run", run)
    monkeypatch.setattr(jobs, "train", train)
    front = front_of(context, ordered(settings, "deepreduce-masks", 40))
    (entry,) = front.content["candidates"]
    assert entry["recipe"]["masks"]["lines"] is True
    ((masks, network),) = searched
    images = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(begun[-1](images), network(images), atol=1e-4)
    left = read_tensors(context.folder / "masks/deepreduce-masks-element-40/seed0/weights.safetensors")
    lines = {name.removeprefix(LINE_PREFIX) for name in left if name.startswith(LINE_PREFIX)}
    assert lines == {"relu2"} and 0 < masks["relu2"].mean() < 1
    spoilt = {name: value for name, value in left.items() if name != LINE_PREFIX + min(lines)}
    save_file(spoilt, context.folder / "weights.safetensors")
    with pytest.raises(RecipeError, match=f"{min(lines)}' is missing"):
        jobs._take_lines(begun[-1], context.folder)


def test_a_finished_search_is_not_repeated(
    context: Context, settings: SearchSettings, monkeypatch: pytest.MonkeyPatch, watch: Any
) -> None:
    settings = ordered(settings, "snl", 300)
    with monkeypatch.context() as patched:
        patched.setattr("deepreduce.training.jobs.train", _interrupt_candidates(context))
        with pytest.raises(Interrupted):
            search(context, settings)
    masks = context.folder / "masks/snl-element-300/seed0/masks.json"
    before = masks.stat().st_mtime_ns
    assert not list((context.folder / "candidate").rglob("metrics.json"))

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(mask_jobs.MaskSearch, "run", never)
    first = front_of(context, settings, progress=watch)
    assert [all(finished for _, finished in phase) for phase in watch.begun] == [True, True, False]
    assert masks.stat().st_mtime_ns == before
    assert front_of(context, settings).content == first.content


def _interrupt_candidates(context: Context) -> Any:
    from deepreduce.training import jobs

    honest = jobs.train

    def train(*arguments: Any, **more: Any) -> Any:
        if more["teacher"] is not None:
            raise Interrupted("stopped on request")
        return honest(*arguments, **more)

    return train


def test_damaged_masks_are_searched_again(context: Context, settings: SearchSettings, watch: Any) -> None:
    settings = ordered(settings, "relupruner", 300)
    first = front_of(context, settings)
    folder = context.folder / "masks/relupruner-element-300/seed0"
    (folder / "masks.json").write_text("{}")
    assert front_of(context, settings, progress=watch).content["front"] == first.content["front"]
    assert len(watch.notes) == 1 and "is damaged and is trained again" in watch.notes[0]
    value = json.loads((folder / "masks.json").read_text())
    value["candidate"]["masks"]["budget"] = 301
    (folder / "masks.json").write_text(json.dumps(value))
    with pytest.raises(RunError, match="masks.json must be complete"):
        mask_jobs.read_masks(folder, MaskOrder("relupruner", "element", 300))
    (folder / "masks.json").write_text(json.dumps({**value, "version": mask_jobs.VERSION - 1}))
    with pytest.raises(RunError, match="remove its folder and run the same command again"):
        mask_jobs.read_masks(folder, MaskOrder("relupruner", "element", 300))


def test_students_begin_where_the_search_ended_unless_told_otherwise(
    context: Context, settings: SearchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepreduce.reduction.recipe import read_tensors
    from deepreduce.training import jobs

    begun: dict[str, Any] = {}
    honest = jobs.train

    def train(network: Any, *arguments: Any, **more: Any) -> Any:
        if more["teacher"] is not None:
            begun.update({name: value.clone() for name, value in network.state_dict().items()})
        return honest(network, *arguments, **more)

    monkeypatch.setattr(jobs, "train", train)
    search(context, ordered(settings, "senet", 300))
    left = read_tensors(context.folder / "masks/senet-element-300/seed0/weights.safetensors")
    assert left.keys() == begun.keys() and all(torch.equal(left[name], begun[name]) for name in left)
    cold = replace(settings, training=replace(settings.training, warm_start=False))
    search(replace(context, folder=context.folder.with_name("cold")), ordered(cold, "senet", 300))
    assert not torch.equal(left["conv1.weight"], begun["conv1.weight"])


def test_a_failed_search_is_named(context: Context, settings: SearchSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = mask_jobs.MaskSearch.run

    def run(self: Any, *arguments: Any, **more: Any) -> Any:
        if self.order.budget == 300:
            raise TrainingError("the training loss must stay finite")
        return honest(self, *arguments, **more)

    monkeypatch.setattr(mask_jobs.MaskSearch, "run", run)
    front = front_of(context, ordered(settings, "snl", 300, budgets=(300, 100)))
    entries = {entry["label"]: entry for entry in front.content["candidates"]}
    assert entries["snl by element, budget 100"]["status"] == "done"
    failed = entries["snl by element, budget 300"]
    assert failed["status"] == "skipped" and "finite" in failed["reason"]
    other = replace(context, folder=context.folder.with_name("other"))
    with pytest.raises(TrainingError, match=r"Got: none of the 1 searches.* Do: .* Where: masks/.*seed0\.$"):
        search(other, ordered(settings, "snl", 300))


def test_a_search_that_diverges_begins_anew_with_a_smaller_learning_rate(
    context: Context, settings: SearchSettings, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = mask_jobs.MaskSearch.run

    def run(self: Any, *arguments: Any, **more: Any) -> Any:
        if self.config.learning_rate == settings.training.learning_rate:
            raise DivergenceError("the training loss must stay finite")
        return honest(self, *arguments, **more)

    monkeypatch.setattr(mask_jobs.MaskSearch, "run", run)
    search(context, ordered(settings, "snl", 300), progress=watch)
    metrics = json.loads((context.folder / "masks/snl-element-300/seed0/metrics.json").read_text())
    assert metrics["learning_rate"] == settings.training.learning_rate / 4
    assert any("masks: snl" in note and "0.0125" in note for note in watch.notes)


def test_the_plan_knows_searches_and_their_students(
    context: Context, settings: SearchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_MEASURE_SECONDS", 0.02)
    settings = ordered(settings, "snl", 300, search_epochs=3, seeds=2)
    found = plan(context, settings, RunOptions(threads=1))
    assert [(job["kind"], job["relus"], job["epochs"], job["seeds"]) for job in found["jobs"]] == [
        ("teacher", TOTAL, 2, 2), ("masks", TOTAL, 3, 1), ("candidate", 300, 2, 2),
    ]  # fmt: skip
    assert all(job["hours"] > 0 for job in found["jobs"]) and "not known yet" in found["note"]
    assert not context.folder.exists()
    search(context, settings)
    found = plan(context, settings, RunOptions(threads=1))
    assert {job["status"] for job in found["jobs"]} == {"finished"} and "not known yet" not in found["note"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": TOTAL}, "below the network"),
        ({"budget": 100, "granularity": "layer"}, "smallest candidate has 128"),
        ({"budget": 100, "budgets": (100, 100)}, "Several budgets"),
        ({"budget": 100, "budgets": (200,)}, "Several budgets"),
        ({"method": "deepreduce", "budget": 200, "budgets": (200, 100)}, "Several budgets"),
        ({"method": "deepreduce", "budget": 200, "granularity": "channel"}, "A granularity belongs"),
        ({"granularity": "pixel"}, "The granularity must be known"),
        ({"search_epochs": 0}, "search_epochs"),
        ({"method": "deepreduce-masks", "search_epochs": 2}, "below the 2 epochs of the whole schedule"),
        ({"method": "deepreduce-masks", "training": TrainingConfig(epochs=1)}, "below the 1 epochs"),
        ({"method": "deepreduce-masks", "training": TrainingConfig(warm_start=False)}, "share goes on"),
    ],
)
def test_settings_that_cannot_be_met(
    change: dict[str, Any], words: str, context: Context, settings: SearchSettings
) -> None:
    with pytest.raises(UsageError, match=words):
        search(context, replace(settings, **{"method": "snl", **change}))
    assert not context.folder.exists()


def test_channel_pruning_is_a_method_like_any_other(context: Context, settings: SearchSettings) -> None:
    front = front_of(context, ordered(settings, "channel-pruning", 640, budgets=(640, 320)))
    entries = front.content["candidates"]
    assert [(entry["relus"], entry["recipe"]["alpha"]) for entry in entries] == [(320, 0.25), (640, 0.5)]
    assert all(entry["macs"] < front.content["teacher"]["macs"] and entry["status"] == "done" for entry in entries)
    assert not (context.folder / "criticality").exists() and not (context.folder / "masks").exists()


def test_masks_depend_on_what_the_network_learnt(context: Context, settings: SearchSettings) -> None:
    """A search that ignored its network would find the same masks everywhere."""
    front_of(context, ordered(settings, "relupruner", 300))
    path = "masks/relupruner-element-300/seed0/masks.json"
    first = mask_jobs.read_masks((context.folder / path).parent, MaskOrder("relupruner", "element", 300))
    other = replace(context, folder=context.folder.with_name("other"))
    front_of(other, replace(ordered(settings, "relupruner", 300), training=replace(settings.training, epochs=3)))
    second = mask_jobs.read_masks((other.folder / path).parent, MaskOrder("relupruner", "element", 300))
    assert first.masks is not None and second.masks is not None and first.id != second.id
    shared = sum(
        int(np.logical_and(one.array(), two.array()).sum())
        for one in first.masks.layers
        for two in second.masks.layers
        if one.name == two.name
    )
    assert shared > 300 * 300 / TOTAL  # yet more alike than chance
