"""The run folder: what counts as finished, whose it is, and what happens to damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deepreduce.data import Dataset
from deepreduce.errors import RunError
from deepreduce.reduction import Candidate, make_base
from deepreduce.training import Context, Job, TrainingConfig, run_job
from deepreduce.training.jobs import settings_that_count
from deepreduce.training.run_folder import RunFolder, weights_hash


@pytest.fixture
def job(context: Context, config: TrainingConfig) -> Job:
    made = Job("teacher", None, 0, False, config)
    run_job(made, context)
    return made


def change(name: str, **values: Any) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return act


def flip(name: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return act


def test_example_a_finished_job_is_found(context: Context, job: Job) -> None:
    with RunFolder(context.folder) as folder:
        metrics = folder.metrics(job)
        assert metrics is not None and metrics["id"] == "teacher"
        assert folder.finished_epochs(job) == 2
        assert folder.metrics(replace(job, seed=1)) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "metrics.json").write_text("{"),
        lambda folder: (folder / "metrics.json").write_text("[]"),
        lambda folder: (folder / "metrics.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "metrics.json").write_text("[" * 100_000),
        lambda folder: (folder / "weights.safetensors").unlink(),
        lambda folder: (folder / "weights.safetensors").write_bytes(b""),
        lambda folder: (folder / "recipe.json").unlink(),
        lambda folder: (folder / "recipe.json").write_text("{}"),
        flip("weights.safetensors"), flip("recipe.json"), change("metrics.json", version=2),
        change("metrics.json", validation=5), change("metrics.json", validation={"correct": 9, "n": 3}),
        change("metrics.json", validation={"correct": "9", "n": 30}), change("metrics.json", seed=1),
        change("metrics.json", kind="candidate"), change("metrics.json", seconds=-1.0), change("metrics.json", config=3),
        change("metrics.json", config={"epochs": 0}), change("recipe.json", relus=1),
        change("metrics.json", learning_rate="0.1"), change("metrics.json", learning_rate=0),
    ],
)  # fmt: skip
def test_damage_is_named_kept_and_counts_as_not_done(context: Context, job: Job, damage: Callable[[Path], Any]) -> None:
    damage(context.folder / job.place)
    unlocked = RunFolder(context.folder)
    assert unlocked.metrics(job) is None and (context.folder / job.place).exists()  # looking moves nothing
    notes: list[str] = []
    with RunFolder(context.folder, on_note=notes.append) as folder:
        assert folder.metrics(job) is None
    assert len(notes) == 1 and "teacher/seed0 is damaged" in notes[0] and "seed0.damaged-1" in notes[0]
    assert (context.folder / "teacher" / "seed0.damaged-1").exists() and not (context.folder / job.place).exists()


def test_a_second_damage_does_not_overwrite_the_first(context: Context, job: Job) -> None:
    for _ in range(2):
        (context.folder / job.place / "metrics.json").write_text("{")
        with RunFolder(context.folder) as folder:
            assert folder.metrics(job) is None
        run_job(job, context)
    assert len(list((context.folder / "teacher").iterdir())) == 3


def test_a_damaged_history_costs_only_the_history(context: Context, job: Job) -> None:
    (context.folder / job.place / "history.jsonl").write_bytes(b"\xff{}\n[1]\n")
    with RunFolder(context.folder) as folder:
        assert folder.metrics(job) is not None and folder.finished_epochs(job) == 0


def test_other_settings_are_refused_except_of_the_teacher(context: Context, job: Job) -> None:
    notes: list[str] = []
    other = replace(job, config=replace(job.config, epochs=9))
    with RunFolder(context.folder, on_note=notes.append) as folder:
        assert folder.metrics(other) is not None and folder.metrics(other) is not None
        assert len(notes) == 1 and "epochs 2 there, 9 here" in notes[0]
    place = context.folder / "candidate" / "S2" / "seed0"
    place.parent.mkdir(parents=True)
    (context.folder / job.place).rename(place)
    metrics = json.loads((place / "metrics.json").read_text())
    (place / "metrics.json").write_text(json.dumps({**metrics, "kind": "candidate", "id": "S2"}))
    candidate = Job("candidate", Candidate(keep=("S2",)), 0, True, other.config)
    with RunFolder(context.folder) as folder, pytest.raises(RunError, match="epochs 2 there, 9 here"):
        folder.metrics(candidate)


def test_compiled_or_not_networks_are_trained_alike(context: Context, job: Job) -> None:
    """Compilation that fails, or takes too long, can be left out in the middle of a run."""
    place = context.folder / "candidate" / "S2" / "seed0"
    place.parent.mkdir(parents=True)
    (context.folder / job.place).rename(place)
    metrics = json.loads((place / "metrics.json").read_text())
    (place / "metrics.json").write_text(json.dumps({**metrics, "kind": "candidate", "id": "S2"}))
    candidate = Job("candidate", Candidate(keep=("S2",)), 0, True, replace(job.config, compile="off"))
    with RunFolder(context.folder) as folder:
        assert folder.metrics(candidate) is not None
    assert settings_that_count(candidate) == settings_that_count(replace(candidate, config=job.config))


def test_one_command_at_a_time(context: Context) -> None:
    with RunFolder(context.folder), pytest.raises(RunError, match="locked by another"), RunFolder(context.folder):
        pass
    with RunFolder(context.folder):
        pass


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"can be written\. Got: .*file is no folder\. Do"), RunFolder(tmp_path / "file"):
        pass


def claim(context: Context, **more: Any) -> None:
    with RunFolder(context.folder) as folder:
        folder.claim(context, make_base(context.spec, context.network).census, **more)


def test_a_folder_belongs_to_one_network_and_one_data_set(
    context: Context, one_stage: Any, data: Dataset, network: Any
) -> None:
    weights = weights_hash(make_base(context.spec, network))
    claim(context, weights=weights)
    claim(context, weights=weights)
    others = {
        "another network": replace(context, spec=replace(context.spec, name="Other")),
        "other layers": replace(context, network=one_stage),
        "another data set": replace(context, data=replace(data, fingerprint="0")),
        "another normalisation": replace(context, data=replace(data, mean=(0.5,))),
    }
    for words, other in others.items():
        with pytest.raises(RunError, match=words):
            claim(other, weights=weights)
    with torch.no_grad():
        network.fc.bias[0] += 1
    with pytest.raises(RunError, match="other weights"):
        claim(context, weights=weights_hash(make_base(context.spec, network)))
    with pytest.raises(RunError, match="other weights"):
        claim(context)  # trained here, where they were brought before


def test_a_comment_in_the_users_source_does_not_make_another_network(context: Context) -> None:
    census = make_base(context.spec, context.network).census
    moved = replace(
        census,
        stages=tuple(
            replace(stage, layers=tuple(replace(layer, source="elsewhere.py:99") for layer in stage.layers))
            for stage in census.stages
        ),
    )
    with RunFolder(context.folder) as folder:
        folder.claim(context, census)
        folder.claim(context, moved)


@pytest.mark.parametrize("content", [None, "{", '{"format": "deepreduce.run", "version": 9}'])
def test_results_of_nobody_are_not_taken_over(context: Context, job: Job, content: str | None) -> None:
    if content is not None:
        (context.folder / "run.json").write_text(content)
    with pytest.raises(RunError, match="run.json"):
        claim(context)
    assert (context.folder / job.place / "metrics.json").exists()


def test_a_failure_is_remembered_and_a_damaged_one_does_not_matter(context: Context, job: Job) -> None:
    with RunFolder(context.folder) as folder:
        assert folder.failure(job) is None
        folder.write_failure(job, "too hot")
        assert folder.failure(job) == "too hot"
        (context.folder / job.place / "failed.json").write_text("{")
        assert "JSON" in str(folder.failure(job))


@pytest.mark.parametrize(
    "content", ["{", '{"a": 5}', '{"a": {"correct": 3, "n": 2, "weights_sha256": ""}}', '{"a": {}}']
)
def test_a_damaged_proof_of_the_test_reads_is_not_made_anew(context: Context, content: str) -> None:
    with RunFolder(context.folder) as folder:
        folder.write_test_read("b", {"correct": 1, "n": 2, "weights_sha256": "0"})
        assert folder.test_reads().keys() == {"b"}
        (context.folder / "test.json").write_text(content)
        with pytest.raises(RunError, match=r"test\.json"):
            folder.test_reads()
        with pytest.raises(RunError, match=r"test\.json"):
            folder.write_test_read("c", {"correct": 1, "n": 2, "weights_sha256": "0"})
