"""The CA's directory: what `ebbgate ca` keeps, on another user's account or, better, another machine.

    ca.crt, ca.key          the CA; the key 0600, the directory 0700
    receivers/<name>.pub    receipt keys of the receivers it signed; gateways pin one
    issued.jsonl            one line per certificate: {"at", "kind", "name", "serial", "until", "keys": {stream: data key}}
    codes.json              open one-time codes (gateway.trust.codes)
    revoked                 what is no longer believed (gateway.trust.revocations); carried to the receivers

Every change happens under a lock on the directory, so that `ca serve` and `ca code` may run side by side.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from buffer.storage import make_directory, publish_file
from gateway.errors import TrustError
from gateway.trust import certs, keys, revocations
from gateway.trust.codes import Code, Codes, make_code
from gateway.trust.enrolment import ReceiverRequest, Request, answer_receiver_request, answer_request, parse_any_request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ISSUED_MAX: Final = 20_000  # a thousand gateways renewed every two years for forty years
_PRIVATE_DIRECTORY: Final = 0o700


@dataclass(frozen=True, slots=True)
class Issued:
    """One certificate that was signed. kind: gateway or receiver; times ISO 8601, UTC; serial in hexadecimal."""

    at: str
    kind: str
    name: str
    serial: str
    until: str
    keys: dict[str, str] = field(default_factory=dict)


class AuthorityDirectory:
    """See the module. Raises TrustError where the directory is no CA."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "ca.key").exists():
            raise TrustError(f"{path}: no CA here", "Name the CA's directory, or make one: ebbgate ca init.")
        self.authority = certs.load_authority(path / "ca.crt", path / "ca.key")
        self.certificate_pem = (path / "ca.crt").read_bytes()
        self.certificate_der = self.authority.certificate.public_bytes(serialization.Encoding.DER)
        self._codes = Codes(path / "codes.json", self.certificate_der)

    @classmethod
    def create(cls, path: Path, name: str, now: dt.datetime) -> AuthorityDirectory:
        """Make a CA; raise TrustError if there is one."""
        make_directory(path, _PRIVATE_DIRECTORY)
        make_directory(path / "receivers", _PRIVATE_DIRECTORY)
        certs.create_authority(path / "ca.crt", path / "ca.key", name, now)
        publish_file(path / "revoked", b"# carried to the receivers: [tls] revoked in receiver.toml\n")
        return cls(path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # held for milliseconds by whoever else is here
            yield
        finally:
            os.close(fd)

    # ---- signing ----

    def receipt_key(self, receiver: str = "") -> bytes:
        """Return the public receipt key of a receiver, PEM; "": of the only one. Raise TrustError."""
        known = sorted((self.path / "receivers").glob("*.pub"))
        wanted = [path for path in known if path.stem == receiver] if receiver else known
        if len(wanted) == 1:
            return wanted[0].read_bytes()
        names = ", ".join(path.stem for path in known)
        if not known:
            raise TrustError("this CA has signed no receiver yet", "Sign its request first: ebbgate init receiver, then ebbgate ca sign.")
        raise TrustError(f"this CA knows the receivers {names}", "Say which one this gateway sends to: --receiver NAME.")

    def sign(self, message: bytes, now: dt.datetime, receiver: str = "") -> bytes:
        """Answer a request, of a gateway or of a receiver, and note it. Whoever calls has decided that it is genuine."""
        request = parse_any_request(message)
        with self._locked():
            return self._sign(request, message, now, receiver)

    def _sign(self, request: Request | ReceiverRequest, message: bytes, now: dt.datetime, receiver: str) -> bytes:
        if isinstance(request, ReceiverRequest):
            answer = answer_receiver_request(self.authority, message, self.certificate_pem, now)
            publish_file(self.path / "receivers" / f"{request.name}.pub", request.receipt_key)
            self._note("receiver", request.name, answer, {}, now)
            return answer
        answer = answer_request(self.authority, message, self.certificate_pem, self.receipt_key(receiver), now)
        statements = [keys.parse_proposal(proposal) for proposal in request.proposals]
        self._note("gateway", request.gateway, answer, {x.stream: x.key_id.hex() for x in statements}, now)
        return answer

    # ---- codes ----

    def make_code(self, gateway: str, now_ns: int) -> Code:
        """Return a new one-time code for a gateway."""
        code = make_code(int.from_bytes(os.urandom(16), "big"), self.certificate_der)
        with self._locked():
            self._codes.add(gateway, code, now_ns)
        return code

    def open_codes(self, now_ns: int) -> dict[str, int]:
        """Return gateway -> until when its code is good, wall ns."""
        with self._locked():
            return self._codes.open(now_ns)

    def redeem(self, message: bytes, mac: bytes, now_ns: int, receiver: str = "") -> tuple[bytes, bytes]:
        """Return the key of the code and the answer to the request; raise TrustError if the code is not right."""
        request = parse_any_request(message)
        with self._locked():
            key = self._codes.redeem(message, mac, now_ns)
            return key, self._sign(request, message, dt.datetime.fromtimestamp(now_ns / 1e9, dt.UTC), receiver)

    # ---- what was signed ----

    def issued(self) -> list[Issued]:
        """Return every certificate this CA signed, oldest first; raise TrustError."""
        try:
            text = (self.path / "issued.jsonl").read_text(encoding="ascii")
            return [Issued(**json.loads(line)) for line in text.splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            raise TrustError(f"{self.path / 'issued.jsonl'}: {error}", "Restore it from the CA's backup.") from None

    def _note(self, kind: str, name: str, answer: bytes, data_keys: dict[str, str], now: dt.datetime) -> None:
        from buffer.cose import decode_cbor

        certificate = x509.load_pem_x509_certificate(decode_cbor(answer)[2])
        until = certificate.not_valid_after_utc
        all_of_them = self.issued()
        if len(all_of_them) >= ISSUED_MAX:
            raise TrustError(f"this CA has signed {ISSUED_MAX:,} certificates", "Make a new CA.")
        stamp = "%Y-%m-%dT%H:%M:%SZ"
        one = Issued(now.strftime(stamp), kind, name, f"{certificate.serial_number:x}", until.strftime(stamp), data_keys)
        lines = [json.dumps(asdict(x)) for x in [*all_of_them, one]]
        publish_file(self.path / "issued.jsonl", ("\n".join(lines) + "\n").encode("ascii"), mode=keys.PRIVATE_MODE)

    # ---- revocation ----

    def revoke(self, gateway: str, last_good: dict[str, keys.LastGood], *, certificates_only: bool = False) -> list[str]:
        """Extend the list for all certificates and data keys of a gateway; return the lines that are new. Raise TrustError.

        last_good: stream -> the last reading to believe of its keys; a stream that is not named: nothing it ever signed.
        """
        with self._locked():
            mine = [one for one in self.issued() if one.kind == "gateway" and one.name == gateway]
            if not mine:
                raise TrustError(f"this CA has signed nothing for gateway {gateway!r}", "See: ebbgate ca list.")
            path = self.path / "revoked"
            revocations.load_revocations(path)  # a list with an error is not extended
            text = path.read_text(encoding="ascii")
            lines = [revocations.certificate_line(int(one.serial, 16)) for one in mine]
            if not certificates_only:
                lines += [revocations.key_line(bytes.fromhex(k), last_good.get(s)) for one in mine for s, k in one.keys.items()]
            there = set(text.splitlines())
            new = list(dict.fromkeys(line for line in lines if line.strip() not in there))
            publish_file(path, (text + "".join(new)).encode("ascii"))
            return [line.strip() for line in new]

    def revoked(self) -> revocations.Revocations:
        """Return what is no longer believed."""
        return revocations.load_revocations(self.path / "revoked")
