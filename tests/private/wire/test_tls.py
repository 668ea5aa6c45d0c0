"""Who may talk to whom, and what a user is told when a file or a name is wrong."""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

from deepreduce.errors import UsageError
from deepreduce.private.wire import (
    Channel,
    Kind,
    PeerGone,
    PeerTimeout,
    TlsError,
    accept,
    client_context,
    connect,
    self_signed,
    server_context,
)

Certificate = tuple[Path, Path]


class Authority:
    """A CA that signs the certificates of clients, and revokes them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "ca.pem"
        self._key, self._name = ec.generate_private_key(ec.SECP256R1()), named("ca")
        made = self._builder("ca", self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.file.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path, x509.Certificate]:
        """Return the files of a certificate and its key, and the certificate."""
        own, cert, key = (
            ec.generate_private_key(ec.SECP256R1()),
            self.folder / f"{name}.pem",
            self.folder / f"{name}.key",
        )
        made = self._builder(name, own).sign(self._key, hashes.SHA256())
        cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        key.touch(mode=0o600)
        plain = serialization.NoEncryption()
        key.write_bytes(own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        return cert, key, made

    def revoke(self, *certificates: x509.Certificate, days: int = 1) -> Path:
        """Return the file of a list that is valid until so many days from now."""
        now, file = datetime.datetime.now(datetime.UTC), self.folder / "crl.pem"
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(now - datetime.timedelta(days=9))
            .next_update(now + datetime.timedelta(days=days))
        )
        for one in certificates:
            revoked = x509.RevokedCertificateBuilder().serial_number(one.serial_number).revocation_date(now).build()
            builder = builder.add_revoked_certificate(revoked)
        file.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return file

    def _builder(self, name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def serve(
    pool: ThreadPoolExecutor, context: ssl.SSLContext, talk: Callable[[Channel], Any], host: str = "127.0.0.1"
) -> tuple[str, Any]:
    """Accept one client in a thread; return the address and the future of what `talk` returns."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)

    def run() -> Any:
        with listener:
            listener.settimeout(60)
            with accept(listener.accept()[0], context, handshake_seconds=60, deadline_seconds=60) as channel:
                return talk(channel)

    port = listener.getsockname()[1]
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}"), pool.submit(run)


def test_example(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    cert, key = self_signed(tmp_path, ["127.0.0.1"])
    address, served = serve(pool, server_context(cert, key), lambda channel: channel.receive(Kind.HELLO, 3))
    with connect(address, client_context(cert), deadline_seconds=60) as channel:
        channel.send(Kind.HELLO, b"abc")
        assert served.result(60) == b"abc"
        assert channel._sock.version() == "TLSv1.3"  # type: ignore[attr-defined]
        assert channel.name == address


def test_over_ipv6(certificate: Certificate, pool: ThreadPoolExecutor) -> None:
    try:
        address, served = serve(pool, server_context(*certificate), lambda channel: channel.send(Kind.BYE), "::1")
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with connect(address, client_context(certificate[0]), deadline_seconds=60) as channel:
        channel.receive(Kind.BYE, 0)
    served.result(60)


def test_only_tls_1_3_and_no_resumption(certificate: Certificate) -> None:
    server, client = server_context(*certificate), client_context(certificate[0])
    for context in (server, client):
        assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_3
    assert server.num_tickets == 0
    assert (client.check_hostname, client.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert len(client.get_ca_certs()) <= 1  # none of the system's


def test_the_server_name_may_differ_from_the_address(certificate: Certificate, pool: ThreadPoolExecutor) -> None:
    address, served = serve(pool, server_context(*certificate), lambda channel: channel.send(Kind.BYE))
    with connect(address, client_context(certificate[0]), deadline_seconds=60, server_name="localhost") as channel:
        channel.receive(Kind.BYE, 0)
    served.result(60)


def test_clients_with_certificates(certificate: Certificate, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    cert, key = self_signed(tmp_path, ["client"])
    context = server_context(*certificate, client_ca=cert)
    address, served = serve(pool, context, lambda channel: channel.receive(Kind.HELLO, 0))
    with connect(address, client_context(certificate[0], cert, key), deadline_seconds=60) as channel:
        channel.send(Kind.HELLO)
        served.result(60)


def test_the_server_knows_the_certificate_of_a_client(
    certificate: Certificate, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    cert, key = self_signed(tmp_path, ["client"])
    der = ssl.PEM_cert_to_DER_cert(cert.read_text())
    printed = hashlib.sha256(der).hexdigest()  # as `openssl x509 -fingerprint -sha256` does
    signed = hashlib.sha256(x509.load_der_x509_certificate(der).tbs_certificate_bytes).hexdigest()
    known: list[tuple[str, str]] = []
    context = server_context(*certificate, client_ca=cert)
    for ours, wanted in (((cert, key), context), ((None, None), server_context(*certificate))):
        address, served = serve(pool, wanted, lambda channel: known.append((channel.certificate, channel.name)))
        with connect(address, client_context(certificate[0], *ours), deadline_seconds=60):
            served.result(60)
    (first, name), (second, plain) = known
    assert first == signed and printed[:16] in name and (second, plain) == ("", "client")


def test_a_certificate_with_another_signature_is_the_same_client(
    certificate: Certificate, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """Its holder makes one without the CA: of ECDSA, (r, n - s) is a signature where (r, s) is one (SEC 1, 4.1.4)."""
    authority = Authority(tmp_path)
    cert, key, found = authority.issue("client")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
    r, s = utils.decode_dss_signature(found.signature)
    other = utils.encode_dss_signature(r, order - s)
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    body = found.tbs_certificate_bytes + algorithm + bytes([3, len(other) + 1, 0]) + other
    twin = tmp_path / "twin.pem"
    twin.write_text(ssl.DER_cert_to_PEM_cert(b"\x30\x82" + len(body).to_bytes(2, "big") + body))
    context = server_context(*certificate, client_ca=authority.file)
    known = []
    for shown in (cert, twin):
        address, served = serve(pool, context, lambda channel: (channel.certificate, channel.name))
        with connect(address, client_context(certificate[0], shown, key), deadline_seconds=60):
            known.append(served.result(60))
    assert known[0][0] == known[1][0] and known[0][1] != known[1][1]


@pytest.mark.parametrize(
    ("revoked", "days", "said"),
    [("other", 1, ""), ("client", 1, "must not be revoked"), ("other", -1, "must be the CA's own, and valid now")],
    ids=["another one", "this one", "an old list"],
)
def test_certificates_that_are_revoked(
    certificate: Certificate, tmp_path: Path, pool: ThreadPoolExecutor, revoked: str, days: int, said: str
) -> None:
    authority = Authority(tmp_path)
    issued = {name: authority.issue(name) for name in ("client", "other")}
    crl = authority.revoke(issued[revoked][2], days=days)
    context = server_context(*certificate, client_ca=authority.file, client_crl=crl)
    address, served = serve(pool, context, lambda channel: channel.receive(Kind.HELLO, 0))
    with connect(address, client_context(certificate[0], *issued["client"][:2]), deadline_seconds=60) as channel:
        if not said:
            channel.send(Kind.HELLO)
            served.result(60)
            return
        with pytest.raises(TlsError, match=rf"{said}. Got: .*Do: .*Where: client"):
            served.result(60)
        with pytest.raises(TlsError, match="must trust this side's certificate"):
            channel.receive(Kind.WELCOME, 0)


def test_a_list_of_revoked_certificates_needs_its_ca(certificate: Certificate, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with pytest.raises(TlsError, match=r"needs the CA that signed it. Got: no CA. Do: .*Where: .*crl.pem"):
        server_context(*certificate, client_crl=authority.revoke())
    with pytest.raises(TlsError, match=r"a list of revoked certificates in PEM format. Got: no X509 CRL block"):
        server_context(*certificate, client_ca=authority.file, client_crl=authority.file)


def test_clients_without_certificate(certificate: Certificate, pool: ThreadPoolExecutor) -> None:
    context = server_context(*certificate, client_ca=certificate[0])
    address, served = serve(pool, context, lambda channel: channel.receive(Kind.HELLO, 0))
    # In TLS 1.3 the client's handshake ends before the server has looked at its certificate.
    with connect(address, client_context(certificate[0]), deadline_seconds=60) as channel:
        with pytest.raises(TlsError, match="certificate where one is asked for"):
            served.result(60)
        with pytest.raises(
            TlsError, match=r"must show its certificate to this server. Got: none. Do: .*--cert and --key. Where: 127"
        ):
            channel.receive(Kind.WELCOME, 0)


def test_sending_without_certificate(certificate: Certificate, pool: ThreadPoolExecutor) -> None:
    context = server_context(*certificate, client_ca=certificate[0])
    address, served = serve(pool, context, lambda channel: channel.receive(Kind.HELLO, 0))
    with connect(address, client_context(certificate[0]), deadline_seconds=60) as channel:
        assert isinstance(served.exception(60), TlsError)
        with pytest.raises(
            TlsError, match=r"must show its certificate to this server. Got: none. Do: .*--cert and --key. Where: 127"
        ):
            for _ in range(100):
                channel.send(Kind.HELLO)


def test_what_is_in_the_certificate(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cert, key = self_signed(tmp_path / "new" / "folder", ["example.org", "127.0.0.1", "::1"])
    finally:
        os.umask(before)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert [path.name for path in sorted(cert.parent.iterdir())] == ["cert.pem", "key.pem"]
    read = x509.load_pem_x509_certificate(cert.read_bytes())
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert not read.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    left = read.not_valid_after_utc.timestamp() - time.time()
    assert 29.9 < left / 86400 <= 30
    assert read.not_valid_before_utc.timestamp() < time.time()


def test_openssl_believes_the_certificate(tmp_path: Path) -> None:
    cert, _ = self_signed(tmp_path, ["example.org"])
    try:
        said = subprocess.run(
            ["openssl", "verify", "-purpose", "sslserver", "-verify_hostname", "example.org", "-CAfile", cert, cert],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no openssl program")
    assert said.stdout.strip() == f"{cert}: OK", said.stderr


@pytest.mark.parametrize("existing", ["cert.pem", "key.pem"])
def test_no_certificate_is_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(TlsError, match="hold no certificate yet"):
        self_signed(tmp_path, ["localhost"])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(existing, "precious")]


@pytest.mark.parametrize("hosts", [[], "localhost", ["two words"], [""]])
def test_hosts_that_are_none(tmp_path: Path, hosts: Any) -> None:
    with pytest.raises(UsageError, match="host"):
        self_signed(tmp_path, hosts)


def test_files_that_are_missing(certificate: Certificate, tmp_path: Path) -> None:
    cert, key = certificate
    missing = tmp_path / "missing.pem"
    calls: list[Callable[[], object]] = [
        lambda: server_context(missing, key),
        lambda: server_context(cert, missing),
        lambda: server_context(cert, key, client_ca=missing),
        lambda: client_context(missing),
        lambda: client_context(tmp_path),
    ]
    for call in calls:
        with pytest.raises(TlsError, match=r"must exist .* Do: correct the path"):
            call()


def test_files_that_are_no_pem(certificate: Certificate, tmp_path: Path) -> None:
    cert, key = certificate
    wrong = tmp_path / "wrong.pem"
    calls: list[Callable[[], object]] = [
        lambda: server_context(wrong, key),
        lambda: server_context(cert, wrong),
        lambda: client_context(wrong),
    ]
    for content in (
        b"",
        b"\x30\x82",
        b"-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nAAAA\n",
        b"x" * (2**20 + 1),
    ):
        wrong.write_bytes(content)
        wrong.chmod(0o600)
        for call in calls:
            with pytest.raises(TlsError, match="PEM format"):
                call()


def test_a_key_of_another_certificate(certificate: Certificate, tmp_path: Path) -> None:
    _, other = self_signed(tmp_path, ["localhost"])
    with pytest.raises(TlsError, match="do not belong together"):
        server_context(certificate[0], other)


@pytest.mark.skipif(os.name != "posix", reason="file modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_may_read(tmp_path: Path, mode: int) -> None:
    cert, key = self_signed(tmp_path, ["localhost"])
    key.chmod(mode)
    for call in (lambda: server_context(cert, key), lambda: client_context(cert, cert, key)):
        with pytest.raises(TlsError, match=f"Got: mode {mode:04o}. Do: chmod 600 "):
            call()


def test_a_key_with_a_password(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path, ["localhost"])
    plain = serialization.load_pem_private_key(key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(plain.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    with pytest.raises(TlsError, match="openssl pkey"):
        server_context(cert, key)


def test_a_certificate_without_its_key(certificate: Certificate) -> None:
    with pytest.raises(TlsError, match="give the key"):
        client_context(certificate[0], cert=certificate[0])
    with pytest.raises(TlsError, match="give the certificate"):
        client_context(certificate[0], key=certificate[1])


def test_nobody_listens(certificate: Certificate) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can have the port
        port = held.getsockname()[1]
        with pytest.raises(
            PeerGone, match=f"Connection refused. Do: start it there with `.*--listen 127.0.0.1:{port}`"
        ):
            connect(f"127.0.0.1:{port}", client_context(certificate[0]), deadline_seconds=60)


def test_no_such_host(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(PeerGone, match="host must have an address. Got: .*not known"):
        connect("nowhere.invalid:9000", client_context(certificate[0]), deadline_seconds=1)


def test_the_second_address_is_tried(
    certificate: Certificate, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, served = serve(pool, server_context(*certificate), lambda channel: channel.send(Kind.BYE))
    port = int(address.rpartition(":")[2])
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", at) for at in (held.getsockname(), ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with connect(f"localhost:{port}", client_context(certificate[0]), deadline_seconds=60) as channel:
            channel.receive(Kind.BYE, 0)
        served.result(60)


def test_a_server_that_does_not_answer(certificate: Certificate) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(PeerTimeout, match="handshake within the deadline"),
    ):
        connect(f"127.0.0.1:{silent.getsockname()[1]}", client_context(certificate[0]), deadline_seconds=2)


def test_connections_are_closed_when_a_deadline_is_none(certificate: Certificate) -> None:
    left, right = socket.socketpair()
    with right, pytest.raises(UsageError, match="deadline"):
        accept(left, server_context(*certificate), handshake_seconds=0)
    assert left.fileno() == -1
