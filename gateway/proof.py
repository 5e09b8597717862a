"""`ebbgate verify`: every byte of a copied landing against public keys alone, offline. Names what does not hold, with its place.

Checked: the index (CRC of every part and entry), every frame it names (CRC, digest, signature, the key's right to sign it), the chain
between neighbours, every object, and that a file holds nothing else than what the index says (rot in padding is rot all the same).
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from buffer import layout
from buffer.errors import CorruptError
from buffer.frame import HEADER_BYTES, parse_frame
from buffer.manifest import FrameKind, ObjectType
from buffer.storage import PosixReadStorage
from gateway.landing import LandingReader, Record, stream_names
from gateway.landing.index import INDEX, LIVE, parse_entries
from gateway.trust.rotation import introduce_all
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.trust.keys import KeyRing

CHAIN = "chain"
POINT_BYTES = 36
RECORDS_AT_ONCE = 10_000
FINDINGS_MAX = 10_000


@dataclass(slots=True)
class Proof:
    """What was confirmed, and what was not."""

    frames: int = 0
    readings: int = 0
    objects: int = 0
    findings: list[str] = field(default_factory=list)

    def bad(self, text: str) -> None:
        """Note a finding."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(text)


def verify_landing(root: Path, keys: KeyRing, *, statements: bool = True) -> Proof:
    """Return the proof over all streams under `root`; raise nothing for bad bytes: they are findings.

    statements: believe key statements that an authority in `keys` endorsed; else only the keys given count.
    """
    proof = Proof()
    streams = stream_names(root)
    if not streams:
        proof.bad(f"{root}: no landing here (a directory per stream, each with {INDEX}/)")
    for stream in streams:
        try:
            _stream(root / stream, keys, proof, statements)
        except CorruptError as error:
            proof.bad(f"{stream}: {error}")
    return proof


def _stream(root: Path, keys: KeyRing, proof: Proof, statements: bool) -> None:
    storage = PosixReadStorage(root)
    reader = LandingReader(storage)
    _objects(root, storage, keys, proof, statements)
    _index(root, storage, proof)
    try:
        layout.decode_durable(storage.read(layout.DURABLE, 0, layout.DURABLE_BYTES + 1) or b"")
    except CorruptError as error:
        proof.bad(f"{root.name}: {error}")
        return
    reader.refresh()
    chains: dict[tuple[int, int], bytes] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    for lane in Lane:
        for record in _records(reader, lane):
            _frame(root, reader, record, keys, proof, chains)
            if record.file and record.kind == FrameKind.BLOCK:
                spans.setdefault(record.file, []).append((record.offset, record.offset + record.length))
    _padding(root, storage, spans, proof)
    _points(root, storage, proof)


def _records(reader: LandingReader, lane: Lane) -> Iterable[Record]:
    first = 0
    while records := reader.records(lane, first, RECORDS_AT_ONCE):
        yield from records
        first = records[-1].number + 1


def _frame(root: Path, reader: LandingReader, record: Record, keys: KeyRing, proof: Proof, chains: dict[tuple[int, int], bytes]) -> None:
    if not record.file:
        return
    try:
        frame = reader.frame(record)
        keys.admit(frame)
    except CorruptError as error:
        proof.bad(f"{root.name}/{record.file}: blocks {record.first_block}-{record.last_block}: {error}")
        return
    for block, chain in ((record.first_block - 1, record.chain_before), (record.last_block, record.chain_after)):
        if chains.setdefault((record.generation, block), chain) != chain:
            proof.bad(f"{root.name}/{record.file}: the chain does not fit its neighbour at block {block}")
    proof.frames += 1
    proof.readings += sum(last - first + 1 for first, last in record.new)


def _objects(root: Path, storage: PosixReadStorage, keys: KeyRing, proof: Proof, statements: bool) -> None:
    frames = []
    for name in storage.list(layout.OBJECTS):
        path = f"{layout.OBJECTS}/{name}"
        data = storage.read(path, 0, (storage.size(path) or 0) + 1) or b""
        try:
            frame = parse_frame(data)
            if HEADER_BYTES + len(frame.cose) + len(frame.payload) != len(data) or frame.manifest.payload_sha256.hex() != name:
                raise CorruptError("the file holds other bytes than its object")
            frames.append((path, frame))
        except CorruptError as error:
            proof.bad(f"{root.name}/{path}: {error}")
    told = [bytes(frame.payload) for _, frame in frames if frame.manifest.object_type == ObjectType.KEY_STATEMENT and statements]
    for payload, why in introduce_all(keys, told, root.name):
        proof.bad(f"{root.name}/{layout.OBJECTS}/{hashlib.sha256(payload).hexdigest()}: {why}")
    for path, frame in frames:
        try:
            keys.admit(frame)
            proof.objects += 1
        except CorruptError as error:
            proof.bad(f"{root.name}/{path}: {error}")


def _index(root: Path, storage: PosixReadStorage, proof: Proof) -> None:
    for name in storage.list(INDEX):
        path = f"{INDEX}/{name}"
        data = storage.read(path, 0, storage.size(path) or 0) or b""
        end = 0
        for entry, behind in parse_entries(data):
            end = behind
            if type(entry).__name__ == "Rot":
                proof.bad(f"{root.name}/{path}: an entry before byte {behind} does not verify")
        if data[end:].strip(b"\0"):
            proof.bad(f"{root.name}/{path}: bytes from {end} on do not verify")


def _padding(root: Path, storage: PosixReadStorage, spans: dict[str, list[tuple[int, int]]], proof: Proof) -> None:
    for name in storage.list(LIVE):
        path = f"{LIVE}/{name}"
        data = storage.read(path, 0, storage.size(path) or 0) or b""
        at = 0
        for first, last in [*sorted(spans.get(path, [])), (len(data), len(data))]:
            if data[at:first].strip(b"\0") and not _frames_only(data[at:first]):
                proof.bad(f"{root.name}/{path}: bytes between {at} and {first} belong to no frame")
            at = max(at, last)


def _frames_only(data: bytes) -> bool:
    """Say whether the bytes are whole frames that were never promised to anybody (a crash before the index was synced)."""
    at = 0
    while at < len(data):
        rest = data[at:]
        skipped = len(rest) - len(rest.lstrip(b"\0"))
        if skipped == len(rest):
            return True
        try:
            frame = parse_frame(rest[skipped:])
        except CorruptError:
            return False
        at += skipped + HEADER_BYTES + len(frame.cose) + len(frame.payload)
    return True


def _points(root: Path, storage: PosixReadStorage, proof: Proof) -> None:
    """The receiver's cache of chain points: h (32 bytes) and the CRC-32 of h, block and generation, at 36 bytes a block; zeros: none."""
    for name in storage.list(CHAIN):
        ordinal, _, nonce = name.partition("-")
        generation = int(ordinal) << 32 | int(nonce, 16)
        data = storage.read(f"{CHAIN}/{name}", 0, storage.size(f"{CHAIN}/{name}") or 0) or b""
        for block, at in enumerate(range(0, len(data), POINT_BYTES)):
            point = data[at : at + POINT_BYTES]
            crc = struct.pack("<I", zlib.crc32(point[:32] + struct.pack("<QQ", generation, block)))
            if point.strip(b"\0") and point[32:] != crc:
                proof.bad(f"{root.name}/{CHAIN}/{name}: the chain point of block {block} does not match its CRC")
