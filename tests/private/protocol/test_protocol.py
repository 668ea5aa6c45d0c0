"""Both phases against the twin that replays the run, and every byte against the layout."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from deepreduce.errors import NetworkError
from deepreduce.private.program import FormatSettings, Program, Truncation, check_public, make_program
from deepreduce.private.protocol import GROUP_BUNDLES, make_layout, server_sections
from deepreduce.private.protocol import layout as layout_module
from deepreduce.private.ring import decode, signed
from deepreduce.private.twin import Twin
from deepreduce.private.wire import HEADER_BYTES

from ..program.small import Lambda, images, photographs, settle
from .harness import Run, replayed, residual, run, weight_bits


@pytest.fixture(scope="module")
def program() -> Program:
    return residual()


def exact_logits(program: Program, got: Run, values: np.ndarray) -> np.ndarray:
    """The logits of the twin with the masks of the run, as signed integers."""
    logits = program.public.logits
    tensors = replayed(program, values, got.shares)
    return signed(tensors[logits], program.public.tensors[logits].ring_bits)


def check(program: Program, batch: torch.Tensor) -> Run:
    """Run images privately with both endings, and hold them against the twin."""
    values = Twin(program).encode(batch.numpy())
    got = run(program, values, reveal="logits")
    exact = exact_logits(program, got, values)
    form = program.public.tensors[program.public.logits]
    assert got.result.logits is not None
    expected = decode(exact.view(np.uint64), fraction_bits=form.fraction_bits, bits=form.ring_bits)
    assert np.array_equal(got.result.logits, expected)
    labelled = run(program, values, together=2)
    assert labelled.result.logits is None
    tensors = replayed(program, values, labelled.shares)  # with its own masks: a truncation may have failed for these
    assert np.array_equal(labelled.result.labels, tensors[program.public.steps[-1].output][:, 0])
    return labelled


def test_a_batch_gives_the_logits_of_the_twin_bit_by_bit(program: Program) -> None:
    check(program, images(3, 3, 8, 8, seed=5))


@pytest.mark.parametrize("together", [2, 3, 9])
def test_bundles_that_are_prepared_together(program: Program, together: int) -> None:
    """As many as there are, or in lots, of which the last one is smaller."""
    values = Twin(program).encode(images(9, 3, 8, 8, seed=7).numpy())
    got = run(program, values, reveal="logits", together=together)
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    assert any(job.plan.images > 1 for job in layout.jobs_together(together))
    exact = exact_logits(program, got, values)
    form = program.public.tensors[program.public.logits]
    assert got.result.logits is not None
    expected = decode(exact.view(np.uint64), fraction_bits=form.fraction_bits, bits=form.ring_bits)
    assert np.array_equal(got.result.logits, expected)
    # No bundle has a share of another one's.
    for tensor, share in got.shares[0].items():
        assert share.size < 16 or len({own[tensor].tobytes() for own in got.shares}) == len(values)
    for name, (_, shape) in server_sections(layout).items():
        held = {memory.array(name).tobytes() for memory in got.server}
        assert name == "delta" or math.prod(shape) < 16 or len(held) == len(values)


@pytest.mark.parametrize("bundles", [1, 2, 7, 40])
def test_jobs_of_bundles_that_are_prepared_together(program: Program, bundles: int) -> None:
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    jobs = layout.jobs_together(bundles)
    steps = [job.step for job in jobs]
    assert list(dict.fromkeys(steps)) == [job.step for job in layout.jobs]
    for single in layout.jobs:
        covered = [number for job in jobs if job.step is single.step for number in range(bundles)[job.bundles]]
        assert covered == list(range(bundles))
        assert all(job.parameters == single.parameters for job in jobs if job.step is single.step)
    assert layout.offline_bytes(bundles) <= bundles * layout.offline_bytes()
    assert layout.jobs_together(1) == layout.jobs


@pytest.mark.parametrize("bundles", [1, 3])
@pytest.mark.parametrize("most", [1, 30_000, 1 << 20])
def test_units_go_in_groups_of_at_most_so_many_bytes(
    program: Program, bundles: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout_module, "GROUP_BYTES", most)
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    groups = list(layout.groups(bundles))
    every = [(place, unit) for place in range(bundles) for unit in layout.units]
    assert [one for group in groups for one in group] == every
    sizes = [sum(unit.prepared_bytes for _, unit in group) for group in groups]
    assert sum(sizes) == bundles * layout.units_bytes == layout.offline_bytes(bundles) - layout.linear_bytes(bundles)
    assert all(size <= most or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    many = [{place for place, _ in group} for group in layout.groups(60)]
    assert max(map(len, many)) <= GROUP_BUNDLES and set.union(*many) == set(range(60))
    firsts = [group[0][1].prepared_bytes for group in groups[1:]]  # none of three bundles was too many
    assert all(size + first > most for size, first in zip(sizes, firsts, strict=False))


@pytest.mark.parametrize("together", [1, 2])
def test_every_byte_is_in_the_layout(program: Program, together: int) -> None:
    values = Twin(program).encode(images(2, 3, 8, 8, seed=6).numpy())
    got, layout = run(program, values, together=together), make_layout(program.public, weight_bits=weight_bits(program))
    jobs = layout.jobs_together(together)
    rounds, units, frame = len(layout.rounds), layout.units, HEADER_BYTES
    client, server = got.online
    words = sum(unit.words_bytes for one in layout.rounds for unit in one.units)
    assert client.sent_bytes == 2 * (layout.input_bytes + words) + frame * (1 + rounds) == server.received_bytes
    labels = sum(unit.labels_bytes for unit in units)
    decoding = layout.ending.instances * layout.ending.circuit.output_bits
    expected = 2 * (labels + decoding + frame * len(units)) + frame
    assert client.received_bytes == expected == server.sent_bytes
    assert client.turns == rounds + 1
    client, _ = got.offline
    per_lot = sum(job.request_bytes + frame for job in jobs)
    per_bundle = sum(unit.corrections_bytes + frame for unit in units)
    looked_up = [unit for unit in units if unit.circuit is None]
    assert len(looked_up) == 5  # the first layer, and four levels of the pooling with the second
    per_bundle += sum(unit.permuting_bytes + frame for unit in looked_up)
    setup = client.sent_bytes - 2 * per_bundle - 2 // together * per_lot
    assert 0 < setup < 2_000_000  # the base transfers and the public keys
    per_lot = sum(job.answer_bytes + frame for job in jobs)
    per_bundle = sum(unit.answer_bytes + frame for unit in units) + len(b'{"number":0}') + frame
    assert client.received_bytes == 2 * per_bundle + 2 // together * per_lot + (4136 + 16 + 72 + frame) + (3112 + frame)


@pytest.mark.parametrize(("sign_bits", "activation_bits"), [(3, 12), (7, 12), (9, 12), (10, 12), (13, 8)])
def test_tables_of_other_sizes(sign_bits: int, activation_bits: int) -> None:
    """Less than a word and several, pads of several words, and signs by all bits of the inputs."""
    torch.manual_seed(1)
    network = settle(
        Lambda(
            lambda net, x: net.fc(F.relu(net.b(F.relu(net.a(x)))).flatten(1)),
            a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(4, 2, 3, padding=1),
            fc=nn.Linear(32, 4),
        ),
        images(64, 3, 4, 4),
    )
    settings = FormatSettings(sign_bits=sign_bits, activation_bits=activation_bits, tolerance=1e9)
    made = make_program(network, images(64, 3, 4, 4), settings=settings)
    tested = {step.circuit.tested for step in made.public.steps[:-1] if step.circuit is not None}
    assert tested <= {sign_bits, activation_bits + 1} and tested
    check(made, images(3, 3, 4, 4, seed=3))


def test_layers_with_tables_of_different_sizes_and_a_garbled_one() -> None:
    torch.manual_seed(1)
    network = settle(
        Lambda(
            lambda net, x: net.fc(F.relu(net.c(F.relu(net.b(F.relu(net.a(x)))))).flatten(1)),
            a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 4, 3, stride=2, padding=1),
            c=nn.Conv2d(4, 2, 3, stride=2, padding=1), fc=nn.Linear(2, 4),
        ),
        images(64, 3, 4, 4),
    )  # fmt: skip
    made = make_program(network, images(64, 3, 4, 4), settings=FormatSettings(tolerance=1e9))
    steps = list(made.public.steps)
    layers = [index for index, step in enumerate(steps[:-1]) if step.circuit is not None]
    for index, tested in zip(layers, (10, 5, 0), strict=True):
        steps[index] = replace(steps[index], op=replace(steps[index].circuit, tested=tested))
    mixed = replace(made, public=replace(made.public, steps=tuple(steps)))
    check(mixed, images(3, 3, 4, 4, seed=3))


def branches(net: Lambda, x: torch.Tensor) -> torch.Tensor:
    """ReLU6 of two kinds of input, concatenation, average pooling, and a stretch without ReLU."""
    a = F.relu6(3 * net.first(x))
    b = F.relu6(F.max_pool2d(net.second(x), 2))
    x = torch.cat([F.avg_pool2d(a, 2), b], dim=1)
    return net.last(net.third(net.depthwise(x)).flatten(1))


def test_relu6_depthwise_branches_and_long_stretches() -> None:
    torch.manual_seed(2)
    network = settle(
        Lambda(
            branches,
            first=nn.Conv2d(3, 4, 3, padding=1),
            second=nn.Conv2d(3, 4, 3, padding=1),
            depthwise=nn.Conv2d(8, 8, 3, padding=1, groups=8),
            third=nn.Conv2d(8, 6, 3, stride=2, padding=1),
            last=nn.Linear(24, 5),
        ),
        images(64, 3, 8, 8),
    )
    check(make_program(network, images(64, 3, 8, 8)), images(3, 3, 8, 8, seed=3))


def test_a_stretch_that_is_truncated() -> None:
    """Layer after layer between two ReLUs, beside a shortcut: no circuits but the ReLUs', and the twin's bits."""
    torch.manual_seed(5)
    layers = {f"c{i}": nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(5)}

    def stretch(net: Lambda, x: torch.Tensor) -> torch.Tensor:
        x = before = F.relu(net.c0(x))
        for i in range(1, 5):
            x = net.get_submodule(f"c{i}")(x)
        return net.fc(F.avg_pool2d(F.relu(x + before), 4).flatten(1))

    network = settle(Lambda(stretch, **layers, fc=nn.Linear(24, 5)), photographs(64, 8))
    made = make_program(network, photographs(64, 8), settings=FormatSettings(merge=False))
    assert any(isinstance(step.op, Truncation) for step in made.public.steps)
    assert {step.circuit.kind for step in made.public.steps if step.circuit is not None} == {"relu", "argmax"}
    check(made, photographs(3, 8, seed=3))


def plain(net: Lambda, x: torch.Tensor) -> torch.Tensor:
    return net.fc(net.relu(net.conv(x)).flatten(1))


@pytest.mark.parametrize("kept", ["all", "some", "one"])
def test_element_masks(kept: str) -> None:
    torch.manual_seed(3)
    layers = {"conv": nn.Conv2d(1, 6, 3, padding=1), "relu": nn.ReLU(), "fc": nn.Linear(6 * 36, 4)}
    network = settle(Lambda(plain, **layers), images(64, 1, 6, 6))
    mask = np.ones((6, 6, 6), bool)
    if kept != "all":
        mask = np.random.default_rng(0).random((6, 6, 6)) < (0.4 if kept == "some" else 0)
        mask[2, 3, 1] = True
    made = make_program(network, images(64, 1, 6, 6), masks={"relu": mask})
    assert made.public.relus == mask.sum()
    check(made, images(3, 1, 6, 6, seed=4))


def test_element_masks_whose_rest_goes_through_the_circuit() -> None:
    """A step with two kinds of units: ReLUs whose sign is tested, and numbers that are refreshed."""
    torch.manual_seed(3)
    layers = {"conv": nn.Conv2d(1, 6, 3, padding=1), "relu": nn.ReLU(), "fc": nn.Linear(6 * 36, 4)}
    network = settle(Lambda(plain, **layers), images(64, 1, 6, 6))
    mask = np.random.default_rng(0).random((6, 6, 6)) < 0.4
    made = make_program(network, images(64, 1, 6, 6), masks={"relu": mask})
    steps = tuple(
        replace(step, op=replace(step.op, rest_in_circuit=True)) if step.circuit and step.circuit.tested else step
        for step in made.public.steps
    )
    made = replace(made, public=replace(made.public, steps=steps))
    check_public(made.public)
    layout = make_layout(made.public, weight_bits=weight_bits(made))
    assert [unit.circuit is None for unit in layout.units] == [True, False, False]
    check(made, images(3, 1, 6, 6, seed=4))


def test_a_network_without_any_relu() -> None:
    torch.manual_seed(4)
    network = settle(Lambda(lambda net, x: net.fc(x.flatten(1)), fc=nn.Linear(48, 3)), images(64, 3, 4, 4))
    got = check(make_program(network, images(64, 3, 4, 4)), images(2, 3, 4, 4, seed=1))
    assert got.online[0].turns == 1


def test_units_are_cut_at_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepreduce.private.protocol.units.PORTION", 64)
    program = residual()
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    assert len(layout.units) > 5
    assert [unit.number for unit in layout.units] == list(range(len(layout.units)))
    check(program, images(2, 3, 8, 8, seed=8))


def test_one_class_is_refused() -> None:
    torch.manual_seed(4)
    network = settle(Lambda(lambda net, x: net.fc(x.flatten(1)), fc=nn.Linear(48, 1)), images(64, 3, 4, 4))
    with pytest.raises(NetworkError, match=r"two classes.*Got: .*Do: "):
        make_program(network, images(64, 3, 4, 4))
