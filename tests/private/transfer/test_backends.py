"""The compiled kernel and its numpy twin: the same bytes, and the bytes of the standards."""

from __future__ import annotations

import numpy as np
import pytest

from deepreduce.private.transfer import TransferError, available_backends, default_backend
from deepreduce.private.transfer._backends import get_backend

needs_kernel = pytest.mark.skipif("kernel" not in available_backends(), reason="the kernel was not built here")


def test_example() -> None:
    assert default_backend() == available_backends()[0]
    assert get_backend().name == default_backend()
    assert "numpy" in available_backends()
    with pytest.raises(TransferError, match="did you mean numpy"):
        get_backend("nump")


def test_counter_mode_of_sp_800_38a(backend: str) -> None:
    """NIST SP 800-38A, F.5.1: output blocks of CTR-AES128."""
    key = np.frombuffer(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"), dtype=np.uint8)
    nonce = np.frombuffer(bytes.fromhex("f0f1f2f3f4f5f6f7"), dtype=np.uint8)
    stream = get_backend(backend).expand(key[None], nonce[None], 0xF8F9FAFBFCFDFEFF, 4)
    assert stream.tobytes().hex() == (
        "ec8cdf7398607cb0f2d21675ea9ea1e4"
        "362b7c3c6773516318a077d7fc5073ae"
        "6a2cc3787889374fbeb4c81b17ba6c44"
        "e89c399ff0f198c6d40a31db156cabfe"
    )


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("blocks", [0, 1, 7, 8, 9, 17])
def test_expansions_agree(rows: int, blocks: int, rng: np.random.Generator) -> None:
    keys = rng.integers(0, 256, (rows, 16), dtype=np.uint8)
    nonces = rng.integers(0, 256, (rows, 8), dtype=np.uint8)
    streams = [get_backend(name).expand(keys, nonces, (1 << 62) - 3, blocks) for name in available_backends()]
    for stream in streams:
        assert stream.shape == (rows, 16 * blocks)
        assert np.array_equal(stream, streams[0])


@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 7, 8, 9, 33])
def test_transposition(backend: str, blocks: int, rng: np.random.Generator) -> None:
    rows = rng.integers(0, 256, (128, 16 * blocks), dtype=np.uint8)
    bits = np.unpackbits(rows, axis=1, bitorder="little")
    want = np.packbits(bits.T, axis=1, bitorder="little").reshape(128 * blocks, 16)
    assert np.array_equal(get_backend(backend).transpose(rows), want)


@pytest.mark.parametrize("field_bits", [1, 2, 4, 8])
@pytest.mark.parametrize("blocks", [0, 1, 2, 7, 8, 9, 1030])
def test_extensions_agree_with_the_definition(field_bits: int, blocks: int, rng: np.random.Generator) -> None:
    """Both backends against u = sum r_x, v_j = sum of the r_x whose x has bit j, written out."""
    if field_bits == 8 and blocks > 100:
        blocks = 130
    trees, leaves = 128 // field_bits, 1 << field_bits
    keys = rng.integers(0, 256, (trees, leaves, 16), dtype=np.uint8)
    nonces = rng.integers(0, 256, (trees, 8), dtype=np.uint8)
    choices = rng.integers(0, 256, (blocks, 16), dtype=np.uint8)
    delta = rng.integers(0, 256, 16, dtype=np.uint8)
    start = 12345
    streams = get_backend("numpy").expand(keys.reshape(-1, 16), nonces.repeat(leaves, axis=0), start, blocks)
    streams = streams.reshape(trees, leaves, blocks, 16)
    u = np.bitwise_xor.reduce(streams, axis=1).transpose(1, 0, 2)
    numbers = np.arange(leaves)
    v = np.stack(
        [
            np.bitwise_xor.reduce(streams[tree, (numbers >> bit) & 1 == 1], axis=0)
            for tree in range(trees)
            for bit in range(field_bits)
        ]
    ).reshape(128, 16 * blocks)
    delta_bits = np.unpackbits(delta, bitorder="little")
    for name in available_backends():
        engine = get_backend(name)
        corrections = np.full((blocks, trees, 16), 255, dtype=np.uint8)
        labels = np.full((128 * blocks, 16), 255, dtype=np.uint8)
        engine.extend_receiver(field_bits, keys, nonces, start, choices, corrections, labels)
        assert np.array_equal(corrections, u ^ choices[:, None])
        assert np.array_equal(labels, get_backend("numpy").transpose(v))

        zeros = np.full((128 * blocks, 16), 255, dtype=np.uint8)
        known = keys.copy()
        known[:, 0] = 0
        engine.extend_sender(field_bits, known, nonces, start, delta, corrections, zeros)
        per_row = corrections.transpose(1, 0, 2).reshape(trees, 16 * blocks).repeat(field_bits, axis=0)
        want = v ^ (per_row * delta_bits[:, None])
        assert np.array_equal(zeros, get_backend("numpy").transpose(want))


@needs_kernel
class TestKernelRefuses:
    """The kernel checks every length itself, whatever calls it."""

    good = (4, np.zeros((32, 16, 16), np.uint8), np.zeros((32, 8), np.uint8), 0, np.zeros((3, 16), np.uint8))
    outputs = (np.zeros((3, 32, 16), np.uint8), np.zeros((384, 16), np.uint8))

    def call(self, place: int, value: object) -> None:
        from deepreduce.private.transfer import _kernel

        arguments = [*self.good, *(out.copy() for out in self.outputs)]
        arguments[place] = value
        _kernel.extend_receiver(*arguments)

    @pytest.mark.parametrize("bits", [0, -1, 3, 5, 16, 64, 1, 2, 8])
    def test_field_bits(self, bits: int) -> None:
        with pytest.raises(ValueError, match=r"field|lengths"):
            self.call(0, bits)

    @pytest.mark.parametrize("place", [1, 2, 4, 5, 6])
    @pytest.mark.parametrize("change", [-16, -1, 1, 16])
    def test_lengths(self, place: int, change: int) -> None:
        array = (*self.good, *self.outputs)[place]
        assert isinstance(array, np.ndarray)
        with pytest.raises(ValueError, match=r"lengths|whole blocks"):
            self.call(place, np.zeros(array.size + change, dtype=np.uint8))

    @pytest.mark.parametrize("start", [-1, 1 << 64, (1 << 64) - 1])
    def test_positions(self, start: int) -> None:
        with pytest.raises((ValueError, OverflowError)):
            self.call(3, start)

    def test_types_and_read_only_outputs(self) -> None:
        with pytest.raises(TypeError):
            self.call(3, 1.5)
        with pytest.raises(TypeError):
            self.call(1, None)
        locked = self.outputs[1].copy()
        locked.flags.writeable = False
        with pytest.raises((TypeError, BufferError)):
            self.call(6, locked)
        with pytest.raises((BufferError, ValueError)):
            self.call(1, np.zeros((32, 16, 32), np.uint8)[:, :, ::2])

    def test_the_other_functions(self) -> None:
        from deepreduce.private.transfer import _kernel

        eight = np.zeros(8, np.uint8)
        key = np.zeros(16, np.uint8)
        with pytest.raises(ValueError, match="lengths"):
            _kernel.expand(key, eight, 0, np.zeros(17, np.uint8))
        with pytest.raises(ValueError, match="lengths"):
            _kernel.expand(np.zeros(0, np.uint8), np.zeros(0, np.uint8), 0, key.copy())
        with pytest.raises(ValueError, match="lengths"):
            _kernel.expand(key, key, 0, key.copy())
        with pytest.raises(ValueError, match="2048"):
            _kernel.transpose(np.zeros(2047, np.uint8), np.zeros(2047, np.uint8))
        with pytest.raises(ValueError, match="2048"):
            _kernel.transpose(np.zeros(4096, np.uint8), np.zeros(2048, np.uint8))
        state = self.good
        rows = np.zeros((3, 32, 16), np.uint8)
        with pytest.raises(ValueError, match="delta"):
            _kernel.extend_sender(4, state[1], state[2], 0, np.zeros(15, np.uint8), rows, self.outputs[1].copy())
        with pytest.raises(ValueError, match="lengths"):
            _kernel.extend_sender(4, state[1], state[2], 0, key, rows[:2], self.outputs[1].copy())


def test_without_the_kernel_the_twin_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepreduce.private.transfer import _backends

    monkeypatch.setattr(_backends, "_kernel", None)
    assert list(_backends._collect()) == ["numpy"]
