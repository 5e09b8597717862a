"""A small trend of one number: at most POINTS points, evenly thinned over at most SPAN_NS. 1 KiB a tag."""

from __future__ import annotations

from array import array
from typing import Final

POINTS: Final = 60
SPAN_NS: Final = 8 * 3600 * 10**9  # a shift
_FIRST_NS: Final = 2 * 10**9  # spacing at the beginning: something to see within a minute


class Trend:
    """Points in order of time. NaN is a hole."""

    __slots__ = ("_at", "_spacing", "_values")

    def __init__(self) -> None:
        self._at = array("q")
        self._values = array("d")
        self._spacing = _FIRST_NS

    def add(self, ts_ns: int, value: float) -> None:
        """Add a point; one too near the last one, or before it, is left out, but a hole is not."""
        if self._at and (ts_ns <= self._at[-1] or (ts_ns - self._at[-1] < self._spacing and value == value)):
            return
        self._at.append(ts_ns)
        self._values.append(value)
        if len(self._at) > POINTS:
            self._thin()

    def _thin(self) -> None:
        if self._at[-1] - self._at[0] > SPAN_NS:
            del self._at[0], self._values[0]
            return
        del self._at[1::2], self._values[1::2]
        self._spacing *= 2

    def points(self) -> list[tuple[int, float]]:
        """Return (wall ns, value)."""
        return list(zip(self._at, self._values, strict=True))
