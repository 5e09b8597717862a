"""Enrolment: what a gateway or a receiver asks of the site CA, and what the CA answers. Pure but for key files.

Two ways, one pair of messages. By files: `init` or `identity renew` writes the request, a person carries it and compares
fingerprints, `ca sign` writes the answer, `identity install` checks it against its own keys. By network, for gateways: the same
bytes over TLS, bound by a one-time code (gateway.trust.codes).

Specification. Messages are deterministic CBOR:

    gateway's request    ["ebbgate enrolment request 1", gateway, certificate request (PKCS#10 PEM), [key statement proposals]]
    gateway's answer     ["ebbgate enrolment answer 1", SHA-256 of the request, TLS certificate (PEM), [key statements],
                          CA certificate (PEM), receiver's public receipt key (PEM)]
    receiver's request   ["ebbgate receiver request 1", receiver, certificate request (PKCS#10 PEM), public receipt key (PEM)]
    receiver's answer    ["ebbgate receiver answer 1", SHA-256 of the request, TLS certificate (PEM), CA certificate (PEM)]
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from buffer import limits
from buffer.cose import decode_cbor, encode_cbor
from buffer.errors import CorruptError, SignatureError
from buffer.storage import publish_file
from gateway.errors import TrustError
from gateway.trust import certs, keys

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping
    from pathlib import Path

MESSAGE_BYTES_MAX: Final = 64 * 1024
STREAMS_MAX: Final = 64
_REQUEST: Final = "ebbgate enrolment request 1"
_ANSWER: Final = "ebbgate enrolment answer 1"
_RECEIVER_REQUEST: Final = "ebbgate receiver request 1"
_RECEIVER_ANSWER: Final = "ebbgate receiver answer 1"


@dataclass(frozen=True, slots=True)
class Request:
    """What a gateway asks."""

    gateway: str
    csr: bytes
    proposals: tuple[bytes, ...]

    def streams(self) -> list[str]:
        """Return the streams it wants to sign for; raise CorruptError for a bad proposal."""
        return [keys.parse_proposal(x).stream for x in self.proposals]


@dataclass(frozen=True, slots=True)
class ReceiverRequest:
    """What a receiver asks."""

    name: str
    csr: bytes
    receipt_key: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What the CA answers to a gateway."""

    request_sha256: bytes
    certificate: bytes
    statements: tuple[bytes, ...]
    receiver_ca: bytes
    receipt_key: bytes


@dataclass(frozen=True, slots=True)
class Identity:
    """Files of a gateway: what is made, and where the answer goes."""

    gateway: str
    tls_key: Path
    certificate: Path
    receiver_ca: Path
    receipt_key: Path
    data_keys: Mapping[str, Path]  # stream -> key; its statement goes to <stem>.statement beside it
    request: Path


@dataclass(frozen=True, slots=True)
class ReceiverIdentity:
    """Files of a receiver."""

    name: str
    tls_key: Path
    certificate: Path
    gateways_ca: Path
    receipt_key: Path  # private; the public half is <stem>.pub beside it
    request: Path


# ---- messages ----


def parse_request(data: bytes) -> Request:
    """Return a gateway's request; raise CorruptError."""
    match _message(data):
        case [kind, str(gateway), bytes(csr), list(proposals)] if kind == _REQUEST:
            pass
        case _:
            raise CorruptError("not the enrolment request of a gateway")
    if not _is_id(gateway) or len(proposals) > STREAMS_MAX:
        raise CorruptError("enrolment request names no gateway, or too many streams")
    return Request(gateway, csr, _all_bytes(proposals))


def parse_any_request(data: bytes) -> Request | ReceiverRequest:
    """Return the request of a gateway or of a receiver; raise CorruptError."""
    match _message(data):
        case [kind, str(name), bytes(csr), bytes(receipt_key)] if kind == _RECEIVER_REQUEST and _is_id(name):
            return ReceiverRequest(name, csr, receipt_key)
        case _:
            return parse_request(data)


def parse_answer(data: bytes) -> Answer:
    """Return the answer to a gateway; raise CorruptError."""
    match _message(data):
        case [kind, bytes(digest), bytes(certificate), list(statements), bytes(ca), bytes(receipt)] if kind == _ANSWER:
            return Answer(digest, certificate, _all_bytes(statements), ca, receipt)
    raise CorruptError("not the answer of an Ebbgate CA to a gateway")


def answer_authority(data: bytes) -> bytes:
    """Return the CA certificate (PEM) that an answer of either kind carries; raise CorruptError."""
    match _message(data):
        case [kind, bytes(), bytes(), bytes(ca)] if kind == _RECEIVER_ANSWER:
            return ca
        case _:
            return parse_answer(data).receiver_ca


def _is_id(text: str) -> bool:
    return bool(re.fullmatch(limits.ID_PATTERN, text)) and ".." not in text


def _message(data: bytes) -> Any:  # noqa: ANN401 -- decoded CBOR
    if len(data) > MESSAGE_BYTES_MAX:
        raise CorruptError("enrolment message is longer than 64 KiB")
    return decode_cbor(data)


def _all_bytes(values: list[Any]) -> tuple[bytes, ...]:
    if any(type(x) is not bytes for x in values):
        raise CorruptError("enrolment message: not bytes")
    return tuple(values)


def fingerprint(message: bytes) -> str:
    """Return what two people compare: SHA-256 in groups of four."""
    text = hashlib.sha256(message).hexdigest()[:32]
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4))


# ---- the gateway's three steps ----


def make_request(identity: Identity) -> bytes:
    """Return the request; keys are made where there are none. Raises TrustError."""
    csr = certs.make_request(identity.tls_key, identity.gateway)
    proposals: list[bytes] = []
    for stream, path in sorted(identity.data_keys.items()):
        signer = keys.load_signer(path) if path.exists() else keys.create_signer(path)
        proposals.append(keys.propose_statement(signer, stream))
    return encode_cbor([_REQUEST, identity.gateway, csr, proposals])


def answer_request(authority: certs.Authority, data: bytes, receiver_ca: bytes, receipt_key: bytes, now: dt.datetime) -> bytes:
    """Return the CA's answer. Whoever calls this has decided that the request is the gateway's. Raises TrustError, CorruptError."""
    request = parse_request(data)
    foreign = [stream for stream in request.streams() if not stream.startswith(request.gateway + ".")]
    if foreign:
        raise TrustError(f"gateway {request.gateway} asks for streams that are not its own: {foreign}", "A stream is <gateway>.<name>.")
    certificate = certs.sign_request(authority, request.csr, request.gateway, now)
    signer = certs.authority_signer(authority)
    statements = [keys.endorse_statement(signer, proposal) for proposal in request.proposals]
    return encode_cbor([_ANSWER, hashlib.sha256(data).digest(), certificate, statements, receiver_ca, receipt_key])


def install_answer(identity: Identity, data: bytes, request: bytes) -> None:
    """Check an answer against the request and the gateway's own keys, then put its parts in place; raise TrustError or CorruptError."""
    answer = parse_answer(data)
    _check_fits(answer.request_sha256, request, answer.certificate, identity.tls_key, answer.receiver_ca)
    statements = {parsed.stream: (parsed, raw) for raw in answer.statements for parsed in [keys.parse_statement(raw)]}
    if set(statements) != set(identity.data_keys):
        raise TrustError(f"statements for {sorted(statements)}, wanted for {sorted(identity.data_keys)}", "Make a new request.")
    believed = keys.KeyRing([certs.authority_key(answer.receiver_ca)])
    for stream, path in identity.data_keys.items():
        if statements[stream][0].key_id != keys.load_signer(path).key_id:
            raise TrustError(f"the statement of stream {stream} is about another data key", "Make a new request and have it signed.")
        try:
            believed.introduce(statements[stream][1], stream)
        except (SignatureError, CorruptError) as error:
            raise TrustError(f"the statement of stream {stream} is not signed by the CA that came with it: {error}", "Install nothing.") from None
    keys.check_public_pem(answer.receipt_key)
    for stream, path in identity.data_keys.items():
        publish_file(path.with_suffix(".statement"), statements[stream][1])
    publish_file(identity.receiver_ca, answer.receiver_ca)
    publish_file(identity.receipt_key, answer.receipt_key)
    publish_file(identity.certificate, answer.certificate)  # last: with it the identity is complete


def _check_fits(digest: bytes, request: bytes, certificate: bytes, key: Path, authority: bytes) -> None:
    if digest != hashlib.sha256(request).digest():
        raise TrustError("this answers another request", "Install the answer to the newest request of this box, or have that one signed again.")
    if not certs.certificate_fits_key(certificate, key):
        raise TrustError("the certificate is for another key", "Make a new request and have it signed.")
    if not certs.is_signed_by(certificate, authority):
        raise TrustError("the certificate is not signed by the CA that came with it", "Install nothing; ask who made this file.")


# ---- the receiver's ----


def make_receiver_request(identity: ReceiverIdentity, hosts: list[str]) -> bytes:
    """Return the request for a certificate with these names and addresses; keys are made where there are none. Raises TrustError."""
    path = identity.receipt_key
    signer = keys.load_signer(path) if path.exists() else keys.create_signer(path)
    csr = certs.make_server_request(identity.tls_key, identity.name, hosts)
    return encode_cbor([_RECEIVER_REQUEST, identity.name, csr, keys.public_pem(signer.public)])


def answer_receiver_request(authority: certs.Authority, data: bytes, ca: bytes, now: dt.datetime) -> bytes:
    """Return the CA's answer to a receiver. Whoever calls this has decided that the request is the receiver's. Raises TrustError."""
    request = parse_any_request(data)
    if not isinstance(request, ReceiverRequest):
        raise CorruptError("not the request of a receiver")
    keys.check_public_pem(request.receipt_key)
    return encode_cbor([_RECEIVER_ANSWER, hashlib.sha256(data).digest(), certs.sign_server_request(authority, request.csr, now), ca])


def install_receiver_answer(identity: ReceiverIdentity, data: bytes, request: bytes) -> None:
    """Check an answer against the request and the receiver's own key, then put its parts in place; raise TrustError or CorruptError."""
    match _message(data):
        case [kind, bytes(digest), bytes(certificate), bytes(ca)] if kind == _RECEIVER_ANSWER:
            pass
        case _:
            raise CorruptError("not the answer of an Ebbgate CA to a receiver")
    _check_fits(digest, request, certificate, identity.tls_key, ca)
    publish_file(identity.gateways_ca, ca)
    publish_file(identity.certificate, certificate)
