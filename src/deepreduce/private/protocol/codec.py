"""Questions and replies of lookups as bytes, in the parts that `LookupUnit` states the sizes of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .multiplexer import Question, Reply
from .packing import cut, pack, unpack_narrow
from .units import LookupUnit


def write_question(unit: LookupUnit, question: Question) -> list[NDArray[np.uint8]]:
    """Write a question, as `LookupUnit.question_parts` says."""
    wraps = [pack(line, unit.upper_bits) for line in question.wraps]
    return [pack(question.places, unit.index_bits + 1), pack(question.product, unit.bits), *wraps]


def read_question(unit: LookupUnit, data: NDArray[np.uint8]) -> Question:
    """Read what `write_question` wrote."""
    n = unit.instances
    places, product, *wraps = cut(data, unit.question_parts)
    lines = [unpack_narrow(line, (n,), unit.upper_bits) for line in wraps] if unit.upper_bits else []
    return Question(
        unpack_narrow(places, (n,), unit.index_bits + 1),
        unpack_narrow(product, (n,), unit.bits),
        np.stack(lines) if lines else np.zeros((0, n), np.uint64),
    )


def write_reply(unit: LookupUnit, answer: Reply) -> list[NDArray[np.uint8]]:
    """Write a reply, as `LookupUnit.reply_parts` says."""
    flips = [np.packbits(line.astype(np.uint8)) for line in answer.flips]
    return [*flips, *(pack(words, unit.bits) for words in answer.words)]


def read_reply(unit: LookupUnit, data: NDArray[np.uint8]) -> Reply:
    """Read what `write_reply` wrote."""
    *flips, z, t = cut(data, unit.reply_parts)
    lines = [np.unpackbits(line, count=unit.instances) for line in flips]
    return Reply(np.stack(lines), np.stack([unpack_narrow(each, (unit.instances,), unit.bits) for each in (z, t)]))
