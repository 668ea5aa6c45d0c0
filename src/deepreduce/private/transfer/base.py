"""Base oblivious transfers on Ristretto255: the few public-key operations on which the extension rests.

Source: Chou and Orlandi, "The Simplest Protocol for Oblivious Transfer", LATINCRYPT 2015 (ePrint 2015/267), figure 1;
the group is RFC 9496. The transfers are random: nobody chooses what is sent.

    Ideal functionality   receiver inputs c_1 ... c_n in {0, 1}; sender gets k_i^0, k_i^1; receiver gets k_i^{c_i};
                          all 2 n keys are independent and uniform.

    1. sender     a uniform, nonzero;   A = a B                                          → BaseOffer     A
    2. receiver   b_i uniform, nonzero; R_i = b_i B + c_i A                              → BaseChoices   R_1 ... R_n
    3. sender     k_i^0 = H(session, i, A, R_i, a R_i),   k_i^1 = H(session, i, A, R_i, a R_i - a A)
    4. receiver   k_i^{c_i} = H(session, i, A, R_i, b_i A)

Why it hides what it must, between semi-honest parties:

* The choice: R_i is a uniform point for either value of c_i (up to 2^-250, for b_i is not zero and R_i not the
  identity), whatever the sender can compute.
* The other key: its hash input contains b a B - a^2 B (c = 0) or b a B + a^2 B (c = 1) with b known to the receiver;
  who finds it finds a^2 B from a B, which is as hard as computational Diffie-Hellman. H is SHA-256 as a random oracle.

Every point that arrives is checked: 32 bytes, the one canonical encoding (RFC 9496, section 4.3.1), not the identity.
Session, index, and both points are hashed, so keys of different transfers and set-ups are unrelated. Against parties
that deviate the protocol is not claimed to be secure (its known proof troubles are about just that); the engine
does not claim it either.

Timing: scalar multiplication is libsodium's constant-time one; both candidates for R_i are computed and one is taken by
a mask, so that no branch and no index depends on a choice bit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import numpy as np

from deepreduce.errors import missing_extra, problem

from ._errors import Bytes, TransferError, check_bits, check_count, check_session
from ._state import SingleUse
from .messages import MAX_BASE, POINT_BYTES, SECURITY, BaseChoices, BaseOffer

Random = Callable[[int], bytes]
"""A source of random bytes: called with a length, it returns that many. Every function that draws takes one as
`_random`: the operating system's, and nothing else outside the tests."""

try:
    import rbcl  # type: ignore[import-untyped]
except ImportError as error:
    raise missing_extra("rbcl", "private", purpose="oblivious transfer") from error

_DOMAIN = b"deepreduce base transfer, v1\0\0\0\0"
_IDENTITY = bytes(POINT_BYTES)


class BaseSenderState(SingleUse):
    """What the sender keeps between its offer and the receiver's answer: the scalar a and the points A and a A."""

    __slots__ = ("_multiple", "_offer", "_scalar")

    def __init__(self, offer: BaseOffer, scalar: bytes, multiple: bytes) -> None:
        super().__init__()
        self._offer = offer
        self._scalar = scalar
        self._multiple = multiple

    @property
    def session(self) -> bytes:
        """Identifier of the set-up."""
        return self._offer.session


class BaseReceiverState(SingleUse):
    """What the receiver keeps after its answer: the scalars b_i and both messages."""

    __slots__ = ("_choices", "_offer", "_scalars")

    def __init__(self, offer: BaseOffer, choices: BaseChoices, scalars: list[bytes]) -> None:
        super().__init__()
        self._offer = offer
        self._choices = choices
        self._scalars = scalars


def new_session(*, _random: Random = os.urandom) -> bytes:
    """Return a fresh session identifier of 16 random bytes.

    One party draws it, the other takes it over. It must not be reused for another set-up; should it be, keys stay
    unrelated all the same, because the scalars are fresh.
    """
    return _random(16)


def offer_base(
    session: bytes, count: int = SECURITY, *, _random: Random = os.urandom
) -> tuple[BaseSenderState, BaseOffer]:
    """Step 1, sender: draw the secret scalar and offer A = a B.

    Args:
        session: identifier of the set-up, 16 bytes, the same at both parties.
        count: number of transfers, 0 to 4096; default 128.

    Returns:
        The state for `finish_base_sender`, and the message for the receiver.

    Raises:
        TransferError: an argument out of range.
    """
    check_session(session)
    check_count(count, most=MAX_BASE, what="base transfers")
    scalar = _draw_scalar(_random)
    point = rbcl.crypto_scalarmult_ristretto255_base(scalar)
    offer = BaseOffer(session, int(count), point)
    return BaseSenderState(offer, scalar, rbcl.crypto_scalarmult_ristretto255(scalar, point)), offer


def choose_base(
    session: bytes, choices: Bytes, offer: BaseOffer, *, _random: Random = os.urandom
) -> tuple[BaseReceiverState, BaseChoices]:
    """Step 2, receiver: answer with R_i = b_i B + c_i A.

    Args:
        session: identifier of the set-up, 16 bytes.
        choices: c, uint8 or bool, shape (count,), values 0 and 1.
        offer: the sender's message.

    Returns:
        The state for `finish_base_receiver`, and the message for the sender.

    Raises:
        TransferError: an argument out of range; an offer of another session or count, or whose point is not valid.
    """
    bits = check_bits(choices, most=MAX_BASE)
    if not isinstance(offer, BaseOffer):
        raise _foreign("step 2 needs a BaseOffer", type(offer).__name__)
    if offer.session != check_session(session) or offer.count != len(bits):
        raise _foreign("the offer must be of this session and count", f"another session, or {offer.count} transfers")
    check_point(offer.point, "the offer")
    scalars = [_draw_scalar(_random) for _ in range(len(bits))]
    zero = [rbcl.crypto_scalarmult_ristretto255_base(scalar) for scalar in scalars]
    one = [rbcl.crypto_core_ristretto255_add(point, offer.point) for point in zero]
    for_zero, for_one = _stack(zero), _stack(one)
    mask = (bits * np.uint8(255))[:, None]
    message = BaseChoices(session, for_zero ^ (mask & (for_zero ^ for_one)))
    return BaseReceiverState(offer, message, scalars), message


def finish_base_sender(state: BaseSenderState, choices: BaseChoices) -> Bytes:
    """Step 3, sender: derive both keys of every transfer.

    Args:
        state: from `offer_base`; it is spent, unless the message is refused.
        choices: the receiver's message.

    Returns:
        uint8, shape (count, 2, 16): k_i^0 and k_i^1.

    Raises:
        TransferError: a spent state; a message of another session or count, or with an invalid point.
    """
    state.check_unspent()
    offer = state._offer
    if not isinstance(choices, BaseChoices):
        raise _foreign("step 3 needs BaseChoices", type(choices).__name__)
    if choices.session != offer.session or len(choices.points) != offer.count:
        raise _foreign(
            "the choices must be of the offered session and count",
            f"another session, or {len(choices.points)} transfers",
        )
    points = [row.tobytes() for row in choices.points]
    for index, point in enumerate(points):
        check_point(point, f"choice {index}")
    state.spend()
    keys = []
    for index, point in enumerate(points):
        shared = rbcl.crypto_scalarmult_ristretto255(state._scalar, point)
        other = rbcl.crypto_core_ristretto255_sub(shared, state._multiple)
        keys += [_key(offer, index, point, shared), _key(offer, index, point, other)]
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(offer.count, 2, 16).copy()


def finish_base_receiver(state: BaseReceiverState) -> Bytes:
    """Step 4, receiver: derive the chosen key of every transfer.

    Args:
        state: from `choose_base`; it is spent.

    Returns:
        uint8, shape (count, 16): k_i^{c_i}.

    Raises:
        TransferError: a spent state.
    """
    state.spend()
    offer, points = state._offer, state._choices.points
    keys = [
        _key(offer, index, points[index].tobytes(), rbcl.crypto_scalarmult_ristretto255(scalar, offer.point))
        for index, scalar in enumerate(state._scalars)
    ]
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(offer.count, 16).copy()


def check_point(point: bytes, where: str) -> None:
    """Raise TransferError unless `point` is a canonically encoded element of Ristretto255 other than the identity."""
    if len(point) != POINT_BYTES or point == _IDENTITY or not rbcl.crypto_core_ristretto255_is_valid_point(point):
        raise TransferError(
            problem(
                "a point must be the canonical encoding of a Ristretto255 element other than the identity (RFC 9496)",
                got="bytes that are not",
                remedy="end the session: the peer is broken or hostile",
                where=where,
            )
        )


def _draw_scalar(random: Random) -> bytes:
    """Draw a scalar that is uniform modulo the group order up to 2^-259, and not zero."""
    while True:
        scalar: bytes = rbcl.crypto_core_ristretto255_scalar_reduce(random(64))
        if any(scalar):
            return scalar


def _key(offer: BaseOffer, index: int, choice: bytes, shared: bytes) -> bytes:
    """H(session, i, A, R_i, shared point), every field of fixed length, cut to 16 bytes."""
    text = _DOMAIN + offer.session + index.to_bytes(4, "little") + offer.point + choice + shared
    return hashlib.sha256(text).digest()[:16]


def _stack(points: list[bytes]) -> Bytes:
    return np.frombuffer(b"".join(points), dtype=np.uint8).reshape(len(points), POINT_BYTES)


def _foreign(must: str, got: str) -> TransferError:
    return TransferError(
        problem(must, got=got, remedy="start the session again", where="the base transfers of the OT set-up")
    )
