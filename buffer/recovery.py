"""What a start may believe. Contract: always ends with a usable answer; writes nothing but the removal of half-published files.

1. Half-published files: a .parquet without .cose was never a segment, a .cose without .parquet is an eviction cut short: both go.
2. The journals of the newest generation are synced, then read past the page cache: what the cache shows after a failed sync lies.
3. In a journal, a frame that does not verify is the torn tail only if nothing of this journal follows; else it is a hole, and the
   readings in it are `lost`. Blocks whose signature does not fit count as not verifying.
4. A tail of blocks with `more` belongs to a commit that never ended: dropped, like every unsynced tail.
5. A journal whose readings all stand in segments and in `last` is not read at all: a thousand segments cost a thousand names.
6. Positions, newest readings and open gaps come from the newest good `last` file and the blocks after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from buffer import layout
from buffer.codec import decode
from buffer.cose import parse_sign1
from buffer.errors import CorruptError
from buffer.frame import parse_header
from buffer.intervals import Intervals
from buffer.journal import PAGE, Found, JournalHeader, parse_journal_header, scan
from buffer.last import LastState, decode_last
from buffer.manifest import Loss, LossReason, Manifest, StateRecord, decode_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buffer.cose import Verifier
    from buffer.layout import JournalName, SegmentName
    from buffer.storage import Storage


@dataclass(slots=True)
class Run:
    """Consecutive blocks of one journal: what can be sealed together."""

    first_block: int
    last_block: int
    first_seq: int
    end_seq: int
    sealed: bool = False


@dataclass(slots=True)
class JournalFacts:
    """A journal that is not written any more, as found."""

    name: JournalName
    size_bytes: int
    runs: list[Run] = field(default_factory=list)
    tag_table: bytes = b""
    sealed_at_ns: int | None = None  # monotonic; None: some run has readings that stand in no segment

    @property
    def readings(self) -> int:
        """How many readings it holds."""
        return sum(run.end_seq - run.first_seq for run in self.runs)


@dataclass(slots=True)
class Recovered:
    """Everything Ring.open needs."""

    segments: list[SegmentName] = field(default_factory=list)
    journals: list[JournalFacts] = field(default_factory=list)
    done: list[JournalName] = field(default_factory=list)  # hold nothing that is not elsewhere: recycle
    free: list[int] = field(default_factory=list)
    state: StateRecord | None = None  # the newest committed record
    end: tuple[int, int] | None = None  # newest generation and one past its newest committed seq
    ordinal: int = 0  # the highest found anywhere
    last: LastState = field(default_factory=LastState)
    holes: list[Loss] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    tag_table: bytes = b""


def recover(storage: Storage, verifier: Verifier) -> Recovered:
    """Return what the ring holds; raise StorageFault only where not even names can be read."""
    out = Recovered()
    _segments(storage, out)
    _last(storage, out)
    names = sorted(name for entry in storage.list(layout.JOURNALS) if (name := layout.parse_journal(entry)) is not None)
    out.free = [n for entry in storage.list(layout.JOURNALS) if (n := layout.parse_free(entry)) is not None]
    ordinals = [s.generation >> 32 for s in out.segments] + [n.generation >> 32 for n in names]
    ordinals += [last.generation >> 32 for entry in storage.list(layout.LAST) if (last := layout.parse_last(entry)) is not None]
    out.ordinal = max(ordinals, default=0)
    replay_from = _replay_from(out)
    held = _held(out.segments)
    for i, name in enumerate(names):
        following = names[i + 1] if i + 1 < len(names) and names[i + 1].generation == name.generation else None
        if following and _is_done(name, following, held, replay_from):
            out.done.append(name)
            continue
        _journal(storage, name, verifier, held, replay_from, out)
    if out.state is None or (out.segments and out.segments[-1].generation >= out.state.generation):
        _from_segment(storage, out)
    _holes(out)
    return out


def _holes(out: Recovered) -> None:
    """Name every reading between the oldest held and the newest committed that nothing holds any more."""
    held = _held(out.segments)
    for journal in out.journals:
        for run in journal.runs:
            if run.end_seq > run.first_seq:
                held.setdefault(journal.name.generation, Intervals()).add(run.first_seq, run.end_seq - 1)
    for generation, seqs in sorted(held.items()):
        first = next(iter(seqs))[0] if generation == min(held) else 0
        top = max(seqs.top, out.end[1]) if out.end is not None and out.end[0] == generation else seqs.top
        for a, b in seqs.holes(first, top - 1):
            out.holes.append(Loss(generation, a, b, LossReason.STORAGE_FAULT))


def _segments(storage: Storage, out: Recovered) -> None:
    found: dict[SegmentName, set[str]] = {}
    for entry in storage.list(layout.SEGMENTS):
        parsed = layout.parse_segment(entry)
        if parsed is not None:
            found.setdefault(parsed[0], set()).add(parsed[1])
        elif entry.endswith(".tmp"):
            storage.unlink(f"{layout.SEGMENTS}/{entry}")
    for name, endings in sorted(found.items()):
        if endings == {"parquet", "cose"}:
            out.segments.append(name)
        else:
            out.events.append(f"removed a half-published segment {name.parquet}")
            storage.unlink(name.cose)
            storage.unlink(name.parquet)


def _last(storage: Storage, out: Recovered) -> None:
    names = sorted((n for entry in storage.list(layout.LAST) if (n := layout.parse_last(entry)) is not None), reverse=True)
    for name in names:
        size = storage.size(name.path) or 0
        try:
            out.last, generation, seq, _ = decode_last(storage.read_direct(name.path, 0, size) or b"")
        except CorruptError as error:
            out.events.append(f"{name.path}: {error.message}; using the one before")
            continue
        out.end = (generation, seq)
        return


def _replay_from(out: Recovered) -> tuple[int, int]:
    return out.end or (0, 0)


def _held(segments: Iterable[SegmentName]) -> dict[int, Intervals]:
    held: dict[int, Intervals] = {}
    for s in segments:
        held.setdefault(s.generation, Intervals()).add(s.first, s.last)
    return held


def _is_done(name: JournalName, following: JournalName, held: dict[int, Intervals], replay_from: tuple[int, int]) -> bool:
    if (name.generation, following.first_seq) > replay_from:
        return False
    if name.first_seq == following.first_seq:
        return True
    covered = held.get(name.generation)
    return covered is not None and covered.covers(name.first_seq, following.first_seq - 1)


def _journal(
    storage: Storage, name: JournalName, verifier: Verifier, held: dict[int, Intervals], replay_from: tuple[int, int], out: Recovered
) -> None:
    path, size = name.path, storage.size(name.path) or 0

    storage.sync_file(path)
    data = storage.read_direct(path, 0, size) or b""

    def read(offset: int, length: int) -> bytes | None:
        return data[offset : offset + length]

    try:
        header = parse_journal_header(read(0, PAGE) or b"")
    except CorruptError as error:
        out.events.append(f"{path}: {error.message}; nothing in it was ever acknowledged or all of it is lost")
        out.done.append(name)
        return
    blocks = _believable(read, header, size, verifier, name, out)
    facts = JournalFacts(name, size)
    for manifest, payload in blocks:
        _extend(facts, manifest)
        if (manifest.generation, manifest.first_seq) >= replay_from:
            _replay(out, manifest, payload)
    if not blocks:
        out.done.append(name)
        return
    newest = blocks[-1][0]
    if newest.state is not None and (out.state is None or (newest.generation, newest.last_block) > (out.state.generation, out.state.block)):
        out.state, out.tag_table = newest.state, newest.tag_table_sha256
        out.end = (newest.generation, newest.end_seq)
    covered = held.get(name.generation, Intervals())
    for run in facts.runs:
        run.sealed = run.end_seq == run.first_seq or covered.covers(run.first_seq, run.end_seq - 1)
    if all(run.sealed for run in facts.runs):
        out.done.append(name)
    else:
        out.journals.append(facts)


def _believable(
    read: object, header: JournalHeader, size: int, verifier: Verifier, name: JournalName, out: Recovered
) -> list[tuple[Manifest, bytes]]:
    blocks: list[tuple[Manifest, bytes]] = []
    for found in scan(read, header.salt, size):  # type: ignore[arg-type]  # a closure of the caller
        if not isinstance(found, Found):
            out.events.append(f"{name.path}: hole at byte {found.offset}: {found.reason}")
            continue
        try:
            found.frame.verified(verifier)
        except CorruptError as error:
            out.events.append(f"{name.path}: block {found.frame.manifest.first_block}: {error.message}")
            continue
        if found.frame.manifest.generation == name.generation:
            blocks.append((found.frame.manifest, bytes(found.frame.payload)))
    while blocks and blocks[-1][0].more:
        blocks.pop()
    return blocks


def _extend(facts: JournalFacts, manifest: Manifest) -> None:
    facts.tag_table = manifest.tag_table_sha256
    run = facts.runs[-1] if facts.runs else None
    if run is not None and manifest.first_block == run.last_block + 1 and manifest.first_seq == run.end_seq:
        run.last_block, run.end_seq = manifest.last_block, manifest.end_seq
        return
    facts.runs.append(Run(manifest.first_block, manifest.last_block, manifest.first_seq, manifest.end_seq))


def _replay(out: Recovered, manifest: Manifest, payload: bytes) -> None:
    last = out.last
    last.positions.update(manifest.positions)
    if manifest.state is None:
        return
    still_open = {gap.id for gap in manifest.state.open_gaps}
    columns = None
    try:
        columns = decode(payload, manifest.count) if manifest.count else None
    except CorruptError as error:  # signed, so ours: a release that cannot read an older one must start all the same
        out.events.append(f"block {manifest.first_block} of generation {manifest.generation}: {error.message}")
    for gap in manifest.state.open_gaps:
        if gap.id not in last.gaps:  # every tag read so far may belong to it; the source asks for its own
            last.open_gap(gap.id, gap.source, gap.from_ns, tuple(last.tags()))
    for identity in set(last.gaps) - still_open:
        del last.gaps[identity]
    if manifest.fill is not None:
        if manifest.fill[0] in last.gaps:
            last.gaps[manifest.fill[0]].progress = manifest.fill[1]
    elif columns is not None:
        last.take(columns)


def _from_segment(storage: Storage, out: Recovered) -> None:
    """Take state and end from the newest segment where no journal block is newer."""
    for name in reversed(out.segments):
        if out.end is not None and (name.generation, name.last + 1) < out.end and out.state is not None:
            return
        size = storage.size(name.cose) or 0
        try:
            manifest = read_segment_manifest(storage.read(name.cose, 0, size) or b"")
        except CorruptError as error:
            out.events.append(f"{name.cose}: {error.message}")
            continue
        state = manifest.state
        if state is not None and (out.state is None or (state.generation, state.block) > (out.state.generation, out.state.block)):
            out.state = replace(state)
            out.tag_table = out.tag_table or manifest.tag_table_sha256
        if out.end is None or (name.generation, name.last + 1) > out.end:
            out.end = (name.generation, name.last + 1)
        return


def read_segment_manifest(cose_file: bytes) -> Manifest:
    """Return the manifest in a .cose file (header and COSE_Sign1); raise CorruptError. Verifies no signature."""
    header = parse_header(cose_file)
    cose = cose_file[40 : 40 + header.cose_bytes]
    if len(cose) != header.cose_bytes:
        raise CorruptError(".cose file is cut off")
    return decode_manifest(parse_sign1(cose).payload)


