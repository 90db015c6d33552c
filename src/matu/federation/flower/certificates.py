"""Keys and certificates of a federation: an authority, the server's certificate, a key pair for every site."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from matu.errors import ConfigError
from matu.federation.address import host_port
from matu.files import whole_or_none

CURVE = ec.SECP384R1()
GREET_S = 5.0


def make_certificates(folder: Path, hosts: Sequence[str], sites: Sequence[str], days: int) -> list[Path]:
    """Write what is not there yet, and return what was written.

    `ca.key` and `ca.crt` (the authority), `server.key` and `server.pem` (for the hosts), and of every site
    `<site>.key` (OpenSSH, private) and `<site>.pub`. Nothing is ever overwritten: the same command adds sites, and with
    `server.pem` deleted makes another.

    Parameters
    ----------
    hosts
        Names and addresses by which sites reach the server.
    days
        For how long the certificates hold.

    Raises
    ------
    ConfigError
        For no host, a day count below 1, or a site whose name is no name of a file.
    """
    if not hosts or days < 1:
        raise ConfigError(
            f"{len(hosts)} hosts, {days} days: expected at least one host that sites connect to, and 1 day"
        )
    bad = [name for name in sites if not name or Path(name).name != name or name.startswith(".")]
    if bad or len(set(sites)) != len(sites) or {"ca", "server"} & set(sites):
        raise ConfigError(f"sites {', '.join(sites)}: expected names of files, each once, and neither ca nor server")
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    if (folder / "ca.crt").is_file() != (folder / "ca.key").is_file():
        raise ConfigError(f"{folder}: only one of ca.crt and ca.key is there; restore the other, or begin a new folder")
    if not (folder / "ca.crt").is_file():
        key = ec.generate_private_key(CURVE)
        name = _name("matu authority")
        authority = _builder(name, name, key.public_key(), days).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        authority = authority.add_extension(_usage(signs=True), critical=True)
        made += [_private(folder / "ca.key", key), _public(folder / "ca.crt", authority.sign(key, hashes.SHA384()))]
    if not (folder / "server.pem").is_file():
        made += _server(folder, hosts, days)
    for site in sites:
        if (folder / f"{site}.pub").is_file():  # its key may have gone to the site already
            continue
        if not (folder / f"{site}.key").is_file():
            own = ec.generate_private_key(CURVE)
            private = own.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
            made += [_write(folder / f"{site}.key", private, 0o600)]
        try:
            pair = load_ssh_private_key((folder / f"{site}.key").read_bytes(), None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{folder / f'{site}.key'}: no private key that can be read ({error})") from error
        public = pair.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        made += [_write(folder / f"{site}.pub", public + f" {site}\n".encode(), 0o644)]
    return made


def read_certificate(path: Path) -> x509.Certificate:
    """A certificate that holds today; ConfigError for anything else."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no certificate that can be read ({error})") from error
    begins, ends, now = found.not_valid_before_utc, found.not_valid_after_utc, datetime.datetime.now(datetime.UTC)
    if not begins <= now <= ends:
        raise ConfigError(
            f"{path}: holds from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M}; "
            "moved away, matu certs makes another"
        )
    return found


def check_server(folder: Path) -> None:
    """Raise ConfigError unless a server can be known by `server.pem`: it holds today, is of `ca.crt`, has its key."""
    authority, own = read_certificate(folder / "ca.crt"), read_certificate(folder / "server.pem")
    try:
        own.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ConfigError(f"{folder / 'server.pem'}: not signed by {folder / 'ca.crt'}") from error
    try:
        key = load_pem_private_key((folder / "server.key").read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder / 'server.key'}: no private key that can be read ({error})") from error
    if key.public_key() != own.public_key():
        raise ConfigError(f"{folder / 'server.key'}: is not the key of {folder / 'server.pem'}")


def greet(address: str, authority: Path) -> str | None:
    """Shake hands with a server as a site will.

    Returns
    -------
    str or None
        Why nobody answers, for now; None if the server is known.

    Raises
    ------
    ConfigError
        If who answers is not the server: no TLS, another authority, an expired certificate, another name.
    """
    host, port = host_port(address, "server")
    read_certificate(authority)
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with (
            socket.create_connection((host, port), GREET_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"the server at {address} is refused: {error.verify_message} (known is {authority}; the people of the "
            "server send a new one when theirs has changed)"
        ) from error
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:  # cut off on the way
        return str(error)
    except ssl.SSLError as error:
        raise ConfigError(f"the server at {address} is refused: it does not speak TLS ({error.reason})") from error
    except OSError as error:
        return str(error)


def _server(folder: Path, hosts: Sequence[str], days: int) -> list[Path]:
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    signer = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(CURVE)
    names = list(dict.fromkeys([*hosts, "localhost", "127.0.0.1"]))  # the server's own orders come from here
    certificate = (
        _builder(_name("matu server"), authority.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    pem = certificate.sign(signer, hashes.SHA384())
    (folder / "server.key").unlink(missing_ok=True)
    return [_private(folder / "server.key", key), _public(folder / "server.pem", pem)]


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:  # fmt: skip
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=signs, crl_sign=signs, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _private(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    return _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)


def _public(path: Path, certificate: x509.Certificate) -> Path:
    return _write(path, certificate.public_bytes(Encoding.PEM), 0o644)


def _write(path: Path, content: bytes, mode: int) -> Path:
    """A new file, whole or not there, never readable by others for a moment."""
    with whole_or_none(path) as part, open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    return path
