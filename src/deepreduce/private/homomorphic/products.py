"""Sums of products under encryption: what a server adds up for its answers.

There are two ways, and both give the same words. "kernel" is the compiled `native/homomorphic.c`, which adds products
in 128 bits and reduces them once; "seal" multiplies and adds with SEAL, one by one. The first that runs here is the
default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import _backends
from ._backends import Name, choose
from ._seal import seal
from .draws import expand
from .packing import Plan, Words
from .parameters import Parameters
from .pool import Pool, run
from .scheme import Scheme, scheme
from .weights import PreparedWeights
from .wire import read_ciphertext

TOGETHER = 8
"""Answers whose sums are computed at once: 3 MB at most, and by then the inputs are read often enough."""


@dataclass(frozen=True)
class Inputs:
    """A client's ciphertexts, ready to be multiplied by any weights.

    Attributes:
        words: NTT values, shape (ciphertext, polynomial, prime, coefficient).
        places: by the number of the request, where in `words`.
        ciphertexts: the same for SEAL, in the same order; None for the kernel.
    """

    words: Words = field(repr=False)
    places: Mapping[int, int] = field(repr=False)
    ciphertexts: list[seal.Ciphertext] | None = field(default=None, repr=False)


def read_inputs(
    parameters: Parameters, bodies: Mapping[int, bytes], *, pool: Pool | None = None, backend: Name | None = None
) -> Inputs:
    """Check and expand ciphertexts of a request.

    Args:
        parameters: of the encryption.
        bodies: encoded, by the number of the request.
        pool: workers in this process.
        backend: which way to multiply them; the default one if none is named.

    Raises:
        MessageError: a word is not below its prime.
        UsageError: the way does not run here.
    """
    assert pool is None or pool.in_this_process  # the jobs write into our memory
    context, chosen = scheme(parameters), choose(backend)
    words = np.empty((len(bodies), 2, len(context.primes), parameters.degree), np.uint64)
    run(pool, read_input, [(parameters, body, one) for body, one in zip(bodies.values(), words, strict=True)])
    places = {number: place for place, number in enumerate(bodies)}
    if chosen == "kernel":
        return Inputs(words, places)
    return Inputs(words, places, [context.ciphertext(one, "transformed") for one in words])


def read_input(parameters: Parameters, body: bytes, words: Words) -> None:
    """Check and expand one ciphertext into `words`: NTT values (polynomial, prime, coefficient).

    Raises:
        MessageError: a word is not below its prime.
    """
    words[0], seed = read_ciphertext(parameters, body)
    words[1] = expand(parameters, seed)


def requests_of(plan: Plan, answer: int) -> list[int]:
    """Return the requests that an answer adds up."""
    group_tile, _, band = plan.answer_place(answer)
    return [plan.request_of(group_tile, plane_tile, band) for plane_tile in range(plan.plane_tiles)]


def multiply(prepared: PreparedWeights, inputs: Inputs, answers: Sequence[int]) -> list[Words | None]:
    """Return the sums of the products of some answers, as NTT values (polynomial, prime, coefficient).

    They reveal the weights to the owner of the secret key: none must leave the server unless it went through
    `Blinder.blind`.

    Args:
        prepared: the layer's weights.
        inputs: the client's ciphertexts, of all requests that the answers add up.
        answers: the numbers of the answers. Those that share their requests are faster together, in up to
            `TOGETHER`.

    Returns:
        Their sums; None where all weights of an answer are zero.

    Raises:
        WeightsError: the weights are not as they were prepared.
    """
    pairs = [
        [
            (inputs.places[number], polynomial)
            for number, polynomial in zip(requests_of(prepared.plan, answer), prepared.polynomials(answer), strict=True)
            if prepared.used[polynomial]
        ]
        for answer in answers
    ]
    used = [some for some in pairs if some]
    if not used:
        return [None] * len(pairs)
    compute = _multiply_by_kernel if inputs.ciphertexts is None else _multiply_by_seal
    found = iter(compute(prepared, inputs, used))
    return [next(found) if some else None for some in pairs]


def _multiply_by_kernel(
    prepared: PreparedWeights, inputs: Inputs, pairs: list[list[tuple[int, int]]]
) -> Iterable[Words]:
    found = np.empty((len(pairs), *inputs.words.shape[1:]), np.uint64)
    terms = np.array([len(some) for some in pairs], np.uint32)
    flat = np.array([pair for some in pairs for pair in some], np.uint32)
    primes = np.array(scheme(prepared.parameters).primes, np.uint64)
    assert _backends.kernel is not None  # `read_inputs` has looked
    if not _backends.kernel.sums(inputs.words, prepared.words, terms, flat, primes, found, prepared.parameters.degree):
        raise prepared.damaged("a word that is not below its prime")
    return found


def _multiply_by_seal(prepared: PreparedWeights, inputs: Inputs, pairs: list[list[tuple[int, int]]]) -> Iterable[Words]:
    context, ciphertexts = scheme(prepared.parameters), inputs.ciphertexts
    assert ciphertexts is not None
    for some in pairs:
        yield add_up(context, [(ciphertexts[place], prepared.polynomial(which)) for place, which in some])


def add_up(context: Scheme, pairs: Sequence[tuple[seal.Ciphertext, seal.Plaintext]]) -> Words:
    """Return the sum of at least one product of SEAL's, as NTT values (polynomial, prime, coefficient)."""
    products = [context.evaluator.multiply_plain(ciphertext, polynomial) for ciphertext, polynomial in pairs]
    for product in products[1:]:
        context.evaluator.add_inplace(products[0], product)
    return context.words(products[0])
