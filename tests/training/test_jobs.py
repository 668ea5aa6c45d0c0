"""One job: its folder, its start, and what it leaves alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deepreduce.census import trace
from deepreduce.errors import Interrupted, MissingExtraError, RunError, TrainingError, UsageError
from deepreduce.reduction import Candidate, make_base
from deepreduce.reduction.recipe import load_network
from deepreduce.training import Context, Job, TrainingConfig, dispatch, jobs, require_tracker, run_job

FULL = Candidate(keep=("S1", "S2"))
S2 = Candidate(keep=("S2",))


@pytest.fixture
def teacher(config: TrainingConfig) -> Job:
    return Job("teacher", None, 0, False, config)


@pytest.fixture
def student(config: TrainingConfig) -> Job:
    return Job("candidate", S2, 0, True, config)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_example_a_job_writes_its_folder(context: Context, teacher: Job, student: Job) -> None:
    assert run_job(teacher, context) == run_job(student, context) == ""
    folder = context.folder / "candidate" / "S2" / "seed0"
    assert sorted(path.name for path in folder.iterdir()) == [
        "history.jsonl", "metrics.json", "recipe.json", "weights.safetensors",
    ]  # fmt: skip
    metrics = json.loads((folder / "metrics.json").read_text())
    history = lines(folder)
    assert [line["epoch"] for line in history] == [1, 2] and metrics["epochs"] == 2
    assert metrics["seconds"] == pytest.approx(sum(line["seconds"] for line in history))
    assert metrics["threads"] == 1 and metrics["config"] == student.config.to_json()
    network, recipe = load_network(folder, context.network)
    assert recipe.relus == metrics_relus(network) == 2 * 8 * 4 * 4
    validation = context.data.validation
    pixels = (validation.images.double() / 255 - context.data.mean[0]) / context.data.std[0]
    correct = int((network(pixels.float()).argmax(1) == validation.labels).sum())
    assert metrics["validation"] == {"correct": correct, "n": len(validation)}


def metrics_relus(network: Any) -> int:
    from deepreduce.census import take_census

    return take_census(network, (1, 8, 8)).relus


@pytest.mark.parametrize("fade", [0.5, 0.0])
def test_a_warm_start_is_the_teachers_function_until_relus_go(
    fade: float, context: Context, teacher: Job, student: Job
) -> None:
    run_job(teacher, context)
    trained, _ = load_network(context.folder / "teacher" / "seed0", context.network)
    images = torch.randn(4, 1, 8, 8)
    for warm, is_teacher in ((True, fade > 0), (False, False)):
        job = replace(student, config=replace(student.config, fade=fade, warm_start=warm))
        begun, asked = jobs._networks(job, make_base(context.spec, context.network), context)
        assert torch.equal(begun.eval()(images), trained(images)) is is_teacher
        assert asked is not None and torch.equal(asked.eval()(images), trained(images))


def test_a_job_without_distillation_asks_no_teacher(context: Context, teacher: Job, student: Job) -> None:
    run_job(teacher, context)
    base = make_base(context.spec, context.network)
    for job in (replace(student, distilled=False), replace(student, config=replace(student.config, distillation=0.0))):
        assert jobs._networks(job, base, context)[1] is None and not job.teaches


def test_the_callers_random_state_threads_and_network_stay(context: Context, teacher: Job, network: Any) -> None:
    kept = trace(network)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    run_job(teacher, replace(context, threads=threads + 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, kept.state_dict()[name]) for name, value in network.state_dict().items())


def test_a_job_that_diverged_continues_where_it_was_stopped(
    context: Context, teacher: Job, student: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first attempt diverges in the third epoch, and the second is cut off."""
    student = replace(student, config=replace(student.config, epochs=4))
    whole = replace(context, folder=tmp_path / "whole")
    honest, begun = jobs.train, []

    def train(network: Any, *rest: Any, on_epoch: Any, **more: Any) -> Any:
        config = rest[2]
        begun.append(config.learning_rate)

        def spoilt(epoch: Any) -> None:
            on_epoch(epoch)
            if config.learning_rate == 0.05 and config.epochs == 4 and epoch.epoch == 3:
                with torch.no_grad():
                    network.fc.weight.fill_(float("nan"))

        return honest(network, *rest, on_epoch=spoilt, **more)

    for one in (context, whole):
        run_job(teacher, one)
    monkeypatch.setattr(jobs, "train", train)
    assert run_job(student, whole) == "" and begun == [0.05, 0.0125]
    asked = iter(range(100))
    with pytest.raises(Interrupted):
        run_job(student, context, lambda: next(asked) > 17)
    folder = context.folder / student.place
    assert begun[2:] == [0.05, 0.0125] and len(lines(folder)) == 2
    run_job(student, context)
    assert [line["epoch"] for line in lines(folder)] == [1, 2, 3, 4]
    assert json.loads((folder / "metrics.json").read_text())["learning_rate"] == 0.0125
    name = f"{student.place}/weights.safetensors"
    assert (context.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not list(folder.glob("checkpoint*"))


def test_a_stopped_job_continues_with_one_history(context: Context, teacher: Job, tmp_path: Path) -> None:
    teacher = replace(teacher, config=replace(teacher.config, epochs=4))
    whole = replace(context, folder=tmp_path / "whole")
    run_job(teacher, whole)
    asked = iter(range(100))
    with pytest.raises(Interrupted):
        run_job(teacher, context, lambda: next(asked) > 7)
    folder = context.folder / teacher.place
    assert (folder / "checkpoint.safetensors").exists() and not (folder / "metrics.json").exists()
    with (folder / "history.jsonl").open("a") as file:  # an epoch after the last checkpoint, cut short
        file.write(json.dumps({**lines(folder)[0], "epoch": 3}) + '\n{"epo')
    run_job(teacher, context)
    assert [line["epoch"] for line in lines(folder)] == [1, 2, 3, 4]
    assert not (folder / "checkpoint.safetensors").exists()
    name = f"{teacher.place}/weights.safetensors"
    assert (context.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_the_checkpoint_of_another_job_or_teacher_is_not_continued(
    context: Context, teacher: Job, student: Job
) -> None:
    run_job(teacher, context)
    asked = iter(range(100))
    with pytest.raises(Interrupted):
        run_job(student, context, lambda: next(asked) > 4)
    kept = (context.folder / student.place / "checkpoint.safetensors").read_bytes()
    plain = Job("criticality", S2, 0, False, student.config)
    (context.folder / plain.place).mkdir(parents=True)
    (context.folder / plain.place / "checkpoint.safetensors").write_bytes(kept)
    assert "began anew" in run_job(plain, context)
    run_job(replace(teacher, config=replace(teacher.config, learning_rate=0.01)), context)
    assert "began anew" in run_job(student, context)


def test_files_of_a_killed_writer_go(context: Context, teacher: Job) -> None:
    folder = context.folder / teacher.place
    folder.mkdir(parents=True)
    (folder / ".weights.safetensors.x1y2").write_bytes(b"half")
    (folder / "failed.json").write_text('{"reason": "earlier"}')
    run_job(teacher, context)
    assert not list(folder.glob(".*")) and not (folder / "failed.json").exists()


def test_a_runtime_error_of_pytorch_is_the_jobs_own(context: Context, teacher: Job, monkeypatch: Any) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.\nmore")

    monkeypatch.setattr(jobs, "train", no_memory)
    with pytest.raises(TrainingError, match=r"fit into memory.*99 bytes\..*--batch-size"):
        run_job(teacher, context)


def test_a_gpu_that_failed_ends_the_run(context: Context, teacher: Job, monkeypatch: Any) -> None:
    """Every later network would fail in this process as well, whatever it is."""

    class AcceleratorError(RuntimeError):
        pass

    def broken(*_: Any, **__: Any) -> None:
        raise AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(dispatch, "_BROKEN", (AcceleratorError,))
    monkeypatch.setattr(jobs, "train", broken)
    with pytest.raises(RunError, match=r"GPU must go on.*illegal memory access.*Do: run the same command again"):
        run_job(teacher, context)


def test_a_compiler_that_fails_is_told_apart_from_memory_that_is_full(
    context: Context, teacher: Job, monkeypatch: Any
) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise OSError("no compiler here")

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compiled(network, backend=backend))
    with pytest.raises(TrainingError, match=r"no compiler here.*--compile off"):
        run_job(replace(teacher, config=replace(teacher.config, compile="on")), context)


@pytest.mark.parametrize("name", ["save_network", "write_json", "append_line"])
def test_a_full_disk_says_so_wherever_it_happens(name: str, context: Context, teacher: Job, monkeypatch: Any) -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(jobs, name, no_space)
        with pytest.raises(RunError, match=r"No space left.*same command again"):
            run_job(teacher, context)
    assert not (context.folder / teacher.place / "metrics.json").exists()
    run_job(teacher, context)


def test_an_unwritable_place_says_so(context: Context, teacher: Job) -> None:
    context.folder.mkdir()
    (context.folder / "teacher").write_text("a file where a folder belongs")
    with pytest.raises(RunError, match="writable"):
        run_job(teacher, context)


def test_a_given_teacher_is_measured_and_not_trained(context: Context, teacher: Job, network: Any) -> None:
    run_job(replace(teacher, given=True), context)
    loaded, _ = load_network(context.folder / teacher.place, network)
    assert torch.equal(loaded.fc.weight, network.fc.weight)  # type: ignore[union-attr]
    assert json.loads((context.folder / teacher.place / "metrics.json").read_text())["epochs"] == 0


def test_tensorboard_gets_every_epoch(context: Context, teacher: Job) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_job(teacher, replace(context, tracker="tensorboard"))
    folder = context.folder / teacher.place
    events = [path.parent for path in folder.rglob("events.out.tfevents*")]
    losses: dict[int, float] = {}
    for place in events:
        read = EventAccumulator(str(place)).Reload()
        if "loss" in read.Tags()["scalars"]:
            losses.update({event.step: event.value for event in read.Scalars("loss")})
    assert losses == pytest.approx({line["epoch"]: line["loss"] for line in lines(folder)})


def test_a_tracker_that_would_log_nothing_is_refused() -> None:
    require_tracker(None)
    with pytest.raises(UsageError, match="tensorboard"):
        require_tracker("tensorbord")
    with pytest.raises((UsageError, MissingExtraError), match="not installed|must be installed"):
        require_tracker("clearml")


def test_places_and_labels_tell_jobs_apart(config: TrainingConfig) -> None:
    made = [
        Job("teacher", None, 0, False, config), Job("teacher", None, 1, False, config),
        Job("criticality", S2, 0, True, config), Job("criticality", S2, 0, False, config),
        Job("candidate", S2, 0, True, config), Job("candidate", FULL, 0, True, config),
    ]  # fmt: skip
    assert len({job.place for job in made}) == len(made)
    assert [job.label for job in made[1:4]] == ["teacher", "S2 alone, distilled", "S2 alone, plain"]
