"""TLS 1.3 from the standard library: who may talk, and that nobody between the two parties reads or changes a byte.

The client always checks the server's certificate and its name against the one CA file it was given, never against
those of the system. The server checks certificates of clients if it was given a CA for them; without one, anybody who
reaches it may ask it for labels. Nothing older than TLS 1.3 is spoken and no session is resumed.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from pathlib import Path
from typing import Any, NoReturn

from deepreduce._files import open_to_others
from deepreduce.errors import missing_extra, printable, problem

from .address import check_host, parse_address
from .channel import Channel
from .deadline import check_deadline
from .errors import PeerGone, PeerTimeout, TlsError, WireError

_LARGEST_PEM_BYTES = 2**20
_HOSTNAME_MISMATCH, _IP_MISMATCH, _NOT_YET_VALID, _EXPIRED, _REVOKED = 62, 64, 9, 10, 23  # X509_V_ERR_... of OpenSSL
_OF_THE_LIST = (3, 8, 11, 12)  # it is missing, not signed by the CA, not valid yet, or too old


def server_context(
    cert: Path, key: Path, *, client_ca: Path | None = None, client_crl: Path | None = None
) -> ssl.SSLContext:
    """Return what the server needs to speak TLS.

    Args:
        cert: PEM file with the server's certificate, followed by those between it and the CA.
        key: PEM file with its private key, which only its owner may read.
        client_ca: PEM file with the CA that signs the clients' certificates; None lets every client in.
        client_crl: PEM file with that CA's list of revoked certificates (RFC 5280, section 5). It is read once. When it
            is no longer valid, nobody is let in.

    Raises:
        TlsError: if a file is missing, is no PEM file, may be read by others, or key and certificate do not fit; or a
            list without a CA.
    """
    context = _modern(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    _load_identity(context, cert, key)
    if client_ca is not None:
        _load_ca(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    if client_crl is not None:
        _load_crl(context, client_crl, client_ca)
    return context


def client_context(ca: Path, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """Return what the client needs to speak TLS.

    Args:
        ca: PEM file with the CA that signed the server's certificate, or with that certificate itself.
        cert: PEM file with the client's own certificate, for servers that ask for one.
        key: PEM file with its private key, which only its owner may read.

    Raises:
        TlsError: if a file is missing, is no PEM file, may be read by others, or key and certificate do not fit.
    """
    context = _modern(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    _load_ca(context, ca)
    if cert is not None and key is not None:
        _load_identity(context, cert, key)
    elif cert is not None or key is not None:
        given, missing = ("certificate", "key") if key is None else ("key", "certificate")
        raise TlsError(
            problem(
                "a certificate and its key come together",
                got=f"a {given} alone",
                remedy=f"give the {missing}",
                where=cert or key,
            )
        )
    return context


def connect(
    address: str, context: ssl.SSLContext, *, deadline_seconds: float = 60.0, server_name: str | None = None
) -> Channel:
    """Connect to a server and shake hands.

    Args:
        address: HOST:PORT, or [IPV6]:PORT.
        context: from `client_context`.
        deadline_seconds: for connection and handshake together, and then for every frame. The system's look-up of a
            host name keeps its own time.
        server_name: the name that the certificate must carry, where it is not the host of the address.

    Returns:
        The channel, which the caller closes.

    Raises:
        UsageError: if the address is none.
        PeerGone: if nobody listens there, or the other side hangs up.
        PeerTimeout: if the deadline passes.
        TlsError: if the certificate is not trusted, not valid now, or not for this name, or no TLS 1.3 comes back.
    """
    host, port = parse_address(address, where="the address to connect to")
    name = host if server_name is None else check_host(server_name)
    ends = time.monotonic() + check_deadline(deadline_seconds)
    plain = _dial(host, port, ends)
    secure = _wrap(plain, context, f"the server at {address}", address, name.partition("%")[0])
    _shake_hands(secure, max(ends - time.monotonic(), 0.001), f"the server at {address}", address, name)
    return Channel(secure, deadline_seconds=deadline_seconds, name=address)


def accept(
    connection: socket.socket,
    context: ssl.SSLContext,
    *,
    handshake_seconds: float = 10.0,
    deadline_seconds: float = 60.0,
    name: str = "client",
) -> Channel:
    """Shake hands with a client that has just connected; to be called in the thread that serves this client.

    Args:
        connection: from `socket.accept`; it belongs to the channel from now on and is closed if the handshake fails.
        context: from `server_context`.
        handshake_seconds: for the whole handshake, during which a stranger occupies a thread.
        deadline_seconds: for every frame.
        name: how error messages call the client; what its certificate says is added, where one is asked for.

    Raises:
        PeerGone, PeerTimeout, TlsError: if no handshake comes about.
    """
    try:
        check_deadline(handshake_seconds)
        check_deadline(deadline_seconds)
    except BaseException:
        connection.close()
        raise
    secure = _wrap(connection, context, "the client", name, None)
    _shake_hands(secure, handshake_seconds, "the client", name, None)
    certificate = secure.getpeercert(binary_form=True) or b""  # it is there only where it was verified
    if not certificate:
        return Channel(secure, deadline_seconds=deadline_seconds, name=name)
    name = f"{name} {_common_name(secure)} {hashlib.sha256(certificate).hexdigest()[:16]}"
    try:
        signed = hashlib.sha256(_signed_part(certificate)).hexdigest()
    except BaseException:
        secure.close()
        raise
    return Channel(secure, deadline_seconds=deadline_seconds, name=name, certificate=signed)


def _signed_part(certificate: bytes) -> bytes:
    """Return what its CA has signed of a certificate: its TBSCertificate (RFC 5280, section 4.1).

    The rest can be written in other ways by whoever holds it: with (r, s), (r, n - s) is a signature of ECDSA, too.

    Args:
        certificate: DER, verified.

    Raises:
        TlsError: it does not follow RFC 5280.
    """
    try:
        from cryptography import x509
    except ModuleNotFoundError as error:
        raise missing_extra("cryptography", "private", purpose="telling clients by their certificates") from error
    try:
        return x509.load_der_x509_certificate(certificate).tbs_certificate_bytes
    except ValueError as error:
        raise TlsError(
            problem(
                "the certificate of a client must follow RFC 5280",
                got=error,
                remedy="let the CA make another one",
                where="the certificate that the client showed",
            )
        ) from error


def _common_name(secure: ssl.SSLSocket) -> str:
    """Return the name in a verified certificate, made harmless for a log."""
    subject: Any = (secure.getpeercert() or {}).get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    return printable(str(names[0]))[:64] if names else "without a name"


def _modern(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    return context


def _dial(host: str, port: int, ends: float) -> socket.socket:
    """Connect to the first address of `host` that answers."""
    where = f"{host} port {port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise PeerGone(
            problem("the host must have an address", got=error, remedy="correct the host's name", where=where)
        ) from error
    last: OSError = TimeoutError("the deadline has passed")
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            left = ends - time.monotonic()
            if left > 0:
                sock.settimeout(left)
                sock.connect(address)
                return sock
        except OSError as error:
            last = error
        except BaseException:
            sock.close()
            raise
        sock.close()
    if isinstance(last, TimeoutError):
        raise PeerTimeout(
            problem(
                "the server must answer within the deadline",
                got="no answer",
                remedy="check the address, and that no firewall drops what is sent there",
                where=where,
            )
        ) from last
    raise PeerGone(
        problem(
            "a server must listen at this address",
            got=last.strerror or last,
            remedy=f"start it there with `deepreduce serve ... --listen {host}:{port}`, or correct the address",
            where=where,
        )
    ) from last


def _wrap(
    plain: socket.socket, context: ssl.SSLContext, peer: str, where: str, server_hostname: str | None
) -> ssl.SSLSocket:
    """Put TLS around a socket, which is an empty shell afterwards; or close it and say what was wrong."""
    try:
        plain.getpeername()  # of a peer that has gone already, wrap_socket would leave its own socket open
        return context.wrap_socket(
            plain,
            server_side=server_hostname is None,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
        )
    except BaseException as error:
        plain.close()
        if isinstance(error, OSError):
            raise _handshake_failure(error, peer, where, server_hostname) from error
        raise


def _shake_hands(sock: ssl.SSLSocket, seconds: float, peer: str, where: str, name: str | None) -> None:
    """Complete the handshake, or close the socket and say what was wrong."""
    try:
        sock.settimeout(seconds)
        sock.do_handshake()  # OpenSSL's steps together get one timeout, unlike reads and writes
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise _handshake_failure(error, peer, where, name) from error
        raise


def _handshake_failure(error: OSError, peer: str, where: str, name: str | None) -> WireError:
    must = f"{peer} must complete the TLS handshake"
    if isinstance(error, TimeoutError):
        return PeerTimeout(
            problem(
                f"{must} within the deadline",
                got="the deadline passed",
                remedy="check that it speaks TLS and is not overloaded",
                where=where,
            )
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsError(_distrust(error, peer, where, name))
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return TlsError(
            problem(
                f"{peer} must shake hands in TLS 1.3, with a certificate where one is asked for",
                got=error.reason or error,
                remedy="check that deepreduce is at both ends, and see the other side's log",
                where=where,
            )
        )
    return PeerGone(
        problem(must, got=f"the connection ended ({error})", remedy="see the other side's log", where=where)
    )


def _distrust(error: ssl.SSLCertVerificationError, peer: str, where: str, name: str | None) -> str:
    """Say why a certificate was not accepted."""
    got = error.verify_message
    if error.verify_code in (_HOSTNAME_MISMATCH, _IP_MISMATCH):
        must = f"the certificate of {peer} must be for {name}"
        remedy = "connect by a name or address that stands in the certificate, or make one that has this name"
    elif error.verify_code == _REVOKED:
        must = f"the certificate of {peer} must not be revoked"
        remedy = "ask the owner of the CA for another one"
    elif error.verify_code in _OF_THE_LIST:
        must = "the list of revoked certificates must be the CA's own, and valid now"
        remedy = "get a new one from the CA and start the server with it"
    elif error.verify_code in (_NOT_YET_VALID, _EXPIRED):
        must = f"the certificate of {peer} must be valid now"
        remedy = "renew the certificate, or set this machine's clock"
    else:
        must = f"the certificate of {peer} must be signed by the CA that this side was given"
        remedy = "get the CA file, or the self-signed certificate, of the other side from somebody you trust"
    return problem(must, got=got, remedy=remedy, where=where)


def _load_ca(context: ssl.SSLContext, ca: Path) -> None:
    _check_pem(ca, "CERTIFICATE", "a certificate")
    try:
        context.load_verify_locations(cafile=ca)
    except (OSError, ValueError) as error:
        raise _unusable(ca, "a certificate", error) from error


def _load_crl(context: ssl.SSLContext, crl: Path, ca: Path | None) -> None:
    if ca is None:
        raise TlsError(
            problem(
                "a list of revoked certificates needs the CA that signed it",
                got="no CA",
                remedy="give the CA of the clients too",
                where=crl,
            )
        )
    _check_pem(crl, "X509 CRL", "a list of revoked certificates")
    try:
        context.load_verify_locations(cafile=crl)
    except (OSError, ValueError) as error:
        raise _unusable(crl, "a list of revoked certificates", error) from error
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _load_identity(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    _check_pem(cert, "CERTIFICATE", "a certificate")
    _check_pem(key, "PRIVATE KEY", "a private key")
    _check_private(key)

    def refuse() -> NoReturn:  # OpenSSL would ask for a password at the terminal, and a server would hang
        raise TlsError(
            problem(
                "the private key must not need a password",
                got="an encrypted key",
                remedy=f"decrypt it with `openssl pkey -in {key} -out FILE` and `chmod 600 FILE`",
                where=key,
            )
        )

    try:
        context.load_cert_chain(cert, key, password=refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(
                problem(
                    "the private key must be that of the certificate",
                    got="two that do not belong together",
                    remedy="give the key that was made with the certificate",
                    where=f"{cert} and {key}",
                )
            ) from error
        raise _unusable(f"{cert} or {key}", "a certificate and its key", error) from error
    except (OSError, ValueError) as error:
        raise _unusable(f"{cert} or {key}", "a certificate and its key", error) from error


def _check_pem(path: Path, block: str, what: str) -> None:
    try:
        if not path.is_file():  # a pipe would block
            raise FileNotFoundError("no such file")
        with path.open("rb") as file:
            content = file.read(_LARGEST_PEM_BYTES + 1)
    except OSError as error:
        raise TlsError(
            problem(
                f"the file with {what} must exist and be readable",
                got=error.strerror or error,
                remedy="correct the path; docs/run-privately.md, step 2, makes a certificate and its key with openssl",
                where=path,
            )
        ) from error
    if len(content) > _LARGEST_PEM_BYTES or f"{block}-----".encode() not in content:
        raise _unusable(path, what, f"no {block} block in it")


def _check_private(key: Path) -> None:
    if mode := open_to_others(key):
        raise TlsError(
            problem(
                "a private key must be readable by its owner alone",
                got=f"mode {mode}",
                remedy=f"chmod 600 {key}, and make a new key if others may have read it",
                where=key,
            )
        )


def _unusable(where: object, what: str, got: object) -> TlsError:
    return TlsError(problem(f"the file must hold {what} in PEM format", got=got, remedy="give a PEM file", where=where))
