"""landing/: what the receiver holds, and the grammar of its index. Written by receive alone; read by deliver, ledger, console.

Specification. One directory per stream:

    landing/<stream>/journal/<landing generation>-<n>.journal   live frames, verbatim, in buffer.journal's grammar
    landing/<stream>/segments/<name>.parquet, .cose             segments, named as in a ring (buffer.layout)
    landing/<stream>/objects/<sha256>                           one object frame each
    landing/<stream>/conflict/<receive time>-<first block>      bodies that contradict what is held: kept, alarmed, never delivered
    landing/<stream>/index-<landing generation>                 append-only; one file per opening of the landing
    landing/<stream>/durable                                    buffer.layout.DurableMark: generation, -, end offset of the index
                                                                file, one past the highest number: live, backfill

The index is the truth: readers go by it, never by glob, and never beyond `durable`. A record is u32 length, u32 CRC-32, CBOR:

    opening {1: 1, 2: landing generation, 3: [live, backfill] first number of each lane from here on}
    frames  {1: 2, 2: lane, 3: number, 4: generation, 5: [first, last block], 6: [first seq, count], 7: chain before, 8: chain after,
             9: [[first, last]..] `new`: the seqs not held before, 10: kind, 11: file, 12: offset, 13: frames in it,
             14: tag table, 15: state record, 16: received, ns, 17: committed, ns}

Each opening is a generation, ordinal << 32 | nonce: a receiver restored from yesterday's copy opens with another one, so whoever
remembers later numbers sees that they are no more. A record of an earlier file with a number at or above a later opening's start
was never promised to anybody and does not count.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from buffer import layout
from buffer.cose import decode_cbor, encode_cbor
from buffer.errors import CorruptError
from buffer.frame import HEADER_BYTES, Frame, parse_body, parse_frame, parse_header
from buffer.journal import PAGE, parse_journal_header, read_frame
from buffer.manifest import FrameKind, StateRecord, decode_state, encode_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from buffer.intervals import Range
    from buffer.storage import ReadStorage

LIVE: Final = 0
BACKFILL: Final = 1
LANE_NAMES: Final = ("live", "backfill")
RECORD_BYTES_MAX: Final = 256 * 1024  # a record with ten thousand ranges of `new`
_HEAD: Final = struct.Struct("<II")
_INDEX: Final = re.compile(r"index-(\d{10})-([0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class Opening:
    """One opening of the landing of a stream."""

    landing: int
    start: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Record:
    """One landed piece: a run of live blocks, or a segment."""

    lane: int
    number: int
    generation: int
    first_block: int
    last_block: int
    first_seq: int
    count: int
    chain_before: bytes
    chain_after: bytes
    new: tuple[Range, ...]
    kind: FrameKind
    file: str
    offset: int
    frames: int
    tag_table: bytes
    state: StateRecord
    received_ns: int
    committed_ns: int


def index_name(landing: int) -> str:
    """Return the file name of the index of one opening."""
    return f"index-{landing >> 32:010d}-{landing & 0xFFFFFFFF:08x}"


def parse_index_name(name: str) -> int | None:
    """Return the landing generation in an index file name, None for another name."""
    found = _INDEX.fullmatch(name)
    return int(found[1]) << 32 | int(found[2], 16) if found else None


def encode_entry(entry: Opening | Record) -> bytes:
    """Return the bytes of one index record."""
    if isinstance(entry, Opening):
        body = encode_cbor({1: 1, 2: entry.landing, 3: list(entry.start)})
    else:
        e = entry
        body = encode_cbor(
            {
                1: 2, 2: e.lane, 3: e.number, 4: e.generation, 5: [e.first_block, e.last_block], 6: [e.first_seq, e.count], 7: e.chain_before,
                8: e.chain_after, 9: [list(x) for x in e.new], 10: int(e.kind), 11: e.file, 12: e.offset, 13: e.frames, 14: e.tag_table,
                15: encode_state(e.state), 16: e.received_ns, 17: e.committed_ns,
            }
        )  # fmt: skip
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def parse_entries(data: bytes) -> Iterator[tuple[Opening | Record, int]]:
    """Yield entries with the offset behind each, up to the first that does not verify (the torn tail of a crash)."""
    at = 0
    while at + _HEAD.size <= len(data):
        length, crc = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + length]
        if not 0 < length <= RECORD_BYTES_MAX or len(body) != length or zlib.crc32(body) != crc:
            return
        at += _HEAD.size + length
        yield _entry(decode_cbor(body)), at


def _entry(f: Any) -> Opening | Record:  # noqa: ANN401
    try:
        if f[1] == 1:
            return Opening(int(f[2]), (int(f[3][0]), int(f[3][1])))
        return Record(
            lane=int(f[2]),
            number=int(f[3]),
            generation=int(f[4]),
            first_block=int(f[5][0]),
            last_block=int(f[5][1]),
            first_seq=int(f[6][0]),
            count=int(f[6][1]),
            chain_before=bytes(f[7]),
            chain_after=bytes(f[8]),
            new=tuple((int(a), int(b)) for a, b in f[9]),
            kind=FrameKind(f[10]),
            file=str(f[11]),
            offset=int(f[12]),
            frames=int(f[13]),
            tag_table=bytes(f[14]),
            state=decode_state(f[15]),
            received_ns=int(f[16]),
            committed_ns=int(f[17]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        message = f"index record of another format: {error}"
        raise CorruptError(message, source="index") from error


def since(openings: list[Opening], known: int) -> tuple[int, int]:
    """Return from where landing numbers may mean something else to one who last met generation `known`: the least start of the
    openings after it; (0, 0) if it is not known here (another landing altogether)."""
    places = [i for i, opening in enumerate(openings) if opening.landing == known]
    if not places:
        return (0, 0)
    later = [opening.start for opening in openings[places[-1] + 1 :]]
    top = 2**62
    return (min((a for a, _ in later), default=top), min((b for _, b in later), default=top))


def stream_names(root: Path) -> list[str]:
    """Return the streams a landing holds."""
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.is_dir() and any(path.glob("index-*")))


@dataclass(slots=True)
class LandingIndex:
    """The index of one stream in memory: entries by lane and number, and the openings. Fed in order."""

    openings: list[Opening] = field(default_factory=list)
    lanes: tuple[dict[int, Record], dict[int, Record]] = field(default_factory=lambda: ({}, {}))
    _next: list[int] = field(default_factory=lambda: [0, 0])

    def take(self, entry: Opening | Record) -> None:
        """Add one entry; an opening cuts off the numbers it takes back."""
        if isinstance(entry, Record):
            self.lanes[entry.lane][entry.number] = entry
            self._next[entry.lane] = max(self._next[entry.lane], entry.number + 1)
            return
        self.openings.append(entry)
        self._next = list(entry.start)
        for lane, start in enumerate(entry.start):
            for number in [n for n in self.lanes[lane] if n >= start]:
                del self.lanes[lane][number]

    @property
    def landing(self) -> int:
        """The newest opening's generation; 0 if there is none."""
        return self.openings[-1].landing if self.openings else 0

    def highest(self) -> tuple[int, int]:
        """Return one past the highest number of each lane."""
        return (self._next[0], self._next[1])


class LandingReader:
    """Reads the landing of one stream that receive writes, up to `durable`."""

    def __init__(self, storage: ReadStorage) -> None:
        self._storage = storage
        self.index = LandingIndex()
        self._read: dict[int, int] = {}  # landing generation -> offset behind what was taken

    def refresh(self) -> None:
        """Take what was added; begin again where the landing was replaced or restored."""
        mark = self._mark()
        if mark is None:
            return
        generations = sorted(g for name in self._storage.list("") if (g := parse_index_name(name)) is not None)
        if any(g not in generations for g in self._read) or any(g > mark.generation for g in self._read):
            self.index, self._read = LandingIndex(), {}
        for generation in generations:
            if generation <= mark.generation:
                self._take(generation, mark.end_offset if generation == mark.generation else None)

    def _take(self, generation: int, end: int | None) -> None:
        at = self._read.get(generation, 0)
        if end is None and generation in self._read and self.index.landing != generation:
            return  # an earlier file: never written again
        name = index_name(generation)
        size = end if end is not None else (self._storage.size(name) or 0)
        data = self._storage.read(name, at, max(0, size - at)) or b""
        behind = at
        for entry, offset in parse_entries(data):
            self.index.take(entry)
            behind = at + offset
        self._read[generation] = behind

    def _mark(self) -> layout.DurableMark | None:
        for _ in range(5):
            data = self._storage.read(layout.DURABLE, 0, layout.DURABLE_BYTES)
            if data is None:
                return None
            try:
                return layout.decode_durable(data)
            except CorruptError:
                continue
        raise CorruptError("durable mark of the landing stays torn", source=layout.DURABLE)

    def frames(self, record: Record) -> list[Frame]:
        """Return the frames of a record, verbatim, digests checked; raise CorruptError with file and offset."""
        if record.kind == FrameKind.SEGMENT:
            return [self._segment(record)]
        page = self._storage.read(record.file, 0, PAGE) or b""
        salt = parse_journal_header(page).salt
        out: list[Frame] = []
        at = record.offset
        for _ in range(record.frames):
            frame = read_frame(lambda offset, size: self._storage.read(record.file, offset, size), at, salt)
            out.append(frame)
            size = HEADER_BYTES + len(frame.cose) + len(frame.payload)
            at += -(-size // PAGE) * PAGE
        return out

    def _segment(self, record: Record) -> Frame:
        head = self._storage.read(record.file.removesuffix(".parquet") + ".cose", 0, 64 * 1024) or b""
        header = parse_header(head)
        payload = self._storage.read(record.file, 0, header.payload_bytes + 1) or b""
        try:
            return parse_body(header, head[HEADER_BYTES : HEADER_BYTES + header.cose_bytes], payload)
        except CorruptError as error:
            raise error.at(record.file) from None

    def object_frame(self, digest: bytes) -> Frame | None:
        """Return an object, None if it is not there."""
        path = layout.object_path(digest)
        size = self._storage.size(path)
        return parse_frame(self._storage.read(path, 0, size) or b"") if size else None

