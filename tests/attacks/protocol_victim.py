"""Both parties as processes of their own, one of which is killed at its n-th step; run by `test_protocol_kills.py`.

    python protocol_victim.py FOLDER client|server FIRST STRIDE

This process loads everything once and forks the parties, for every n = FIRST, FIRST + STRIDE, ... until the victim gets
to its end alive. After each death both parties start anew on the same stores and classify one more image. What
happened goes to standard output as one JSON list.

The client prepares two bundles and uses one of them. A step is a moment before a frame or in the middle of one, or
before or after a call of the store. Where nothing that lasts happens between two moments, one of them is left out; so
are those of the first bundle, which are those of the second.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deepreduce.errors import DeepReduceError
from deepreduce.private.deployment import load_client, load_server
from deepreduce.private.ring import set_threads
from deepreduce.private.service import Client, Server, ServerLimits
from deepreduce.private.store import BundleStore, BundleWriter
from deepreduce.private.store import store as store_module
from deepreduce.private.wire import Channel
from deepreduce.private.wire.frames import encode_header, flat_view

DEADLINE_SECONDS = 20.0


class Bomb:
    """Counts the steps of this process and kills it at one of them."""

    def __init__(self, at: int, told: Callable[[str], None]) -> None:
        self.at, self.count, self.told = at, 0, told
        self.created = 0

    def step(self, name: str, first: Callable[[], object] | None = None) -> None:
        if self.created == 1:  # the first bundle is being made
            return
        self.count += 1
        if self.count == self.at:
            self.told(name)
            if first is not None:
                first()
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, kind: type, name: str, *, after: bool) -> None:
        """Make a method one step, or two: before and after it."""
        own = getattr(kind, name)

        def stepping(*arguments: Any, **options: Any) -> Any:
            self.created += name == "create"
            self.step(f"before {name}")
            result = own(*arguments, **options)
            if after:
                self.step(f"after {name}")
            return result

        setattr(kind, name, stepping)

    def plant(self) -> None:
        for name in ("receive", "receive_into", "receive_any"):
            self.around(Channel, name, after=False)
        for name in ("create", "take", "take_next"):
            self.around(BundleStore, name, after=True)
        for name in ("write", "finish", "publish"):
            self.around(BundleWriter, name, after=name == "publish")
        send = Channel.send

        def stepping(channel: Channel, kind: Any, *parts: Any, **options: Any) -> None:
            body = b"".join(bytes(flat_view(part)) for part in parts)
            frame = encode_header(kind, channel._sent_frames, len(body)) + body
            self.step(f"before {kind.name}")
            self.step(f"within {kind.name}", lambda: channel._sock.sendall(frame[: (len(frame) + 1) // 2]))
            send(channel, kind, *parts, **options)

        Channel.send = stepping  # type: ignore[method-assign]


def note_what_is_taken(log: Path, bomb: Bomb | None) -> None:
    """Write every bundle's name down before anything of it is read."""
    own = store_module.open_taken

    def noting(file: Any, path: Path, name: Any, *more: Any) -> Any:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, f"{name}\n".encode())
        os.close(descriptor)
        if bomb is not None:
            bomb.step("claimed")
        return own(file, path, name, *more)

    store_module.open_taken = noting


class Play:
    """A folder with both files of a model, and both parties' stores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = load_server(folder / "server.safetensors")
        self.client = load_client(folder / "client.safetensors")
        self.client.layout.compile()
        self.server.client.layout.compile()
        self.image = np.load(folder / "image.npy")

    def store(self, role: Any) -> BundleStore:
        return BundleStore(self.folder / role, program=self.client.digest, role=role)

    def be_server(self, channel: Channel, ahead: bool) -> dict[str, Any]:
        weights, limits = self.folder / "weights", ServerLimits(deadline_seconds=DEADLINE_SECONDS)
        server = Server(self.server, self.store("server"), weights_folder=weights, limits=limits)
        server._service.pool.close()
        server._service.pool = None  # type: ignore[assignment] # this process does the work
        server.handle(channel)
        return {}

    def be_client(self, channel: Channel, ahead: bool) -> dict[str, Any]:
        try:
            with Client(channel, self.client, self.store("client"), workers=0) as client:
                if ahead:
                    client.prepare(2)
                return {"label": int(client.infer(self.image).labels[0])}
        except DeepReduceError as error:
            return {"error": type(error).__name__, "message": str(error)}

    def fork(self, role: str, mine: socket.socket, theirs: socket.socket, bomb_at: int, ahead: bool) -> tuple[int, int]:
        """Start a party; return its process and where its report comes from."""
        reading, writing = os.pipe()
        process = os.fork()
        if process:
            os.close(writing)
            return process, reading
        try:
            os.close(reading)
            theirs.close()
            bomb = Bomb(bomb_at, lambda name: os.write(writing, json.dumps({"died": name}).encode() + b"\n") and None)
            if bomb_at:
                bomb.plant()
            note_what_is_taken(self.folder / f"taken-{role}", bomb if bomb_at else None)
            with Channel(mine, deadline_seconds=DEADLINE_SECONDS) as channel:
                report = (self.be_server if role == "server" else self.be_client)(channel, ahead)
            os.write(writing, json.dumps(report | {"steps": bomb.count}).encode() + b"\n")
        except BaseException as error:
            os.write(writing, json.dumps({"crashed": repr(error)}).encode() + b"\n")
        finally:
            os._exit(0)

    def run(self, victim: str | None, at: int, *, ahead: bool) -> dict[str, Any]:
        """Run both parties to their ends."""
        ends = dict(zip(("server", "client"), socket.socketpair(), strict=True))
        other = {"server": "client", "client": "server"}
        begun = {
            role: self.fork(role, ends[role], ends[other[role]], at if role == victim else 0, ahead) for role in ends
        }
        for end in ends.values():
            end.close()
        found: dict[str, Any] = {}
        left = {process: role for role, (process, _) in begun.items()}
        ended: dict[str, float] = {}
        while left:
            process, status = os.wait()
            role = left.pop(process)
            ended[role] = time.monotonic()
            with os.fdopen(begun[role][1], "rb") as reports:
                lines = [json.loads(line) for line in reports.read().splitlines()]
            found[role] = {"exit": os.waitstatus_to_exitcode(status), **(lines[-1] if lines else {})}
        found["survived_seconds"] = 0.0 if victim is None else ended[other[victim]] - ended[victim]
        for role in ("client", "server"):
            found[f"{role}_has"] = sorted(path.name for path in (self.folder / role).glob("*/*.bundle"))
        return found


def main() -> None:
    set_threads(1)
    folder, victim, at, stride = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    play, results = Play(folder), []
    while True:
        found = play.run(victim, at, ahead=True)
        found["at"] = at
        if "died" in found[victim]:
            found["next"] = play.run(None, 0, ahead=False)
        results.append(found)
        if "died" not in found[victim]:
            break
        at += stride
    print(json.dumps(results))


if __name__ == "__main__":
    main()
