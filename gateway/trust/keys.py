"""Data keys: who signs, who is believed, how a key is introduced, replaced and revoked.

A data key is Ed25519, one per stream, without certificate and without expiry, named by the first 8 bytes of SHA-256 of its
SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7). Files are PKCS#8 PEM, 0600: a key that group or others can read is refused.

Specification of a key statement (the payload of a frame of kind object, type key statement): a deterministic CBOR array of two
COSE_Sign1 messages over the same payload: the first by the new key itself (it exists and somebody holds it), the second by
the site CA (enrolment) or by the key before (rotation). The payload is the map

    0  "ebbgate key statement 1"
    1  public key, 32 bytes (RFC 8032)
    2  stream
    3  first generation it may sign, 0: any

Revocation names the last good reading: what was signed up to there stays good, whatever arrives late.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from buffer import limits
from buffer.cose import EDDSA, ES256, Sign1, decode_cbor, encode_cbor, parse_sign1, sign1
from buffer.errors import CorruptError, SignatureError
from buffer.manifest import FrameKind, format_generation
from buffer.storage import publish_file
from gateway.errors import TrustError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from buffer.frame import Frame
    from buffer.manifest import Manifest

PRIVATE_MODE: Final = 0o600
KEY_FILE_BYTES_MAX: Final = 16 * 1024
STATEMENT_BYTES_MAX: Final = 1024
_TYPE: Final = "ebbgate key statement 1"
_COORDINATE_BYTES: Final = 32

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey
PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey


class UnknownKeyError(SignatureError):
    """Nobody introduced this key yet: the sender may still send its statement."""


class RevokedKeyError(SignatureError):
    """The key was revoked, and this was signed after the last good reading."""


class WrongStreamError(SignatureError):
    """The key is good, for another stream or a later generation."""


def key_id(public: PublicKey) -> bytes:
    """Return the name of a key: the first 8 bytes of SHA-256 of its SubjectPublicKeyInfo."""
    return hashlib.sha256(spki_der(public)).digest()[:8]


def spki_der(public: PublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo, DER."""
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


class KeySigner:
    """A private key in memory, as buffer.cose.Signer wants it: Ed25519, or P-256 for a CA."""

    def __init__(self, private: PrivateKey) -> None:
        self._private = private
        self.public: PublicKey = private.public_key()
        self._key_id = key_id(self.public)

    @property
    def key_id(self) -> bytes:
        """The name of the key."""
        return self._key_id

    @property
    def private(self) -> PrivateKey:
        """The key itself, for the one file it is written to."""
        return self._private

    @property
    def algorithm(self) -> int:
        """COSE algorithm."""
        return EDDSA if isinstance(self._private, Ed25519PrivateKey) else ES256

    def sign(self, to_be_signed: bytes) -> bytes:
        """Return the raw 64-byte signature (ES256: r and s, RFC 9053 section 2.1)."""
        if isinstance(self._private, Ed25519PrivateKey):
            return self._private.sign(to_be_signed)
        r, s = decode_dss_signature(self._private.sign(to_be_signed, ECDSA(hashes.SHA256())))
        return r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")


# ---- files ----


def write_private(path: Path, private: Any) -> None:  # noqa: ANN401 -- any key cryptography makes
    """Write a private key as PKCS#8 PEM, 0600; raise TrustError if the file exists: a key is never overwritten."""
    if path.exists():
        raise TrustError(f"{path}: there is a key already", "Move it away first, if it is really no longer needed.")
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    publish_file(path, pem, mode=PRIVATE_MODE)


def read_private_bytes(path: Path, most: int = KEY_FILE_BYTES_MAX) -> bytes:
    """Return a private file; raise TrustError if it is absent, too long, readable by group or others, or theirs to replace."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe in its place holds nobody up
    except OSError as error:
        raise TrustError(f"{path}: {error.strerror}", "Correct the path, or make the file again (keys: ebbgate init).") from error
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        os.close(fd)
        raise TrustError(f"{path}: is no file", "Correct the path, or make the file again (keys: ebbgate init).")
    with os.fdopen(fd, "rb") as file:
        if facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise TrustError(f"{path}: a secret that group or others may open", f"Run: chmod 600 {path}")
        data = file.read(most + 1)
    above = path.parent.stat().st_mode
    if above & (stat.S_IWGRP | stat.S_IWOTH) and not above & stat.S_ISVTX:
        raise TrustError(f"{path.parent}: group or others may put another file there", f"Run: chmod go-w {path.parent}")
    if len(data) > most:
        raise TrustError(f"{path}: too long for a private file of ours", "Is this the right file?")
    return data


def load_signer(path: Path) -> KeySigner:
    """Return the signer in a PEM file; raise TrustError."""
    data = read_private_bytes(path)
    try:
        private = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{path}: not a PKCS#8 private key in PEM", "Is this the right file?") from error
    if not isinstance(private, Ed25519PrivateKey | EllipticCurvePrivateKey) or not _ours(private.public_key()):
        raise TrustError(f"{path}: neither Ed25519 nor P-256")
    return KeySigner(private)


def generate() -> Ed25519PrivateKey:
    """Return a new data key."""
    return Ed25519PrivateKey.generate()


def create_signer(path: Path) -> KeySigner:
    """Make a new Ed25519 key at `path`, and its public half at `path` with suffix .pub; raise TrustError if there is one."""
    private = generate()
    write_private(path, private)
    publish_file(path.with_suffix(".pub"), public_pem(private.public_key()))
    return KeySigner(private)


def public_pem(public: PublicKey) -> bytes:
    """Return SubjectPublicKeyInfo in PEM."""
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def load_public(path: Path) -> PublicKey:
    """Return the public key in a PEM file; raise TrustError."""
    try:
        with path.open("rb") as file:
            return check_public_pem(file.read(KEY_FILE_BYTES_MAX))
    except OSError as error:
        raise TrustError(f"{path}: {error.strerror}", "Copy the receiver's public receipt key there.") from error
    except TrustError as error:
        raise TrustError(f"{path}: {error.message}", "Is this the right file?") from None


def check_public_pem(pem: bytes) -> PublicKey:
    """Return the public key in a message; raise TrustError."""
    try:
        public = serialization.load_pem_public_key(pem[:KEY_FILE_BYTES_MAX])
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(f"not a public key in PEM: {error}", "Ask for the file again.") from None
    if not isinstance(public, Ed25519PublicKey | EllipticCurvePublicKey) or not _ours(public):
        raise TrustError("a public key that is neither Ed25519 nor P-256", "Ask for the file again.")
    return public


def _ours(public: PublicKey) -> bool:
    return isinstance(public, Ed25519PublicKey) or isinstance(public.curve, SECP256R1)


# ---- statements ----


@dataclass(frozen=True, slots=True)
class Statement:
    """A parsed key statement. The new key's own signature was checked, the endorsement not (see KeyRing)."""

    public: Ed25519PublicKey
    stream: str
    first_generation: int
    endorsement: Sign1 | None = None  # None in a proposal

    @property
    def key_id(self) -> bytes:
        """The name of the introduced key."""
        return key_id(self.public)


def propose_statement(signer: KeySigner, stream: str, first_generation: int = 0) -> bytes:
    """Return the new key's own COSE_Sign1: the half that the gateway makes."""
    if not isinstance(signer.public, Ed25519PublicKey):
        raise TrustError("a data key is Ed25519")
    raw = signer.public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return sign1(signer, encode_cbor({0: _TYPE, 1: raw, 2: stream, 3: first_generation}))


def endorse_statement(authority: KeySigner, proposal: bytes) -> bytes:
    """Return the whole statement, endorsed by the site CA or by the key before; raise CorruptError for a bad proposal."""
    _parse_proposal(proposal)
    return encode_cbor([proposal, sign1(authority, parse_sign1(proposal).payload)])


def parse_proposal(proposal: bytes) -> Statement:
    """Return what a proposal says, for a CA to look at; raise CorruptError or SignatureError."""
    public, stream, first = _parse_proposal(proposal)
    return Statement(public, stream, first)


def parse_statement(payload: bytes) -> Statement:
    """Return the statement; raise CorruptError, or SignatureError if the new key did not sign it."""
    if len(payload) > STATEMENT_BYTES_MAX:
        raise CorruptError("key statement is too long")
    match decode_cbor(payload):
        case [bytes() as proposal, bytes() as endorsement]:
            pass
        case _:
            raise CorruptError("key statement is not two COSE_Sign1 messages")
    public, stream, first = _parse_proposal(proposal)
    second = parse_sign1(endorsement)
    if second.payload != parse_sign1(proposal).payload or second.key_id == key_id(public):
        raise CorruptError("key statement is endorsed over something else, or by itself")
    return Statement(public, stream, first, second)


def _parse_proposal(proposal: bytes) -> tuple[Ed25519PublicKey, str, int]:
    message = parse_sign1(proposal)
    match decode_cbor(message.payload):
        case {0: str() as kind, 1: bytes() as raw, 2: str() as stream, 3: int() as first, **rest} if not rest:
            pass
        case _:
            raise CorruptError("key statement has the wrong fields")
    good = kind == _TYPE and len(raw) == 32 and re.fullmatch(limits.ID_PATTERN, stream) and ".." not in stream  # noqa: PLR2004
    if not good or type(first) is not int or not 0 <= first < 2**63:
        raise CorruptError("key statement has a field out of range")
    public = Ed25519PublicKey.from_public_bytes(raw)
    if message.key_id != key_id(public):
        raise SignatureError("key statement is not signed by the key it introduces")
    verify_with(public, message.algorithm, message.to_be_signed, message.signature)
    return public, stream, first


def verify_with(public: PublicKey, algorithm: int, to_be_signed: bytes, signature: bytes) -> None:
    """Return, or raise SignatureError."""
    try:
        if isinstance(public, Ed25519PublicKey) and algorithm == EDDSA:
            public.verify(signature, to_be_signed)
        elif isinstance(public, EllipticCurvePublicKey) and algorithm == ES256:
            r, s = (int.from_bytes(signature[i : i + _COORDINATE_BYTES], "big") for i in (0, _COORDINATE_BYTES))
            public.verify(encode_dss_signature(r, s), to_be_signed, ECDSA(hashes.SHA256()))
        else:
            raise SignatureError("algorithm does not fit the key")
    except InvalidSignature:
        message = f"wrong signature of key {key_id(public).hex()}"
        raise SignatureError(message) from None


# ---- who is believed ----


@dataclass(frozen=True, slots=True)
class LastGood:
    """Up to here (inclusive) a revoked key is believed. generation 0: nothing it ever signed."""

    generation: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class _Known:
    public: PublicKey
    stream: str  # "": any (a receipt key, a CA)
    first_generation: int
    endorser: bytes = b""  # name of the key that introduced it; empty: the CA, or a person


class KeyRing:
    """Public keys by name, what each may sign, and what was revoked. Implements buffer.cose.Verifier."""

    def __init__(self, authorities: Iterable[PublicKey] = (), revoked: Mapping[bytes, LastGood] | None = None) -> None:
        self._authorities = {key_id(x): x for x in authorities}
        self._revoked: Mapping[bytes, LastGood] = revoked or {}
        self._known: dict[bytes, _Known] = {}

    def trust(self, public: PublicKey, stream: str = "") -> None:
        """Believe this key because a person says so (a pinned receipt key, a public key on a command line)."""
        self._known[key_id(public)] = _Known(public, stream, 0)

    def revoke(self, revoked: Mapping[bytes, LastGood]) -> None:
        """Replace the list of revocations."""
        self._revoked = revoked

    def knows(self, name: bytes) -> bool:
        """Say whether a key of this name was introduced."""
        return name in self._known

    def introduce(self, payload: bytes, stream: str) -> Statement:
        """Believe the key of a statement for this stream; raise CorruptError, or SignatureError if nobody we trust endorsed it."""
        statement = parse_statement(payload)
        if statement.stream != stream:
            message_text = f"key statement is for stream {statement.stream}, not {stream}"
            raise WrongStreamError(message_text)
        second = statement.endorsement
        if second is None:
            raise SignatureError("key statement is endorsed by nobody")
        authority = self._authorities.get(second.key_id) or self._predecessor(statement, second.key_id)
        verify_with(authority, second.algorithm, second.to_be_signed, second.signature)
        earlier = self._known.get(statement.key_id)
        if earlier is not None and earlier.stream != statement.stream:
            message_text = f"key {statement.key_id.hex()} already belongs to stream {earlier.stream}"
            raise WrongStreamError(message_text)
        by_authority = second.key_id in self._authorities or (earlier is not None and not earlier.endorser)
        endorser = b"" if by_authority else second.key_id
        self._known[statement.key_id] = _Known(statement.public, statement.stream, statement.first_generation, endorser)
        return statement

    def _predecessor(self, statement: Statement, endorser: bytes) -> PublicKey:
        before = self._known.get(endorser)
        if before is None or before.stream != statement.stream:
            message = f"key {statement.key_id.hex()} is endorsed by {endorser.hex()}, neither our CA nor a key of this stream"
            raise UnknownKeyError(message)
        last_good = self._revoked.get(endorser)
        if last_good is not None and not 0 < statement.first_generation <= last_good.generation:
            message = f"key {statement.key_id.hex()} is endorsed by a revoked key"
            raise RevokedKeyError(message)
        return before.public

    def verify(self, key_id: bytes, algorithm: int, to_be_signed: bytes, signature: bytes) -> None:
        """Return, or raise UnknownKeyError or SignatureError. What the key may sign is `admit`'s question."""
        known = self._known.get(key_id)
        if known is None:
            message = f"key {key_id.hex()} is not known here"
            raise UnknownKeyError(message)
        verify_with(known.public, algorithm, to_be_signed, signature)

    def admit(self, frame: Frame) -> None:
        """Return if the frame is signed by a key that may sign it; raise a SignatureError of the kind that fits."""
        frame.verified(self)
        name, known = frame.sign1.key_id, self._known[frame.sign1.key_id]
        m = frame.manifest
        if known.stream not in ("", m.stream):
            message = f"key {name.hex()} belongs to stream {known.stream}, not {m.stream}"
            raise WrongStreamError(message)
        last_good = self._last_good(name)
        if m.kind == FrameKind.OBJECT:  # what an old, good block names
            if last_good is not None and not last_good.generation:
                message = f"key {name.hex()} is revoked from the beginning"
                raise RevokedKeyError(message)
            return
        if m.generation < known.first_generation:
            message = f"key {name.hex()} may sign from generation {format_generation(known.first_generation)} on"
            raise WrongStreamError(message)
        if last_good is not None and not _was_good(m, last_good):
            message = f"key {name.hex()} is revoked; last good reading {format_generation(last_good.generation)} seq {last_good.seq}"
            raise RevokedKeyError(message)

    def _last_good(self, name: bytes) -> LastGood | None:
        """Return up to where a key is believed, None: without end. A revoked key takes with it what it introduced, unless that was to
        sign from a generation on that was still good."""
        seen: set[bytes] = set()
        first = 0
        while name and name not in seen:
            seen.add(name)
            last_good = self._revoked.get(name)
            if last_good is not None:
                return None if 0 < first <= last_good.generation else last_good
            known = self._known.get(name)
            name, first = (known.endorser, known.first_generation) if known else (b"", 0)
        return None


def _was_good(m: Manifest, last_good: LastGood) -> bool:
    return last_good.generation > 0 and (m.generation, m.end_seq - 1) <= (last_good.generation, last_good.seq)
