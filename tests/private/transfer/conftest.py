"""Two parties in one process: set-ups with fixed seeds, and the backends that run here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from deepreduce.private.transfer import (
    BaseChoices,
    BaseOffer,
    Corrections,
    ReceiverState,
    SenderState,
    TreeSums,
    available_backends,
    choose_setup,
    extend_receiver,
    extend_sender,
    finish_setup,
    new_delta,
    offer_setup,
    plant_setup,
)
from deepreduce.private.transfer._errors import Bytes

from .seeded import Seeded


@dataclass
class Pair:
    """Both parties after the set-up, and the messages of the set-up as they went over the wire."""

    client: ReceiverState
    server: SenderState
    delta: Bytes
    wire: tuple[bytes, bytes, bytes]

    def batch(self, bits: Bytes, backend: str | None = None) -> tuple[Bytes, Bytes, bytes]:
        """Run one batch through encoded messages; return t, q, and the message."""
        self.client, message, labels = extend_receiver(self.client, bits, backend=backend)
        data = bytes(message.encode())
        self.server, zeros = extend_sender(self.server, Corrections.decode(data), len(bits), backend=backend)
        return labels, zeros, data


def set_up(seed: bytes = b"seed", field_bits: int = 4, backend: str | None = None, delta: Bytes | None = None) -> Pair:
    """Run a set-up whose randomness all comes from `seed`."""
    client, server = Seeded(b"client" + seed), Seeded(b"server" + seed)
    session = Seeded(b"session" + seed)(16)
    delta = new_delta(_random=server) if delta is None else delta
    at_client, offer = offer_setup(session, field_bits, _random=client)
    first = offer.encode()
    at_server, chosen = choose_setup(session, delta, BaseOffer.decode(first), field_bits, _random=server)
    second = chosen.encode()
    receiver, sums = plant_setup(at_client, BaseChoices.decode(second), backend=backend)
    third = sums.encode()
    sender = finish_setup(at_server, TreeSums.decode(third), backend=backend)
    return Pair(receiver, sender, delta, (first, second, third))


@pytest.fixture(name="set_up", scope="session")
def _set_up() -> Callable[..., Pair]:
    return set_up


@pytest.fixture(params=available_backends())
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that runs here."""
    name: str = request.param
    return name


@pytest.fixture
def rng() -> np.random.Generator:
    """Reproducible inputs."""
    return np.random.default_rng(20210718)
