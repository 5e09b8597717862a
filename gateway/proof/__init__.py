"""`ebbgate verify`: every byte of a copied store against public keys alone, offline. Names what does not hold: file and offset.

A store is a landing, a ring, a stick, or one file of them (`verify_path` sees which). Writes nothing, decodes no payload.
"""

from __future__ import annotations

from gateway.proof.landing import verify_landing
from gateway.proof.report import Proof
from gateway.proof.stores import verify_path

__all__ = ["Proof", "verify_landing", "verify_path"]
