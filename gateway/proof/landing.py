"""The proof of a landing: every byte of it, by its index.

Checked: the index (CRC of every part and entry), every frame it names (CRC, digest, signature, the key's right to sign it), the chain
between neighbours, every object, and that a file holds nothing else than what the index says (rot in padding is rot all the same).
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import TYPE_CHECKING

from buffer import layout
from buffer.errors import CorruptError
from buffer.frame import HEADER_BYTES, parse_frame
from buffer.manifest import FrameKind
from buffer.plain import PlainFiles
from gateway.landing import LandingReader, Record, stream_names
from gateway.landing.index import INDEX, LIVE, PART_HEADER_BYTES, Rot, parse_entries, parse_part_header
from gateway.proof.objects import prove_objects
from gateway.proof.report import Proof
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.trust.keys import KeyRing

CHAIN = "chain"
POINT_BYTES = 36
POINTS_NAME = re.compile(r"(\d{10})-([0-9a-f]{8})")
RECORDS_AT_ONCE = 10_000


def verify_landing(root: Path, keys: KeyRing, *, statements: bool = True, full: bool = False) -> Proof:
    """Return the proof over all streams under `root`; raise nothing for bad bytes: they are findings.

    full: keep a line for each frame. statements: believe key statements that an authority in `keys` endorsed; else only the keys given count.
    """
    proof = Proof(full)
    streams = [root / stream for stream in stream_names(root)] or ([root] if (root / INDEX).is_dir() else [])
    if not streams:
        proof.bad(f"{root}: no landing here (a directory per stream, each with {INDEX}/)")
    for stream in streams:
        try:
            _stream(stream, keys, proof, statements)
        except CorruptError as error:
            proof.bad(f"{stream.name}: {error}")
    return proof


def _stream(root: Path, keys: KeyRing, proof: Proof, statements: bool) -> None:
    storage = PlainFiles(root)
    reader = LandingReader(storage)
    prove_objects(root, keys, proof, statements=statements)
    _index(root, storage, proof)
    try:
        layout.decode_durable(storage.read(layout.DURABLE, 0, layout.DURABLE_BYTES + 1) or b"")
    except CorruptError as error:
        proof.bad(f"{root.name}/{error.at(layout.DURABLE, 0)}")
        return
    reader.refresh()
    spans: dict[str, list[tuple[int, int]]] = {}
    for lane in Lane:
        for record in _records(reader, lane):
            _frame(root, reader, record, keys, proof)
            if record.file and record.kind == FrameKind.BLOCK:
                spans.setdefault(record.file, []).append((record.offset, record.offset + record.length))
    _padding(root, storage, spans, proof)
    _points(root, storage, proof)


def _records(reader: LandingReader, lane: Lane) -> Iterable[Record]:
    first = 0
    while records := reader.records(lane, first, RECORDS_AT_ONCE):
        yield from records
        first = records[-1].number + 1


def _frame(root: Path, reader: LandingReader, record: Record, keys: KeyRing, proof: Proof) -> None:
    if not record.file:
        return
    place = f"{root.name}/{record.file}"
    try:
        frame = reader.frame(record)
        keys.admit(frame)
    except CorruptError as error:
        proof.bad(f"{root.name}/{error.at(record.file, record.offset)} (blocks {record.first_block}-{record.last_block})")
        return
    said = (record.generation, record.first_block, record.last_block, record.first_seq, record.count, record.chain_before)
    m = frame.manifest
    if said != (m.generation, m.first_block, m.last_block, m.first_seq, m.count, m.chain_before):
        proof.bad(f"{place}: the index says something else of this frame than its signed manifest")
    proof.saw(frame, place, record.new)


def _index(root: Path, storage: PlainFiles, proof: Proof) -> None:
    for name in storage.list(INDEX):
        with proof.judging(root.name):
            _part(root, storage, f"{INDEX}/{name}", proof)


def _part(root: Path, storage: PlainFiles, path: str, proof: Proof) -> None:
    data = storage.read(path, 0, storage.size(path) or 0) or b""
    try:
        parse_part_header(data)
    except CorruptError as error:
        proof.bad(f"{root.name}/{error.at(path, 0)}")
    end = PART_HEADER_BYTES
    for entry, behind in parse_entries(data):
        end = behind
        if isinstance(entry, Rot):
            proof.bad(f"{root.name}/{path} at byte {entry.offset}: an entry that does not verify (up to byte {entry.end})")
    if data[end:].strip(b"\0"):
        proof.bad(f"{root.name}/{path} at byte {end}: bytes that do not verify")


def _padding(root: Path, storage: PlainFiles, spans: dict[str, list[tuple[int, int]]], proof: Proof) -> None:
    for name in storage.list(LIVE):
        path, data = f"{LIVE}/{name}", b""
        with proof.judging(root.name):
            data = storage.read(path, 0, storage.size(path) or 0) or b""
        at = 0
        for first, last in [*sorted(spans.get(path, [])), (len(data), len(data))]:
            if data[at:first].strip(b"\0") and not _frames_only(data[at:first]):
                proof.bad(f"{root.name}/{path} at byte {at}: bytes up to {first} that belong to no frame")
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


def _points(root: Path, storage: PlainFiles, proof: Proof) -> None:
    """The receiver's cache of chain points: h (32 bytes) and the CRC-32 of h, block and generation, at 36 bytes a block; zeros: none."""
    for name in storage.list(CHAIN):
        data, found = b"", POINTS_NAME.fullmatch(name)
        if found is None:
            proof.bad(f"{root.name}/{CHAIN}/{name}: not a file of ours")
            continue
        generation = int(found[1]) << 32 | int(found[2], 16)
        with proof.judging(root.name):
            data = storage.read(f"{CHAIN}/{name}", 0, storage.size(f"{CHAIN}/{name}") or 0) or b""
        for block, at in enumerate(range(0, len(data), POINT_BYTES)):
            point = data[at : at + POINT_BYTES]
            crc = struct.pack("<I", zlib.crc32(point[:32] + struct.pack("<QQ", generation, block)))
            if point.strip(b"\0") and point[32:] != crc:
                proof.bad(f"{root.name}/{CHAIN}/{name} at byte {at}: the chain point of block {block} does not match its CRC")
