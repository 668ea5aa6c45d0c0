"""A layer's weights as the server multiplies by them: NTT values, computed once per model and kept in a file.

The file (mode 0600: it holds the model) is one line of JSON padded to 4,096 bytes; a table of one byte per polynomial
(0: all its weights are zero, 1: not), the CRC-32 of each polynomial's values and that of the table so far, padded to
4,096; then per polynomial the NTT values modulo each data prime, 8 bytes each. Numbers are little endian. It is mapped,
so that all workers share one copy in memory, but read once before: a wrong bit would make every answer wrong, and
nobody could see it. A file that is cut off later is noticed before the next answer. What else goes wrong on the disk
after that is found at the next start, to which a page that the disk cannot read any more leads: it ends the process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..._files import replacing, reserve
from ...errors import problem
from ._backends import Name, choose
from ._seal import seal
from .arithmetic import arithmetic
from .errors import WeightsError
from .packing import Integers, Plan, Words
from .parameters import Parameters, check_budget
from .scheme import scheme

_PAGE = 4096

log = logging.getLogger("deepreduce.server")


@dataclass(frozen=True)
class PlainWeights:
    """A layer's weights as they are, for a plan in which several images share a ciphertext.

    Attributes:
        parameters: the parameters.
        plan: the layer's plan.
        integers: the weights, as PyTorch lays them out; each has at most 32 bits with its sign.
    """

    parameters: Parameters
    plan: Plan
    integers: npt.NDArray[np.int32] = field(repr=False)


@dataclass(frozen=True)
class PreparedWeights:
    """The NTT values of a layer's weights; `prepare_weights` makes them.

    Attributes:
        parameters: the parameters.
        plan: the layer's plan.
        used: for every polynomial whether any of its weights is not zero.
        words: NTT values, shape (polynomial, data primes x N); None in a copy on its way to a worker.
        file: where the words lie, if they lie in a file.
        header: its first page, which names the weights: a worker maps no other's.
        integers: the weights themselves; None in a copy on its way to a worker.
    """

    parameters: Parameters
    plan: Plan
    used: npt.NDArray[np.uint8] = field(repr=False)
    words: Words = field(repr=False)
    file: Path | None = None
    header: bytes = field(default=b"", repr=False)
    integers: npt.NDArray[np.int32] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__) | {"integers": None}
        if self.file is not None:
            state["words"] = None  # the worker maps the file
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["words"] is None:
            state["words"] = _map(state["file"], state["header"], state["parameters"], state["plan"])
        self.__dict__.update(state)

    def check_file(self) -> None:
        """Look whether the file that is mapped has its size still: to read beyond its end would end the process.

        Raises:
            WeightsError: it has not.
        """
        mapped = getattr(self.words, "_mmap", None)
        if mapped is None:
            return
        try:
            size = mapped.size()
        except OSError as error:
            raise self.damaged(error) from error
        if size != _offset(len(self.words)) + self.words.nbytes:
            raise self.damaged("a file that was cut off, or has grown")

    def plain(self, plan: Plan) -> PlainWeights:
        """Return the same weights for a plan of several images of the same layer."""
        assert self.integers is not None  # only its owner asks
        return PlainWeights(self.parameters, plan, self.integers)

    def polynomials(self, answer: int) -> list[int]:
        """Return the numbers of the polynomials by which an answer's requests are multiplied."""
        group_tile, channel_tile, _ = self.plan.answer_place(answer)
        first = (group_tile * self.plan.channel_tiles + channel_tile) * self.plan.plane_tiles
        return [first + plane_tile for plane_tile in range(self.plan.plane_tiles)]

    def polynomial(self, number: int) -> seal.Plaintext:
        """Return one polynomial of weights for SEAL.

        Raises:
            WeightsError: a word is not below its prime.
        """
        try:
            return scheme(self.parameters).weights(self.words[number].tobytes())
        except (ValueError, RuntimeError) as error:
            raise self.damaged(error) from error

    def damaged(self, what: object) -> WeightsError:
        """Return the error for words that are not as they were prepared."""
        return WeightsError(_damaged(what, self.file))


def prepare_weights(
    parameters: Parameters, plan: Plan, weights: Integers, *, weight_bits: int, file: Path | None = None
) -> PreparedWeights:
    """Transform a layer's weights, or map the file of an earlier call with the same ones.

    A file is compared with its checksums, at more than 1 GB/s; one that is damaged is logged and made again.

    Args:
        parameters: the parameters.
        plan: the layer's plan.
        weights: integers in [-2^(w-1), 2^(w-1)): output channel, input channel of the group, row, column.
        weight_bits: w. Public.
        file: where to keep the result: 131 KB or 197 KB per polynomial. In memory by default.

    Returns:
        The prepared weights.

    Raises:
        WeightsError: a weight is out of range.
        LayerError: the weights have another shape.
        ParameterError: the parameters do not have the room to hide these weights.
        RunError: the file cannot be written.
    """
    check_budget(parameters, plan, weight_bits=weight_bits)
    weights = np.ascontiguousarray(weights, np.int64)
    limit = 1 << (weight_bits - 1)
    if weights.size and (int(weights.min()) < -limit or int(weights.max()) >= limit):
        raise WeightsError(
            problem(
                f"weights must fit into {weight_bits} bits with their sign",
                got=f"{weights.min()} to {weights.max()}",
                remedy="quantise the layer to fewer bits, or declare more",
            )
        )
    count, size = plan.weight_polynomials, parameters.degree * len(parameters.prime_bits)
    integers = weights.astype(np.int32)
    if file is None:
        words = np.zeros((count, size), np.uint64)
        used, _ = _transform(parameters, plan, weights, words)
        return PreparedWeights(parameters, plan, used, words, integers=integers)
    header = _header(parameters, plan, weights)
    known = _read(file, header, count, size)
    if known is not None:
        file.chmod(0o600)  # a copy from elsewhere may have been made with other rights
    else:
        with replacing(file, private=True) as temporary, temporary.open("r+b") as output:
            output.truncate(_offset(count) + 8 * count * size)
            reserve(output.fileno(), _offset(count) + 8 * count * size)  # a map on a full disk ends the process
            mapped = _words(temporary, count, size, "r+")
            known, checksums = _transform(parameters, plan, weights, mapped)
            mapped.flush()
            del mapped
            output.write(header + _table(known, checksums))
    return PreparedWeights(parameters, plan, known, _words(file, count, size, "r"), file, header, integers)


def _transform(
    parameters: Parameters, plan: Plan, weights: Integers, words: Words
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    """Encode and transform all polynomials of weights into `words`; return which are used, and their checksums."""
    used, checksums = np.zeros(len(words), np.uint8), np.zeros(len(words), np.uint32)
    number = 0
    for group_tile in range(plan.group_tiles):
        for channel_tile in range(plan.channel_tiles):
            for polynomial in plan.encode_weights(weights, group_tile, channel_tile):
                if polynomial.any():
                    values = transform_weights(parameters, polynomial)
                    used[number], checksums[number] = 1, zlib.crc32(values.data)
                    words[number] = values.ravel()
                number += 1
    return used, checksums


def transform_weights(parameters: Parameters, polynomial: Integers, *, backend: Name | None = None) -> Words:
    """Return the NTT values of a polynomial of weights.

    Args:
        parameters: of the encryption.
        polynomial: N integers of at most 32 bits with their sign.
        backend: which way; the default one if none is named.

    Returns:
        Shape (prime, coefficient).

    Raises:
        UsageError: the way does not run here.
    """
    if choose(backend) == "kernel":
        return arithmetic(parameters).transformed(polynomial)
    ring = np.int64((1 << parameters.ring_bits) - 1)
    values = scheme(parameters).transform((polynomial & ring).astype(np.uint64))
    return np.frombuffer(values, "<u8").reshape(-1, parameters.degree)


def _header(parameters: Parameters, plan: Plan, weights: Integers) -> bytes:
    content = {
        "format": "deepreduce weights",
        "version": 2,
        "parameters": parameters.digest.hex(),
        "plan": plan.digest.hex(),
        "weights": hashlib.sha256(weights.tobytes()).hexdigest(),
    }
    return json.dumps(content).encode().ljust(_PAGE - 1) + b"\n"


def _table(used: npt.NDArray[np.uint8], checksums: npt.NDArray[np.uint32]) -> bytes:
    content = used.tobytes() + checksums.astype("<u4").tobytes()
    return content + zlib.crc32(content).to_bytes(4, "little")


def _table_size(count: int) -> int:
    return 5 * count + 4


def _offset(count: int) -> int:
    """Return where the words begin."""
    return _PAGE + -(-_table_size(count) // _PAGE) * _PAGE


def _read(file: Path, header: bytes, count: int, size: int) -> npt.NDArray[np.uint8] | None:
    """Compare a file with its checksums; return which polynomials are used, or None if it must be made (again)."""
    if not file.is_file():
        return None
    try:
        with file.open("rb") as content:
            if content.read(_PAGE) != header:  # other weights, or a file of another release
                return None
            if os.fstat(content.fileno()).st_size != _offset(count) + 8 * count * size:
                raise ValueError("it has another size")
            table = content.read(_table_size(count))
            used = np.frombuffer(table, np.uint8, count).copy()
            checksums = np.frombuffer(table, "<u4", count, offset=count)
            if table != _table(used, checksums):
                raise ValueError("the table differs from its checksum")
            # Not through the map: there an unreadable page ends the process.
            values = bytearray(8 * size)
            for number in np.flatnonzero(used).tolist():
                content.seek(_offset(count) + number * len(values))
                if content.readinto(values) != len(values) or zlib.crc32(values) != checksums[number]:
                    raise ValueError(f"polynomial {number} differs from its checksum")
    except (OSError, ValueError) as error:
        log.warning("prepared weights are damaged and are made again: %s: %s", file, error)
        return None
    return used


def _words(file: Path | BinaryIO, count: int, size: int, mode: Any) -> np.memmap[Any, np.dtype[np.uint64]]:
    return np.memmap(file, np.dtype("<u8"), mode, _offset(count), (count, size))


def _map(file: Path, header: bytes, parameters: Parameters, plan: Plan) -> Words:
    """Map the words of a file that this process's owner has checked, if it is that one still."""
    count, size = plan.weight_polynomials, parameters.degree * len(parameters.prime_bits)
    try:
        with file.open("rb") as content:
            if content.read(_PAGE) != header:
                raise ValueError("a file of other weights")
            return _words(content, count, size, "r")
    except (OSError, ValueError) as error:
        raise WeightsError(_damaged(error, file)) from error


def _damaged(error: object, file: Path | None) -> str:
    return problem(
        "prepared weights must be as prepare_weights wrote them",
        got=error,
        remedy="start the server again: it finds the damage, and makes the file again from the model",
        where=file,
    )
