"""Circuits as data: a builder that counts AND gates, arithmetic in two's complement, what private inference needs."""

from .builder import FALSE, TRUE, Builder
from .circuit import (
    BitOutput,
    Circuit,
    InputGroup,
    Owner,
    Term,
    WordOutput,
    evaluate_plain,
    from_bits,
    input_bits,
    to_bits,
)
from .functions import arg_max, chosen_multiple, relu, rescale

__all__ = [
    "FALSE",
    "TRUE",
    "BitOutput",
    "Builder",
    "Circuit",
    "InputGroup",
    "Owner",
    "Term",
    "WordOutput",
    "arg_max",
    "chosen_multiple",
    "evaluate_plain",
    "from_bits",
    "input_bits",
    "relu",
    "rescale",
    "to_bits",
]
