"""The line between two parties: when packets arrive, and real TCP over it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from link import SERVER, Line, Queue, unavailable

ANSWER = f"""
import socket
with socket.create_server(("{SERVER}", 7000)) as listener:
    print("ready", flush=True)
    connection, _ = listener.accept()
    with connection:
        for size in (1, 100_000, 100_000, 100_000, 100_000):
            while size:
                size -= len(connection.recv(size))
            connection.sendall(b".")
"""

ASK = f"""
import socket, time
with socket.create_connection(("{SERVER}", 7000)) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for size in (1, 100_000, 100_000, 100_000, 100_000):
        begin = time.perf_counter()
        connection.sendall(bytes(size))
        connection.recv(1)
        print(time.perf_counter() - begin)
"""


def test_packets_leave_one_after_the_other_and_arrive_later() -> None:
    line = Queue(1000.0, 0.5, 2000)
    assert line.arrival(10.0, 100) == pytest.approx(10.6)
    assert line.arrival(10.0, 100) == pytest.approx(10.7)
    assert line.arrival(20.0, 100) == pytest.approx(20.6)


def test_what_a_full_queue_gets_is_lost() -> None:
    line = Queue(1000.0, 0.5, 2000)
    found = [line.arrival(0.0, 500) for _ in range(8)]
    assert found[:5] == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0]) and found[5:] == [None] * 3
    assert line.arrival(1.0, 500) == pytest.approx(3.5)


def test_a_connection_begins_slowly() -> None:
    """100,000 bytes are 8 ms of the line; at first the sender waits for acknowledgements several times."""
    if why := unavailable():
        pytest.skip(why)
    with Line(100e6, 0.040) as line:
        with subprocess.Popen(
            line.within("server", [sys.executable, "-c", ANSWER]), stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            asked = subprocess.run(
                line.within("client", [sys.executable, "-c", ASK]),
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
        small, first, *_, last = map(float, asked.stdout.split())
    assert small > 0.040 and first > 0.100 and last > 0.048
