"""What networks cost privately: asked once for each, kept beside the weights, and never at the price of the search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from deepreduce._pricing import OurPricer
from deepreduce.errors import NetworkError
from deepreduce.private.program import FormatSettings
from deepreduce.training import Context, Front, SearchSettings, describe, plan, search


class Prices:
    """Gives each network the seconds that a function says, from the number of times it was asked."""

    links = ("lan", "wan")
    why: str | None = None

    def __init__(self, seconds: Callable[[int], float] = float, *, signature: str = "one") -> None:
        self.signature, self.seconds = signature, seconds
        self.images: list[Tensor] = []

    def objection(self, network: nn.Module, input: tuple[int, int, int]) -> str | None:
        assert network(torch.zeros(1, *input)).shape == (1, 3)
        return self.why

    def __call__(self, network: fx.GraphModule, images: Tensor) -> dict[str, Any]:
        assert not network.training and network(images).shape[1] == 3
        self.images.append(images)
        here = self.seconds(len(self.images))
        return {"online": {"seconds": {"lan": here, "wan": 10 * here}}}


def front_of(context: Context, settings: SearchSettings, pricer: Prices | None, **more: Any) -> Front:
    found = search(context, settings, pricer=pricer, **more)
    return Front(describe(found, context, environment={}), context.folder)


def files(context: Context) -> list[Path]:
    return sorted(context.folder.rglob("private.json"))


def test_example_every_network_has_a_price(context: Context, settings: SearchSettings, watch: Any) -> None:
    pricer = Prices()
    front = front_of(context, settings, pricer, progress=watch)
    count = len(front.finished)
    assert len(pricer.images) == len(files(context)) == count > 2
    assert sorted(entry["private"]["online"]["seconds"]["wan"] for entry in front.finished) == [
        10.0 * (number + 1) for number in range(count)
    ]
    assert all(images.shape == (8, 1, 8, 8) and images.equal(pricer.images[0]) for images in pricer.images)
    assert [step[1:] for step in watch.steps if step[0] == "Private cost"] == [(n, count) for n in range(count + 1)]
    assert [step[2] for step in watch.steps if step[0] == "Test images"][-1] >= 1


def test_a_network_is_asked_for_once(context: Context, settings: SearchSettings) -> None:
    first, again = Prices(), Prices(signature="one")
    before = front_of(context, settings, first).content
    assert front_of(context, settings, again).content == before and not again.images
    other = Prices(signature="two")
    front_of(context, settings, other)
    assert len(other.images) == len(first.images)


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: "{",
        lambda kept: json.dumps({**kept, "version": 9}),
        lambda kept: json.dumps({**kept, "weights_sha256": "0"}),
        lambda kept: json.dumps({**kept, "price": {"online": {"seconds": {"lan": 1.0}}}}),
        lambda kept: json.dumps({**kept, "price": {"online": {"seconds": {"lan": 1.0, "wan": "2"}}}}),
        lambda kept: json.dumps({**kept, "price": {}}),
    ],
)
def test_a_price_that_does_not_fit_is_asked_for_anew(
    damage: Callable[[Any], str], context: Context, settings: SearchSettings
) -> None:
    before = front_of(context, settings, Prices()).content
    path = files(context)[0]
    path.write_text(damage(json.loads(path.read_text())))
    again = Prices(lambda _: 77.0)
    after = front_of(context, settings, again).content
    assert len(again.images) == 1 and after != before and '"lan": 77.0' in path.read_text()


def test_the_best_in_its_time_is_on_a_front_and_its_test_images_are_read(
    context: Context, settings: SearchSettings
) -> None:
    """Where the last networks asked for are the fastest, some that fewer ReLUs beat come to the front of seconds."""
    front = front_of(context, settings, Prices(lambda number: 1.0 / number))
    quick = front.content["fronts_in_seconds"]["lan"]
    assert quick == front.content["fronts_in_seconds"]["wan"] != front.content["front"]
    entries = {entry["id"]: entry for entry in front.finished}
    times = [entries[name]["private"]["online"]["seconds"]["lan"] for name in quick]
    accuracies = [entries[name]["validation"]["accuracy"] for name in quick]
    assert times == sorted(times) and accuracies == sorted(set(accuracies))
    on_a_front = {*quick, *front.content["front"], "teacher"}
    assert {name for name, entry in entries.items() if entry["test"]} == on_a_front != set(front.content["front"])
    assert all(entry["on_front"] is (name in front.content["front"]) for name, entry in entries.items())


def test_what_has_no_price_says_why_and_the_search_goes_on(
    context: Context, settings: SearchSettings, watch: Any
) -> None:
    def seconds(number: int) -> float:
        if number == 1:
            raise NetworkError("a layer is unknown")
        if number == 2:
            raise ZeroDivisionError("by accident")
        return float(number)

    front = front_of(context, settings, Prices(seconds), progress=watch)
    reasons = sorted(entry["private"].get("reason", "") for entry in front.finished)
    assert reasons[-2:] == ["ZeroDivisionError: by accident", "a layer is unknown"]
    assert [note for note in watch.notes if "by accident" in note]
    assert len(files(context)) == len(front.finished) - 1  # an accident may pass; the next command asks again
    priced = [entry["id"] for entry in front.finished if "online" in entry["private"]]
    assert set(front.content["fronts_in_seconds"]["lan"]) <= set(priced)


def test_what_can_never_run_privately_is_said_before_anything_is_trained(
    context: Context, settings: SearchSettings, watch: Any
) -> None:
    pricer = Prices()
    pricer.why = "An operator is known. Got: swish."
    words = "not run privately as it is. An operator is known. Got: swish."
    assert words in plan(context, settings, pricer=pricer)["note"]
    assert words not in plan(context, settings, pricer=Prices())["note"]

    class Stopping(type(watch)):  # type: ignore[misc]
        def begin(self, jobs: Any) -> None:
            raise KeyboardInterrupt

    watcher = Stopping()
    with pytest.raises(KeyboardInterrupt):
        search(context, settings, pricer=pricer, progress=watcher)
    assert [note for note in watcher.notes if words in note]


def test_nobody_is_asked_where_nobody_knows(context: Context, settings: SearchSettings) -> None:
    front = front_of(context, settings, None)
    assert front.content["fronts_in_seconds"] == {} and not files(context)
    assert all(entry["private"] is None for entry in front.finished)


def test_prices_of_other_formats_are_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = OurPricer().signature
    assert OurPricer().signature == before
    monkeypatch.setattr("deepreduce.private.program.FormatSettings", lambda: FormatSettings(activation_bits=13))
    assert OurPricer().signature != before
