"""COSE_Sign1 (RFC 9052 section 4.2) over deterministic CBOR (RFC 8949 section 4.2.1); owns no key.

    message   = tag 18 [protected: bstr, unprotected: {}, payload: bstr, signature: bstr]
    protected = {1: algorithm, 4: key id}          (the first 8 bytes of SHA-256 of the SubjectPublicKeyInfo)
    signed    = ["Signature1", protected, h'', payload]

Algorithms: -8 EdDSA (Ed25519, the data keys), -7 ES256 (hardware keys in key statements). Strict reading: a message
that is not exactly what we would have written is refused, so one content has one encoding and one digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, Final, Protocol

import cbor2

from buffer.errors import CorruptError, SignatureError

EDDSA: Final = -8
ES256: Final = -7
KEY_ID_BYTES: Final = 8
SIGNATURE_BYTES: Final = 64
_SIGN1: Final = b"\xd2"  # the head of tag 18, by hand: a CBORTag takes ten times as long as all that stands in it


class Signer(Protocol):
    """Holds a private key somebody else loaded. buffer builds what is signed; it never sees the key."""

    @property
    def key_id(self) -> bytes:
        """The first 8 bytes of SHA-256 of the SubjectPublicKeyInfo."""
        ...

    @property
    def algorithm(self) -> int:
        """COSE algorithm: -8 EdDSA or -7 ES256."""
        ...

    def sign(self, to_be_signed: bytes) -> bytes:
        """Return the raw 64-byte signature."""
        ...


class Verifier(Protocol):
    """Knows public keys and revocations; gateway.trust implements it."""

    def verify(self, key_id: bytes, algorithm: int, to_be_signed: bytes, signature: bytes) -> None:
        """Return, or raise SignatureError naming the key and the reason."""
        ...


@dataclass(frozen=True, slots=True)
class Sign1:
    """A parsed COSE_Sign1, not yet verified."""

    key_id: bytes
    algorithm: int
    payload: bytes
    to_be_signed: bytes
    signature: bytes

    def verified(self, verifier: Verifier) -> bytes:
        """Return the payload, or raise SignatureError."""
        verifier.verify(self.key_id, self.algorithm, self.to_be_signed, self.signature)
        return self.payload


def encode_cbor(value: Any) -> bytes:  # noqa: ANN401 -- CBOR is untyped by nature; typed at the edges
    """Return deterministic CBOR (RFC 8949 section 4.2.1)."""
    return cbor2.dumps(value, canonical=True)


def encode_sorted(value: Any) -> bytes:  # noqa: ANN401
    """Return the same for a value without floats and sets whose maps have their keys in order, in half the time."""
    return cbor2.dumps(value)


def decode_cbor(data: bytes) -> Any:  # noqa: ANN401
    """Return the one item in `data`; raise CorruptError unless `data` is exactly its deterministic encoding.

    Duplicate keys, longer integers than needed, indefinite lengths and trailing bytes are all caught by encoding again.
    """
    stream = BytesIO(data)
    try:
        value = cbor2.load(stream)
        again = encode_cbor(value)
    except Exception as error:  # cbor2 raises many kinds, RecursionError and OverflowError among them
        message = f"not CBOR: {type(error).__name__}"
        raise CorruptError(message) from error
    if again != data:
        message = "CBOR is not in the deterministic encoding"
        raise CorruptError(message)
    return value


def to_be_signed(protected: bytes, payload: bytes) -> bytes:
    """Return the Sig_structure of RFC 9052 section 4.4 without external data."""
    return encode_sorted(["Signature1", protected, b"", payload])


def sign1(signer: Signer, payload: bytes) -> bytes:
    """Return a COSE_Sign1 message over `payload`."""
    return signed(signer, payload)[0]


@lru_cache(maxsize=16)  # a process signs with one key, two where it rotates
def _protected(algorithm: int, key_id: bytes) -> bytes:
    return encode_cbor({1: algorithm, 4: key_id})


def signed(signer: Signer, payload: bytes) -> tuple[bytes, Sign1]:
    """Return a COSE_Sign1 message over `payload`, and its parts as `parse_sign1` would find them."""
    protected = _protected(signer.algorithm, signer.key_id)
    covered = to_be_signed(protected, payload)
    signature = signer.sign(covered)
    message = _SIGN1 + encode_sorted([protected, {}, payload, signature])
    return message, Sign1(signer.key_id, signer.algorithm, payload, covered, signature)


def parse_sign1(message: bytes) -> Sign1:
    """Return the parts of a COSE_Sign1; raise CorruptError if it is not exactly in our form. Verifies nothing."""
    if not message.startswith(_SIGN1):
        raise CorruptError("not a COSE_Sign1")
    value = decode_cbor(message[len(_SIGN1) :])
    match value:
        case [bytes() as protected, {}, bytes() as payload, bytes() as signature] if not value[1]:
            pass
        case _:
            raise CorruptError("COSE_Sign1 has the wrong shape")
    header = decode_cbor(protected)
    match header:
        case {1: int() as algorithm, 4: bytes() as key_id} if len(header) == 2:  # noqa: PLR2004 -- both fields, no others
            pass
        case _:
            raise CorruptError("COSE protected header must be {1: algorithm, 4: key id}")
    if algorithm not in (EDDSA, ES256) or len(key_id) != KEY_ID_BYTES or len(signature) != SIGNATURE_BYTES:
        raise SignatureError("unknown algorithm, or key id or signature of the wrong length")
    return Sign1(key_id, algorithm, payload, to_be_signed(protected, payload), signature)
