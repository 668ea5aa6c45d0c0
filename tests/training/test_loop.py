"""The loop: it learns, repeats itself, continues bit for bit, and ends fading at the identity."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from deepreduce.census import trace
from deepreduce.data import Dataset
from deepreduce.errors import Interrupted, TrainingError, UsageError
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import Candidate, FadingReLU, build_candidate, make_base
from deepreduce.training import Checkpoint, Epoch, TrainingConfig, accuracy, make_accelerator, train
from deepreduce.training.batches import DeviceSplit, Normalisation
from deepreduce.training.loop import is_compiled

SPEC = NetworkSpec("Small", (1, 8, 8), 3)


@pytest.fixture
def splits(data: Dataset) -> tuple[DeviceSplit, DeviceSplit]:
    scale = Normalisation(data.mean, data.std)
    device = torch.device("cpu")
    return DeviceSplit.of(data.train, scale, device), DeviceSplit.of(data.validation, scale, device)


def run(
    network: nn.Module, splits: tuple[DeviceSplit, DeviceSplit], config: TrainingConfig, **more: Any
) -> fx.GraphModule:
    return train(trace(network), *splits, config, accelerator=make_accelerator(config), **more)


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_example_a_small_network_learns(network: nn.Module, splits: Any, config: TrainingConfig) -> None:
    seen: list[Epoch] = []
    trained = run(network, splits, replace(config, epochs=6), on_epoch=seen.append)
    assert accuracy(trained, splits[1]) > 0.9
    assert [epoch.epoch for epoch in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1].loss < seen[0].loss and seen[-1].validation is not None
    assert not trained.training and not any(p.requires_grad for p in trained.parameters())


def test_layers_that_their_owner_froze_are_trained(network: nn.Module, splits: Any, config: TrainingConfig) -> None:
    """They must learn to do without the ReLUs around them."""
    frozen = copy.deepcopy(network).requires_grad_(False)
    assert same(run(frozen, splits, config), run(network, splits, config))


def test_accuracy_is_the_share_of_largest_logits(network: nn.Module, splits: Any, config: TrainingConfig) -> None:
    validation = splits[1]
    network.eval()
    with torch.no_grad():
        answers = network(validation.normalise(validation.images)).argmax(1)
    expected = float((answers == validation.labels).double().mean())
    assert accuracy(network, validation) == expected


def test_one_seed_gives_one_network_and_another_seed_another(
    network: nn.Module, splits: Any, config: TrainingConfig
) -> None:
    first = run(network, splits, config)
    torch.manual_seed(999)  # whatever the caller did before
    assert same(first, run(network, splits, config))
    assert not same(first, run(network, splits, config, seed=1))


@pytest.mark.parametrize("stop_at", [4, 7, 11])
def test_a_stopped_training_continues_bit_for_bit(
    stop_at: int, splits: Any, config: TrainingConfig, tmp_path: Path, network: nn.Module
) -> None:
    network = type(network)(dropout=0.3)  # type: ignore[call-arg]  # the masks must come back too
    config = replace(config, epochs=4)  # of three steps
    whole: list[Epoch] = []
    expected = run(network, splits, config, on_epoch=whole.append)

    def checkpoint() -> Checkpoint:
        return Checkpoint(tmp_path / "c.safetensors", "job", every_seconds=0)

    asked = iter(range(100))
    first: list[Epoch] = []
    with pytest.raises(Interrupted):
        run(
            network, splits, config, checkpoint=checkpoint(), on_epoch=first.append,
            should_stop=lambda: next(asked) >= stop_at,
        )  # fmt: skip
    assert 0 < len(first) < 4
    rest: list[Epoch] = []
    continued = run(network, splits, config, checkpoint=checkpoint(), on_epoch=rest.append)
    assert same(continued, expected)
    assert rest[: len(first)] == first  # told again from the checkpoint, seconds included
    assert [(e.epoch, e.loss, e.validation) for e in rest] == [(e.epoch, e.loss, e.validation) for e in whole]


def test_fading_ends_at_the_network_without_those_relus(
    network: nn.Module, splits: Any, config: TrainingConfig
) -> None:
    base = make_base(SPEC, network)
    candidate = Candidate(keep=("S2",))
    student = build_candidate(base, candidate, fading=True)
    images = splits[1].normalise(splits[1].images)
    network.eval(), student.eval()
    assert torch.equal(student(images), network(images))  # it starts as the teacher, whose ReLUs are all there
    faded: list[float] = []
    trained = run(student, splits, replace(config, epochs=4, fade=0.5), on_epoch=lambda epoch: faded.append(epoch.fade))
    assert 0 < faded[0] < 1 and faded[-1] == 1.0
    assert not any(isinstance(module, FadingReLU) for module in trained.modules())
    plain = build_candidate(base, candidate)
    plain.load_state_dict(trained.state_dict())
    assert torch.equal(trained(images), plain.eval()(images))


def test_the_last_batch_statistics_are_those_of_the_final_network(
    splits: Any, config: TrainingConfig, network: nn.Module
) -> None:
    """After the shortest last part that is allowed, evaluation mode agrees with fresh statistics."""
    student = build_candidate(make_base(SPEC, network), Candidate(keep=("S2",)), fading=True)
    trained = run(student, splits, replace(config, epochs=30, fade=0.9))
    before = accuracy(trained, splits[1])
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # type: ignore[assignment]
    trained.train()
    for _ in range(3):
        trained(splits[0].normalise(splits[0].images))
    assert abs(accuracy(trained, splits[1]) - before) <= 0.1


def test_with_all_weight_on_the_teacher_labels_do_not_matter(
    network: nn.Module, splits: Any, config: TrainingConfig
) -> None:
    teacher = run(network, splits, config)
    config = replace(config, distillation=1.0)
    wrong = replace(splits[0], labels=(splits[0].labels + 1) % 3)
    expected = run(network, splits, config, teacher=trace(teacher))
    assert same(expected, run(network, (wrong, splits[1]), config, teacher=trace(teacher)))
    assert not same(expected, run(network, (wrong, splits[1]), config))


def test_training_does_not_change_the_teacher(network: nn.Module, splits: Any, config: TrainingConfig) -> None:
    teacher = run(network, splits, config)
    kept = trace(teacher)
    run(network, splits, config, teacher=teacher)
    assert same(teacher, kept)


def test_a_loss_that_is_not_finite_stops_with_its_place(
    network: nn.Module, splits: Any, config: TrainingConfig
) -> None:
    with torch.no_grad():
        network.fc.weight.fill_(float("inf"))  # type: ignore[union-attr]
    with pytest.raises(TrainingError, match=r"step 1 of epoch 1.*--learning-rate"):
        run(network, splits, config)


def test_weights_that_are_not_finite_are_no_result(network: nn.Module, splits: Any, config: TrainingConfig) -> None:
    def spoil(epoch: Epoch) -> None:
        with torch.no_grad():
            traced.conv1.weight.fill_(float("nan"))  # type: ignore[union-attr]

    traced = trace(network)
    config = replace(config, epochs=1)
    with pytest.raises(TrainingError, match="weights must be finite"):
        train(traced, *splits, config, accelerator=make_accelerator(config), on_epoch=spoil)


def test_one_process_may_train_in_several_precisions(network: nn.Module, splits: Any, config: TrainingConfig) -> None:
    full = run(network, splits, config)
    half = run(network, splits, replace(config, precision="bf16"))
    assert not same(full, half)
    assert same(full, run(network, splits, config))


def test_fp16_without_a_gpu_is_refused(config: TrainingConfig) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="needs a GPU"):
            make_accelerator(replace(config, precision="fp16"))


def test_a_crop_as_large_as_the_image_is_refused(network: nn.Module, splits: Any, config: TrainingConfig) -> None:
    with pytest.raises(UsageError, match="--crop"):
        run(network, splits, replace(config, crop=8))
    run(network, splits, replace(config, epochs=1, crop=7))


def test_one_batch_and_one_epoch_still_train(network: nn.Module, splits: Any, config: TrainingConfig) -> None:
    trained = run(network, splits, replace(config, epochs=1, batch_size=1000))
    assert not torch.equal(trained.fc.weight, network.fc.weight)  # type: ignore[union-attr]


def test_compilation_is_used_for_student_and_teacher(
    network: nn.Module, splits: Any, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    expected = run(network, splits, config, teacher=trace(network))
    assert not compiled  # auto, on a CPU
    assert same(expected, run(network, splits, replace(config, compile="on"), teacher=trace(network)))
    assert len(compiled) == 2


def test_a_network_is_measured_as_it_is_saved(network: nn.Module, splits: Any, config: TrainingConfig) -> None:
    """In single precision, though it trains in bf16, where the largest two of many logits are often equal."""
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    traced = trace(network)
    traced.register_forward_hook(lambda module, _, output: seen[module.training].add(output.dtype))
    config = replace(config, precision="bf16")
    train(traced, *splits, config, accelerator=make_accelerator(config))
    assert seen == {True: {torch.bfloat16}, False: {torch.float32}}


@pytest.mark.parametrize(
    ("compile", "device", "steps", "compiled"),
    [("auto", "cuda", 20_000, True), ("auto", "cuda", 19_999, False), ("auto", "cpu", 10**9, False),
     ("on", "cpu", 1, True), ("off", "cuda", 10**9, False)],
)  # fmt: skip
def test_what_is_short_is_not_compiled(
    compile: str, device: str, steps: int, compiled: bool, config: TrainingConfig
) -> None:
    assert is_compiled(replace(config, compile=compile), torch.device(device), steps) == compiled
