"""Enrolment: what a gateway asks of the site CA, what the CA answers, and the one-time code that binds both. Pure but for key files.

Two ways, one pair of messages. By files: `identity csr` writes the request, a person carries it and compares fingerprints, `ca sign`
writes the answer, `identity install` checks it against the gateway's own keys. By network: the same bytes over HTTPS, bound by a
code that a person read aloud; the link itself is trusted by nobody.

Specification. Messages are deterministic CBOR:

    request  ["ebbgate enrolment request 1", gateway, certificate request (PKCS#10 PEM), [key statement proposals]]
    answer   ["ebbgate enrolment answer 1", SHA-256 of the request, TLS certificate (PEM), [key statements], receiver's CA (PEM),
              public receipt key (PEM)]

Code: 12 characters out of 31 (no 0, 1, I, L, O... that are misread), written in fours: 59 bits, valid 24 h, once. Both sides derive
K = scrypt(code, salt "ebbgate enrolment 1" | gateway, N 2^14, r 8, p 1); the CA keeps K, never the code. With the request travels
HMAC-SHA-256(K, "request" | request), with the answer HMAC-SHA-256(K, "answer" | SHA-256 of the request | answer): who stands between
can replace neither. CODE_ATTEMPTS_MAX wrong codes and the invitation is dead.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from buffer import limits
from buffer.cose import decode_cbor, encode_cbor
from buffer.errors import CorruptError
from buffer.storage import publish_file
from gateway.errors import TrustError
from gateway.trust import certs, keys

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping
    from pathlib import Path

PATH: Final = "/v1/enrolment"  # POST [message, HMAC], answered by the same; status 403: the code is not accepted
MESSAGE_BYTES_MAX: Final = 64 * 1024
BODY_BYTES_MAX: Final = MESSAGE_BYTES_MAX + 1024
STREAMS_MAX: Final = 64
CODE_VALID_NS: Final = 24 * 3_600 * 10**9
CODE_ATTEMPTS_MAX: Final = 5
INVITES_MAX: Final = 1_000
ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
_CODE_CHARS: Final = 12
_REQUEST: Final = "ebbgate enrolment request 1"
_ANSWER: Final = "ebbgate enrolment answer 1"


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
class Answer:
    """What the CA answers."""

    request_sha256: bytes
    certificate: bytes
    statements: tuple[bytes, ...]
    receiver_ca: bytes
    receipt_key: bytes


@dataclass(frozen=True, slots=True)
class Identity:
    """Files of a gateway: what is made, and where the answer goes."""

    tls_key: Path
    certificate: Path
    receiver_ca: Path
    receipt_key: Path
    data_keys: Mapping[str, Path]  # stream -> key; its statement goes to <stem>.statement beside it


# ---- messages ----


def parse_request(data: bytes) -> Request:
    """Return the request; raise CorruptError."""
    match _message(data):
        case [kind, str(gateway), bytes(csr), list(proposals)] if kind == _REQUEST:
            pass
        case _:
            raise CorruptError("not an enrolment request")
    if not re.fullmatch(limits.ID_PATTERN, gateway) or ".." in gateway or len(proposals) > STREAMS_MAX:
        raise CorruptError("enrolment request names no gateway, or too many streams")
    return Request(gateway, csr, _all_bytes(proposals))


def parse_answer(data: bytes) -> Answer:
    """Return the answer; raise CorruptError."""
    match _message(data):
        case [kind, bytes(digest), bytes(certificate), list(statements), bytes(ca), bytes(receipt)] if kind == _ANSWER:
            return Answer(digest, certificate, _all_bytes(statements), ca, receipt)
    raise CorruptError("not an enrolment answer")


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


# ---- the three steps ----


def make_request(identity: Identity, gateway: str) -> bytes:
    """Return the request; keys are made where there are none. Raises TrustError."""
    csr = certs.make_request(identity.tls_key, gateway)
    proposals: list[bytes] = []
    for stream, path in sorted(identity.data_keys.items()):
        signer = keys.load_signer(path) if path.exists() else keys.create_signer(path)
        proposals.append(keys.propose_statement(signer, stream))
    return encode_cbor([_REQUEST, gateway, csr, proposals])


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
    if answer.request_sha256 != hashlib.sha256(request).digest():
        raise TrustError("this answers another request", "Install the answer to the newest request of this gateway.")
    if not certs.certificate_fits_key(answer.certificate, identity.tls_key):
        raise TrustError("the certificate is for another key", "Make a new request and have it signed.")
    statements = {parsed.stream: (parsed, raw) for raw in answer.statements for parsed in [keys.parse_statement(raw)]}
    if set(statements) != set(identity.data_keys):
        raise TrustError(f"statements for {sorted(statements)}, wanted for {sorted(identity.data_keys)}", "Make a new request.")
    for stream, path in identity.data_keys.items():
        if statements[stream][0].key_id != keys.load_signer(path).key_id:
            raise TrustError(f"the statement of stream {stream} is about another key", "Make a new request and have it signed.")
    for stream, path in identity.data_keys.items():
        publish_file(path.with_suffix(".statement"), statements[stream][1])
    publish_file(identity.receiver_ca, answer.receiver_ca)
    publish_file(identity.receipt_key, answer.receipt_key)
    publish_file(identity.certificate, answer.certificate)  # last: with it the identity is complete


# ---- the one-time code ----


def make_code(random128: int) -> str:
    """Return a code from 128 random bits, as 4KQ7-M2XD-9TRA."""
    chars = []
    for _ in range(_CODE_CHARS):
        random128, digit = divmod(random128, len(ALPHABET))
        chars.append(ALPHABET[digit])
    text = "".join(chars)
    return "-".join(text[i : i + 4] for i in range(0, _CODE_CHARS, 4))


def derive_key(code: str, gateway: str) -> bytes:
    """Return K; raise TrustError if the code cannot be one. Lower case, blanks and hyphens do not matter."""
    text = re.sub(r"[\s-]", "", code).upper()
    if len(text) != _CODE_CHARS or any(c not in ALPHABET for c in text):
        raise TrustError("that is not a code", "It has twelve characters, as 4KQ7-M2XD-9TRA, without 0, 1, I, L, O.")
    return hashlib.scrypt(text.encode(), salt=b"ebbgate enrolment 1" + gateway.encode(), n=2**14, r=8, p=1, dklen=32)


def request_mac(key: bytes, request: bytes) -> bytes:
    """Return what binds a request to the code."""
    return hmac.digest(key, b"request" + request, "sha256")


def answer_mac(key: bytes, request: bytes, answer: bytes) -> bytes:
    """Return what binds an answer to the code and to the request."""
    return hmac.digest(key, b"answer" + hashlib.sha256(request).digest() + answer, "sha256")


class Invites:
    """The CA's list of invitations: a private file, written before anything is answered. One per gateway; a new one replaces the old."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._all: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                self._all = json.loads(keys.read_private_bytes(path))
            except ValueError as error:
                raise TrustError(f"{path}: not a list of invitations: {error}", "Remove it; every open invitation must be made again.") from None

    def invite(self, gateway: str, code: str, now_ns: int) -> None:
        """Note a new code."""
        live = {g: x for g, x in self._all.items() if x["until_ns"] > now_ns and g != gateway}
        if len(live) >= INVITES_MAX:
            raise TrustError(f"{INVITES_MAX} invitations are open", "Wait until some have been used or are a day old.")
        entry = {"key": derive_key(code, gateway).hex(), "until_ns": now_ns + CODE_VALID_NS, "attempts": CODE_ATTEMPTS_MAX, "used": ""}
        self._all = live | {gateway: entry}
        self._write()

    def redeem(self, request: bytes, mac: bytes, now_ns: int) -> bytes:
        """Return K if the code is right, and use it up; raise TrustError. The same request again (its answer was lost) is answered again."""
        gateway = parse_request(request).gateway
        entry = self._all.get(gateway)
        if entry is None or now_ns >= entry["until_ns"] or entry["attempts"] <= 0:
            raise _refused()
        key, digest = bytes.fromhex(entry["key"]), hashlib.sha256(request).hexdigest()
        if not hmac.compare_digest(request_mac(key, request), mac):
            entry["attempts"] -= 1
            self._write()
            raise _refused()
        if entry["used"] not in ("", digest):
            raise _refused()
        entry["used"] = digest
        self._write()
        return key

    def _write(self) -> None:
        publish_file(self._path, json.dumps(self._all).encode(), mode=keys.PRIVATE_MODE)


def _refused() -> TrustError:
    return TrustError(
        "the CA does not accept this code: mistyped, older than a day, used, or tried too often", "Ask for a new code: ebbgate ca invite."
    )
