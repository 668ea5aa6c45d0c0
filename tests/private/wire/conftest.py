"""Two parties in one process: plain sockets for the frames, TLS on loopback for the rest."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepreduce.private.wire import Channel, accept, client_context, connect, self_signed, server_context


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    left, right = socket.socketpair()
    with (
        Channel(left, deadline_seconds=60, name="right") as one,
        Channel(right, deadline_seconds=60, name="left") as two,
    ):
        yield one, two


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"), ["localhost", "127.0.0.1", "::1"])


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.fixture
def tls_pair(
    certificate: tuple[Path, Path], pool: ThreadPoolExecutor
) -> Iterator[Callable[[], tuple[Channel, Channel]]]:
    """Return a function that makes a connected client and server; all are closed at the end."""
    channels = []

    def make() -> tuple[Channel, Channel]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(60)
            accepted = pool.submit(
                lambda: accept(listener.accept()[0], server_context(*certificate), deadline_seconds=60)
            )
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            client = connect(address, client_context(certificate[0]), deadline_seconds=60)
            channels.append(client)
            channels.append(accepted.result(60))
        return client, channels[-1]

    yield make
    for channel in channels:
        channel.close()
