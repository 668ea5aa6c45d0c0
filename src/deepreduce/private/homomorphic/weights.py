"""A layer's weights as the server multiplies by them: NTT values, computed once per model and kept in a file.

The file (mode 0600: it holds the model) is one line of JSON padded to 4,096 bytes, one byte per polynomial (0: all its
weights are zero, 1: not) padded to 4,096, then per polynomial the NTT values modulo each data prime, 8 bytes each,
little endian. It is mapped, not read, so that all workers share one copy in memory.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._files import replacing
from ...errors import problem
from ._seal import seal
from .errors import WeightsError
from .packing import Integers, Plan, Words
from .parameters import Parameters, check_budget
from .scheme import scheme

_PAGE = 4096


@dataclass(frozen=True)
class PreparedWeights:
    """The NTT values of a layer's weights; `prepare_weights` makes them.

    Attributes:
        parameters: the parameters.
        plan: the layer's plan.
        used: for every polynomial whether any of its weights is not zero.
        words: NTT values, shape (polynomial, data primes x N); None in a copy on its way to a worker.
        file: where the words lie, if they lie in a file.
    """

    parameters: Parameters
    plan: Plan
    used: npt.NDArray[np.uint8] = field(repr=False)
    words: Words = field(repr=False)
    file: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.file is not None:
            state["words"] = None  # the worker maps the file
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["words"] is None:
            state["words"] = _map(state["file"], state["parameters"], state["plan"])
        self.__dict__.update(state)

    def polynomial(self, group_tile: int, channel_tile: int, plane_tile: int) -> seal.Plaintext | None:
        """Return one polynomial of weights, or None if it is zero."""
        number = (group_tile * self.plan.channel_tiles + channel_tile) * self.plan.plane_tiles + plane_tile
        if not self.used[number]:
            return None
        try:
            return scheme(self.parameters).weights(self.words[number].tobytes())
        except (ValueError, RuntimeError) as error:
            raise WeightsError(_damaged(error, self.file)) from error


def prepare_weights(
    parameters: Parameters, plan: Plan, weights: Integers, *, weight_bits: int, file: Path | None = None
) -> PreparedWeights:
    """Transform a layer's weights, or map the file of an earlier call with the same ones.

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
    header = _header(parameters, plan, weights)
    if file is None:
        used, words = np.zeros(count, np.uint8), np.zeros((count, size), np.uint64)
        _transform(parameters, plan, weights, used, words)
        return PreparedWeights(parameters, plan, used, words)
    if not _is_current(file, header, _offset(count) + 8 * count * size):
        with replacing(file) as temporary:
            temporary.chmod(0o600)  # still empty: nobody else has read a weight
            with temporary.open("r+b") as output:
                output.truncate(_offset(count) + 8 * count * size)
                output.write(header)
            used, words = _views(temporary, count, size, "r+")
            _transform(parameters, plan, weights, used, words)
            used.flush()
            words.flush()
            del used, words
    used, words = _views(file, count, size, "r")
    return PreparedWeights(parameters, plan, np.array(used), words, file)


def _transform(
    parameters: Parameters, plan: Plan, weights: Integers, used: npt.NDArray[np.uint8], words: Words
) -> None:
    """Encode and transform all polynomials of weights into `words`."""
    context = scheme(parameters)
    ring = np.int64((1 << parameters.ring_bits) - 1)
    number = 0
    for group_tile in range(plan.group_tiles):
        for channel_tile in range(plan.channel_tiles):
            for polynomial in plan.encode_weights(weights, group_tile, channel_tile):
                reduced = (polynomial & ring).astype(np.uint64)
                if reduced.any():
                    used[number] = 1
                    words[number] = np.frombuffer(context.transform(reduced), "<u8")
                number += 1


def _header(parameters: Parameters, plan: Plan, weights: Integers) -> bytes:
    content = {
        "format": "deepreduce weights",
        "version": 1,
        "parameters": parameters.digest.hex(),
        "plan": plan.digest.hex(),
        "weights": hashlib.sha256(weights.tobytes()).hexdigest(),
    }
    return json.dumps(content).encode().ljust(_PAGE - 1) + b"\n"


def _offset(count: int) -> int:
    """Return where the words begin."""
    return _PAGE + -(-count // _PAGE) * _PAGE


def _is_current(file: Path, header: bytes, size: int) -> bool:
    if not file.is_file() or file.stat().st_size != size:
        return False
    with file.open("rb") as content:
        return content.read(_PAGE) == header


def _views(
    file: Path, count: int, size: int, mode: Any
) -> tuple[np.memmap[Any, np.dtype[np.uint8]], np.memmap[Any, np.dtype[np.uint64]]]:
    used = np.memmap(file, np.uint8, mode, _PAGE, (count,))
    return used, np.memmap(file, np.dtype("<u8"), mode, _offset(count), (count, size))


def _map(file: Path, parameters: Parameters, plan: Plan) -> Words:
    """Map the words of a file that this process's owner has checked."""
    count, size = plan.weight_polynomials, parameters.degree * len(parameters.prime_bits)
    try:
        return _views(file, count, size, "r")[1]
    except (OSError, ValueError) as error:
        raise WeightsError(_damaged(error, file)) from error


def _damaged(error: object, file: Path | None) -> str:
    return problem(
        "prepared weights must be as prepare_weights wrote them",
        got=error,
        remedy="remove the file; it is made again from the model",
        where=file,
    )
