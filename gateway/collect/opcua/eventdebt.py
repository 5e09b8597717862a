"""Which events a server's history owes for one gap, and which of those it shows are in the ring already. Pure.

    progress (33 bytes) of a gap whose events are asked for = 1 byte mark | ns up to which events were settled when the gap opened | events
                          so far that could not be told apart | progress as of any fill (gateway.collect.opcua.debt); big-endian

What is owed of a notifier lies between two edges, both included:

* below, the last event that came live before the gap, or what an earlier fill has settled, if that is later: a notifier may be silent for
  weeks, and what history gave meanwhile is no newest reading of the ring. "Settled up to" goes with the source's position;
* above, the first event that came live after the gap; where none has come yet, a time at which the subscription lived again and EDGE_NS more.
  History is asked only after the server, LATE_NS after that time, had nothing more for us: what comes live of that time has come.

An event is the same where its EventId is. Known are the ids of what came live since this process began (Seen), and that of the last event
before the gap. After a kill those at the very time of an edge may be any of several: they are left out, counted, and the gap says so. Of
the others it is believed then that they came in the order of their times.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from buffer.types import Flag
from gateway.collect.clock import NO_TIME
from gateway.collect.opcua.debt import PROGRESS_BYTES, Debt
from gateway.collect.opcua.events import event_id, is_condition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from buffer.types import Columns
    from gateway.collect.opcua.decode import Items
    from gateway.collect.opcua.items import Wish
    from gateway.collect.source import Gap, Reading

EDGE_NS: Final = 5 * 10**9  # beyond the moment at which the subscription lived: clocks, and how late a server writes its history
LATE_NS: Final = 3 * 10**9  # an event is told at most so long after its Time: some servers count whole seconds
SEEN_MAX: Final = 20_000  # ids kept per source, about 4 MB
_RANK: Final = 1 << 31  # events are asked after all values: tag numbers are below it
_HEAD: Final = struct.Struct(">BqI")
_MARK: Final = 0xE5


@dataclass(frozen=True, slots=True)
class Head:
    """What a gap keeps of its events. settled_ns: when it opened, NO_TIME: nothing was; doubtful: events left out so far."""

    settled_ns: int
    doubtful: int = 0

    def pack(self, progress: bytes) -> bytes:
        """Return what is committed with the gap."""
        return _HEAD.pack(_MARK, self.settled_ns, self.doubtful) + progress


def first_progress(settled_ns: int) -> bytes:
    """Return what is committed with the opening of a gap whose events will be asked for."""
    return Head(settled_ns).pack(bytes(PROGRESS_BYTES))


def split_progress(progress: bytes) -> tuple[Head | None, bytes]:
    """Return what a gap keeps of its events, None where they are not asked for, and how far the fill has come."""
    if len(progress) != _HEAD.size + PROGRESS_BYTES or progress[0] != _MARK:
        return None, progress
    _, settled_ns, doubtful = _HEAD.unpack_from(progress)
    rest = progress[_HEAD.size :]
    return Head(settled_ns, doubtful), rest if any(rest) else b""


class Seen:
    """EventIds of what came live, by tag, the newest SEEN_MAX; and from when on all of them are known."""

    def __init__(self, last: Mapping[int, Reading]) -> None:
        """last: newest reading of each event tag when this process began."""
        self._ids: dict[tuple[int, str], int] = {}
        self._unknown_ns = {number: _moment(reading) for number, reading in last.items()}

    def took(self, columns: Columns, rows: NDArray[np.int64]) -> None:
        """Note events that came live."""
        times = columns.ts_ns if columns.ts_source_ns is None else columns.ts_source_ns
        for row in rows.tolist():
            self.note(int(columns.tag[row]), event_id(columns.texts[int(columns.values[row])]), int(times[row]))

    def note(self, number: int, one: str, ts_ns: int) -> None:
        """Note one event that is in the ring, or on its way there."""
        self._ids[number, one] = ts_ns
        while len(self._ids) > SEEN_MAX:
            oldest = next(iter(self._ids))
            self._unknown_ns[oldest[0]] = max(self._unknown_ns.get(oldest[0], NO_TIME), self._ids.pop(oldest))

    def has(self, number: int, one: str) -> bool:
        """Say whether an event is known to have come live."""
        return bool(one) and (number, one) in self._ids

    def all_of(self, number: int, ts_ns: int) -> bool:
        """Say whether every event of that time that came live is known."""
        return ts_ns > self._unknown_ns.get(number, NO_TIME)


def _moment(reading: Reading) -> int:
    """Return up to when events are known by this newest reading. An older release kept a condition read from nodes as one, as of its ts."""
    return reading.ts_ns if reading.flags & Flag.INITIAL else reading.ts_source_ns


class Times(NamedTuple):
    """By the server's clock, ns. level: all that came until then was taken before the gap. until: see the module."""

    level_ns: int
    until_ns: int
    window_ns: int


def event_debts(gap: Gap, head: Head, wishes: Mapping[int, Wish], times: Times) -> tuple[list[Debt], bool]:
    """Return what is owed, by tag number, and whether the window leaves some of it out. wishes: how the events of each tag are asked for."""
    debts, clipped, settled = [], False, head.settled_ns
    for number, wish in sorted(wishes.items()):
        last, first = gap.last.get(number), gap.first_live_ns.get(number)
        lower = NO_TIME if last is None else _moment(last)
        upper = times.until_ns if first is None else first
        if max(lower, settled) == NO_TIME:
            continue
        oldest = upper - times.window_ns
        clipped |= max(lower - 1, settled, times.level_ns - EDGE_NS) < oldest
        after = max(lower - 1, settled, oldest)
        if upper > after:  # a newer gap that owes it all leaves only the time of the last event, or less
            look_ns = after - times.window_ns if last is None else lower
            debts.append(Debt(number, wish.node, after, upper + 1, _RANK | number, wish, look_ns))
    return debts, clipped


@dataclass(slots=True)
class Owed:
    """Chooses, of a gap's events, those that are not in the ring. doubtful: how many it left out that may not be."""

    gap: Gap
    seen: Seen
    doubtful: int = 0

    def choose(self, debt: Debt, items: Items, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of these rows, all between the edges, that are owed."""
        number, last = debt.number, self.gap.last.get(debt.number)
        before = event_id(str(last.value)) if last is not None else ""
        edges = {None if last is None else _moment(last): bool(before), self.gap.first_live_ns.get(number): False}
        only = debt.wish is not None and debt.wish.conditions  # some servers ignore the where clause in history, or refuse it
        kept, unknown = [], Counter[int]()
        for row in rows.tolist():
            text, ts = items.texts[int(items.values[row])], int(items.source_ns[row])
            one = event_id(text)
            if (one and one == before) or self.seen.has(number, one) or (only and not is_condition(text)):
                continue
            if ts in edges and not (one and self.seen.all_of(number, ts)):
                unknown[ts] += 1
                continue
            kept.append(row)
            if ts in edges:  # the edge of another gap, too
                self.seen.note(number, one, ts)
        self.doubtful += sum(count - (not edges[ts]) for ts, count in unknown.items())  # one of them is the edge itself where its id is not known
        return np.asarray(kept, np.int64)
