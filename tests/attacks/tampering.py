"""A channel that spoils one frame, and the ways of spoiling it: what the attacks on the protocol share."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from deepreduce.errors import DeepReduceError
from deepreduce.private.wire import Channel, Kind, PeerError
from deepreduce.private.wire.frames import encode_header, flat_view

from ..private.service.parties import tiny

DEADLINE, SLACK = 30.0, 30.0
"""Seconds that a party waits for one message, and what a busy machine may add."""

Attack = Callable[["Tampering", Kind, bytes], None]


class Tampering(Channel):
    """A channel whose owner follows the protocol but for the frames of one kind."""

    target: Kind
    attack: Attack
    spoiled: int

    @classmethod
    def take_over(cls, channel: Channel, target: Kind, attack: Attack) -> Tampering:
        channel.__class__ = cls
        assert isinstance(channel, Tampering)
        channel.target, channel.attack, channel.spoiled = target, attack, 0  # type: ignore[method-assign]
        return channel

    def send(self, kind: Kind, *parts: Any, deadline_seconds: float | None = None) -> None:
        if kind != self.target or self.spoiled:
            super().send(kind, *parts, deadline_seconds=deadline_seconds)
            return
        self.spoiled += 1
        self.attack(self, kind, b"".join(bytes(flat_view(part)) for part in parts))

    def honest(self, kind: Kind, body: bytes) -> None:
        super().send(kind, body)

    def raw(self, data: bytes) -> None:
        """Bytes that no channel would send; the peer may hang up before it took them."""
        with contextlib.suppress(OSError):
            self._sock.settimeout(1.0)
            self._sock.sendall(data)
        self._sent_frames += 1


def _same_kind(change: Callable[[bytes], bytes]) -> Attack:
    return lambda channel, kind, body: channel.honest(kind, change(body))


def _replay(channel: Tampering, kind: Kind, body: bytes) -> None:
    channel.honest(kind, body)
    channel._sent_frames -= 1
    channel.honest(kind, body)


def _twice(channel: Tampering, kind: Kind, body: bytes) -> None:
    channel.honest(kind, body)
    channel.honest(kind, body)


def _skipped(channel: Tampering, kind: Kind, body: bytes) -> None:
    channel._sent_frames += 1
    channel.honest(kind, body)


def _other_kind(channel: Tampering, kind: Kind, body: bytes) -> None:
    channel.honest(Kind.KEY if kind != Kind.KEY else Kind.INPUT, body)


def _unknown_kind(channel: Tampering, kind: Kind, body: bytes) -> None:
    header = bytearray(encode_header(kind, channel._sent_frames, len(body)))
    header[3] = 77
    channel.raw(bytes(header) + body)


def _other_version(channel: Tampering, kind: Kind, body: bytes) -> None:
    header = bytearray(encode_header(kind, channel._sent_frames, len(body)))
    header[2] = 9
    channel.raw(bytes(header) + body)


def _huge(channel: Tampering, kind: Kind, body: bytes) -> None:
    channel.raw(encode_header(kind, channel._sent_frames, 2**63) + body)


def _cut(channel: Tampering, kind: Kind, body: bytes) -> None:
    frame = encode_header(kind, channel._sent_frames, len(body)) + body
    channel.raw(frame[: max(8, len(frame) * 2 // 3)])
    channel.abort()


def _goodbye(channel: Tampering, kind: Kind, body: bytes) -> None:
    channel.honest(Kind.BYE, b"")


ATTACKS: dict[str, Attack] = {
    "random bytes": _same_kind(lambda body: os.urandom(len(body))),
    "zeros": _same_kind(lambda body: bytes(len(body))),
    "ones": _same_kind(lambda body: b"\xff" * len(body)),
    "half random": _same_kind(lambda body: body[: len(body) // 2] + os.urandom(len(body) - len(body) // 2)),
    "one byte less": _same_kind(lambda body: body[:-1]),
    "one byte more": _same_kind(lambda body: body + b"\0"),
    "nothing": _same_kind(lambda _: b""),
    "another kind": _other_kind,
    "an unknown kind": _unknown_kind,
    "another version": _other_version,
    "replayed": _replay,
    "sent twice": _twice,
    "out of order": _skipped,
    "a huge length": _huge,
    "cut off": _cut,
    "goodbye": _goodbye,
}
"""Ways of sending something else than what comes next."""


def ending(work: Any) -> str:
    """How an attack ends for the party that plays by the rules: a label, or the kind of error."""
    begin = time.monotonic()
    try:
        labels = work()
        assert labels.max() < tiny().client.public.classes
        return "label"
    except PeerError as error:
        return error.code
    except DeepReduceError as error:
        assert len(str(error)) < 1000
        return type(error).__name__
    finally:
        assert time.monotonic() - begin < DEADLINE + SLACK
