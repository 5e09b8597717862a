"""The ring of one stream: the passive writer. No thread, timer, clock, randomness or key; one caller at a time (but for `known`,
`publish_sealed` and `spare.make`, which may be called while another thread is in any other method).

Order of durability of a commit: encode, chain, sign, pwrite, fdatasync, then `durable`. When `commit` returns, what was appended
survives kill -9, an OS crash and a power cut (G1). After a failed sync the same blocks go, byte for byte, to a new journal under
the same generation and seq; a block is never cut again, and the failed file is never written or synced again (G9).

How to drive it: `open`, `recovered_table`, `add_object`, `use_table`, `commit` at once (the generation begins to exist: its first block
states predecessor and losses); then `append` and `commit`, at least every limits.COMMIT_INTERVAL_MAX_NS; after each commit
`make_room`; now and then `roll_if_due`, `sealable`, and `adopt` or `seal_failed`. Where `crowded`, seal before collecting: a crash loop
must not fill the ring with journals.

Files are named in buffer.layout; what a start believes stands in buffer.recovery, what is evicted in buffer.retention.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from errno import ENOSPC
from typing import TYPE_CHECKING, Final

from buffer import layout, limits
from buffer.adopt import ask, find, publish
from buffer.cut import Chain, Gaps, Pending, cut, group
from buffer.errors import StorageFault, invariant
from buffer.frame import payload_digest, seal_frame
from buffer.holdings import Holdings
from buffer.journals import Journals, remove
from buffer.manifest import FrameKind, Manifest, ObjectType, StateRecord
from buffer.recovery import Recovered, read_object, recover
from buffer.room import Room
from buffer.seal import with_root
from buffer.singly import Singly
from buffer.space import Space
from buffer.spare import Spare
from buffer.state import account
from buffer.tagtable import decode_table
from buffer.terms import Committed, Counters, Info, Instant, RingOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buffer.adopt import Published
    from buffer.cose import Signer, Verifier
    from buffer.cut import Built, Cut, GapChange
    from buffer.last import Known
    from buffer.layout import SegmentName
    from buffer.manifest import Loss
    from buffer.seal import SealRequest, SealResult
    from buffer.storage import Storage
    from buffer.types import Columns

__all__ = ["Committed", "Info", "Instant", "Ring", "RingOptions", "with_root"]

CROWDED_JOURNALS: Final = 4  # unsealed journals of dead generations: more than a crash or two
EVENTS_MAX: Final = 1_000  # kept until somebody takes them


class Ring:
    """See the module. Make one with `Ring.open`."""

    def __init__(self, storage: Storage, options: RingOptions, signer: Signer, salts: Callable[[], int], found: Recovered) -> None:
        self._storage = storage
        self.options = options
        self._signer = signer
        self._journals = Journals(storage, options.stream, options.journal_bytes, options.reserve_bytes, salts)
        self._holdings = Holdings(storage, found.segments)
        self._room = Room(self._journals, self._holdings, found.last, options.max_bytes)
        self._space = Space(storage, self._journals, self._room)
        self.spare = Spare(storage, self._journals, self._room)
        self.last = found.last
        self.state: StateRecord | None = found.state  # of the newest committed block
        self.counters = Counters(events=found.events)
        self.generation = 0
        self._chain = Chain(options.stream, 0, signer)
        self._gaps = Gaps((), 0)
        self._predecessor: tuple[int, int] | None = None
        self.singly = Singly()  # for readings that come one at a time
        self._pending: list[Pending] = []
        self._unsynced: list[Built] = []
        self._table = found.tag_table
        self._active_table = b""  # of the journal being written
        self._ready = False
        self._roll = False
        self._unsealable: set[tuple[int, int]] = set()
        self._locked = -1
        self._opened_ns = 0

    # ---- opening ----

    @classmethod
    def open(
        cls, storage: Storage, options: RingOptions, signer: Signer, verifier: Verifier, now: Instant, nonce: int, salts: Callable[[], int]
    ) -> Ring:
        """Recover and prepare a new generation, which begins with the first commit. Raise StorageFault."""
        for directory in layout.DIRECTORIES:
            storage.mkdir(directory)
        storage.mkdir(layout.LOCK_DIRECTORY, 0o700)
        locked = storage.lock(layout.LOCK)
        try:
            found = recover(storage, verifier, options.stream)
            ring = cls(storage, options, signer, salts, found)
            ring._locked = locked
            ring._begin(found, nonce, now)
        except BaseException:
            storage.close(locked)
            raise
        return ring

    def _begin(self, found: Recovered, nonce: int, now: Instant) -> None:
        invariant(0 <= nonce < 2**32, "nonce of a generation has 32 bits")
        if found.ordinal >= layout.ORDINAL_MAX:
            raise StorageFault(
                f"a file here says it is of generation {found.ordinal:,}, the last one there can be: move it away", path=layout.JOURNALS
            )
        self.generation = (found.ordinal + 1) << 32 | nonce
        self._chain = Chain(self.options.stream, self.generation, self._signer)
        self._journals.generation = self.generation
        self._gaps = Gaps(tuple(sorted(found.state.open_gaps)) if found.state else (), (found.ordinal + 1) << 32)
        self._predecessor = max(found.ends.items(), default=None)
        self._room.low, self._room.lost = account(found.lost, found.low or (self.generation, 0))
        self._opened_ns, self._now = now.monotonic_ns, now
        for path in found.remove:
            remove(self._storage, path)
        self._journals.take_over(found.journals, found.free, now.monotonic_ns)
        self._room.committed = found.place
        with contextlib.suppress(StorageFault):  # a full disk must not keep us from starting: the journals stay
            self._room.publish_last()  # what was read from them outlives them: a crash loop leaves no journal behind
            self._room.covered = (self.generation, 0)
        with contextlib.suppress(StorageFault):
            self._room.drop_below(found.low or (0, 0))
        self._room.give_back_spare(now.monotonic_ns, 0)
        self.tell(f"opened at {now.wall_ns} after {self._predecessor}")

    @property
    def recovered_table(self) -> bytes | None:
        """The payload of the tag table of the newest block before this opening; None on a new disk. Raise CorruptError."""
        return read_object(self._storage, self._table) if self._table else None

    def crowded(self) -> bool:
        """Say whether so many journals of dead generations wait that they should be sealed before collecting goes on."""
        dead = [j for j in self._journals.closed if j.runs and j.name.generation != self.generation]
        waiting = [j for j in dead if any((j.name.generation, run.first_block) not in self._unsealable for run in j.runs)]
        return len(waiting) >= CROWDED_JOURNALS

    def tell(self, event: str) -> None:
        """Keep an event for people."""
        if len(self.counters.events) < EVENTS_MAX:
            self.counters.events.append(event)

    # ---- objects ----

    def add_object(self, kind: ObjectType, payload: bytes) -> bytes:
        """Make an object durable; return its SHA-256."""
        digest = payload_digest(payload)
        if not self._holdings.has_object(digest):
            manifest = Manifest(FrameKind.OBJECT, self.options.stream, digest, len(payload), object_type=kind)
            data = seal_frame(self._signer, manifest, payload).wire()
            self._with_space(lambda: self._holdings.put(layout.object_path(digest), data), len(data), 0, self._now)
        return digest

    def use_table(self, payload: bytes) -> None:
        """Make a tag table durable; later blocks name it. A journal never spans two. Raise CorruptError, StorageFault."""
        invariant(not self._pending and not self.singly and not self._unsynced, "tag table changed while readings of the old one wait")
        table = decode_table(payload)
        digest = self.add_object(ObjectType.TAG_TABLE, payload)
        self._roll = self._roll or digest != self._table
        self._table, self._ready = digest, True
        self.last.use_table(table)
        self.last.tables[digest] = (self.generation, self._chain.seq)  # needed from now on: it may have been in use long ago

    # ---- writing ----

    def append(
        self, columns: Columns, source: int | None = None, position: bytes | None = None, gap: GapChange | None = None, arrived_ns: int = 0
    ) -> None:
        """Take readings for the next commit; they stay whole: all in that commit, or none. source: its number in the tag table."""
        self._gather()
        self._pending.append(Pending(columns, source, position, gap, arrived_ns))

    def _gather(self) -> None:
        if self.singly:
            self._pending.append(Pending(self.singly.take()))

    def commit(self, now: Instant) -> Committed:
        """Make everything appended durable; an empty block where nothing was. Raise StorageFault: nothing is lost, call again."""
        invariant(self._ready, "commit before use_table")
        self._now = now
        self._gather()
        first = self._unsynced[0].frame.manifest if self._unsynced else None
        if self._unsynced:
            self._write(now)
        if self._pending or first is None:
            begun = self._commit(now)
            first = first or begun
        return Committed(self.generation, first.first_seq, self._chain.seq, first.first_block, self._chain.block - 1)

    def _commit(self, now: Instant) -> Manifest:
        """Encode, have a journal for it, only then number and sign: a record that must come before gets the lower number."""
        gaps = replace(self._gaps, dropped=[])
        cuts = cut(group(self._pending, gaps))
        self._have_journal(sum(one.journal_bytes for one in cuts), now)
        self._build(cuts, now)
        self._pending, self._gaps = [], gaps
        for gap in gaps.dropped:
            self.tell(f"gap {gap.id} of source {gap.source} closed as unfillable: more than {limits.OPEN_GAPS_MAX} were open")
        first = self._unsynced[0].frame.manifest
        self._write(now)
        return first

    def _build(self, cuts: Sequence[Cut], now: Instant) -> None:
        invariant(not self._unsynced, "a block built while an older one is not durable")
        self._unsynced = self._chain.build(cuts, self._active_table, now.wall_ns, lambda block, end, one: self._record(now, block, end, one))

    def _commit_state(self, now: Instant) -> None:
        """Commit an empty block in the journal that is open, whatever it waits for: what the reserve is kept for."""
        self._build(cut(group([], self._gaps)), now)
        self._write(now)

    def _record(self, now: Instant, block: int, end: int, one: Cut) -> StateRecord:
        return StateRecord(
            self.generation, block, self._predecessor, end, self._room.low, self._room.lost, tuple(sorted(one.gaps)), now.wall_ns, now.monotonic_ns,
            now.boot_id, now.trusted,
        )  # fmt: skip

    def _have_journal(self, need_bytes: int, now: Instant) -> None:
        if not self._roll and self._journals.fits(need_bytes + self.options.reserve_bytes):
            return
        try:
            self._with_space(lambda: self._begin_journal(need_bytes, now), 0, need_bytes, now)
        except StorageFault as fault:  # a history too short to make room: what the reserve journal takes is committed
            if fault.errno != ENOSPC or self._roll or not self._journals.fits(need_bytes + self.options.reserve_bytes):
                raise

    def _begin_journal(self, need_bytes: int, now: Instant) -> None:
        there = self._space.keep_reserve()  # before the journal takes the last of the disk
        self._journals.begin(self._chain.seq, self._chain.block, need_bytes, now.monotonic_ns)
        self._active_table, self._roll, self._space.helpless = self._table, False, self._space.helpless and not there
        if not self._holdings.has_last:
            with contextlib.suppress(StorageFault):  # from now on a full disk has the room of the older of two
                self._room.publish_last()

    def _write(self, now: Instant) -> None:
        """Write and sync what is built and not durable: where it was meant to go, once more in a new journal, byte for byte."""
        built = self._unsynced
        if self._journals.active is None:
            self._again(built, now)
        try:
            self._journals.write(built)
        except StorageFault as fault:
            self._abandon(fault)
            self._again(built, now)
            try:
                self._journals.write(built)
            except StorageFault as second:
                self._abandon(second)
                raise
        self._acknowledge(built)

    def _again(self, built: Sequence[Built], now: Instant) -> None:
        first = built[0].frame.manifest
        self._journals.begin(first.first_seq, first.first_block, self._journals.need(built), now.monotonic_ns)

    def _abandon(self, fault: StorageFault) -> None:
        self.counters.failed_syncs += 1
        self.tell(f"{fault}; its blocks go to a new journal")
        self._journals.abandon()

    def _acknowledge(self, built: Sequence[Built]) -> None:
        """They are durable: from here on they are known, counted and shown to readers."""
        self._unsynced = []
        for one in built:
            self.last.apply(one.frame.manifest, one.columns)
            self.counters.readings += one.frame.manifest.count
            self.counters.payload_bytes += len(one.frame.payload)
        self.counters.blocks += len(built)
        self.state = built[-1].frame.manifest.state
        self._room.committed = (self.generation, self._chain.seq, self._chain.block)
        self.counters.bytes_written += self._journals.acknowledge(built, self._chain.seq, self._chain.block)

    def known(self, source: int) -> Known:
        """Return what is committed of a source, by its number in the tag table. May be called while another thread commits."""
        return self.last.known(source)

    # ---- sealing ----

    def roll_if_due(self, now: Instant, interval_ns: int) -> None:
        """Have the next commit begin a new journal where the active one is old or large enough for a segment."""
        active = self._journals.active
        if active is None or not active.facts.readings:
            return
        due = now.monotonic_ns - active.opened_ns >= interval_ns
        full = active.facts.readings >= limits.SEGMENT_READINGS_MAX - limits.BLOCK_READINGS_MAX
        if due or full or active.payload_bytes >= limits.SEGMENT_PAYLOAD_BYTES_MAX // 2:
            self._roll = True

    def sealable(self) -> SealRequest | None:
        """Return what the sealing child should do next, oldest first, journals of dead generations too; None if nothing."""
        for journal in self._journals.closed:
            for run in journal.runs:
                if (journal.name.generation, run.first_block) not in self._unsealable:
                    return ask(self.options.stream, journal, run, self.options.public_keys)
        return None

    def seal_failed(self, request: SealRequest, reason: str) -> None:
        """Leave that journal a unit: it travels as blocks and is evicted in its turn."""
        self._unsealable.add((request.generation, request.first_block))
        self.tell(f"{request.journals[0]}: not sealed: {reason}")

    def adopt(self, request: SealRequest, result: SealResult, now: Instant) -> list[SegmentName]:
        """Publish what the child made, and count it: `publish_sealed` and `admit` at once, for whoever commits nothing meanwhile."""
        return self.admit(request, self.publish_sealed(request, result), now)

    def publish_sealed(self, request: SealRequest, result: SealResult) -> Published:
        """Check, sign and publish what the child made, beside commits; the result goes to `admit`."""
        _, run = find(self._journals.closed, request)
        return publish(self._storage, self._signer, request, run, result.parts, self.state)

    def admit(self, request: SealRequest, published: Published, now: Instant) -> list[SegmentName]:
        """Count what was published, then write `last`. Raise CorruptError, StorageFault: what is left of the journal stays what it was.

        No names where the journal was evicted meanwhile: the segments stand below `low` then, and go with the next `make_room`.
        """
        journal, run = find(self._journals.closed, request)
        for part, name, cose_bytes in published.parts:
            if run is not None:
                run.first_block, run.first_seq = part.last_block + 1, part.first_seq + part.count
            self._holdings.add_segment(name, part.length, cose_bytes)
            self.counters.sealed += 1
            self.counters.sealed_readings += part.count
            self.counters.sealed_bytes += part.length + cose_bytes
        if published.fault is not None:
            raise published.fault
        if journal is None or run is None:
            return []
        journal.runs.remove(run)
        journal.sealed_at_ns = now.monotonic_ns
        self.counters.bytes_written += self._room.publish_last()
        return [name for _, name, _ in published.parts]

    # ---- space ----

    @property
    def segments(self) -> list[SegmentName]:
        """The sealed segments, oldest first."""
        return self._holdings.segments

    def usage_bytes(self) -> int:
        """Everything under the ring's directory that counts against max_bytes."""
        return self._room.used_bytes()

    def info(self, now: Instant) -> Info:
        """Return what the ring is like."""
        return self._room.info(self.counters, max(1, now.monotonic_ns - self._opened_ns))

    def make_room(self, now: Instant) -> int:
        """Give back what is not needed, then evict oldest first while the ring is too large; return how many files went.

        First a committed block with the new `low`, then truncate and unlink: never a hole that no record names. Raise StorageFault.
        """
        self._journals.bury()
        self._room.give_back_spare(now.monotonic_ns, self._room.over_bytes())
        self._room.shrink_pool()
        gone = self._room.drop_below(self.state.low) if self.state is not None else 0
        over = self._room.over_bytes()
        if over > 0 and self._room.raise_low(over, (self.generation, self._chain.seq)):
            self.commit(now)
            gone += self._room.drop_below(self._room.low)
        if not self._space.keep_reserve():
            with contextlib.suppress(StorageFault):  # full by somebody else's doing
                self._make_space(0, 0, now)
                self._space.keep_reserve()
        self.counters.evicted_files = self._room.evicted
        return gone

    def _with_space(self, act: Callable[[], None], object_bytes: int, need_bytes: int, now: Instant) -> None:
        self._space.used(act, lambda: self._make_space(object_bytes, need_bytes, now))

    def _make_space(self, object_bytes: int, need_bytes: int, now: Instant) -> None:
        if self._unsynced:
            raise StorageFault("the file system is full", path="", errno=ENOSPC)
        end = (self.generation, self._chain.seq)
        self._space.make(object_bytes, need_bytes, end, now.monotonic_ns, lambda: self._begin_reserve(now), lambda: self._commit_state(now))

    def _begin_reserve(self, now: Instant) -> bool:
        there = self._journals.begin_reserve(self._chain.seq, self._chain.block, now.monotonic_ns)
        if there:
            self._active_table, self._roll = self._table, False
        return there

    def declare_lost(self, losses: Sequence[Loss], now: Instant) -> Committed:
        """Commit that these readings will never come (scrub, `ring check`). Raise StorageFault."""
        self._room.lose(losses)
        return self.commit(now)

    def close(self) -> None:
        """Commit nothing more; give handles and the lock back."""
        self._journals.close()
        self._storage.close(self._locked)
