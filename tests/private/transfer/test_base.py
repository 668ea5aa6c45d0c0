"""Base transfers on Ristretto255."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import rbcl

from deepreduce.private.transfer import (
    BaseChoices,
    BaseOffer,
    TransferError,
    choose_base,
    finish_base_receiver,
    finish_base_sender,
    new_session,
    offer_base,
)
from deepreduce.private.transfer.base import check_point

from .seeded import Seeded

SESSION = bytes(range(16))

# RFC 9496, appendix A.1: the multiples 1 ... 15 of the generator.
_MULTIPLES = """
e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76
6a493210f7499cd17fecb510ae0cea23a110e8d5b901f8acadd3095c73a3b919
94741f5d5d52755ece4f23f044ee27d5d1ea1e2bd196b462166b16152a9d0259
da80862773358b466ffadfe0b3293ab3d9fd53c5ea6c955358f568322daf6a57
e882b131016b52c1d3337080187cf768423efccbb517bb495ab812c4160ff44e
f64746d3c92b13050ed8d80236a7f0007c3b3f962f5ba793d19a601ebb1df403
44f53520926ec81fbd5a387845beb7df85a96a24ece18738bdcfa6a7822a176d
903293d8f2287ebe10e2374dc1a53e0bc887e592699f02d077d5263cdd55601c
02622ace8f7303a31cafc63f8fc48fdc16e1c8c8d234b2f0d6685282a9076031
20706fd788b2720a1ed2a5dad4952b01f413bcf0e7564de8cdc816689e2db95f
bce83f8ba5dd2fa572864c24ba1810f9522bc6004afe95877ac73241cafdab42
e4549ee16b9aa03099ca208c67adafcafa4c3f3e4e5303de6026e3ca8ff84460
aa52e000df2e16f55fb1032fc33bc42742dad6bd5a8fc0be0167436c5948501f
46376b80f409b29dc2b5f6f0c52591990896e5716f41477cd30085ab7f10301e
e0c418f7c8d9c4cdd7395b93ea124f3ad99021bb681dfc3302a9d99a2e53e64e
"""

# RFC 9496, appendix A.2 (non-canonical, negative, x^2 not a square, negative xy, s = -1), and the identity, useless.
_BAD = """
00ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff
ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
f3ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
0100000000000000000000000000000000000000000000000000000000000000
01ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
ed57ffd8c914fb201471d1c3d245ce3c746fcbe63a3679d51b6a516ebebe0e20
c34c4e1826e5d403b78e246e88aa051c36ccf0aafebffe137d148a2bf9104562
c940e5a4404157cfb1628b108db051a8d439e1a421394ec4ebccb9ec92a8ac78
26948d35ca62e643e26a83177332e6b6afeb9d08e4268b650f1f5bbd8d81d371
4eac077a713c57b4f4397629a4145982c661f48044dd3f96427d40b147d9742f
de6a7b00deadc788eb6b6c8d20c0ae96c2f2019078fa604fee5b87d6e989ad7b
2a292df7e32cababbd9de088d1d1abec9fc0440f637ed2fba145094dc14bea08
ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
0000000000000000000000000000000000000000000000000000000000000000
"""
MULTIPLES, BAD = _MULTIPLES.split(), _BAD.split()


def run(bits: np.ndarray, seed: bytes | None = None):
    """Run all four steps through encoded messages; return both keys, the chosen one, and the messages."""
    sources = {} if seed is None else {"_random": Seeded(b"s" + seed)}
    sender, offer = offer_base(SESSION, len(bits), **sources)
    if seed is not None:
        sources = {"_random": Seeded(b"r" + seed)}
    receiver, choices = choose_base(SESSION, bits, BaseOffer.decode(offer.encode()), **sources)
    keys = finish_base_sender(sender, BaseChoices.decode(choices.encode()))
    return keys, finish_base_receiver(receiver), offer, choices


def test_example() -> None:
    keys, chosen, _, _ = run(np.array([0, 1, 1], dtype=np.uint8))
    assert np.array_equal(chosen, [keys[0, 0], keys[1, 1], keys[2, 1]])


@pytest.mark.parametrize("count", [0, 1, 7, 127, 128, 129])
@pytest.mark.parametrize("pattern", ["zeros", "ones", "alternating", "random"])
def test_the_receiver_gets_exactly_the_chosen_key(count: int, pattern: str, rng: np.random.Generator) -> None:
    bits = {
        "zeros": np.zeros(count, dtype=np.uint8),
        "ones": np.ones(count, dtype=np.uint8),
        "alternating": np.arange(count, dtype=np.uint8) % 2,
        "random": rng.integers(0, 2, count, dtype=np.uint8),
    }[pattern]
    keys, chosen, _, _ = run(bits)
    index = np.arange(count)
    assert np.array_equal(chosen, keys[index, bits])
    assert not np.any(np.all(chosen == keys[index, 1 - bits], axis=1))
    assert len({key.tobytes() for key in keys.reshape(-1, 16)}) == 2 * count


def test_keys_are_the_documented_hashes() -> None:
    bits = np.array([1, 0], dtype=np.uint8)
    keys, _, offer, choices = run(bits, seed=b"kdf")
    scalar = rbcl.crypto_core_ristretto255_scalar_reduce(Seeded(b"skdf")(64))
    assert rbcl.crypto_scalarmult_ristretto255_base(scalar) == offer.point
    for index in range(2):
        point = choices.points[index].tobytes()
        shifted = rbcl.crypto_core_ristretto255_sub(point, offer.point)
        for bit, base in enumerate((point, shifted)):
            shared = rbcl.crypto_scalarmult_ristretto255(scalar, base)
            text = b"deepreduce base transfer, v1\0\0\0\0" + SESSION + index.to_bytes(4, "little")
            text += offer.point + point + shared
            assert hashlib.sha256(text).digest()[:16] == keys[index, bit].tobytes()


def test_ristretto_is_that_of_the_rfc() -> None:
    generator = bytes.fromhex(MULTIPLES[0])
    total = generator
    for factor, want in enumerate(MULTIPLES, start=1):
        scalar = factor.to_bytes(32, "little")
        assert rbcl.crypto_scalarmult_ristretto255_base(scalar).hex() == want
        assert rbcl.crypto_scalarmult_ristretto255(scalar, generator).hex() == want
        assert total.hex() == want
        check_point(total, "here")
        total = rbcl.crypto_core_ristretto255_add(total, generator)


@pytest.mark.parametrize("point", BAD)
def test_bad_points_are_refused_on_both_sides(point: str) -> None:
    bad = bytes.fromhex(point)
    with pytest.raises(TransferError, match="canonical encoding"):
        choose_base(SESSION, np.zeros(2, dtype=np.uint8), BaseOffer(SESSION, 2, bad))
    sender, offer = offer_base(SESSION, 2)
    receiver, choices = choose_base(SESSION, np.zeros(2, dtype=np.uint8), offer)
    points = choices.points.copy()
    points[1] = np.frombuffer(bad, dtype=np.uint8)
    with pytest.raises(TransferError, match="choice 1"):
        finish_base_sender(sender, BaseChoices(SESSION, points))
    # The refused message cost nothing: the honest one still works.
    assert np.array_equal(finish_base_sender(sender, choices)[:, 0], finish_base_receiver(receiver))


def test_another_session_gives_unrelated_keys_and_is_refused() -> None:
    sender, offer = offer_base(SESSION, 1)
    bits = np.zeros(1, dtype=np.uint8)
    with pytest.raises(TransferError, match="this session"):
        choose_base(new_session(), bits, offer)
    with pytest.raises(TransferError, match="this session and count"):
        choose_base(SESSION, np.zeros(2, dtype=np.uint8), offer)
    _, choices = choose_base(SESSION, bits, offer)
    with pytest.raises(TransferError, match="offered session"):
        finish_base_sender(sender, BaseChoices(new_session(), choices.points))
    with pytest.raises(TransferError, match="offered session"):
        finish_base_sender(sender, BaseChoices(SESSION, np.repeat(choices.points, 2, axis=0)))


def test_states_serve_once() -> None:
    sender, offer = offer_base(SESSION, 1)
    receiver, choices = choose_base(SESSION, np.zeros(1, dtype=np.uint8), offer)
    finish_base_sender(sender, choices)
    finish_base_receiver(receiver)
    with pytest.raises(TransferError, match="one step only"):
        finish_base_sender(sender, choices)
    with pytest.raises(TransferError, match="one step only"):
        finish_base_receiver(receiver)


@pytest.mark.parametrize(
    "bits",
    [[0, 1], np.array([0, 2], dtype=np.uint8), np.zeros((2, 1), dtype=np.uint8), np.zeros(2), np.zeros(5000, np.uint8)],
)
def test_wrong_choices_are_refused_without_being_shown(bits: object) -> None:
    _, offer = offer_base(SESSION, 2)
    with pytest.raises(TransferError):
        choose_base(SESSION, bits, offer)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [-1, 4097, 1.0, True, "1"])
def test_wrong_counts_are_refused(count: object) -> None:
    with pytest.raises(TransferError, match="number of base transfers"):
        offer_base(SESSION, count)  # type: ignore[arg-type]


@pytest.mark.parametrize("session", [b"", bytes(15), bytes(17), bytearray(16), None])
def test_wrong_sessions_are_refused(session: object) -> None:
    with pytest.raises(TransferError, match="session identifier"):
        offer_base(session, 1)  # type: ignore[arg-type]


def test_fresh_randomness_by_default() -> None:
    points = {offer_base(SESSION, 1)[1].point for _ in range(8)} | {new_session() for _ in range(8)}
    assert len(points) == 16


def test_answers_do_not_depend_on_the_choice() -> None:
    """Given c, R - c A is b B for a fresh b; so with the same b the two answers differ by A, and both look uniform."""
    _, offer = offer_base(SESSION, 64, _random=Seeded(b"offer"))
    zeros, ones = np.zeros(64, dtype=np.uint8), np.ones(64, dtype=np.uint8)
    _, for_zero = choose_base(SESSION, zeros, offer, _random=Seeded(b"b"))
    _, for_one = choose_base(SESSION, ones, offer, _random=Seeded(b"b"))
    for zero, one in zip(for_zero.points, for_one.points, strict=True):
        assert rbcl.crypto_core_ristretto255_sub(one.tobytes(), zero.tobytes()) == offer.point
    for points in (for_zero.points, for_one.points):
        free = np.unpackbits(points[:, 1:31])  # the ends of an encoding are not uniform: sign bit, top bit
        assert abs(free.mean() - 0.5) < 5 * 0.5 / np.sqrt(free.size)
