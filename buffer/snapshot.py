"""A ring as it is now, for SQL: the segments, and temporary Parquet files of the blocks that stand in no segment yet.

Works on a ring that is being written: what is read twice is taken once (by seq), and when files changed while they were read, it
is done again. Writes into a scratch directory of its own and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buffer import layout, limits
from buffer.errors import CorruptError, StorageFault
from buffer.intervals import Intervals, Span
from buffer.reader import Inventory, RingReader
from buffer.storage import PosixReadStorage
from buffer.tagtable import TagTable, decode_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buffer.frame import Frame
    from buffer.layout import JournalName, SegmentName
    from buffer.manifest import Manifest, StateRecord

TRIES_MAX: Final = 5  # a ring that changes under five readings in a row is being evicted faster than it can be read


@dataclass(slots=True)
class Snapshot:
    """One stream. Paths are absolute."""

    stream: str
    segments: list[Path] = field(default_factory=list)
    tail: list[Path] = field(default_factory=list)
    table: TagTable | None = None
    state: StateRecord | None = None
    missing: list[Span] = field(default_factory=list)  # neither held nor named as lost: damage that nobody has found yet


def stream_directories(path: Path) -> list[Path]:
    """Return the rings in `path`: itself, or what lies in it. Raise StorageFault where there is none."""
    if (path / layout.JOURNALS).is_dir():
        return [path]
    found = sorted(one for one in path.iterdir() if (one / layout.JOURNALS).is_dir()) if path.is_dir() else []
    if not found:
        raise StorageFault("here is no ring: expected <ring>/<stream>/journal", path=str(path))
    return found


def take_snapshot(ring: Path, scratch: Path, since_ns: int | None = None) -> Snapshot:
    """Return what the ring of one stream holds; of segments only those sealed at `since_ns` (wall clock) or later.

    Raise CorruptError for damage that leaves no account, StorageFault where the ring cannot be read or does not hold still.
    """
    for attempt in range(TRIES_MAX):
        reader = RingReader(PosixReadStorage(ring))
        inventory = reader.inventory()
        for old in scratch.glob(f"{ring.name}-*.parquet"):
            old.write_bytes(b"")
        newest = _newest(reader, inventory)
        sound = inventory if newest is None else replace(inventory, segments=_sound(_apart(reader, inventory.segments), newest.state))
        snapshot = Snapshot(ring.name, _since(ring, reader, sound, since_ns))
        if newest is not None:
            snapshot.state = newest.state
            snapshot.table = _table(reader, newest.tag_table_sha256)
        held = _sealed(sound)
        for number, frames in enumerate(_pieces(_unsealed(reader, sound, held))):
            snapshot.tail.append(scratch / f"{ring.name}-{attempt}-{number}.parquet")
            snapshot.tail[-1].write_bytes(_parquet(frames, _table(reader, frames[0].manifest.tag_table_sha256)))
            for m in (frame.manifest for frame in frames):
                held.setdefault(m.generation, Intervals()).add(m.first_seq, m.end_seq - 1)
        if newest is not None:
            snapshot.missing = _missing(reader, inventory, newest.state, held)
        after = reader.inventory()
        if (after.segments, after.journals) == (inventory.segments, inventory.journals):
            return snapshot
    raise StorageFault("the ring changed while it was read, again and again; try once more", path=str(ring))


def _newest(reader: RingReader, inventory: Inventory) -> Manifest | None:
    """Return the newest durable block's manifest, None in a ring that has none; raise CorruptError where it cannot be told."""
    newest = reader.newest(inventory)
    if newest is None and (inventory.durable is not None or reader.begun(inventory)):
        what = "the newest block cannot be read" if inventory.durable is not None else "torn, or not here"
        message = f"{what}: how far this ring goes cannot be told before `ebbgate collect` was started again (`ebbgate ring check` says more)"
        raise CorruptError(message, source=layout.DURABLE)
    return newest


def _missing(reader: RingReader, inventory: Inventory, state: StateRecord | None, held: dict[int, Intervals]) -> list[Span]:
    """Return what the records report, and is neither held, nor below `low`, nor lost."""
    if state is None:
        return []
    generations = {name.generation for name in inventory.segments} | {name.generation for name in inventory.journals}
    generations |= {(state.predecessor or state.low)[0], state.generation}
    out: list[Span] = []
    for generation in sorted(g for g in generations if g >= state.low[0]):
        end = state.end if generation == state.generation else reader.end_of(inventory, generation) or 0
        known = held.get(generation, Intervals()).copy()
        for loss in state.lost:
            if loss.generation == generation:
                known.add(loss.first, loss.last)
        first = state.low[1] if generation == state.low[0] else 0
        out += [Span(generation, a, b) for a, b in known.holes(first, end - 1)]
    return out


def _apart(reader: RingReader, names: tuple[SegmentName, ...]) -> tuple[SegmentName, ...]:
    """Return the segments; where two claim the same readings, without those whose manifest says otherwise: a copy under another name.

    Raise CorruptError where they still do: no reading may be counted twice.
    """
    if _first_overlap(names) is None:
        return names
    kept = tuple(name for name in names if (m := reader.segment_manifest(name)) is None or (m.first_seq, m.end_seq - 1) == (name.first, name.last))
    twice = _first_overlap(kept)
    if twice is not None:
        raise CorruptError("this segment and the one before it hold the same readings", source=twice.parquet)
    return kept


def _first_overlap(names: Sequence[SegmentName]) -> SegmentName | None:
    """Return a segment that begins before one before it ends. names: sorted."""
    end = {name.generation: -1 for name in names}
    for name in names:
        if name.first <= end[name.generation]:
            return name
        end[name.generation] = name.last
    return None


def _sound(segments: tuple[SegmentName, ...], state: StateRecord | None) -> tuple[SegmentName, ...]:
    """Leave out segments that the scrub found rotten: Parquet has no checksum that would keep wrong values from being read."""
    lost: dict[int, Intervals] = {}
    for loss in state.lost if state is not None else ():
        lost.setdefault(loss.generation, Intervals()).add(loss.first, loss.last)
    return tuple(name for name in segments if not (name.generation in lost and lost[name.generation].covers(name.first, name.last)))


def _since(ring: Path, reader: RingReader, inventory: Inventory, since_ns: int | None) -> list[Path]:
    names: list[SegmentName] = list(inventory.segments)
    if since_ns is not None:
        kept: list[SegmentName] = []
        for name in reversed(names):
            manifest = reader.segment_manifest(name)
            if manifest is not None and manifest.state is not None and manifest.state.wall_ns < since_ns:
                break  # everything before was sealed earlier still
            kept.append(name)
        names = kept[::-1]
    return [ring / name.parquet for name in names]


def _sealed(inventory: Inventory) -> dict[int, Intervals]:
    sealed: dict[int, Intervals] = {}
    for segment in inventory.segments:
        sealed.setdefault(segment.generation, Intervals()).add(segment.first, segment.last)
    return sealed


def _unsealed(reader: RingReader, inventory: Inventory, sealed: dict[int, Intervals]) -> Iterator[Frame]:
    """Yield the durable blocks with readings that stand in no segment."""
    for generation in sorted({name.generation for name in inventory.journals}):
        held = sealed.get(generation, Intervals()).copy()
        others = [name for name in inventory.journals if name.generation != generation]
        mine = [name for name in inventory.journals if name.generation == generation]
        wanted = tuple(sorted(others + _not_covered(mine, held)))
        for frame in reader.blocks(replace(inventory, journals=wanted), generation, 0):
            m = frame.manifest
            if m.count and not held.covers(m.first_seq, m.end_seq - 1):
                yield frame


def _not_covered(names: list[JournalName], held: Intervals) -> list[JournalName]:
    """Leave out journals whose readings, as the next name tells, all stand in segments: they are not even opened."""
    out = []
    for i, name in enumerate(names):
        end = names[i + 1].first_seq if i + 1 < len(names) else None
        if end is None or end == name.first_seq or not held.covers(name.first_seq, end - 1):
            out.append(name)
    return out


def _pieces(frames: Iterable[Frame]) -> Iterator[list[Frame]]:
    """Group frames of one generation and tag table, at most limits.SEGMENT_READINGS_MAX readings."""
    piece: list[Frame] = []
    readings = 0
    for frame in frames:
        m = frame.manifest
        first = piece[0].manifest if piece else m
        same = (m.generation, m.tag_table_sha256) == (first.generation, first.tag_table_sha256)
        if piece and (not same or readings + m.count > limits.SEGMENT_READINGS_MAX):
            yield piece
            piece, readings = [], 0
        piece.append(frame)
        readings += m.count
    if piece:
        yield piece


def _parquet(frames: list[Frame], table: TagTable) -> bytes:
    from buffer.tail import tail_bytes  # where everything is sealed, a query needs neither numpy nor pyarrow: a third of its time

    return tail_bytes(frames, table)


def _table(reader: RingReader, digest: bytes) -> TagTable:
    frame = reader.object_frame(digest)
    if frame is None:
        raise CorruptError("a block names a tag table that is not in the ring", source=layout.object_path(digest))
    return decode_table(frame.payload)
