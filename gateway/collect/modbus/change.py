"""Which values of a poll are news: changes beyond the deadband, heartbeats, first values, markers. Pure.

A value is handed over when its bits, kind or quality changed (numbers: by more than the tag's deadband), or when the tag's heartbeat is due
(REPEATED if nothing changed): at the poll nearest to it, for polls are never at the very nanosecond, and at once where the clock was set
back. The first value after a start is dropped if it is bit for bit the newest one in the ring; the first value after a marker never is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from buffer.types import Columns, Flag, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gateway.collect.modbus.decode import Values
    from gateway.collect.source import Reading
    from gateway.settings import TagRow

_NUMBERS = (Kind.DOUBLE, Kind.INT64, Kind.UINT64)


class Reported:
    """What was last handed over for each of n tags, in their order."""

    def __init__(self, tags: Sequence[TagRow], last: Mapping[int, Reading]) -> None:
        n = len(tags)
        self._tag = np.array([tag.number for tag in tags], np.uint32)
        self._deadband = np.array([tag.deadband for tag in tags], np.float64)
        self._heartbeat = np.array([tag.heartbeat_ns and max(1, tag.heartbeat_ns - tag.every_ns // 2) for tag in tags], np.int64)
        self._kind = np.full(n, Kind.NULL, np.uint8)
        self._values = np.zeros(n, np.uint64)
        self._quality = np.zeros(n, np.uint32)
        self._ts = np.zeros(n, np.int64)
        self._has = np.zeros(n, np.bool_)  # False: nothing, or a marker, was handed over last
        self._first = np.ones(n, np.bool_)  # no value since the start
        self._marker = np.zeros(n, np.uint32)  # quality of the marker handed over last, 0 if a value came after it
        self._texts: list[str] = [""] * n
        for i, tag in enumerate(tags):
            self._remember(i, last.get(tag.number))

    def _remember(self, i: int, reading: Reading | None) -> None:
        if reading is None or reading.flags & Flag.MARKER:
            return
        self._has[i] = True
        self._kind[i], self._quality[i], self._ts[i] = reading.kind, reading.quality, reading.ts_ns
        if isinstance(reading.value, str):
            self._texts[i] = reading.value
        else:
            self._values[i] = reading.value

    def take(self, got: Values, ts_ns: NDArray[np.int64], seen: NDArray[np.bool_], extra_flags: int = 0) -> Columns | None:
        """Return what is news among the rows `seen`, or None. ts_ns: per row. extra_flags go on all of it."""
        texts = self._new_texts(got)
        same = self._same(got, texts)
        near = same | self._within_deadband(got)
        due = self._has & (self._heartbeat > 0) & (np.abs(ts_ns - self._ts) >= self._heartbeat)
        rows = np.flatnonzero(seen & (~near | due))
        flags = got.flags[rows] | np.uint16(extra_flags)
        flags |= np.where(same[rows], np.uint16(Flag.REPEATED), np.uint16(0))
        flags |= np.where((self._first | ~self._has)[rows] & ~same[rows], np.uint16(Flag.INITIAL), np.uint16(0))
        self._first[seen] = False
        if not len(rows):
            return None
        self._has[rows], self._marker[rows] = True, 0
        self._kind[rows], self._values[rows] = got.kind[rows], got.values[rows]
        self._quality[rows], self._ts[rows] = got.quality[rows], ts_ns[rows]
        values = got.values[rows].copy()
        out: list[str] = []
        for at in np.flatnonzero(got.kind[rows] == Kind.TEXT):
            self._texts[rows[at]] = texts[int(rows[at])]
            values[at] = len(out)
            out.append(texts[int(rows[at])])
        return Columns(self._tag[rows], ts_ns[rows], got.kind[rows], values, got.quality[rows], flags, None, tuple(out))

    @staticmethod
    def _new_texts(got: Values) -> dict[int, str]:
        return {int(i): got.texts[int(got.values[i])] for i in np.flatnonzero(got.kind == Kind.TEXT)} if got.texts else {}

    def _same(self, got: Values, texts: dict[int, str]) -> NDArray[np.bool_]:
        """Rows that are bit for bit what was handed over last."""
        same: NDArray[np.bool_] = self._has & (got.kind == self._kind) & (got.quality == self._quality)
        bits: NDArray[np.bool_] = got.values == self._values
        for i, text in texts.items():
            bits[i] = text == self._texts[i]
        same &= bits
        return same

    def _within_deadband(self, got: Values) -> NDArray[np.bool_]:
        """Rows whose number moved by no more than the deadband. Never on the first value after a start."""
        out = np.zeros(len(self._tag), np.bool_)
        wide = self._has & ~self._first & (self._deadband > 0) & (got.kind == self._kind) & (got.quality == self._quality)
        rows = np.flatnonzero(wide & np.isin(got.kind, _NUMBERS))
        if len(rows):
            with np.errstate(invalid="ignore", over="ignore"):  # infinity and NaN: not within
                moved = np.abs(_as_double(got.kind[rows], got.values[rows]) - _as_double(self._kind[rows], self._values[rows]))
            out[rows] = moved <= self._deadband[rows]
        return out

    def mark(self, ts_ns: int, quality: int) -> Columns | None:
        """Return one marker per tag (null, this quality), or None where the same markers stand already."""
        rows = np.flatnonzero(self._marker != quality)
        if not len(rows):
            return None
        n = len(rows)
        self._has[rows], self._marker[rows] = False, quality
        return Columns(
            self._tag[rows],
            np.full(n, ts_ns, np.int64),
            np.full(n, Kind.NULL, np.uint8),
            np.zeros(n, np.uint64),
            np.full(n, quality, np.uint32),
            np.full(n, Flag.MARKER, np.uint16),
            None,
            (),
        )


def _as_double(kind: NDArray[np.uint8], values: NDArray[np.uint64]) -> NDArray[np.float64]:
    signed = np.where(kind == Kind.DOUBLE, values.view(np.float64), values.view(np.int64).astype(np.float64))
    return np.where(kind == Kind.UINT64, values.astype(np.float64), signed)
