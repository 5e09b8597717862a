"""What is missing, and why: a pure function of the landing's state and published facts. Ledger, console and verify share it.

Per generation: every seq below the end its newest record states is received, or below `low` (evicted), or in `lost`, or rolled back
(at or above the end a later generation states for it), or waiting in the gateway's ring. A received reading beats any statement
that it is lost. What follows the newest record is "not yet reported".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from buffer.intervals import Intervals
from buffer.manifest import format_generation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buffer.intervals import Range
    from gateway.landing import LandingState

RANGES_SHOWN_MAX = 1_000  # of one reason; the rest is counted


@dataclass(frozen=True, slots=True)
class Missing:
    """Readings of one generation that are not here, for one reason."""

    generation: int
    reason: str  # evicted, storage_fault, bit_rot, seal_fault, rolled_back, waiting
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

    @property
    def final(self) -> int:
        """Readings that will never come."""
        return sum(one.readings for one in self.missing if one.reason != "waiting")


def account(stream: str, state: LandingState) -> Account:
    """Return the account of what has landed of a stream."""
    missing: list[Missing] = []
    reported = 0
    newest_ns = 0
    low = max((record.low for record in state.states.values()), default=(0, 0))
    generations = sorted(set(state.states) | set(state.seqs))
    for generation in generations:
        held = state.seqs.get(generation, Intervals())
        record = state.states.get(generation)
        stated = state.stated_end(generation)
        end = max(record.end if record else 0, held.top, stated or 0)
        reported += end
        newest_ns = max(newest_ns, record.wall_ns if record else 0)
        missing += _reasons(state, generation, held.holes(0, end - 1) if end else [], low, stated, newest=generation == generations[-1])
    received = sum(seqs.count() for seqs in state.seqs.values())
    return Account(stream, reported, received, tuple(missing), tuple(format_generation(g) for g in generations), newest_ns)


def _reasons(
    state: LandingState, generation: int, holes: Iterable[Range], low: tuple[int, int], stated_end: int | None, *, newest: bool
) -> list[Missing]:
    """Give each hole its reasons, the surest first; what no record explains is waiting."""
    left = Intervals(holes)
    out: list[Missing] = []
    for (of, reason), ranges in sorted(state.lost.items()):
        if of == generation:
            out += _take(left, generation, reason.name.lower(), list(ranges))
    below = 2**62 if generation < low[0] else low[1] if generation == low[0] else 0
    if below:
        out += _take(left, generation, "evicted", [(0, below - 1)])
    if stated_end is not None and not newest:
        out += _take(left, generation, "rolled_back", [(stated_end, 2**62)])
    out += _take(left, generation, "waiting", [(0, 2**62)])
    return out


def _take(left: Intervals, generation: int, reason: str, ranges: list[Range]) -> list[Missing]:
    found = [hit for first, last in ranges for hit in left.within(first, last)]
    for first, last in found:
        left.remove(first, last)
    if not found:
        return []
    return [Missing(generation, reason, tuple(found[:RANGES_SHOWN_MAX]), sum(b - a + 1 for a, b in found))]
