"""The grammar of landing/ and of its index. Pure.

Specification. landing/<stream>/ holds

    durable                                   buffer.layout.DurableMark: landing generation, number of the newest index part, its end
                                              offset, then `ends` of the lanes. One pwrite after each sync: a lower bound
    index/<part>-<landing generation>         the index, in parts; append-only. <part> has ten digits and rises by one
    live/<landing generation>-<n>.frames      live frames, verbatim as on the wire; those of one sync begin on a 4 KiB boundary
    segments/<generation>-<first>-<last>.parquet, .cose     segments, named as in a ring (buffer.layout)
    objects/<sha256>                          one object frame each
    conflict/<generation>-<first>-<last>-<16 hex>           frames that contradict what is held: kept, alarmed, never delivered
    chain/, partial/                          private to receive

The index is the truth: readers go by it, never by glob, and never beyond `durable`. A part is a header of 64 bytes,

    0  magic "EBBI"   4  version u32   8  part u64   16  landing generation u64   24  ends, live u64   32  ends, backfill u64
    40  zero, 20 bytes   60  CRC-32 of bytes 0..59                                                   (little-endian)

then entries: magic "EBBE", length u32, CRC-32 of the body u32, body (deterministic CBOR, [kind, ...]):

    [1, summary]       first in each part: everything the parts before say (`LandingState`), so that a start reads one part. An
                       opening of the landing begins a part, whose summary has it as the last of its openings; a part that holds
                       nothing else is taken away by the next opening
    [2, lane, number, kind, generation, [first, last block], [first seq, count], chain before, chain after, SHA-256 of the COSE_Sign1,
        [[first, last]..] new, file, offset, length, tag table, state record, received ns]            frames landed
    [3, generation, [first, last block], file, received ns]  a conflict kept apart

`new` = the seqs of the frame that were not held before it: the only thing later processes deliver. `file` is "" where nothing is new
in a segment. Numbers count from 0 per lane (0 live, 1 backfill). Each opening is a landing generation, ordinal << 32 | nonce, with
the first number of each lane that may mean something else than before: the ends found then, or less where entries of an earlier
part had rotted. A receiver restored from yesterday's copy opens anew, so whoever remembers later numbers sees that they are no more.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from buffer.cose import decode_cbor, encode_cbor
from buffer.errors import CorruptError, MisuseError
from buffer.intervals import Intervals
from buffer.manifest import FrameKind, LossReason, StateRecord, decode_state, encode_state
from gateway.wire.receipt import Ends
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buffer.intervals import Range

INDEX: Final = "index"
LIVE: Final = "live"
CONFLICT: Final = "conflict"
LANES: Final = (Lane.LIVE, Lane.BACKFILL)
PART_BYTES: Final = 2 * 1024 * 1024  # about 7,000 entries, two hours of a block a second: a start reads one part of each stream
NEW_RANGES_MAX: Final = 4_096  # of one record; more become further records of the same frame
OPENINGS_MAX: Final = 256  # remembered; who knows an older one begins at 0
ENTRY_BYTES_MAX: Final = 256 * 1024 * 1024  # a summary of a landing of many years; a record has at most 100 KiB

_HEADER: Final = struct.Struct("<4sIQQQQ20x")
PART_HEADER_BYTES: Final = 64
_ENTRY: Final = struct.Struct("<4sII")
_ENTRY_MAGIC: Final = b"EBBE"
_PART: Final = re.compile(r"(\d{10})-(\d{10})-([0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class Opening:
    """One opening of the landing of a stream. `start`: from here on, numbers may mean something else to those who knew earlier ones."""

    landing: int
    start: Ends
    wall_ns: int


@dataclass(frozen=True, slots=True)
class Record:
    """One frame landed."""

    lane: Lane
    number: int
    kind: FrameKind
    generation: int
    first_block: int
    last_block: int
    first_seq: int
    count: int
    chain_before: bytes
    chain_after: bytes
    digest: bytes  # SHA-256 of its COSE_Sign1
    new: tuple[Range, ...]
    file: str  # relative to the stream's directory; "": nothing of it is new, nothing is stored
    offset: int
    length: int
    tag_table: bytes
    state: StateRecord
    received_ns: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """A frame kept apart."""

    generation: int
    first_block: int
    last_block: int
    file: str
    received_ns: int


@dataclass(frozen=True, slots=True, order=True)
class PartName:
    """An index part, as its name says. Order of names is order of parts."""

    part: int
    landing: int

    @property
    def path(self) -> str:
        """Path relative to the stream's directory."""
        return f"{INDEX}/{self.part:010d}-{self.landing >> 32:010d}-{self.landing & 0xFFFFFFFF:08x}"


def parse_part_name(name: str) -> PartName | None:
    """Return what a file name in index/ says, None for any other name."""
    found = _PART.fullmatch(name)
    return PartName(int(found[1]), int(found[2]) << 32 | int(found[3], 16)) if found else None


def live_path(landing: int, number: int) -> str:
    """Return the path of a file of live frames."""
    return f"{LIVE}/{landing >> 32:010d}-{landing & 0xFFFFFFFF:08x}-{number:06d}.frames"


def encode_part_header(name: PartName, ends: Ends) -> bytes:
    """Return the 64 bytes."""
    head = _HEADER.pack(b"EBBI", 1, name.part, name.landing, ends.live, ends.backfill)
    return head + struct.pack("<I", zlib.crc32(head))


def parse_part_header(data: bytes) -> tuple[PartName, Ends]:
    """Return name and `ends` at the beginning of a part; raise CorruptError."""
    head = data[:PART_HEADER_BYTES]
    if len(head) != PART_HEADER_BYTES or zlib.crc32(head[:60]) != int.from_bytes(head[60:], "little"):
        raise CorruptError("index part header does not match its CRC", offset=0)
    magic, version, part, landing, live, backfill = _HEADER.unpack(head[:60])
    if magic != b"EBBI" or version != 1:
        raise CorruptError("not an index part of this format", offset=0)
    return PartName(part, landing), Ends(live, backfill)


# ---- what an index says ----


@dataclass(slots=True)
class LandingState:
    """Everything an index says of a stream, without its records: fed in order, kept as the summary of each part."""

    live_end: int = 0  # one past the highest number in the lane
    backfill_end: int = 0
    openings: list[Opening] = field(default_factory=list)
    seqs: dict[int, Intervals] = field(default_factory=dict)  # held, per generation
    blocks: dict[int, Intervals] = field(default_factory=dict)
    states: dict[int, StateRecord] = field(default_factory=dict)  # the newest of each generation
    lost: dict[tuple[int, LossReason], Intervals] = field(default_factory=dict)  # what any record gave a reason for
    conflicts: dict[str, Conflict] = field(default_factory=dict)  # by file
    received_ns: int = 0  # when the newest frame came

    @property
    def ends(self) -> Ends:
        """One past the highest number of each lane."""
        return Ends(self.live_end, self.backfill_end)

    @property
    def landing(self) -> int:
        """The newest opening's generation, 0 if there is none."""
        return self.openings[-1].landing if self.openings else 0

    def since(self, known: int) -> Ends | None:
        """Return from where numbers may mean something else to one who last met landing generation `known`: the least start of the
        openings after it; 0 if it is not known here; None if it is the newest."""
        if known == self.landing:
            return None
        for place, opening in enumerate(self.openings):
            if opening.landing == known:
                later = [one.start for one in self.openings[place + 1 :]]
                return Ends(min(x.live for x in later), min(x.backfill for x in later))
        return Ends(0, 0)

    def stated_end(self, generation: int) -> int | None:
        """Return the least end that later generations state for this one as predecessor, None if none does."""
        ends = [s.predecessor[1] for s in self.states.values() if s.predecessor is not None and s.predecessor[0] == generation]
        return min(ends, default=None)

    def open(self, opening: Opening) -> None:
        """Add an opening, the newest now."""
        self.openings = [*self.openings, opening][-OPENINGS_MAX:]

    def take(self, entry: Record | Conflict) -> None:
        """Add one entry."""
        if isinstance(entry, Conflict):
            self.conflicts[entry.file] = entry
        else:
            self._record(entry)

    def _record(self, r: Record) -> None:
        if r.lane == Lane.LIVE:
            self.live_end = max(self.live_end, r.number + 1)
        else:
            self.backfill_end = max(self.backfill_end, r.number + 1)
        seqs = self.seqs.setdefault(r.generation, Intervals())
        for first, last in r.new:
            seqs.add(first, last)
        blocks = self.blocks.setdefault(r.generation, Intervals())
        if not r.count or seqs.covers(r.first_seq, r.first_seq + r.count - 1):  # else an earlier record that held a part has rotted
            blocks.add(r.first_block, r.last_block)
        self.received_ns = max(self.received_ns, r.received_ns)
        newest = self.states.get(r.state.generation)
        if newest is None or r.state.block >= newest.block:
            self.states[r.state.generation] = r.state
        for loss in r.state.lost:
            self.lost.setdefault((loss.generation, loss.reason), Intervals()).add(loss.first, loss.last)


def _summary(s: LandingState) -> list[Any]:
    return [
        list(s.ends),
        [[o.landing, list(o.start), o.wall_ns] for o in s.openings],
        [[g, [list(x) for x in ranges]] for g, ranges in sorted(s.seqs.items())],
        [[g, [list(x) for x in ranges]] for g, ranges in sorted(s.blocks.items())],
        [encode_state(state) for _, state in sorted(s.states.items())],
        [[g, int(reason), [list(x) for x in ranges]] for (g, reason), ranges in sorted(s.lost.items())],
        [[c.generation, [c.first_block, c.last_block], c.file, c.received_ns] for c in s.conflicts.values()],
        s.received_ns,
    ]


def _from_summary(f: Any) -> LandingState:  # noqa: ANN401 -- decoded CBOR
    ends, openings, seqs, blocks, states, lost, conflicts, received_ns = f
    decoded = [decode_state(x) for x in states]
    return LandingState(
        ends[0],
        ends[1],
        [Opening(landing, Ends(*start), wall_ns) for landing, start, wall_ns in openings],
        {g: Intervals((a, b) for a, b in ranges) for g, ranges in seqs},
        {g: Intervals((a, b) for a, b in ranges) for g, ranges in blocks},
        {s.generation: s for s in decoded},
        {(g, LossReason(reason)): Intervals((a, b) for a, b in ranges) for g, reason, ranges in lost},
        {file: Conflict(g, first, last, file, at) for g, (first, last), file, at in conflicts},
        received_ns,
    )


# ---- entries ----

Entry = LandingState | Record | Conflict


def encode_entry(entry: Entry) -> bytes:
    """Return the bytes of one index entry."""
    body: list[Any]
    if isinstance(entry, LandingState):
        body = [1, _summary(entry)]
    elif isinstance(entry, Conflict):
        body = [3, entry.generation, [entry.first_block, entry.last_block], entry.file, entry.received_ns]
    else:
        r = entry
        body = [
            2, LANES.index(r.lane), r.number, int(r.kind), r.generation, [r.first_block, r.last_block], [r.first_seq, r.count],
            r.chain_before, r.chain_after, r.digest, [list(x) for x in r.new], r.file, r.offset, r.length, r.tag_table,
            encode_state(r.state), r.received_ns,
        ]  # fmt: skip
    data = encode_cbor(body)
    return _ENTRY.pack(_ENTRY_MAGIC, len(data), zlib.crc32(data)) + data


@dataclass(frozen=True, slots=True)
class Rot:
    """Bytes between two good entries that do not verify: entries that were receipted and are gone."""

    offset: int
    end: int


def parse_entries(data: bytes, start: int = PART_HEADER_BYTES) -> Iterator[tuple[Entry | Rot, int]]:
    """Yield entries and rotten places with the offset behind each. What does not verify with nothing good behind it is the tail of a
    crash, and the end."""
    at = start
    while at < len(data):
        found = _entry_at(data, at)
        if found is not None:
            at = found[1]
            yield found
            continue
        resume = data.find(_ENTRY_MAGIC, at + 1)
        while resume >= 0 and _entry_at(data, resume) is None:
            resume = data.find(_ENTRY_MAGIC, resume + 1)
        if resume < 0:
            return
        yield Rot(at, resume), resume
        at = resume


def _entry_at(data: bytes, at: int) -> tuple[Entry, int] | None:
    if at + _ENTRY.size > len(data):
        return None
    magic, length, crc = _ENTRY.unpack_from(data, at)
    if magic != _ENTRY_MAGIC or not 0 < length <= ENTRY_BYTES_MAX or at + _ENTRY.size + length > len(data):
        return None
    body = data[at + _ENTRY.size : at + _ENTRY.size + length]
    if zlib.crc32(body) != crc:
        return None
    try:
        return _decode(decode_cbor(body)), at + _ENTRY.size + length
    except CorruptError:
        return None


def _decode(f: Any) -> Entry:  # noqa: ANN401
    try:
        match f:
            case [1, summary]:
                return _from_summary(summary)
            case [2, *rest]:
                return _record(rest)
            case [3, int(generation), [int(first), int(last)], str(file), int(received_ns)]:
                return Conflict(generation, first, last, file, received_ns)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, MisuseError) as error:
        message = f"index entry of another format: {error}"
        raise CorruptError(message) from error
    raise CorruptError("index entry of another format")


def _record(f: Sequence[Any]) -> Record:
    (lane, number, kind, generation, blocks, seqs, before, after, digest, new, file, offset, length, tag_table, state, received_ns) = f
    return Record(
        LANES[lane], number, FrameKind(kind), generation, blocks[0], blocks[1], seqs[0], seqs[1], before, after, digest,
        tuple((a, b) for a, b in new), file, offset, length, tag_table, decode_state(state), received_ns,
    )  # fmt: skip
