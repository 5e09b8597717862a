"""A ring in memory with the uploader's view of it: signed, chained blocks, segments, eviction, reopening, restored snapshots.

Payloads are not readings but marks "<generation.seq.value>", which the ledger finds in any bytes without knowing a format.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from buffer.frame import Frame, payload_digest, seal_frame
from buffer.layout import DurableMark
from buffer.manifest import FrameKind, Manifest, ObjectType, StateRecord, chain_next, chain_start
from gateway.upload.jobs import Job, Loaded
from gateway.upload.plan import JournalUnit, RingView, SegmentUnit
from tests.support.frames import object_frame, signer

STREAM = "hall1.main"


@dataclass
class Journal:
    generation: int
    first_block: int
    first_seq: int
    frames: list[Frame] = field(default_factory=list)
    sealed: bool = False

    @property
    def size(self) -> int:
        return sum(len(f.payload) + 500 for f in self.frames)


class SimRing:
    """Implements gateway.upload.service.Ring. What is durable is what `commit` returned."""

    def __init__(self, rng: random.Random, now_ns, statement: bytes, max_bytes: int) -> None:
        self._rng = rng
        self._now_ns = now_ns
        self.max_bytes = max_bytes
        self.statement = object_frame(statement, ObjectType.KEY_STATEMENT, STREAM)
        self.table = object_frame(b"table one", ObjectType.TAG_TABLE, STREAM)
        self.objects = {self.statement.manifest.payload_sha256: self.statement, self.table.manifest.payload_sha256: self.table}
        self.journals: list[Journal] = []
        self.segments: list[Frame] = []
        self.committed: list[tuple[int, int, int]] = []  # (generation, seq, value): what collect was promised
        self._value = 0
        self.generation = 0
        self._block = self._seq = 0
        self.low = (0, 0)
        self.record: StateRecord | None = None
        self._predecessor: tuple[int, int] | None = None
        self._ordinal = 0
        self.reopen()

    # ---- the writer's side ----

    def reopen(self) -> None:
        end = (self.generation, self._seq) if self.generation else None
        self._begin(end)

    def _begin(self, predecessor: tuple[int, int] | None) -> None:
        self._ordinal += 1
        self.generation = self._ordinal << 32 | self._rng.getrandbits(32)
        self._predecessor = predecessor
        self._block = self._seq = 0
        self._chain = chain_start(STREAM, self.generation)
        if self.low == (0, 0):
            self.low = (self.generation, 0)
        self._roll()
        self.commit(0)

    def _roll(self) -> None:
        self.journals.append(Journal(self.generation, self._block, self._seq))

    def new_table(self) -> None:
        self.table = object_frame(b"table %d" % self._rng.getrandbits(64), ObjectType.TAG_TABLE, STREAM)
        self.objects[self.table.manifest.payload_sha256] = self.table
        self._roll()

    def commit(self, count: int, filler: int = 0) -> None:
        marks = []
        for i in range(count):
            self._value += 1
            marks.append((self.generation, self._seq + i, self._value))
        payload = _payload(marks, self._rng.randbytes(filler))
        wall = self._now_ns()
        state = StateRecord(
            self.generation, self._block, self._predecessor, self._seq + count, self.low, (), (), wall, wall, bytes(16), True
        )
        manifest = Manifest(
            FrameKind.BLOCK, STREAM, payload_digest(payload), len(payload), self.generation, self._block, self._block, self._seq, count,
            self.table.manifest.payload_sha256, self._chain, arrival_ns=wall, state=state,
        )
        frame = seal_frame(signer(), manifest, payload)
        self.journals[-1].frames.append(frame)
        self._chain = chain_next(self._chain, frame.cose)
        self._block += 1
        self._seq += count
        self.record = state
        self.committed += marks

    def seal(self) -> None:
        """Seal the active journal, begin the next, evict what is too much."""
        active = self.journals[-1]
        if not any(f.manifest.count for f in active.frames):
            return
        self._roll()
        first, last = active.frames[0].manifest, active.frames[-1].manifest
        payload = b"PAR1" + b"".join(bytes(f.payload) for f in active.frames)
        manifest = Manifest(
            FrameKind.SEGMENT, STREAM, payload_digest(payload), len(payload), active.generation, first.first_block, last.last_block,
            first.first_seq, last.end_seq - first.first_seq, first.tag_table_sha256, first.chain_before,
            chain_next(last.chain_before, active.frames[-1].cose), state=self.record,
        )
        self.segments.append(seal_frame(signer(), manifest, payload))
        active.sealed = True
        sealed = [j for j in self.journals if j.sealed]
        for journal in sealed[:-2]:
            self.journals.remove(journal)

    def usage(self) -> int:
        return sum(j.size for j in self.journals) + sum(len(s.payload) for s in self.segments)

    def make_room(self) -> int:
        """Evict the oldest until it fits: first the new low is committed, then the file goes. Return how many went."""
        gone = 0
        while self.usage() > self.max_bytes and len(self.journals) + len(self.segments) > 2:
            oldest_journal = self.journals[0]
            oldest = [(s.manifest.generation, s.manifest.first_seq) for s in self.segments[:1]]
            if oldest and oldest[0] <= (oldest_journal.generation, oldest_journal.first_seq):
                self.low = self._low_without(self.segments[0], None)
                self.commit(0)
                del self.segments[0]
            elif len(self.journals) > 1:
                self.low = self._low_without(None, oldest_journal)
                self.commit(0)
                del self.journals[0]
            else:
                break
            gone += 1
        return gone

    def _low_without(self, segment: Frame | None, journal: Journal | None) -> tuple[int, int]:
        starts = [(s.manifest.generation, s.manifest.first_seq) for s in self.segments if s is not segment]
        starts += [(j.generation, j.first_seq) for j in self.journals if j is not journal and any(f.manifest.count for f in j.frames)]
        return max(self.low, min(starts, default=(self.generation, self._seq)))

    def snapshot(self):
        journals = [Journal(j.generation, j.first_block, j.first_seq, list(j.frames), j.sealed) for j in self.journals]
        return journals, list(self.segments), self.generation, self._seq, self.low

    def restore(self, snapshot) -> None:
        """The disk of an earlier moment: a branch. What was committed since is rolled back with it."""
        journals, segments, generation, end, self.low = snapshot
        self.journals = [Journal(j.generation, j.first_block, j.first_seq, list(j.frames), j.sealed) for j in journals]
        self.segments = list(segments)
        self._begin((generation, end))

    def held(self) -> set[tuple[int, int]]:
        """Return (generation, seq) of every reading in the ring."""
        manifests = [f.manifest for j in self.journals for f in j.frames] + [s.manifest for s in self.segments]
        return {(m.generation, m.first_seq + i) for m in manifests for i in range(m.count)}

    def blocks(self, generation: int, first: int, last: int) -> set[tuple[int, int]]:
        """Return the readings of some blocks, as far as the ring still knows them."""
        frames = [f for j in self.journals for f in j.frames if j.generation == generation]
        out = {(generation, f.manifest.first_seq + i) for f in frames if first <= f.manifest.first_block <= last for i in range(f.manifest.count)}
        for segment in self.segments:
            m = segment.manifest
            if m.generation == generation and first <= m.first_block and m.last_block <= last:
                out |= {(generation, m.first_seq + i) for i in range(m.count)}
        return out

    # ---- the uploader's side ----

    def mark(self) -> DurableMark:
        return DurableMark(self.generation, 0, 0, self._seq, self._block)

    def look(self):
        segments = tuple(
            SegmentUnit(m.generation, m.first_block, m.last_block, m.first_seq, m.end_seq, m.payload_length + 500)
            for m in (s.manifest for s in self.segments)
        )
        journals = tuple(
            JournalUnit(j.generation, j.first_block, j.frames[-1].manifest.last_block, j.first_seq, j.frames[-1].manifest.end_seq, j.size)
            for j in self.journals
            if j.frames
        )
        return RingView(segments, journals), (self.statement.manifest.payload_sha256,)

    def load(self, job: Job) -> Loaded | None:
        if job.kind == FrameKind.OBJECT:
            frame = self.objects.get(job.digest)
            return None if frame is None else Loaded((frame.wire(),), 0, 0, (job.digest,))
        if job.segment is not None:
            return self._load_segment(job)
        frames = [
            f for j in self.journals if j.generation == job.generation for f in j.frames if job.first <= f.manifest.first_block <= job.last
        ]
        chosen: list[Frame] = []
        for frame in frames:
            size = sum(len(f.payload) + 500 for f in [*chosen, frame])
            if chosen and (size > job.max_bytes or frame.manifest.first_block != chosen[-1].manifest.first_block + 1):
                break
            chosen.append(frame)
        if not chosen:
            return None
        chains = tuple(chain_next(f.manifest.chain_before, f.cose) for f in chosen)
        tables = frozenset(f.manifest.tag_table_sha256 for f in chosen)
        return Loaded(tuple(f.wire() for f in chosen), chosen[0].manifest.first_block, chosen[-1].manifest.last_block, chains, tables)

    def _load_segment(self, job: Job) -> Loaded | None:
        for segment in self.segments:
            m = segment.manifest
            if (m.generation, m.first_block, m.last_block) == (job.generation, job.first, job.last):
                return Loaded((segment.wire(),), m.first_block, m.last_block, (m.chain_after,), frozenset({m.tag_table_sha256}))
        return None


def _payload(marks: list[tuple[int, int, int]], filler: bytes) -> bytes:
    return b"".join(b"<%x.%d.%d>" % mark for mark in marks) + filler
