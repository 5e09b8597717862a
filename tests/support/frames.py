"""Frames as a ring would make them, without a ring: chained, signed blocks and the segments over them. Payloads are opaque bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from buffer.frame import Frame, payload_digest, seal_frame
from buffer.manifest import FrameKind, Manifest, ObjectType, StateRecord, chain_next, chain_start
from gateway.trust.keys import KeySigner

TABLE = b"a tag table nobody opens here"


def signer(seed: int = 1) -> KeySigner:
    return KeySigner(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


@dataclass
class Source:
    """One generation of one stream. `blocks[n]` is block n; counts[n] its readings."""

    counts: list[int]
    stream: str = "hall1.main"
    generation: int = 1 << 32 | 7
    predecessor: tuple[int, int] | None = None
    seed: int = 1
    salt: bytes = b""  # other content under the same numbers
    salted_from: int = 0
    lost: tuple = ()
    blocks: list[Frame] = field(default_factory=list)
    h: list[bytes] = field(default_factory=list)  # h[n] after block n; h[-1] is wrong on purpose: use before()
    firsts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        seq = 0
        for number, count in enumerate(self.counts):
            payload = hashlib.sha256(b"%d" % number + (self.salt if number >= self.salted_from else b"")).digest() * (1 + count)
            frame = seal_frame(signer(self.seed), self._manifest(number, seq, count, payload), payload)
            self.blocks.append(frame)
            self.h.append(chain_next(self.before(number), frame.cose))
            self.firsts.append(seq)
            seq += count

    def before(self, number: int) -> bytes:
        return self.h[number - 1] if number else chain_start(self.stream, self.generation)

    def state(self, number: int) -> StateRecord:
        end = sum(self.counts[: number + 1])
        low = (self.generation, 0)
        return StateRecord(self.generation, number, self.predecessor, end, low, self.lost, (), 10**18 + number, number, bytes(16), True)

    def _manifest(self, number: int, seq: int, count: int, payload: bytes) -> Manifest:
        return Manifest(
            FrameKind.BLOCK, self.stream, payload_digest(payload), len(payload), self.generation, number, number, seq, count,
            payload_digest(TABLE), self.before(number), arrival_ns=10**18, state=self.state(number),
        )  # fmt: skip

    def segment(self, first: int, last: int, encoding: bytes = b"") -> Frame:
        payload = b"PAR1" + b"".join(bytes(f.payload) for f in self.blocks[first : last + 1]) + encoding
        manifest = Manifest(
            FrameKind.SEGMENT, self.stream, payload_digest(payload), len(payload), self.generation, first, last, self.firsts[first],
            sum(self.counts[first : last + 1]), payload_digest(TABLE), self.before(first), self.h[last], state=self.state(len(self.counts) - 1),
        )  # fmt: skip
        return seal_frame(signer(self.seed), manifest, payload)


def object_frame(payload: bytes, kind: ObjectType, stream: str = "hall1.main", seed: int = 1) -> Frame:
    manifest = Manifest(FrameKind.OBJECT, stream, payload_digest(payload), len(payload), object_type=kind)
    return seal_frame(signer(seed), manifest, payload)
