"""The parts of the rivals that can be held against a ground truth without a training run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deepreduce.census import take_census, trace
from deepreduce.errors import UsageError
from deepreduce.reduction import (
    REDUCERS,
    MaskOrder,
    SlopedReLU,
    Survey,
    channel_pruning,
    check_granularity,
    find_reducer,
    with_slopes,
)
from deepreduce.reduction.methods.deepreduce_masks import DeepReDuceMasks
from deepreduce.reduction.methods.finding import kept, set_masks
from deepreduce.reduction.methods.relupruner import ReLUPruner, importance
from deepreduce.reduction.methods.senet import layer_budgets, measure_sensitivity, mismatch
from deepreduce.reduction.methods.snl import SNL

T = 2.0


class Net(nn.Module):
    """Two ReLU layers; the first three channels of the first one are always positive."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.fc = nn.Linear(64, 3)
        with torch.no_grad():
            self.conv1.bias[:3] += 100
            self.conv2.weight /= 100

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu2(self.bn2(self.conv2(self.relu1(self.conv1(x))))).flatten(1))


@pytest.fixture
def survey() -> Survey:
    torch.manual_seed(0)
    network = trace(Net()).eval()
    census = take_census(network, (1, 4, 4))
    images = torch.randn(12, 1, 4, 4)
    labels = torch.arange(12) % 3

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        return [(images[:8], labels[:8]), (images[8:], labels[8:])]

    def loss(logits: Tensor, answers: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    (own, slopes), (teacher, teacher_slopes) = (with_slopes(network, census, "element") for _ in range(2))
    return Survey(own, slopes, teacher.requires_grad_(False), teacher_slopes, batches, loss, T, lambda value: value)


def test_example_the_importance_of_an_element_that_is_never_negative_is_zero(survey: Survey) -> None:
    found = importance(survey)
    assert found["relu1"].shape == (4, 4, 4)
    assert (found["relu1"][:3] == 0).all()
    assert (found["relu1"][3] != 0).any() and (found["relu2"] != 0).any()


def test_importance_is_the_expansion_computed_image_by_image(survey: Survey) -> None:
    """Against a loop over single images and the sum over all labels instead of a drawn one."""
    images, labels = (torch.cat(parts) for parts in zip(*survey.batches(), strict=True))
    expected = 0.0
    for image, label in zip(images, labels, strict=True):
        before = survey.network.conv1(image[None])
        activation = before.relu().detach().requires_grad_(True)
        logits = survey.network.fc(survey.network.bn2(survey.network.conv2(activation)).relu().flatten(1))
        d = (before - before.relu()).detach()
        (g,) = torch.autograd.grad(F.cross_entropy(logits, label[None]), activation, retain_graph=True)
        change = g * d
        share = (logits / T).softmax(1)[0].detach()
        for label_drawn in range(3):
            fisher = T * F.cross_entropy(logits / T, torch.tensor([label_drawn]))
            (h,) = torch.autograd.grad(fisher, activation, retain_graph=True)
            change = change + share[label_drawn] * (h * d).square() / 2
        expected = expected + change[0].double() / len(images)
    draws = 400
    mean = sum(importance(survey)["relu1"] for _ in range(draws)) / draws
    assert isinstance(expected, Tensor)
    np.testing.assert_allclose(mean, expected.numpy(), atol=0.05 * float(expected.abs().max()))


def test_rounds_only_ever_remove_and_fade_what_they_remove(survey: Survey) -> None:
    finder = ReLUPruner(survey.slopes, MaskOrder("relupruner", "element", 20), steps=5, epochs=3)
    before = kept(survey.slopes)
    for epoch in range(3):
        finder.begin_epoch(epoch, survey)
        assert all((kept(survey.slopes)[name] == before[name]).all() for name in before)  # not all at once
        for step in range(5):
            finder.after_step()
            lowest = min(float(slope.alpha.min()) for slope in survey.slopes.values())
            assert epoch or lowest == pytest.approx(max(0.0, 1 - (step + 1) / 4))
        now = kept(survey.slopes)
        assert all(set(slope.alpha.unique().tolist()) <= {0.0, 1.0} for slope in survey.slopes.values())
        assert all(not (now[name] & ~before[name]).any() for name in now)
        before = now
    assert sum(int(mask.sum()) for mask in finder.masks().values()) == 20


def test_a_slope_blends_and_goes_back_into_masks() -> None:
    slope = SlopedReLU("relu6", (2, 2), "channel", "relu")
    assert slope.group == 2 and slope.alpha.shape == (1, 2, 1)
    x = torch.tensor([[[-4.0, 8.0], [-4.0, 8.0]]])
    set_masks({"a": slope}, {"a": np.array([[True, True], [False, False]])})
    assert slope(x).tolist() == [[[0.0, 6.0], [-4.0, 8.0]]]
    slope.alpha.fill_(0.25)
    assert slope(x).tolist() == [[[-3.0, 7.5], [-3.0, 7.5]]]
    assert slope.slopes().tolist() == [[0.25, 0.25], [0.25, 0.25]]


def test_the_penalty_alone_brings_every_slope_down_at_the_same_pace() -> None:
    slopes = {"a": SlopedReLU("relu", (3, 2, 2), "element", "a"), "b": SlopedReLU("relu", (4,), "element", "b")}
    finder = SNL(slopes, MaskOrder("snl", "element", 8), steps=10, epochs=5)
    parameters = [slope.alpha.requires_grad_(True) for slope in slopes.values()]
    optimizer = torch.optim.SGD(parameters, lr=finder.slope_rate(0.9), momentum=0.9, nesterov=True)
    useful = slopes["a"].alpha
    steps = 0
    while not finder.is_finished():
        for alpha in parameters:
            alpha.grad = torch.zeros_like(alpha)
        useful.grad[0, 0, 0] = -50.0  # of these two elements alone the loss wants the ReLU
        finder.before_step()
        optimizer.step()
        finder.after_step()
        steps += 1
        assert steps < 100
    masks = finder.masks()
    assert sum(int(mask.sum()) for mask in masks.values()) == 8
    assert masks["a"][0, 0].all() and (useful[0, 0, 0] == 1).all()
    assert finder.strength > 0.5
    again = SNL(slopes, MaskOrder("snl", "element", 8), steps=10, epochs=5)
    again.restore(finder.state())
    assert again.state() == finder.state() and again.is_finished()


def test_an_overflow_in_the_first_step_does_not_spoil_the_scale() -> None:
    """With fp16 the first gradients may be infinite: the step is then not taken."""
    slopes = {"a": SlopedReLU("relu", (3, 2, 2), "element", "a")}
    finder = SNL(slopes, MaskOrder("snl", "element", 8), steps=10, epochs=5)
    slopes["a"].alpha.requires_grad_(True).grad = torch.full_like(slopes["a"].alpha, torch.inf)
    finder.before_step()
    assert finder.scale == 0
    slopes["a"].alpha.grad = torch.full_like(slopes["a"].alpha, 4.0)
    finder.before_step()
    assert finder.scale == 4 and bool(slopes["a"].alpha.grad.isfinite().all())


def test_ours_passes_over_a_layer_that_would_keep_few() -> None:
    slopes = {"a": SlopedReLU("relu", (8, 2, 2), "element", "a"), "b": SlopedReLU("relu", (32,), "element", "b")}
    with torch.no_grad():
        slopes["a"].alpha.copy_(torch.linspace(1, 0.5, 32).reshape(1, 8, 2, 2))
        slopes["b"].alpha.fill_(0.1)[0, 7] = 0.99
    order = MaskOrder("deepreduce-masks", "element", 20)
    snl, ours = (kind(slopes, order, steps=10, epochs=5).masks() for kind in (SNL, DeepReDuceMasks))
    assert (int(snl["a"].sum()), int(snl["b"].sum())) == (19, 1)
    assert (int(ours["a"].sum()), int(ours["b"].sum())) == (20, 0)


def test_sensitivity_and_mismatch_see_what_linearising_changes(survey: Survey) -> None:
    before = {name: value.clone() for name, value in survey.teacher.state_dict().items()}
    sensitivity = measure_sensitivity(survey)
    assert list(sensitivity) == ["relu1", "relu2"] and sensitivity["relu2"] > sensitivity["relu1"] >= 0
    found = mismatch(survey)
    assert (found["relu1"][:3] == 0).all() and (found["relu1"][3] > 0).any()
    images = torch.cat([images for images, _ in survey.batches()])
    x = survey.network.conv1(images)
    np.testing.assert_allclose(found["relu1"], (x.relu() - x).abs().mean(0).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in survey.teacher.state_dict().items())


def test_a_measurement_leaves_a_network_as_it_was_even_if_it_fails(survey: Survey) -> None:
    survey.network.train()
    survey.network.get_submodule("bn2").eval()  # frozen by its owner

    def failing() -> Iterable[tuple[Tensor, Tensor]]:
        yield from survey.batches()
        raise RuntimeError

    for measure in (importance, mismatch):
        measure(survey)
        with pytest.raises(RuntimeError):
            measure(replace(survey, batches=failing))
        assert survey.network.training and not survey.network.get_submodule("bn2").training
        for slope in (*survey.slopes.values(), *survey.teacher_slopes.values()):
            assert not slope.watched and slope.before is None and slope.after is None


@given(
    st.lists(st.tuples(st.floats(0, 1e3), st.integers(1, 50)), min_size=1, max_size=6),
    st.floats(0, 0.999),
)
def test_layer_budgets_add_up_and_follow_sensitivity(layers: list[tuple[float, int]], share: float) -> None:
    sensitivity = {f"l{index}": value for index, (value, _) in enumerate(layers)}
    sizes = {f"l{index}": size for index, (_, size) in enumerate(layers)}
    budget = int(share * sum(sizes.values()))
    found = layer_budgets(sensitivity, sizes, budget)
    assert list(found) == list(sensitivity) and sum(found.values()) == budget
    assert all(0 <= found[name] <= sizes[name] for name in found)
    for one in found:
        for other in found:
            if sensitivity[one] >= sensitivity[other] and found[one] < sizes[one]:
                assert found[one] >= found[other] - 1


def test_methods_and_granularities_by_name() -> None:
    assert {name for name, reducer in REDUCERS.items() if reducer.finder} == {
        "deepreduce-masks",
        "snl",
        "senet",
        "relupruner",
    }
    assert all((reducer.propose is None) is reducer.finds_masks for reducer in REDUCERS.values())
    with pytest.raises(UsageError, match="did you mean relupruner"):
        find_reducer("reluprune")
    with pytest.raises(UsageError, match="did you mean channel"):
        check_granularity("chanel")


def test_channel_pruning_meets_its_budgets() -> None:
    census = take_census(trace(Net()), (1, 4, 4))
    found = channel_pruning(census, budgets=[64, 40])
    assert [(c.alpha, c.keep, c.thin) for c in found] == [(0.5, ("S1",), False), (0.3125, ("S1",), False)]
    assert [c.alpha for c in channel_pruning(census)] == [0.75, 0.5, 0.25]
