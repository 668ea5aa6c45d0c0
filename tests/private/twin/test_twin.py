"""The twin against the float network, and against both parties' shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.datasets import load_digits
from torch import nn

from deepreduce.errors import DataError
from deepreduce.networks import REFERENCE, NetworkSpec
from deepreduce.private.program import (
    Circuit,
    FormatSettings,
    Program,
    Truncation,
    check_public,
    circuit_function,
    make_program,
)
from deepreduce.private.ring import random_words, signed, unsigned
from deepreduce.private.twin import Twin, play
from deepreduce.private.twin.play import Draw
from deepreduce.reduction import Candidate, build_candidate, make_base

from ..program.small import Lambda, images, photographs, reference, settle


class Digits(nn.Module):
    """A small residual network for the handwritten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.c2, self.b2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.b1(self.c1(x)))
        x = F.max_pool2d(F.relu(self.b2(self.c2(x)) + x), 2)
        return self.fc(F.avg_pool2d(x, 2).flatten(1))


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, torch.Tensor, np.ndarray]:
    torch.manual_seed(0)
    data = load_digits()
    x = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    y = torch.from_numpy(data.target)
    net = Digits()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for step in range(60):
        rows = torch.randint(0, 1300, (128,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net.eval(), x, data.target


@pytest.fixture(scope="module")
def trained(digits: tuple[nn.Module, torch.Tensor, np.ndarray]) -> Program:
    net, x, _ = digits
    return make_program(net, x[:200])


def test_a_trained_network_gives_the_same_digits(
    digits: tuple[nn.Module, torch.Tensor, np.ndarray], trained: Program
) -> None:
    net, x, target = digits
    test = x[1300:]
    expected = reference(net, test)
    assert (expected.argmax(1) == target[1300:]).mean() > 0.85
    got = Twin(trained).run(test.numpy())
    assert not got.outside.any()
    assert (got.labels == expected.argmax(1)).mean() >= 0.995
    assert trained.report is not None
    assert np.abs(got.logits - expected).max() <= trained.report.agreement.bound


def test_recorded_shares_replay_a_run_bit_by_bit(
    digits: tuple[nn.Module, torch.Tensor, np.ndarray], trained: Program
) -> None:
    _, x, _ = digits
    twin = Twin(trained)
    values = twin.encode(x[:20].numpy())
    run = play(trained, values)
    tensors, _ = twin.trace(values, client_shares=run.client)
    for number, form in enumerate(trained.public.tensors[:-1]):
        total = (run.server[number] + run.client[number]) & np.uint64((1 << form.ring_bits) - 1)
        assert np.array_equal(total, tensors[number])
    assert np.array_equal(twin.run(x[:20].numpy(), client_shares=run.client).labels, run.labels.astype(np.int64))
    again = play(trained, values)
    logits = trained.public.logits
    assert not np.array_equal(again.client[logits], run.client[logits])
    other, _ = twin.trace(values, client_shares=again.client)
    assert not np.array_equal(other[logits], tensors[logits])  # other masks round otherwise


def test_without_shares_a_tensor_is_within_one_unit_of_any_run(trained: Program) -> None:
    """Up to the first circuit the two differ by rounding alone; a ReLU may take numbers near zero for others."""
    twin = Twin(trained)
    values = random_words((4, 1, 8, 8), 6)
    run = play(trained, values)
    nearest, _ = twin.trace(values)
    replayed, _ = twin.trace(values, client_shares=run.client)
    first = next(step for step in trained.public.steps if step.circuit is not None)
    k = trained.public.tensors[first.output].ring_bits
    assert first.circuit is not None and first.circuit.tested
    one, other = (signed(tensors[first.output], k) for tensors in (nearest, replayed))
    half = 1 << (first.circuit.width - first.circuit.tested) >> 1
    near = (np.abs(one) <= half) & (np.abs(other) <= half)
    assert np.abs(one - other)[~near].max() == 1
    assert 0 < near.mean() < 0.1 + np.mean(one == 0)


def test_without_shares_signs_are_as_uncertain_as_with_them(trained: Program) -> None:
    """An image's answer does not depend on what else is in the batch, and numbers near zero are cut or pass."""
    twin, values = Twin(trained), random_words((8, 1, 8, 8), 6)
    together, _ = twin.trace(values)
    first = next(step for step in trained.public.steps if step.circuit is not None)
    for index in range(8):
        alone, _ = twin.trace(values[index : index + 1])
        assert np.array_equal(alone[first.output][0], together[first.output][index])
    found, _ = twin.trace(values, client_shares=play(trained, values).client)
    k = trained.public.tensors[first.output].ring_bits
    passed = [np.mean(signed(tensors[first.output], k) < 0) for tensors in (together, found)]
    assert min(passed) > 0 and max(passed) < 4 * min(passed)


def test_play_gives_shares_that_look_uniform(trained: Program) -> None:
    """The server's share of every tensor that has a fresh mask covers its ring evenly."""
    values = Twin(trained).encode(np.zeros((200, 1, 8, 8)))
    run = play(trained, values)
    for number, step in enumerate(trained.public.steps[:-1], 1):
        if step.weighted or step.circuit is not None:
            k = trained.public.tensors[number].ring_bits
            top = (run.server[number] >> np.uint64(k - 4)).reshape(-1)
            counts = np.bincount(top.astype(np.int64), minlength=16)
            expected = len(top) / 16
            assert ((counts - expected) ** 2 / expected).sum() < 100  # chi squared, 15 degrees: 1e-14


def test_a_missing_share_is_named(trained: Program) -> None:
    with pytest.raises(DataError, match="record the client's share"):
        Twin(trained).run(np.zeros((1, 1, 8, 8)), client_shares={})


def test_images_of_another_shape_or_range(trained: Program) -> None:
    with pytest.raises(DataError, match="shape"):
        Twin(trained).run(np.zeros((1, 1, 8, 9)))
    with pytest.raises(DataError, match="lies within"):
        Twin(trained).run(np.full((1, 1, 8, 8), 1e6))


def test_masks_and_every_kind_of_circuit_replay() -> None:
    torch.manual_seed(0)
    net = Lambda(
        lambda net, x: net.f(
            F.max_pool2d(F.relu6(4 * net.c2(F.max_pool2d(net.c1(F.relu(net.c0(x))), 2))), 2).flatten(1)
        ),
        c0=nn.Conv2d(3, 4, 3, padding=1),
        c1=nn.Conv2d(4, 4, 3, padding=1),
        c2=nn.Conv2d(4, 4, 3, padding=1),
        f=nn.Linear(16, 5),
    )
    mask = np.random.default_rng(0).random((4, 8, 8)) < 0.4
    batch = images(16, 3, 8, 8)
    program = make_program(net, batch, settings=FormatSettings(tolerance=1.0), masks={"net:relu": mask})
    kinds = {step.circuit.kind for step in program.public.steps if step.circuit is not None}
    assert kinds == {"relu", "argmax"}
    twin = Twin(program)
    for rest in (False, True):
        changed = program.public
        if rest:  # the same program with the rest of the masked layer in the circuit
            from dataclasses import replace

            steps = tuple(
                replace(s, op=replace(s.circuit, rest_in_circuit=True))
                if s.circuit is not None and s.circuit.kept is not None
                else s
                for s in program.public.steps
            )
            changed = replace(program.public, steps=steps)
            check_public(changed)
        own = Program(changed, program.weights)
        values = twin.encode(batch.numpy())
        run = play(own, values)
        tensors, outside = Twin(own).trace(values, client_shares=run.client)
        assert not outside.any()
        assert np.array_equal(tensors[len(changed.steps)][:, 0], run.labels)


def stretch(**settings: float) -> tuple[Program, np.ndarray]:
    """Return a program with truncations, and encoded images."""
    torch.manual_seed(0)
    layers = {f"c{i}": nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(6)}

    def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        for name in layers:
            x = getattr(net, name)(x)
        return net.fc(F.relu(x).mean((2, 3)))

    net = Lambda(run, **layers, fc=nn.Linear(8, 5))
    program = make_program(net, photographs(16, 8), settings=FormatSettings(merge=False, tolerance=1.0, **settings))
    assert any(isinstance(step.op, Truncation) for step in program.public.steps)
    return program, Twin(program).encode(photographs(8, 8, seed=1).double().numpy())


def drawn(seed: int = 0) -> Draw:
    """Masks that come again: truncations fail for some, once in tens of thousands of runs."""
    random = np.random.default_rng(seed)
    return lambda shape, bits: random.integers(0, 1 << bits, shape, dtype=np.uint64)


def test_truncated_shares_replay_bit_by_bit() -> None:
    program, values = stretch()
    run, twin = play(program, values, draw=drawn()), Twin(program)
    tensors, outside = twin.trace(values, client_shares=run.client)
    nearest, _ = twin.trace(values)
    assert not outside.any()
    for number, form in enumerate(program.public.tensors[:-1]):
        total = (run.server[number] + run.client[number]) & np.uint64((1 << form.ring_bits) - 1)
        assert np.array_equal(total, tensors[number])
    first = next(step for step in program.public.steps if isinstance(step.op, Truncation))
    bits = program.public.tensors[first.output].ring_bits
    off = signed((tensors[first.output] - nearest[first.output]) & np.uint64((1 << bits) - 1), bits)
    assert set(np.unique(off)) == {-1, 0, 1}


def test_a_truncation_that_fails_replays_too_and_is_grossly_wrong() -> None:
    """The client's share of one element is a small number: one of the few for which its value, above it, is lost."""
    program, values = stretch()
    first = next(step for step in program.public.steps if isinstance(step.op, Truncation))
    form = program.public.tensors[first.inputs[0]]
    right, _ = Twin(program).trace(values)
    positive = int(np.argmax(signed(right[first.inputs[0]], form.ring_bits)))
    run = play(program, values, draw=drawn())
    run.client[first.inputs[0]].reshape(-1)[positive] = 1  # the replay looks at shares alone
    wrong, _ = Twin(program).trace(values, client_shares=run.client)
    bits = program.public.tensors[first.output].ring_bits
    off = signed((wrong[first.output] - right[first.output]) & np.uint64((1 << bits) - 1), bits).reshape(-1)
    step = 1 << (form.ring_bits - first.op.dropped)
    assert abs(abs(int(off[positive])) - step % (1 << bits)) <= 1 or step % (1 << bits) == 0
    assert np.abs(np.delete(off, positive)).max() == 1
    assert bits > form.ring_bits - first.op.dropped  # or nothing could fail


def test_values_beyond_the_ring_of_a_truncation_are_counted() -> None:
    from deepreduce.private.program import PublicProgram, Reshape, Step, Sum, TensorFormat

    forms = [TensorFormat((1, 1, 2), 3, 34), *[TensorFormat((2,), 3, 34)] * 2, TensorFormat((2,), 1, 40)]
    steps = (
        Step(Reshape(), (0,), 1, "flat"),
        Step(Sum((0, 0), (1, 1)), (1, 1), 2, "twice"),
        Step(Truncation(2), (2,), 3, "truncation"),
        Step(Circuit("argmax", 40, 0), (3,), 4, "argmax"),
    )
    twin = Twin(Program(PublicProgram((*forms, TensorFormat((1,), 0, 1)), steps), {}))
    values = unsigned(np.array([[[[5, 7]]], [[[5, 1 << 32]]], [[[-(1 << 32) - 1, 1 << 32]]]]), 34)
    assert twin.trace(values)[1].tolist() == [0, 1, 2]


def test_circuits_on_boundary_values() -> None:
    t = np.array([[-8, -1, 0, 1, 5, 7]])
    cases = {
        "relu": [0, 0, 0, 1, 5, 7],
        "rescale": [-8, -1, 0, 1, 5, 7],
        "argmax": [5],
    }
    for kind, expected in cases.items():
        op = Circuit(kind, 4, 0)
        assert circuit_function(op, t)[0].tolist() == expected
    assert circuit_function(Circuit("argmax", 4, 0), np.array([[3, 7, 7]]))[0].tolist() == [1]


def test_a_relu_at_the_edges_of_its_range() -> None:
    """The largest and smallest value of the width come out right for every share of the client."""
    op = Circuit("relu", 5, 3)
    from deepreduce.private.program import PublicProgram, Reshape, Step, TensorFormat

    public = PublicProgram(
        (TensorFormat((1, 1, 2), 3, 8), TensorFormat((2,), 3, 8), TensorFormat((2,), 0, 9), TensorFormat((1,), 0, 1)),
        (
            Step(Reshape(), (0,), 1, "flat"),
            Step(op, (1,), 2, "relu"),
            Step(Circuit("argmax", 9, 0), (2,), 3, "argmax"),
        ),
    )
    check_public(public)
    twin = Twin(Program(public, {}))
    for edge, allowed in ((127 - 7, {15}), (-128, {0}), (8, {1}), (9, {1, 2}), (-1, {0})):
        values = np.repeat(unsigned(np.array([[[[edge, 0]]]]), 8), 256, axis=0)
        client = np.zeros((256, 2), dtype=np.uint64)
        client[:, 0] = np.arange(256)
        tensors, outside = twin.trace(values, client_shares={1: client, 2: np.zeros((256, 2), dtype=np.uint64)})
        assert not outside.any()
        assert set(tensors[2][:, 0].tolist()) == allowed


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_reference_networks_with_random_weights(name: str) -> None:
    torch.manual_seed(0)
    network = REFERENCE[name](input=(3, 32, 32), classes=10, alpha=0.125)
    batch = photographs(48)
    settle(network, batch)
    program = make_program(network, batch[:16])
    check_public(program.public)
    expected = reference(network, batch[16:])
    got = Twin(program).run(batch[16:].numpy())
    assert not got.outside.any()
    spread = np.sqrt(np.var(expected, axis=1).mean())
    assert np.sqrt(np.mean((got.logits - expected) ** 2)) < 0.015 * spread
    # a label may differ only where two logits are as close as the error
    top = np.sort(expected, axis=1)
    clear = top[:, -1] - top[:, -2] > 2 * np.abs(got.logits - expected).max()
    assert clear.mean() > 0.7
    assert np.array_equal(got.labels[clear], expected.argmax(1)[clear])


@pytest.mark.parametrize(
    ("name", "candidate"),
    [
        ("resnet18", Candidate(("S2", "S3"), thin=True, alpha=0.5, rho=0.5)),
        ("resnet18", Candidate(("S3", "S4"), thin=True, beta=(0.25, 0.5), collapse=True)),
        ("resnet18", Candidate(("S3", "S4"), thin=True, beta=(0.25, 1.0), trim=(1, 1))),
        ("resnet18", Candidate(("S3", "S4"), thin=True, beta=(0.25, 1.0), trim=(1, 1), bypass=True)),
        ("resnet34", Candidate(("S3",))),
        ("vgg16", Candidate(("S1", "S2", "S3"), thin=True)),
        ("mobilenet_v1", Candidate(("S2", "S4"), thin=True)),
        ("wide_resnet_22_8", Candidate(("S2", "S3"), rho=0.5)),
    ],
)
def test_reduced_networks(name: str, candidate: Candidate) -> None:
    torch.manual_seed(0)
    base = make_base(NetworkSpec(name, (3, 32, 32), 10, 0.125))
    network = build_candidate(base, candidate)
    batch = photographs(24)
    settle(network, batch)
    program = make_program(network, batch[:12])
    check_public(program.public)
    assert max(tensor.ring_bits for tensor in program.public.tensors) <= 59
    expected = reference(network, batch[12:])
    got = Twin(program).run(batch[12:].numpy())
    assert np.sqrt(np.mean((got.logits - expected) ** 2)) < 0.02 * np.sqrt(np.var(expected, axis=1).mean())
    run = play(program, Twin(program).encode(batch[12:14].numpy()))
    assert np.array_equal(run.labels, Twin(program).run(batch[12:14].numpy(), client_shares=run.client).labels)
