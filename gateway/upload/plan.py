"""What the ring offers and what of it is the next thing to send. Pure: ranges of block numbers, no files.

A sealed range goes as its segment, verbatim; blocks that no segment holds go as a run. Where only a small part of a segment is
missing at the receiver and its blocks are still in a journal, the blocks go: fewer bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from buffer.intervals import Intervals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gateway.upload.cursor import Cursor

RUN_BLOCKS_MAX: Final = 1_024  # of one request; its bytes are limited apart


class SegmentUnit(NamedTuple):
    """A sealed segment: blocks first..last, seqs first_seq..end_seq-1, `size` bytes on the wire (about)."""

    generation: int
    first: int
    last: int
    first_seq: int
    end_seq: int
    size: int


class JournalUnit(NamedTuple):
    """The durable blocks of one journal."""

    generation: int
    first: int
    last: int
    first_seq: int
    end_seq: int
    size: int


@dataclass(frozen=True, slots=True)
class RingView:
    """What the ring holds, oldest first. complete: nothing is left to look at (a first look takes several steps)."""

    segments: tuple[SegmentUnit, ...] = ()
    journals: tuple[JournalUnit, ...] = ()
    complete: bool = True


class Pick(NamedTuple):
    """The next thing to send: one segment, or blocks first..last (fewer if they are large)."""

    generation: int
    first: int
    last: int
    segment: SegmentUnit | None
    offer: bool


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in the ring without a verdict; bytes and readings are close, not exact, where a file is sent in part."""

    blocks: int = 0
    readings: int = 0
    size_bytes: int = 0
    oldest: tuple[int, int] | None = None  # generation and block


@dataclass(slots=True)
class _Ground:
    """One generation in the ring."""

    available: Intervals = field(default_factory=Intervals)
    blocks: Intervals = field(default_factory=Intervals)  # what journals hold
    segments: list[SegmentUnit] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)

    def segment_at(self, block: int) -> SegmentUnit | None:
        at = bisect_right(self.firsts, block) - 1
        return self.segments[at] if at >= 0 and self.segments[at].last >= block else None

    def next_segment_first(self, block: int) -> int | None:
        at = bisect_right(self.firsts, block)
        return self.firsts[at] if at < len(self.firsts) else None


_NOTHING: Final = Intervals()


class Plan:
    """The ring's blocks, minus what is receipted, minus what is busy."""

    def __init__(self) -> None:
        self._view = RingView()
        self._grounds: dict[int, _Ground] = {}
        self._broken: set[SegmentUnit] = set()

    def update(self, view: RingView) -> None:
        """Take what the ring holds now: what was evicted is no longer planned."""
        self._view = view
        self._broken &= set(view.segments)
        grounds: dict[int, _Ground] = {}
        for unit in view.segments:
            if unit not in self._broken:
                ground = grounds.setdefault(unit.generation, _Ground())
                ground.segments.append(unit)
                ground.firsts.append(unit.first)
                ground.available.add(unit.first, unit.last)
        for journal in view.journals:
            ground = grounds.setdefault(journal.generation, _Ground())
            ground.blocks.add(journal.first, journal.last)
            ground.available.add(journal.first, journal.last)
        self._grounds = {generation: grounds[generation] for generation in sorted(grounds)}

    def grew(self, generation: int, first: int, end: int) -> None:
        """Take blocks first..end-1, durable since the last look."""
        if first >= end:
            return
        if generation not in self._grounds:
            self._grounds[generation] = _Ground()
            self._grounds = {g: self._grounds[g] for g in sorted(self._grounds)}
        self._grounds[generation].blocks.add(first, end - 1)
        self._grounds[generation].available.add(first, end - 1)

    def give_up(self, segment: SegmentUnit) -> None:
        """A segment cannot be read: send its blocks, if a journal still holds them."""
        self._broken.add(segment)
        self.update(self._view)

    def oldest(self) -> tuple[int, int] | None:
        """Return generation and first block of the oldest thing in the ring, None if all of it is not known yet."""
        if not self._view.complete:
            return None
        return next(((generation, first) for generation, ground in self._grounds.items() for first, _ in ground.available), None)

    def ranges(self) -> Iterable[tuple[int, int, int]]:
        """Yield (generation, first, last) of everything in the ring, oldest first."""
        for generation, ground in self._grounds.items():
            for first, last in ground.available:
                yield generation, first, last

    def holds(self, generation: int, first: int, last: int) -> bool:
        """Say whether any of these blocks is in the ring."""
        ground = self._grounds.get(generation)
        return ground is not None and bool(ground.available.within(first, last))

    # ---- picking ----

    def live(self, generation: int, first: int, end: int, cursor: Cursor, busy: Mapping[int, Intervals]) -> Pick | None:
        """Return the oldest run of live blocks first..end-1 that is neither receipted nor busy."""
        if first >= end:
            return None
        for a, b in cursor.done(generation).holes(first, end - 1):
            for x, y in busy.get(generation, _NOTHING).holes(a, b):
                return Pick(generation, x, min(y, x + RUN_BLOCKS_MAX - 1), None, offer=False)
        return None

    def backfill(self, edge: tuple[int, int], cursor: Cursor, busy: Mapping[int, Intervals], *, newest_first: bool) -> Pick | None:
        """Return the next piece of the backlog; edge = (generation, first live block): from there on it is the live lane's."""
        for generation in sorted(self._grounds, reverse=newest_first):
            ground = self._grounds[generation]
            top = edge[1] - 1 if generation == edge[0] else None
            hole = _hole(ground, top, cursor.done(generation), busy.get(generation, _NOTHING), newest_first)
            if hole is not None:
                return self._unit(generation, ground, hole, cursor, newest_first)
        return None

    @staticmethod
    def _unit(generation: int, ground: _Ground, hole: tuple[int, int], cursor: Cursor, newest_first: bool) -> Pick:
        done, doubt = cursor.done(generation), cursor.doubt(generation)
        first, last = hole
        segment = ground.segment_at(last if newest_first else first)
        if segment is not None:
            first, last = max(first, segment.first), min(last, segment.last)
            missing = sum(b - a + 1 for a, b in done.holes(segment.first, segment.last))
            few = 2 * missing < segment.last - segment.first + 1 and ground.blocks.covers(first, last)
            if not few:
                return Pick(generation, segment.first, segment.last, segment, offer=bool(doubt.within(segment.first, segment.last)))
        else:
            following = ground.next_segment_first(first)
            if following is not None and following <= last and not newest_first:
                last = following - 1
            if newest_first:
                first = max(first, *(s.last + 1 for s in ground.segments if s.last < last), last - RUN_BLOCKS_MAX + 1)
        first, last, offer = _of_one_mind(first, min(last, first + RUN_BLOCKS_MAX - 1), doubt)
        return Pick(generation, first, last, None, offer)

    def backlog(self, cursor: Cursor) -> Backlog:
        """Add up what has no verdict yet."""
        blocks = readings = size = 0
        oldest: tuple[int, int] | None = None
        counted: dict[int, Intervals] = {}
        units: list[SegmentUnit | JournalUnit] = [*self._view.segments, *self._view.journals]
        for unit in units:
            seen = counted.setdefault(unit.generation, Intervals())
            holes = [h for a, b in cursor.done(unit.generation).holes(unit.first, unit.last) for h in seen.holes(a, b)]
            seen.add(unit.first, unit.last)
            if not holes or unit in self._broken:
                continue
            missing = sum(b - a + 1 for a, b in holes)
            whole = unit.last - unit.first + 1
            blocks += missing
            readings += (unit.end_seq - unit.first_seq) * missing // whole
            size += unit.size * missing // whole
            oldest = min(oldest or (unit.generation, holes[0][0]), (unit.generation, holes[0][0]))
        return Backlog(blocks, readings, size, oldest)


def _hole(ground: _Ground, top: int | None, done: Intervals, busy: Intervals, newest_first: bool) -> tuple[int, int] | None:
    ranges = list(ground.available)
    for a, b in reversed(ranges) if newest_first else ranges:
        last = b if top is None else min(b, top)
        if a > last:
            continue
        holes = done.holes(a, last)
        for x, y in reversed(holes) if newest_first else holes:
            free = busy.holes(x, y)
            if free:
                return free[-1] if newest_first else free[0]
    return None


def _of_one_mind(first: int, last: int, doubt: Intervals) -> tuple[int, int, bool]:
    """Cut a run so that all of it is in doubt, or none."""
    doubtful = doubt.within(first, last)
    if not doubtful:
        return first, last, False
    if doubtful[0][0] == first:
        return first, doubtful[0][1], True
    return first, doubtful[0][0] - 1, False
