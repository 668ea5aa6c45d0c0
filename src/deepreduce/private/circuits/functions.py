"""The circuits of private inference on additively shared numbers: ReLU, re-scaling, arg-max.

Each takes the garbler's (server's) share and the evaluator's (client's) share of a number modulo 2^width in two's
complement. A number comes out as a word modulo 2^out_bits: evaluator and garbler end with additive shares up to an
offset that only the garbler knows, and the evaluator subtracts its next mask *in clear* before it returns the word. So
no mask enters the circuit. To the server this shows the value minus a uniform mask, to the client nothing.

A ReLU with 17 bits in and 27 out costs

| AND gates (half price) | hashes, evaluator | table bytes | evaluator's labels |
| ---: | ---: | ---: | ---: |
| 16 (1) | 47 | 628 | 17 |

The usual circuit, which subtracts the mask, is the yardstick in `benchmarks/garbling.py`. Ordinary ReLUs need no
circuit at all: see `protocol.lookup`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from ...errors import UsageError, problem
from .arithmetic import add, less_than, negative, select
from .builder import FALSE, TRUE, Builder
from .circuit import Circuit

SERVER_SHARE = "server_share"
CLIENT_SHARE = "client_share"
CHOICE = "choice"
OUTPUT = "out"
INDEX = "index"


@functools.lru_cache(maxsize=256)
def relu(width: int, out_bits: int) -> Circuit:
    """max(x, 0) modulo 2^out_bits, where x = x_S + x_C modulo 2^width in two's complement.

    Args:
        width: bits of the shares, 2 to 62.
        out_bits: the ring of the result, 1 to 64.

    Returns:
        A circuit with inputs "server_share" and "client_share" and the word "out".

    Raises:
        UsageError: a size is out of range.
    """
    b = Builder()
    (x,) = _shared(b, width, 1, out_bits)
    positive = negative(x) ^ 1
    b.word(OUTPUT, out_bits, [(bit, positive, 1 << i) for i, bit in enumerate(x[:-1])])
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
def rescale(width: int, out_bits: int) -> Circuit:
    """x modulo 2^out_bits with the sign of x kept, where x = x_S + x_C modulo 2^width: another ring, exactly.

    Args:
        width: bits of the shares, 2 to 62.
        out_bits: the ring of the result, 1 to 64.

    Returns:
        A circuit with the inputs and the output of `relu`.

    Raises:
        UsageError: a size is out of range.
    """
    b = Builder()
    (x,) = _shared(b, width, 1, out_bits)
    weights = [*(1 << i for i in range(width - 1)), -(1 << (width - 1))]
    b.word(OUTPUT, out_bits, [(bit, TRUE, weight) for bit, weight in zip(x, weights, strict=True)])
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
    numbers = _shared(b, width, count, width)

    def winner(span: int, last: bool) -> tuple[list[int], list[int]]:
        # The left half is the largest power of two below the span: an index is (right half?, index in that half).
        if span == 1:
            return next(numbers), []
        half = 1 << ((span - 1).bit_length() - 1)
        left, left_index = winner(half, False)
        right, right_index = winner(span - half, False)
        right_wins = less_than(b, left, right)
        right_index += [FALSE] * (len(left_index) - len(right_index))
        index = select(b, right_wins, right_index, left_index) if left_index else []
        return [] if last else select(b, right_wins, right, left), [*index, right_wins]

    b.output(INDEX, winner(count, True)[1])
    return b.build()


def _shared(b: Builder, width: int, count: int, out_bits: int) -> Iterator[list[int]]:
    """The numbers, each added up when it is asked for: few wires are alive at a time."""
    if not 2 <= width <= 62 or not 1 <= out_bits <= 64:
        raise UsageError(
            problem(
                "shares have 2 to 62 bits, and results 1 to 64",
                got={"width": width, "out_bits": out_bits},
                remedy="choose sizes in range",
            )
        )
    server = b.input("garbler", SERVER_SHARE, width, count)
    client = b.input("evaluator", CLIENT_SHARE, width, count)
    places = [slice(at, at + width) for at in range(0, count * width, width)]
    return (add(b, server[place], client[place]) for place in places)
