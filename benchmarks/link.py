"""A network between two parties on one machine: real TCP over a line of so many bits per second and such a delay.

Each party gets a network namespace of its own with one interface (a TUN device); packets go from one to the other
through this process, which lets them wait in a queue as a router does. So connections behave as over a real line: they
begin slowly, they grow with each acknowledgement, and after a pause they begin slowly again. Nothing leaves the
machine. It needs Linux and the right to make namespaces, which root has.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

if sys.platform == "linux":
    import fcntl

CLIENT, SERVER = "10.77.0.1", "10.77.0.2"
"""Addresses of the parties, each in its own namespace."""

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_SET_INTERFACE, _SET_OFFLOAD = 0x400454CA, 0x400454D0  # TUNSETIFF, TUNSETOFFLOAD
_TUN, _NO_INFORMATION, _HEADER = 0x1, 0x1000, 0x4000  # IFF_TUN, IFF_NO_PI, IFF_VNET_HDR
_CHECKSUMS, _SEGMENTS = 1, 2  # TUN_F_CSUM, TUN_F_TSO4: one read may bring many segments of a connection
_HEADER_BYTES = 10
_MTU = 1500
_MOST_BYTES = 1 << 17
"""Of one read."""

_LOOK_SECONDS = 0.1
"""How often a silent line is asked whether it has ended."""

Waiting = queue.SimpleQueue[tuple[float, bytes] | None]


class Queue:
    """When packets arrive that are sent one after the other over a line.

    Args:
        bytes_per_second: of the line.
        delay_seconds: that each needs from its last byte's leaving to its arrival.
        most_bytes: that wait at most; what comes on top is lost.
    """

    def __init__(self, bytes_per_second: float, delay_seconds: float, most_bytes: int) -> None:
        self._rate, self._delay, self._most = bytes_per_second, delay_seconds, most_bytes
        self._free = 0.0  # when the line is

    def arrival(self, now: float, size: int) -> float | None:
        """Return when a packet of `size` bytes arrives that is sent `now`; None if it is lost."""
        if (self._free - now) * self._rate > self._most:
            return None
        self._free = max(self._free, now) + size / self._rate
        return self._free + self._delay


class Line:
    """Two network namespaces and the line between them, as long as the `with` block lasts.

    Args:
        bits_per_second: of each direction.
        round_trip_seconds: half of it is each direction's delay.
        queue_bytes: that wait at either end at most.
        congestion: TCP's algorithm at both ends; cubic is the default of most systems.

    Raises:
        SystemExit: this system does not let us.
    """

    def __init__(
        self,
        bits_per_second: float,
        round_trip_seconds: float,
        *,
        queue_bytes: int = 1 << 20,
        congestion: str = "cubic",
    ) -> None:
        self._queues = [Queue(bits_per_second / 8, round_trip_seconds / 2, queue_bytes) for _ in range(2)]
        self._congestion = congestion
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._devices: list[int] = []
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()

    def __enter__(self) -> Line:
        if why := unavailable():
            raise SystemExit(f"a line between two parties: {why}; --links loopback needs nothing")
        try:
            for name, own, other in (("client", CLIENT, SERVER), ("server", SERVER, CLIENT)):
                self._devices.append(self._namespace(name, own, other))
        except BaseException:
            self._end()
            raise
        for number, waits in enumerate(self._queues):
            waiting: Waiting = queue.SimpleQueue()
            one, other = self._devices[number], self._devices[1 - number]
            for work in ((_take, one, waits, waiting, self._over), (_give, other, waiting)):
                self._threads.append(threading.Thread(target=work[0], args=work[1:], daemon=True))
                self._threads[-1].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def within(self, party: str, command: Sequence[str]) -> list[str]:
        """Return the command that runs another one as "client" or "server"."""
        return ["nsenter", f"--net=/proc/{self._holders[party].pid}/ns/net", *command]

    def _namespace(self, party: str, own: str, other: str) -> int:
        """Make a party's namespace, which a process of its own holds; return its device."""
        here, there = socket.socketpair()
        with here, there:
            typed = [sys.executable, __file__, str(there.fileno()), own, other, self._congestion]
            self._holders[party] = subprocess.Popen(typed, pass_fds=[there.fileno()])
            there.close()
            _, devices, _, _ = socket.recv_fds(here, 1, 1)
        if not devices:
            raise SystemExit("a network namespace could not be set up; what ip or the system said stands above")
        return devices[0]

    def _end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for device in self._devices:
            os.close(device)
        for holder in self._holders.values():
            holder.kill()
            holder.wait()
        self._holders.clear()
        self._devices.clear()


def unavailable() -> str:
    """Return why lines cannot be made here; empty where they can."""
    if sys.platform != "linux":
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root"
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if missing:
        return f"it needs {' and '.join(missing)} (packages iproute2, util-linux)"
    if not Path("/dev/net/tun").exists():
        return "it needs /dev/net/tun"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "it needs the right to make network namespaces" if tried.returncode else ""


def _hold(descriptor: int, own: str, other: str, congestion: str) -> None:
    """Be the process that holds a namespace: make it, hand its device over, and wait to be ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begun_by = os.getppid()
    system = ctypes.CDLL(None, use_errno=True)
    if system.unshare(_NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "unshare")
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _SET_INTERFACE, struct.pack("16sH22x", b"line", _TUN | _NO_INFORMATION | _HEADER))
    fcntl.ioctl(device, _SET_OFFLOAD, _CHECKSUMS | _SEGMENTS)
    for words in (
        "link set lo up",
        f"addr add {own} peer {other} dev line",
        f"link set line mtu {_MTU} up",
        f"route replace {other} dev line congctl {congestion}",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    with socket.socket(fileno=descriptor) as parent:
        socket.send_fds(parent, [b"."], [device])
    while os.getppid() == begun_by:  # it may be killed
        time.sleep(1)


def _take(device: int, waits: Queue, waiting: Waiting, over: threading.Event) -> None:
    """Read what a party sends, and decide when it arrives; at the end of the line say so."""
    with contextlib.suppress(OSError):
        while not over.is_set():
            if not select.select([device], [], [], _LOOK_SECONDS)[0]:
                continue
            packet = os.read(device, _MOST_BYTES)
            arrival = waits.arrival(time.monotonic(), len(packet) - _HEADER_BYTES)
            if arrival is not None:
                waiting.put((arrival, packet))
    waiting.put(None)


def _give(device: int, waiting: Waiting) -> None:
    """Wait for each packet's time, and hand it to the other party."""
    while (sent := waiting.get()) is not None:
        arrival, packet = sent
        pause = arrival - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        with contextlib.suppress(OSError):  # a party that is gone
            os.write(device, packet)


if __name__ == "__main__":
    _hold(int(sys.argv[1]), *sys.argv[2:])
