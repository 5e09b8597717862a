"""What a start may believe. Contract: reads, syncs and never writes; always ends with a usable answer; decides in this order.

0. Names are made durable before they are believed: who published a file may have been killed between rename and directory sync.
1. Half-published files: a .parquet without .cose was never a segment, a .cose without .parquet is an eviction cut short: both go,
   like every temporary file. What lies below the newest committed `low` goes too: that eviction was committed and cut short.
2. The newest journal of each generation is synced, then read past the page cache: what the cache shows after a failed sync lies. A page
   the disk refuses to give is zeros.
3. In a journal, a frame that does not verify is the torn tail only if nothing of this journal follows. Blocks of another stream
   or generation, or whose signature does not fit, count as not verifying. Of two copies of one block the first is taken.
4. A tail of blocks with `more` belongs to a commit that never ended and is dropped, unless something proves that it was acknowledged and
   its end rotted: `durable`, or, once a later generation has begun, the end that `last` or a record of that one states.
5. Where a generation ended: the greatest end that a block, a segment, a `last` file, a successor's record or `durable` proves. What
   lies between the newest `low` and such an end, and is neither held nor lost already, is lost (storage fault): a hole in the
   middle, and an acknowledged tail that rotted.
6. A journal whose readings all stand in segments and in `last` is not read at all: a thousand segments cost a thousand names.
7. Positions, newest readings and open gaps: the newest good `last` file, then the blocks after it, applied as the live ring does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from buffer import layout
from buffer.codec import decode
from buffer.cose import parse_sign1
from buffer.errors import CorruptError, StorageFault
from buffer.frame import HEADER_BYTES, parse_frame, parse_header
from buffer.intervals import Intervals
from buffer.journal import Found, Hole, PastCache, find_salt, scan
from buffer.last import LastState, decode_last
from buffer.layout import JournalName, SegmentName
from buffer.manifest import Loss, LossReason, Manifest, StateRecord, decode_manifest
from buffer.state import Place, missing
from buffer.storage import TEMPORARY_SUFFIX
from buffer.tagtable import decode_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from buffer.cose import Verifier
    from buffer.storage import Storage

SEGMENTS_ASKED_MAX: Final = 8  # manifests read to find the newest record where no journal has it


@dataclass(slots=True)
class Run:
    """Consecutive blocks of one journal whose readings stand in no segment: what can be sealed together."""

    first_block: int
    last_block: int
    first_seq: int
    end_seq: int

    @property
    def readings(self) -> int:
        """How many readings it holds."""
        return self.end_seq - self.first_seq


@dataclass(slots=True)
class JournalFacts:
    """A journal that is not written any more. No runs: everything in it stands in segments."""

    name: JournalName
    size_bytes: int
    runs: list[Run] = field(default_factory=list)
    readings: int = 0  # ever committed in it
    last_block: int = -1  # the newest in it; -1: everything in it was in a `last` file already
    sealed_at_ns: int = 0  # monotonic; since when runs is empty
    poisoned: bool = False  # a sync failed: never written again, not even to recycle it

    def note(self, manifest: Manifest) -> None:
        """Take the next committed block."""
        run = self.runs[-1] if self.runs else None
        if run is not None and manifest.first_block == run.last_block + 1 and manifest.first_seq == run.end_seq:
            run.last_block, run.end_seq = manifest.last_block, manifest.end_seq
        else:
            self.runs.append(Run(manifest.first_block, manifest.last_block, manifest.first_seq, manifest.end_seq))
        self.seen(manifest)

    def seen(self, manifest: Manifest) -> None:
        """Count a block that stands in a segment already."""
        self.readings += manifest.count
        self.last_block = manifest.last_block


@dataclass(slots=True)
class Recovered:
    """Everything a new generation begins with."""

    segments: list[SegmentName] = field(default_factory=list)
    journals: list[JournalFacts] = field(default_factory=list)
    free: list[int] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)  # half-published, temporary
    state: StateRecord | None = None  # the newest committed record
    tag_table: bytes = b""  # named by the newest block
    low: Place | None = None  # None on a new disk
    lost: list[Loss] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)  # generations with readings -> where they ended
    ordinal: int = 0  # the highest found anywhere
    last: LastState = field(default_factory=LastState)
    place: tuple[int, int, int] | None = None  # generation, seq, next block: `last` holds everything before; None: the file on disk does too
    events: list[str] = field(default_factory=list)


def recover(storage: Storage, verifier: Verifier, stream: str) -> Recovered:
    """Return what the ring holds; raise StorageFault only where not even names can be read."""
    return _Recovery(storage, verifier, stream).run()


class _Recovery:
    def __init__(self, storage: Storage, verifier: Verifier, stream: str) -> None:
        self._storage = storage
        self._verifier = verifier
        self._stream = stream
        self._mark: layout.DurableMark | None = None
        self._replay_from: tuple[int, int] = (0, 0)  # generation, block: everything before stands in `last`
        self._last_place: Place = (0, 0)
        self._held: dict[int, Intervals] = {}
        self._newest_block: dict[int, int] = {}  # per generation, the highest taken
        self._names: list[JournalName] = []
        self._table = b""
        self.out = Recovered()

    def run(self) -> Recovered:
        out = self.out
        self._sync_names()
        self._leftovers()
        self._segments()
        self._last_file()
        self._durable()
        self._names = names = sorted(name for entry in self._storage.list(layout.JOURNALS) if (name := layout.parse_journal(entry)) is not None)
        out.free = [n for entry in self._storage.list(layout.JOURNALS) if (n := layout.parse_free(entry)) is not None]
        for i, name in enumerate(names):
            following = names[i + 1] if i + 1 < len(names) and names[i + 1].generation == name.generation else None
            if self._is_done(name, following):
                out.journals.append(JournalFacts(name, self._storage.size(name.path) or 0, readings=1))
            else:
                self._journal(name, newest=following is None)
        self._newest_segment()
        generations = [name.generation for name in names] + [s.generation for s in out.segments] + [*out.ends]
        out.ordinal = max((g >> 32 for g in (*generations, self._last_place[0])), default=0)
        self._account()
        return out

    # ---- names ----

    def _sync_names(self) -> None:
        for directory in layout.DIRECTORIES:
            try:
                self._storage.fsync_dir(directory)
            except StorageFault as fault:
                self.out.events.append(f"{fault}; believing the names that the cache shows")

    def _leftovers(self) -> None:
        for directory in ("", *layout.DIRECTORIES):
            for entry in self._storage.list(directory):
                if entry.endswith(TEMPORARY_SUFFIX):
                    self.out.remove.append(f"{directory}/{entry}" if directory else entry)

    def _segments(self) -> None:
        found: dict[SegmentName, set[str]] = {}
        for entry in self._storage.list(layout.SEGMENTS):
            parsed = layout.parse_segment(entry)
            if parsed is not None:
                found.setdefault(parsed[0], set()).add(parsed[1])
        for name, endings in sorted(found.items()):
            if len(endings) == 2:  # noqa: PLR2004 -- both
                self.out.segments.append(name)
                self._held.setdefault(name.generation, Intervals()).add(name.first, name.last)
                self._end(name.generation, name.last + 1)
            else:
                self.out.events.append(f"{name.parquet}: half of a segment; removed")
                self.out.remove += [name.cose, name.parquet]

    def _last_file(self) -> None:
        names = sorted((n for entry in self._storage.list(layout.LAST) if (n := layout.parse_last(entry)) is not None), reverse=True)
        self._last_place = max(((n.generation, n.seq) for n in names), default=(0, 0))
        for name in names:
            self._end(name.generation, name.seq)
        for name in names:
            file = PastCache(self._storage, name.path)
            try:
                self.out.last, generation, seq, block = decode_last(file.read(0, file.size_bytes))
            except CorruptError as error:
                self.out.events.append(f"{name.path}: {error.message}; taking the one before")
                continue
            self._replay_from, self._last_place = (generation, block), (generation, seq)
            for old, end in self.out.last.ends.items():
                self._end(old, end)
            return
        self._last_place = (0, 0)

    def _durable(self) -> None:
        try:
            self._mark = layout.decode_durable(self._storage.read(layout.DURABLE, 0, layout.DURABLE_BYTES) or b"")
        except (CorruptError, StorageFault):
            return  # torn by the crash: it was a lower bound, no more
        self._end(self._mark.generation, self._mark.end_seq)

    def _end(self, generation: int, end: int) -> None:
        if end > 0:
            self.out.ends[generation] = max(end, self.out.ends.get(generation, 0))

    def _is_done(self, name: JournalName, following: JournalName | None) -> bool:
        end = following.first_seq if following is not None else self.out.last.ends.get(name.generation, 0)
        if end <= name.first_seq or (name.generation, end) >= self._last_place:
            return False
        if following is None and name.generation >= self._last_place[0]:
            return False
        held = self._held.get(name.generation)
        if held is None or not held.covers(name.first_seq, end - 1):
            return False
        return following is None or held.covers(end, end)  # else the block whose sync failed here may stand here alone: the next file is empty

    # ---- journals ----

    def _journal(self, name: JournalName, *, newest: bool) -> None:
        out, path = self.out, name.path
        facts = JournalFacts(name, self._storage.size(path) or 0)
        if newest:
            try:
                self._storage.sync_file(path)
            except StorageFault as fault:
                out.events.append(f"{fault}; believing what the device shows")
        held = self._held.setdefault(name.generation, Intervals())
        for manifest, payload in self._believable(name):
            if manifest.first_block <= self._newest_block.get(name.generation, -1):
                continue  # a copy: its sync had failed in an earlier journal
            self._newest_block[name.generation] = manifest.first_block
            if manifest.count and held.covers(manifest.first_seq, manifest.end_seq - 1):
                facts.seen(manifest)
            else:
                facts.note(manifest)
            self._take(manifest, payload)
        facts.runs = [run for run in facts.runs if run.readings]
        for run in facts.runs:
            held.add(run.first_seq, run.end_seq - 1)
        out.journals.append(facts)

    def _believable(self, name: JournalName) -> Iterator[tuple[Manifest, bytes]]:
        tail: list[tuple[Manifest, bytes]] = []  # of a commit whose end did not come yet
        for block in self._verified(name, self.out.events):
            tail.append(block)
            if not block[0].more:
                yield from tail
                tail = []
        while tail and not self._was_acknowledged(tail[-1][0]):
            tail.pop()
        yield from tail

    def _verified(self, name: JournalName, events: list[str]) -> Iterator[tuple[Manifest, bytes]]:
        file = PastCache(self._storage, name.path)
        read, size = file.read, file.size_bytes
        salt = find_salt(read, size, name.generation, name.first_seq, name.serial)
        for found in () if salt is None else scan(read, salt, size):
            problem = self._problem(found, name)
            if isinstance(found, Found) and not problem:
                yield found.frame.manifest, bytes(found.frame.payload)
            else:
                events.append(f"{name.path} at byte {found.offset}: {problem}")

    def _was_acknowledged(self, manifest: Manifest) -> bool:
        """Say whether a block whose commit has no end in the journal was acknowledged all the same."""
        generation = manifest.generation
        if self._mark is not None and self._mark.generation == generation and manifest.last_block < self._mark.end_block:
            return True
        end = manifest.end_seq
        return manifest.count > 0 and (end <= self.out.ends.get(generation, 0) or end <= self._stated_end(generation))

    def _stated_end(self, generation: int) -> int:
        """Return where a later generation says that this one ended, 0 if none does. Reads journals once more: a tail is seldom in doubt."""
        for name in self._names:
            if name.generation > generation:
                manifest, _ = next(self._verified(name, []), (None, b""))
                if manifest is not None and manifest.state is not None and manifest.state.predecessor is not None:
                    stated, end = manifest.state.predecessor
                    if stated == generation:
                        return end
        return 0

    def _problem(self, found: Found | Hole, name: JournalName) -> str:
        if isinstance(found, Hole):
            return f"hole: {found.reason}"
        manifest = found.frame.manifest
        if manifest.generation != name.generation or manifest.stream != self._stream:
            return "a block of another stream or generation"
        try:
            found.frame.verified(self._verifier)
        except CorruptError as error:
            return error.message
        return ""

    def _take(self, manifest: Manifest, payload: bytes) -> None:
        out, state = self.out, manifest.state
        self._end(manifest.generation, manifest.end_seq)
        if state is not None:
            if state.predecessor is not None:
                self._end(*state.predecessor)
            if out.state is None or (state.generation, state.block) > (out.state.generation, out.state.block):
                out.state, out.tag_table = state, manifest.tag_table_sha256
        if (manifest.generation, manifest.first_block) < self._replay_from:
            return
        self._use_table(manifest.tag_table_sha256)
        columns = None
        try:
            columns = decode(payload, manifest.count) if manifest.count else None
        except CorruptError as error:  # signed, so ours: a release that cannot read an older one must start all the same
            out.events.append(f"block {manifest.first_block} of generation {manifest.generation}: {error.message}")
        out.last.apply(manifest, columns)
        out.place = (manifest.generation, manifest.end_seq, manifest.last_block + 1)

    def _use_table(self, digest: bytes) -> None:
        if digest == self._table:
            return
        self._table = digest
        try:
            payload = read_object(self._storage, digest)
            if payload is not None:
                self.out.last.use_table(decode_table(payload))
        except CorruptError as error:
            self.out.events.append(f"{layout.object_path(digest)}: {error.message}")

    # ---- the newest record, and what is missing ----

    def _newest_segment(self) -> None:
        """Where the journals are gone, the newest record stands in the newest segment."""
        out = self.out
        for name in out.segments[: -SEGMENTS_ASKED_MAX - 1 : -1]:
            if out.state is not None and out.state.generation > name.generation:
                return
            try:
                manifest = read_segment_manifest(self._storage.read(name.cose, 0, self._storage.size(name.cose) or 0) or b"", self._verifier)
            except (CorruptError, StorageFault) as error:
                out.events.append(f"{name.cose}: {error}")
                continue
            state = manifest.state
            if state is not None and (out.state is None or (state.generation, state.block) > (out.state.generation, out.state.block)):
                out.state, out.tag_table = state, manifest.tag_table_sha256
                self._end(state.generation, state.end)
                if state.predecessor is not None:
                    self._end(*state.predecessor)
            return

    def _account(self) -> None:
        out = self.out
        if out.state is not None:
            out.low = out.state.low
        else:
            firsts = [(generation, next(iter(held))[0]) for generation, held in self._held.items() if held]
            out.low = min(firsts, default=None)
        known = out.state.lost if out.state is not None else ()
        new = missing(out.ends, self._held, known, out.low, LossReason.STORAGE_FAULT) if out.low is not None else []
        for loss in new:
            out.events.append(f"readings {loss.first}..{loss.last} of generation {loss.generation} are lost")
        out.lost = [*known, *new]


def read_object(storage: Storage, digest: bytes) -> bytes | None:
    """Return the payload of an object, None if it is not there; raise CorruptError."""
    path = layout.object_path(digest)
    data = storage.read(path, 0, storage.size(path) or 0)
    return bytes(parse_frame(data).payload) if data else None


def read_segment_manifest(cose_file: bytes, verifier: Verifier) -> Manifest:
    """Return the verified manifest in a .cose file (header and COSE_Sign1); raise CorruptError."""
    header = parse_header(cose_file)
    cose = cose_file[HEADER_BYTES : HEADER_BYTES + header.cose_bytes]
    if len(cose) != header.cose_bytes:
        raise CorruptError(".cose file is cut off")
    return decode_manifest(parse_sign1(cose).verified(verifier))


def below(low: Place, segments: Iterable[SegmentName], journals: Iterable[JournalFacts]) -> Iterator[SegmentName | JournalFacts]:
    """Yield what lies wholly below `low`: evicted, as a committed record says."""
    for segment in segments:  # oldest first
        if (segment.generation, segment.last) >= low:
            break
        yield segment
    for journal in journals:
        if journal.runs and (journal.name.generation, journal.runs[-1].end_seq - 1) < low:
            yield journal
