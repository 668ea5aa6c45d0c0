"""What a party keeps of a bundle: names, types and shapes of the sections, who writes them, and who reads them back.

    client   INPUT, LOGITS                        its shares of the image and of the logits
             MASKS                                per unit: its next masks, but of the arg-max
             LABELS, TABLES                       per unit of circuits
             TABLE ... WRAPS                      per unit of lookups: a `multiplexer.ClientPart`
    server   DELTA                                the session's offset
             SHARE                                per layer with weights: s
             SEED, OFFSETS, DECODING              per unit of circuits: the latter two of words and of bits
             TABLE ... UPPER_OFFSETS              per unit of lookups: `multiplexer.ServerMasks` and `ServerOffsets`

The number of the unit, or of the tensor that the layer makes, stands behind the name (`numbered`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..garbling.types import LABEL_BYTES
from ..ring import Words
from .layout import Layout
from .multiplexer import ClientPart, ServerMasks, ServerOffsets
from .packing import word_type
from .units import GarbledUnit, LookupUnit

INPUT, LOGITS, DELTA = "input", "logits", "delta"
SHARE, MASKS = "share", "masks"
LABELS, TABLES = "labels", "tables"
SEED, OFFSETS, DECODING = "seed", "offsets", "decoding"
TABLE, VALUES, COINS, PRODUCTS, PADS, WRAPS = "table", "values", "coins", "products", "pads", "wraps"
CHOICES, FACTORS, CONSTANTS = "choices", "factors", "constants"
UPPER_FACTORS, UPPER_OFFSETS = "upper_factors", "upper_offsets"

Sections = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]

_BYTE, _WORD = np.dtype(np.uint8), np.dtype(np.uint64)


class Sink(Protocol):
    """Where the parts of a bundle go."""

    def write(self, section: str, offset: int, data: Any) -> None:
        """Write bytes of a section from a byte offset on."""


class Source(Protocol):
    """A bundle that was taken: it exists nowhere else any more."""

    def array(self, section: str) -> NDArray[Any]:
        """Return a section."""


def numbered(section: str, number: int) -> str:
    """Return the name of a section of a unit, or of a tensor."""
    return f"{section}.{number}"


def write_words(sink: Sink, section: str, values: Words, bits: int) -> None:
    """Write ring elements of so many bits as a whole section, in the smallest type that holds them."""
    sink.write(section, 0, np.ascontiguousarray(values, dtype=word_type(bits)))


def client_sections(layout: Layout) -> Sections:
    """Return names, types and shapes of what the client keeps of a bundle."""
    public = layout.public
    logits = public.tensors[public.logits]
    found: Sections = {
        INPUT: (word_type(public.input.ring_bits), public.input.shape),
        LOGITS: (word_type(logits.ring_bits), (logits.size,)),
    }
    for unit in layout.units:
        n, own = unit.instances, Sections()
        if unit.bits:
            own[MASKS] = (unit.word_type, (n,))
        match unit:
            case GarbledUnit():
                own[LABELS] = (_BYTE, (n, unit.circuit.wires_of("evaluator"), LABEL_BYTES))
                own[TABLES] = (_BYTE, (unit.answer_bytes,))
            case LookupUnit():
                own[TABLE] = (_WORD, (n, unit.table_words))
                own[VALUES] = (word_type(unit.op.width), (n,))
                own[COINS] = (_BYTE, (n,))
                own[PRODUCTS] = (unit.word_type, (n,))
                own[PADS] = (unit.word_type, (2, n))
                if unit.upper_bits:
                    own[WRAPS] = (word_type(unit.upper_bits), (2, n))
        found |= {numbered(name, unit.number): form for name, form in own.items()}
    return found


def server_sections(layout: Layout) -> Sections:
    """Return names, types and shapes of what the server keeps of a bundle."""
    found: Sections = {DELTA: (_BYTE, (LABEL_BYTES,))}
    for job in layout.jobs:
        form = layout.public.tensors[job.step.output]
        found[numbered(SHARE, job.step.output)] = (word_type(form.ring_bits), form.shape)
    for unit in layout.units:
        n, own = unit.instances, Sections()
        match unit:
            case GarbledUnit():
                own[SEED] = (_BYTE, (LABEL_BYTES,))
                if unit.bits:
                    own[OFFSETS] = (unit.word_type, (n,))
                if unit.circuit.output_bits:
                    own[DECODING] = (_BYTE, (n, unit.circuit.output_bits))
            case LookupUnit():
                own[TABLE] = (_WORD, (n, unit.table_words))
                own[CHOICES] = (word_type(unit.index_bits + 1), (n,))
                own |= dict.fromkeys((FACTORS, OFFSETS, CONSTANTS), (unit.word_type, (n,)))
                if unit.upper_bits:
                    own[UPPER_FACTORS] = (word_type(unit.upper_bits), (2, n))
                    own[UPPER_OFFSETS] = (word_type(unit.upper_bits), (n,))
        found |= {numbered(name, unit.number): form for name, form in own.items()}
    return found


def client_part(unit: LookupUnit, source: Source) -> ClientPart:
    """Read what the client replies with."""
    read = _reader(unit, source)
    table, values, coins, products = (read(name) for name in (TABLE, VALUES, COINS, PRODUCTS))
    wraps = read(WRAPS) if unit.upper_bits else np.zeros((0, unit.instances), np.uint64)
    return ClientPart(table, values, coins, products, wraps, read(PADS), read(MASKS))


def server_masks(unit: LookupUnit, source: Source) -> ServerMasks:
    """Read what the server asks with."""
    read = _reader(unit, source)
    wraps = read(UPPER_FACTORS) if unit.upper_bits else np.zeros((0, unit.instances), np.uint64)
    return ServerMasks(read(TABLE), read(CHOICES), read(FACTORS), wraps)


def server_offsets(unit: LookupUnit, source: Source) -> ServerOffsets:
    """Read what the server takes replies with."""
    read = _reader(unit, source)
    wraps = read(UPPER_OFFSETS) if unit.upper_bits else np.zeros(0, np.uint64)
    return ServerOffsets(read(CONSTANTS), read(OFFSETS), wraps)


def _reader(unit: LookupUnit, source: Source) -> Callable[[str], Words]:
    return lambda name: source.array(numbered(name, unit.number))
