"""What is an address and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.errors import UsageError
from deepreduce.private.wire import parse_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.org:9000", "example.org", 9000),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:65535", "::1", 65535),
        ("[0:0::2%eth0]:80", "::2%eth0", 80),
        ("model_server-1.:9000", "model_server-1.", 9000),
    ],
)
def test_example(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "localhost:", ":9000", "localhost:0", "localhost:65536", "localhost:+1", "localhost:٣", "::1:9000", "::1",
     "[::1]", "[localhost]:9000", "[]:9000", "https://localhost:9000", "local host:9000", "a..b:1", ".a:1", "-a:1", "größe:1",
     "a" * 64 + ":1", "a." * 127 + "a:1", "a\n:1", "localhost:1\n", "localhost:123456", "[::1:9000", "user@host:1"],
)  # fmt: skip
def test_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="Do: give"):
        parse_address(text)


def test_a_listener_may_leave_the_port_to_the_system() -> None:
    assert parse_address("127.0.0.1:0", listening=True) == ("127.0.0.1", 0)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_ip_address(address: object, port: int) -> None:
    host = str(address)
    assert parse_address(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") == (host, port)


@given(st.text(max_size=30))
def test_any_text_is_refused_or_taken_apart(text: str) -> None:
    try:
        host, port = parse_address(text)
    except UsageError:
        return
    assert host
    assert 0 < port < 65536
