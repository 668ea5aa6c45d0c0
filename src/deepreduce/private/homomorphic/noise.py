"""Why the answer hides the weights, and how much noise that costs.

*What has to be hidden.* The client owns the secret key and knows its own ciphertexts (c_0, c_1) with their noise e.
The server's sum of products is (sum w c_0, sum w c_1): from c_1 alone, or from the noise w * e after decryption, the
client would solve linear equations for w. The message itself, W x - s, is masked by the server's uniform s on *every*
coefficient, so also on those that hold partial sums. What remains are the two polynomials and the noise.

*Both steps are needed.* Let u, e_0, e_1 be the randomness of a fresh public-key encryption of zero, (a, b = -(a S + e))
the client's public key, S its secret key, F the flood. Up to roundings the answer decrypts like

    d_1 = sum w c_1 + a u + e_1
    d_0 = -d_1 S + (q / t) (W x - s) + [ w * (e + rounding) + e_0 - e u + e_1 S ] + F        (mod q)

1. *Re-randomisation* hides w in d_1: a u + e_1 is a ring-LWE sample whose secret u is the server's. It looks uniform
   although the client knows S, because u does not depend on S. Without it, d_1 is a linear equation for w.
   Flooding alone adds to d_0 only and would leave d_1 as it is.
2. *Flooding* hides the bracket, which holds w * e in the clear for the owner of S, and with e_0 - e u + e_1 S also
   hints on the u that step 1 relies on. F is uniform on 2^f integers per coefficient, and a shift by b moves a uniform
   distribution by the statistical distance |b| / 2^f. Re-randomisation alone would leave w * e to be read. Of the two
   samples of the encryption only a u + e_1 must look uniform: given F, d_0 is a function of d_1 and of what the client
   knows. So e_0 may be left out, and the kernel leaves it out.

So the answer is simulated from the client's output alone: draw d_1 uniformly, F uniformly, set d_0 by the equation
without the bracket. The simulation is off by the ring-LWE advantage plus the sum of |b| / 2^f over all coefficients
sent. Switching to a smaller modulus, dropping low bits and leaving coefficients out are functions of what is already
simulated; they lose nothing, however many primes the smaller modulus keeps (`parameters.py`: one, or two for rings
beyond 43 bits). All bounds here are of integers modulo q, before the switch, and hold for every prime set.

*How much flooding.* `flood_bits_needed` returns the least f that satisfies both

    (i)  2^f >= 2^41 |b| for the largest |b| that any weights and any noise that can be drawn would make: 40 bits over
         the worst case, for each coefficient on its own;
    (ii) the sum over 2^23 coefficients (all answers of one inference) of E|b| / 2^f is at most 2^-40, where the
         expectation is over the client's own honest noise, known to it, with the worst weights.

(ii) bounds the distance of the whole view of an inference, for a client that encrypts as the protocol says. Parameters
flood with all the room they have, so the true f is mostly larger.

*How large the noise is.* e is drawn from a centred binomial distribution on [-21, 21] with variance 10.5; the
rounding of (q / t) m adds at most 1/2. Its mean, which (ii) alone relies on, is 1 / (2 t) where x is a fresh mask, so
that m is uniform, and at most 2^-14 in size where x is a truncated share: then the low 30 bits of m or more are
uniform, and the others fixed. A test adds these roundings up exactly, for every set of primes. A coefficient of the
answer adds up at most n weights of at most 2^(w-1) in size (n counts all output channels and groups that share the
polynomial: their kernels meet the noise too). Hence |w * (e + rounding)| is at most 21.5 n 2^(w-1), and on average at
most 3.3 sqrt(n) 2^(w-1) + n 2^(w-1) max(2^-13, 1 / t). The public-key encryption is drawn in one of two ways
(`encryption.py`). The kernel draws it modulo q: -e u + e_1 S is at most 42 N, and with S and u ternary sqrt(14 N) on
average. SEAL draws it modulo q P, with e_0, and divides it by the special prime P: at most (21 + 42 N) / P and a
rounding of (1 + N) / 2, which is sqrt((3 + 2 N) / 36) on average. The bounds are the kernel's, which are larger, and 22
more for e_0 and the rounding of s.

Where several images share a ciphertext, each answer still has its own u, e_1 and F, and no more weights meet in one of
its coefficients than with one image (`tiling.plan_images`). Of the coefficients that are sent each belongs to one
inference, so that (ii) stays a sum over the same number of them.

*What is not covered.* A client that deviates (a public key that is none, ciphertexts with forged noise) is outside the
semi-honest model; it can get more out of the bracket than (i) and (ii) say. 3.3 sqrt(n) takes the roundings of the
messages as independent, as they are for independent masks. Where elements of a share repeat, because a linear step
copied them, r copies add (r - 1) / 12 to the variance 10.58 of each term; 3.3^2 = 10.89 leaves room for four. Beyond
that (ii) can lose bits, unless the parameters have them to spare: log2(1 + 0.08 sqrt(n)) if all n elements of a sum are
one (2.7 of 40 for n = 4608, 4.5 for n = 73,728); (i) holds as it is. A share that a sum has scaled by 2^s is uniform on
the multiples of 2^s alone, so that the mean of its rounding is 2^(s-k-1), where k - s is at least the width of a
circuit: at most 2^-13 with `activation_bits` of 11, the default, and more; with 4, which `FormatSettings` allows, (ii)
loses a bit. Running times are not equalised.

Sources: flooding for circuit privacy: Gentry, "A fully homomorphic encryption scheme", 2009, section 8.1, and Asharov
et al., "Multiparty computation with low communication, computation and interaction via threshold FHE", Eurocrypt 2012,
lemma 1 ("smudging"). Re-randomise and flood, for linear layers: Juvekar, Vaikuntanathan, Chandrakasan, "GAZELLE",
USENIX Security 2018, and Huang et al., "Cheetah", USENIX Security 2022. An exact analysis for products with a
plaintext: de Castro, Juvekar, Vaikuntanathan, "Fast vector oblivious linear evaluation from ring learning with errors",
WAHC 2021.
"""

from __future__ import annotations

import math

from ...errors import problem
from .errors import ParameterError
from .packing import Plan

STATISTICAL_BITS = 40
"""The view of an inference may differ from its simulation by at most 2^-40, in statistical distance."""

ANSWER_BITS = 23
"""log2 of the number of coefficients that all answers of one inference may send, for which (ii) is stated."""

SPECIAL_BITS = 30
"""Bits of SEAL's special prime P, which the keys have and the ciphertexts do not."""

_LARGEST_ERROR = 21
"""The noise, SEAL's and the kernel's: the difference of two binomials of 21 coins each."""

_ERROR_VARIANCE = 10.5
"""21 / 2."""

ROUNDING_MEAN = 2.0**-13
"""Above the mean of the rounding of a message, in size, where its low `UNIFORM_BITS` at least are uniform."""

_ERROR_SIGMA = 3.3
"""Above the square root of 21/2 (the noise) + 1/12 (the rounding of the message)."""


def weights_noise(plan: Plan, weight_bits: int) -> float:
    """Return the largest noise that weights can make in one coefficient: 21.5 n 2^(w-1).

    Args:
        plan: the layer's plan; counts the weights that meet in one coefficient.
        weight_bits: w; weights are in [-2^(w-1), 2^(w-1)).
    """
    return (_LARGEST_ERROR + 0.5) * plan.weights_per_answer * 2.0 ** (weight_bits - 1)


def blinding_noise(degree: int) -> float:
    """Return a bound for the noise of the encryption of zero, with one unit for the rounding of s."""
    return 2 * _LARGEST_ERROR * degree + _LARGEST_ERROR + 1


def mean_blinding_noise(degree: int) -> float:
    """Return a bound for its average size."""
    return math.sqrt(_ERROR_VARIANCE * (1 + 4 * degree / 3)) + 1


def mean_noise(plan: Plan, weight_bits: int, ring_bits: int) -> float:
    """Return an upper bound for the average size of the noise of one coefficient, for the worst weights."""
    largest = 2.0 ** (weight_bits - 1)
    count = plan.weights_per_answer
    product = _ERROR_SIGMA * math.sqrt(count) * largest + count * largest * max(ROUNDING_MEAN, 2.0**-ring_bits)
    return product + mean_blinding_noise(plan.degree)


def flood_bits_needed(plan: Plan, *, weight_bits: int, ring_bits: int) -> int:
    """Return the least f for which the answers of a layer hide its weights.

    Args:
        plan: the layer's plan.
        weight_bits: w; weights are in [-2^(w-1), 2^(w-1)). Public.
        ring_bits: k, the ring is Z_2^k.

    Returns:
        f, the number of random bits in the flood of one coefficient.
    """
    worst = weights_noise(plan, weight_bits) + blinding_noise(plan.degree)
    each = STATISTICAL_BITS + 1 + math.log2(worst)
    together = STATISTICAL_BITS + ANSWER_BITS + math.log2(mean_noise(plan, weight_bits, ring_bits))
    return math.ceil(max(each, together))


def check_total(plans: list[Plan]) -> None:
    """Refuse a program whose answers send more coefficients than (ii) allows for.

    Args:
        plans: the plans of all linear layers of one inference, times its images.

    Raises:
        ParameterError: there are more than 2^23 results.
    """
    total = sum(plan.layer.outputs for plan in plans)
    if total > 1 << ANSWER_BITS:
        raise ParameterError(
            problem(
                f"the linear layers of one inference must have at most {1 << ANSWER_BITS:,} outputs together",
                got=f"{total:,}",
                remedy="run fewer images at once: beyond this the flooding hides less than it states",
            )
        )
