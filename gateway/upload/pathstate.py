"""How the way to the receiver is doing: back-off, size of requests, and what probably stands in the way. Pure.

Two kinds of failure. Nobody took a byte (no route, connection refused): trying again costs a few packets, so it is tried often, and
after an outage the newest data is on the screen within seconds. Somebody took bytes or answered nonsense: trying again costs volume
and cures nothing, so the back-off goes up to an hour. While the way is in doubt one request is under way at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buffer import limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.upload.carrier import CarrierError

BACKOFF_BASE_NS: Final = 10**9
BACKOFF_LEAST_NS: Final = 50 * 10**6  # full jitter may say zero; a loop of instant failures must not spin
UNREACHED_CAP_NS: Final = 15 * 10**9  # a SYN a quarter of a minute disturbs nobody
REACHED_CAP_NS: Final = 3_600 * 10**9
PIECE_BYTES_MIN: Final = 64 * 1024  # a link that lives for 10 s at 64 kbit/s makes progress
PIECE_BYTES_START: Final = 512 * 1024
PIECE_BYTES_MAX: Final = limits.PUT_BYTES_MAX
_FAST_NS: Final = 4 * 10**9  # a request answered faster than this: the next may be twice as large
_SLOW_NS: Final = 16 * 10**9  # slower: half as large, so that live data never waits long behind it
_DOUBLINGS_MAX: Final = 30


def jitter_ns(random: Callable[[], float], attempt: int, base_ns: int, cap_ns: int) -> int:
    """Return full jitter: uniform in 0..min(cap, base * 2**attempt), at least BACKOFF_LEAST_NS."""
    return BACKOFF_LEAST_NS + int(random() * min(cap_ns, base_ns * 2 ** min(attempt, _DOUBLINGS_MAX)))


@dataclass(slots=True)
class PathState:
    """See the module. The two kinds are counted apart: after a long outage one odd answer does not cost an hour."""

    unreached: int = 0
    reached: int = 0
    until_ns: int = 0  # monotonic: nothing is sent before
    piece_bytes: int = PIECE_BYTES_START  # how large one request of the backlog may be
    failed_ns: int = -1
    failing_since_ns: int | None = None  # wall clock
    error: CarrierError | None = None

    @property
    def good(self) -> bool:
        """Say whether the last word was a signed verdict (or nothing was said yet)."""
        return not self.unreached and not self.reached

    def failed(self, error: CarrierError, began_ns: int, mono_ns: int, wall_ns: int, random: Callable[[], float]) -> None:
        """Count a failure; several requests that fail of one cause count once."""
        self.error = error
        if self.failing_since_ns is None:
            self.failing_since_ns = wall_ns
        if began_ns <= self.failed_ns:
            return
        self.failed_ns = mono_ns
        if error.reached:
            self.until_ns = mono_ns + jitter_ns(random, self.reached, BACKOFF_BASE_NS, REACHED_CAP_NS)
            self.reached += 1
        else:
            self.until_ns = mono_ns + jitter_ns(random, self.unreached, BACKOFF_BASE_NS, UNREACHED_CAP_NS)
            self.unreached += 1

    def smaller(self) -> None:
        """A body did not arrive: the next ones are half as large."""
        self.piece_bytes = max(PIECE_BYTES_MIN, self.piece_bytes // 2)

    def verdict(self, size_bytes: int, took_ns: int) -> None:
        """A signed verdict came, for a body of size_bytes."""
        self.unreached = self.reached = self.until_ns = 0
        self.error = self.failing_since_ns = None
        if took_ns > _SLOW_NS:
            self.smaller()
        elif took_ns < _FAST_NS and 2 * size_bytes >= self.piece_bytes:
            self.piece_bytes = min(PIECE_BYTES_MAX, self.piece_bytes * 2)

    def retry_now(self) -> None:
        """A person asked: forget the back-off, keep the cause."""
        self.until_ns = 0
