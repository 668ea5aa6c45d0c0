"""Encryption parameters: few sets, all 128-bit secure, and the choice among them.

BFV with N = 8192 and plaintext modulus t = 2^k, the ring of the shares itself. The security table that SEAL enforces
(Albrecht et al., "Homomorphic encryption security standard", 2018: 128-bit classical security, ternary secret) allows
218 bits of modulus at N = 8192; the largest set here uses 210. Budget, in bits of the modulus q of the ciphertexts:

    k (the ring) + f (the flood, `noise.py`) + 3

because the flood must stay below q / (8 t). The answer is then switched to a smaller modulus q':

* for k <= 43 to the first prime q_1 alone, which has at least k + 17 bits;
* for k > 43, where no prime of SEAL has as many (they end at 60 bits), to the first two, q' = q_1 q_2, which together
  have at least k + 37 bits. Where these are all the data primes, nothing is switched.

In units of q' / t the answer's noise is made of

    at most 1/8      the flood, and with it what it hides, which is 2^41 times smaller: both shrink with the modulus;
    at most 1/16     the rounding of the switch: (1 + N) / 2 for every prime that is dropped, all but the last of them
                     divided by the primes dropped later; together below N = 2^13, where q' / (16 t) is about 2^13 at
                     least for one prime, and 2^33 for two;
    at most 1/16     what the truncation of the answer adds, half of it in each polynomial (`Parameters.answer_bytes`).

Together a quarter, where half would still decrypt: at least one bit of noise budget is left in the worst case, so a
layer's result is never wrong. How many bits of a number travel depends on k alone: a second prime makes no answer
longer.

Primes below t, as some sets have for k > 43, are no obstacle: SEAL lifts a weight w mod t to w or w - t, whichever is
smaller, then in integers of several words ("fast plain lift" is off). That is half as fast, and done once per model.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import problem
from .errors import ParameterError
from .noise import SPECIAL_BITS, flood_bits_needed
from .packing import Plan
from .tiling import DEGREE

PRIME_SETS = ((56, 56), (60, 60), (56, 40, 40), (60, 48, 48), (60, 60, 60))
"""Bits of the data primes, cheapest first; multiples of eight, or sixty, so that words pack into whole bytes."""

_SWITCHING_BITS = 17
"""Bits of the answer's modulus above k: rounding, truncation and half a unit."""

ONE_PRIME_RING_BITS = 60 - _SWITCHING_BITS
"""Largest k for which an answer keeps one prime: SEAL's primes have at most 60 bits."""

MAX_RING_BITS = 59
"""Largest k: SEAL's plaintext modulus is below 2^60."""


@dataclass(frozen=True)
class Parameters:
    """What both parties must agree on to understand each other's ciphertexts. Public.

    Attributes:
        ring_bits: k, the shares are elements of Z_2^k; 2 to 59.
        prime_bits: bits of the data primes, one of `PRIME_SETS`.

    Raises:
        ParameterError: the primes are no known set, or those that an answer keeps are too small for the ring.
    """

    ring_bits: int
    prime_bits: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.prime_bits not in PRIME_SETS or not _carries(self.prime_bits, self.ring_bits):
            raise ParameterError(
                problem(
                    f"the primes must be one of {PRIME_SETS}, the first {_SWITCHING_BITS} bits wider than the ring, "
                    f"for rings of {ONE_PRIME_RING_BITS + 1} to {MAX_RING_BITS} bits the first two together",
                    got=self,
                    remedy="let choose_parameters choose",
                )
            )

    @property
    def degree(self) -> int:
        """N, the number of coefficients."""
        return DEGREE

    @property
    def special_bits(self) -> int:
        """Bits of the special prime of the keys."""
        return SPECIAL_BITS

    @property
    def flood_bits(self) -> int:
        """f: the flood of a coefficient is uniform on 2^f integers; all the room there is."""
        return sum(self.prime_bits) - self.ring_bits - 3

    @property
    def word_bytes(self) -> tuple[int, ...]:
        """Bytes of one coefficient modulo each data prime."""
        return tuple(-(-bits // 8) for bits in self.prime_bits)

    @property
    def answer_prime_bits(self) -> tuple[int, ...]:
        """Bits of the primes that an answer keeps: of the first, for rings beyond 43 bits of the first two."""
        return self.prime_bits[: _kept(self.ring_bits)]

    @property
    def answer_bytes(self) -> tuple[int, int]:
        """Bytes of one coefficient of an answer: of the polynomial with the message, and of the other one.

        Dropping the low d bits of the first adds 2^(d - 1) to the noise, of the second N 2^(d - 1); either stays
        below q' / (32 t). The same for one prime and for two.
        """
        spread = self.degree.bit_length() - 1
        return -(-(self.ring_bits + 4) // 8), -(-(self.ring_bits + 5 + spread - 1) // 8)

    @functools.cached_property
    def digest(self) -> bytes:
        """16 bytes that name these parameters in messages."""
        text = f"deepreduce bfv 1 N={self.degree} t=2^{self.ring_bits} q={self.prime_bits} P={self.special_bits}"
        return hashlib.sha256(text.encode()).digest()[:16]


def choose_parameters(plans: Iterable[Plan], *, ring_bits: int, weight_bits: int) -> Parameters:
    """Choose the cheapest parameters that carry some layers and hide their weights.

    Layers of different rings may share parameters, and with them one pair of keys, for the largest of their rings,
    Z_2^K. A layer of a smaller ring Z_2^k then runs mod 2^K, and both parties take their result mod 2^k: that is
    exact, because 2^k divides 2^K, so that W x - s mod 2^K, taken mod 2^k, is W x - s mod 2^k whatever lies above the
    k bits of x, and s mod 2^k is as uniform as s. The client fills the bits of its share from k to K with fresh
    randomness: `noise.py`, (ii), wants messages that are uniform mod 2^K, or in their low bits at least.

    Args:
        plans: plans of the layers, all of which use the ring Z_2^k.
        ring_bits: k, 2 to 59. Beyond 43 a ciphertext takes 1.2 to 1.7 times the bytes.
        weight_bits: w; weights are in [-2^(w-1), 2^(w-1)), 2 to 32. Public: it sets the size of the flood.

    Returns:
        The parameters.

    Raises:
        ParameterError: a value is out of range, or no set has room for the flood that hides these weights.
    """
    if not 2 <= weight_bits <= 32 or not 2 <= ring_bits <= MAX_RING_BITS:
        raise ParameterError(
            problem(
                f"the ring must have 2 to {MAX_RING_BITS} bits and the weights 2 to 32",
                got=f"ring {ring_bits}, weights {weight_bits}",
                remedy="lower the precision of weights or activations",
            )
        )
    needed = max((flood_bits_needed(p, weight_bits=weight_bits, ring_bits=ring_bits) for p in plans), default=0)
    for prime_bits in PRIME_SETS:
        if _carries(prime_bits, ring_bits):
            parameters = Parameters(ring_bits, prime_bits)
            if parameters.flood_bits >= needed:
                return parameters
    raise ParameterError(
        problem(
            f"hiding the weights takes {needed} bits of flooding",
            got=f"at most {sum(PRIME_SETS[-1]) - ring_bits - 3} bits of room beside a ring of {ring_bits} bits",
            remedy="lower the precision of weights or activations, or split the layer",
        )
    )


def _kept(ring_bits: int) -> int:
    """Return how many primes an answer keeps."""
    return 1 if ring_bits <= ONE_PRIME_RING_BITS else 2


def _carries(prime_bits: tuple[int, ...], ring_bits: int) -> bool:
    """Tell whether the primes that an answer keeps have room for a ring."""
    return 2 <= ring_bits <= min(MAX_RING_BITS, sum(prime_bits[: _kept(ring_bits)]) - _SWITCHING_BITS)


def check_budget(parameters: Parameters, plan: Plan, *, weight_bits: int) -> int:
    """Return by how many bits the flood of some parameters exceeds what a layer needs.

    Args:
        parameters: the parameters.
        plan: the layer's plan.
        weight_bits: w; weights are in [-2^(w-1), 2^(w-1)).

    Returns:
        Bits to spare, at least 0.

    Raises:
        ParameterError: the flood does not suffice, or the plan was made for another degree.
    """
    needed = flood_bits_needed(plan, weight_bits=weight_bits, ring_bits=parameters.ring_bits)
    if plan.degree != parameters.degree or needed > parameters.flood_bits:
        raise ParameterError(
            problem(
                f"the parameters must carry degree {plan.degree} and {needed} bits of flooding",
                got=f"degree {parameters.degree}, {parameters.flood_bits} bits",
                remedy="choose the parameters with choose_parameters over all layers that share them",
            )
        )
    return parameters.flood_bits - needed
