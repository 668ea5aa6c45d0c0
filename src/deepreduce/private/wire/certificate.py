"""A certificate that vouches for itself, for demonstrations, tests, and two parties who know each other."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from deepreduce._files import write_bytes
from deepreduce.errors import UsageError, missing_extra, problem

from .address import check_host
from .errors import TlsError

VALID_DAYS = 30
"""How long a certificate of `self_signed` is valid."""

_CLOCK_SKEW = datetime.timedelta(hours=1)  # the other party's clock may be behind ours


def self_signed(folder: Path, hosts: Sequence[str]) -> tuple[Path, Path]:
    """Make a key and a certificate that it signs itself, valid for 30 days.

    The client gives the certificate as its CA file; it can vouch for nothing but itself.

    Args:
        folder: gets cert.pem, which the clients need, and key.pem with mode 0600, which stays here.
        hosts: the names and IP addresses under which clients connect.

    Returns:
        The paths of the certificate and of the key.

    Raises:
        UsageError: if there are no hosts, or one is no host.
        TlsError: if the folder cannot be written, or holds one of the two files already.
        RunError: if the disk is full.
        MissingExtraError: if the package `cryptography` is not installed.
    """
    if isinstance(hosts, str) or not hosts:
        raise UsageError(
            problem("a certificate must be for at least one host", got=repr(hosts), remedy="give ['localhost']")
        )
    names = [check_host(host).partition("%")[0] for host in hosts]
    cert_pem, key_pem = _make(names)
    cert, key = folder / "cert.pem", folder / "key.pem"
    try:
        if cert.exists():
            raise FileExistsError("cert.pem exists")
        folder.mkdir(parents=True, exist_ok=True)
        # Private from its first moment on: a chmod afterwards would leave a gap.
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key_pem)
    except OSError as error:
        raise TlsError(
            problem(
                "the folder must be writable and hold no certificate yet",
                got=error.strerror or error,
                remedy="use the files that are there, or give another folder",
                where=folder,
            )
        ) from error
    try:
        write_bytes(cert, cert_pem)
    except BaseException:
        with contextlib.suppress(OSError):
            key.unlink()
        raise
    return cert, key


def _make(names: Sequence[str]) -> tuple[bytes, bytes]:
    """Return a fresh certificate for `names` and its key, both in PEM."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID
    except ImportError as error:
        raise missing_extra("cryptography", "private", purpose="making a certificate") from error

    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0][:64])])
    alternatives: list[x509.GeneralName] = []
    for name in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
