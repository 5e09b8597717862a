"""Decoded items -> readings of tags: scale, bad raw values, clock, first values, life signs, markers. Pure; arrays over all tags of a source.

The client handle of a monitored item is the number of its tag, which lasts as long as the stream: a subscription that outlived a
restart still means the same tags.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from buffer.types import BAD_NO_DATA, Columns, Flag, Kind
from gateway.collect.clock import NO_TIME, Stamped, stamp
from gateway.collect.opcua.arrays import pick
from gateway.collect.opcua.events import is_event

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from gateway.collect.opcua.decode import Items
    from gateway.collect.source import Reading
    from gateway.settings import Clock, TagRow

TYPES_NOTED_MAX: Final = 20  # tags named in one notice about changed types
_NUMERIC: Final = (Kind.DOUBLE, Kind.INT64, Kind.UINT64, Kind.BOOL)


@dataclass(frozen=True, slots=True)
class Taken:
    """Readings of one message. retyped: tag number -> kinds before and after. dropped: first values that were committed already."""

    columns: Columns
    stamped: Stamped
    retyped: Mapping[int, tuple[Kind, Kind]] = field(default_factory=dict)
    dropped: int = 0


class TagStates:
    """The newest reading of every tag of one source, and what is expected of it next. Row = place in the sorted tag numbers."""

    def __init__(self, tags: Sequence[TagRow], last: Mapping[int, Reading]) -> None:
        """tags: with numbers. last: what the ring knows (gateway.collect.source.Known)."""
        self.tags = tuple(sorted(tags, key=lambda tag: tag.number))
        n = len(self.tags)
        self.numbers = np.fromiter((tag.number for tag in self.tags), np.uint32, n)
        self.events = np.fromiter((is_event(tag) for tag in self.tags), np.bool_, n)  # each stands for itself: none is a value now
        self.heartbeat_ns = np.fromiter((tag.heartbeat_ns for tag in self.tags), np.int64, n)
        self.beats = bool(self.heartbeat_ns.any())
        self._scale = np.fromiter((tag.scale for tag in self.tags), np.float64, n)
        self._offset = np.fromiter((tag.offset for tag in self.tags), np.float64, n)
        self._scaled = (self._scale != 1.0) | (self._offset != 0.0)
        self._scales = bool(self._scaled.any())
        self._unsigned = np.fromiter((tag.unsigned for tag in self.tags), np.bool_, n)
        self._unsigns = bool(self._unsigned.any())
        self._bad_raw = {row: {_raw(text) for text in tag.bad_raw} for row, tag in enumerate(self.tags) if tag.bad_raw}
        self.has = np.zeros(n, np.bool_)
        self.marked = np.zeros(n, np.bool_)  # a marker stands in the plot where the value should be
        self._kind = np.full(n, Kind.NULL, np.uint8)
        self._value = np.zeros(n, np.uint64)
        self._text: dict[int, str] = {}
        self._quality = np.zeros(n, np.uint32)
        self._source = np.zeros(n, np.int64)
        self.written_ns = np.zeros(n, np.int64)  # gateway time of the newest reading, repeated ones included
        self._awaited = ~self.events  # the next value may be one we have
        self._initial = np.zeros(n, np.bool_)  # the next value is the first of a new item
        self.resent = False  # after a cut any message may bring the newest reading again (node-opcua does so when a session is activated)
        for row, tag in enumerate(self.tags):
            if tag.number in last:
                self._remember(row, last[tag.number])

    def _remember(self, row: int, reading: Reading) -> None:
        self.has[row], self.marked[row] = True, bool(reading.flags & Flag.MARKER)
        self._kind[row], self._quality[row], self._source[row] = reading.kind, reading.quality, reading.ts_source_ns
        self.written_ns[row] = reading.ts_ns
        if isinstance(reading.value, str):
            self._text[row] = reading.value
        else:
            self._value[row] = reading.value

    @property
    def newest_ns(self) -> int:
        """Time of the newest reading, 0 if there is none."""
        return int(self.written_ns.max(initial=0))

    def await_first(self, numbers: Sequence[int]) -> None:
        """New items were made: their next value is a first value."""
        rows = self.rows(np.asarray(numbers, np.uint32))[0]
        rows = rows[~self.events[rows]]
        self._awaited[rows] = self._initial[rows] = True

    def await_same(self, numbers: Sequence[int]) -> None:
        """Values were read outside the subscription: the next notification may bring the same."""
        self._awaited[self.rows(np.asarray(numbers, np.uint32))[0]] = True

    def rows(self, numbers: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the rows of tag numbers (only of those we have) and which we have."""
        if not len(self.numbers):
            return np.empty(0, np.int64), np.zeros(len(numbers), np.bool_)
        found = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        ours = self.numbers[found] == numbers
        return found[ours].astype(np.int64), ours

    def take(self, items: Items, now_ns: int, since_ns: int, trusted: bool, clock: Clock) -> Taken:
        """Return the readings of one message, in its order; first values that the ring has already are left out."""
        rows, ours = self.rows(items.handle)
        if self.events.any():  # some servers report the attribute EventNotifier itself beside the events: no event, no reading
            rows, ours = self._without_strays(rows, ours, items)
        kind, values, quality = items.kind[ours], items.values[ours], items.quality[ours]
        said, flags = items.source_ns[ours], items.flags[ours]
        self._convert(rows, kind, values, quality)
        none = np.zeros(len(rows), np.bool_)
        initial = back = known = none
        if self.resent or (self._awaited[rows] | self._initial[rows]).any():  # after a start, a new item or a cut; hardly ever else
            first = none.copy()
            first[np.unique(rows, return_index=True)[1]] = True
            awaited = self._awaited[rows] | (self.resent & (said != NO_TIME) & ~self.events[rows])
            same = first & awaited & self._same(rows, kind, values, quality, said, items.texts)
            back = same & self.marked[rows]  # the reading before the marker again: stored, but no second time at its own time
            known = same & ~back
            initial = first & self._initial[rows]
            self._awaited[rows] = self._initial[rows] = False
            keep = ~known
            rows, kind, values, quality, said, flags = rows[keep], kind[keep], values[keep], quality[keep], said[keep], flags[keep]
            initial, back = initial[keep], back[keep]
        retyped = self._retyped(rows, kind)
        stamped = stamp(said, initial, now_ns, since_ns, trusted, clock)
        if back.any():
            stamped = again(stamped, back, now_ns)
        source = stamped.ts_ns if stamped.ts_source_ns is None else stamped.ts_source_ns
        self._store(rows, kind, values, quality, source, now_ns, items.texts)
        columns = Columns(
            self.numbers[rows], stamped.ts_ns, kind, values, quality, stamped.flags | flags, stamped.ts_source_ns, items.texts if len(rows) else ()
        )
        return Taken(columns, stamped, retyped, int(known.sum()))

    def _without_strays(self, rows: NDArray[np.int64], ours: NDArray[np.bool_], items: Items) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        good = ~self.events[rows] | (items.kind[ours] == Kind.TEXT)
        kept = ours.copy()
        kept[np.flatnonzero(ours)[~good]] = False
        return rows[good], kept

    def _convert(self, rows: NDArray[np.int64], kind: NDArray[np.uint8], values: NDArray[np.uint64], quality: NDArray[np.uint32]) -> None:
        """Apply bad_raw, then scale and offset, in place."""
        if self._bad_raw:
            for at in np.flatnonzero(np.isin(rows, list(self._bad_raw)) & np.isin(kind, _NUMERIC)):
                number = float(_as_double(kind[at : at + 1], values[at : at + 1])[0])
                wanted = self._bad_raw[int(rows[at])]
                if number in wanted or (number != number and None in wanted):
                    kind[at], values[at], quality[at] = Kind.NULL, 0, BAD_NO_DATA
        if self._scales and len(change := np.flatnonzero(self._scaled[rows] & np.isin(kind, _NUMERIC))):
            scaled = _as_double(kind[change], values[change]) * self._scale[rows[change]] + self._offset[rows[change]]
            values[change], kind[change] = scaled.view(np.uint64), Kind.DOUBLE
        if self._unsigns or (kind == Kind.UINT64).any():
            self._keep_signs(rows, kind, values)

    def _keep_signs(self, rows: NDArray[np.int64], kind: NDArray[np.uint8], values: NDArray[np.uint64]) -> None:
        """Make Doubles, in place, of integers whose 64 bits would mean another number: the stores keep the bits, the tag table the sign."""
        other = np.where(self._unsigned[rows], kind == Kind.INT64, kind == Kind.UINT64) & (values >> np.uint64(63) == 1)
        if len(change := np.flatnonzero(other)):
            values[change], kind[change] = _as_double(kind[change], values[change]).view(np.uint64), Kind.DOUBLE

    def _same(self, rows: Any, kind: Any, values: Any, quality: Any, said: Any, texts: tuple[str, ...]) -> NDArray[np.bool_]:
        """Say which values equal the newest reading bit for bit, with the source's time where it gives one."""
        same = self.has[rows] & (kind == self._kind[rows]) & (quality == self._quality[rows])
        same &= (said == self._source[rows]) | (said == NO_TIME)
        text = (kind == Kind.TEXT) | (kind == Kind.BYTES)
        same &= text | (values == self._value[rows])
        for at in np.flatnonzero(same & text):
            same[at] = self._text.get(int(rows[at])) == texts[int(values[at])]
        return np.asarray(same, np.bool_)

    def _retyped(self, rows: Any, kind: Any) -> dict[int, tuple[Kind, Kind]]:
        before = self._kind[rows]
        changed = np.flatnonzero(self.has[rows] & (before != kind) & (before != Kind.NULL) & (kind != Kind.NULL))
        return {int(self.numbers[rows[at]]): (Kind(int(before[at])), Kind(int(kind[at]))) for at in changed[:TYPES_NOTED_MAX]}

    def _store(self, rows: Any, kind: Any, values: Any, quality: Any, source: Any, now_ns: int, texts: tuple[str, ...]) -> None:
        self._kind[rows], self._quality[rows], self._source[rows] = kind, quality, source
        self._value[rows], self.written_ns[rows] = values, now_ns
        self.has[rows], self.marked[rows] = True, False
        for at in np.flatnonzero((kind == Kind.TEXT) | (kind == Kind.BYTES)):
            self._text[int(rows[at])] = texts[int(values[at])]

    @property
    def awaiting(self) -> list[int]:
        """The tags of new items whose first value is still to come."""
        numbers: list[int] = self.numbers[self._initial].tolist()
        return numbers

    def history(self, number: int, items: Items, which: NDArray[np.int64]) -> Columns:
        """Return values of one tag from the server's history, at their own times; they change nothing that is known here."""
        rows = np.repeat(self.rows(np.asarray([number], np.uint32))[0], len(which))
        if len(rows) and self.tags[rows[0]].array:
            items, which = pick(items, which, self.tags[rows[0]].element), np.arange(len(which))
        kind, values, quality = items.kind[which], items.values[which], items.quality[which]
        self._convert(rows, kind, values, quality)
        return Columns(self.numbers[rows], items.source_ns[which], kind, values, quality, items.flags[which], None, items.texts if len(which) else ())

    # ---- readings nobody sent ----

    def repeat(self, which: NDArray[np.bool_], now_ns: int, trusted: bool) -> Columns:
        """Return the newest reading of each chosen tag again: ts = now, its source time kept, REPEATED."""
        rows = np.flatnonzero(which & self.has & ~self.events)
        kind, values = self._kind[rows], self._value[rows].copy()
        texts: list[str] = []
        for at in np.flatnonzero((kind == Kind.TEXT) | (kind == Kind.BYTES)):
            values[at] = len(texts)
            texts.append(self._text[int(rows[at])])
        flags = np.full(len(rows), Flag.REPEATED if trusted else Flag.REPEATED | Flag.CLOCK_UNTRUSTED, np.uint16)
        self.written_ns[rows], self.marked[rows] = now_ns, False
        ts = np.full(len(rows), now_ns, np.int64)
        return Columns(self.numbers[rows], ts, kind, values, self._quality[rows], flags, self._source[rows], tuple(texts))

    def due(self, now_ns: int) -> NDArray[np.bool_]:
        """Say whose heartbeat is due."""
        return (self.heartbeat_ns > 0) & self.has & ~self.events & ~self.marked & (now_ns - self.written_ns >= self.heartbeat_ns)

    def mark(self, quality: int, ts_ns: int) -> Columns:
        """Return one marker per tag that has a value and no marker yet: no value, this quality."""
        rows = np.flatnonzero(self.has & ~self.marked)
        self.marked[rows] = True
        return self._markers(rows, np.full(len(rows), quality, np.uint32), ts_ns)

    def refuse(self, refused: Mapping[int, int], ts_ns: int) -> Columns:
        """Return one marker per refused tag (number -> status code)."""
        rows, _ = self.rows(np.fromiter(refused, np.uint32, len(refused)))
        self.marked[rows] = self.has[rows]
        return self._markers(rows, np.fromiter((refused[int(n)] for n in self.numbers[rows]), np.uint32, len(rows)), ts_ns)

    def tell(self, numbers: Collection[int], quality: int, ts_ns: int) -> Columns:
        """Return one marker for each of these, whatever stood there: what is known of them now. A later outage is marked again."""
        rows, _ = self.rows(np.fromiter(numbers, np.uint32, len(numbers)))
        self.marked[rows] = False
        return self._markers(rows, np.full(len(rows), quality, np.uint32), ts_ns)

    def _markers(self, rows: NDArray[Any], quality: NDArray[np.uint32], ts_ns: int) -> Columns:
        n = len(rows)
        nulls, zeros = np.full(n, Kind.NULL, np.uint8), np.zeros(n, np.uint64)
        return Columns(self.numbers[rows], np.full(n, ts_ns, np.int64), nulls, zeros, quality, np.full(n, Flag.MARKER, np.uint16), None, ())


def again(stamped: Stamped, which: NDArray[np.bool_], now_ns: int) -> Stamped:
    """Give chosen readings ts = now and REPEATED; what the source said of their time is kept."""
    ts, said = stamped.ts_ns.copy(), stamped.ts_ns if stamped.ts_source_ns is None else stamped.ts_source_ns
    ts[which] = now_ns
    return replace(stamped, ts_ns=ts, ts_source_ns=said, flags=np.where(which, stamped.flags | np.uint16(Flag.REPEATED), stamped.flags))


def _raw(text: str) -> float | None:
    """Return a bad raw value as a number, None for "nan"."""
    return None if text.strip().lower() == "nan" else float(int(text, 16)) if text.lower().startswith("0x") else float(text)


def _as_double(kind: NDArray[np.uint8], values: NDArray[np.uint64]) -> NDArray[np.float64]:
    double = values.view(np.float64) if values.flags.c_contiguous else np.ascontiguousarray(values).view(np.float64)
    return np.where(kind == Kind.DOUBLE, double, np.where(kind == Kind.INT64, values.view(np.int64), values).astype(np.float64))
