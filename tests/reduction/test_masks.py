"""Masks survive JSON and recipes bit for bit, refuse what is hostile, and keep what a budget allows."""

from __future__ import annotations

import base64
import itertools
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.census import MaskedReLU, take_census
from deepreduce.errors import NetworkError, RecipeError, UsageError
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import (
    Candidate,
    FadingReLU,
    LayerMask,
    Masks,
    build_candidate,
    census_of,
    choose,
    finish_fading,
    make_base,
    masked_candidate,
    set_fade,
    smallest_budget,
)
from deepreduce.reduction.methods.selection import choose_in_few_layers, fill
from deepreduce.reduction.recipe import Recipe, load_network, save_network

from ..census.zoo import randomise

SPEC = NetworkSpec("resnet18", (3, 16, 16), 5, width=0.1)


def example(budget: int = 500, granularity: str = "element", seed: int = 0) -> tuple[Any, Candidate]:
    base = make_base(SPEC)
    random = np.random.default_rng(seed)
    masks = choose({layer.name: random.random(layer.shape) for layer in base.census.layers}, budget, granularity)
    return base, masked_candidate(base.census, masks, method="snl", granularity=granularity, budget=budget)


def saved(folder: Path) -> torch.nn.Module:
    base, candidate = example()
    census = census_of(base, candidate)
    randomise(base.network)
    network = build_candidate(base, candidate).eval()
    recipe = Recipe(SPEC, candidate, census.relus, census.macs, census.params, (0.5,) * 3, (0.25,) * 3, tuple("abcde"))
    save_network(folder, network, recipe)
    return network


def test_example_masks_round_trip_through_a_recipe_with_identical_logits(tmp_path: Path) -> None:
    network = saved(tmp_path)
    loaded, recipe = load_network(tmp_path)
    _, candidate = example()
    assert recipe.candidate == candidate and recipe.relus == 500
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(loaded(images), network(images))
    assert [str(module) for module in loaded.modules() if isinstance(module, MaskedReLU)]
    assert take_census(loaded, (3, 16, 16)).relus == 500
    assert not torch.equal(loaded(images), make_base(SPEC).network.eval()(images))


def test_names() -> None:
    _, candidate = example()
    assert candidate.label == "snl by element, budget 500"
    assert candidate.id.startswith("S1S2S3S4-m")
    assert candidate.id != example(seed=1)[1].id != example(499)[1].id
    limited = replace(candidate.masks, most_layers=6)
    assert limited.label == "snl by element, budget 500, at most 6 layers" and limited.digest != candidate.masks.digest
    assert replace(limited, most_layers=1).label.endswith(", at most 1 layer")
    assert Masks.from_json(json.loads(json.dumps(limited.to_json()))) == limited
    assert "most_layers" not in candidate.masks.to_json()
    with pytest.raises(UsageError, match="most_layers of masks must be a whole number of at least 1"):
        replace(limited, most_layers=0)
    assert Candidate(keep=("S1",)).to_json().keys() == {"keep", "thin", "alpha", "rho", "drop"}


@given(
    st.lists(
        st.tuples(st.text(max_size=8), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 2**32 - 1)),
        max_size=3,
        unique_by=lambda item: item[0],
    )
)
def test_json_gives_the_same_masks_back(layers: list[tuple[str, list[int], int]]) -> None:
    made = []
    for name, shape, seed in layers:
        mask = np.random.default_rng(seed).random(shape) < 0.5
        if 0 < mask.sum() < mask.size:
            made.append(LayerMask.of(name, mask))
            assert np.array_equal(made[-1].array(), mask)
    masks = Masks("snl", "element", 7, tuple(made))
    assert Masks.from_json(json.loads(json.dumps(masks.to_json()))) == masks
    candidate = Candidate(keep=("S1",), masks=masks)
    again = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
    assert again == candidate and hash(again) == hash(candidate) and again.id == candidate.id


def test_the_bytes_of_a_mask_are_pinned() -> None:
    """What docs/formats.md says, by hand."""
    mask = np.array([[[1, 0, 1], [0, 0, 0], [0, 0, 1]]], dtype=bool)
    value = LayerMask.of("relu", mask).to_json()
    assert {**value, "bits": None} == {"name": "relu", "shape": [1, 3, 3], "kept": 3, "bits": None}
    assert zlib.decompress(base64.b64decode(value["bits"])) == bytes([0b10100000, 0b10000000])


def broken(field: str, value: Any) -> dict[str, Any]:
    good = LayerMask.of("relu", np.array([True, False, True])).to_json()
    return {**good, field: value}


def packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


@pytest.mark.parametrize(
    "value",
    [
        broken("bits", "not base64!"),
        broken("bits", base64.b64encode(b"not zlib").decode()),
        broken("bits", packed(b"")),
        broken("bits", packed(bytes([0b10100000, 0]))),
        broken("bits", packed(bytes([0b10110000]))),  # a bit beyond the end
        broken("bits", packed(bytes(10**7))),  # more than its shape
        broken("bits", packed(bytes([0b10100000]))[:-4]),
        broken("kept", 1),
        broken("kept", 2.5),
        broken("shape", []),
        broken("shape", [0]),
        broken("shape", [-3, -1]),
        broken("shape", [16]),
        broken("shape", [2**40, 2**40]),
        broken("shape", [1] * 9),
        broken("name", 3),
    ],
)
def test_hostile_masks_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="mask|field"):
        LayerMask.from_json(value)


def test_a_mask_that_was_changed_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "recipe.json"
    value = json.loads(path.read_text())
    layer = value["candidate"]["masks"]["layers"][0]
    mask = LayerMask.from_json(layer).array()
    first, other = np.argwhere(mask)[0], np.argwhere(~mask)[0]
    mask[tuple(first)], mask[tuple(other)] = False, True
    layer.update(LayerMask.of(layer["name"], mask).to_json())
    path.write_text(json.dumps(value))
    with pytest.raises(RecipeError, match="another hash"):
        load_network(tmp_path)
    value["candidate"]["masks"]["sha256"] = Masks(
        "snl", "element", 500, tuple(LayerMask.from_json(each) for each in value["candidate"]["masks"]["layers"])
    ).digest
    path.write_text(json.dumps(value))
    with pytest.raises(RecipeError, match="outputs that were recorded"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "Snl!"}, "method"),
        ({"granularity": "pixel"}, "granularity"),
        ({"budget": 0}, "budget"),
        ({"budget": "9"}, r"Got: '9'\. Do: give the ReLUs"),
        ({"method": 3}, "Got: 3. Do: name the method"),
        ({"layers": (LayerMask.of("a", np.array([True, False])),) * 2}, "one for each call site"),
    ],
)
def test_masks_are_in_range(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Masks(**{"method": "snl", "granularity": "element", "budget": 1, **change})


@pytest.mark.parametrize("more", [{"thin": True}, {"alpha": 0.5}, {"rho": 0.5, "alpha": 0.5}])
def test_masks_go_with_no_other_channels(more: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="channels of the full network"):
        Candidate(keep=("S1",), masks=Masks("snl", "element", 1), **more)


def test_masks_of_another_network_are_refused() -> None:
    base, candidate = example()
    assert candidate.masks is not None
    wrong = LayerMask.of(candidate.masks.layers[0].name, np.array([True, False]))
    for layer in (wrong, LayerMask.of("nowhere", np.array([True, False]))):
        with pytest.raises(UsageError, match="of its shape"):
            census_of(base, Candidate(keep=candidate.keep, masks=Masks("snl", "element", 5, (layer,))))
    with pytest.raises(UsageError, match="one mask for every"):
        masked_candidate(base.census, {}, method="snl", granularity="element", budget=5)


@pytest.mark.parametrize("granularity", ["element", "channel", "layer"])
def test_what_is_kept_is_whole(granularity: str) -> None:
    base, candidate = example(1500, granularity)
    census = census_of(base, candidate)
    assert 0.7 * 1500 < census.relus <= 1500
    assert take_census(build_candidate(base, candidate), (3, 16, 16)).relus == census.relus
    assert candidate.masks is not None
    if granularity == "layer":
        assert candidate.masks.layers == () and candidate.drop
    if granularity == "channel":
        assert candidate.masks.layers
        for layer in candidate.masks.layers:
            flat = layer.array().reshape(layer.shape[0], -1)
            assert (flat.all(axis=1) | ~flat.any(axis=1)).all()


def test_fading_ends_at_the_masked_network() -> None:
    base, candidate = example()
    base.network.eval()
    images = torch.rand(2, 3, 16, 16)
    full = base.network(images)
    expected = build_candidate(base, candidate).eval()(images)
    fading = build_candidate(base, candidate, fading=True).eval()
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(fading(images), full, **close)
    set_fade(fading, 1)
    torch.testing.assert_close(fading(images), expected, **close)
    finished = finish_fading(fading)
    assert torch.equal(finished(images), expected)
    assert not any(isinstance(module, FadingReLU) for module in finished.modules())


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
    st.floats(0.01, 0.99),
    st.sampled_from(["element", "channel", "layer"]),
    st.integers(0, 1000),
)
@settings(max_examples=60)
def test_a_budget_is_met_and_spent(shapes: list[tuple[int, int]], share: float, granularity: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = {f"l{index}": random.random(shape) for index, shape in enumerate(shapes)}
    total = sum(score.size for score in scores.values())
    budget = max(1, int(share * total))
    masks = choose(scores, budget, granularity)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept <= budget
    groups = {name: {"element": 1, "channel": s.shape[1], "layer": s.size}[granularity] for name, s in scores.items()}
    unspent = budget - kept
    assert all(groups[name] > unspent for name, mask in masks.items() if not mask.all())
    if granularity == "element":
        assert kept == budget
        worst = min(scores[name][mask].min() for name, mask in masks.items() if mask.any())
        assert all((scores[name][~mask] <= worst).all() for name, mask in masks.items())
    limits = {name: int(random.integers(0, score.size + 1)) for name, score in scores.items()}
    limited = choose(scores, sum(limits.values()), "element", share=limits)
    assert {name: int(mask.sum()) for name, mask in limited.items()} == limits


def test_layers_that_would_keep_few_give_theirs_to_the_others() -> None:
    """Budget 13, half an equal part is 1.6: `b` would keep 1; `c` then keeps 2; `d` has half of its own anyway."""
    scores = {
        "a": np.linspace(0.9, 0.8, 10),
        "b": np.array([0.6, 0.0, 0.0, 0.0]),
        "c": np.array([0.5, 0.4, 0.3, 0.0]),
        "d": np.array([0.95]),
    }
    assert {name: int(mask.sum()) for name, mask in choose(scores, 13).items()} == {"a": 10, "b": 1, "c": 1, "d": 1}
    masks = choose_in_few_layers(scores, 13)
    assert masks["a"].all() and masks["d"].all() and not masks["b"].any()
    assert masks["c"].tolist() == [True, True, False, False]
    full = choose_in_few_layers({"a": scores["a"], "b": scores["b"][::-1]}, 11)  # `a` has no room for what `b` leaves
    assert full["a"].all() and full["b"].tolist() == [False, False, False, True]
    by_channel = {"a": np.ones((4, 3)), "b": np.full((8, 1), 0.5)}
    assert not choose_in_few_layers(by_channel, 13, "channel")["b"].any()
    assert choose(by_channel, 13, "channel")["b"].any()
    alone = choose_in_few_layers({name: scores[name] for name in "ad"}, 7)
    assert {name: int(mask.sum()) for name, mask in alone.items()} == {"a": 6, "d": 1}


def test_example_a_limited_number_of_layers() -> None:
    def kept(budget: int, scores: dict[str, Any], most: int | None) -> list[int]:
        return [int(mask.sum()) for mask in choose_in_few_layers(scores, budget, most_layers=most).values()]

    scores = {"a": np.linspace(0.9, 0.8, 10), "b": np.linspace(0.7, 0.6, 4), "c": np.linspace(0.59, 0.5, 4)}
    assert [kept(17, scores, most) for most in (None, 3, 2, 1)] == [[10, 4, 3], [10, 4, 3], [10, 4, 0], [10, 0, 0]]
    wide = {"wide": np.repeat([0.9, 0.1], [24, 76]), "small": np.full(9, 0.8)}
    assert kept(33, wide, None) == [24, 9]
    assert kept(33, wide, 1) == [33, 0]  # the small one has no room for 33
    assert kept(9, {"wide": np.repeat([0.9, 0.1], [5, 95]), "small": np.full(9, 0.8)}, 1) == [0, 9]
    assert kept(11, {"a": np.linspace(0.9, 0.8, 10), "b": np.linspace(0.5, 0.4, 10)}, 2) == [10, 1]  # few, not too many


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=5),
    st.floats(0.01, 0.99),
    st.integers(1, 6),
    st.integers(0, 1000),
)
@settings(max_examples=60)
def test_a_limit_of_layers_is_kept_and_binds_no_more_than_it_must(
    shapes: list[tuple[int, int]], share: float, most: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    scores = {f"l{index}": random.random(shape) for index, shape in enumerate(shapes)}
    budget = max(1, int(share * sum(score.size for score in scores.values())))
    free = choose_in_few_layers(scores, budget)
    masks = choose_in_few_layers(scores, budget, most_layers=most)
    used = [name for name, mask in masks.items() if mask.any()]
    total = sum(int(mask.sum()) for mask in masks.values())
    assert 1 <= len(used) <= most and total == min(budget, sum(scores[name].size for name in used))
    if sum(mask.any() for mask in free.values()) <= most:
        assert all(np.array_equal(masks[name], free[name]) for name in masks)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=5),
    st.floats(0.01, 0.99),
    st.sampled_from(["element", "channel", "layer"]),
    st.integers(0, 1000),
)
@settings(max_examples=60)
def test_few_layers_spend_a_budget_as_many_do(
    shapes: list[tuple[int, int]], share: float, granularity: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    scores = {f"l{index}": random.random(shape) ** index for index, shape in enumerate(shapes)}
    budget = max(1, int(share * sum(score.size for score in scores.values())))
    many, masks = choose(scores, budget, granularity), choose_in_few_layers(scores, budget, granularity)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    assert sum(kept.values()) <= budget
    assert sum(mask.any() for mask in masks.values()) <= sum(mask.any() for mask in many.values())
    few = [name for name, n in kept.items() if 0 < n < min(budget / len(scores) / 2, scores[name].size / 2)]
    if granularity == "element":
        assert sum(kept.values()) == budget
        whole = [name for name, mask in masks.items() if mask.all()]
        others = [name for name, n in kept.items() if n > 0 and name not in few and name not in whole]
        assert not few or not others or sum(n > 0 for n in kept.values()) == 1  # only where no other has room
    if granularity == "layer":
        assert all(np.array_equal(masks[name], many[name]) for name in masks)


@given(st.lists(st.tuples(st.floats(-1, 10), st.integers(1, 12)), min_size=1, max_size=7), st.integers(1, 60))
def test_whole_layers_are_the_best_set_that_fits(layers: list[tuple[float, int]], budget: int) -> None:
    values, sizes = zip(*layers, strict=True)
    found = fill(values, sizes, budget)
    subsets = [
        subset
        for count in range(len(layers) + 1)
        for subset in itertools.combinations(range(len(layers)), count)
        if sum(sizes[index] for index in subset) <= budget
    ]
    best = max(sum(max(values[index], 0) for index in subset) for subset in subsets)
    assert tuple(sorted(found)) in subsets
    assert sum(max(values[index], 0) for index in found) >= best - 1e-6
    assert fill([-np.inf] * len(sizes), sizes, budget) == set()


def test_a_budget_that_keeps_nothing() -> None:
    base, _ = example()
    smallest = smallest_budget(base.census, "layer")
    assert smallest == min(layer.size for layer in base.census.layers)
    assert smallest_budget(base.census, "element") == 1
    nothing = choose({layer.name: np.zeros(layer.shape) for layer in base.census.layers}, smallest - 1, "layer")
    with pytest.raises(UsageError, match="must keep a ReLU"):
        masked_candidate(base.census, nothing, method="snl", granularity="layer", budget=smallest - 1)
    with pytest.raises((NetworkError, UsageError)):
        census_of(base, Candidate(keep=("S9",), masks=Masks("snl", "element", 5)))
