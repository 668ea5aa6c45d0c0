"""HOST:PORT, as a user types it."""

from __future__ import annotations

import ipaddress
import re

from deepreduce.errors import UsageError, problem

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_LONGEST_HOST = 253


def parse_address(text: str, *, listening: bool = False, where: str | None = None) -> tuple[str, int]:
    """Take an address apart.

    Args:
        text: HOST:PORT, with an IPv6 address in brackets: example.org:9000, 127.0.0.1:9000, [::1]:9000.
        listening: whether port 0 is allowed, with which the system chooses one.
        where: the option that it was given to, for errors.

    Returns:
        The host, without brackets, and the port.

    Raises:
        UsageError: if it is no such address.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon:
        raise _wrong(text, "no port", where)
    if ":" in host and not bracketed:
        raise _wrong(text, "several colons, without brackets around an IPv6 address", where)
    if not re.fullmatch(r"[0-9]{1,5}", port) or not (0 if listening else 1) <= int(port) <= 65535:
        raise _wrong(text, f"port {port!r}", where)
    if not bracketed:
        return check_host(host, where), int(port)
    try:
        return str(ipaddress.IPv6Address(host[1:-1])), int(port)
    except ValueError as error:
        raise _wrong(text, error, where) from None


def check_host(host: str, where: str | None = None) -> str:
    """Return `host` if it is an IP address or can be a host name, else raise UsageError."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > _LONGEST_HOST or not all(_LABEL.fullmatch(label) for label in host.removesuffix(".").split(".")):
        raise UsageError(
            problem(
                "a host must be an IP address or a host name in ASCII",
                got=repr(host[: _LONGEST_HOST + 1]),
                remedy="give 127.0.0.1, ::1 or example.org, for example",
                where=where,
            )
        )
    return host


def _wrong(text: str, got: object, where: str | None) -> UsageError:
    return UsageError(
        problem(
            "an address must be HOST:PORT with a port up to 65535, and an IPv6 host in brackets",
            got=f"{text[:300]!r}: {got}",
            remedy="give 127.0.0.1:9000 or [::1]:9000, for example",
            where=where,
        )
    )
