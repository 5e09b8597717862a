"""Who goes first on the link: live data, then the backlog with what is left. Pure: time in, verdicts out.

Live: the newest blocks, at most one PUT per stream and second. What waited longer than LIVE_AGE_MAX_NS falls to backfill, else a
slow link would show ever older "live" data. Backfill: a cap in bits/s over everything it sends, and a daily window in the
gateway's time zone.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

LIVE_AGE_MAX_NS: Final = 10 * 10**9  # live data waiting longer falls to backfill
LIVE_LATE_NS: Final = 2 * 10**9  # a live PUT under way for longer leaves backfill one request at a time
BURST_NS: Final = 250 * 10**6  # how much of its rate the bucket lets through at once
_SECOND: Final = 10**9
_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class TokenBucket:
    """A cap in bits/s with debt: whoever takes is told how long to wait before sending what was taken. 0 bits/s: no cap."""

    def __init__(self, rate_bps: int) -> None:
        self.rate_bps = rate_bps
        self._free_at_ns: int | None = None  # when everything taken so far has been paid for

    def take(self, size_bytes: int, now_ns: int) -> int:
        """Book size_bytes; return ns to wait before sending them."""
        if self.rate_bps <= 0:
            return 0
        earliest = now_ns - BURST_NS
        start = earliest if self._free_at_ns is None else max(self._free_at_ns, earliest)
        self._free_at_ns = start + size_bytes * 8 * _SECOND // self.rate_bps
        return max(0, self._free_at_ns - now_ns)


@dataclass(frozen=True, slots=True)
class Window:
    """A daily window, minutes since local midnight, open from start up to end; over midnight where end < start."""

    start: int
    end: int

    def open_at(self, local: dt.datetime) -> bool:
        """Say whether backfill may run at this local time."""
        minute = local.hour * 60 + local.minute
        if self.start <= self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end


def parse_window(text: str) -> Window | None:
    """Return the window of "HH:MM-HH:MM", None of "always"; raise ValueError that says what to write."""
    if text == "always":
        return None
    found = _WINDOW.fullmatch(text)
    if not found or found[1] + found[2] == found[3] + found[4]:
        raise ValueError(f'{text!r} is not a window: write "always" or "22:00-05:30"')
    return Window(int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4]))


def window_open(window: Window | None, zone: ZoneInfo | dt.timezone, wall_ns: int) -> bool:
    """Say whether backfill may run at this wall time (ns since 1970, UTC) in the gateway's time zone."""
    return window is None or window.open_at(dt.datetime.fromtimestamp(wall_ns // _SECOND, tz=zone))


class LiveEdge:
    """Which blocks of the newest generation are live: those first seen at most LIVE_AGE_MAX_NS ago."""

    def __init__(self) -> None:
        self.generation = 0
        self.end = 0  # one past the newest durable block
        self._first = 0
        self._seen: deque[tuple[int, int]] = deque()  # (when seen, end before it): at most one per poll and 10 s

    def grew(self, generation: int, end: int, now_ns: int) -> bool:
        """Take the durable mark; say whether it is news. What a start finds is backlog, but for the newest block."""
        if (generation, end) == (self.generation, self.end) or generation < self.generation:
            return False
        if generation != self.generation:
            first_look = self.generation == 0
            self.generation, self._first = generation, (max(0, end - 1) if first_look else 0)
            self._seen.clear()
            self.end = self._first
        self._seen.append((now_ns, self.end))
        self.end = end
        return True

    def first(self, now_ns: int) -> int:
        """Return the oldest block that is still live; `end` where none is."""
        while self._seen and now_ns - self._seen[0][0] > LIVE_AGE_MAX_NS:
            self._seen.popleft()
            self._first = self._seen[0][1] if self._seen else self.end
        return self._first


def backfill_slots(in_flight: int, live_began_ns: int | None, now_ns: int) -> int:
    """Return how many backfill requests may be under way: one while a live PUT is late, so that live is first and backfill lives."""
    late = live_began_ns is not None and now_ns - live_began_ns > LIVE_LATE_NS
    return 1 if late else in_flight
