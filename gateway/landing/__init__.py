"""landing/: what the receiver holds. Written by receive alone; read by deliver, ledger, console and verify, by its index."""

from __future__ import annotations

from gateway.landing.index import Conflict, LandingState, Opening, Record
from gateway.landing.reader import LandingReader, stream_names

__all__ = ["Conflict", "LandingReader", "LandingState", "Opening", "Record", "stream_names"]
