"""What the server holds of a batch: pieces change nothing that is sent, and memory stays within what is stated."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from deepreduce.private.program import (
    Convolution,
    LinearEvaluator,
    Program,
    PublicProgram,
    Step,
    make_program,
    working_bytes,
)
from deepreduce.private.program.program import TensorFormat
from deepreduce.private.protocol import Layout, Material, Reveal, infer_server, make_layout, server_sections
from deepreduce.private.protocol import memory as memory_module
from deepreduce.private.protocol import online as online_module
from deepreduce.private.ring import decode, signed
from deepreduce.private.twin import Twin
from deepreduce.private.wire import Kind

from ..program.small import Lambda, images, settle
from .harness import Memory, replayed, residual, run, weight_bits


def masked() -> Program:
    """Some elements of a ReLU layer leave without a circuit, and a shortcut is read two rounds later."""
    torch.manual_seed(3)

    def forward(net: Lambda, x: torch.Tensor) -> torch.Tensor:
        x = net.relu(net.a(x))
        return net.fc((F.relu(net.b(x)) + net.short(x)).flatten(1))

    layers = {
        "a": nn.Conv2d(1, 4, 3, padding=1), "relu": nn.ReLU(), "b": nn.Conv2d(4, 4, 3, padding=1),
        "short": nn.Conv2d(4, 4, 1), "fc": nn.Linear(4 * 36, 4),
    }  # fmt: skip
    network = settle(Lambda(forward, **layers), images(64, 1, 6, 6))
    mask = np.random.default_rng(0).random((4, 6, 6)) < 0.4
    return make_program(network, images(64, 1, 6, 6), masks={"relu": mask})


class Played:
    """A channel whose client answers at random, the same in every run, and a record of what the server sends."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)
        self.sent: list[tuple[Kind, str]] = []

    def receive_into(self, kind: Kind, buffer: np.ndarray) -> None:
        for image in buffer:
            image[...] = np.frombuffer(self._generator.bytes(image.size), np.uint8)

    def send(self, kind: Kind, *parts: Any) -> None:
        body = hashlib.sha256()
        for part in parts:
            body.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        self.sent.append((kind, body.hexdigest()))


class Counted(Memory):
    """A bundle of random bytes that counts how often a section is read."""

    def __init__(self, layout: Layout, seed: int) -> None:
        super().__init__(server_sections(layout))
        generator = np.random.default_rng(seed)
        self.reads: dict[str, int] = {}
        for name, (kind, shape) in self.sections.items():
            self.write(name, 0, np.frombuffer(generator.bytes(int(np.prod(shape)) * kind.itemsize), np.uint8))
        self.data["delta"][0] |= 1

    def array(self, section: str) -> np.ndarray:
        self.reads[section] = self.reads.get(section, 0) + 1
        return super().array(section)


class Watched(LinearEvaluator):
    """Notes the images of every step."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.public, program.weights)
        self.batches: list[int] = []

    def __call__(self, step: Any, inputs: Any, **named: Any) -> Any:
        self.batches.append(len(inputs[0]))
        return super().__call__(step, inputs, **named)


def play(
    program: Program, layout: Layout, count: int, reveal: Reveal = "label"
) -> tuple[Played, list[Counted], list[int]]:
    """Run the server alone."""
    bundles = [Counted(layout, seed) for seed in range(count)]
    channel, linear = Played(), Watched(program)
    materials = [Material(number, bytes(16), bundle) for number, bundle in enumerate(bundles)]
    infer_server(channel, layout, linear, materials, reveal=reveal)  # type: ignore[arg-type]
    return channel, bundles, linear.batches


@pytest.mark.parametrize("make", [residual, masked])
@pytest.mark.parametrize("reveal", ["label", "logits"])
def test_pieces_change_no_byte_of_what_is_sent(make: Any, reveal: Reveal, monkeypatch: pytest.MonkeyPatch) -> None:
    program = make()
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    whole, _, batches = play(program, layout, 5, reveal)
    assert set(batches) == {5}
    for size in (1, 2):
        monkeypatch.setattr(memory_module.RoundMemory, "piece_images", size)
        cut, bundles, batches = play(program, layout, 5, reveal)
        assert max(batches) == size
        assert cut.sent == whole.sent
        for bundle in bundles:  # delta belongs to every unit
            assert {count for name, count in bundle.reads.items() if name != "delta"} == {1}
            used = set(bundle.reads) | {"delta"} | {f"{name}.{layout.ending.number}" for name in ("seed", "decoding")}
            assert used == set(bundle.sections)


@pytest.mark.parametrize("make", [residual, masked])
def test_pieces_give_the_logits_of_the_twin(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "PIECE_BYTES", 1)
    program = make()
    values = Twin(program).encode(images(3, *program.public.input.shape, seed=5).numpy())
    got = run(program, values, reveal="logits")
    form = program.public.tensors[program.public.logits]
    exact = signed(replayed(program, values, got.shares)[program.public.logits], form.ring_bits)
    expected = decode(exact.view(np.uint64), fraction_bits=form.fraction_bits, bits=form.ring_bits)
    assert np.array_equal(got.result.logits, expected)


def test_a_piece_is_as_large_as_its_bytes_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    program = residual()
    memory = make_layout(program.public, weight_bits=weight_bits(program)).memory
    one = memory.rounds[0]
    for size in (1, 3):
        monkeypatch.setattr(memory_module, "PIECE_BYTES", size * one.image_bytes + 1)
        assert one.piece_images == size
        pieces = [list(range(7))[piece] for piece in one.pieces(7)]
        assert [image for piece in pieces for image in piece] == list(range(7)) and max(map(len, pieces)) == size


def test_how_many_images_go_into_some_memory() -> None:
    program = residual()
    memory = make_layout(program.public, weight_bits=weight_bits(program)).memory
    for limit in (memory.of(1), memory.of(9), memory.of(9) + memory.held_bytes // 2, memory.of(5000)):
        count = memory.images(limit)
        assert memory.of(count) <= limit < memory.of(count + 1)
    assert memory.images(1) == 1  # one image is always served
    assert memory.of(200_001) - memory.of(200_000) == memory.held_bytes  # beyond a piece nothing else grows


def test_what_is_held_is_what_is_read_later() -> None:
    """By hand: the input; ReLUs, whose questions lie where they will; what the last ones give."""
    torch.manual_seed(1)
    layers = {"a": nn.Conv2d(3, 8, 3, padding=1), "b": nn.Conv2d(8, 2, 3, padding=1), "fc": nn.Linear(128, 4)}
    network = Lambda(lambda net, x: net.fc(F.relu(net.b(F.relu(net.a(x)))).flatten(1)), **layers)
    program = make_program(settle(network, images(32, 3, 8, 8)), images(32, 3, 8, 8))
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    tensors = program.public.tensors
    steps = [one.circuits[0] for one in layout.rounds]
    assert len(steps) == 2 and all(step.circuit is not None and step.circuit.tested for step in steps)
    words = [sum(unit.words_bytes for unit in one.units) for one in layout.rounds]
    sizes = [tensors[step.output].size for step in steps]
    bits = [tensors[tensor].ring_bits for tensor in (0, *(step.output for step in steps))]
    assert all(16 < each <= 32 for each in bits)
    image, (first, second) = tensors[0].size, sizes  # four bytes for each element, and one beside a question
    expected = [4 * image + 5 * first, 5 * first + words[0], 4 * first + 5 * second, 5 * second + words[1]]
    assert layout.memory.held_bytes == max(expected)
    assert not any(one.keeps or one.rest for one in (*layout.memory.rounds, layout.memory.tail))
    around = make_layout(masked().public, weight_bits=12).memory
    assert around.rounds[0].rest and around.rounds[1].keeps


def peak_bytes() -> tuple[int, int]:
    """Return the largest resident size since it was last reset, and the present one."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak, now = (int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS"))
    return peak, now


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells the peak of a stretch of work"
)
def test_the_memory_of_64_images_stays_within_what_is_stated() -> None:
    """A layer of 5x5 taps, whose columns alone would take 210 MB."""
    torch.manual_seed(0)

    def forward(net: Lambda, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(net.b(F.relu(net.a(x))))
        return net.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    layers = {"a": nn.Conv2d(3, 16, 1), "b": nn.Conv2d(16, 16, 5, padding=2), "fc": nn.Linear(16, 10)}
    program = make_program(settle(Lambda(forward, **layers), images(16, 3, 32, 32)), images(16, 3, 32, 32))
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    bundles = [Counted(layout, seed) for seed in range(64)]
    materials = [Material(number, bytes(16), bundle) for number, bundle in enumerate(bundles)]
    linear, one = LinearEvaluator(program.public, program.weights), materials[:1]
    infer_server(Played(), layout, linear, one)  # type: ignore[arg-type] # what is made once is made now
    Path("/proc/self/clear_refs").write_text("5")
    _, before = peak_bytes()
    infer_server(Played(), layout, linear, materials)  # type: ignore[arg-type]
    after, _ = peak_bytes()
    most, kept_by_the_allocator = layout.memory.of(64), 64 << 20
    assert most < 80 << 20
    assert after - before < most + kept_by_the_allocator


@pytest.mark.parametrize("reveal", ["label", "logits"])
def test_freed_memory_goes_back_after_every_so_much_work(reveal: Reveal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the gaps that pieces leave in the heap add up to what the whole batch would take."""
    program = residual()
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    monkeypatch.setattr(memory_module.RoundMemory, "piece_images", 2)
    stretches = [*layout.memory.rounds, layout.memory.tail]
    for limit in (1, stretches[0].image_bytes * 3, sum(one.image_bytes for one in stretches) * 5 + 1):
        calls: list[int] = []
        monkeypatch.setattr(online_module, "give_back", lambda calls=calls: calls.append(1))
        monkeypatch.setattr(online_module, "KEPT_BYTES", limit)
        play(program, layout, 5, reveal)
        expected = freed = 0
        for one in stretches:
            for count in (2, 2, 1):
                freed += count * one.image_bytes
                if freed >= limit:
                    expected, freed = expected + 1, 0
        assert len(calls) == expected
    assert expected == 0


@pytest.mark.skipif(memory_module._trim() is None, reason="the allocator keeps what it likes")
def test_gaps_in_the_heap_go_back_to_the_system() -> None:
    blocks = [np.ones(100_000, np.uint8) for _ in range(400)]  # from the heap, whatever was freed before
    for number in range(0, 400, 2):
        blocks[number] = np.ones(1, np.uint8)
    _, before = peak_bytes()
    memory_module.give_back()
    _, after = peak_bytes()
    assert before - after > 10 << 20
    assert all(block.all() for block in blocks)


def test_the_working_memory_counts_padding_and_groups() -> None:
    """A layer that is padded unevenly is copied; PyTorch makes one output per group, then joins them."""
    op = Convolution((64, 1, 4, 4), padding=(2, 1, 2, 1), groups=64)
    image = TensorFormat((64, 4, 4), 0, 30)
    public = PublicProgram((image, image), (Step(op, (0,), 1, "depthwise"),))
    words = 64 * 16
    assert working_bytes(public, public.steps[0]) >= 8 * (3 * words + 64 * 7 * 7 + 2 * words)


def test_the_working_memory_counts_a_copy_for_each_limb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel computes in float64, numbers of 62 bits lie there in four limbs."""
    op = Convolution((8, 256, 1, 1))
    image, output = TensorFormat((256, 64, 64), 0, 62), TensorFormat((8, 64, 64), 0, 62)
    public = PublicProgram((image, output), (Step(op, (0,), 1, "narrow"),))
    found = {}
    for backend in ("avx512", "fma"):
        monkeypatch.setattr("deepreduce.private.program.evaluate.default_backend", lambda backend=backend: backend)
        found[backend] = working_bytes(public, public.steps[0])
    assert found["fma"] - found["avx512"] == 8 * 3 * 256 * 64 * 64


def test_the_working_memory_of_a_convolution_counts_its_columns() -> None:
    program = residual()
    step = next(step for step in program.public.steps if step.weighted)
    inputs, outputs = (program.public.tensors[one].size for one in (step.inputs[0], step.output))
    columns = 3 * 3 * 3 * 64  # taps of three channels for each of 8x8 places
    assert working_bytes(program.public, step) >= 8 * (inputs + columns + 2 * outputs)
