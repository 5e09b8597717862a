"""Data keys: Ed25519, no certificate, no expiry, named by hash; and the statements that introduce them.

A key statement is a COSE_Sign1 by the site CA's statement key over deterministic CBOR {1: 1, 2: stream, 3: SubjectPublicKeyInfo,
4: first generation's ordinal}; it travels as an object. Who has the file has the key: files are 0600, and a file that
others can read is refused.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from buffer.cose import EDDSA, decode_cbor, encode_cbor, parse_sign1, sign1
from buffer.errors import CorruptError, SignatureError
from buffer.storage import publish_file
from gateway.errors import TrustError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PRIVATE_MODE: Final = 0o600
STATEMENT_BYTES_MAX: Final = 1024


def spki(key: Ed25519PublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo, DER."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_id(spki_der: bytes) -> bytes:
    """Return the first 8 bytes of SHA-256 of the SubjectPublicKeyInfo."""
    return hashlib.sha256(spki_der).digest()[:8]


class FileSigner:
    """Implements buffer.cose.Signer with an Ed25519 key in memory."""

    algorithm = EDDSA

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.spki = spki(private.public_key())
        self.key_id = key_id(self.spki)

    def sign(self, to_be_signed: bytes) -> bytes:
        """Return the raw signature."""
        return self._private.sign(to_be_signed)


class KeyRing:
    """Implements buffer.cose.Verifier: public keys by id. `streams` says for which stream a key may speak ("": any)."""

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        self._keys: dict[bytes, Ed25519PublicKey] = {}
        self.streams: dict[bytes, str] = {}
        for one in keys:
            self.add(one)

    def add(self, spki_der: bytes, stream: str = "") -> bytes:
        """Trust a key; return its id. Raise TrustError if it is not an Ed25519 SubjectPublicKeyInfo."""
        key = load_public_der(spki_der)
        identity = key_id(spki_der)
        self._keys[identity] = key
        self.streams[identity] = stream
        return identity

    def verify(self, key_id: bytes, algorithm: int, to_be_signed: bytes, signature: bytes) -> None:
        """Return, or raise SignatureError."""
        key = self._keys.get(key_id)
        if key is None or algorithm != EDDSA:
            message = f"key {key_id.hex()} is not known here"
            raise SignatureError(message)
        try:
            key.verify(signature, to_be_signed)
        except InvalidSignature:
            message = f"signature by key {key_id.hex()} does not fit: bytes were changed, or another key signed"
            raise SignatureError(message) from None

    def __contains__(self, key_id: bytes) -> bool:
        return key_id in self._keys

    def __len__(self) -> int:
        return len(self._keys)


# ---- files ----


def create_key(path: Path) -> FileSigner:
    """Make a new key file, 0600; raise TrustError if there is one already."""
    if path.exists():
        raise TrustError(f"{path}: a key is there already", "Keep it: a lost data key means a new stream of trust. Move it away to replace it.")
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    publish_file(path, pem, mode=PRIVATE_MODE)
    return FileSigner(private)


def refuse_readable(path: Path) -> None:
    """Raise TrustError if anybody but the owner can read this file, or it is not there."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise TrustError(f"{path}: {error.strerror}", "Make the keys with `ebbgate init`, or correct the path.") from None
    if stat.S_IMODE(mode) & 0o077:
        remedy = f"chmod 600 {path}; if others did read it, make a new key."
        raise TrustError(f"{path}: others can read this key (mode {stat.S_IMODE(mode):04o})", remedy)


def load_signer(path: Path) -> FileSigner:
    """Return the signer in a PEM file; raise TrustError for a bad mode or content."""
    refuse_readable(path)
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{path}: not a private key in PEM: {error}", "Restore it from backup, or make a new one.") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise TrustError(f"{path}: not an Ed25519 key", "Data keys and receipt keys are Ed25519.")
    return FileSigner(private)


def public_pem(spki_der: bytes) -> bytes:
    """Return a public key as PEM."""
    return load_public_der(spki_der).public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def load_public(path: Path) -> bytes:
    """Return the SubjectPublicKeyInfo in a PEM file; raise TrustError."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{path}: not a public key in PEM: {error}", "Copy it again from where it was made.") from None
    if not isinstance(key, Ed25519PublicKey):
        raise TrustError(f"{path}: not an Ed25519 key", "Data keys and receipt keys are Ed25519.")
    return spki(key)


def load_public_der(spki_der: bytes) -> Ed25519PublicKey:
    """Return the key; raise TrustError."""
    try:
        key = serialization.load_der_public_key(spki_der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(f"not a public key: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise TrustError("not an Ed25519 public key")
    return key


# ---- statements ----


@dataclass(frozen=True, slots=True)
class KeyStatement:
    """This key speaks for this stream, says the site."""

    stream: str
    spki: bytes
    first_ordinal: int


def make_statement(ca: FileSigner, statement: KeyStatement) -> bytes:
    """Return the signed statement."""
    return sign1(ca, encode_cbor({1: 1, 2: statement.stream, 3: statement.spki, 4: statement.first_ordinal}))


def read_statement(data: bytes, ca: KeyRing) -> KeyStatement:
    """Return a statement signed by the site CA; raise CorruptError or SignatureError."""
    if len(data) > STATEMENT_BYTES_MAX:
        raise CorruptError("key statement is too long")
    body = decode_cbor(parse_sign1(data).verified(ca))
    match body:
        case {1: 1, 2: str() as stream, 3: bytes() as public, 4: int() as ordinal} if len(body) == 4:  # noqa: PLR2004 -- all fields
            try:
                load_public_der(public)
            except TrustError as error:
                raise CorruptError(error.message) from None
            return KeyStatement(stream, public, ordinal)
    raise CorruptError("not a key statement")

