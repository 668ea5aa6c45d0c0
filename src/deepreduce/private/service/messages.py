"""The small messages around the protocol: JSON objects in frames of at most a few kilobytes.

    client                                         server
    HELLO    {protocol, model}                  →
                                                ←  WELCOME  {protocol, session, reveal, images, bundles,
                                                          together}
    PREPARE  {bundles, together}                →
                                                ←  GO
             set-up, once per connection; then of so many bundles as go together
             the linear layers, and the rest in groups; for each that is finished
                                                ←  READY    {number}
             the same for the next ones, and so on, until all are there
    START    {bundles: [[session, number]..],   →
              reveal}
                                                ←  GO       the server's halves are consumed
             the online phase
        or
                                                ←  LOST     {bundles, sessions}: not all halves are there
             START again, with others in the place of those that are lost
    BYE                                         →

PREPARE and START come as often as the client likes; every other order ends in an ERROR frame. `model` is the digest of
the deployment, `session` names the bundles of this connection; sizes of everything else follow from the program.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..._json import json_field, json_list, parse_json
from ...errors import problem
from ..protocol import PROTOCOL, Reveal, lots
from ..wire import WireError

MAX_SMALL_BYTES = 65_536
"""Longest of these messages."""

MAX_IMAGES = 1024
"""Most images of one online phase, whatever the server allows."""

MAX_TOGETHER = 1024
"""Most bundles whose linear layers share ciphertexts, whatever the server allows."""

_REVEALS = ("label", "logits")


@dataclass(frozen=True)
class Hello:
    """What the client holds.

    Attributes:
        model: digest of the deployment, 32 bytes.
        protocol: version.
    """

    model: bytes
    protocol: int = PROTOCOL

    def encode(self) -> bytes:
        """Return the message."""
        return _write({"protocol": self.protocol, "model": self.model.hex()})

    @classmethod
    def decode(cls, data: bytes | bytearray) -> Hello:
        """Read the message.

        Raises:
            WireError: it is none.
        """
        with _reading("HELLO"):
            value = _read(data)
            return cls(_hex(value, "model", 32), json_field(value, "protocol", int))


@dataclass(frozen=True)
class Welcome:
    """What the server allows.

    Attributes:
        session: identifier of the connection's bundles, 16 bytes.
        reveal: what it reveals.
        images: most images of one online phase.
        bundles: most bundles of one PREPARE.
        together: most of them that are prepared together.
        protocol: version.
    """

    session: bytes
    reveal: tuple[str, ...]
    images: int
    bundles: int
    together: int
    protocol: int = PROTOCOL

    def encode(self) -> bytes:
        """Return the message."""
        return _write(
            {
                "protocol": self.protocol,
                "session": self.session.hex(),
                "reveal": list(self.reveal),
                "images": self.images,
                "bundles": self.bundles,
                "together": self.together,
            }
        )

    @classmethod
    def decode(cls, data: bytes | bytearray) -> Welcome:
        """Read the message.

        Raises:
            WireError: it is none.
        """
        with _reading("WELCOME"):
            value = _read(data)
            reveal = tuple(json_list(value, "reveal", str))
            if not reveal or not set(reveal) <= set(_REVEALS):  # the words reach a terminal
                raise ValueError(f"reveal is some of {', '.join(_REVEALS)}")
            return cls(
                _hex(value, "session", 16),
                reveal,
                _between(value, "images", 1, MAX_IMAGES),
                _between(value, "bundles", 1, 1 << 31),
                _between(value, "together", 1, MAX_TOGETHER),
                json_field(value, "protocol", int),
            )


@dataclass(frozen=True)
class Prepare:
    """What the client asks for.

    Attributes:
        bundles: how many.
        together: how many are prepared together: share ciphertexts and messages; the last ones may be fewer.
    """

    bundles: int
    together: int

    def parts(self) -> Iterator[int]:
        """Return how many are prepared together, one lot after the other."""
        return lots(self.bundles, self.together)

    def encode(self) -> bytes:
        """Return the message."""
        return _write({"bundles": self.bundles, "together": self.together})

    @classmethod
    def decode(cls, data: bytes | bytearray) -> Prepare:
        """Read the message.

        Raises:
            WireError: it is none.
        """
        with _reading("PREPARE"):
            value = _read(data)
            return cls(_between(value, "bundles", 1, 1 << 31), _between(value, "together", 1, MAX_TOGETHER))


@dataclass(frozen=True)
class Ready:
    """A bundle is durably stored at the server."""

    number: int

    def encode(self) -> bytes:
        """Return the message."""
        return _write({"number": self.number})

    @classmethod
    def decode(cls, data: bytes | bytearray) -> Ready:
        """Read the message.

        Raises:
            WireError: it is none.
        """
        with _reading("READY"):
            return cls(_between(_read(data), "number", 0, (1 << 48) - 1))


@dataclass(frozen=True)
class Lost:
    """Which bundles of a START the server cannot use; it holds its halves of the others for the next one.

    Attributes:
        bundles: their places in the START, ascending, at least one.
        sessions: those of them of which the server can use no other bundle either.
    """

    bundles: tuple[int, ...]
    sessions: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """Return the message."""
        return _write({"bundles": list(self.bundles), "sessions": [session.hex() for session in self.sessions]})

    @classmethod
    def decode(cls, data: bytes | bytearray, start: Start) -> Lost:
        """Read the message.

        Raises:
            WireError: it is none, or speaks of what the START did not name.
        """
        with _reading("LOST"):
            value = _read(data)
            places, sessions = value.get("bundles"), value.get("sessions")
            if not isinstance(places, list) or not isinstance(sessions, list):
                raise ValueError("two lists belong there")
            if not places or any(type(place) is not int for place in places) or sorted(set(places)) != places:
                raise ValueError("bundles are numbers that ascend, at least one")
            if places[0] < 0 or places[-1] >= len(start.bundles):
                raise ValueError("bundles are places in the START")
            of_them = {start.bundles[place][0].hex(): start.bundles[place][0] for place in places}
            if any(type(session) is not str or session not in of_them for session in sessions):
                raise ValueError("sessions are those of the bundles")
            return cls(tuple(places), tuple(of_them[session] for session in sessions))


@dataclass(frozen=True)
class Start:
    """Which bundles an online phase uses, one per image, and what it reveals.

    Attributes:
        bundles: (session, number) of each.
        reveal: "label" or "logits".
    """

    bundles: tuple[tuple[bytes, int], ...]
    reveal: Reveal

    def encode(self) -> bytes:
        """Return the message."""
        return _write({"bundles": [[session.hex(), number] for session, number in self.bundles], "reveal": self.reveal})

    @classmethod
    def decode(cls, data: bytes | bytearray) -> Start:
        """Read the message.

        Raises:
            WireError: it is none, or names a bundle twice.
        """
        with _reading("START"):
            value = _read(data)
            listed = value.get("bundles")
            if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_IMAGES:
                raise ValueError(f"1 to {MAX_IMAGES} bundles belong there")
            bundles = []
            for entry in listed:
                if not isinstance(entry, list) or len(entry) != 2:
                    raise ValueError("a bundle is a session and a number")
                named = {"session": entry[0], "number": entry[1]}
                bundles.append((_hex(named, "session", 16), _between(named, "number", 0, (1 << 48) - 1)))
            if len(set(bundles)) != len(bundles):
                raise ValueError("a bundle that is named twice")
            reveal = json_field(value, "reveal", str)
            if reveal == "label":
                return cls(tuple(bundles), "label")
            if reveal == "logits":
                return cls(tuple(bundles), "logits")
            raise ValueError(f"reveal is one of {', '.join(_REVEALS)}")


def _write(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _read(data: bytes | bytearray) -> dict[str, Any]:
    value = parse_json(bytes(data))
    if not isinstance(value, dict):
        raise ValueError("an object belongs there")
    return value


def _hex(value: dict[str, Any], name: str, size: int) -> bytes:
    text = json_field(value, name, str)
    found = bytes.fromhex(text)
    if len(found) != size or found.hex() != text:
        raise ValueError(f"{name} is {size} bytes in lower-case hexadecimal")
    return found


def _between(value: dict[str, Any], name: str, low: int, high: int) -> int:
    number = json_field(value, name, int)
    if not low <= number <= high:
        raise ValueError(f"{name} is {low} to {high}")
    return number


class _reading:  # noqa: N801 - reads like a statement
    """Turn whatever is wrong with a message into a WireError that names it."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (ValueError, TypeError, KeyError, RecursionError)):
            raise WireError(
                problem(
                    f"a {self._what} is the JSON that the protocol describes",
                    got=str(error)[:200],
                    remedy="run the same version of deepreduce at both parties",
                )
            ) from error
