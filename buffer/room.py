"""What a ring holds and lost, and what goes when it is full: carries out what buffer.retention decides. Commits nothing itself.

Nothing is removed but what a committed record says is gone (`drop_below`), and what stands elsewhere (`give_back_spare`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buffer import layout
from buffer.layout import SegmentName
from buffer.recovery import JournalFacts, below
from buffer.retention import low_after, spare_journals, units
from buffer.state import account
from buffer.terms import Info

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buffer.holdings import Holdings
    from buffer.journals import Journals
    from buffer.last import LastState
    from buffer.manifest import Loss
    from buffer.state import Place
    from buffer.terms import Counters


class Room:
    """low, lost: for the next record. committed: generation, end seq, next block, of the newest commit.

    covered: generation, block; everything before stands in a `last` file.
    """

    def __init__(self, journals: Journals, holdings: Holdings, last: LastState, max_bytes: int) -> None:
        self._journals = journals
        self._holdings = holdings
        self._last = last
        self._max_bytes = max_bytes
        self.low: Place = (0, 0)
        self.lost: tuple[Loss, ...] = ()
        self.committed: tuple[int, int, int] | None = None
        self.covered: tuple[int, int] = (0, 0)
        self.evicted = 0

    def used_bytes(self) -> int:
        """Return what everything under the ring's directory takes."""
        return self._journals.usage_bytes() + self._holdings.used_bytes

    def over_bytes(self) -> int:
        """Return how much too large the ring is; negative: what it may still take."""
        return self.used_bytes() - self._max_bytes

    def info(self, c: Counters, elapsed_ns: int) -> Info:
        """Return what the ring is like, which has been open for so long."""
        segments = self._holdings.segments
        journals = [*self._journals.closed, *([self._journals.active.facts] if self._journals.active else [])]
        per_reading = c.sealed_bytes / c.sealed_readings if c.sealed_readings else c.payload_bytes / max(1, c.readings)
        growth = c.readings / elapsed_ns * per_reading  # bytes per ns
        return Info(
            readings=sum(s.last - s.first + 1 for s in segments) + sum(run.readings for j in journals for run in j.runs),
            used_bytes=self.used_bytes(),
            max_bytes=self._max_bytes,
            segments=len(segments),
            journals=len(journals),
            horizon_ns=int(self._max_bytes / growth) if growth else 0,
            written_bytes_per_day=int((c.bytes_written + c.sealed_bytes) / elapsed_ns * 86_400e9),
        )

    def lose(self, losses: Iterable[Loss]) -> None:
        """Name losses in the next record."""
        self.low, self.lost = account([*self.lost, *losses], self.low)

    def publish_last(self) -> int:
        """Write `last` as of the newest commit; return its size. Raise StorageFault."""
        if self.committed is None:
            return 0
        generation, seq, block = self.committed
        self._last.ends = {g: end for g, end in self._last.ends.items() if g >= self.low[0]}
        size = self._holdings.publish_last(self._last, generation, seq, block)
        self.covered = max(self.covered, (generation, block))
        return size

    def give_back_spare(self, monotonic_ns: int, wanted_bytes: int) -> None:
        """Give back journals whose readings stand in segments: those too old, too many, or worth wanted_bytes.

        Where space is wanted the pool takes one of them (the next journal needs no new zeros) and the others go: what waits in the pool
        frees nothing, and history was evicted instead.
        """
        holder = self._journals.record_holder()
        scarce = wanted_bytes > 0
        kept = 1 if scarce and not self._journals.free else 0
        for journal in spare_journals(self._journals.closed, self.covered, monotonic_ns, wanted_bytes, pooled=kept):
            if journal is holder:
                continue
            self._journals.give_back(journal, pool=not scarce or not self._journals.free)

    def shrink_pool(self) -> None:
        """Remove waiting journals while the ring is too large."""
        while self.over_bytes() > 0 and self._journals.shrink_pool():
            pass

    def raise_low(self, wanted_bytes: int, end: Place) -> bool:
        """Move `low` over the oldest units that make up these bytes; False where nothing is left to evict. end: of all readings."""
        active = self._journals.active
        rest = (end[0], active.facts.runs[0].first_seq) if active is not None and active.facts.readings else end
        low = low_after(units(self._holdings.segments, self._journals.closed), self._size_of, wanted_bytes, rest)
        if low is None:
            return False
        self.low, self.lost = account(self.lost, low)
        return True

    def _size_of(self, unit: SegmentName | JournalFacts) -> int:
        return unit.size_bytes if isinstance(unit, JournalFacts) else self._holdings.segment_bytes(unit)

    def drop_below(self, low: Place) -> int:
        """Remove what a committed record says is gone; return how many units that were. Raise StorageFault."""
        gone, holder = 0, self._journals.record_holder()
        for unit in list(below(low, self._holdings.segments, self._journals.closed)):
            if isinstance(unit, SegmentName):
                self._holdings.drop_segment(unit)
            elif unit is not holder and self._is_covered(unit):
                self._journals.give_back(unit, pool=self.over_bytes() <= 0)
            else:
                continue
            gone += 1
        self.evicted += gone
        if gone:
            self._drop_tables(low)
        return gone

    def _is_covered(self, journal: JournalFacts) -> bool:
        """Have what a journal says of positions and gaps in `last`, which must outlive it."""
        place = (journal.name.generation, journal.last_block)
        if place >= self.covered:
            self.publish_last()
        return place < self.covered

    def _drop_tables(self, low: Place) -> None:
        """Remove tag tables that nothing in the ring needs: no file that is still there, below `low` or not; the newest is always needed."""
        newest = max(self._last.tables.values(), default=(0, 0))
        there = [(s.generation, s.first) for s in self._holdings.segments[:1]]
        there += [(j.name.generation, j.name.first_seq) for j in self._journals.closed]
        gone = [digest for digest, place in self._last.tables.items() if place < min(low, newest, *there)]
        if gone:
            self._holdings.settle()  # else a power cut brings back readings whose table it does not bring back
        for digest in gone:
            self._holdings.forget(layout.object_path(digest))
            del self._last.tables[digest]
