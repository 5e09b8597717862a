"""The writer of landing/<stream>: object durable, index synced, `durable` advanced, and only then the receipt.

One group of requests costs one sync of the live frames and one of the index. After any StorageFault nothing of this object is used
again (`broken`): a new one reads what the disk really holds, opens a new landing generation, and the senders offer again what
they were promised beyond it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from buffer import layout, limits
from buffer.errors import CorruptError, StorageFault, invariant
from buffer.frame import Frame, parse_frame
from buffer.journal import padded
from buffer.layout import DurableMark, SegmentName
from buffer.manifest import FrameKind, ObjectType
from gateway.landing.index import (
    CONFLICT,
    INDEX,
    LIVE,
    NEW_RANGES_MAX,
    PART_BYTES,
    Conflict,
    LandingState,
    Opening,
    PartName,
    Record,
    encode_entry,
    encode_part_header,
    live_path,
)
from gateway.receive import accept
from gateway.receive.chain import ChainPoints
from gateway.receive.rebuild import rebuild
from gateway.wire.receipt import Ends, Refusal, Verdict
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buffer.storage import Storage
    from gateway.receive.accept import Decision, Unit
    from gateway.runtime import Runtime

LIVE_FILE_BYTES: Final = 64 * 1024 * 1024  # then the next one: a person can still copy it
CONFLICTS_MAX: Final = 1_000  # frames kept apart per stream, 8 GB at the worst; beyond it the sender keeps them
OBJECTS_MAX: Final = 4_096  # tag tables and key statements per stream: one a day for eleven years
EVENTS_MAX: Final = 50  # alarms remembered for the status


@dataclass(frozen=True, slots=True)
class Arrival:
    """Verified frames of one request, linked: blocks in order, or one segment."""

    frames: tuple[Frame, ...]
    units: tuple[Unit, ...]
    lane: Lane
    asked: int  # landing generation the sender knows, 0: none


@dataclass(frozen=True, slots=True)
class Landed:
    """The outcome of one request: everything a receipt says. None of it before it is durable."""

    verdict: Verdict
    last_block: int  # how far: the receiver may take a prefix
    chain: bytes  # h there
    number: tuple[Lane, int] | None
    landing: int
    ends: Ends
    since: Ends | None
    reason: Refusal | None = None


@dataclass(slots=True)
class _Outcome:
    verdict: Verdict
    last: Unit
    number: tuple[Lane, int] | None = None
    reason: Refusal | None = None


@dataclass(slots=True)
class _Group:
    entries: list[Record | Conflict] = field(default_factory=list)
    points: dict[tuple[int, int], bytes] = field(default_factory=dict)  # (generation, block) -> h, not yet among the chain points
    live_began: bool = False
    files: list[tuple[str, bytes | memoryview]] = field(default_factory=list)  # of segments, to be published together


class Landing:
    """One stream, opened for writing. One caller at a time."""

    def __init__(self, storage: Storage, stream: str, runtime: Runtime, part_bytes: int = PART_BYTES) -> None:
        self._storage = storage
        self._runtime = runtime
        self._part_bytes = part_bytes
        self.stream = stream
        self.broken = True  # until it is open
        self.events: list[str] = []
        for directory in (INDEX, LIVE, layout.SEGMENTS, layout.OBJECTS, CONFLICT):
            storage.mkdir(directory)
        storage.fsync_dir(layout.OBJECTS)  # durable before it is believed: who published one may have been killed between rename and sync
        self.objects = {bytes.fromhex(name) for name in storage.list(layout.OBJECTS) if len(name) == 64 and not name.startswith(".")}  # noqa: PLR2004
        found = rebuild(storage)
        self.state: LandingState = found.state
        for event in found.events:
            self.event(event)
        self.points = ChainPoints(storage)
        self.points.put(found.records)
        self._live: int | None = None  # handle
        self._live_name, self._live_end, self._live_files = "", 0, 0
        self._index: int | None = None
        self._durable: int | None = None
        ordinal = max([found.part.landing >> 32 if found.part else 0, *(o.landing >> 32 for o in self.state.openings)])
        opening = Opening((ordinal + 1) << 32 | runtime.nonce32(), found.start, runtime.wall_ns())
        self.state.open(opening)
        try:
            self._begin_part(PartName(found.part.part + 1 if found.part else 0, opening.landing))
            if found.part is not None and found.idle:  # a receiver that starts again and again leaves one part, not thousands
                storage.unlink(found.part.path)
        except StorageFault:
            self.close()
            raise
        self.broken = False

    # ---- index ----

    def _begin_part(self, name: PartName) -> None:
        """Publish a part that begins with everything known; durable on return."""
        self.points.sync()
        data = [encode_part_header(name, self.state.ends), encode_entry(self.state)]
        self._storage.publish(name.path, data)
        if self._index is not None:
            self._storage.close(self._index)
        self._index = self._storage.open(name.path)
        self._part, self._index_end = name, sum(len(x) for x in data)
        self._roll_at = max(self._part_bytes, 4 * self._index_end)
        self._advance()

    def _append(self, entries: Sequence[Record | Conflict]) -> None:
        data = b"".join(encode_entry(entry) for entry in entries)
        if self._index is None or not data:
            return
        self._storage.pwrite(self._index, self._index_end, data)
        self._storage.fdatasync(self._index)
        self._index_end += len(data)

    def _advance(self) -> None:
        """Let readers see what is durable now."""
        ends = self.state.ends
        data = layout.encode_durable(DurableMark(self._part.landing, self._part.part, self._index_end, ends.live, ends.backfill))
        if self._durable is None:
            if self._storage.size(layout.DURABLE) is None:
                self._storage.publish(layout.DURABLE, [data])
            self._durable = self._storage.open(layout.DURABLE)
        self._storage.pwrite(self._durable, 0, data)

    # ---- objects ----

    def store_object(self, frame: Frame, asked: int) -> Landed:
        """Make an object durable; its name is its content, so a second copy changes nothing."""
        digest = frame.manifest.payload_sha256
        known = digest in self.objects
        if not known and len(self.objects) >= OBJECTS_MAX:
            self.event(f"more than {OBJECTS_MAX} objects: refused")
            return self.answer(Verdict.REFUSED, 0, digest, asked, Refusal.BEYOND_LIMITS)
        if not known:
            self._storage.publish(layout.object_path(digest), [frame.wire()])
            self.objects.add(digest)
        return self.answer(Verdict.DUPLICATE if known else Verdict.STORED, 0, digest, asked)

    def statements(self) -> Iterator[bytes]:
        """Yield the key statements that stand here. Every object is read: one that rotted is forgotten, so that it is asked for again."""
        for digest in sorted(self.objects):
            path = layout.object_path(digest)
            try:
                frame = parse_frame(self._storage.read(path, 0, limits.PUT_BYTES_MAX) or b"")
                m = frame.manifest
                if m.payload_sha256 != digest:
                    raise CorruptError("object is not what its name says")
                if m.object_type == ObjectType.KEY_STATEMENT:
                    yield bytes(frame.payload)
            except CorruptError as error:
                self.objects.discard(digest)
                self.event(f"{path}: {error}")

    # ---- frames ----

    def answer(self, verdict: Verdict, last: int, chain: bytes, asked: int, reason: Refusal | None = None) -> Landed:
        """Return what a receipt says now; nothing is stored."""
        return Landed(verdict, last, chain, None, self.state.landing, self.state.ends, self._since(asked), reason)

    def _since(self, asked: int) -> Ends | None:
        """Return what a sender that knows landing generation `asked` must offer again; alarm where that is one we have forgotten."""
        oldest = self.state.openings[0].landing
        if asked >> 32 >= oldest >> 32 and not any(one.landing == asked for one in self.state.openings):
            self.event(f"restored: a sender knows opening {asked >> 32} of this landing, which is not in it; what came after is asked for again")
        return self.state.since(asked)

    def offer(self, wanted: tuple[int, int, int], chain: bytes, asked: int) -> Landed | None:
        """Answer an offer of (generation, first block, last block); None: not held."""
        if not accept.offered(self.state, self.points.at, wanted, chain):
            return None
        return self.answer(Verdict.DUPLICATE, wanted[2], chain, asked)

    def land(self, arrivals: Sequence[Arrival]) -> list[Landed | None]:
        """Store what is new of each request, in order; return when all of it is durable. None: cannot be kept now, send later.

        Raises StorageFault: nothing was promised, and this object is `broken`.
        """
        invariant(not self.broken, "landing used after a fault")
        self.broken = True  # until everything below is durable
        group = _Group()
        outcomes = [self._arrival(arrival, group) for arrival in arrivals]
        if group.live_began and self._live is not None:
            self._storage.fdatasync(self._live)
        self._storage.publish_together(group.files)
        self._append(group.entries)
        self.points.put(entry for entry in group.entries if isinstance(entry, Record))
        self._advance()
        if self._index_end >= self._roll_at:
            self._begin_part(PartName(self._part.part + 1, self._part.landing))
        self.broken = False
        return [self._landed(outcome, a.asked) for outcome, a in zip(outcomes, arrivals, strict=True)]

    def _landed(self, outcome: _Outcome | None, asked: int) -> Landed | None:
        if outcome is None:
            return None
        s, last = self.state, outcome.last
        return Landed(outcome.verdict, last.last_block, last.chain_after, outcome.number, s.landing, s.ends, self._since(asked), outcome.reason)

    def _arrival(self, arrival: Arrival, group: _Group) -> _Outcome | None:
        """Take frames as long as they meet the same fate: a receipt has one verdict."""
        outcome: _Outcome | None = None
        for frame, unit in zip(arrival.frames, arrival.units, strict=True):
            if not accept.within_limits(self.state, unit):
                return outcome or _Outcome(Verdict.REFUSED, unit, reason=Refusal.BEYOND_LIMITS)
            decision = accept.decide(self.state, unit, lambda generation, block: self._chain_at(group, generation, block))
            conflict = decision.verdict == Verdict.CONFLICT
            if outcome is not None and conflict != (outcome.verdict == Verdict.CONFLICT):
                return outcome
            if conflict and not self._keep_apart(frame, unit, group):
                return outcome
            number = self._store(frame, unit, decision, arrival.lane, group) if decision.verdict == Verdict.STORED else None
            outcome = outcome or _Outcome(decision.verdict, unit)
            outcome.last = unit
            if number is not None:
                outcome.verdict, outcome.number = Verdict.STORED, (arrival.lane, number)
        return outcome

    def _chain_at(self, group: _Group, generation: int, block: int) -> bytes | None:
        return group.points.get((generation, block)) or (self.points.at(generation, block) if block >= 0 else None)

    def _store(self, frame: Frame, unit: Unit, decision: Decision, lane: Lane, group: _Group) -> int:
        self._alarm(unit, decision)
        file, offset, length = "", 0, 0
        if unit.kind == FrameKind.BLOCK:
            file, offset, length = self._store_live(frame, group)
        elif decision.new:
            file, length = _keep_segment(frame, group)
        new = [decision.new[i : i + NEW_RANGES_MAX] for i in range(0, len(decision.new), NEW_RANGES_MAX)] or [()]
        for some in new:
            record = Record(
                lane, self.state.ends.of(lane), unit.kind, unit.generation, unit.first_block, unit.last_block, unit.first_seq, unit.count,
                unit.chain_before, unit.chain_after, unit.digest, some, file, offset, length, unit.tag_table, unit.state,
                self._runtime.wall_ns(),
            )  # fmt: skip
            group.entries.append(record)
            self.state.take(record)
        group.points[unit.generation, unit.last_block] = unit.chain_after
        if self._chain_at(group, unit.generation, unit.first_block - 1) is None:
            group.points[unit.generation, unit.first_block - 1] = unit.chain_before
        return self.state.ends.of(lane) - 1

    def _store_live(self, frame: Frame, group: _Group) -> tuple[str, int, int]:
        data = frame.wire()
        if not group.live_began:
            self._live_end = padded(self._live_end)  # no later write touches a page that holds receipted frames
        handle = self._live
        if handle is None or self._live_end + len(data) > LIVE_FILE_BYTES:
            handle = self._live = self._next_live(handle, group)
        offset = self._live_end
        self._storage.pwrite(handle, offset, data)
        self._live_end += len(data)
        group.live_began = True
        return self._live_name, offset, len(data)

    def _next_live(self, before: int | None, group: _Group) -> int:
        if before is not None:
            if group.live_began:
                self._storage.fdatasync(before)
            self._storage.close(before)
        self._live_name = live_path(self._part.landing, self._live_files)
        self._live_files += 1
        self._live_end = 0
        return self._storage.create(self._live_name, 0)

    def _keep_apart(self, frame: Frame, unit: Unit, group: _Group) -> bool:
        """Store a conflict beside what is held; say whether there was room."""
        name = f"{unit.generation >> 32:010d}-{unit.generation & 0xFFFFFFFF:08x}-{unit.first_block}-{unit.last_block}"
        path = f"{CONFLICT}/{name}-{hashlib.sha256(unit.digest).hexdigest()[:16]}"
        if path in self.state.conflicts:
            return True
        self.event(f"conflict: blocks {unit.first_block}-{unit.last_block} of generation {unit.generation} with other content: see {path}")
        if len(self.state.conflicts) >= CONFLICTS_MAX:
            self.event(f"more than {CONFLICTS_MAX} conflicts: the gateway keeps the rest; look at {CONFLICT}/ and move it away")
            return False
        self._storage.publish(path, [frame.wire()])
        entry = Conflict(unit.generation, unit.first_block, unit.last_block, path, self._runtime.wall_ns())
        group.entries.append(entry)
        self.state.take(entry)
        return True

    # ---- alarms ----

    def _alarm(self, unit: Unit, decision: Decision) -> None:
        if decision.fork:
            self.event(f"fork: blocks from {unit.first_block} of generation {unit.generation} do not continue what is held")
        if decision.branch:
            self.event(f"branch: generation {unit.generation} and its predecessor overlap: a restored snapshot, or a cloned box")

    def event(self, text: str) -> None:
        """Remember something a person must look at."""
        if text not in self.events:
            self.events = [*self.events, text][-EVENTS_MAX:]

    def close(self) -> None:
        """Give handles back."""
        for handle in (self._live, self._index, self._durable):
            if handle is not None:
                self._storage.close(handle)
        self._live = self._index = self._durable = None
        self.broken = True


def _keep_segment(frame: Frame, group: _Group) -> tuple[str, int]:
    m = frame.manifest
    name = SegmentName(m.generation, m.first_seq, m.end_seq - 1)
    group.files += [(name.parquet, frame.payload), (name.cose, frame.header() + frame.cose)]
    return name.parquet, len(frame.payload)
