"""Formats: widths, rings, and where rings are refreshed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from deepreduce.errors import NetworkError, RecipeError
from deepreduce.private.program import (
    Circuit,
    Concatenate,
    Convolution,
    FormatSettings,
    Gather,
    Program,
    PublicProgram,
    Reshape,
    Step,
    Sum,
    SumPool,
    Truncation,
    check_public,
    make_program,
)
from deepreduce.private.program.convert import convert
from deepreduce.private.program.fold import fold
from deepreduce.private.program.formats import range_bits, weight_fraction
from deepreduce.private.program.masking import Masking, masked_by
from deepreduce.private.ring import signed
from deepreduce.private.twin import Twin, play

from .small import Lambda, images, photographs, settle


def circuits(program: Program) -> list[tuple[str, Circuit, int, int]]:
    """Return (name, circuit, ring bits in, ring bits out) of every circuit but the arg-max."""
    public = program.public
    return [
        (step.name, step.circuit, public.tensors[step.inputs[0]].ring_bits, public.tensors[step.output].ring_bits)
        for step in public.steps[:-1]
        if step.circuit is not None
    ]


def truncations(program: Program) -> list[Step]:
    """Return the truncations."""
    return [step for step in program.public.steps if isinstance(step.op, Truncation)]


def plain(depth: int) -> nn.Module:
    """Make a network of convolutions and ReLUs in a row."""
    torch.manual_seed(0)
    layers = {f"c{i}": nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(depth)}

    def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        for name in layers:
            x = F.relu(getattr(net, name)(x))
        return net.fc(x.mean((2, 3)))

    return Lambda(run, **layers, fc=nn.Linear(8, 5))


def test_a_ring_is_the_preactivation_and_the_weight_bits_on_the_way() -> None:
    program = make_program(plain(3), images(16, 3, 8, 8), settings=FormatSettings(tolerance=1.0))
    made = circuits(program)
    assert [name for name, *_ in made] == ["net:relu", "net:relu#2", "net:relu#3"]
    for _, op, ring_in, ring_out in made:
        assert op.width == 13  # 12 bits and a sign
        assert op.tested == 8
        assert op.width + op.dropped == ring_in
        assert 16 <= ring_out <= 36  # the last one carries the sums of the pool and the logits
    # what leaves a circuit has the ring of what enters the next one
    assert made[0][3] == made[1][2]
    assert made[1][3] == made[2][2]
    check_public(program.public)


def test_the_range_comes_from_calibration_and_the_margin() -> None:
    batch = images(16, 3, 8, 8)
    for margin, more in ((1.0, 0), (2.0, 1), (8.0, 3)):
        program = make_program(plain(1), batch, settings=FormatSettings(margin=margin, tolerance=1.0))
        assert program.report is not None
        row = next(row for row in program.report.to_json()["formats"] if row["kind"] == "relu")
        assert row["seen"] * margin < row["allowed"] <= 4.002 * row["seen"] * margin
        assert bool(Twin(program).run((1.5 * batch).numpy()).outside.any()) <= (more == 0)
        assert Twin(program).run((20 * batch).numpy()).outside.any()


def test_a_value_beyond_its_range_is_noticed_by_the_twin() -> None:
    net = Lambda(lambda net, x: F.relu(10 * net.c(x)).flatten(1), c=nn.Conv2d(1, 1, 1, bias=False))
    with torch.no_grad():
        net.c.weight.fill_(1.0)
    batch = torch.rand(4, 1, 2, 2) * 0.4 + 0.1
    settings = FormatSettings(margin=1.0, equalise=False)
    twin = Twin(make_program(net, torch.cat([batch, torch.full_like(batch, 1.0)]), settings=settings))
    inside, beyond = twin.run(np.full((1, 1, 2, 2), 1.0)), twin.run(np.full((1, 1, 2, 2), 1.9))
    assert inside.outside.tolist() == [0]
    assert beyond.outside.tolist() == [4]


def test_a_residual_branch_carries_the_larger_ring_of_its_readers() -> None:
    torch.manual_seed(0)
    net = Lambda(
        lambda net, x: net.fc(F.relu(net.c2(F.relu(net.c1(y := F.relu(net.c0(x))))) + y).mean((2, 3))),
        c0=nn.Conv2d(3, 8, 3, padding=1),
        c1=nn.Conv2d(8, 8, 3, padding=1),
        c2=nn.Conv2d(8, 8, 3, padding=1),
        fc=nn.Linear(8, 5),
    )
    program = make_program(net, images(16, 3, 8, 8), settings=FormatSettings(tolerance=1.0))
    public = program.public
    joined = next(step for step in public.steps if isinstance(step.op, Sum))
    branch = next(i for i in joined.inputs if public.steps[i - 1].circuit is not None)
    readers = [step for step in public.steps if branch in step.inputs]
    needed = []
    for step in readers:
        shift = step.op.shifts[step.inputs.index(branch)] if isinstance(step.op, Sum) else 0
        assert shift > 0 or not isinstance(step.op, Sum)  # the branch is aligned by an exact left shift
        needed.append(public.tensors[step.output].ring_bits - shift)
    assert public.tensors[branch].ring_bits == max(needed)


def long_stretch() -> nn.Module:
    """Make ten convolutions in a row, which would need far more than 59 bits."""
    torch.manual_seed(0)
    layers = {f"c{i}": nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1, bias=False) for i in range(10)}

    def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        for i, name in enumerate(layers):
            x = getattr(net, name)(x)
            if i == 5:
                x = F.avg_pool2d(x, 2)
        return net.fc(F.relu(x).mean((2, 3)))

    return Lambda(run, **layers, fc=nn.Linear(16, 5))


def test_a_long_stretch_is_refreshed_where_it_is_smallest_or_merged_away() -> None:
    net = long_stretch()
    batch = photographs(8, 16)
    for merge in (False, True):
        settings = FormatSettings(merge=merge, tolerance=1.0, failure_bits=40)  # no truncation is so sure
        program = make_program(net, batch, settings=settings)
        assert max(tensor.ring_bits for tensor in program.public.tensors) <= 59
        check_public(program.public)
        refreshed = [
            step for step in program.public.steps if step.circuit is not None and step.circuit.kind == "rescale"
        ]
        assert bool(refreshed) or merge
        if not merge:
            smallest = min(program.public.tensors[step.output].size for step in refreshed)
            assert smallest == 16 * 8 * 8


def test_a_long_stretch_is_truncated_without_circuits_and_the_report_says_how_often_that_fails() -> None:
    net = long_stretch()
    program = make_program(net, photographs(8, 16), settings=FormatSettings(merge=False, tolerance=1.0))
    public, made = program.public, truncations(program)
    assert [op.kind for _, op, _, _ in circuits(program)] == ["relu"]
    assert len(made) >= 3
    assert max(tensor.ring_bits for tensor in public.tensors) <= 59
    assert program.report is not None
    rows = {row["name"]: row for row in program.report.rows}
    tensors, _ = Twin(program).trace(Twin(program).encode(photographs(8, 16).double().numpy()))
    for step in made:
        row, form = rows[step.name], public.tensors[step.inputs[0]]
        assert row["kind"] == "truncation" and row["dropped"] == step.op.dropped > 0
        values = np.abs(signed(tensors[step.inputs[0]], form.ring_bits)).astype(float)
        fails = form.size * (values.mean() + 1) / 2.0**form.ring_bits  # of one image, over the client's share
        assert 0 < fails <= 2.0**-20
        assert row["failures"] == pytest.approx(fails, rel=0.01)
    assert program.report.failures == pytest.approx(sum(rows[step.name]["failures"] for step in made))


def test_truncations_keep_more_bits_where_the_rings_have_room() -> None:
    settings = FormatSettings(merge=False, tolerance=1.0)
    program = make_program(long_stretch(), photographs(16, 8), settings=settings)
    assert program.report is not None
    rows = [row for row in program.report.rows if row["kind"] == "truncation"]
    kept = [range_bits(row["seen"], settings) + row["fraction_bits"] - settings.activation_bits for row in rows]
    assert all(0 <= more <= 4 for more in kept) and any(kept)


def test_truncations_fail_more_often_rather_than_make_way_for_circuits() -> None:
    for largest, least, most in ((59, 0.0, 2.0**-20), (47, 2.0**-20, 2.0**-16)):
        settings = FormatSettings(merge=False, tolerance=1.0, max_ring_bits=largest)
        program = make_program(long_stretch(), photographs(16, 8), settings=settings)
        assert [op.kind for _, op, _, _ in circuits(program)] == ["relu"]
        assert program.report is not None
        failures = [row["failures"] for row in program.report.rows if row["kind"] == "truncation"]
        assert least < max(failures) <= most


def test_only_shares_that_are_uniform_are_truncated() -> None:
    fresh, image = Masking(True, 2), Masking(True, 1)
    cut = masked_by(Truncation(3), [fresh], 4, ())
    assert cut == Masking(False, 2)
    assert masked_by(None, [], 1, ()) == image
    assert masked_by(Convolution((1, 1, 1, 1)), [cut], 4, ()) == Masking(True, 4)
    assert masked_by(SumPool((2, 2), (1, 1)), [fresh], 4, ()) == Masking(False, 2)
    assert masked_by(Reshape(), [fresh], 4, ()) == fresh and masked_by(Reshape(), [cut], 4, ()) == cut
    for index, uniform in (([1, 0, 1], True), ([0, -1], False)):
        assert masked_by(Gather(np.array(index, np.int32)), [fresh], 4, ()).uniform is uniform
    kept = np.arange(3, dtype=np.int32)
    assert masked_by(Circuit("relu", 8, 0), [cut], 4, ()) == Masking(True, 4)
    assert masked_by(Circuit("relu", 8, 0, kept=kept, rest_in_circuit=True), [cut], 4, ()) == Masking(True, 4)
    assert masked_by(Circuit("relu", 8, 0, kept=kept), [cut], 4, ()) == Masking(False, 6)
    assert masked_by(Circuit("relu", 8, 0, kept=kept), [fresh], 4, ()) == Masking(True, 6)
    other = Masking(True, 8)
    for inputs, shifts, uniform in (
        ([fresh, cut], (0, 0), False),  # the same mask in both
        ([fresh, fresh], (0, 0), False),
        ([fresh, fresh, other], (0, 0, 0), True),
        ([fresh, fresh, other], (0, 0, 1), False),  # multiples of two
        ([other, cut], (0, 3), True),
        ([other, cut], (3, 0), False),
    ):
        assert masked_by(Sum(shifts, (1,) * len(shifts)), inputs, 16, shifts).uniform is uniform
    for inputs, shifts, uniform in (
        ([fresh, other], (0, 0), True),
        ([fresh, cut], (0, 0), False),
        ([fresh, other], (0, 1), False),
    ):
        assert masked_by(Concatenate(0, shifts), inputs, 16, shifts) == Masking(uniform, 2 | inputs[1].sources)


def padded(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = F.avg_pool2d(F.pad(net.b(net.a(x)), (0, 0, 0, 0, 0, 8)), 2)
    return net.h(F.relu(net.g(net.f(net.e(net.d(x))))).flatten(1))


def cancelled(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = net.b(net.a(x))
    x = torch.cat([y - y, net.i(net.a(x))], 1)
    return net.h(F.relu(net.g(net.f(net.e(net.d(F.avg_pool2d(x, 2)))))).flatten(1))


@pytest.mark.parametrize("run", [padded, cancelled])
def test_shares_that_are_no_masks_are_never_truncated(run: Any) -> None:
    """Padded zeros and what cancels are zero in both shares: a truncation would fail there for every image."""
    torch.manual_seed(0)
    layers = {name: nn.Conv2d(3 if name == "a" else 8, 8, 3, padding=1) for name in "abefgi"}
    net = Lambda(run, **layers, d=nn.Conv2d(16, 8, 3, padding=1), h=nn.Linear(128, 5))
    program = make_program(net, photographs(16, 8), settings=FormatSettings(merge=False, tolerance=1.0))
    assert truncations(program)
    values = Twin(program).encode(photographs(8, 8, seed=1).double().numpy())
    right, outside = Twin(program).trace(values)
    assert not outside.any()
    logits = program.public.logits
    form = program.public.tensors[logits]
    random = np.random.default_rng(0)  # or a truncation would fail by chance, once in tens of thousands of runs
    got = play(program, values, draw=lambda shape, bits: random.integers(0, 1 << bits, shape, dtype=np.uint64))
    total = (got.server[logits] + got.client[logits]) & np.uint64((1 << form.ring_bits) - 1)
    off = signed((total - right[logits]) & np.uint64((1 << form.ring_bits) - 1), form.ring_bits)
    assert np.abs(off).max() < 0.01 * signed(right[logits], form.ring_bits).std()


def test_a_program_that_truncates_what_is_not_uniform_is_refused() -> None:
    net = Lambda(lambda net, x: net.f(F.relu(net.c(net.b(net.a(x)))).flatten(1)), f=nn.Linear(128, 4),
                 a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 8, 3, padding=1), c=nn.Conv2d(8, 8, 3, padding=1))  # fmt: skip
    settings = FormatSettings(merge=False, tolerance=1.0, weight_bits=14)
    public = make_program(net, images(16, 3, 4, 4), settings=settings).public
    first = next(step for step in public.steps if isinstance(step.op, Truncation))
    form = public.tensors[first.output]
    again = Step(Truncation(0), (first.output,), len(public.steps), "again")
    argmax = replace(public.steps[-1], output=len(public.steps) + 1)
    tensors = (*public.tensors[:-1], form, public.tensors[-1])
    with pytest.raises(RecipeError, match="may not be uniform"):
        check_public(PublicProgram(tensors, (*public.steps[:-1], again, argmax)))


def test_a_refresh_is_not_inserted_where_it_costs_more_than_it_saves() -> None:
    program = make_program(plain(3), images(16, 3, 8, 8), settings=FormatSettings(tolerance=1.0))
    assert all(op.kind == "relu" for _, op, _, _ in circuits(program))


def test_masked_layers_keep_the_rest_out_of_the_circuit_until_the_ring_is_full() -> None:
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    net = plain(6)
    names = ["net:relu", *(f"net:relu#{i}" for i in range(2, 7))]
    masks = {name: generator.random((8, 8, 8)) < 0.3 for name in names}
    batch = images(24, 3, 8, 8)
    program = make_program(net, batch, settings=FormatSettings(merge=False, tolerance=1.0), masks=masks)
    made = [op for _, op, _, _ in circuits(program) if op.kept is not None]
    assert len(made) == 6
    assert any(not op.rest_in_circuit for op in made)
    assert program.public.relus == sum(int(mask.sum()) for mask in masks.values())
    check_public(program.public)
    assert program.report is not None
    assert program.report.agreement.rms_error < 0.02 * program.report.agreement.spread


def test_relu6_becomes_relu_where_the_range_stays_below_it() -> None:
    torch.manual_seed(0)
    net = Lambda(lambda net, x: net.f(F.relu6(net.s * x).flatten(1)), f=nn.Linear(12, 3))
    for scale, count in ((4.0, 2), (0.1, 1)):
        net.s = scale
        program = make_program(net, images(16, 3, 2, 2), settings=FormatSettings(tolerance=1.0))
        assert [op.kind for _, op, _, _ in circuits(program)] == ["relu"] * count


@pytest.mark.parametrize(("scale", "tested"), [(4.0, True), (8.0, True), (1e5, False)])
def test_relu6_keeps_its_precision_behind_large_values(scale: float, tested: bool) -> None:
    """Signs are as fine as in a range of 8, however large the values are; with tables that would be too large garbled."""
    torch.manual_seed(0)
    net = Lambda(lambda net, x: net.f(F.relu6(scale * x).flatten(1)), f=nn.Linear(12, 3))
    program = make_program(net, images(16, 3, 2, 2), settings=FormatSettings(input_bits=30, tolerance=1.0))
    first, second = (op for _, op, _, _ in circuits(program)[:2])
    for op in (first, second):
        step = next(step for step in program.public.steps if step.circuit is op)
        unit = 2.0 ** -program.public.tensors[step.output].fraction_bits
        assert unit <= 8 / 2**12 and (op.tested > 0) == tested
        if tested:
            assert unit * 2 ** (op.width - op.tested) <= 16 / 2**8
    assert program.report is not None
    assert program.report.agreement.rms_error < 0.01 * program.report.agreement.spread


def test_a_ring_too_large_is_refreshed_in_a_small_tensor_too() -> None:
    """A refresh of few elements costs a message more than it saves, but without it there is no program."""
    torch.manual_seed(0)
    layers = {f"f{i}": nn.Linear(4, 4) for i in range(6)}

    def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        for name in layers:
            x = getattr(net, name)(x)
        return x

    settings = FormatSettings(merge=False, tolerance=1.0, max_ring_bits=45, failure_bits=40)
    program = make_program(Lambda(run, **layers), images(8, 1, 2, 2), settings=settings)
    assert max(tensor.ring_bits for tensor in program.public.tensors) <= 45
    assert any(op.kind == "rescale" for _, op, _, _ in circuits(program))


def test_dead_channels_take_no_bits_from_the_others() -> None:
    """Weight decay leaves half of some networks' channels at 1e-20."""
    torch.manual_seed(0)
    net = Lambda(
        lambda net, x: net.f(F.relu(net.c(x)).flatten(1)), c=nn.Conv2d(3, 8, 3, padding=1), f=nn.Linear(128, 4)
    )
    batch = images(16, 3, 4, 4)

    def bits() -> int:
        graph = convert(net, (3, 4, 4))
        fold(graph, batch.double())
        node = next(node for node in graph.order() if isinstance(node.op, Convolution))
        return weight_fraction(node, FormatSettings())

    alive = bits()
    with torch.no_grad():
        net.c.weight[::2] *= 1e-20
    assert abs(bits() - alive) <= 1
    program = make_program(net, batch)
    assert program.report is not None
    assert program.report.agreement.rms_error <= 0.01 * program.report.agreement.spread


def test_a_network_that_needs_more_bits_gets_them() -> None:
    coarse = FormatSettings(weight_bits=3, activation_bits=6, tolerance=0.003)
    program = make_program(plain(3), images(32, 3, 8, 8), settings=coarse)
    assert program.report is not None
    assert program.report.settings.weight_bits > 3
    agreement = program.report.agreement
    assert agreement.rms_error <= 0.003 * agreement.spread
    assert agreement.bound == 2 * agreement.max_error


def test_signs_get_bits_where_rounding_is_not_what_is_wrong() -> None:
    program = make_program(plain(3), images(32, 3, 8, 8), settings=FormatSettings(sign_bits=4))
    assert program.report is not None
    chosen, agreement = program.report.settings, program.report.agreement
    assert max(op.tested for _, op, _, _ in circuits(program)) > 4
    assert chosen.sign_bits == 4 and chosen.weight_bits == FormatSettings().weight_bits
    assert agreement.rms_error <= chosen.tolerance * agreement.spread


def test_a_network_that_no_bits_help_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"differ from the network's by at most.*Do: raise tolerance"):
        make_program(plain(3), images(32, 3, 8, 8), settings=FormatSettings(sign_bits=30, tolerance=1e-8))


def test_the_public_part_holds_no_weights() -> None:
    net = settle(plain(2), images(16, 3, 8, 8))
    program = make_program(net, images(16, 3, 8, 8), settings=FormatSettings(tolerance=1.0))
    weights = [step for step in program.public.steps if isinstance(step.op, Convolution)]
    assert all(step.output in program.weights for step in weights)
    public = repr(program.public)
    largest = max(int(np.abs(own.weight).max()) for own in program.weights.values() if own.weight is not None)
    assert str(largest) not in public
