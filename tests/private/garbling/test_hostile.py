"""Wrong sizes are refused before memory is touched; wrong contents give wrong outputs and nothing worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.errors import UsageError
from deepreduce.private.circuits import Builder, Circuit, InputGroup, relu
from deepreduce.private.circuits.circuit import AND_KNOWN, BitOutput
from deepreduce.private.garbling import GarblingError, decode_bits, decode_words, evaluate, garble, mask_words
from deepreduce.private.garbling.program import compile_circuit

from .play import DELTA, TWEAK, backends, play, random_inputs, transferred

CIRCUIT = relu(6, 10)
N = 20
KERNELS = [b for b in backends() if b.name != "numpy"]


def evaluation() -> dict[str, Any]:
    played = play(CIRCUIT, random_inputs(CIRCUIT, N, 0))
    return {
        "instances": N,
        "tables": played.garbled.tables,
        "garbler_labels": played.garbler_labels,
        "evaluator_labels": played.evaluator_labels,
        "tweak": TWEAK,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("instances", 0),
        ("instances", -1),
        ("instances", N + 1),
        ("instances", 2**62),
        ("instances", 2**38 + 1),
        ("threads", 0),
        ("tables", np.zeros(N * CIRCUIT.table_bytes - 1, np.uint8)),
        ("tables", np.zeros((N, CIRCUIT.table_bytes), np.uint8)),
        ("tables", b"abc"),
        ("garbler_labels", np.zeros((N, 5, 16), np.uint8)),
        ("garbler_labels", np.zeros((N, 6, 16), np.int32)),
        ("evaluator_labels", np.zeros((N, 6, 17), np.uint8)),
    ],
)
def test_evaluation_refuses(name: str, value: Any) -> None:
    with pytest.raises(GarblingError, match=r"Got: .* Do: "):
        evaluate(CIRCUIT, **{**evaluation(), name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("delta", DELTA[:15], "16 bytes"),
        ("delta", bytes([DELTA[0] & 0xFE]) + DELTA[1:], "lowest bit 1"),
        ("delta", np.frombuffer(DELTA, np.int8), "16 bytes"),
        ("evaluator_zero_labels", np.ones((N, 6, 16), np.uint8), "lowest bit 0"),
        ("evaluator_zero_labels", np.zeros((N - 1, 6, 16), np.uint8), "shape"),
        ("instances", 0, "instances"),
    ],
)
def test_garbling_refuses(name: str, value: Any, message: str) -> None:
    zero, _ = transferred(np.zeros((N, 6), np.uint8))
    good = {"instances": N, "delta": DELTA, "tweak": TWEAK, "evaluator_zero_labels": zero}
    with pytest.raises(GarblingError, match=message) as refusal:
        garble(CIRCUIT, **{**good, name: value})  # type: ignore[arg-type]
    assert DELTA[:15].hex() not in str(refusal.value) and repr(DELTA)[2:-1] not in str(refusal.value)


def test_decoding_refuses() -> None:
    bits = np.zeros((2, 3), np.uint8)
    with pytest.raises(GarblingError, match="0 or 1"):
        decode_bits(bits + 2, bits)
    with pytest.raises(GarblingError, match="shape"):
        decode_bits(bits[:1], bits)
    words = np.zeros((2, 1), np.uint64)
    with pytest.raises(GarblingError, match="uint64"):
        decode_words(words.astype(np.int64), words, CIRCUIT)  # type: ignore[arg-type]
    with pytest.raises(GarblingError, match="uint64"):
        decode_words(words, np.zeros((2, 2), np.uint64), CIRCUIT)
    with pytest.raises(GarblingError, match=r"below 2\^bits"):
        mask_words(words, words + np.uint64(2**10), CIRCUIT)


def test_a_gate_that_claims_too_much_is_refused() -> None:
    circuit = Circuit(
        (InputGroup("garbler", "x", 2),), np.array([[AND_KNOWN, 2, 4]], np.int32), (BitOutput("o", (6,)),), ()
    )
    with pytest.raises(UsageError, match="evaluator knows"):
        compile_circuit(circuit)


def test_instances_do_not_depend_on_memory_layout() -> None:
    good = evaluation()
    expected = evaluate(CIRCUIT, **good).words
    strided = np.zeros((N, 6, 32), np.uint8)[..., ::2]
    strided[:] = good["garbler_labels"]
    unaligned = np.zeros(good["tables"].size + 1, np.uint8)[1:]
    unaligned[:] = good["tables"]
    assert np.array_equal(evaluate(CIRCUIT, **{**good, "garbler_labels": strided, "tables": unaligned}).words, expected)


def bit_circuit() -> Circuit:
    b = Builder()
    x, y = b.input("garbler", "x", 8), b.input("evaluator", "y", 8)
    b.output("out", [b.and_(b.and_(x[i], y[i]), x[(i + 1) % 8]) for i in range(8)])
    return b.build()


@pytest.mark.parametrize("backend", backends(), ids=lambda b: b.name)
@pytest.mark.parametrize("name", ["tables", "garbler_labels", "evaluator_labels"])
def test_a_flipped_bit_gives_a_wrong_word(backend: Any, name: str) -> None:
    good = evaluation()
    expected = evaluate(CIRCUIT, **good).words
    rng = np.random.default_rng(4)
    changed = 0
    for _ in range(40):
        broken = good[name].copy()
        flat = broken.reshape(-1)
        flat[rng.integers(flat.size)] ^= 1 << rng.integers(8)
        words = evaluate(CIRCUIT, **{**good, name: broken}, backend=backend).words
        wrong = np.flatnonzero((words != expected).any(axis=1))
        assert len(wrong) <= 1  # one instance at most sees it
        changed += len(wrong)
        assert (words < 2**10).all()
    # Half of the tables' bytes are not read in a given evaluation: colours choose.
    assert changed >= (10 if name == "tables" else 38)


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_random_bytes_never_crash(seed: int) -> None:
    circuit = bit_circuit()
    rng = np.random.default_rng(seed)
    instances = int(rng.integers(1, 40))
    for backend in backends():
        result = evaluate(
            circuit,
            instances=instances,
            tables=rng.integers(0, 256, instances * circuit.table_bytes, dtype=np.uint8),
            garbler_labels=rng.integers(0, 256, (instances, 8, 16), dtype=np.uint8),
            evaluator_labels=rng.integers(0, 256, (instances, 8, 16), dtype=np.uint8),
            tweak=TWEAK,
            backend=backend,
        )
        assert result.colours.shape == (instances, 8) and result.colours.max(initial=0) <= 1


@pytest.mark.skipif(not KERNELS, reason="the compiled kernel is not there")
class TestKernel:
    """The kernel's own checks, called past the Python ones."""

    @staticmethod
    def call(**changes: Any) -> None:
        from deepreduce.private.garbling import _kernel

        p = compile_circuit(CIRCUIT)
        good: dict[str, Any] = {
            "ops": p.operations,
            "weights": p.weights,
            "constants": p.constants,
            "word_bits": p.word_bits,
            "sizes": (p.slots, p.garbler_wires, p.evaluator_wires, p.output_bits),
            "instances": N,
            "first_block": 0,
            "key": bytes(16),
            "level": 1,
            "garbler_labels": np.zeros((N, 6, 16), np.uint8),
            "evaluator_labels": np.zeros((N, 6, 16), np.uint8),
            "tables": np.zeros(N * p.table_bytes, np.uint8),
            "colours": np.zeros((N, p.output_bits), np.uint8),
            "words": np.zeros((N, 1), np.uint64),
        }
        assert set(changes) <= set(good)
        _kernel.evaluate(*{**good, **changes}.values())

    def test_the_unchanged_call_works(self) -> None:
        self.call()

    @pytest.mark.parametrize("column", range(7))
    @pytest.mark.parametrize("value", [-1, -(2**31), 2**31 - 1, 2**20])
    def test_operands_out_of_range(self, column: int, value: int) -> None:
        operations = compile_circuit(CIRCUIT).operations
        for row in range(len(operations)):
            broken = operations.copy()
            broken[row, column] = value
            with pytest.raises(ValueError, match="operation"):
                self.call(ops=broken)

    def test_nothing_writes_to_slot_zero(self) -> None:
        broken = compile_circuit(CIRCUIT).operations.copy()
        broken[0, 3] = 0
        with pytest.raises(ValueError, match="out of range"):
            self.call(ops=broken)

    def test_a_factor_has_a_word_behind_its_own(self) -> None:
        broken = compile_circuit(CIRCUIT).operations.copy()
        broken[-1] = (9, 1, 0, 0, 0, 0, 0)
        with pytest.raises(ValueError, match="out of range"):
            self.call(ops=broken)

    @pytest.mark.parametrize(
        "changes",
        [
            {"ops": np.zeros(27, np.uint8)},
            {"weights": np.zeros(3, np.uint64)},
            {"constants": np.zeros(2, np.uint64)},
            {"word_bits": np.array([0], np.uint8)},
            {"word_bits": np.array([65], np.uint8)},
            {"word_bits": np.zeros(0, np.uint8)},
            {"sizes": (0, 6, 6, 0)},
            {"sizes": (2**40, 6, 6, 0)},
            {"sizes": (40, -1, 6, 0)},
            {"sizes": (40, 6, 2**62, 0)},
            {"sizes": (40, 6, 6, 1)},
            {"instances": 0},
            {"instances": -5},
            {"instances": N + 1},
            {"instances": 2**62},
            {"first_block": 2**32},
            {"key": bytes(15)},
            {"level": 3},
            {"level": -1},
            {"tables": np.zeros(3, np.uint8)},
            {"garbler_labels": np.zeros((N, 5, 16), np.uint8)},
            {"evaluator_labels": np.zeros((N, 7, 16), np.uint8)},
            {"words": np.zeros((N, 2), np.uint64)},
        ],
        ids=str,
    )
    def test_sizes_that_do_not_fit(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"\w"):
            self.call(**changes)

    def test_outputs_must_be_writable(self) -> None:
        frozen = np.zeros((N, 1), np.uint64)
        frozen.setflags(write=False)
        with pytest.raises((ValueError, TypeError, BufferError)):
            self.call(words=frozen)

    def test_the_block_counter_does_not_wrap(self) -> None:
        self.call(first_block=2**32 - 1)
        with pytest.raises(ValueError, match="range"):
            self.call(
                first_block=2**32 - 1,
                instances=65,
                garbler_labels=np.zeros((65, 6, 16), np.uint8),
                evaluator_labels=np.zeros((65, 6, 16), np.uint8),
                tables=np.zeros(65 * CIRCUIT.table_bytes, np.uint8),
                colours=np.zeros((65, 0), np.uint8),
                words=np.zeros((65, 1), np.uint64),
            )
