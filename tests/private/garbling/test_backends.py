"""AES against FIPS-197 and OpenSSL; all backends give the same bytes; the choice among them is visible and safe."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreduce.errors import MissingExtraError, UsageError
from deepreduce.private.circuits import Circuit, relu
from deepreduce.private.garbling import Backend, BackendError, _numpy, backend, describe, get_backend

from .play import NUMPY, backends, circuits, play, random_inputs

BACKENDS = pytest.mark.parametrize("which", backends(), ids=lambda b: b.name)
KERNELS = [b for b in backends() if b.name != "numpy"]
needs_kernel = pytest.mark.skipif(not KERNELS, reason="the compiled kernel is not there")

# FIPS-197 appendices B and C.1; SP 800-38A F.1.1.
VECTORS = [
    ("2b7e151628aed2a6abf7158809cf4f3c", "3243f6a8885a308d313198a2e0370734", "3925841d02dc09fbdc118597196a0b32"),
    ("000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff", "69c4e0d86a7b0430d8cdb78070b4c55a"),
    ("2b7e151628aed2a6abf7158809cf4f3c", "6bc1bee22e409f96e93d7e117393172a", "3ad77bb40d7a3660a89ecaf32466ef97"),
    ("2b7e151628aed2a6abf7158809cf4f3c", "ae2d8a571e03ac9c9eb76fac45af8e51", "f5d3d58503b9699de785895a96fdbaaf"),
]


@needs_kernel
def test_aes_of_the_standard() -> None:
    from deepreduce.private.garbling import _kernel

    for key, plain, cipher in VECTORS:
        for copies in (1, 8, 13):
            out = np.zeros(16 * copies, np.uint8)
            _kernel.encrypt(bytes.fromhex(key), bytes.fromhex(plain) * copies, out)
            assert out.tobytes() == bytes.fromhex(cipher) * copies


@needs_kernel
@given(st.binary(min_size=16, max_size=16), st.integers(0, 40), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_aes_of_openssl(key: bytes, blocks: int, seed: int) -> None:
    from deepreduce.private.garbling import _kernel

    data = np.random.default_rng(seed).bytes(16 * blocks)
    out = np.zeros(16 * blocks, np.uint8)
    _kernel.encrypt(key, data, out)
    assert out.tobytes() == Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(data)


@BACKENDS
@pytest.mark.parametrize("counter", [0, 5, 2**32 - 3, 2**63])
def test_key_stream_is_aes_of_a_counter(which: Backend, counter: int) -> None:
    out = np.zeros(16 * 11, np.uint8)
    which.keystream(bytes(range(16)), counter, out)
    blocks = b"".join((counter + i).to_bytes(16, "little") for i in range(11))
    assert out.tobytes() == Cipher(algorithms.AES(bytes(range(16))), modes.ECB()).encryptor().update(blocks)


@BACKENDS
@pytest.mark.parametrize("bits", [1, 17, 64])
def test_offset_labels(which: Backend, bits: int) -> None:
    rng = np.random.default_rng(bits)
    labels, numbers = rng.integers(0, 256, (9, bits, 16), dtype=np.uint8), rng.integers(0, 2**64, 9, dtype=np.uint64)
    delta = rng.bytes(16)
    got = labels.copy()
    which.offset_labels(got, numbers, bits, delta)
    for i, j in np.ndindex(9, bits):
        offset = np.frombuffer(delta, np.uint8) if int(numbers[i]) >> j & 1 else np.uint8(0)
        assert np.array_equal(got[i, j], labels[i, j] ^ offset)


@needs_kernel
@given(circuits(), st.integers(1, 150), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_all_backends_give_the_same_bytes(circuit: Circuit, instances: int, seed: int) -> None:
    values = random_inputs(circuit, instances, seed)
    twin = play(circuit, values, backend=NUMPY)
    for kernel in KERNELS:
        other = play(circuit, values, backend=kernel)
        assert np.array_equal(other.garbled.tables, twin.garbled.tables)
        assert np.array_equal(other.garbled.decoding, twin.garbled.decoding)
        assert np.array_equal(other.garbled.offsets, twin.garbled.offsets)
        assert np.array_equal(other.garbled.factors, twin.garbled.factors)
        assert np.array_equal(other.garbler_labels, twin.garbler_labels)
        assert np.array_equal(other.evaluated.colours, twin.evaluated.colours)
        assert np.array_equal(other.evaluated.words, twin.evaluated.words)


@needs_kernel
def test_parties_with_different_backends_understand_each_other() -> None:
    circuit = relu(17, 27)
    values = random_inputs(circuit, 40, 1)
    mixed = play(circuit, values, backend=KERNELS[0], evaluator=NUMPY)
    assert np.array_equal(mixed.outputs(circuit)["out"], play(circuit, values, backend=NUMPY).outputs(circuit)["out"])


@pytest.fixture
def forgotten() -> Iterator[None]:
    """The choice is made anew before and after."""
    for cached in (get_backend, backend._load_kernel):
        cached.cache_clear()
    yield
    for cached in (get_backend, backend._load_kernel):
        cached.cache_clear()


@pytest.mark.usefixtures("forgotten")
def test_without_the_kernel_numpy_is_chosen_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepreduce.private.garbling._kernel", None)
    monkeypatch.delattr("deepreduce.private.garbling._kernel", raising=False)
    assert get_backend().name == "numpy"
    assert describe()["backend"] == "numpy" and "not there" in describe()["kernel"]
    with pytest.raises(BackendError, match="not there"):
        get_backend("aes")


@pytest.mark.usefixtures("forgotten")
@needs_kernel
def test_a_kernel_that_computes_another_aes_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepreduce.private.garbling import _kernel

    monkeypatch.setattr(_kernel, "encrypt", lambda key, data, out: out.fill(0))
    assert get_backend().name == "numpy" and "FIPS-197" in describe()["kernel"]


@pytest.mark.usefixtures("forgotten")
@needs_kernel
def test_a_processor_without_aes_gets_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepreduce.private.garbling import _kernel

    monkeypatch.setattr(_kernel, "features", lambda: {"aes": False, "vaes": False})
    assert get_backend().name == "numpy" and "no AES" in describe()["kernel"]


@pytest.mark.usefixtures("forgotten")
def test_nothing_insecure_is_left_to_fall_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_numpy, "encrypt", lambda key, data, out: out.fill(0))
    with pytest.raises(BackendError, match="FIPS-197"):
        get_backend("numpy")

    def missing(key: bytes, data: np.ndarray, out: np.ndarray) -> None:
        raise ImportError

    monkeypatch.setattr(_numpy, "encrypt", missing)
    with pytest.raises(MissingExtraError, match=r"deepreduce\[private\]"):
        get_backend("numpy")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="backend is one of"):
        get_backend("fast")  # type: ignore[arg-type]
