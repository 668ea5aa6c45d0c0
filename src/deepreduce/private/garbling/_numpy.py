"""The numpy twin of the kernel, over OpenSSL's AES: the same bytes, without a compiler or AES instructions.

It runs operation after operation over all instances at once, where the kernel runs instance group after instance group.
OpenSSL's AES is constant in time on every processor that has AES instructions, and bit-sliced or vector-permuted
elsewhere; numpy's bitwise operations and masks are, too. Slower by a factor of ten and more, never weaker.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .program import (
    INVERT_A,
    INVERT_B,
    OP_AND,
    OP_AND_KNOWN,
    OP_BASE,
    OP_FACTOR,
    OP_LOAD_EVALUATOR,
    OP_LOAD_GARBLER,
    OP_OUTPUT,
    OP_SELECTED,
    OP_TERM,
    OP_XOR,
    Program,
)

BLOCK = 64
"""Instances that share their keys; equals DR_BLOCK of the kernel."""

LANES = 16
"""Instances per group of the tables' layout; equals DR_LANES of the kernel."""

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]
_Labels = NDArray[np.uint64]
"""[instances, 2]: bytes 0 to 7 of each label, then bytes 8 to 15, read in little-endian order."""


def encrypt(key: bytes, data: Bytes, out: Bytes) -> None:
    """AES-128 in ECB mode of whole blocks, by OpenSSL."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    # ECB is what "the block cipher itself" is called there; the hash around it is not ECB encryption of data.
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    out[:] = np.frombuffer(encryptor.update(data.tobytes()), np.uint8).reshape(out.shape)


def keystream(key: bytes, counter: int, out: Bytes) -> None:
    """AES-128 of counter, counter + 1, ... in bytes 0 to 7."""
    blocks = np.zeros((out.size // 16, 2), "<u8")
    blocks[:, 0] = np.arange(counter, counter + len(blocks), dtype=np.uint64)
    encrypt(key, blocks.view(np.uint8).reshape(out.shape), out)


def offset_labels(labels: Bytes, numbers: Words, bits: int, delta: bytes) -> None:
    """Add `delta` to the labels whose bit is 1, in place: `bits` labels for each of the numbers."""
    columns = (numbers.reshape(-1, 1) >> np.arange(bits, dtype=np.uint64)) & np.uint64(1)
    view = labels.reshape(-1, bits, 16)
    view ^= (np.uint8(0) - columns.astype(np.uint8))[..., None] & np.frombuffer(delta, np.uint8)


def garble(
    program: Program,
    instances: int,
    first_block: int,
    key: bytes,
    delta: bytes,
    garbler_zero: Bytes,
    evaluator_zero: Bytes,
    tables: Bytes,
    decoding: Bytes,
    offsets: Words,
) -> None:
    """Fill `tables`, `decoding` and `offsets`; see the kernel's `garble`."""
    run = _Run(program, instances, first_block, key, garbler_zero, evaluator_zero)
    d = np.frombuffer(delta, "<u8")
    sigma_d = _sigma(d[None])[0]
    zero = np.zeros(2, np.uint64)
    entries: list[Bytes] = []
    sums = np.repeat(np.uint64(0) - program.constants[None], instances, axis=0)
    base = np.zeros((2, instances), np.uint64)
    for step, row in enumerate(program.operations.tolist()):
        code, a, b, out = row[:4]
        op = code & 0xFF
        if run.moves(op, row):
            continue
        flip_a, flip_b = (d if code & INVERT_A else zero), (d if code & INVERT_B else zero)
        weight = program.weights[step]
        if op == OP_AND:
            (la, lb), lc = run.operands(row), run.slots[row[6]]
            a0, b0 = la ^ flip_a, lb ^ flip_b
            x0, y0 = _sigma(a0), _sigma(b0)
            (hx0, hx1), (hy0, hy1) = run.hash(x0, x0 ^ sigma_d), run.hash(y0, y0 ^ sigma_d)
            pa, pb = _colour_mask(a0)[:, None], _colour_mask(b0)[:, None]
            generator, evaluator = hx0 ^ hx1 ^ (pb & d), hy0 ^ hy1 ^ a0
            run.slots[out] = hx0 ^ (pa & generator) ^ hy0 ^ (pb & (evaluator ^ a0)) ^ lc
            entries += [_bytes(generator), _bytes(evaluator)]
        elif op == OP_AND_KNOWN:
            (la, lb), lc = run.operands(row), run.slots[row[6]]
            a0, y0 = la ^ flip_a, _sigma(lb ^ flip_b)
            hy0, hy1 = run.hash(y0, y0 ^ sigma_d)
            run.slots[out] = hy0 ^ lc
            entries.append(_bytes(hy0 ^ hy1 ^ a0))
        elif op == OP_OUTPUT:
            decoding[:, out] = (_colour_mask(run.slots[a] ^ flip_a) & np.uint64(1)).astype(np.uint8)
        elif op == OP_TERM:
            label = run.slots[a]
            x0 = _sigma(label ^ (_colour_mask(label)[:, None] & d))
            pads = [h[:, 0] for h in run.hash(x0, x0 ^ sigma_d)]
            drop = _colour_mask(label ^ flip_a) & weight
            entries.append(_entry(program, out, pads[0] - pads[1] + weight - drop - drop))
            sums[:, out] += pads[0] - drop
        elif op == OP_SELECTED:
            bit, selector = run.slots[a], run.slots[b]
            x = _sigma(selector ^ (_colour_mask(selector)[:, None] & d)) ^ bit ^ (_colour_mask(bit)[:, None] & d)
            pads = [h[:, 0] for h in run.hash(x, x ^ d, x ^ sigma_d, x ^ d ^ sigma_d)]
            one, chosen = _colour_mask(bit ^ flip_a), _colour_mask(selector ^ flip_b)
            for c, on in enumerate((chosen, ~chosen)):
                drop = one & on & weight
                entries.append(_entry(program, out, pads[2 * c] - pads[2 * c + 1] + (on & weight) - drop - drop))
                base[c] += pads[2 * c] - drop
        elif op == OP_BASE:
            entries.append(_entry(program, out, base[0] - base[1]))
            sums[:, out] += base[0]
            base[:] = 0
        elif op == OP_FACTOR:
            x0 = _sigma(run.slots[a] ^ flip_a)
            pads = [h[:, 0] for h in run.hash(x0, x0 ^ sigma_d)]
            sums[:, out] += pads[0]
            sums[:, out + 1] += pads[1] - pads[0]
    _put_tables(program, entries, tables, instances)
    offsets[:] = sums & _ring_masks(program)


def evaluate(
    program: Program,
    instances: int,
    first_block: int,
    key: bytes,
    garbler_labels: Bytes,
    evaluator_labels: Bytes,
    tables: Bytes,
    colours: Bytes,
    words: Words,
) -> None:
    """Fill `colours` and `words`; see the kernel's `evaluate`."""
    run = _Run(program, instances, first_block, key, garbler_labels, evaluator_labels)
    entries = iter(_take_tables(program, tables, instances))
    sums = np.zeros((instances, len(program.word_bits)), np.uint64)
    ones = ~np.uint64(0)
    for row in program.operations.tolist():
        code, a, b, out = row[:4]
        op = code & 0xFF
        if run.moves(op, row):
            continue
        if op == OP_AND:
            (la, lb), lc = run.operands(row), run.slots[row[6]]
            ((hx,), (hy,)) = run.hash(_sigma(la)), run.hash(_sigma(lb))
            generator, evaluator = _labels(next(entries)), _labels(next(entries))
            left = hx ^ (_colour_mask(la)[:, None] & generator)
            run.slots[out] = left ^ hy ^ (_colour_mask(lb)[:, None] & (evaluator ^ la)) ^ lc
        elif op == OP_AND_KNOWN:
            (la, lb), lc = run.operands(row), run.slots[row[6]]
            value = _colour_mask(lb) ^ (ones if code & INVERT_B else np.uint64(0))
            (hy,) = run.hash(_sigma(lb))
            run.slots[out] = hy ^ (value[:, None] & (_labels(next(entries)) ^ la)) ^ lc
        elif op == OP_OUTPUT:
            colours[:, out] = (run.slots[a][:, 0] & np.uint64(1)).astype(np.uint8)
        elif op == OP_TERM:
            (hx,) = run.hash(_sigma(run.slots[a]))
            sums[:, out] += hx[:, 0] + (_colour_mask(run.slots[a]) & _numbers(next(entries)))
        elif op == OP_SELECTED:
            (hx,) = run.hash(_sigma(run.slots[b]) ^ run.slots[a])
            colour, selector = _colour_mask(run.slots[a]), _colour_mask(run.slots[b])
            first, second = _numbers(next(entries)), _numbers(next(entries))
            sums[:, out] += hx[:, 0] + (colour & ((first & ~selector) | (second & selector)))
        elif op == OP_BASE:
            sums[:, out] += _colour_mask(run.slots[b]) & _numbers(next(entries))
        elif op == OP_FACTOR:
            (hx,) = run.hash(_sigma(run.slots[a]))
            sums[:, out] += hx[:, 0]
    words[:] = sums & _ring_masks(program)


class _Run:
    """The slots and the key counter of one call."""

    def __init__(
        self, program: Program, instances: int, first_block: int, key: bytes, garbler: Bytes, evaluator: Bytes
    ) -> None:
        self._garbler = garbler.view("<u8").reshape(instances, -1, 2)
        self._evaluator = evaluator.view("<u8").reshape(instances, -1, 2)
        self._instances, self._first_block, self._key = instances, first_block, np.frombuffer(key, "<u8")
        self._hash = 0
        self.slots: list[_Labels] = [np.zeros((instances, 2), np.uint64)] * program.slots  # only slot 0 is read as such

    def moves(self, op: int, row: list[int]) -> bool:
        """Do the operation if it is one that needs no key and no table."""
        if op == OP_LOAD_GARBLER:
            self.slots[row[3]] = self._garbler[:, row[1]]
        elif op == OP_LOAD_EVALUATOR:
            self.slots[row[3]] = self._evaluator[:, row[1]]
        elif op == OP_XOR:
            a, b = self.operands(row)
            self.slots[row[3]] = a ^ b
        else:
            return False
        return True

    def operands(self, row: list[int]) -> tuple[_Labels, _Labels]:
        """Both operands of a gate, each an XOR of two slots."""
        return self.slots[row[1]] ^ self.slots[row[4]], self.slots[row[2]] ^ self.slots[row[5]]

    def hash(self, *inputs: _Labels) -> list[_Labels]:
        """AES_k(x) xor x for each of the inputs, under the next key of every block of instances."""
        together = np.stack(inputs, axis=1)
        hashed = np.empty_like(together)
        for block, start in enumerate(range(0, self._instances, BLOCK)):
            key = self._key.copy()
            key[0] ^= np.uint64(self._hash | (self._first_block + block) << 32)
            part = together[start : start + BLOCK]
            encrypt(key.astype("<u8").tobytes(), _bytes(part), hashed[start : start + BLOCK].view(np.uint8).reshape(-1))
        self._hash += 1
        hashed ^= together
        return [hashed[:, i] for i in range(len(inputs))]


def _sigma(x: _Labels) -> _Labels:
    return np.stack([x[:, 1], x[:, 0] ^ x[:, 1]], axis=1)


def _colour_mask(x: _Labels) -> Words:
    """All ones where the lowest bit is 1."""
    return np.asarray(np.uint64(0) - (x[:, 0] & np.uint64(1)), np.uint64)


def _ring_masks(program: Program) -> Words:
    return ~np.uint64(0) >> (np.uint64(64) - program.word_bits.astype(np.uint64))


def _bytes(x: _Labels) -> Bytes:
    return np.ascontiguousarray(x).astype("<u8", copy=False).view(np.uint8).reshape(-1)


def _labels(entry: Bytes) -> _Labels:
    return entry.view("<u8").astype(np.uint64, copy=False)


def _numbers(entry: Bytes) -> Words:
    return entry.view("<u4" if entry.shape[1] == 4 else "<u8")[:, 0].astype(np.uint64)


def _entry_bytes(program: Program, word: int) -> int:
    return 4 if program.word_bits[word] <= 32 else 8


def _entry(program: Program, word: int, values: Words) -> Bytes:
    return values.astype("<u4" if _entry_bytes(program, word) == 4 else "<u8").view(np.uint8)


def _put_tables(program: Program, entries: list[Bytes], tables: Bytes, instances: int) -> None:
    """Lay the entries out group by group; see `garbling.h`."""
    if not entries:
        return
    whole = instances // LANES * LANES
    flat = tables.reshape(-1)
    at = 0
    by_group = flat[: whole * program.table_bytes].reshape(whole // LANES, LANES * program.table_bytes)
    rest = flat[whole * program.table_bytes :]
    rest_at = 0
    for entry in (e.reshape(instances, -1) for e in entries):
        size = LANES * entry.shape[1]
        by_group[:, at : at + size] = entry[:whole].reshape(-1, size)
        at += size
        tail = entry[whole:].reshape(-1)
        rest[rest_at : rest_at + tail.size] = tail
        rest_at += tail.size


def _take_tables(program: Program, tables: Bytes, instances: int) -> list[Bytes]:
    """The entries in the order of the operations, each [instances, bytes]; the inverse of `_put_tables`."""
    sizes: list[int] = []
    for row in program.operations.tolist():
        op, out = row[0] & 0xFF, row[3]
        if op in (OP_AND, OP_AND_KNOWN):
            sizes += [16] * (2 if op == OP_AND else 1)
        elif op in (OP_TERM, OP_SELECTED, OP_BASE):
            sizes += [_entry_bytes(program, out)] * (2 if op == OP_SELECTED else 1)
    whole = instances // LANES * LANES
    flat = tables.reshape(-1)
    by_group = flat[: whole * program.table_bytes].reshape(whole // LANES, LANES * program.table_bytes)
    rest = flat[whole * program.table_bytes :]
    entries: list[Bytes] = []
    at = rest_at = 0
    for size in sizes:
        entry = np.empty((instances, size), np.uint8)
        entry[:whole] = by_group[:, at : at + LANES * size].reshape(whole, size)
        tail = (instances - whole) * size
        entry[whole:] = rest[rest_at : rest_at + tail].reshape(-1, size)
        at, rest_at = at + LANES * size, rest_at + tail
        entries.append(entry)
    return entries
