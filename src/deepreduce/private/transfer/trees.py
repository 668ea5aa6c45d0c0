"""Trees of seeds: all leaves for one party, all but one for the other (a punctured pseudorandom function).

Source: the tree of Goldreich, Goldwasser, and Micali (JACM 1986), punctured obliviously as in Doerner and shelat
(CCS 2017) and Boyle et al. (CCS 2019); SoftSpokenOT (Roy, CRYPTO 2022, ePrint 2022/192) builds its small-field VOLE
on it. Two semi-honest parties; consistency checks against malicious ones are left out.

    Ideal functionality   128/k trees of 2^k leaves; the grower (client) gets all leaves r_x of tree i; the other party
                          (server), who holds Delta_i, gets all but leaf x = Delta_i, which stays pseudorandom to it.

Tree i belongs to the k bits Delta_i of Delta, bit 0 of Delta being bit 0 of its first byte: Delta_i's bit j is bit
k i + j of Delta. The path to a leaf is its number, most significant bit first; level l of tree i uses base transfer
k i + l, for which the server chooses the complement of the path bit, the side on which it may know everything.

    1. grower   the children of the root are the two keys of the first base transfer; every other pair of children is
                PRG(parent); per level below the first, the sum (exclusive or) of all left nodes and that of all right
                nodes is masked with the two keys of this level's base transfer.                         → TreeSums
    2. server   opens one sum per level, on the side off its path, subtracts the nodes it knows, and so gets the one
                node that is missing there: the sibling of the path.

The server numbers its nodes y = x xor (path so far), so the unknown node always has y = 0. That makes every step the
same whatever Delta is: no branch, no index, and no length depends on it.

PRG is AES-128 in counter mode under the parent, two blocks, at positions of its own (2^62 + 2 level) and under the
nonce of this session and tree, so that one guess of a key cannot be tried against many trees at once.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ._backends import Backend
from ._errors import Bytes
from .messages import SECURITY, TreeSums

_DOMAIN = b"deepreduce tree nonce, v1\0\0\0\0\0\0\0"
_GROW = 1 << 62


def tree_nonces(session: bytes, trees: int) -> Bytes:
    """Return the first half of every tree's counter blocks: uint8, shape (trees, 8), public."""
    rows = [hashlib.sha256(_DOMAIN + session + index.to_bytes(4, "little")).digest()[:8] for index in range(trees)]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(trees, 8).copy()


def path_choices(delta: Bytes, field_bits: int) -> Bytes:
    """Return the server's 128 choice bits for the base transfers: the complement of each tree's path.

    Args:
        delta: uint8, shape (16,), secret.
        field_bits: k.
    """
    return np.uint8(1) ^ _paths(delta, field_bits).reshape(SECURITY)


def plant(keys: Bytes, session: bytes, field_bits: int, backend: Backend) -> tuple[Bytes, TreeSums]:
    """Step 1, grower: make all leaves, and the message that lets the peer grow all but one.

    Args:
        keys: uint8, shape (128, 2, 16), both keys of every base transfer.
        session: identifier of the set-up.
        field_bits: k, one of 1, 2, 4, 8.
        backend: computes the pseudorandom blocks.

    Returns:
        The leaves, uint8, shape (128/k, 2^k, 16), and the message.
    """
    trees = SECURITY // field_bits
    by_level = keys.reshape(trees, field_bits, 2, 16)
    nonces = tree_nonces(session, trees)
    sums = np.zeros((trees, field_bits - 1, 2, 16), dtype=np.uint8)
    nodes = by_level[:, 0].copy()
    for level in range(1, field_bits):
        children = _double(nodes, nonces, level, backend)
        sums[:, level - 1] = np.bitwise_xor.reduce(children, axis=1) ^ by_level[:, level]
        nodes = children.reshape(trees, 2 << level, 16)
    return nodes, TreeSums(session, field_bits, sums)


def regrow(keys: Bytes, delta: Bytes, message: TreeSums, backend: Backend) -> Bytes:
    """Step 2, server: make all leaves but the one at Delta_i, numbered y = x xor Delta_i.

    Args:
        keys: uint8, shape (128, 16), the keys chosen with `path_choices`.
        delta: uint8, shape (16,).
        message: the grower's message.
        backend: computes the pseudorandom blocks.

    Returns:
        uint8, shape (128/k, 2^k, 16); entry [i, y] is leaf y xor Delta_i of tree i, and entry [i, 0] is zero.
    """
    k = message.field_bits
    trees = SECURITY // k
    by_level = keys.reshape(trees, k, 16)
    nonces = tree_nonces(message.session, trees)
    on_path = _paths(delta, k) * np.uint8(255)
    nodes = np.zeros((trees, 2, 16), dtype=np.uint8)
    nodes[:, 1] = by_level[:, 0]
    for level in range(1, k):
        children = _double(nodes, nonces, level, backend)
        swap = on_path[:, level, None, None] & (children[:, :, 0] ^ children[:, :, 1])
        children ^= swap[:, :, None]
        left, right = message.sums[:, level - 1, 0], message.sums[:, level - 1, 1]
        opened = right ^ (on_path[:, level, None] & (left ^ right)) ^ by_level[:, level]
        children[:, 0, 0] = 0
        children[:, 0, 1] = opened ^ np.bitwise_xor.reduce(children[:, 1:, 1], axis=1)
        nodes = children.reshape(trees, 2 << level, 16)
    return nodes


def _paths(delta: Bytes, field_bits: int) -> Bytes:
    """Return each tree's path bits, root first: uint8, shape (128/k, k)."""
    bits = np.unpackbits(delta, bitorder="little").reshape(SECURITY // field_bits, field_bits)
    return np.ascontiguousarray(bits[:, ::-1])


def _double(nodes: Bytes, nonces: Bytes, level: int, backend: Backend) -> Bytes:
    """Return the children of all nodes of a level: uint8, shape (trees, nodes, 2, 16)."""
    trees, width, _ = nodes.shape
    blocks = backend.expand(nodes.reshape(-1, 16), np.repeat(nonces, width, axis=0), _GROW + 2 * level, 2)
    return blocks.reshape(trees, width, 2, 16)
