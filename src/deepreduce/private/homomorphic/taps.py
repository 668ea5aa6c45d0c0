"""Sums of products for plans in which several images share a ciphertext: weight by weight, in coefficients.

There a polynomial of weights has few coefficients that are not zero, and a layer has many: transformed, those of
ResNet18 would take tens of gigabytes. The kernel multiplies ciphertexts by single weights (`native/taps.h`); SEAL
transforms the polynomials of an answer whenever one is due, which takes long. Both give the same results.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from . import _backends
from ._backends import Name, choose
from .arithmetic import arithmetic
from .packing import Words
from .pool import Pool, run
from .products import Inputs, add_up, read_input, read_inputs, requests_of
from .scheme import Form, scheme
from .weights import PlainWeights, transform_weights

_SIDE_BY_SIDE = 8
"""Sums whose weights the kernel wants side by side."""


@dataclass(frozen=True)
class Spread:
    """A client's ciphertexts, ready to be multiplied by single weights.

    Attributes:
        words: as the kernel's `spread` leaves them, shape (ciphertext, polynomial, prime, margin + coefficient).
        margin: the largest exponent of a weight.
        places: by the number of the request, where in `words`.
    """

    words: Words = field(repr=False)
    margin: int
    places: Mapping[int, int] = field(repr=False)


class Gatherer:
    """Adds up answers of a plan of several images.

    Args:
        weights: the layer's.
        bodies: encoded ciphertexts by the number of the request, of all requests that the answers add up.
        pool: workers in this process.
        backend: which way; the default one if none is named.

    Attributes:
        form: of the sums.

    Raises:
        MessageError: a word is not below its prime.
        UsageError: the way does not run here.
    """

    def __init__(
        self,
        weights: PlainWeights,
        bodies: Mapping[int, bytes],
        *,
        pool: Pool | None = None,
        backend: Name | None = None,
    ) -> None:
        self._weights, chosen = weights, choose(backend)
        self._inputs: Inputs | Spread
        if chosen == "seal":
            self._inputs = read_inputs(weights.parameters, bodies, pool=pool, backend="seal")
        else:
            self._inputs = _spread(weights, bodies, pool)
        self.form: Form = "transformed" if chosen == "seal" else "coefficients"

    def sums(self, answers: Sequence[int]) -> Iterator[Words | None]:
        """Yield the sums of some answers, in their order (polynomial, prime, coefficient); None for zero.

        They reveal the weights to the owner of the secret key: none must leave the server unless it went through
        `Blinder.blind`.
        """
        inputs = self._inputs
        if isinstance(inputs, Inputs):
            yield from _by_seal(self._weights, inputs, answers)
            return
        for requests, some in itertools.groupby(answers, key=lambda answer: requests_of(self._weights.plan, answer)):
            yield from _by_kernel(self._weights, inputs, requests, list(some))


def _spread(weights: PlainWeights, bodies: Mapping[int, bytes], pool: Pool | None) -> Spread:
    assert pool is None or pool.in_this_process  # the jobs write into our memory
    parameters, margin = weights.parameters, int(weights.plan.taps.exponents.max())
    found = np.empty((len(bodies), 2, _primes(weights).size, margin + parameters.degree), np.uint64)
    run(pool, _spread_one, [(weights, body, margin, one) for body, one in zip(bodies.values(), found, strict=True)])
    return Spread(found, margin, {number: place for place, number in enumerate(bodies)})


def _spread_one(weights: PlainWeights, body: bytes, margin: int, found: Words) -> None:
    parameters, primes = weights.parameters, _primes(weights)
    words = np.empty((2, primes.size, parameters.degree), np.uint64)
    read_input(parameters, body, words)
    arithmetic(parameters).transform_back(words)
    assert _backends.kernel is not None  # `choose` has looked
    _backends.kernel.spread(words, primes, parameters.degree, margin, found)


def _by_kernel(weights: PlainWeights, inputs: Spread, requests: list[int], answers: list[int]) -> Iterable[Words]:
    taps, degree = weights.plan.taps, weights.parameters.degree
    places = np.array([inputs.places[number] for number in requests])
    offsets = places[taps.tiles] * inputs.words[0].size + inputs.margin - taps.exponents
    count = -(-len(answers) // _SIDE_BY_SIDE) * _SIDE_BY_SIDE
    rows = np.zeros((count, taps.sources.size), np.int32)
    for row, answer in zip(rows, answers, strict=False):
        row[:] = _weights_of(weights, answer)
    side_by_side = np.ascontiguousarray(rows.reshape(-1, _SIDE_BY_SIDE, taps.sources.size).transpose(0, 2, 1))
    found = np.zeros((count, *inputs.words.shape[1:3], degree), np.uint64)
    assert _backends.kernel is not None
    _backends.kernel.taps(
        inputs.words, inputs.margin, offsets.astype(np.uint64), side_by_side, _primes(weights), found, degree
    )
    return found[: len(answers)]


def _by_seal(weights: PlainWeights, inputs: Inputs, answers: Sequence[int]) -> Iterator[Words | None]:
    plan, parameters, ciphertexts = weights.plan, weights.parameters, inputs.ciphertexts
    assert ciphertexts is not None
    context = scheme(parameters)
    for answer in answers:
        group_tile, channel_tile, _ = plan.answer_place(answer)
        polynomials = plan.encode_weights(weights.integers.astype(np.int64), group_tile, channel_tile)
        pairs = [
            (ciphertexts[inputs.places[number]], transform_weights(parameters, polynomial, backend="seal"))
            for number, polynomial in zip(requests_of(plan, answer), polynomials, strict=True)
            if polynomial.any()
        ]
        weighted = [(one, context.weights(values.tobytes())) for one, values in pairs]
        yield add_up(context, weighted) if weighted else None


def _weights_of(weights: PlainWeights, answer: int) -> npt.NDArray[np.int32]:
    """Return the weights of an answer in the order of `Plan.taps`; zeros for channels past the last one."""
    plan = weights.plan
    group, tile, _ = plan.answer_place(answer)
    channel = tile * plan.tiling.channels + plan.taps.channels
    there = channel < plan.channels
    flat = weights.integers.reshape(len(weights.integers), -1)
    rows = group * plan.channels + np.where(there, channel, 0)
    found: npt.NDArray[np.int32] = np.where(there, flat[rows, plan.taps.sources], np.int32(0))
    return found


def _primes(weights: PlainWeights) -> Words:
    return np.array(scheme(weights.parameters).primes, np.uint64)
