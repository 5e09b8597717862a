"""What the server's history owes for one gap: which tags, between which times, how far it is paid. Pure.

    progress (20 bytes) = places of the first and last debt of the chunk, ns up to which the chunk is complete, debts so far that the server
                          has no history of over the whole time; big-endian. Debts are asked in order of their places: tag numbers, or
                          the order in which a person named them (gateway.collect.opcua.byhand)

A server is believed as little as the standard allows. Values outside of what is owed are dropped (bounding values), as are those that say
that there is no bound, and equal values of one time. A server that gives as many values as were asked for has more to give, whatever it
says. Where a node has more to come, the chunk is complete up to the first such end, and asked again from there. A node whose values do not
come in order of time, or that has more than one answer holds of one instant, cannot be paged: it counts as not served. So does one that has
several values of the very time of our last or first reading: which of them came live nobody can tell, and none of them is taken.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from buffer.types import concat
from gateway.collect.clock import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from buffer.types import Columns
    from gateway.collect.opcua.answers import History
    from gateway.collect.opcua.decode import Items
    from gateway.collect.opcua.items import Wish
    from gateway.collect.source import Gap

SPREAD: Final = 2  # what a request asks for is at most so many times what is owed
REACH_NS: Final = 10 * 10**9  # before our last reading: a value there shows that the history reaches back
_PROGRESS: Final = struct.Struct(">IIqI")
PROGRESS_BYTES: Final = _PROGRESS.size
_BAD: Final = 31  # bit of a StatusCode that means Bad
_NOTHING_THERE: Final = frozenset({0x809B_0000, 0x00A5_0000})  # BadNoData, GoodNoData: asked and answered
_NO_BOUND: Final = (0x80D7_0000, 0x80D8_0000)  # BadBoundNotFound, BadBoundNotSupported: stands for a value that is not there


@dataclass(frozen=True, slots=True)
class Debt:
    """What one tag is owed: readings with after_ns < ts < before_ns. rank: its place where debts are not in order of tag numbers."""

    number: int
    node: str
    after_ns: int
    before_ns: int
    rank: int | None = None
    wish: Wish | None = None  # of events: how they are asked for
    look_ns: int | None = None  # of events: from here on something shows that the history reaches back

    @property
    def place(self) -> int:
        """Where it stands among all debts of a gap."""
        return self.number if self.rank is None else self.rank

    @property
    def shown_ns(self) -> int:
        """From when on the history is looked at to see whether it reaches back."""
        return self.after_ns - REACH_NS if self.look_ns is None else self.look_ns

    @property
    def begin_ns(self) -> int:
        """From when on it is asked."""
        return self.after_ns - REACH_NS if self.look_ns is None else self.after_ns

    @property
    def reached_ns(self) -> int:
        """What is as old as this shows that the history reaches back: the first event that may be owed may be the last one that came."""
        return self.after_ns + (self.wish is not None)


@dataclass(slots=True)
class Chunk:
    """Debts that are asked together. cursor_ns: complete up to here, NO_TIME: not begun. reached: places where history begins early enough."""

    debts: list[Debt]
    cursor_ns: int = NO_TIME
    reached: set[int] = field(default_factory=set)
    unserved: set[int] = field(default_factory=set)

    def unreached(self) -> set[int]:
        """Return the places of debts that nothing shows how far back the history reaches for; what shows it for one of a node shows it for all."""
        shown = {debt.node for debt in self.debts if debt.place in self.reached}
        return {debt.place for debt in self.debts if debt.node not in shown}

    def give_up(self) -> None:
        """No tag of it can be served."""
        self.unserved = {debt.place for debt in self.debts}

    @property
    def events(self) -> bool:
        """Whether it is about events: those of a gap are one chunk, for what is settled is one time."""
        return self.debts[0].wish is not None

    def halves(self) -> list[Chunk]:
        """Return two chunks to ask instead; none where one tag is left or some of it is committed: then it is given up."""
        if len(self.debts) == 1 or self.cursor_ns != NO_TIME or self.events:
            self.give_up()
            return []
        middle = len(self.debts) // 2
        return [Chunk(self.debts[:middle]), Chunk(self.debts[middle:])]


def debts_of(
    gap: Gap, nodes: Mapping[int, str], window_ns: int, only: Collection[int] | None = None, span: tuple[int, int] | None = None
) -> tuple[list[Debt], str]:
    """Return what is owed in a gap, by tag number, and why that is not all, "" if it is.

    only: tags it is about, None: all. span: when a changed value can have come into being, None: not known. The history of a tag whose
    source's time lies outside of it, or went back, cannot be placed.
    """
    debts, clipped, astray = [], False, 0
    for number, before_ns in sorted(gap.first_live_ns.items()):
        last = gap.last.get(number)
        if last is None or number not in nodes or (only is not None and number not in only) or before_ns == last.ts_source_ns:
            continue
        if before_ns < last.ts_source_ns or (span and not span[0] <= before_ns <= span[1]):
            astray += 1
            continue
        after_ns = max(last.ts_source_ns, before_ns - window_ns)
        if before_ns - after_ns > 1:
            clipped |= after_ns > last.ts_source_ns
            debts.append(Debt(number, nodes[number], after_ns, before_ns))
    wrong = f"the source's clock is wrong for {astray} tags: their history cannot be placed" if astray else ""
    return debts, "older than history_fill" if clipped else wrong


def pack_progress(chunk: Chunk, unserved: int) -> bytes:
    """Return what a fill block says of how far the fill has come."""
    return _PROGRESS.pack(chunk.debts[0].place, chunk.debts[-1].place, chunk.cursor_ns, unserved)


def in_slices(debts: Sequence[Debt], size: int, span_ns: int = 2**63) -> list[list[Debt]]:
    """Return debts in parts of at most `size`, each within span_ns; those of events as one, the last.

    Within span_ns: one tag whose source lives in 1970 has no other asked from there on.
    """
    out: list[list[Debt]] = []
    since_ns = until_ns = 0
    for debt in [debt for debt in debts if debt.wish is None]:
        since_ns, until_ns = min(since_ns, debt.after_ns), max(until_ns, debt.before_ns)
        if not out or len(out[-1]) == size or until_ns - since_ns > span_ns:
            out.append([])
            since_ns, until_ns = debt.after_ns, debt.before_ns
        out[-1].append(debt)
    events = [debt for debt in debts if debt.wish is not None]
    return [*out, events] if events else out


def remaining(
    debts: Sequence[Debt], progress: bytes, size: int, parts: Callable[[Sequence[Debt], int], list[list[Debt]]] = in_slices
) -> tuple[list[Chunk], int]:
    """Return the chunks still to ask, and how many debts were not served so far."""
    first, last, cursor, unserved = _PROGRESS.unpack(progress) if len(progress) == PROGRESS_BYTES else (0, 0, NO_TIME, 0)
    begun = [debt for debt in debts if first <= debt.place <= last]  # whole: what it says of itself later covers those that are paid, too
    rest = [debt for debt in debts if debt.place > last]
    chunks = [Chunk(begun, cursor)] if any(debt.before_ns > cursor for debt in begun) else []
    return chunks + [Chunk(part) for part in parts(rest, size)], unserved


def alike(debts: Sequence[Debt], size: int) -> list[list[Debt]]:
    """Return debts in order of time in parts of much the same time, at most `size` each: else most of an answer would be known already."""
    out: list[list[Debt]] = []
    owed_ns = since_ns = until_ns = 0
    for debt in debts:
        own_ns = debt.before_ns - debt.after_ns + REACH_NS
        count = len(out[-1]) + 1 if out else 0
        together_ns = max(until_ns, debt.before_ns) - min(since_ns, debt.after_ns) + REACH_NS
        if not out or count > size or count * together_ns > SPREAD * (owed_ns + own_ns):
            out.append([])
            owed_ns, since_ns, until_ns = 0, debt.after_ns, debt.before_ns
        out[-1].append(debt)
        owed_ns, since_ns, until_ns = owed_ns + own_ns, min(since_ns, debt.after_ns), max(until_ns, debt.before_ns)
    return out


@dataclass(frozen=True, slots=True)
class Harvest:
    """What one answer gives. cursor_ns: everything before it is complete; None: the chunk is."""

    columns: Columns
    cursor_ns: int | None


def every(_debt: Debt, _items: Items, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return all rows: every value between is owed."""
    return rows


def harvest(
    convert: Callable[[int, Items, NDArray[np.int64]], Columns],
    chunk: Chunk,
    results: Sequence[History],
    cursor_ns: int,
    most: int,
    choose: Callable[[Debt, Items, NDArray[np.int64]], NDArray[np.int64]] = every,
) -> Harvest:
    """Take from an answer to a request from cursor_ns on what is owed; note in the chunk who was served.

    convert: TagStates.history. most: values per node that were asked for. choose: of what lies between, what is owed.
    """
    ends: list[int] = []
    for debt, one in zip(chunk.debts, results, strict=True):
        _judge(chunk, debt, one, cursor_ns, most, ends)
    stop_ns = min(ends, default=None)
    parts = []
    for debt, one in zip(chunk.debts, results, strict=True):
        ts = one.items.source_ns
        owed = (ts > debt.after_ns) & (ts < debt.before_ns) & (ts >= cursor_ns) & ~np.isin(one.items.quality, _NO_BOUND)
        if stop_ns is not None:
            owed &= ts < stop_ns
        which = choose(debt, one.items, np.flatnonzero(owed))
        which = which[np.argsort(ts[which], kind="stable")]
        parts.append(convert(debt.number, one.items, which[_first_of_equal(one.items, which)]))
    return Harvest(concat([part for part in parts if len(part)]), stop_ns)


def _judge(chunk: Chunk, debt: Debt, one: History, cursor_ns: int, most: int, ends: list[int]) -> None:
    """Note whether a node was served and reaches back; add to `ends` where its values end if there are more."""
    ts = one.items.source_ns
    if one.status >> _BAD and one.status not in _NOTHING_THERE:
        chunk.unserved.add(debt.place)
    there = (ts != NO_TIME) & ~np.isin(one.items.quality, _NO_BOUND)
    if np.any((ts <= debt.reached_ns) & there):
        chunk.reached.add(debt.place)
    if debt.wish is None and any(_differ(one.items, np.flatnonzero((ts == edge_ns) & there)) for edge_ns in (debt.after_ns, debt.before_ns)):
        chunk.unserved.add(debt.place)
    if not one.point and len(ts) < most:
        return
    inside = ts[ts >= cursor_ns]
    if not len(inside) or np.any(np.diff(ts) < 0):
        chunk.unserved.add(debt.place)
    elif inside.max() > cursor_ns:
        ends.append(int(inside.max()))
    else:
        chunk.unserved.add(debt.place)
        ends.append(cursor_ns + 1)


def _differ(items: Items, which: NDArray[np.int64]) -> bool:
    return len(which) > 1 and len(_first_of_equal(items, which)) > 1


def _first_of_equal(items: Items, which: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places in `which` without those that repeat an earlier one: same time, value and quality."""
    seen: set[tuple[int, int, int | str, int]] = set()
    keep = []
    for place, row in enumerate(which):
        value = items.value(int(row))
        key = (int(items.source_ns[row]), int(items.kind[row]), value if isinstance(value, str) else int(items.values[row]), int(items.quality[row]))
        if key not in seen:
            seen.add(key)
            keep.append(place)
    return np.asarray(keep, np.int64)
