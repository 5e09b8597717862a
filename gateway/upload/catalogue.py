"""What the ring holds, in block numbers, and the bytes of what is to be sent. Reads the ring; decodes no payload, verifies no signature.

Names say readings; the cursor says blocks: the manifest of a segment and page 0 of a journal are read once each to know which blocks
they hold, the oldest first and LOOKS_MAX at a time, so that a start over 15,500 segments neither waits nor stalls.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from buffer import layout
from buffer.cose import parse_sign1
from buffer.errors import CorruptError
from buffer.frame import COSE_BYTES_MAX, HEADER_BYTES, parse_header
from buffer.journal import PAGE, parse_journal_header
from buffer.manifest import FrameKind, ObjectType, chain_next, decode_manifest
from buffer.reader import Inventory, RingReader
from gateway.upload.jobs import Loaded
from gateway.upload.plan import JournalUnit, RingView, SegmentUnit

if TYPE_CHECKING:
    from buffer.frame import Frame
    from buffer.layout import DurableMark, JournalName, SegmentName
    from buffer.storage import ReadStorage
    from gateway.upload.jobs import Job

LOOKS_MAX: Final = 256  # manifests read per look: about 50 ms
_FRAME_OVERHEAD: Final = 600  # header and COSE_Sign1 of a segment, about

log = logging.getLogger(__name__)


class Catalogue:
    """The ring of one stream. One caller at a time; holds no file open."""

    def __init__(self, storage: ReadStorage) -> None:
        self._storage = storage
        self._reader = RingReader(storage)
        self._inventory = Inventory((), (), None)
        self._segments: dict[SegmentName, SegmentUnit | None] = {}  # None: its manifest cannot be read
        self._journals: dict[JournalName, int | None] = {}  # first block; None: not a journal (yet)
        self._ends: dict[JournalName, tuple[int, int]] = {}  # last journal of a finished generation: end block, end seq
        self._statements: dict[bytes, bool] = {}  # object -> is a key statement

    def mark(self) -> DurableMark | None:
        """Return how far the ring is durable; None on an empty ring. Raise CorruptError, StorageFault."""
        return self._reader.durable()

    def look(self) -> tuple[RingView, tuple[bytes, ...]]:
        """Return what the ring holds, and its key statements. Raise CorruptError, StorageFault."""
        self._inventory = self._reader.inventory()
        complete = self._look_at_segments()
        units = tuple(unit for name in self._inventory.segments if (unit := self._segments.get(name)) is not None)
        return RingView(units, tuple(self._journal_units()), complete), self._key_statements()

    def _look_at_segments(self) -> bool:
        names = self._inventory.segments
        present = set(names)
        self._segments = {name: unit for name, unit in self._segments.items() if name in present}
        unknown = [name for name in names if name not in self._segments]
        for name in unknown[:LOOKS_MAX]:
            try:
                manifest = self._reader.segment_manifest(name)
            except CorruptError as error:
                log.warning("segment not readable; its blocks go if a journal holds them", extra={"data": {"file": name.cose, "why": str(error)}})
                self._segments[name] = None
                continue
            if manifest is not None:
                size = manifest.payload_length + _FRAME_OVERHEAD
                m = manifest
                self._segments[name] = SegmentUnit(m.generation, m.first_block, m.last_block, m.first_seq, m.end_seq, size)
        return len(unknown) <= LOOKS_MAX

    def _first_block(self, name: JournalName) -> int | None:
        if self._journals.get(name) is None:
            try:
                header = parse_journal_header(self._storage.read(name.path, 0, PAGE) or b"")
                fits = (header.generation, header.serial) == (name.generation, name.serial)
                self._journals[name] = header.first_block if fits else None
            except CorruptError:
                self._journals[name] = None  # being made, or recycled: a fact
        return self._journals[name]

    def _journal_units(self) -> list[JournalUnit]:
        names = sorted(self._inventory.journals, key=lambda name: (name.generation, name.serial))
        self._journals = {name: first for name, first in self._journals.items() if name in set(names)}
        self._ends = {name: end for name, end in self._ends.items() if name in self._journals}
        starts = [(name, first) for name in names if (first := self._first_block(name)) is not None]
        units: list[JournalUnit] = []
        for i, (name, first) in enumerate(starts):
            following = starts[i + 1] if i + 1 < len(starts) and starts[i + 1][0].generation == name.generation else None
            end, end_seq = (following[1], following[0].first_seq) if following else self._end(name, first)
            mark = self._inventory.durable
            if mark is not None and name.generation == mark.generation:
                end, end_seq = min(end, mark.end_block), min(end_seq, mark.end_seq)
            if end > first:
                units.append(JournalUnit(name.generation, first, end - 1, name.first_seq, end_seq, (end - first) * self._block_bytes()))
        return units

    def _end(self, name: JournalName, first: int) -> tuple[int, int]:
        """Return end block and end seq of the last journal of a generation."""
        mark = self._inventory.durable
        if mark is None or name.generation > mark.generation:
            return first, name.first_seq
        if name.generation == mark.generation:
            return mark.end_block, mark.end_seq
        if name not in self._ends:
            end = (first, name.first_seq)
            for frame in self._reader.blocks(self._from(name.generation, first), name.generation, first):
                end = (frame.manifest.last_block + 1, frame.manifest.end_seq)
            self._ends[name] = end
        return self._ends[name]

    def _block_bytes(self) -> int:
        """Return the mean size of a block in the newest journal, for sums shown to people."""
        mark = self._inventory.durable
        if mark is None:
            return PAGE
        firsts = [first for name, first in self._journals.items() if (name.generation, name.serial) == (mark.generation, mark.serial)]
        first = firsts[0] if firsts else None
        return PAGE if first is None or mark.end_block <= first else (mark.end_offset - PAGE) // (mark.end_block - first)

    def _from(self, generation: int, first: int) -> Inventory:
        """Return the inventory without the journals of `generation` that end before block `first`: they need not be read through."""
        own = sorted((n for n in self._inventory.journals if n.generation == generation), key=lambda n: n.serial)
        starts = [self._first_block(name) for name in own]
        at = max((i for i, start in enumerate(starts) if start is not None and start <= first), default=0)
        skip = set(own[:at])
        return Inventory(self._inventory.segments, tuple(n for n in self._inventory.journals if n not in skip), self._inventory.durable)

    def _key_statements(self) -> tuple[bytes, ...]:
        found = self._reader.objects()
        self._statements = {digest: kind for digest, kind in self._statements.items() if digest in set(found)}
        for digest in found:
            if digest not in self._statements:
                head = self._storage.read(layout.object_path(digest), 0, HEADER_BYTES + COSE_BYTES_MAX) or b""
                try:
                    header = parse_header(head)
                    manifest = decode_manifest(parse_sign1(head[HEADER_BYTES : HEADER_BYTES + header.cose_bytes]).payload)
                except CorruptError:
                    continue
                self._statements[digest] = manifest.object_type == ObjectType.KEY_STATEMENT
        return tuple(sorted(digest for digest, statement in self._statements.items() if statement))

    # ---- bytes ----

    def load(self, job: Job) -> Loaded | None:
        """Return the frames of a job, None if they are not there any more or cannot be read. Raise StorageFault."""
        try:
            if job.kind == FrameKind.OBJECT:
                frame = self._reader.object_frame(job.digest)
                return None if frame is None else Loaded(_parts(frame), 0, 0, (job.digest,))
            if job.segment is not None:
                return self._segment(job)
            return self._blocks(job)
        except CorruptError as error:
            log.warning("not readable, not sent", extra={"data": {"what": f"{job.kind.name.lower()} {job.first}-{job.last}", "why": str(error)}})
            return None

    def _segment(self, job: Job) -> Loaded | None:
        unit = job.segment
        if unit is None:
            return None
        name = layout.SegmentName(unit.generation, unit.first_seq, unit.end_seq - 1)
        frame = None if job.offer else self._reader.segment_frame(name)  # an offer needs the manifest alone
        m = self._reader.segment_manifest(name) if job.offer else frame.manifest if frame else None
        if m is None:
            return None
        return Loaded(_parts(frame) if frame else (), m.first_block, m.last_block, (m.chain_after,), frozenset({m.tag_table_sha256}))

    def _blocks(self, job: Job) -> Loaded | None:
        mark = self._reader.durable()
        known = self._inventory.durable
        if known is None or mark is None or (mark.generation, mark.serial) != (known.generation, known.serial):
            self._inventory = self._reader.inventory()
        else:
            self._inventory = Inventory(self._inventory.segments, self._inventory.journals, mark)
        frames: list[Frame] = []
        size = 0
        for frame in self._reader.blocks(self._from(job.generation, job.first), job.generation, job.first):
            block = frame.manifest.first_block
            size += HEADER_BYTES + len(frame.cose) + len(frame.payload)
            if frames and (size > job.max_bytes or block != frames[-1].manifest.first_block + 1):
                break
            if block > job.last:
                break
            frames.append(frame)
        if not frames:
            return None
        chains = tuple(chain_next(frame.manifest.chain_before, frame.cose) for frame in frames)
        tables = frozenset(frame.manifest.tag_table_sha256 for frame in frames)
        body = b"".join(frame.wire() for frame in frames)
        return Loaded((body,), frames[0].manifest.first_block, frames[-1].manifest.first_block, chains, tables)


def _parts(frame: Frame) -> tuple[bytes | memoryview, ...]:
    return (frame.header() + frame.cose, frame.payload)


