"""The load contract of a source (G10): when the next request may start. Pure; time comes in, verdicts go out.

    wait until budget.ready_ns(now) -> budget.begin(now) -> request ... answer -> budget.spent(now, busy, bytes)

Requests are spaced, never bunched: in any T seconds at most T * requests_per_s + 1 begin. Bytes are paid off after they came. After
an answer the device rests for `pause`, and long enough that it was busy with us for at most `duty` of the time. Slow answers and
timeouts slow everything down (at most SLOWDOWN_MAX times); good answers bring it back step by step. What is owed survives a restart
(`export`), and a restart itself costs one interval and one rest, so that not even a process that is killed in a loop asks faster: what it
owed for its last request was never saved, so the usual one is taken.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.settings import Load

SLOWDOWN_MAX: Final = 8.0  # slow enough to let a device breathe, quick enough to be back within seconds
SLOW_TIMES_USUAL: Final = 4.0  # an answer is slow when it takes this many times the usual...
SLOW_ANSWER_MIN_NS: Final = 250 * 10**6  # ...and at least this long: below it nobody is hurt
SLOWER_AFTER_SLOW: Final = 1.5
SLOWER_AFTER_FAILURE: Final = 2.0
FASTER_AFTER_GOOD: Final = 0.9  # about 7 good answers to halve a slowdown
USUAL_WEIGHT: Final = 1 / 64  # of one answer in the usual answer time
DEBT_NS_MAX: Final = 3_600 * 10**9  # what a saved file can make a start wait: its clock may have been wrong

_SECOND: Final = 10**9
_MINUTE: Final = 60 * _SECOND
_MINUTES_KEPT: Final = 60


@dataclass(slots=True)
class _Minute:
    """What one minute cost the device."""

    requests: int = 0
    failed: int = 0
    bytes: int = 0
    busy_ns: int = 0
    slowest_ns: int = 0
    most_in_a_second: int = 0


@dataclass(frozen=True, slots=True)
class LoadCertificate:
    """What the source had to bear in the last hour, for status and for the committee."""

    requests: int
    failed: int
    bytes: int
    busy_share: float  # of the hour, or of the time since the first request if that is shorter
    slowest_ms: float
    most_in_a_second: int  # requests that began within one second
    allowed_per_s: float
    slowdown: float  # 1.0: none


class Budget:
    """The contract of one source. Times are monotonic ns; `saved` is what `export` gave, `wall_ns` the time of reading it."""

    def __init__(self, load: Load, now_ns: int, saved: Mapping[str, object] | None = None, wall_ns: int = 0) -> None:
        self._load = load
        self._slowdown = 1.0
        self._usual_ns = 0
        self._ready_ns = now_ns
        self._minutes: dict[int, _Minute] = {}
        self._begun: deque[int] = deque()
        if saved is not None:
            self._restore(saved, now_ns, wall_ns)

    @property
    def slowdown(self) -> float:
        """How many times slower than the contract the source is asked now."""
        return self._slowdown

    @property
    def interval_ns(self) -> int:
        """Time from the beginning of one request to the next, as things are."""
        return round(_SECOND / self._load.requests_per_s * self._slowdown)

    def ready_ns(self, now_ns: int) -> int:
        """Return when the next request may begin: now_ns or later."""
        return max(now_ns, self._ready_ns)

    def begin(self, now_ns: int) -> None:
        """Take the slot: a request begins now. Needed where several are in flight; harmless else."""
        self._ready_ns = max(self._ready_ns, now_ns + self.interval_ns)

    def spent(self, now_ns: int, busy_ns: int, size_bytes: int, *, failed: bool = False) -> None:
        """Count a request that ended now: it kept the device busy_ns and moved size_bytes both ways. failed: no usable answer in time."""
        began = now_ns - busy_ns
        self._adapt(busy_ns, failed)
        rest_ns = self._rest_ns(busy_ns)
        paid_ns = round(size_bytes * _SECOND / self._load.bytes_per_s)
        self._ready_ns = max(self._ready_ns, began + self.interval_ns, now_ns + rest_ns, began + paid_ns)
        self._count(began, busy_ns, size_bytes, failed)

    def export(self, now_ns: int, wall_ns: int) -> dict[str, object]:
        """Return what must survive a restart; JSON."""
        minutes = {str((now_ns - start * _MINUTE) // _MINUTE): asdict(one) for start, one in self._minutes.items()}
        return {
            "wall_ns": wall_ns,
            "owed_ns": max(0, self._ready_ns - now_ns),
            "slowdown": self._slowdown,
            "usual_ns": self._usual_ns,
            "minutes": minutes,
        }

    def certificate(self, now_ns: int) -> LoadCertificate:
        """Return the last hour's figures."""
        self._forget(now_ns)
        kept = list(self._minutes.values())
        oldest = min(self._minutes, default=now_ns // _MINUTE) * _MINUTE
        span_ns = max(_SECOND, min(_MINUTES_KEPT * _MINUTE, now_ns - oldest))
        return LoadCertificate(
            requests=sum(one.requests for one in kept),
            failed=sum(one.failed for one in kept),
            bytes=sum(one.bytes for one in kept),
            busy_share=min(1.0, sum(one.busy_ns for one in kept) / span_ns),
            slowest_ms=max((one.slowest_ns for one in kept), default=0) / 1e6,
            most_in_a_second=max((one.most_in_a_second for one in kept), default=0),
            allowed_per_s=self._load.requests_per_s,
            slowdown=round(self._slowdown, 2),
        )

    def _rest_ns(self, busy_ns: int) -> int:
        """Return how long the device rests after it was busy with us for so long."""
        duty = self._load.duty / self._slowdown
        return max(self._load.pause_ns, round(busy_ns * (1 - duty) / duty))

    def _adapt(self, busy_ns: int, failed: bool) -> None:
        slow = self._usual_ns > 0 and busy_ns > max(SLOW_ANSWER_MIN_NS, SLOW_TIMES_USUAL * self._usual_ns)
        if failed:
            self._slowdown = min(SLOWDOWN_MAX, self._slowdown * SLOWER_AFTER_FAILURE)
            return
        factor = SLOWER_AFTER_SLOW if slow else FASTER_AFTER_GOOD
        self._slowdown = min(SLOWDOWN_MAX, max(1.0, self._slowdown * factor))
        self._usual_ns = round(self._usual_ns + (busy_ns - self._usual_ns) * USUAL_WEIGHT) if self._usual_ns else busy_ns

    def _count(self, began: int, busy_ns: int, size_bytes: int, failed: bool) -> None:
        self._forget(began)
        minute = self._minutes.setdefault(began // _MINUTE, _Minute())
        minute.requests += 1
        minute.failed += failed
        minute.bytes += size_bytes
        minute.busy_ns += busy_ns
        minute.slowest_ns = max(minute.slowest_ns, busy_ns)
        self._begun.append(began)
        while self._begun[0] <= began - _SECOND:
            self._begun.popleft()
        minute.most_in_a_second = max(minute.most_in_a_second, len(self._begun))

    def _forget(self, now_ns: int) -> None:
        if len(self._minutes) > _MINUTES_KEPT or (self._minutes and min(self._minutes) <= now_ns // _MINUTE - _MINUTES_KEPT):
            self._minutes = {k: v for k, v in self._minutes.items() if k > now_ns // _MINUTE - _MINUTES_KEPT}

    def _restore(self, saved: Mapping[str, object], now_ns: int, wall_ns: int) -> None:
        """Take over what was saved; what is not of the right form is left out, and the wait of one interval and one rest stays."""
        away_ns = max(0, wall_ns - _whole(saved.get("wall_ns"), wall_ns))
        slowdown = saved.get("slowdown")
        if isinstance(slowdown, int | float) and 1.0 <= slowdown <= SLOWDOWN_MAX:
            self._slowdown = float(slowdown)
        self._usual_ns = min(DEBT_NS_MAX, _whole(saved.get("usual_ns"), 0))
        owed_ns = min(DEBT_NS_MAX, _whole(saved.get("owed_ns"), 0)) - away_ns
        self._ready_ns = now_ns + max(self.interval_ns, min(DEBT_NS_MAX, self._rest_ns(self._usual_ns)), owed_ns)
        minutes = saved.get("minutes")
        for age, counts in minutes.items() if isinstance(minutes, dict) else ():
            minute = now_ns // _MINUTE - away_ns // _MINUTE - _whole(age, _MINUTES_KEPT)
            if isinstance(counts, dict) and minute > now_ns // _MINUTE - _MINUTES_KEPT:
                self._minutes[minute] = _Minute(**{name: _whole(counts.get(name), 0) for name in _Minute.__slots__})


def _whole(value: object, instead: int) -> int:
    """Return a non-negative integer of at most 64 bits, also from decimal digits, or `instead`."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:19])
    return value if type(value) is int and 0 <= value < 1 << 64 else instead
