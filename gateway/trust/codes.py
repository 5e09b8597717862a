"""The one-time code by which a person lets one gateway enrol over the network.

Specification. 20 characters out of 31 (none that is misread: no 0, 1, I, L, O), written in fours, as 4KQ7-M2XD-9TRA-W3HB-K6PN:

    secret, 12 characters (59 bits)       never sent. Both sides derive K = scrypt(secret, salt "ebbgate enrolment 1" | gateway,
                                          N 2^14, r 8, p 1); the CA keeps K, not the code
    fingerprint, 8 characters (39 bits)   of the CA: SHA-256 of its certificate (DER) as a number, modulo 31^8. The gateway refuses to
                                          send anything to a CA that does not fit

With the request travels HMAC-SHA-256(K, "request" | SHA-256 of the CA certificate | request), with the answer HMAC-SHA-256(K,
"answer" | SHA-256 of the CA certificate | SHA-256 of the request | answer): who stands between, even with a CA whose fingerprint was
made to fit, can replace neither and can use what was seen for nothing. Valid once (for one request; the same request is answered
again, its answer may have been lost), for CODE_VALID_NS, and for CODE_ATTEMPTS_MAX wrong tries.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from buffer.storage import publish_file
from gateway.errors import TrustError
from gateway.trust import keys
from gateway.trust.enrolment import MESSAGE_BYTES_MAX, parse_request

if TYPE_CHECKING:
    from pathlib import Path

CA_PATH: Final = "/v1/ca"  # GET: the CA certificate, PEM
PATH: Final = "/v1/enrolment"  # POST [message, HMAC], answered by the same; status 403: the code is not accepted
SERVER_NAME: Final = "enrolment.ebbgate.internal"  # in the certificate of the CA's server; looked up nowhere
BODY_BYTES_MAX: Final = MESSAGE_BYTES_MAX + 1024
CODE_VALID_NS: Final = 24 * 3_600 * 10**9
CODE_ATTEMPTS_MAX: Final = 5
CODES_MAX: Final = 1_000
FILE_BYTES_MAX: Final = 1024 * 1024
ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
_SECRET_CHARS: Final = 12
_FINGERPRINT_CHARS: Final = 8


@dataclass(frozen=True, slots=True)
class Code:
    """A code, read."""

    secret: str
    fingerprint: str

    def __str__(self) -> str:
        text = self.secret + self.fingerprint
        return "-".join(text[i : i + 4] for i in range(0, len(text), 4))


def _letters(number: int, count: int) -> str:
    chars = []
    for _ in range(count):
        number, digit = divmod(number, len(ALPHABET))
        chars.append(ALPHABET[digit])
    return "".join(chars)


def make_code(random128: int, ca_der: bytes) -> Code:
    """Return a code from 128 random bits, for the CA with this certificate."""
    return Code(_letters(random128, _SECRET_CHARS), ca_letters(ca_der))


def ca_letters(ca_der: bytes) -> str:
    """Return the eight letters that name a CA in a code."""
    return _letters(int.from_bytes(hashlib.sha256(ca_der).digest(), "big"), _FINGERPRINT_CHARS)


def parse_code(text: str) -> Code:
    """Return the code; raise TrustError if it cannot be one. Lower case, blanks and hyphens do not matter."""
    letters = re.sub(r"[\s-]", "", text).upper()
    if len(letters) != _SECRET_CHARS + _FINGERPRINT_CHARS or any(c not in ALPHABET for c in letters):
        raise TrustError(
            f"that is not a code: {len(letters)} characters", "It has twenty, as 4KQ7-M2XD-9TRA-W3HB-K6PN, without 0, 1, I, L, O."
        )
    return Code(letters[:_SECRET_CHARS], letters[_SECRET_CHARS:])


def derive_key(code: Code, gateway: str) -> bytes:
    """Return K."""
    return hashlib.scrypt(code.secret.encode(), salt=b"ebbgate enrolment 1" + gateway.encode(), n=2**14, r=8, p=1, dklen=32)


def request_mac(key: bytes, ca_der: bytes, request: bytes) -> bytes:
    """Return what binds a request to the code and to the CA it is for."""
    return hmac.digest(key, b"request" + hashlib.sha256(ca_der).digest() + request, "sha256")


def answer_mac(key: bytes, ca_der: bytes, request: bytes, answer: bytes) -> bytes:
    """Return what binds an answer to the code, to the CA and to the request."""
    return hmac.digest(key, b"answer" + hashlib.sha256(ca_der).digest() + hashlib.sha256(request).digest() + answer, "sha256")


class Codes:
    """The CA's list of open codes: a private file, read anew each time and written before anything is answered. One code per gateway;
    a new one replaces the old. Whoever calls holds the CA directory's lock."""

    def __init__(self, path: Path, ca_der: bytes) -> None:
        self._path = path
        self._ca = ca_der

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._path.exists():
            return {}
        try:
            entries = json.loads(keys.read_private_bytes(self._path, FILE_BYTES_MAX))
            return {str(g): {"key": str(x["key"]), "until_ns": int(x["until_ns"]), "attempts": int(x["attempts"]), "used": str(x["used"])}
                    for g, x in entries.items()}  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrustError(f"{self._path}: not a list of codes: {error}", "Remove it; every open code must be made again.") from None

    def open(self, now_ns: int) -> dict[str, int]:
        """Return gateway -> until when (wall ns), of codes that can still be used."""
        return {g: x["until_ns"] for g, x in self._read().items() if x["until_ns"] > now_ns and x["attempts"] > 0 and not x["used"]}

    def add(self, gateway: str, code: Code, now_ns: int) -> None:
        """Note a new code."""
        live = {g: x for g, x in self._read().items() if x["until_ns"] > now_ns and g != gateway}
        if len(live) >= CODES_MAX:
            raise TrustError(f"{CODES_MAX} codes are open", "Wait until some have been used or are a day old.")
        entry = {"key": derive_key(code, gateway).hex(), "until_ns": now_ns + CODE_VALID_NS, "attempts": CODE_ATTEMPTS_MAX, "used": ""}
        self._write(live | {gateway: entry})

    def redeem(self, request: bytes, mac: bytes, now_ns: int) -> bytes:
        """Return K if the code is right, and use it up; raise TrustError. The same request again is answered again."""
        entries = self._read()
        gateway = parse_request(request).gateway
        entry = entries.get(gateway)
        if entry is None:
            raise refused(f"there is no code for gateway {gateway}")
        if now_ns >= entry["until_ns"]:
            raise refused(f"the code for {gateway} is older than {CODE_VALID_NS // 3_600_000_000_000} hours")
        if entry["attempts"] <= 0:
            raise refused(f"the code for {gateway} was tried too often")
        key, digest = bytes.fromhex(entry["key"]), hashlib.sha256(request).hexdigest()
        if not hmac.compare_digest(request_mac(key, self._ca, request), mac):
            entry["attempts"] -= 1
            self._write(entries)
            raise refused(f"a wrong code for {gateway}; {entry['attempts']} tries are left")
        if entry["used"] not in ("", digest):
            raise refused(f"the code for {gateway} was used already")
        entry["used"] = digest
        self._write(entries)
        return key

    def _write(self, entries: dict[str, dict[str, Any]]) -> None:
        publish_file(self._path, json.dumps(entries).encode(), mode=keys.PRIVATE_MODE)


def refused(why: str) -> TrustError:
    """Return the CA's own words; the other side learns no more than that the code is not accepted."""
    return TrustError(why, "Make a new code: ebbgate ca code.")
