"""What is missing, and why: a pure function of the landing's state and published facts. Ledger, console and verify share it.

Readings. Per generation: every seq below the end its newest record states is received, or below `low` (evicted), or in `lost`, or
rolled back (at or above the end a later generation states for it, or in a generation from which the newest does not descend), or
waiting in the gateway's ring. A received reading beats any statement that it is lost. What follows the newest record is "not yet reported".

Days. A reading belongs to the UTC day in which it was committed: the day of the state record it came with (a segment repeats the record
of the moment it was sealed). `Days` takes landing records in any order, keeps a line per generation and day, and tells for
each day what is missing and for which one reason. That the plant was seen at all is gateway.coverage.
"""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from buffer.intervals import Intervals
from buffer.manifest import format_generation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from buffer.intervals import Range
    from gateway.landing import LandingState, Record

RANGES_SHOWN_MAX: Final = 1_000  # of one reason; the rest is counted
DAYS_MAX: Final = 400  # kept per generation
GENERATIONS_MAX: Final = 1_000  # with days of their own: years of restarts
OFF_NS: Final = 30 * 10**9  # between two generations: a block is committed at least every 10 s, so nobody was collecting
_DAY_NS: Final = 86_400 * 10**9
_END: Final = 2**62
WAITING: Final = "waiting"
WORDS: Final = {
    WAITING: "waits on the gateway",
    "evicted": "the gateway's ring was full before it could be sent",
    "storage_fault": "the gateway's disk failed",
    "bit_rot": "rotted on the gateway's disk",
    "seal_fault": "could not be sealed on the gateway",
    "rolled_back": "the gateway's ring was replaced, or restored from an earlier state",
}


@dataclass(frozen=True, slots=True)
class Missing:
    """Readings of one generation that are not here, for one reason."""

    generation: int
    reason: str  # a key of WORDS
    ranges: tuple[Range, ...]
    readings: int


@dataclass(frozen=True, slots=True)
class Account:
    """The account of one stream."""

    stream: str
    reported: int  # readings that state records speak of
    received: int
    missing: tuple[Missing, ...]
    generations: tuple[str, ...]
    reported_until_ns: int  # wall time of the newest record
    findings: tuple[str, ...] = ()  # what became of the ring: replaced, restored

    @property
    def final(self) -> int:
        """Readings that will never come."""
        return sum(one.readings for one in self.missing if one.reason != WAITING)

    @property
    def waiting(self) -> int:
        """Readings that wait on the gateway."""
        return sum(one.readings for one in self.missing if one.reason == WAITING)


def account(stream: str, state: LandingState) -> Account:
    """Return the account of what has landed of a stream."""
    missing: list[Missing] = []
    reported = 0
    generations = sorted(set(state.states) | set(state.seqs))
    line = _line_of_descent(state)
    for generation in generations:
        held = state.seqs.get(generation, Intervals())
        record = state.states.get(generation)
        end = max(record.end if record else 0, held.top, state.stated_end(generation) or 0)
        reported += end
        missing += _reasons(state, generation, held.holes(0, end - 1) if end else [], line)
    received = sum(seqs.count() for seqs in state.seqs.values())
    newest_ns = max((record.wall_ns for record in state.states.values()), default=0)
    names = tuple(format_generation(g) for g in generations)
    return Account(stream, reported, received, tuple(missing), names, newest_ns, tuple(_findings(state, line)))


@dataclass(frozen=True, slots=True)
class _Descent:
    """The newest generation, its ancestors, and the generation before which nothing is known (0: it began on a new disk)."""

    newest: int
    chain: frozenset[int]
    unknown_before: int

    def holds(self, generation: int) -> bool:
        """Say whether a generation is the newest or an ancestor of it, as far as can be known."""
        return generation in self.chain or generation >> 32 < self.unknown_before >> 32


def _line_of_descent(state: LandingState) -> _Descent:
    """The newest is the one last written among those that nobody names as predecessor."""
    named = {s.predecessor[0] for s in state.states.values() if s.predecessor is not None}
    leaves = [s for s in state.states.values() if s.generation not in named] or list(state.states.values())
    at = max(leaves, key=lambda s: s.wall_ns, default=None)
    newest, chain, before = (at.generation if at else 0), set[int](), 0
    while at is not None and at.generation not in chain:
        chain.add(at.generation)
        before = at.predecessor[0] if at.predecessor is not None else 0
        at = state.states.get(before)
    return _Descent(newest, frozenset(chain | {before}), before if before not in chain else 0)


def _findings(state: LandingState, line: _Descent) -> list[str]:
    """Return what generations say of the ring's history: replaced disks, restored snapshots."""
    out = []
    for generation, record in sorted(state.states.items()):
        name, stated = format_generation(generation), state.stated_end(generation)
        known = max(record.end, state.seqs.get(generation, Intervals()).top)
        if stated is not None and stated < known:
            out.append(f"the ring was restored from an earlier state: generation {name} has {known:,} readings, its successor knew {stated:,}")
        if known and not line.holds(generation):  # an opening in which nothing was committed has nothing to lose, and no successor names it
            out.append(f"the ring was replaced, or restored to before generation {name}: {format_generation(line.newest)} does not descend from it")
    return out


def _reasons(state: LandingState, generation: int, holes: Iterable[Range], line: _Descent) -> list[Missing]:
    """Give each hole its reasons, the surest first; what no record explains is waiting."""
    left = Intervals(holes)
    out: list[Missing] = []
    for (of, reason), ranges in sorted(state.lost.items()):
        if of == generation:
            out += _take(left, generation, reason.name.lower(), list(ranges))
    descends = line.holds(generation)
    record = state.states.get(line.newest if descends else generation)
    low = record.low if record is not None else (0, 0)
    below = _END if generation < low[0] else low[1] if generation == low[0] else 0
    if below:
        out += _take(left, generation, "evicted", [(0, below - 1)])
    stated = state.stated_end(generation)
    if not descends or stated is not None:
        out += _take(left, generation, "rolled_back", [(stated or 0 if descends else 0, _END)])
    out += _take(left, generation, WAITING, [(0, _END)])
    return out


def _take(left: Intervals, generation: int, reason: str, ranges: list[Range]) -> list[Missing]:
    found = [hit for first, last in ranges for hit in left.within(first, last)]
    for first, last in found:
        left.remove(first, last)
    if not found:
        return []
    return [Missing(generation, reason, tuple(found[:RANGES_SHOWN_MAX]), sum(b - a + 1 for a, b in found))]


def words(reason: str) -> str:
    """Return a reason in words for people."""
    return WORDS.get(reason, reason.replace("_", " "))


def ledger_lines(one: Account) -> list[str]:
    """Return the account as lines for people."""
    until = f"{dt.datetime.fromtimestamp(one.reported_until_ns // 10**9, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
    lines = [f"{one.stream}: {one.received:,} of {one.reported:,} reported readings received; reported until {until}"]
    for m in one.missing:
        ranges = ", ".join(f"{a}-{b}" for a, b in m.ranges[:5]) + (" ..." if len(m.ranges) > 5 else "")  # noqa: PLR2004 -- one line
        lines.append(f"  {m.readings:>12,}  {words(m.reason)}  (generation {format_generation(m.generation)}: {ranges})")
    if not one.missing:
        lines.append("  nothing is missing")
    return lines + [f"  note: {finding}" for finding in one.findings]


# ---- by day ----


@dataclass(frozen=True, slots=True)
class Day:
    """One UTC day of a stream. missing: reason -> readings. off: when nobody collected, wall ns."""

    day: int  # since 1970
    readings: int  # committed, as far as is known here
    missing: Mapping[str, int]
    off: tuple[Range, ...]
    reported: bool  # the newest state record is later than this day's end

    @property
    def date(self) -> str:
        """As 2026-11-26."""
        return (dt.date(1970, 1, 1) + dt.timedelta(days=self.day)).isoformat()

    @property
    def complete(self) -> bool:
        """Everything of this day that was committed is here, and somebody collected all day."""
        return self.reported and not self.missing and not self.off


@dataclass(slots=True)
class _Line:
    """One generation: when it was seen, and where each of its days begins."""

    first_ns: int
    last_ns: int
    days: dict[int, list[int]] = field(default_factory=dict)  # day -> [first seq, end seq]


class Days:
    """Which readings belong to which day, from landing records in any order. Bounded by DAYS_MAX and GENERATIONS_MAX."""

    def __init__(self) -> None:
        self._lines: dict[int, _Line] = {}

    def take(self, record: Record) -> None:
        """Note one landing record."""
        at = record.state.wall_ns
        line = self._lines.get(record.generation)
        if line is None:
            line = self._lines[record.generation] = _Line(at, at)
            if len(self._lines) > GENERATIONS_MAX:
                del self._lines[min(self._lines)]
        if record.state.generation == record.generation:  # a segment may repeat the record of a later generation
            line.first_ns, line.last_ns = min(line.first_ns, at), max(line.last_ns, at)
        else:
            at = min(at, line.last_ns)
        if not record.count:
            return
        span = line.days.setdefault(at // _DAY_NS, [record.first_seq, record.first_seq + record.count])
        span[0], span[1] = min(span[0], record.first_seq), max(span[1], record.first_seq + record.count)
        if len(line.days) > DAYS_MAX:
            del line.days[min(line.days)]

    def time_of(self, generation: int, seq: int) -> int | None:
        """Return the first ns of the day in which a reading was committed, None if that is not known."""
        line = self._lines.get(generation)
        days = [day for day, (_, end) in line.days.items() if end > seq] if line else []
        return min(days) * _DAY_NS if days else None

    def days(self, one: Account, first: int, last: int) -> list[Day]:
        """Return the days first..last (since 1970), oldest first."""
        missing: dict[int, dict[str, int]] = {}
        for m in one.missing:
            line = self._lines.get(m.generation)
            if line is None:
                continue
            for a, b in m.ranges:
                for day, readings in _spread(line, a, b):
                    by_reason = missing.setdefault(day, {})
                    by_reason[m.reason] = by_reason.get(m.reason, 0) + readings
        until = one.reported_until_ns
        off = self._off()
        out = []
        for day in range(first, last + 1):
            begin, end = day * _DAY_NS, (day + 1) * _DAY_NS
            spans = [line.days[day] for line in self._lines.values() if day in line.days]
            here = tuple((max(a, begin), min(b, end)) for a, b in off if a < end and b > begin)
            out.append(Day(day, sum(b - a for a, b in spans), missing.get(day, {}), here, until >= end))
        return out

    def _off(self) -> list[Range]:
        """Return when no generation was collecting, between the first and the last one seen."""
        seen = sorted((line.first_ns, line.last_ns) for line in self._lines.values())
        out = []
        for (_, before), (after, _) in itertools.pairwise(seen):
            if after - before > OFF_NS:
                out.append((before, after))
        return out

    @property
    def since_ns(self) -> int | None:
        """When the first commit seen was made."""
        return min((line.first_ns for line in self._lines.values()), default=None)


def _spread(line: _Line, first: int, last: int) -> list[tuple[int, int]]:
    """Return (day, readings) of a hole: whatever follows the last reading known of a day belongs to that day or the next that is known."""
    out = []
    known = sorted((span[0], day) for day, span in line.days.items())
    for place, (_, day) in enumerate(known):
        begin = 0 if place == 0 else known[place][0]
        end = known[place + 1][0] if place + 1 < len(known) else _END
        readings = min(last, end - 1) - max(first, begin) + 1
        if readings > 0:
            out.append((day, readings))
    return out
