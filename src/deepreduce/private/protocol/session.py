"""The set-up: what client and server agree on once per connection before they prepare bundles.

    client                                           server
    OFFER    base transfers, `transfer.messages`  →
                                                  ←  CHOICES  with the start of the tweaks, and an OFFER
    SUMS     and CHOICES, with a start            →
                                                  ←  SUMS
    KEY      per set of parameters                →

There are two extensions. In the one the client chooses: its labels come from it, the server has the offset. In the
*reverse* one the server chooses, and the client has the offset, see `multiplexer`.

A session has its own identifier, offset (delta), start of tweaks, extension and homomorphic keys, all fresh. Nothing of
the extension outlives the connection: positions of its generators are used once, so a state that was written to disk
and read twice would reveal input bits. Bundles carry what the online phase needs of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...errors import problem
from ..garbling import new_start
from ..garbling.types import LABEL_BYTES, MAX_BUNDLES, GarblingError
from ..homomorphic import Keys, Parameters, PublicKey, generate_keys, key_size
from ..transfer import (
    SESSION_BYTES,
    BaseChoices,
    BaseOffer,
    ReceiverState,
    SenderState,
    TreeSums,
    base_choices_bytes,
    base_offer_bytes,
    choose_setup,
    finish_setup,
    new_delta,
    offer_setup,
    plant_setup,
    tree_sums_bytes,
)
from ..wire import Channel, Kind
from .layout import Layout
from .packing import cut

_CHOICES_PARTS = (base_choices_bytes(), LABEL_BYTES, base_offer_bytes())
_SUMS_PARTS = (tree_sums_bytes(), base_choices_bytes(), LABEL_BYTES)
"""Of the messages of the set-up that carry more than one thing."""


def setup_bytes(layout: Layout) -> int:
    """Return what the messages of the set-up take in both directions, without their headers."""
    keys = sum(key_size(parameters) for parameters in layout.parameters)
    return base_offer_bytes() + sum(_CHOICES_PARTS) + sum(_SUMS_PARTS) + tree_sums_bytes() + keys


class _Numbered:
    """Counts the bundles of a session: each number is given out once."""

    def __init__(self) -> None:
        self._next = 0

    def take(self) -> int:
        """Return the next number.

        Raises:
            GarblingError: the session has made as many bundles as its tweaks can name.
        """
        if self._next >= MAX_BUNDLES:
            raise GarblingError(
                problem("a session has at most 2^48 bundles", got=self._next, remedy="connect again for a new session")
            )
        self._next += 1
        return self._next - 1


@dataclass
class ClientSession:
    """The client after the set-up.

    Attributes:
        identifier: 16 bytes, from the server.
        start: of the tweaks, 16 bytes, public.
        transfers: the extension in which it chooses; replaced with every batch.
        reverse: the one in which the server chooses, likewise.
        reverse_start: of the tweaks for that one, 16 bytes, public.
        keys: by parameters.
        numbers: of the bundles.
    """

    identifier: bytes
    start: bytes
    transfers: ReceiverState = field(repr=False)
    reverse: SenderState = field(repr=False)
    reverse_start: bytes
    keys: dict[Parameters, Keys] = field(repr=False)
    numbers: _Numbered = field(default_factory=_Numbered)


@dataclass
class ServerSession:
    """The server after the set-up.

    Attributes:
        identifier, start, reverse_start, numbers: as at the client.
        transfers: the extension in which the client chooses, keeper of delta; replaced with every batch.
        reverse: the one in which the server chooses, likewise.
        keys: the client's public keys by parameters.
    """

    identifier: bytes
    start: bytes
    transfers: SenderState = field(repr=False)
    reverse: ReceiverState = field(repr=False)
    reverse_start: bytes
    keys: dict[Parameters, PublicKey] = field(repr=False)
    numbers: _Numbered = field(default_factory=_Numbered)

    @property
    def delta(self) -> NDArray[np.uint8]:
        """The garbler's offset."""
        return self.transfers.delta


def setup_client(channel: Channel, layout: Layout, identifier: bytes) -> ClientSession:
    """Run the client's side of the set-up.

    Args:
        channel: to the server.
        layout: the program's.
        identifier: of the session, 16 bytes from the server's welcome.

    Raises:
        TransferError, WireError: the server does not follow the protocol.
    """
    waiting, offer = offer_setup(identifier)
    channel.send(Kind.OFFER, offer.encode())
    answer = bytes(channel.receive(Kind.CHOICES, sum(_CHOICES_PARTS)))
    choices, start, offered = cut(answer, _CHOICES_PARTS)
    transfers, sums = plant_setup(waiting, BaseChoices.decode(choices))
    choosing, own = choose_setup(_reversed(identifier), new_delta(), BaseOffer.decode(offered))
    reverse_start = new_start()
    channel.send(Kind.SUMS, sums.encode(), own.encode(), reverse_start)
    reverse = finish_setup(choosing, TreeSums.decode(bytes(channel.receive(Kind.SUMS, tree_sums_bytes()))))
    keys = {}
    for parameters in layout.parameters:
        keys[parameters] = generate_keys(parameters)
        channel.send(Kind.KEY, PublicKey.of(keys[parameters]).to_bytes())
    return ClientSession(identifier, start, transfers, reverse, reverse_start, keys)


def setup_server(channel: Channel, layout: Layout, identifier: bytes) -> ServerSession:
    """Run the server's side of the set-up; delta and the start of the tweaks are drawn here.

    Args:
        channel: to the client.
        layout: the program's.
        identifier: of the session, 16 fresh random bytes.

    Raises:
        TransferError, MessageError, WireError: the client does not follow the protocol.
    """
    offer = BaseOffer.decode(bytes(channel.receive(Kind.OFFER, base_offer_bytes())))
    waiting, choices = choose_setup(identifier, new_delta(), offer)
    start = new_start()
    offering, own = offer_setup(_reversed(identifier))
    channel.send(Kind.CHOICES, choices.encode(), start, own.encode())
    sums, chosen, reverse_start = cut(bytes(channel.receive(Kind.SUMS, sum(_SUMS_PARTS))), _SUMS_PARTS)
    transfers = finish_setup(waiting, TreeSums.decode(sums))
    reverse, planted = plant_setup(offering, BaseChoices.decode(chosen))
    channel.send(Kind.SUMS, planted.encode())
    keys = {}
    for parameters in layout.parameters:
        message = channel.receive(Kind.KEY, key_size(parameters))
        keys[parameters] = PublicKey.from_bytes(parameters, bytes(message))
    return ServerSession(identifier, start, transfers, reverse, reverse_start, keys)


def _reversed(identifier: bytes) -> bytes:
    """Return the identifier of the set-up of the reverse extension."""
    return hashlib.sha256(b"deepreduce reverse extension\n" + identifier).digest()[:SESSION_BYTES]
