"""A signer and verifier for tests: a real Ed25519 key, made from a fixed seed."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from buffer.cose import EDDSA
from buffer.errors import SignatureError


class Key:
    """Signs and verifies."""

    algorithm = EDDSA

    def __init__(self, seed: bytes = bytes(32)) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(seed)
        self.spki = self.private.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.key_id = hashlib.sha256(self.spki).digest()[:8]

    def sign(self, to_be_signed: bytes) -> bytes:
        return self.private.sign(to_be_signed)

    def verify(self, key_id: bytes, algorithm: int, to_be_signed: bytes, signature: bytes) -> None:
        if key_id != self.key_id or algorithm != EDDSA:
            raise SignatureError("unknown key")
        try:
            self.private.public_key().verify(signature, to_be_signed)
        except InvalidSignature:
            raise SignatureError("signature does not fit") from None
