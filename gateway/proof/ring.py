"""The proof of a ring: segments, blocks up to `durable`, objects, `last`, and that nothing between is missing without a reason.

Bytes of a journal behind its committed end are of an earlier use and belong to nobody: they are not judged.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buffer import layout, limits
from buffer.errors import CorruptError
from buffer.frame import COSE_BYTES_MAX, HEADER_BYTES, parse_body, parse_header
from buffer.intervals import Intervals
from buffer.journal import PAGE, Hole, find_salt, frame_pages, parse_journal_header, scan
from buffer.manifest import FrameKind, StateRecord, format_generation
from buffer.plain import PlainFiles
from gateway.proof.objects import frame_bytes, prove_objects

if TYPE_CHECKING:
    from pathlib import Path

    from buffer.frame import Frame
    from buffer.layout import DurableMark, JournalName, SegmentName
    from gateway.proof.report import Proof
    from gateway.trust.keys import KeyRing

LAST_BYTES_MAX = 512 * 1024 * 1024
RESERVE_BYTES_MAX = 4 * limits.JOURNAL_RESERVE_BYTES


@dataclass(slots=True)
class _Seen:
    """What the ring says of itself, gathered while its files are read."""

    states: dict[int, StateRecord] = field(default_factory=dict)  # the newest of each generation
    ends: dict[int, int] = field(default_factory=dict)  # what a successor states

    def take(self, state: StateRecord | None) -> None:
        """Take one state record."""
        if state is None:
            return
        if state.generation not in self.states or state.block > self.states[state.generation].block:
            self.states[state.generation] = state
        if state.predecessor is not None:
            self.ends[state.predecessor[0]] = max(state.predecessor[1], self.ends.get(state.predecessor[0], 0))


def prove_ring(root: Path, keys: KeyRing, proof: Proof, *, statements: bool) -> None:
    """Check the ring of one stream; what does not hold is a finding."""
    storage = PlainFiles(root)
    prove_objects(root, keys, proof, statements=statements)
    seen, mark = _Seen(), _mark(root, storage, proof)
    _last_files(root, storage, proof)
    segments = {one[0] for name in storage.list(layout.SEGMENTS) if (one := layout.parse_segment(name)) is not None}
    for segment in sorted(segments):
        prove_segment(root, segment, keys, proof, seen)
    journals = sorted(found for name in storage.list(layout.JOURNALS) if (found := layout.parse_journal(name)))
    for at, journal in enumerate(journals):
        following = journals[at + 1] if at + 1 < len(journals) and journals[at + 1].generation == journal.generation else None
        with proof.judging(root.name):
            _journal(root, journal, following, mark, keys, proof, seen)
    _reserve(root, storage, proof)
    if mark is not None:
        seen.ends[mark.generation] = mark.end_seq
    _missing(root, proof, seen)


def _mark(root: Path, storage: PlainFiles, proof: Proof) -> DurableMark | None:
    try:
        data = storage.read(layout.DURABLE, 0, layout.DURABLE_BYTES + 1)
        return layout.decode_durable(data) if data is not None else None
    except CorruptError as error:
        proof.bad(f"{root.name}/{error.at(layout.DURABLE, 0)}")
        return None


def _last_files(root: Path, storage: PlainFiles, proof: Proof) -> None:
    for name in storage.list(layout.LAST):
        path = f"{layout.LAST}/{name}"
        if layout.parse_last(name) is not None:
            data = None
            with proof.judging(root.name):
                data = storage.read(path, 0, LAST_BYTES_MAX) or b""
            if data is not None and hashlib.sha256(data[32:]).digest() != data[:32]:
                proof.bad(f"{root.name}/{path} at byte 0: does not match its digest")


def _reserve(root: Path, storage: PlainFiles, proof: Proof) -> None:
    place = f"{root.name}/{layout.RESERVE_JOURNAL}"
    with proof.judging(root.name):
        data = storage.read(layout.RESERVE_JOURNAL, 0, RESERVE_BYTES_MAX + 1) or b""
        held = data.lstrip(b"\0")
        if held:
            proof.bad(f"{place} at byte {len(data) - len(held)}: not zero, though it is kept empty until a full disk needs it")
        elif len(data) > RESERVE_BYTES_MAX:
            proof.bad(f"{place} at byte {RESERVE_BYTES_MAX}: larger than any reserve journal")


def prove_segment(root: Path, name: SegmentName, keys: KeyRing, proof: Proof, seen: _Seen | None = None) -> None:
    """Check a segment and its manifest."""
    try:
        frame = _segment(PlainFiles(root), name)
        keys.admit(frame)
    except CorruptError as error:
        proof.bad(f"{root.name}/{error if error.source else error.at(name.cose, 0)}")
        return
    if seen is not None:
        seen.take(frame.manifest.state)
    proof.saw(frame, f"{root.name}/{name.parquet}")


def _segment(storage: PlainFiles, name: SegmentName) -> Frame:
    head = storage.read(name.cose, 0, HEADER_BYTES + COSE_BYTES_MAX + 1)
    payload_size = storage.size(name.parquet)
    if head is None or payload_size is None:
        raise CorruptError("its other half is missing: .parquet and .cose belong together", source=name.parquet if head is None else name.cose)
    try:
        header = parse_header(head)
        if len(head) != HEADER_BYTES + header.cose_bytes:
            raise CorruptError("longer or shorter than its header says")
    except CorruptError as error:
        raise error.at(name.cose, 0) from None
    if payload_size != header.payload_bytes:
        message = f"{payload_size} bytes, its manifest says {header.payload_bytes}"
        raise CorruptError(message, source=name.parquet, offset=min(payload_size, header.payload_bytes))
    payload = storage.read(name.parquet, 0, payload_size) or b""
    try:
        frame = parse_body(header, head[HEADER_BYTES:], payload)
    except CorruptError as error:
        raise error.at(f"{name.cose} with {name.parquet}", 0) from None
    m = frame.manifest
    if m.kind != FrameKind.SEGMENT or (m.generation, m.first_seq, m.end_seq - 1) != (name.generation, name.first, name.last):
        raise CorruptError("its name is not what its manifest says", source=name.cose, offset=0)
    return frame


def _journal(
    root: Path, name: JournalName, following: JournalName | None, mark: DurableMark | None, keys: KeyRing, proof: Proof, seen: _Seen
) -> None:
    storage, place = PlainFiles(root), f"{root.name}/{name.path}"
    if mark is not None and (name.generation, name.serial) > (mark.generation, mark.serial):
        return  # begun, nothing promised
    active = mark is not None and (name.generation, name.serial) == (mark.generation, mark.serial)
    size = mark.end_offset if active and mark is not None else storage.size(name.path) or 0

    def read(offset: int, count: int) -> bytes:
        return storage.read(name.path, offset, min(count, max(0, size - offset))) or b""

    try:
        parse_journal_header(read(0, PAGE))
    except CorruptError as error:
        proof.bad(f"{root.name}/{error.at(name.path, 0)}")
    salt = find_salt(read, size, name.generation, name.first_seq, name.serial)
    end, last = PAGE, -1
    for found in scan(read, salt, size) if salt is not None else ():
        if isinstance(found, Hole):
            proof.bad(f"{place} at byte {found.offset}: {found.reason} (up to byte {found.end})")
            continue
        end, last = found.offset + frame_pages(found.frame), found.frame.manifest.last_block
        _block(found.frame, name, f"{place} at byte {found.offset}", keys, proof, seen)
        padding = found.offset + frame_bytes(found.frame)
        if any(read(padding, end - padding)):
            proof.bad(f"{place} at byte {padding}: padding that is not zero")
    if active and end < size:
        proof.bad(f"{place} at byte {end}: does not verify, and `durable` says it was committed up to byte {size}")
    elif following is not None and (first := _first_block(storage, following)) is not None and last + 1 < first:
        proof.bad(f"{place} at byte {end}: does not verify, and the next journal begins with block {first}, not {last + 1}")


def _first_block(storage: PlainFiles, name: JournalName) -> int | None:
    try:
        return parse_journal_header(storage.read(name.path, 0, PAGE) or b"").first_block
    except CorruptError:
        return None  # named where that journal is read


def _block(frame: Frame, name: JournalName, place: str, keys: KeyRing, proof: Proof, seen: _Seen) -> None:
    try:
        if (frame.manifest.kind, frame.manifest.generation) != (FrameKind.BLOCK, name.generation):
            raise CorruptError("not a block of this generation")
        keys.admit(frame)
    except CorruptError as error:
        proof.bad(f"{place}: {error}")
        return
    seen.take(frame.manifest.state)
    proof.saw(frame, place)


def _missing(root: Path, proof: Proof, seen: _Seen) -> None:
    """Name seqs that a record reports, that are above its `low`, not lost, and not there."""
    if not seen.states:
        return
    newest = seen.states[max(seen.states)]
    lost: dict[int, Intervals] = {}
    for state in seen.states.values():
        for loss in state.lost:
            lost.setdefault(loss.generation, Intervals()).add(loss.first, loss.last)
    ends = {g: state.end for g, state in seen.states.items()} | seen.ends
    for generation, end in sorted(ends.items()):
        low = newest.low[1] if generation == newest.low[0] else 0
        if generation < newest.low[0] or low >= end:
            continue
        covered = lost.get(generation, Intervals()).copy()
        stream = root.name
        for (name, g), held in proof.held.items():
            if (name, g) == (stream, generation):
                for first, last in held.seqs:
                    covered.add(first, last)
        for first, last in covered.holes(low, end - 1):
            proof.bad(f"{root.name}: readings {first}-{last} of generation {format_generation(generation)} are reported, not lost, and not here")
