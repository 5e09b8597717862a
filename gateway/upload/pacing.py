"""How fast backfill may go: a token bucket and a daily window. Pure."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from dataclasses import dataclass
from typing import Final

LIVE_WAIT_NS: Final = 10 * 10**9  # live data that has waited longer falls to backfill
BURST_SECONDS: Final = 2  # of the backfill limit that may go at once after a pause


@dataclass(slots=True)
class Bucket:
    """A token bucket over bits per second; time is passed in."""

    limit_bps: int
    level_bits: float = 0.0
    at_ns: int = 0

    def wait_s(self, now_ns: int) -> float:
        """Return how long to wait before the next transfer may begin: until the debt of the last ones is paid."""
        if self.limit_bps <= 0:
            return 0.0
        gained = (now_ns - self.at_ns) / 1e9 * self.limit_bps if self.at_ns else self.limit_bps * BURST_SECONDS
        self.level_bits = min(self.level_bits + max(0.0, gained), self.limit_bps * BURST_SECONDS)
        self.at_ns = now_ns
        return max(0.0, -self.level_bits / self.limit_bps)

    def spent(self, size_bytes: int) -> None:
        """Count a transfer, whatever came of it."""
        self.level_bits -= size_bytes * 8


def window_open(window: str, timezone: str, wall_ns: int) -> bool:
    """Say whether backfill may travel now: "always", or "HH:MM-HH:MM" in the gateway's time zone (over midnight too)."""
    if window == "always":
        return True
    now = dt.datetime.fromtimestamp(wall_ns / 1e9, zoneinfo.ZoneInfo(timezone)).strftime("%H:%M")
    start, _, end = window.partition("-")
    return start <= now < end if start <= end else now >= start or now < end
