"""The ring of one stream: the passive writer. No thread, timer, clock, randomness or key; one caller at a time.

Order of durability of a commit: encode, chain, sign, pwrite, fdatasync, then `durable`. When `commit` returns, what was appended
survives kill -9, an OS crash and a power cut (G1). After a failed sync the same blocks go, byte for byte, to a new journal under
the same generation and seq; a block is never cut again, and the failed file is never written or synced again (G9).

Files and their owners are named in buffer.layout; what a start believes in buffer.recovery; what is evicted in buffer.retention.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from buffer import layout, limits
from buffer.codec import encode_blocks
from buffer.errors import CorruptError, StorageFault, invariant
from buffer.frame import HEADER_BYTES, Frame, encode_header, payload_digest, seal_frame
from buffer.journal import PAGE, JournalHeader, JournalWriter, padded
from buffer.last import LastState, encode_last
from buffer.layout import DurableMark, JournalName, SegmentName
from buffer.manifest import FrameKind, Manifest, ObjectType, OpenGap, StateRecord, chain_next, chain_start
from buffer.recovery import JournalFacts, Recovered, Run, recover
from buffer.retention import Unit, excess_journals, oldest_unit
from buffer.seal import SealRequest
from buffer.state import merge_losses
from buffer.types import Columns, concat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buffer.cose import Signer, Verifier
    from buffer.manifest import Loss
    from buffer.seal import SealedPart, SealResult
    from buffer.storage import Storage

DURABLE_SIZE: Final = layout.DURABLE_BYTES


@dataclass(frozen=True, slots=True)
class Instant:
    """The time of one call, read by the caller."""

    wall_ns: int
    monotonic_ns: int
    boot_id: bytes
    trusted: bool


@dataclass(frozen=True, slots=True)
class RingOptions:
    """How large; sizes in bytes."""

    stream: str
    max_bytes: int
    journal_bytes: int = limits.JOURNAL_BYTES
    public_keys: tuple[bytes, ...] = ()  # SubjectPublicKeyInfo, DER: handed to the sealing child


@dataclass(frozen=True, slots=True)
class GapStepRequest:
    """What a batch does to a gap: open, progress, filled, unfillable (buffer's view of gateway.collect.source.GapChange)."""

    step: str
    id: int = 0
    from_ns: int = 0
    progress: bytes = b""
    tags: tuple[int, ...] = ()  # of the source; on open: whose newest readings the gap remembers


@dataclass(frozen=True, slots=True)
class Pending:
    """What was appended and not committed."""

    columns: Columns
    source: int | None
    position: bytes | None
    gap: GapStepRequest | None


@dataclass(frozen=True, slots=True)
class Committed:
    """What one commit made durable."""

    generation: int
    first_seq: int
    end_seq: int
    first_block: int
    last_block: int


@dataclass(slots=True)
class _Active:
    writer: JournalWriter
    name: JournalName
    facts: JournalFacts
    opened_ns: int
    acked_end: int = PAGE
    payload_bytes: int = 0


@dataclass(slots=True)
class Counters:
    """Since opening, for `info`."""

    readings: int = 0
    blocks: int = 0
    bytes_written: int = 0
    evicted_files: int = 0
    failed_syncs: int = 0
    sealed: int = 0
    events: list[str] = field(default_factory=list)


class Ring:
    """See the module. Make one with `Ring.open`."""

    def __init__(self, storage: Storage, options: RingOptions, signer: Signer, salts: Callable[[], int], found: Recovered) -> None:
        self._storage = storage
        self.options = options
        self._signer = signer
        self._salts = salts
        self.segments = found.segments
        self.journals = found.journals
        self._free = found.free
        self.last: LastState = found.last
        self.generation = 0
        self._predecessor: tuple[int, int] | None = None
        self._block = 0
        self._seq = 0
        self._chain = b""
        self._low: tuple[int, int] = (0, 0)
        self._lost: tuple[Loss, ...] = ()
        self._gap_id = max(found.last.gaps, default=0)
        self._serial = 0
        self._active: _Active | None = None
        self._pending: list[Pending] = []
        self._unsynced: list[Frame] = []
        self._table = b""
        self._roll = False
        self._sizes: dict[str, int] = {}
        self._durable: int | None = None
        self._lock: int | None = None
        self._unsealable: set[tuple[int, int]] = set()
        self.state: StateRecord | None = found.state
        self.counters = Counters(events=found.events)

    # ---- opening ----

    @classmethod
    def open(
        cls, storage: Storage, options: RingOptions, signer: Signer, verifier: Verifier, now: Instant, nonce: int, salts: Callable[[], int]
    ) -> Ring:
        """Recover and begin a new generation. Nothing is committed before `use_table` and `commit`. Raise StorageFault."""
        for directory in layout.DIRECTORIES:
            storage.mkdir(directory)
        storage.mkdir(layout.LOCK_DIRECTORY, 0o700)
        lock = storage.lock(layout.LOCK)
        found = recover(storage, verifier)
        ring = cls(storage, options, signer, salts, found)
        ring._lock = lock
        ring._begin(found, nonce, now)
        return ring

    def _begin(self, found: Recovered, nonce: int, now: Instant) -> None:
        invariant(0 <= nonce < 2**32, "nonce of a generation has 32 bits")
        self.generation = (found.ordinal + 1) << 32 | nonce
        self._predecessor = found.end
        self._chain = chain_start(self.options.stream, self.generation)
        lost = list(found.holes) + list(found.state.lost if found.state else ())
        self._low = self._first_held()
        self._lost = merge_losses(lost, self._low)
        for path in [path for segment in self.segments for path in (segment.parquet, segment.cose)]:
            self._sizes[path] = self._storage.size(path) or 0
        for digest in self._storage.list(layout.OBJECTS):
            self._sizes[f"{layout.OBJECTS}/{digest}"] = self._storage.size(f"{layout.OBJECTS}/{digest}") or 0
        for name in found.done:
            self._recycle(name, self._storage.size(name.path) or 0)
        self._storage.fsync_dir(layout.JOURNALS)
        self.counters.events.append(f"opened at {now.wall_ns} after {found.end}")

    def _first_held(self) -> tuple[int, int]:
        firsts = [(s.generation, s.first) for s in self.segments[:1]]
        firsts += [(j.name.generation, run.first_seq) for j in self.journals for run in j.runs if run.end_seq > run.first_seq]
        return min(firsts, default=(self.generation, 0))

    @property
    def recovered_table(self) -> bytes:
        """SHA-256 of the tag table of the newest block before this opening; empty on a new disk."""
        return self._table

    # ---- objects ----

    def add_object(self, kind: ObjectType, payload: bytes) -> bytes:
        """Make an object durable; return its SHA-256."""
        digest = payload_digest(payload)
        path = layout.object_path(digest)
        if self._storage.size(path) is None:
            manifest = Manifest(FrameKind.OBJECT, self.options.stream, digest, len(payload), object_type=kind)
            wire = seal_frame(self._signer, manifest, payload).wire()
            self._storage.publish(path, [wire])
            self._sizes[path] = len(wire)
        return digest

    def use_table(self, payload: bytes) -> None:
        """Make a tag table durable; later blocks name it. A journal never spans two."""
        digest = self.add_object(ObjectType.TAG_TABLE, payload)
        if digest != self._table:
            invariant(not self._pending, "tag table changed while readings of the old one wait")
            self._table = digest
            self._roll = True

    # ---- writing ----

    def append(
        self, columns: Columns, source: int | None = None, position: bytes | None = None, gap: GapStepRequest | None = None
    ) -> None:
        """Take readings for the next commit; they stay whole: all in that commit, or none."""
        self._pending.append(Pending(columns, source, position, gap))

    def commit(self, now: Instant) -> Committed | None:
        """Make everything appended durable; an empty block where nothing was. Raise StorageFault: nothing is lost, call again."""
        invariant(bool(self._table), "commit before use_table")
        if self._unsynced:
            self._write(now)
        if self._pending or not self._unsynced:
            pending, self._pending = self._pending, []
            self._unsynced = self._build(pending, now)
        frames = self._unsynced
        self._write(now)
        first, last = frames[0].manifest, frames[-1].manifest
        return Committed(self.generation, first.first_seq, last.end_seq, first.first_block, last.last_block)

    def _build(self, pending: Sequence[Pending], now: Instant) -> list[Frame]:
        """Cut, encode, chain and sign. What is built here is never built again."""
        groups = _group(pending, self._gaps_changed(pending))
        frames: list[Frame] = []
        cut = [(columns, payload, group) for group in groups for columns, payload in _payloads(group.columns)]
        for i, (columns, payload, group) in enumerate(cut):
            last_of_group = i + 1 == len(cut) or cut[i + 1][2] is not group
            frames.append(self._frame(columns, payload, group, now, last_of_group, more=i + 1 < len(cut)))
        return frames

    def _gaps_changed(self, pending: Sequence[Pending]) -> list[int]:
        """Open and close gaps; return per pending the id of the gap it fills, 0 for live readings."""
        fills: list[int] = []
        for one in pending:
            gap = one.gap
            fills.append(0)
            if gap is None:
                continue
            if gap.step == "open":
                self._gap_id += 1
                self.last.open_gap(self._gap_id, one.source or 0, gap.from_ns, gap.tags)
                self._close_oldest(one.source or 0)
            elif gap.step == "progress":
                fills[-1] = gap.id
                if gap.id in self.last.gaps:
                    self.last.gaps[gap.id].progress = gap.progress
            else:
                self.last.gaps.pop(gap.id, None)
        return fills

    def _close_oldest(self, source: int) -> None:
        """Keep at most OPEN_GAPS_MAX gaps; the oldest closes as unfillable."""
        while len(self.last.gaps) > limits.OPEN_GAPS_MAX:
            oldest = min(self.last.gaps)
            del self.last.gaps[oldest]
            self.counters.events.append(f"gap {oldest} closed as unfillable: more than {limits.OPEN_GAPS_MAX} open (source {source})")

    def _frame(self, columns: Columns, payload: bytes, group: _Group, now: Instant, last: bool, *, more: bool) -> Frame:
        count = len(columns)
        state = self._record(now, self._seq + count)
        positions = group.positions if last else {}
        manifest = Manifest(
            FrameKind.BLOCK,
            self.options.stream,
            payload_digest(payload),
            len(payload),
            generation=self.generation,
            first_block=self._block,
            last_block=self._block,
            first_seq=self._seq,
            count=count,
            tag_table_sha256=self._table,
            chain_before=self._chain,
            arrival_ns=now.wall_ns,
            positions=tuple(sorted(positions.items())),
            fill=(group.fill, self.last.gaps[group.fill].progress) if group.fill in self.last.gaps else None,
            state=state,
            more=more,
        )
        frame = seal_frame(self._signer, manifest, payload)
        self._chain = chain_next(self._chain, frame.cose)
        self._block += 1
        self._seq += count
        self.last.positions.update(positions)
        if not group.fill:
            self.last.take(columns)
        return frame

    def _record(self, now: Instant, end: int) -> StateRecord:
        gaps = tuple(sorted(OpenGap(g.id, g.source, g.from_ns) for g in self.last.gaps.values()))
        return StateRecord(
            self.generation, self._block, self._predecessor, end, self._low, self._lost, gaps, now.wall_ns, now.monotonic_ns, now.boot_id,
            now.trusted,
        )  # fmt: skip

    def _write(self, now: Instant) -> None:
        """Write and sync the blocks that are not durable yet, in the journal they fit, else in the next one."""
        for attempt in (0, 1):
            active = self._journal_for(self._unsynced, now)
            try:
                for frame in self._unsynced:
                    active.writer.append(frame)
                active.writer.sync()
                break
            except StorageFault as fault:
                self._abandon(active, fault)
                if attempt:
                    raise
        self._note_durable(active)

    def _note_durable(self, active: _Active) -> None:
        frames, self._unsynced = self._unsynced, []
        for frame in frames:
            _extend(active.facts, frame.manifest)
            active.payload_bytes += len(frame.payload)
        self.counters.bytes_written += active.writer.end - active.acked_end
        active.acked_end = active.writer.end
        self.state = frames[-1].manifest.state
        self.counters.blocks += len(frames)
        self.counters.readings += sum(frame.manifest.count for frame in frames)
        mark = DurableMark(self.generation, active.name.serial, active.acked_end, self._seq, self._block)
        if self._durable is None:
            if self._storage.size(layout.DURABLE) is None:
                self._storage.publish(layout.DURABLE, [layout.encode_durable(mark)])
            self._durable = self._storage.open(layout.DURABLE)
        self._storage.pwrite(self._durable, 0, layout.encode_durable(mark))

    def _abandon(self, active: _Active, fault: StorageFault) -> None:
        """G9: that file is never written or synced again. Blocks acknowledged in it stay and are read past the cache."""
        self.counters.failed_syncs += 1
        self.counters.events.append(f"{active.name.path}: {fault}; its blocks go to a new journal")
        active.writer.close()
        self._active = None
        if active.facts.runs:
            self.journals.append(active.facts)

    def _journal_for(self, frames: Sequence[Frame], now: Instant) -> _Active:
        need = sum(padded(HEADER_BYTES + len(f.cose) + len(f.payload)) for f in frames)
        need += limits.JOURNAL_RESERVE_BYTES if any(f.manifest.count for f in frames) else 0
        active = self._active
        if active is not None and not self._roll and active.writer.room() >= need:
            return active
        if active is not None:
            active.writer.close()
            self._active = None
            self.journals.append(active.facts)
        self._active = self._new_journal(frames[0].manifest, max(need + PAGE, self.options.journal_bytes), now)
        self._roll = False
        return self._active

    def _new_journal(self, first: Manifest, size: int, now: Instant) -> _Active:
        name = JournalName(self.generation, first.first_seq, self._serial)
        self._serial += 1  # also after a failure: a name is used once
        recycled = None
        if self._free and size == self.options.journal_bytes:
            recycled = layout.free_journal(self._free.pop())
        header = JournalHeader(self.options.stream, self.generation, first.first_seq, first.first_block, name.serial, self._salts())
        writer = JournalWriter.create(self._storage, name.path, header, size, recycled)
        return _Active(writer, name, JournalFacts(name, size, tag_table=first.tag_table_sha256), now.monotonic_ns)

    # ---- sealing ----

    def roll_if_due(self, now: Instant, interval_ns: int) -> None:
        """Have the next commit begin a new journal where the active one is old or large enough for a segment."""
        active = self._active
        if active is None or not active.facts.readings:
            return
        due = now.monotonic_ns - active.opened_ns >= interval_ns
        full = active.facts.readings >= limits.SEGMENT_READINGS_MAX - limits.BLOCK_READINGS_MAX
        if due or full or active.payload_bytes >= limits.SEGMENT_PAYLOAD_BYTES_MAX // 2:
            self._roll = True

    def sealable(self) -> SealRequest | None:
        """Return what the sealing child should do next, None if nothing."""
        for journal in self.journals:
            for run in journal.runs:
                if not run.sealed and (journal.name.generation, run.first_block) not in self._unsealable:
                    return SealRequest(
                        root="",
                        stream=self.options.stream,
                        generation=journal.name.generation,
                        journals=(journal.name.path,),
                        first_block=run.first_block,
                        last_block=run.last_block,
                        public_keys=tuple(key.hex() for key in self.options.public_keys),
                        output=layout.SEGMENTS,
                    )
        return None

    def seal_failed(self, request: SealRequest, reason: str) -> None:
        """Leave that journal a unit: it travels as blocks and is evicted in its turn."""
        self._unsealable.add((request.generation, request.first_block))
        self.counters.events.append(f"{request.journals[0]}: not sealed: {reason}")

    def adopt(self, request: SealRequest, result: SealResult, now: Instant) -> list[SegmentName]:
        """Hash, sign and publish what the child made, .cose last: the commit point. Raise CorruptError, StorageFault."""
        names = [self._adopt_part(request, part) for part in result.parts]
        for journal in self.journals:
            for run in journal.runs:
                if journal.name.generation == request.generation and run.first_block == request.first_block:
                    run.sealed = True
            if journal.sealed_at_ns is None and all(run.sealed for run in journal.runs):
                journal.sealed_at_ns = now.monotonic_ns
        self.publish_last()
        return names

    def _adopt_part(self, request: SealRequest, part: SealedPart) -> SegmentName:
        data = self._storage.read_direct(part.path, 0, part.length + 1)
        if data is None or len(data) != part.length or hashlib.sha256(data).hexdigest() != part.sha256:
            raise CorruptError("sealed file is not what the child checked", source=part.path)
        name = SegmentName(request.generation, part.first_seq, part.first_seq + part.count - 1)
        manifest = Manifest(
            FrameKind.SEGMENT,
            self.options.stream,
            bytes.fromhex(part.sha256),
            part.length,
            generation=request.generation,
            first_block=part.first_block,
            last_block=part.last_block,
            first_seq=part.first_seq,
            count=part.count,
            tag_table_sha256=bytes.fromhex(part.tag_table),
            chain_before=bytes.fromhex(part.chain_before),
            chain_after=bytes.fromhex(part.chain_after),
            state=self.state,
        )
        frame = seal_frame(self._signer, manifest, data)
        cose_file = encode_header(manifest, frame.cose, data, salt=0) + frame.cose
        self._storage.adopt(part.path, name.parquet)
        self._storage.publish(name.cose, [cose_file])
        self._sizes[name.parquet], self._sizes[name.cose] = part.length, len(cose_file)
        self.counters.bytes_written += part.length + len(cose_file)
        self.counters.sealed += 1
        self.segments.append(name)
        self.segments.sort()
        return name

    def publish_last(self) -> None:
        """Write the `last` file as of the newest committed block; keep the newest two."""
        if self._unsynced or self._pending:
            return  # the state is ahead of the disk; the next seal writes it
        data = encode_last(self.last, self.generation, self._seq, self._block)
        name = layout.LastName(self.generation, self._seq)
        self._storage.publish(name.path, [data])
        names = sorted(n for entry in self._storage.list(layout.LAST) if (n := layout.parse_last(entry)) is not None)
        for old in names[:-2]:
            self._storage.unlink(old.path)

    # ---- space ----

    def usage_bytes(self) -> int:
        """Everything under the ring's directory that counts against max_bytes."""
        journals = sum(j.size_bytes for j in self.journals) + len(self._free) * self.options.journal_bytes
        return journals + (self._active.facts.size_bytes if self._active else 0) + sum(self._sizes.values())

    def make_room(self, now: Instant) -> list[Unit]:
        """Give back journals that are not needed, then evict oldest first while the ring is too large. Raise StorageFault."""
        for name in excess_journals(self.journals, now.monotonic_ns, self.usage_bytes() - self.options.max_bytes):
            journal = next(j for j in self.journals if j.name == name)
            self.journals.remove(journal)
            self._recycle(journal.name, journal.size_bytes)
        evicted: list[Unit] = []
        while self.usage_bytes() > self.options.max_bytes:
            unit = oldest_unit(self.segments, self.journals)
            if unit is None:
                break
            self._evict(unit, now)
            evicted.append(unit)
        return evicted

    def evict_one(self, now: Instant) -> Unit | None:
        """Evict the oldest unit because the file system is full by somebody else's doing; None if nothing is left."""
        unit = oldest_unit(self.segments, self.journals)
        if unit is not None:
            self._evict(unit, now)
        return unit

    def _evict(self, unit: Unit, now: Instant) -> None:
        """First a committed block with the new `low`, then truncate and unlink: never a hole that no record names."""
        self._low = unit.next_low or (self.generation, self._seq)
        self._lost = merge_losses(self._lost, self._low)
        self.commit(now)
        if unit.segment is not None:
            self.segments.remove(unit.segment)
            for path in (unit.segment.cose, unit.segment.parquet):
                self._remove(path)
                self._sizes.pop(path, None)
        for journal in [j for j in self.journals if j.name == unit.journal]:
            self.journals.remove(journal)
            self._recycle(journal.name, journal.size_bytes)
        self.counters.evicted_files += 1

    def _remove(self, path: str) -> None:
        """Truncate, then unlink: a reader's open descriptor cannot hold the space."""
        if self._storage.size(path) is not None:
            self._storage.truncate(path, 0)
            self._storage.unlink(path)

    def _recycle(self, name: JournalName, size: int) -> None:
        if len(self._free) < limits.JOURNAL_POOL_FILES_MAX and size == self.options.journal_bytes:
            number = max(self._free, default=-1) + 1
            self._storage.rename(name.path, layout.free_journal(number))
            self._free.append(number)
        else:
            self._remove(name.path)

    def close(self) -> None:
        """Commit nothing more; give handles and the lock back."""
        if self._active is not None:
            self._active.writer.close()
        for handle in (self._durable, self._lock):
            if handle is not None:
                self._storage.close(handle)


# ---- helpers ----


@dataclass(slots=True)
class _Group:
    """Readings that go under one kind of block: live, or the fill of one gap."""

    columns: Columns
    positions: dict[int, bytes]
    fill: int


def _group(pending: Sequence[Pending], fills: Sequence[int]) -> list[_Group]:
    groups: list[tuple[list[Columns], dict[int, bytes], int]] = []
    for one, fill in zip(pending, fills, strict=True):
        if not groups or fill or groups[-1][2]:
            groups.append(([], {}, fill))
        groups[-1][0].append(one.columns)
        if one.position is not None and one.source is not None:
            groups[-1][1][one.source] = one.position
    if not groups:
        groups.append(([], {}, 0))
    return [_Group(concat(parts), positions, fill) for parts, positions, fill in groups]


def _payloads(columns: Columns) -> list[tuple[Columns, bytes]]:
    return list(encode_blocks(columns)) if len(columns) else [(columns, b"")]


def _extend(facts: JournalFacts, manifest: Manifest) -> None:
    run = facts.runs[-1] if facts.runs else None
    if run is None:
        facts.runs.append(Run(manifest.first_block, manifest.last_block, manifest.first_seq, manifest.end_seq))
    else:
        run.last_block, run.end_seq = manifest.last_block, manifest.end_seq


def with_root(request: SealRequest, root: str) -> SealRequest:
    """Return the request with the directory filled in (the ring itself knows only relative paths)."""
    return replace(request, root=root)
