"""Trees of seeds: the client knows every leaf, the server all but one."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from deepreduce.private.transfer._backends import get_backend
from deepreduce.private.transfer.trees import path_choices, plant, regrow, tree_nonces

SESSION = bytes(range(16))


def grow(keys: np.ndarray, delta: np.ndarray, field_bits: int, backend: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all leaves of the client and those of the server."""
    leaves, message = plant(keys, SESSION, field_bits, get_backend(backend))
    chosen = keys[np.arange(128), path_choices(delta, field_bits)]
    return leaves, regrow(chosen, delta, message, get_backend(backend))


def block(key: bytes, counter: bytes) -> bytes:
    """One block of AES-128 by OpenSSL."""
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counter)


@pytest.mark.parametrize("field_bits", [1, 2, 4, 8])
@pytest.mark.parametrize("pattern", ["zeros", "ones", "random"])
def test_the_server_gets_every_leaf_but_its_own(
    field_bits: int, pattern: str, backend: str, rng: np.random.Generator
) -> None:
    keys = rng.integers(0, 256, (128, 2, 16), dtype=np.uint8)
    delta = {
        "zeros": np.zeros(16, np.uint8),
        "ones": np.full(16, 255, np.uint8),
        "random": rng.integers(0, 256, 16, dtype=np.uint8),
    }[pattern]
    everything, known = grow(keys, delta, field_bits, backend)
    number = int.from_bytes(delta.tobytes(), "little")
    for tree in range(128 // field_bits):
        point = (number >> (field_bits * tree)) % (1 << field_bits)
        for y in range(1, 1 << field_bits):
            assert np.array_equal(known[tree, y], everything[tree, y ^ point])
        assert not known[tree, 0].any()
        assert everything[tree, point].tobytes() not in {leaf.tobytes() for leaf in known[tree]}
    assert len({leaf.tobytes() for leaf in everything.reshape(-1, 16)}) == everything.size // 16


def test_leaves_are_the_documented_tree(rng: np.random.Generator, backend: str) -> None:
    keys = rng.integers(0, 256, (128, 2, 16), dtype=np.uint8)
    leaves, message = plant(keys, SESSION, 4, get_backend(backend))
    tree = 5
    text = b"deepreduce tree nonce, v1\0\0\0\0\0\0\0" + SESSION + tree.to_bytes(4, "little")
    nonce = hashlib.sha256(text).digest()[:8]
    assert tree_nonces(SESSION, 32)[tree].tobytes() == nonce
    nodes = [keys[4 * tree, 0].tobytes(), keys[4 * tree, 1].tobytes()]
    for level in range(1, 4):
        nodes = [
            block(node, nonce + ((1 << 62) + 2 * level + side).to_bytes(8, "big")) for node in nodes for side in (0, 1)
        ]
        for side in (0, 1):
            total = keys[4 * tree + level, side].copy()
            for node in nodes[side::2]:
                total ^= np.frombuffer(node, dtype=np.uint8)
            assert np.array_equal(total, message.sums[tree, level - 1, side])
    assert b"".join(nodes) == leaves[tree].tobytes()


def test_nonces_differ_between_trees_and_sessions() -> None:
    both = np.concatenate([tree_nonces(SESSION, 128), tree_nonces(bytes(16), 128)])
    assert len({nonce.tobytes() for nonce in both}) == 256


def test_the_sums_alone_say_nothing(rng: np.random.Generator) -> None:
    """Each sum is masked by a base key of its own: with other base keys below the first level, other sums."""
    keys = rng.integers(0, 256, (128, 2, 16), dtype=np.uint8)
    _, message = plant(keys, SESSION, 4, get_backend())
    ones = np.unpackbits(message.sums).mean()
    assert abs(ones - 0.5) < 5 * 0.5 / np.sqrt(message.sums.size * 8)
    masked = keys.reshape(32, 4, 2, 16)[:, 1:] ^ message.sums
    # Opened, left and right sum of a level are sums of pseudorandom nodes: no two are equal.
    assert len({one.tobytes() for one in masked.reshape(-1, 16)}) == 32 * 3 * 2
