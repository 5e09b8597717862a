"""The writer of landing/<stream>: object durable, index record synced, durable advanced, and only then the receipt."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from buffer import layout, limits
from buffer.frame import HEADER_BYTES, encode_header
from buffer.journal import JournalHeader, JournalWriter, padded
from buffer.layout import DurableMark, SegmentName
from buffer.manifest import FrameKind
from gateway.landing import LandingIndex, Opening, Record, encode_entry, index_name, parse_entries, parse_index_name, since
from gateway.receive.accept import Decision, Held, Run
from gateway.wire.receipt import Ends, Verdict
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buffer.frame import Frame
    from buffer.storage import Storage

LANES: Final = (Lane.LIVE, Lane.BACKFILL)
CONFLICTS_MAX: Final = 1_000  # bodies kept apart per stream: 8 GB at the worst; more are counted and alarmed

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Alarms:
    """What a person must look at."""

    conflicts: int = 0
    branches: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Landed:
    """The outcome of one request, everything a receipt says."""

    verdict: Verdict
    number: tuple[Lane, int] | None
    landing: int
    ends: Ends
    since: Ends | None  # None where `asked` is the landing generation that answers


class Landing:
    """One stream. One caller at a time (the stream's lock)."""

    def __init__(self, storage: Storage, stream: str, nonce: int, salts: Callable[[], int], journal_bytes: int = limits.JOURNAL_BYTES) -> None:
        self._storage = storage
        self.stream = stream
        self._salts = salts
        self._journal_bytes = journal_bytes
        self.held = Held()
        self.index = LandingIndex()
        self.alarms = Alarms()
        self.newest: Record | None = None
        self._journal: JournalWriter | None = None
        self._journals = 0
        for directory in (layout.JOURNALS, layout.SEGMENTS, layout.OBJECTS, "conflict"):
            storage.mkdir(directory)
        ordinal = self._rebuild()
        self._open((ordinal + 1) << 32 | nonce)

    def _rebuild(self) -> int:
        """Read the index again; what it holds is what we hold."""
        generations = sorted(g for name in self._storage.list("") if (g := parse_index_name(name)) is not None)
        for generation in generations:
            name = index_name(generation)
            self._storage.sync_file(name)
            data = self._storage.read_direct(name, 0, self._storage.size(name) or 0) or b""
            end = 0
            for entry, behind in parse_entries(data):
                self.index.take(entry)
                end = behind
            if end < len(data):
                self.alarms.events.append(f"{name}: {len(data) - end} bytes at byte {end} do not verify: the tail of a crash, never promised")
        for lane in self.index.lanes:
            for record in lane.values():
                self.held.take(_run(self.stream, record), record.new)
                self._note(record)
        return max((g >> 32 for g in generations), default=0)

    def _open(self, landing: int) -> None:
        opening = Opening(landing, self.index.highest())
        self._index_name = index_name(landing)
        data = encode_entry(opening)
        self._index = self._storage.create(self._index_name, 0)
        self._index_end = 0
        self._append(data)
        self.index.take(opening)
        if self._storage.size(layout.DURABLE) is None:
            self._storage.publish(layout.DURABLE, [self._mark()])
        self._durable = self._storage.open(layout.DURABLE)
        self._advance()

    def _append(self, data: bytes) -> None:
        self._storage.pwrite(self._index, self._index_end, data)
        self._storage.fdatasync(self._index)
        self._index_end += len(data)

    def _mark(self) -> bytes:
        highest = self.index.highest()
        return layout.encode_durable(DurableMark(self.index.landing, 0, self._index_end, highest[0], highest[1]))

    def _advance(self) -> None:
        self._storage.pwrite(self._durable, 0, self._mark())

    # ---- objects ----

    def has_object(self, digest: bytes) -> bool:
        """Say whether an object is here."""
        return self._storage.size(layout.object_path(digest)) is not None

    def store_object(self, frame: Frame) -> None:
        """Make an object durable."""
        self._storage.publish(layout.object_path(frame.manifest.payload_sha256), [frame.wire()])

    # ---- frames ----

    def answer(self, verdict: Verdict, asked: int, number: tuple[Lane, int] | None = None) -> Landed:
        """Return the outcome with what a receipt says of the landing."""
        changed = None if asked == self.index.landing else Ends(*since(self.index.openings, asked))
        return Landed(verdict, number, self.index.landing, Ends(*self.index.highest()), changed)

    def offered(self, generation: int, first: int, last: int, chain: bytes) -> bool:
        """Say whether these blocks are held, with this chain."""
        return self.held.offered(self.stream, generation, first, last, chain)

    def land(self, run: Run, frames: Sequence[Frame], lane: Lane, asked: int, now_ns: int) -> Landed:
        """Store what is new; return when it is durable. Raise StorageFault: then nothing was promised."""
        decision = self.held.decide(run)
        if decision.verdict == Verdict.CONFLICT:
            self._keep_apart(run, frames, now_ns)
        if decision.verdict != Verdict.STORED:
            return self.answer(decision.verdict, asked)
        if decision.branch:
            self._branch(run)
        return self.answer(Verdict.STORED, asked, (lane, self._store(run, frames, LANES.index(lane), decision, now_ns)))

    def _store(self, run: Run, frames: Sequence[Frame], lane: int, decision: Decision, now_ns: int) -> int:
        number = self.index.highest()[lane]
        file, offset = self._segment(frames[0]) if run.kind == FrameKind.SEGMENT else self._blocks(frames)
        record = Record(
            lane, number, run.generation, run.first_block, run.last_block, run.first_seq, run.end_seq - run.first_seq, run.chain_before,
            run.chain_after, decision.new, run.kind, file, offset, len(frames), frames[-1].manifest.tag_table_sha256, run.state, now_ns,
            run.committed_ns,
        )  # fmt: skip
        self._append(encode_entry(record))
        self.index.take(record)
        self.held.take(run, decision.new)
        self._note(record)
        self._advance()
        return number

    def _note(self, record: Record) -> None:
        if self.newest is None or (record.state.generation, record.state.block) >= (self.newest.state.generation, self.newest.state.block):
            self.newest = record

    def _blocks(self, frames: Sequence[Frame]) -> tuple[str, int]:
        need = sum(padded(HEADER_BYTES + len(f.cose) + len(f.payload)) for f in frames)
        if self._journal is None or self._journal.poisoned or self._journal.room() < need:
            self._next_journal(max(self._journal_bytes, need + limits.PAGE_BYTES))
        assert self._journal is not None
        journal = self._journal
        offsets = [journal.append(frame) for frame in frames]
        journal.sync()
        return journal.path, offsets[0]

    def _next_journal(self, size: int) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        landing = self.index.landing
        path = f"{layout.JOURNALS}/{landing >> 32:010d}-{landing & 0xFFFFFFFF:08x}-{self._journals:06d}.journal"
        header = JournalHeader(self.stream, landing, 0, 0, self._journals, self._salts())
        self._journals += 1
        self._journal = JournalWriter.create(self._storage, path, header, size)

    def _segment(self, frame: Frame) -> tuple[str, int]:
        m = frame.manifest
        name = SegmentName(m.generation, m.first_seq, m.end_seq - 1)
        self._storage.publish(name.parquet, [bytes(frame.payload)])
        self._storage.publish(name.cose, [encode_header(m, frame.cose, frame.payload, salt=0) + frame.cose])
        return name.parquet, 0

    def _keep_apart(self, run: Run, frames: Sequence[Frame], now_ns: int) -> None:
        self.alarms.conflicts += 1
        log.error("conflict: same readings, other content", extra={"data": {"stream": self.stream, "blocks": [run.first_block, run.last_block]}})
        if len(self._storage.list("conflict")) < CONFLICTS_MAX:
            self._storage.publish(f"conflict/{now_ns}-{run.generation}-{run.first_block}.frames", [frame.wire() for frame in frames])

    def _branch(self, run: Run) -> None:
        text = f"generation {run.generation} continues {run.state.predecessor} below what is held: snapshot restored, or a clone"
        if text not in self.alarms.branches:
            self.alarms.branches.append(text)
            log.error("branch", extra={"data": {"stream": self.stream, "what": text}})

    def close(self) -> None:
        """Give handles back."""
        if self._journal is not None:
            self._journal.close()
        for handle in (self._index, self._durable):
            self._storage.close(handle)


def _run(stream: str, r: Record) -> Run:
    return Run(
        stream, r.generation, r.first_block, r.last_block, r.first_seq, r.first_seq + r.count, r.chain_before, r.chain_after, r.kind,
        frozenset({r.tag_table}), r.state, r.committed_ns,
    )  # fmt: skip

