"""The circuits of private inference on additively shared numbers: ReLU, exact truncation, arg-max.

Each takes the garbler's (server's) share and the evaluator's (client's) share of a number modulo 2^width in two's
complement. What comes out is shared again modulo 2^out_bits, in one of two ways:

* `ending="word"` (the default): the output is a word. Evaluator and garbler end with additive shares up to an offset
  that only the garbler knows; the evaluator subtracts its next mask *in clear* and returns the word. No mask enters the
  circuit.
* `ending="bits"`: the evaluator's next mask is an input, the circuit subtracts it, colour bits travel back. This is the
  construction of DELPHI (Mishra et al., USENIX Security 2020, section 4.1.2) and Gazelle. It is kept as the yardstick.

| per ReLU, width 17, out 27 | AND gates (half price) | hashes, evaluator | table bytes | evaluator's labels |
| --- | ---: | ---: | ---: | ---: |
| word | 16 (1) | 47 | 628 | 17 |
| bits | 58 (12) | 104 | 1,664 | 44 |

Both reveal the same to each party: to the server the value minus a uniform mask, to the client nothing. Ordinary ReLUs
need no circuit: see `protocol.lookup`.
"""

from __future__ import annotations

import functools
from typing import Literal

from ...errors import UsageError, problem
from .arithmetic import Number, add, gate_bits, less_than, negative, select, shift, subtract
from .builder import FALSE, TRUE, Builder
from .circuit import Circuit

Ending = Literal["word", "bits"]

SERVER_SHARE = "server_share"
CLIENT_SHARE = "client_share"
CLIENT_MASK = "client_mask"
CHOICE = "choice"
OUTPUT = "out"
INDEX = "index"


@functools.lru_cache(maxsize=256)
def relu(width: int, out_bits: int, *, places: int = 0, ending: Ending = "word") -> Circuit:
    """max(x, 0) * 2^places modulo 2^out_bits, where x = x_S + x_C modulo 2^width in two's complement.

    Args:
        width: bits of the shares, 2 to 62.
        out_bits: the ring of the result, 1 to 64.
        places: shift to the left; negative: to the right, rounding down.
        ending: how the result is shared, see the module.

    Returns:
        A circuit with inputs "server_share", "client_share" (and "client_mask" with `ending="bits"`) and output "out".

    Raises:
        UsageError: a size is out of range.
    """
    b = Builder()
    (x,) = _shared(b, width, 1, out_bits, places, ending)
    _finish(b, x[:-1], negative(x) ^ 1, out_bits, places, ending)
    return b.build()


@functools.lru_cache(maxsize=64)
def chosen_multiple(out_bits: int, words: int = 1) -> Circuit:
    """Factors times a bit that the evaluator knows: an oblivious transfer of ring elements, without gates or tables.

    Args:
        out_bits: the ring, 1 to 64.
        words: how many factors are multiplied by the bit, from 1.

    Returns:
        A circuit with the evaluator's input "choice", one bit, and as many words, each a factor times that bit.

    Raises:
        UsageError: the ring is out of range.
    """
    b = Builder()
    (choice,) = b.input("evaluator", CHOICE, 1)
    for number in range(words):
        b.word(f"{OUTPUT}{number or ''}", out_bits, [], multiplied=choice)
    return b.build()


@functools.lru_cache(maxsize=256)
def rescale(width: int, out_bits: int, *, places: int = 0, ending: Ending = "word") -> Circuit:
    """x * 2^places modulo 2^out_bits with the sign of x kept, for negative `places` rounded down: exact truncation.

    Dropping low bits of shares locally is exact up to one unit only; this is exact.

    Args:
        width: bits of the shares, 2 to 62.
        out_bits: the ring of the result, 1 to 64.
        places: shift to the left; negative: to the right, rounding down.
        ending: how the result is shared, see the module.

    Returns:
        A circuit with the inputs and the output of `relu`.

    Raises:
        UsageError: a size is out of range.
    """
    b = Builder()
    (x,) = _shared(b, width, 1, out_bits, places, ending)
    _finish(b, x, TRUE, out_bits, places, ending, signed=True)
    return b.build()


@functools.lru_cache(maxsize=64)
def arg_max(count: int, width: int) -> Circuit:
    """The index of the largest of `count` shared numbers; of equal ones the first.

    The output are bits: who holds both the colour bits and the decoding bits learns the index. (The server sends its
    decoding bits to let the client learn it; the client sends its colour bits to let the server learn it.)

    Args:
        count: numbers, at least 2.
        width: bits of each share, 2 to 62.

    Returns:
        A circuit with inputs "server_share" and "client_share" of `count` numbers and the output "index",
        ceil(log2(count)) bits.

    Raises:
        UsageError: a size is out of range.
    """
    if count < 2:
        raise UsageError(problem("an arg-max chooses among at least 2 numbers", got=count, remedy="leave it out"))
    b = Builder()
    numbers = _shared(b, width, count, width, 0, "word")

    def winner(span: int, last: bool) -> tuple[list[int], list[int]]:
        # The left half is the largest power of two below the span: an index is (right half?, index in that half).
        if span == 1:
            return next(numbers), []
        half = 1 << ((span - 1).bit_length() - 1)
        left, left_index = winner(half, False)
        right, right_index = winner(span - half, False)
        right_wins = less_than(b, left, right, signed=True)
        right_index += [FALSE] * (len(left_index) - len(right_index))
        index = select(b, right_wins, right_index, left_index) if left_index else []
        return [] if last else select(b, right_wins, right, left), [*index, right_wins]

    b.output(INDEX, winner(count, True)[1])
    return b.build()


class _Shared:
    """Adds the shares of one number after the other, when it is asked for: few wires are alive at a time."""

    def __init__(self, b: Builder, width: int, count: int) -> None:
        self._b, self._width, self._left = b, width, count
        self._server = b.input("garbler", SERVER_SHARE, width, count)
        self._client = b.input("evaluator", CLIENT_SHARE, width, count)

    def __iter__(self) -> _Shared:
        return self

    def __next__(self) -> list[int]:
        if not self._left:
            raise StopIteration
        at = len(self._server) - self._left * self._width
        self._left -= 1
        return add(self._b, self._server[at : at + self._width], self._client[at : at + self._width])


def _check_sizes(width: int, out_bits: int, places: int, count: int) -> None:
    if not 2 <= width <= 62 or not 1 <= out_bits <= 64 or not -width < places < 64 or count < 1:
        raise UsageError(
            problem(
                "shares have 2 to 62 bits, results 1 to 64, a shift less than the number, and there is a number",
                got={"width": width, "out_bits": out_bits, "places": places, "count": count},
                remedy="choose sizes in range",
            )
        )


def _shared(b: Builder, width: int, count: int, out_bits: int, places: int, ending: Ending) -> _Shared:
    _check_sizes(width, out_bits, places, count)
    if ending not in ("word", "bits"):
        raise UsageError(problem("an ending is 'word' or 'bits'", got=ending, remedy="choose one of them"))
    numbers = _Shared(b, width, count)
    if ending == "bits":
        b.input("evaluator", CLIENT_MASK, out_bits)
    return numbers


def _terms(x: Number, selector: int, places: int, *, signed: bool = False) -> list[tuple[int, int, int]]:
    """The bits of x with their weights after a shift; bits that fall off the low end are left out: rounding down."""
    terms = []
    for i, bit in enumerate(x):
        weight = -(1 << i) if signed and i == len(x) - 1 else 1 << i
        shifted = weight << places if places >= 0 else weight >> -places
        if i + places >= 0:
            terms.append((bit, selector, shifted))
    return terms


def _finish(
    b: Builder, x: Number, selector: int, out_bits: int, places: int, ending: Ending, *, signed: bool = False
) -> None:
    """Share x (where `selector` holds, else 0), shifted, modulo 2^out_bits."""
    if ending == "word":
        b.word(OUTPUT, out_bits, _terms(x, selector, places, signed=signed))
        return
    wide = shift(gate_bits(b, selector, x), places, out_bits, signed=signed)
    b.output(OUTPUT, subtract(b, wide, b.inputs_of(CLIENT_MASK)))
