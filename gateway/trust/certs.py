"""Certificates and TLS contexts: the site's small CA, TLS client and server certificates, the OPC UA application certificate.

Three lives (DESIGN section 8): TLS 2 years, with a grace the receiver grants; OPC UA application certificate 20 years, valid from
2000 on, because a PLC with a wrong clock must still accept it; data keys (gateway.trust.keys) none at all.
TLS 1.3 only, both sides show certificates, the peer's CA is pinned: no system trust store is ever asked.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from buffer.storage import publish_file
from gateway.errors import TrustError
from gateway.trust.keys import KEY_FILE_BYTES_MAX, KeySigner, read_private_bytes, write_private

if TYPE_CHECKING:
    from pathlib import Path

TLS_DAYS: Final = 730
CA_DAYS: Final = 7_300
GRACE_DAYS: Final = 90  # after expiry a client certificate that is not revoked may still upload, with an alarm
OPCUA_DAYS: Final = 20 * 365
GATEWAY_URN: Final = "urn:ebbgate:gateway:"
_BACKDATE: Final = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Authority:
    """The site CA in memory."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _usage(**on: bool) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: on.get(name, False) for name in names.split()})


def create_authority(certificate: Path, key: Path, name: str, now: dt.datetime) -> Authority:
    """Make the site CA; raise TrustError if there is one."""
    private = ec.generate_private_key(ec.SECP256R1())
    write_private(key, private)
    built = (
        x509.CertificateBuilder()
        .subject_name(_name(f"{name} Ebbgate CA"))
        .issuer_name(_name(f"{name} Ebbgate CA"))
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + dt.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    publish_file(certificate, _pem(built))
    return Authority(built, private)


def load_authority(certificate: Path, key: Path) -> Authority:
    """Return the CA in these files; raise TrustError."""
    try:
        private = serialization.load_pem_private_key(read_private_bytes(key), password=None)
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise TrustError(f"{certificate}: {error}", "Restore the CA from its backup.") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise TrustError(f"{key}: not a P-256 key", "Restore the CA from its backup.")
    return Authority(loaded, private)


def authority_signer(authority: Authority) -> KeySigner:
    """Return the CA as a signer of key statements (ES256)."""
    return KeySigner(authority.key)


def load_certificate_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Return the public key in a CA certificate; raise TrustError."""
    try:
        with path.open("rb") as file:
            public = x509.load_pem_x509_certificate(file.read(KEY_FILE_BYTES_MAX)).public_key()
    except (OSError, ValueError) as error:
        raise TrustError(f"{path}: {error}", "Install what the CA answered: ebbgate identity install ANSWER.") from None
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise TrustError(f"{path}: not a P-256 certificate", "Make the CA with `ebbgate ca init`.")
    return public


def authority_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key in a CA certificate that came in a message; raise TrustError."""
    public = _parsed(pem).public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise TrustError("a CA certificate that is not P-256", "Make the CA with `ebbgate ca init`.")
    return public


def authority_der(pem: bytes) -> bytes:
    """Return a CA certificate as DER; raise TrustError."""
    return _parsed(pem).public_bytes(serialization.Encoding.DER)


def _parsed(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise TrustError(f"not a certificate: {error}", "Ask for the file again.") from None


def is_signed_by(certificate_pem: bytes, authority_pem: bytes) -> bool:
    """Say whether a certificate was issued by this CA; raise TrustError if either is none."""
    certificate, authority = _parsed(certificate_pem), _parsed(authority_pem)
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def make_request(key: Path, gateway: str) -> bytes:
    """Return a certificate request for the TLS key in `key`, PEM; the key is made, 0600, where there is none."""
    return _make_request(key, gateway, [x509.UniformResourceIdentifier(GATEWAY_URN + gateway)])


def make_server_request(key: Path, name: str, hosts: list[str]) -> bytes:
    """Return a receiver's certificate request for these names and addresses, PEM; the key is made where there is none."""
    return _make_request(key, name, [_general_name(host) for host in hosts])


def _make_request(key: Path, name: str, names: list[x509.GeneralName]) -> bytes:
    if not key.exists():
        write_private(key, ec.generate_private_key(ec.SECP256R1()))
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(name))
    request = request.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return request.sign(_load_key(key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        private = serialization.load_pem_private_key(read_private_bytes(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{path}: not a private key in PEM: {error}", "Move it away and make the request again.") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise TrustError(f"{path}: not a P-256 key", "Move it away and make the request again.")
    return private


def sign_request(authority: Authority, request_pem: bytes, gateway: str, now: dt.datetime) -> bytes:
    """Return a TLS client certificate for `gateway`, PEM; raise TrustError if the request is not for it, or not signed by its key."""
    request, names_asked = _checked_request(request_pem)
    uris = names_asked.get_values_for_type(x509.UniformResourceIdentifier)
    if uris != [GATEWAY_URN + gateway]:
        raise TrustError(f"the request is for {uris}, not for gateway {gateway!r}", "Sign the right file, or name the right gateway.")
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(GATEWAY_URN + gateway)])
    return _pem(_leaf(authority, request.public_key(), gateway, names, ExtendedKeyUsageOID.CLIENT_AUTH, now))


def sign_server_request(authority: Authority, request_pem: bytes, now: dt.datetime) -> bytes:
    """Return a TLS server certificate for the names and addresses a receiver asks for, PEM; raise TrustError."""
    request, asked = _checked_request(request_pem)
    hosts = request_hosts(request_pem)
    if not hosts:
        raise TrustError("the request names no host", "Make it again with `ebbgate init receiver --host NAME`.")
    return _pem(_leaf(authority, request.public_key(), hosts[0], asked, ExtendedKeyUsageOID.SERVER_AUTH, now))


def request_hosts(request_pem: bytes) -> list[str]:
    """Return the names and addresses a receiver's request asks for; raise TrustError."""
    _, asked = _checked_request(request_pem)
    return asked.get_values_for_type(x509.DNSName) + [str(x) for x in asked.get_values_for_type(x509.IPAddress)]


def _checked_request(request_pem: bytes) -> tuple[x509.CertificateSigningRequest, x509.SubjectAlternativeName]:
    try:
        request = x509.load_pem_x509_csr(request_pem)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        valid = request.is_signature_valid
    except (ValueError, x509.ExtensionNotFound, UnsupportedAlgorithm) as error:
        raise TrustError(f"not a certificate request of ours: {error}", "Make it again: ebbgate identity renew.") from None
    if not valid:
        raise TrustError("the request's own signature does not fit", "Make it again: ebbgate identity renew.")
    return request, names


def uris_of(extensions: x509.Extensions) -> list[str]:
    return extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.UniformResourceIdentifier)


def certificate_fits_key(certificate_pem: bytes, key: Path) -> bool:
    """Say whether a certificate is for the private key in a file; raise TrustError if either is none of ours."""
    return _parsed(certificate_pem).public_key() == _load_key(key).public_key()


def create_server_certificate(
    authority: Authority, certificate: Path, key: Path, hosts: list[str], now: dt.datetime, days: int = TLS_DAYS
) -> None:
    """Make a TLS server's key and certificate for these names and addresses."""
    private = ec.generate_private_key(ec.SECP256R1())
    write_private(key, private)
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    publish_file(certificate, _pem(_leaf(authority, private.public_key(), hosts[0], names, ExtendedKeyUsageOID.SERVER_AUTH, now, days)))


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _leaf(
    authority: Authority,
    public: object,
    name: str,
    names: x509.SubjectAlternativeName,
    purpose: x509.ObjectIdentifier,
    now: dt.datetime,
    days: int = TLS_DAYS,
) -> x509.Certificate:
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise TrustError("the request's key is not P-256", "Make it again: ebbgate identity renew.")
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(authority.certificate.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def create_application_certificate(certificate: Path, key: Path, application_uri: str, host: str, now: dt.datetime) -> None:
    """Make the OPC UA application certificate (OPC 10000-6, 6.2.2): self-signed RSA 2048, DER, from 2000 to 20 years from `now`.

    Never renewed by itself: a renewal means an import at every PLC, often a stop. Valid from 2000 on: a PLC may live in 2012.
    """
    private = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    write_private(key, private)
    start = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(_name(f"Ebbgate {host}"))
        .issuer_name(_name(f"Ebbgate {host}"))
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(now + dt.timedelta(days=OPCUA_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            _usage(digital_signature=True, content_commitment=True, key_encipherment=True, data_encipherment=True, key_cert_sign=True),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(application_uri), _general_name(host)]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    publish_file(certificate, built.public_bytes(serialization.Encoding.DER))


# ---- verdicts ----


def server_names(certificate: Path) -> list[str]:
    """Return the names and addresses a server certificate (PEM) is for, at least one; raise TrustError."""
    try:
        extensions = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise TrustError(f"{certificate}: {error}", "Name the receiver with --receiver and --address.") from None
    found = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    if not found:
        raise TrustError(f"{certificate}: names no host", "Name the receiver with --receiver and --address.")
    return found


def days_left(certificate: Path, now: dt.datetime) -> int:
    """Return how many days a PEM certificate is still valid (negative: expired); raise TrustError."""
    return (load_certificate(certificate).not_valid_after_utc - now).days


def serial(certificate: Path) -> int:
    """Return the serial number of a PEM certificate; raise TrustError."""
    return load_certificate(certificate).serial_number


def load_certificate(path: Path) -> x509.Certificate:
    """Return the certificate in a file, PEM or DER; raise TrustError."""
    try:
        data = path.read_bytes()
        return x509.load_pem_x509_certificate(data) if data.startswith(b"-----") else x509.load_der_x509_certificate(data)
    except (OSError, ValueError) as error:
        raise TrustError(f"{path}: not a certificate that can be read: {error}", "Install it again: ebbgate identity install.") from None


# ---- TLS ----

NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAGNO_CHECK_TIME: expiry is our verdict (identify_client), not OpenSSL's


def server_context(certificate: Path, key: Path, client_ca: Path) -> ssl.SSLContext:
    """Return a context that wants a client certificate of this CA; times are checked by identify_client."""
    read_private_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
    context.num_tickets = 0  # every connection shows its certificate again
    _load(context, certificate, key, client_ca)
    return context


def client_context(certificate: Path | None, key: Path | None, server_ca: Path, *, check_time: bool = True) -> ssl.SSLContext:
    """Return a context that trusts this CA alone and checks the server's name.

    Without `check_time` (a gateway whose clock is not trusted) chain, name and pin are checked, dates are not.
    """
    if key is not None:
        read_private_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if not check_time:
        context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
    _load(context, certificate, key, server_ca)
    return context


def _load(context: ssl.SSLContext, certificate: Path | None, key: Path | None, authority: Path) -> None:
    try:
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise TrustError(f"{certificate}, {key}, {authority}: {error}", "Check that the three files are there and belong together.") from None
