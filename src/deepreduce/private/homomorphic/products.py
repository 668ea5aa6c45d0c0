"""Sums of products under encryption: what a server adds up for one answer.

There are two ways, and both give the same words. "kernel" is the compiled `native/homomorphic.c`, which adds products
in 128 bits and reduces them once; "seal" multiplies and adds with SEAL, one by one. The first that runs here is the
default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...errors import UsageError, problem
from . import _backends
from ._backends import Name, available_backends
from ._seal import seal
from .packing import Plan, Words
from .parameters import Parameters
from .scheme import scheme
from .weights import PreparedWeights
from .wire import read_ciphertext


@dataclass(frozen=True)
class Inputs:
    """A client's ciphertexts, ready to be multiplied by any weights.

    Attributes:
        ciphertexts: NTT values, by the number of the request; for SEAL.
        words: the same, shape (ciphertext, polynomial, prime, coefficient); for the kernel.
        places: by the number of the request, where in `words`.
    """

    ciphertexts: Mapping[int, seal.Ciphertext] = field(repr=False)
    words: Words | None = field(default=None, repr=False)
    places: Mapping[int, int] = field(default_factory=dict)


def read_inputs(parameters: Parameters, bodies: Mapping[int, bytes], *, backend: Name | None = None) -> Inputs:
    """Check and expand ciphertexts of a request.

    Args:
        parameters: of the encryption.
        bodies: encoded, by the number of the request.
        backend: which way to multiply them; the default one if none is named.

    Raises:
        MessageError: a word is not below its prime.
        UsageError: the way does not run here.
    """
    here = available_backends()
    chosen = here[0] if backend is None else backend
    if chosen not in here:
        raise UsageError(
            problem(
                f"products under encryption are computed by one of {', '.join(here)} here",
                got=backend,
                remedy="leave it out; or build the kernel, which needs a C compiler and a 64-bit processor",
            )
        )
    context = scheme(parameters)
    if chosen == "seal":
        return Inputs({number: context.seeded(*read_ciphertext(parameters, body)) for number, body in bodies.items()})
    words = np.empty((len(bodies), 2, len(context.primes), parameters.degree), np.uint64)
    for place, body in enumerate(bodies.values()):
        words[place] = context.words(context.seeded(*read_ciphertext(parameters, body)))
    return Inputs({}, words, {number: place for place, number in enumerate(bodies)})


def requests_of(plan: Plan, answer: int) -> list[int]:
    """Return the requests that an answer adds up."""
    group_tile, _, band = plan.answer_place(answer)
    return [plan.request_of(group_tile, plane_tile, band) for plane_tile in range(plan.plane_tiles)]


def multiply(prepared: PreparedWeights, inputs: Inputs, answer: int) -> seal.Ciphertext | None:
    """Return the sum of the products of one answer, in coefficients; None if all its weights are zero.

    It reveals the weights to the owner of the secret key: it must not leave the server unless it went through `blind`.

    Raises:
        WeightsError: the weights are not as they were prepared.
    """
    pairs = [
        (number, polynomial)
        for number, polynomial in zip(requests_of(prepared.plan, answer), prepared.polynomials(answer), strict=True)
        if prepared.used[polynomial]
    ]
    if not pairs:
        return None
    context = scheme(prepared.parameters)
    if inputs.words is None:
        total = _multiply_by_seal(prepared, inputs, pairs)
    else:
        total = _multiply_by_kernel(prepared, inputs.words, [(inputs.places[number], which) for number, which in pairs])
    context.evaluator.transform_from_ntt_inplace(total)
    return total


def _multiply_by_seal(prepared: PreparedWeights, inputs: Inputs, pairs: list[tuple[int, int]]) -> seal.Ciphertext:
    evaluator = scheme(prepared.parameters).evaluator
    products = [
        evaluator.multiply_plain(inputs.ciphertexts[number], prepared.polynomial(which)) for number, which in pairs
    ]
    for product in products[1:]:
        evaluator.add_inplace(products[0], product)
    return products[0]


def _multiply_by_kernel(prepared: PreparedWeights, words: Words, pairs: list[tuple[int, int]]) -> seal.Ciphertext:
    context = scheme(prepared.parameters)
    found = np.empty(words.shape[1:], np.uint64)
    terms, primes = np.array(pairs, np.uint32), np.array(context.primes, np.uint64)
    assert _backends.kernel is not None  # `read_inputs` has looked
    if not _backends.kernel.sums(words, prepared.words, terms, primes, found, prepared.parameters.degree):
        raise prepared.damaged("a word that is not below its prime")
    return context.ciphertext(found, "transformed")
