"""Oblivious transfer extension: millions of correlated transfers from 128 base transfers, in one direction.

"Client" and "server" are roles here, of who chooses and who has the offset. For the transfers in which the server
chooses (`protocol.multiplexer`) the parties exchange them, with a set-up, an offset and streams of their own.

Source: SoftSpokenOT (Roy, CRYPTO 2022, ePrint 2022/192), the semi-honest protocol: small-field VOLE (section 3.1,
figure 7) over F_{2^k}, and the repetition code as subspace code. With k = 1 it is the protocol of Ishai, Kilian,
Nissim, and Petrank (CRYPTO 2003) in its correlated form (Asharov et al., CCS 2013): one code serves both.

Ideal functionality (correlated transfer with a global offset, "Delta-COT")

    set-up   the server inputs Delta in {0, 1}^128 with bit 0 set
    batch    the client inputs b_1 ... b_n; for each i a uniform t_i in {0, 1}^128 is drawn;
             the client gets t_i, the server gets q_i = t_i xor b_i Delta
    A corrupted party may choose its own share (the client t_i, the server q_i); the other's is computed from it.

For half gates that is the whole input step: q_i is the zero label of wire i, Delta the garbler's global offset, and
t_i = q_i xor b_i Delta the label of the bit that the evaluator holds. No hash, no derandomisation, no message back.

Protocol, with T = 128/k trees of 2^k leaves (trees.py), Delta_i in F_{2^k} the i-th group of k bits of Delta,
r_{i,x} the AES-128 counter-mode stream of leaf x of tree i, and + exclusive or:

    1. client   u_i = sum_x r_{i,x},   v_i = sum_x x r_{i,x};   sends d_i = u_i + b for every i      → Corrections
                outputs t = (v_1, ..., v_T)
    2. server   w_i = sum_x (Delta_i + x) r_{i,x}, in which the leaf x = Delta_i, unknown to it, has factor zero,
                so w_i = v_i + Delta_i u_i;   outputs q = (w_i + Delta_i d_i)_i = t + Delta b

u_i and b are bits, so "Delta_i u_i" multiplies a vector of k bits by a bit: only F_{2^k}'s addition is ever used.

Why it hides what it must, between semi-honest parties

* The choice bits: r_{i,Delta_i} is pseudorandom to the server and a summand of u_i; so d_i is b under a one-time pad,
  another one for each tree.
* Delta: the client receives nothing after the base transfers, and there the choices are hidden unconditionally.
* The labels: each party's own share is pseudorandom because its own seeds are; a corrupted one may choose it, as the
  functionality says. That is enough for garbling: the hash must look random at t xor Delta for every t that the
  evaluator knows or even chooses, Delta being secret, which is the circular correlation robustness (TCCR) of Guo,
  Katz, Wang, Yu (IEEE S&P 2020) that half gates assume anyway.
* Revealing t_i to the evaluator reveals nothing else: it is one label per wire, uniform, and its colour (lowest) bit
  is independent of b_i. The other label is t_i xor Delta. Who gives the client both labels of one wire gives away
  Delta, and with it every circuit garbled under the same set-up.
* Bit 0 of Delta is 1, so that the two labels of a wire differ in their colour bit (point and permute). That costs one
  bit: Delta keeps 127 random ones, and a guess of the evaluator is right with probability 2^-127. The choice bits lose
  nothing: the pad of tree 0 is secret whatever is known of Delta_0.

No pseudorandom position serves twice. A set-up has a session identifier, which separates the nonces of its streams
from those of other set-ups, and a position that counts blocks of 128 transfers. A batch takes ceil(n/128) fresh blocks
and returns the state behind them; the old state is spent and refuses a second use, in this process or in a fork, and
states can be neither copied nor stored. The message names its position, so a replayed, skipped, or reordered batch is
refused. After 2^30 blocks (1.4e11 transfers) a new set-up is needed: until there, by the birthday bound q^2/2^129 with
q = 2^30, the streams of all 512 leaves (k = 4) together are within 2^-60 of random.

Not covered: parties that deviate. A client that sends different choices to different trees can learn bits of Delta
from whether the evaluation fails; the paper's consistency check against it is not part of this engine's promise.

Timing: lengths and positions are public; neither branches nor indices depend on choice bits, seeds, or Delta.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from deepreduce.errors import problem

from ._backends import get_backend
from ._errors import Bytes, TransferError, check_bits, check_block, check_count, check_field_bits, check_session
from ._state import SingleUse
from .base import (
    BaseReceiverState,
    BaseSenderState,
    Random,
    choose_base,
    finish_base_receiver,
    finish_base_sender,
    offer_base,
)
from .messages import SECURITY, BaseChoices, BaseOffer, Corrections, TreeSums, blocks_of, check_position
from .trees import path_choices, plant, regrow, tree_nonces

DEFAULT_FIELD_BITS = 4
"""The field of the extension unless another is asked for: SoftSpokenOT at 4 bytes per transfer."""


class ReceiverSetup(SingleUse):
    """The client between its offer and the server's answer."""

    __slots__ = ("_base", "_field_bits")

    def __init__(self, base: BaseSenderState, field_bits: int) -> None:
        super().__init__()
        self._base = base
        self._field_bits = field_bits


class SenderSetup(SingleUse):
    """The server between its answer and the client's tree sums."""

    __slots__ = ("_base", "_delta", "_field_bits", "_session")

    def __init__(self, base: BaseReceiverState, session: bytes, delta: Bytes, field_bits: int) -> None:
        super().__init__()
        self._base = base
        self._session = session
        self._delta = delta
        self._field_bits = field_bits


class _Ready(SingleUse):
    """What both parties hold after the set-up: seeds, and how much of them is used up."""

    __slots__ = ("_field_bits", "_leaves", "_nonces", "_position", "_session")

    def __init__(self, session: bytes, field_bits: int, leaves: Bytes, nonces: Bytes, position: int) -> None:
        super().__init__()
        self._session = session
        self._field_bits = field_bits
        self._position = position
        self._leaves = leaves
        self._nonces = nonces

    @property
    def session(self) -> bytes:
        """Identifier of the set-up."""
        return self._session

    @property
    def field_bits(self) -> int:
        """The extension's k."""
        return self._field_bits

    @property
    def position(self) -> int:
        """Blocks of 128 transfers used so far."""
        return self._position


class ReceiverState(_Ready):
    """The client, ready for the next batch."""

    __slots__ = ()


class SenderState(_Ready):
    """The server, ready for the next batch, and keeper of delta."""

    __slots__ = ("_delta",)

    def __init__(
        self, session: bytes, field_bits: int, leaves: Bytes, nonces: Bytes, position: int, delta: Bytes
    ) -> None:
        super().__init__(session, field_bits, leaves, nonces, position)
        self._delta = delta

    @property
    def delta(self) -> Bytes:
        """A copy of the secret offset, uint8, shape (16,), for the garbler."""
        return self._delta.copy()


def new_delta(*, _random: Random = os.urandom) -> Bytes:
    """Return a fresh global offset: uint8, shape (16,), uniform but for bit 0 of byte 0, which is 1."""
    delta = np.frombuffer(_random(16), dtype=np.uint8).copy()
    delta[0] |= 1
    return delta


def offer_setup(
    session: bytes, field_bits: int = DEFAULT_FIELD_BITS, *, _random: Random = os.urandom
) -> tuple[ReceiverSetup, BaseOffer]:
    """Set-up, step 1, client: open the base transfers, in which the client is the sender.

    Args:
        session: identifier of the set-up, 16 bytes, fresh, and the same at both parties; see `new_session`.
        field_bits: k, the same at both parties: 16/k bytes per transfer for 2^k/k AES blocks per 16 label bytes.
            1 (IKNP), 2, 4 (default), or 8.

    Returns:
        The state for `plant_setup`, and the message for the server.

    Raises:
        TransferError: an argument out of range.
    """
    k = check_field_bits(field_bits)
    base, offer = offer_base(session, SECURITY, _random=_random)
    return ReceiverSetup(base, k), offer


def choose_setup(
    session: bytes,
    delta: Bytes,
    offer: BaseOffer,
    field_bits: int = DEFAULT_FIELD_BITS,
    *,
    _random: Random = os.urandom,
) -> tuple[SenderSetup, BaseChoices]:
    """Set-up, step 2, server: answer with delta's bits as the choices.

    Args:
        session: identifier of the set-up, 16 bytes.
        delta: the global offset, uint8, shape (16,), bit 0 of byte 0 set; see `new_delta`. It is copied. It must be
            fresh for every set-up.
        offer: the client's message.
        field_bits: k, as at the client.

    Returns:
        The state for `finish_setup`, and the message for the client.

    Raises:
        TransferError: an argument out of range, or a message that does not fit.
    """
    check_session(session)
    k = check_field_bits(field_bits)
    secret = check_block(delta, "delta")
    if not secret[0] & 1:
        raise TransferError(
            problem(
                "the lowest bit of delta must be 1, so that the two labels of a wire have different colours",
                got="a delta whose lowest bit is 0",
                remedy="draw it with new_delta()",
            )
        )
    base, message = choose_base(session, path_choices(secret, k), offer, _random=_random)
    return SenderSetup(base, session, secret, k), message


def plant_setup(
    state: ReceiverSetup, choices: BaseChoices, *, backend: str | None = None
) -> tuple[ReceiverState, TreeSums]:
    """Set-up, step 3, client: derive the base keys, grow the trees, and help the server to all leaves but one each.

    Args:
        state: from `offer_setup`; it is spent, unless the message is refused.
        choices: the server's message.
        backend: "kernel", "numpy", or None for the default.

    Returns:
        The state for `extend_receiver`, and the message for the server.

    Raises:
        TransferError: a spent state, or a message that does not fit or holds an invalid point.
    """
    engine = get_backend(backend)
    state.check_unspent()
    keys = finish_base_sender(state._base, choices)
    state.spend()
    session, k = state._base.session, state._field_bits
    leaves, sums = plant(keys, session, k, engine)
    return ReceiverState(session, k, leaves, tree_nonces(session, len(leaves)), 0), sums


def finish_setup(state: SenderSetup, sums: TreeSums, *, backend: str | None = None) -> SenderState:
    """Set-up, step 4, server: derive the chosen base keys and grow the punctured trees.

    Args:
        state: from `choose_setup`; it is spent, unless the message is refused.
        sums: the client's message.
        backend: "kernel", "numpy", or None for the default.

    Returns:
        The state for `extend_sender`.

    Raises:
        TransferError: a spent state, or a message of another session or field.
    """
    engine = get_backend(backend)
    state.check_unspent()
    if not isinstance(sums, TreeSums):
        raise _foreign("step 4 of the set-up needs TreeSums", type(sums).__name__)
    if sums.session != state._session or sums.field_bits != state._field_bits:
        raise _foreign(
            f"the tree sums must be of this session and of {state._field_bits} field bits",
            f"another session, or {sums.field_bits} field bits",
        )
    state.spend()
    leaves = regrow(finish_base_receiver(state._base), state._delta, sums, engine)
    nonces = tree_nonces(state._session, len(leaves))
    return SenderState(state._session, state._field_bits, leaves, nonces, 0, state._delta)


def extend_receiver(
    state: ReceiverState, choices: Bytes, *, backend: str | None = None, threads: int = 1
) -> tuple[ReceiverState, Corrections, Bytes]:
    """Batch, step 1, client: mask the choice bits for the server and take the labels t_i.

    Args:
        state: from `plant_setup` or from the batch before; it is spent, unless the choices are refused.
        choices: b, uint8 or bool, shape (n,), values 0 and 1, n from 0 to 2^26.
        backend: "kernel", "numpy", or None for the default.
        threads: how many threads share the work, at least 1; the result is the same.

    Returns:
        The state for the next batch; the message for the server; the labels t, uint8, shape (n, 16).

    Raises:
        TransferError: a spent state, choices of another form, or a set-up that is used up.
    """
    engine = get_backend(backend)
    check_count(threads, least=1, most=1024, what="threads")
    state.check_unspent()
    bits = check_bits(choices)
    blocks = blocks_of(bits.size)
    check_position(state.position, blocks)
    packed = np.zeros((blocks, 16), dtype=np.uint8)
    packed.reshape(-1)[: (bits.size + 7) // 8] = np.packbits(bits, bitorder="little")
    message = Corrections.allocate(state.session, state.field_bits, state.position, bits.size)
    labels = np.empty((SECURITY * blocks, 16), dtype=np.uint8)
    state.spend()

    def work(first: int, last: int) -> None:
        engine.extend_receiver(
            state.field_bits,
            state._leaves,
            state._nonces,
            state.position + first,
            packed[first:last],
            message.rows[first:last],
            labels[SECURITY * first : SECURITY * last],
        )

    _share(work, blocks, threads)
    following = ReceiverState(state.session, state.field_bits, state._leaves, state._nonces, state.position + blocks)
    return following, message, labels[: bits.size]


def extend_sender(
    state: SenderState, corrections: Corrections, count: int, *, backend: str | None = None, threads: int = 1
) -> tuple[SenderState, Bytes]:
    """Batch, step 2, server: compute the zero labels q_i = t_i xor b_i delta.

    Args:
        state: from `finish_setup` or from the batch before; it is spent, unless the message is refused.
        corrections: the client's message.
        count: n, how many transfers the server expects; it decides, not the message.
        backend: "kernel", "numpy", or None for the default.
        threads: how many threads share the work, at least 1; the result is the same.

    Returns:
        The state for the next batch, and the labels q, uint8, shape (n, 16).

    Raises:
        TransferError: a spent state; a message of another session, field, position, or count.
    """
    engine = get_backend(backend)
    check_count(threads, least=1, most=1024, what="threads")
    count = check_count(count)
    state.check_unspent()
    if not isinstance(corrections, Corrections):
        raise _foreign("step 2 of a batch needs Corrections", type(corrections).__name__)
    if corrections.session != state.session or corrections.field_bits != state.field_bits:
        raise _foreign(
            f"the corrections must be of this session and of {state.field_bits} field bits",
            f"another session, or {corrections.field_bits} field bits",
        )
    if corrections.position != state.position or corrections.count != count:
        raise _foreign(
            f"the corrections must be the next batch: {count} transfers from block {state.position}",
            f"{corrections.count} transfers from block {corrections.position}",
        )
    blocks = blocks_of(count)
    labels = np.empty((SECURITY * blocks, 16), dtype=np.uint8)
    state.spend()

    def work(first: int, last: int) -> None:
        engine.extend_sender(
            state.field_bits,
            state._leaves,
            state._nonces,
            state.position + first,
            state._delta,
            corrections.rows[first:last],
            labels[SECURITY * first : SECURITY * last],
        )

    _share(work, blocks, threads)
    following = SenderState(
        state.session, state.field_bits, state._leaves, state._nonces, state.position + blocks, state._delta
    )
    return following, labels[:count]


def _share(work: Callable[[int, int], None], blocks: int, threads: int) -> None:
    """Run `work(first, last)` over all blocks, in `threads` contiguous parts."""
    cuts = [blocks * part // threads for part in range(threads + 1)]
    parts = [(first, last) for first, last in pairwise(cuts) if first < last]
    if len(parts) <= 1:
        for first, last in parts:
            work(first, last)
        return
    with ThreadPoolExecutor(len(parts)) as pool:
        for done in [pool.submit(work, first, last) for first, last in parts]:
            done.result()


def _foreign(must: str, got: str) -> TransferError:
    return TransferError(problem(must, got=got, remedy="end the session and start it again", where="the OT extension"))
