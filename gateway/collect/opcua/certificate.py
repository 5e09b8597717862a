"""Certificates of OPC UA applications (OPC 10000-6, 6.2), as PLCs really make them: what people compare, and whether a CA vouches for one.

`cryptography` refuses some that work in every other client (NULL parameters, negative serial numbers, odd extensions). Nothing of what
it refuses is needed to speak with a pinned server: only the public key is, and that is found by walking the DER (RFC 5280, 4.1).

A trust directory holds certificates (DER or PEM, *.der *.crt *.cer *.pem) and revocation lists (*.crl). A server is trusted when its own
certificate lies there, or when a chain of signatures leads to a certificate authority there and no list of that authority names it.
Validity times are shown and never enforced: clocks of plants are wrong, and no expiry ever stops collection.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.errors import TrustError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

CERTIFICATE_BYTES_MAX: Final = 64 * 1024  # a chain of ten; more is no certificate
CHAIN_MAX: Final = 6  # certificates from server to authority
TRUSTED_FILES_MAX: Final = 256  # in a trust directory
KEY_BITS_MIN: Final = 2048  # of every policy that is not weak (OPC 10000-7)
_SEQUENCE, _VERSION_TAG = 0x30, 0xA0
_BEFORE_KEY: Final = 5  # serial, algorithm, issuer, validity, subject
_ODD: Final = (  # what cryptography raises on what it does not like
    *(ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion),
    *(x509.UnsupportedGeneralNameType, x509.DuplicateExtension, x509.ExtensionNotFound),
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a person compares. Times and names are None and "" where the certificate is too odd to be read in full (`odd` says why)."""

    sha1: str  # "AB:CD:..."
    sha256: str
    subject: str
    issuer: str
    uri: str  # ApplicationUri, from the subject's alternative names
    not_before: datetime | None
    not_after: datetime | None
    key_bits: int
    odd: str = ""


class Peer:
    """A server's certificate as asyncua needs it: its key and its bytes, unchanged."""

    def __init__(self, der: bytes) -> None:
        self._der = der
        self._key = public_key(der)

    def public_key(self) -> rsa.RSAPublicKey:
        """Return the RSA key."""
        return self._key

    def public_bytes(self, _encoding: object) -> bytes:
        """Return the DER as it came."""
        return self._der


def first_certificate(der: bytes) -> bytes:
    """Return the first certificate of a chain of DER certificates."""
    return split_chain(der)[0] if der[:2] == b"\x30\x82" else der


def split_chain(der: bytes) -> list[bytes]:
    """Return the certificates of a chain, at most CHAIN_MAX; the rest where it is no DER."""
    found: list[bytes] = []
    while der and len(found) < CHAIN_MAX:
        size = int.from_bytes(der[2:4], "big") + 4 if der[:2] == b"\x30\x82" else len(der)
        found.append(der[:size])
        der = der[size:]
    return found or [b""]


def fingerprint(der: bytes, name: str = "sha256") -> str:
    """Return a digest as servers show it: AB:CD:..."""
    digest = hashlib.new(name, der, usedforsecurity=False).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def load(path: Path) -> bytes:
    """Return the first certificate of a file, DER or PEM, as DER; raise TrustError."""
    try:
        with path.open("rb") as file:
            data = file.read(CERTIFICATE_BYTES_MAX)
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificates(data)[0].public_bytes(serialization.Encoding.DER)
    except (OSError, *_ODD) as error:
        raise TrustError(f"{path}: {error}", "Check name, owner and mode; DER and PEM are read.") from error
    return first_certificate(data)


def facts(der: bytes) -> Facts:
    """Return what can be known of a certificate; raise TrustError if it has no usable RSA key."""
    sha1, sha256, bits = fingerprint(der, "sha1"), fingerprint(der), public_key(der).key_size
    try:
        one = x509.load_der_x509_certificate(der)
        subject, issuer = one.subject.rfc4514_string(), one.issuer.rfc4514_string()
        return Facts(sha1, sha256, subject, issuer, _uri(one), one.not_valid_before_utc, one.not_valid_after_utc, bits)
    except _ODD as error:
        return Facts(sha1, sha256, "", "", "", None, None, bits, f"not as RFC 5280 wants it: {error}")


def _uri(one: x509.Certificate) -> str:
    try:
        names = one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return next(iter(names.get_values_for_type(x509.UniformResourceIdentifier)), "")
    except _ODD:
        return ""


def public_key(der: bytes) -> rsa.RSAPublicKey:
    """Return the RSA key of a certificate, also of one that `cryptography` refuses as a whole; raise TrustError."""
    try:
        key: Any = x509.load_der_x509_certificate(der).public_key()
    except _ODD:
        try:
            key = serialization.load_der_public_key(_key_info(der))
        except (*_ODD, IndexError) as error:
            raise TrustError(f"not a certificate with a public key: {error}", "Make a new one in the server, RSA 2048, SHA-256.") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise TrustError("the certificate has no RSA key: no security policy we speak can use it", "Make an RSA certificate in the server.")
    return key


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Return tag, start of the content and end of one DER element; raise ValueError or IndexError."""
    tag, size, start = der[at], der[at + 1], at + 2
    if size & 0x80:
        count = size & 0x7F
        size, start = int.from_bytes(der[start : start + count], "big"), start + count
    if start + size > len(der):
        raise ValueError("cut off")
    return tag, start, start + size


def _key_info(der: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo of a certificate."""
    _, at, _ = _element(der, 0)
    _, at, _ = _element(der, at)
    if der[at] == _VERSION_TAG:
        at = _element(der, at)[2]
    for _ in range(_BEFORE_KEY):
        at = _element(der, at)[2]
    if der[at] != _SEQUENCE:
        raise ValueError("no public key where one belongs")
    return der[at : _element(der, at)[2]]


# ---- trust directory ----


def check_trusted(chain: Sequence[bytes], directory: Path) -> None:
    """Return if the first certificate is trusted by what lies in the directory; raise TrustError that says what to put there."""
    known, lists = _trusted(directory)
    if chain[0] in known:
        return
    shown = fingerprint(chain[0])
    remedy = f"Put the server's certificate or its authority's into {directory}, or pin the server: ebbgate trust SOURCE."
    try:
        at = x509.load_der_x509_certificate(chain[0])
        sent = [x509.load_der_x509_certificate(one) for one in chain[1:CHAIN_MAX]]
        trusted = [x509.load_der_x509_certificate(one) for one in known]
    except _ODD as error:
        raise TrustError(f"certificate SHA-256 {shown} cannot be checked against an authority: {error}", "Pin it: ebbgate trust SOURCE.") from error
    for _ in range(CHAIN_MAX):
        issuer = _issuer(at, trusted)
        _check_revoked(at, issuer, lists)
        if issuer is not None:
            return
        issuer = _issuer(at, sent)
        if issuer is None or issuer == at:
            break
        at = issuer
    raise TrustError(f"no authority in {directory} vouches for the server's certificate, SHA-256 {shown}", remedy)


def check_directory(directory: Path) -> None:
    """Raise TrustError unless every file of a trust directory can be read and there is a certificate."""
    if not _trusted(directory)[0]:
        raise TrustError(f"{directory}: holds no certificate", "Put the authority's certificate there (DER or PEM).")


def _trusted(directory: Path) -> tuple[list[bytes], list[x509.CertificateRevocationList]]:
    if not directory.is_dir():
        raise TrustError(f"{directory}: no such directory", "Make it and put the authority's certificate there (DER or PEM).")
    certificates, lists = [], []
    for path in sorted(directory.iterdir())[:TRUSTED_FILES_MAX]:
        if path.suffix.lower() in {".der", ".crt", ".cer", ".pem"}:
            certificates.append(load(path))
        elif path.suffix.lower() == ".crl":
            try:
                data = path.read_bytes()
                pem = data.lstrip().startswith(b"-----BEGIN")
                lists.append(x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data))
            except (OSError, *_ODD) as error:
                raise TrustError(f"{path}: not a revocation list: {error}", "Fetch it from the authority again.") from error
    return certificates, lists


def _issuer(one: x509.Certificate, among: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """Return the certificate authority among these that signed one."""
    for other in among:
        try:
            basic = other.extensions.get_extension_for_class(x509.BasicConstraints).value
            if basic.ca:
                one.verify_directly_issued_by(other)
                return other
        except (InvalidSignature, *_ODD):
            continue
    return None


def _check_revoked(one: x509.Certificate, issuer: x509.Certificate | None, lists: Sequence[x509.CertificateRevocationList]) -> None:
    for revoked in lists:
        if issuer is None or revoked.issuer != issuer.subject or not revoked.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]
            continue
        if revoked.get_revoked_certificate_by_serial_number(one.serial_number) is not None:
            shown = fingerprint(one.public_bytes(serialization.Encoding.DER))
            raise TrustError(f"the authority has revoked the certificate SHA-256 {shown}", "Have the server given a new certificate.")
