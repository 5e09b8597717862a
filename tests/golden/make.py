"""Writes tests/golden/files: a ring, a stick, a landing and receipts, by the product's own code with fixed keys, times and nonces.

`python -m tests.golden.make [DIRECTORY]`. The same bytes every time with the libraries of requirements.lock. When a format changes on
purpose, keep the old directory under another name: what was shipped must stay readable.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from buffer.manifest import FrameKind, Loss, LossReason, ObjectType
from buffer.notice import NoticeKind, encode_notice
from buffer.reader import RingReader
from buffer.ring import Instant, Ring, RingOptions, with_root
from buffer.segment import seal
from buffer.storage import PosixReadStorage, PosixStorage, make_directory
from buffer.tagtable import Tag, TagTable, encode_table
from buffer.types import Kind, make_columns
from gateway import settings as s
from gateway.receive.receiver import Receiver
from gateway.runtime import Runtime
from gateway.trust.keys import KeyRing, KeySigner, endorse_statement, propose_statement, public_pem, spki_der
from gateway.upload.folder import export_folder
from gateway.wire.request import FramesTarget, Lane, ObjectTarget, format_target

FILES = Path(__file__).parent / "files"
STREAM = "hall1.main"
SECOND = 10**9
START = 1_790_000_000 * SECOND
NAN = 0x7FF8_0000_0000_0BAD
MINUS_ZERO = 0x8000_0000_0000_0000
DATA, SITE, RECEIPT = (KeySigner(Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))) for n in (1, 2, 3))
TABLE = TagTable(
    "hall1", STREAM, "acme/ghent", "Europe/Brussels", ("press7", "mdb1"),
    (
        Tag(16, "flow", "acme/ghent/hall1/flow", "press7", "Double", "m3/h", 0.0, 120.0, description="Größe Ω"),
        Tag(17, "state", "acme/ghent/hall1/state", "press7", "Int32", states=((0, "off"), (1, "on"))),
        Tag(18, "serial", "acme/ghent/hall1/serial", "press7", "String"),
        Tag(19, "count", "acme/ghent/hall1/count", "mdb1", "UInt64", unsigned=True),
    ),
)  # fmt: skip
ROWS = [  # tag, ts, kind, value, quality, flags; value of TEXT and BYTES: the text
    (16, START + 1, Kind.DOUBLE, 0x4059_0000_0000_0000, 0, 0),
    (16, START + 1_000_001, Kind.DOUBLE, NAN, 0x8000_0000, 0),
    (16, START + 2_000_001, Kind.DOUBLE, MINUS_ZERO, 0, 64),
    (17, START + 3, Kind.INT64, 2**64 - 5, 0, 0),
    (17, START + 4, Kind.BOOL, 1, 0x4000_0000, 0),
    (18, START + 5, Kind.TEXT, "RUN\n=1+1", 0, 0),
    (18, START + 6, Kind.BYTES, "AP8=", 0, 0),
    (19, START + 7, Kind.UINT64, 2**63 + 1, 0, 1),
    (19, START + 8, Kind.NULL, 0, 0x8031_0000, 32),
]


def columns(rows):
    texts = tuple(row[3] for row in rows if isinstance(row[3], str))
    values = [texts.index(row[3]) if isinstance(row[3], str) else row[3] for row in rows]
    return make_columns([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], values, [r[4] for r in rows], [r[5] for r in rows], texts)


@dataclass(frozen=True)
class Gap:
    step: str
    id: int = 0
    from_ns: int = 0
    progress: bytes = b""


def instant(seconds: int) -> Instant:
    return Instant(START + seconds * SECOND, 1_000 * SECOND + seconds * SECOND, bytes(range(16)), True)


def write_ring(root: Path) -> None:
    """Two generations: one sealed, one with positions, an open gap, history, a loss and a notice in its journal."""
    make_directory(root)
    keys = KeyRing()
    keys.trust(DATA.public)
    options = RingOptions(STREAM, 2**30, 40 * 1024, (spki_der(DATA.public),), 8 * 1024)
    statement = endorse_statement(SITE, propose_statement(DATA, STREAM))

    def opened(nonce: int, at: int) -> Ring:
        salts = itertools.count(nonce << 32 | 7)
        ring = Ring.open(PosixStorage(root), options, DATA, keys, instant(at), nonce, lambda: next(salts))
        ring.add_object(ObjectType.KEY_STATEMENT, statement)
        ring.use_table(encode_table(TABLE))
        ring.commit(instant(at))
        return ring

    ring = opened(0x3FA91C02, 0)
    ring.append(columns(ROWS), 0, b"position 1")
    ring.append(columns([(16, START + SECOND + 10 * i, Kind.DOUBLE, 0x4059_0000_0000_0000 + i, 0, 0) for i in range(100)]), 0, b"position 2")
    ring.commit(instant(1))
    ring._roll = True
    ring.commit(instant(2))
    request = with_root(ring.sealable(), str(root))
    ring.adopt(request, seal(request), instant(3))
    ring.append(columns(ROWS[:3]))
    ring.commit(instant(4))
    ring.close()
    ring = opened(0x0000BEEF, 10)
    ring.append(columns(ROWS[3:6]), 0, b"position 3", Gap("open", from_ns=START + 4 * SECOND))
    ring.append(encode_notice(NoticeKind.GAP, START + 10 * SECOND, "press7", {"event": "opened"}))
    ring.commit(instant(11))
    gap = ring.state.open_gaps[0].id
    ring.append(columns(ROWS[:2]), 0, None, Gap("progress", gap, progress=b"half"))
    ring.append(columns(ROWS[6:]), 0, b"position 4")  # another group: one commit of two blocks, the first with `more`
    ring.commit(instant(12))
    ring.declare_lost([Loss(ring.generation, 0, 0, LossReason.BIT_ROT)], instant(13))
    ring.close()


def write_landing(root: Path, ring: Path, receipts: Path) -> None:
    """What a receiver with fixed time makes of that ring; its receipts, and one refusal and one offer."""

    async def offload(action):
        return action()

    numbers = itertools.count(11)
    runtime = Runtime(
        lambda: START + 20 * SECOND, lambda: 5, asyncio.sleep, lambda: 0.5, offload, lambda: next(numbers), lambda: next(numbers), bytes(16)
    )
    policy = s.GatewayPolicy("hall1", "acme", ("hall1.*",))

    def storage_of(stream: str) -> PosixStorage:
        make_directory(root / stream)
        return PosixStorage(root / stream)

    receiver = Receiver(runtime, (policy,), RECEIPT, KeyRing([SITE.public]), storage_of, lambda: True)
    lines: list[str] = []

    async def put(target, body: bytes, name: str) -> None:
        answer = await receiver.put(policy, target, body)
        lines.append(f"{format_target(target)} {answer.status}")
        if answer.body and answer.status == 200:
            (receipts / name).write_bytes(answer.body)

    async def run() -> None:
        reader = RingReader(PosixReadStorage(ring))
        inventory = reader.inventory()
        objects = [frame for digest in reader.objects() if (frame := reader.object_frame(digest)) is not None]
        for frame in sorted(objects, key=lambda frame: -int(frame.manifest.object_type)):
            kind = ObjectType(frame.manifest.object_type).name.lower()
            await put(ObjectTarget(frame.manifest.payload_sha256, STREAM), frame.wire(), f"object-{kind}.cose")
        for generation in sorted({name.generation for name in inventory.journals}):
            for frame in reader.blocks(inventory, generation, 0):
                m = frame.manifest
                if m.first_block % 2 == 0:
                    await put(FramesTarget(STREAM, generation, m.first_block, m.last_block), frame.wire(), f"{generation >> 32}-{m.first_block}.cose")
        for name in inventory.segments:
            frame = reader.segment_frame(name)
            m = frame.manifest
            assert m.kind == FrameKind.SEGMENT
            await put(FramesTarget(STREAM, m.generation, m.first_block, m.last_block, lane=Lane.BACKFILL), frame.wire(), "segment.cose")
            await put(FramesTarget(STREAM, m.generation, m.first_block, m.last_block, lane=Lane.BACKFILL, chain=m.chain_after), b"", "offer.cose")
        await put(FramesTarget(STREAM, 9 << 32 | 9, 0, 0), b"no frame", "refused.cose")
        await receiver.close()

    asyncio.run(run())
    (receipts / "requests.txt").write_text("\n".join(lines) + "\n")


def write(root: Path) -> None:
    """Write everything into an empty directory."""
    shutil.rmtree(root, ignore_errors=True)
    ring = root / "ring" / STREAM
    write_ring(ring)
    shutil.rmtree(ring / "lock")
    export_folder(PosixReadStorage(ring), STREAM, root / "stick")
    make_directory(root / "receipts")
    write_landing(root / "landing", ring, root / "receipts")
    make_directory(root / "keys")
    for name, key in (("data", DATA), ("site", SITE), ("receipt", RECEIPT)):
        (root / "keys" / f"{name}.pub").write_bytes(public_pem(key.public))
    expected = [[t, ts, int(k), v if isinstance(v, str) else str(v), q, f] for t, ts, k, v, q, f in ROWS]
    (root / "expected.json").write_text(json.dumps({"rows": expected}, indent=1))
    digests = {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}
    (root / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FILES)
