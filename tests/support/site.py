"""A whole site in a temporary directory: CA, keys, certificates, settings of both sides. Everything real, all on loopback."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass
from pathlib import Path

from buffer.manifest import ObjectType
from buffer.ring import Instant, Ring, RingOptions
from buffer.storage import PosixStorage, make_directory
from buffer.tagtable import Tag, TagTable, encode_table
from gateway import settings as s
from gateway.trust import certs, keys
from gateway.trust.keys import KeyRing, endorse_statement, propose_statement

NOW = dt.datetime.now(dt.UTC)


@dataclass
class Site:
    """Paths and settings."""

    root: Path
    port: int
    stream: str = "hall1.main"

    def __post_init__(self) -> None:
        pki = self.root / "pki"
        make_directory(pki)
        self.authority = certs.create_authority(pki / "ca.crt", pki / "ca.key", "test", NOW)
        certs.create_server_certificate(self.authority, pki / "receiver.crt", pki / "receiver.key", ["receiver.test", "127.0.0.1"], NOW)
        request = certs.make_request(pki / "tls.key", "hall1")
        (pki / "tls.crt").write_bytes(certs.sign_request(self.authority, request, "hall1", NOW))
        self.receipt = keys.create_signer(pki / "receipt.key")
        self.data = keys.create_signer(pki / "data.key")
        self.statement = endorse_statement(certs.authority_signer(self.authority), propose_statement(self.data, self.stream))
        self.pki = pki

    def gateway(self, port: int | None = None) -> s.GatewaySettings:
        receiver = s.Receiver(
            url=f"https://receiver.test:{port or self.port}", address="127.0.0.1", ca=self.pki / "ca.crt", receipt_key=self.pki / "receipt.pub",
            certificate=self.pki / "tls.crt", private_key=self.pki / "tls.key", live_ns=10**8, backfill=s.Backfill(limit_bps=10**9),
        )
        ring = s.RingSettings(self.root / "ring", commit_ns=10**8)
        return s.GatewaySettings("hall1", "acme/ghent", "UTC", self.stream, ring, receiver, (), self.root / "state", self.pki / "data.key")

    def site(self) -> s.SiteSettings:
        return s.SiteSettings(
            name="dmz", listen=("127.0.0.1", self.port), landing=self.root / "landing", deliver=self.root / "deliver", lake=self.root / "lake",
            lake_every_ns=10**8, min_free_bytes=0, receipt_key=self.pki / "receipt.key", tls_certificate=self.pki / "receiver.crt",
            tls_key=self.pki / "receiver.key", gateways_ca=self.pki / "ca.crt", revoked=None,
            gateways=(s.GatewayPolicy("hall1", "acme/ghent", ("hall1.*",)),), sinks=(),
        )

    def ring(self, nonce: int = 1, journal_bytes: int = 256 * 1024) -> Ring:
        """Open the ring as collect would, statement and table in place, first block committed."""
        verifier = KeyRing()
        verifier.trust(self.data.public)
        salts = itertools.count(nonce * 1000)
        spki = keys.spki_der(self.data.public)
        storage = PosixStorage(self.root / "ring" / self.stream)
        make_directory(self.root / "ring" / self.stream)
        ring = Ring.open(storage, RingOptions(self.stream, 2**30, journal_bytes, (spki,)), self.data, verifier, instant(), nonce, lambda: next(salts))
        ring.add_object(ObjectType.KEY_STATEMENT, self.statement)
        ring.use_table(encode_table(TagTable("hall1", self.stream, "acme/ghent", "UTC", ("p",), (Tag(16, "a", "x/a", "p"), Tag(17, "b", "x/b", "p")))))
        ring.commit(instant())
        return ring


def instant() -> Instant:
    import time

    return Instant(time.time_ns(), time.monotonic_ns(), bytes(16), True)
