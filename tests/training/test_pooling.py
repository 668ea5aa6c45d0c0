"""Reduced networks have average pooling where the teacher has max pooling, and so run privately without a maximum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from deepreduce.census import take_census
from deepreduce.errors import RunError
from deepreduce.private.program import make_program
from deepreduce.private.program.operations import MAX, MAX_RELU, Circuit
from deepreduce.private.twin import Twin
from deepreduce.reduction import MaskOrder, make_base
from deepreduce.reduction.recipe import load_network
from deepreduce.training import Context, Front, SearchSettings, describe, mask_search, plan, search
from deepreduce.training.mask_jobs import read_masks

from .conftest import Small

METHODS = ["deepreduce", "deepreduce-narrow", "deepreduce-masks", "snl", "senet", "relupruner", "channel-pruning"]


class Pooling(Small):
    """The same two stages with a maximum between them, over windows that reach into the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.max = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.max(self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))))
        x = self.relu4(self.bn4(self.conv4(self.drop(self.relu3(self.bn3(self.conv3(x)))))))
        return self.fc(torch.flatten(self.pool(x), 1))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(7)
    return Pooling()


def front_of(context: Context, settings: SearchSettings, **more: Any) -> Front:
    return Front(describe(search(context, settings, **more), context, environment={}), context.folder)


def maxima(network: nn.Module) -> int:
    return sum(isinstance(module, nn.MaxPool2d) for module in network.modules())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keeps", [False, True])
def test_every_method(method: str, keeps: bool, context: Context, settings: SearchSettings, watch: Any) -> None:
    asked = replace(settings, method=method, budget=400, criticality_plain=False, keep_max_pooling=keeps)
    front = front_of(context, asked, progress=watch)
    assert front.content["settings"]["keep_max_pooling"] is keeps
    assert any("average pooling takes the place" in note for note in watch.notes) is not keeps
    assert any(
        "2x2 takes the round trips of two ReLU layers, of 3x3 those of four" in note for note in watch.notes
    ) is (not keeps)
    done = [entry for entry in front.content["candidates"] if entry["status"] == "done"]
    assert done
    for entry in done:
        network, recipe = front.load(entry, network=context.network)
        assert take_census(network, (1, 8, 8)).relus == entry["relus"] == recipe.relus
        assert maxima(network) == int(keeps) and ("average pooling" in entry["label"]) is not keeps
    teacher, _ = front.load(front.content["teacher"], network=context.network)
    assert maxima(teacher) == 1
    watch.begun.clear()
    assert front_of(context, asked, progress=watch).content == front.content
    assert all(finished for phase in watch.begun for _, finished in phase)


def test_the_networks_run_privately_without_a_maximum(context: Context, settings: SearchSettings) -> None:
    """With padding, where windows at the border average fewer numbers than the others."""
    pixels = (context.data.train.images[:60].double() / 255 - context.data.mean[0]) / context.data.std[0]
    for method in ("deepreduce-masks", "deepreduce-narrow"):
        own = replace(context, folder=context.folder.with_name(method))
        front = front_of(own, replace(settings, method=method, budget=400))
        (entry,) = front.content["candidates"]
        network, _ = front.load(entry, network=context.network)
        program = make_program(network, pixels)
        steps = [step for step in program.public.steps if isinstance(step.op, Circuit)]
        assert steps and not any(step.op.kind in (MAX, MAX_RELU) for step in steps)
        assert program.public.relus == entry["relus"]
        with torch.no_grad():
            expected = network(pixels.float()).argmax(1).numpy()
        assert (Twin(program).run(pixels.numpy()).labels == expected).mean() >= 0.95


def test_what_is_measured_and_searched_has_average_pooling_too(
    context: Context, settings: SearchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def with_slopes(network: Any, *rest: Any, **more: Any) -> Any:
        begun.append(maxima(network))
        return honest(network, *rest, **more)

    honest = mask_search.with_slopes
    monkeypatch.setattr(mask_search, "with_slopes", with_slopes)
    front_of(context, replace(settings, method="snl", budget=400))
    assert begun == [0, 1]  # the network that is searched, and the teacher
    order = settings_order(context, replace(settings, method="snl", budget=400))
    folder = context.folder / "masks" / order.id / "seed0"
    assert read_masks(folder, order).average_pooling
    with pytest.raises(RunError, match="masks of another job"):
        read_masks(folder, replace(order, average_pooling=False))
    measured = replace(context, folder=context.folder.with_name("measured"))
    front_of(measured, replace(settings, criticality_plain=False))
    places = [path.parent for path in (measured.folder / "criticality").rglob("recipe.json")]
    assert places and all(maxima(load_network(place, context.network)[0]) == 0 for place in places)


def settings_order(context: Context, settings: SearchSettings) -> MaskOrder:
    (order,) = settings.mask_orders(make_base(context.spec, context.network))
    return order


def test_a_plan_says_so(context: Context, settings: SearchSettings) -> None:
    said = plan(context, settings)["note"]
    assert "--keep-max-pooling leaves it." in said
    assert "pooling" not in plan(context, replace(settings, keep_max_pooling=True))["note"]


def test_a_network_without_max_pooling_is_reduced_as_before(
    context: Context, settings: SearchSettings, watch: Any
) -> None:
    other = replace(context, network=Small())
    front = front_of(other, replace(settings, method="snl", budget=400), progress=watch)
    assert not watch.notes and [entry["id"] for entry in front.content["candidates"]]
    assert not any("average_pooling" in entry["recipe"] for entry in front.content["candidates"])
