"""The steps of the method as pure functions: criticality, culling, thinning, reshaping, the algorithm."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.census import Census, ReluLayer, Stage
from deepreduce.errors import UsageError
from deepreduce.reduction import (
    DEFAULT_EXPONENT,
    Candidate,
    Criticality,
    criticality_candidates,
    cull,
    deepreduce,
    find_reducer,
    least_critical_first,
    measure_criticality,
    reshape,
    thin,
    thinned_layers,
)


def layer(name: str, size: int, after_addition: bool = False) -> ReluLayer:
    return ReluLayer(name, "relu", (size,), 0, 0, after_addition, "")


def stage(name: str, *additions: bool, size: int = 10) -> Stage:
    """Make a stage with one ReLU layer per flag, which says whether it stands behind an addition."""
    layers = tuple(layer(f"{name}.{index}", size, flag) for index, flag in enumerate(additions))
    return Stage(name, (1, 1), layers)


def census(*relus: int) -> Census:
    """Make a census with two ReLU layers in each stage."""
    stages = tuple(stage(f"S{n}", False, True, size=size // 2) for n, size in enumerate(relus, 1))
    return Census((3, 8, 8), stages)


RESNET18 = census(327_680, 131_072, 65_536, 32_768)


def test_an_example() -> None:
    """Accuracies by which S1 is least critical, as the paper found, and the networks that follow."""
    measured = measure_criticality(RESNET18, {"S1": 0.3, "S2": 0.5, "S3": 0.6, "S4": 0.4})
    assert least_critical_first(measured) == ("S1", "S4", "S2", "S3")
    assert [candidate.id for candidate in deepreduce(RESNET18, measured)] == [
        f"{kept}{step}"
        for kept in ("S2S3S4", "S2S3", "S3")
        for step in ("", "-thin", "-thin-a0.5", "-thin-r0.5", "-thin-a0.5-r0.5")
    ]


def test_criticality_by_hand() -> None:
    """C_k = (Acc_k - min Acc) / ReLUs_k ** w, accuracies in percent."""
    measured = measure_criticality(RESNET18, {"S1": 0.3, "S2": 0.5, "S3": 0.6, "S4": 0.4})
    assert measured[0].value == 0
    assert measured[1].value == pytest.approx(20 / 131_072**0.07)
    assert measured[2].value == pytest.approx(30 / 65_536**0.07)
    assert measured[3].value == pytest.approx(10 / 32_768**0.07)
    assert DEFAULT_EXPONENT == 0.07
    assert [c.relus for c in measured] == [327_680, 131_072, 65_536, 32_768]


def test_the_exponent_weighs_the_relus() -> None:
    accuracy = {"S1": 0.6, "S2": 0.59, "S3": 0.1, "S4": 0.3}
    by_accuracy = measure_criticality(RESNET18, accuracy, exponent=0)
    assert [c.value for c in by_accuracy] == pytest.approx([50, 49, 0, 20])
    assert least_critical_first(by_accuracy)[-1] == "S1"
    assert least_critical_first(measure_criticality(RESNET18, accuracy, exponent=1))[-1] == "S4"


def test_plain_accuracies_are_carried_and_not_used() -> None:
    accuracy = dict.fromkeys(("S1", "S2", "S3", "S4"), 0.5)
    with_plain = measure_criticality(RESNET18, accuracy, accuracy_plain={"S2": 0.1})
    assert [c.accuracy_plain for c in with_plain] == [None, 0.1, None, None]
    assert [c.value for c in with_plain] == [0, 0, 0, 0]
    assert least_critical_first(with_plain) == ("S1", "S2", "S3", "S4")  # more ReLUs go first


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.floats(0, 3))
def test_the_order_of_criticality_names_every_stage_once(accuracies: list[float], exponent: float) -> None:
    accuracy = {f"S{n}": value for n, value in enumerate(accuracies, 1)}
    measured = measure_criticality(RESNET18, accuracy, exponent=exponent)
    values = {c.stage: c.value for c in measured}
    order = least_critical_first(measured)
    assert sorted(order) == ["S1", "S2", "S3", "S4"]
    assert [values[name] for name in order] == sorted(values.values())
    assert min(values.values()) == 0


@pytest.mark.parametrize("accuracy", [{}, {"S1": 0.5}, {"S1": 76.2, "S2": 0, "S3": 0, "S4": 0}])
def test_criticality_needs_every_accuracy_in_range(accuracy: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="accuracy from 0 to 1"):
        measure_criticality(RESNET18, accuracy)
    nan = dict.fromkeys(("S1", "S2", "S3", "S4"), float("nan"))
    with pytest.raises(UsageError, match="accuracy from 0 to 1"):
        measure_criticality(RESNET18, nan)


@pytest.mark.parametrize("exponent", [-0.1, float("nan"), float("inf")])
def test_the_exponent_is_in_range(exponent: float) -> None:
    with pytest.raises(UsageError, match="exponent"):
        measure_criticality(RESNET18, dict.fromkeys(("S1", "S2", "S3", "S4"), 0.5), exponent=exponent)


def test_criticality_candidates_have_one_stage_each() -> None:
    assert [c.keep for c in criticality_candidates(RESNET18)] == [("S1",), ("S2",), ("S3",), ("S4",)]
    assert all(not c.thin and c.alpha == c.rho == 1 for c in criticality_candidates(RESNET18))


def test_culling_goes_stage_by_stage() -> None:
    steps = cull(RESNET18, ("S1", "S4", "S2", "S3"))
    assert [step.keep for step in steps] == [("S2", "S3", "S4"), ("S2", "S3"), ("S3",)]
    assert cull(census(10), ("S1",)) == ()


@given(st.permutations(["S1", "S2", "S3", "S4"]))
def test_each_culling_step_removes_the_next_stage(order: list[str]) -> None:
    before = {"S1", "S2", "S3", "S4"}
    for gone, step in zip(order, cull(RESNET18, order), strict=False):
        assert before - set(step.keep) == {gone}
        assert list(step.keep) == sorted(step.keep)
        before = set(step.keep)
    assert before == {order[-1]}


@pytest.mark.parametrize("order", [("S1",), ("S1", "S2", "S3", "S9"), ("S1", "S1", "S2", "S3"), ()])
def test_culling_needs_every_stage_once(order: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="every stage once"):
        cull(RESNET18, order)


F, T = False, True
THINNED: list[tuple[str, tuple[bool, ...], tuple[int, ...]]] = [
    ("ResNet18, S2: two basic blocks", (F, T, F, T), (0, 2)),
    ("ResNet18, S1: the stem and two blocks", (F, F, T, F, T), (1, 3)),
    ("ResNet50: two bottlenecks", (F, F, T, F, F, T), (1, 4)),
    ("WideResNet, S1: pre-activation", (F, F, T, F, T, F, T), (1, 3, 5)),
    ("VGG16: three layers", (F, F, F), (0, 2)),
    ("MobileNetV1: depthwise and pointwise", (F, F, F, F), (0, 2)),
    ("one layer", (F,), (0,)),
    ("one layer behind an addition", (T,), (0,)),
    ("every layer behind an addition", (T, T, T), (0, 2)),
    ("layers after the last block", (F, T, F, F, F), (0, 2, 4)),
]


@pytest.mark.parametrize(("name", "additions", "kept"), THINNED, ids=[row[0] for row in THINNED])
def test_thinning(name: str, additions: tuple[bool, ...], kept: tuple[int, ...]) -> None:
    assert thinned_layers(stage("S1", *additions)) == tuple(f"S1.{index}" for index in kept)


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_thinning_keeps_order_and_never_two_neighbours_of_a_block(additions: list[bool]) -> None:
    kept = [int(name.split(".")[1]) for name in thinned_layers(stage("S1", *additions))]
    assert kept and kept == sorted(set(kept))
    assert not any(index + 1 in kept and not additions[index] for index in kept)
    if any(not flag for flag in additions):
        assert not any(additions[index] for index in kept)


def test_thin_and_reshape_change_nothing_else() -> None:
    candidate = Candidate(keep=("S2",), drop=("x",))
    assert thin(candidate) == Candidate(keep=("S2",), thin=True, drop=("x",))
    assert reshape(candidate) == (
        Candidate(keep=("S2",), alpha=0.5, drop=("x",)),
        Candidate(keep=("S2",), rho=0.5, drop=("x",)),
        Candidate(keep=("S2",), alpha=0.5, rho=0.5, drop=("x",)),
    )
    assert reshape(candidate, [(0.25, 0.125)])[0].id.startswith("S2-a0.25-r0.125")


def test_the_algorithm_with_one_stage_thins_and_reshapes_it() -> None:
    only = census(100)
    assert [c.id for c in deepreduce(only, (Criticality("S1", 100, 0.5, None, 0.0),))] == [
        "S1-thin",
        "S1-thin-a0.5",
        "S1-thin-r0.5",
        "S1-thin-a0.5-r0.5",
    ]


def test_the_algorithm_leaves_out_a_thinning_without_effect() -> None:
    single = Census((3, 8, 8), (stage("S1", F), stage("S2", F, F)))
    measured = measure_criticality(single, {"S1": 0.9, "S2": 0.1})
    assert [c.id for c in deepreduce(single, measured)] == ["S1", "S1-a0.5", "S1-r0.5", "S1-a0.5-r0.5"]


@given(st.integers(1, 6), st.randoms(), st.lists(st.sampled_from([(0.5, 1.0), (1.0, 0.25), (0.5, 0.5)]), unique=True))
def test_the_algorithm_proposes_each_network_once(count: int, random: Any, scales: list[tuple[float, float]]) -> None:
    several = census(*(2**n for n in range(10, 10 - count, -1)))
    accuracy = {s.name: random.random() for s in several.stages}
    proposed = deepreduce(several, measure_criticality(several, accuracy), scales=scales)
    assert len({c.id for c in proposed}) == len(proposed) == max(1, count - 1) * (2 + len(scales)) - (count == 1)
    assert all(c.thin for c in proposed if (c.alpha, c.rho) != (1, 1))


def test_methods_by_name() -> None:
    assert find_reducer("deepreduce").propose is deepreduce
    with pytest.raises(UsageError, match="did you mean deepreduce"):
        find_reducer("deepreduse")
