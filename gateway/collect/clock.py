"""Whose time a reading gets. Pure: arrays of times in, `ts`, `ts_source` and flags out; no clock is read here.

Two questions, two classes:

* `GatewayClock`: may the box's own clock be believed? It is *trusted* when the system says it is synchronised, or when it is later than
  both the release and the newest committed reading. Until then the box's time is "newest known time + monotonic time since the start".
  A step of a trusted clock, and the moment trust comes, are reported once; nothing that was written is rewritten.
* `stamp`: does a source's time fit? A changed value cannot have come into being before `since_ns`, the last moment at which the
  collector knew everything the source knew, nor after now. A source time further than `max_skew_ns` outside that window is a wrong
  clock: ts = gateway time, TIME_SUBSTITUTED, ts_source kept. The window, not `now` alone, is the measure: what waited in a server's
  queue during an outage is old, and right.

The first value after a subscription was made (INITIAL) may be weeks old and still right: it gets ts = now when it lies outside the
window, without TIME_SUBSTITUTED unless it is from the future. While the gateway's clock is not trusted there is nothing to measure
by: the source's time stands, and only readings that need the gateway's time are flagged CLOCK_UNTRUSTED.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from buffer.types import Flag

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gateway.settings import Clock

NO_TIME: Final = np.iinfo(np.int64).min  # "the source said no time", in an array of ns
STEP_NS: Final = 10**9  # a trusted clock that moves further than this against the monotonic clock has been set
EPISODE_QUIET_NS: Final = 60 * 10**9  # an episode of a wrong source clock ends after this long without one


@dataclass(frozen=True, slots=True)
class Stamped:
    """Times of n readings. ts_source_ns is None where it nowhere differs from ts_ns. offset_ns: median of what was refused."""

    ts_ns: NDArray[np.int64]
    ts_source_ns: NDArray[np.int64] | None
    flags: NDArray[np.uint16]
    substituted: int = 0
    offset_ns: int = 0  # source minus gateway


def stamp(
    source_ns: NDArray[np.int64],
    initial: NDArray[np.bool_] | bool,
    now_ns: int,
    since_ns: int,
    trusted: bool,
    policy: Clock,
) -> Stamped:
    """Return ts, ts_source and flags of readings that arrived together.

    source_ns: what the source said, ns since 1970 UTC, NO_TIME where it said nothing. initial: first value of a new item.
    now_ns, trusted: the gateway's time (GatewayClock.now). since_ns <= now_ns: last moment the collector was level with the source.
    """
    missing = source_ns == NO_TIME
    if not trusted:
        outside = early = np.zeros(len(source_ns), np.bool_)
        late = outside
    else:
        early = source_ns < since_ns - policy.max_skew_ns
        late = source_ns > now_ns + policy.max_skew_ns
        outside = (early | late) & ~missing
    take_gateway = outside | missing
    if policy.use == "gateway":
        take_gateway = np.ones(len(source_ns), np.bool_)
    wrong = outside & (late | ~np.asarray(initial)) if policy.use == "source" else np.zeros(len(source_ns), np.bool_)

    flags = np.zeros(len(source_ns), np.uint16)
    flags[wrong] |= np.uint16(Flag.TIME_SUBSTITUTED)
    flags[np.broadcast_to(initial, flags.shape)] |= np.uint16(Flag.INITIAL)
    if not trusted:
        flags[take_gateway] |= np.uint16(Flag.CLOCK_UNTRUSTED)
    ts = np.where(take_gateway, np.int64(now_ns), source_ns)
    said = np.where(missing, ts, source_ns)
    count = int(wrong.sum())
    offset = int(np.median(source_ns[wrong].astype(np.float64) - now_ns)) if count else 0  # int64 holds no 400 years of ns
    return Stamped(ts, None if np.array_equal(ts, said) else said, flags, count, offset)


@dataclass(frozen=True, slots=True)
class Episode:
    """Begin or end of a time in which a source's clock was wrong, for one notice."""

    began: bool
    offset_ns: int
    readings: int


class SkewWatch:
    """Turns single verdicts of one source into episodes."""

    def __init__(self) -> None:
        self._open = False
        self._last_ns = 0
        self._offset_ns = 0
        self._readings = 0

    def update(self, stamped: Stamped, now_ns: int) -> Episode | None:
        """Take the verdict on one batch; return the begin or end of an episode."""
        if stamped.substituted:
            began = not self._open
            self._readings = stamped.substituted + (0 if began else self._readings)
            self._open, self._last_ns, self._offset_ns = True, now_ns, stamped.offset_ns
            return Episode(True, stamped.offset_ns, stamped.substituted) if began else None
        if self._open and len(stamped.ts_ns) and now_ns - self._last_ns >= EPISODE_QUIET_NS:
            self._open = False
            return Episode(False, self._offset_ns, self._readings)
        return None


@dataclass(frozen=True, slots=True)
class ClockEvent:
    """For one notice. event: "trusted", "untrusted" or "step"; offset_ns: new time minus the time kept until then."""

    event: str
    offset_ns: int


class GatewayClock:
    """The box's time and whether it may be believed. `observe` about once a second; `now` as often as wanted."""

    def __init__(self, wall_ns: int, monotonic_ns: int, release_ns: int, newest_ns: int) -> None:
        """Start with the newest time known to have passed: the release's, or the newest committed reading's."""
        self._base_ns = max(release_ns, newest_ns)
        self._base_monotonic_ns = monotonic_ns
        self._offset_ns = wall_ns - monotonic_ns
        self.trusted = wall_ns >= self._base_ns

    def _estimate(self, monotonic_ns: int) -> int:
        return self._base_ns + monotonic_ns - self._base_monotonic_ns

    def now(self, wall_ns: int, monotonic_ns: int) -> int:
        """Return the gateway's time in ns; where the clock is not trusted, newest known time + monotonic time."""
        return wall_ns if self.trusted else self._estimate(monotonic_ns)

    def observe(self, wall_ns: int, monotonic_ns: int, synchronised: bool) -> ClockEvent | None:
        """Look at the clock again; return what people should know about it."""
        estimate = self._estimate(monotonic_ns)
        moved = wall_ns - monotonic_ns - self._offset_ns
        self._offset_ns += moved
        if not self.trusted:
            if synchronised or wall_ns >= estimate:
                self.trusted = True
                return ClockEvent("trusted", wall_ns - estimate)
            return None
        if abs(moved) <= STEP_NS:
            return None
        if not synchronised and wall_ns < self._base_ns:
            self.trusted = False
            self._base_ns, self._base_monotonic_ns = wall_ns - moved, monotonic_ns
            return ClockEvent("untrusted", moved)
        return ClockEvent("step", moved)
