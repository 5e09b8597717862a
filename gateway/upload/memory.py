"""What the uploader remembers over a restart (gateway.upload.state keeps it). Losing it costs offers, nothing else. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from buffer import limits
from gateway.upload.cursor import Cursor

RESEND_SHARE: Final = 0.10  # of the day's bytes may be bytes that were sent before without a verdict
RESEND_FLOOR_BYTES: Final = limits.PUT_BYTES_MAX  # one largest request a day, so that nothing waits for ever
_DAY_NS: Final = 86_400 * 10**9


class Parked(NamedTuple):
    """Blocks first..last that the receiver refused, signed. Retried hourly until evicted."""

    generation: int
    first: int
    last: int
    reason: int  # gateway.wire.receipt.Refusal
    since_ns: int  # wall clock


@dataclass(slots=True)
class Day:
    """Bytes of bodies of one day (UTC), and how many of them had been sent before."""

    number: int = 0
    sent_bytes: int = 0
    resent_bytes: int = 0

    def turn(self, wall_ns: int) -> None:
        """Begin a new account when the day is another."""
        if wall_ns // _DAY_NS != self.number:
            self.number, self.sent_bytes, self.resent_bytes = wall_ns // _DAY_NS, 0, 0

    def may_resend(self, size_bytes: int) -> bool:
        """Say whether so many bytes may be sent again today."""
        return self.resent_bytes + size_bytes <= max(RESEND_FLOOR_BYTES, int(self.sent_bytes * RESEND_SHARE))


@dataclass(slots=True)
class Memory:
    """Everything kept. fresh: nothing was found, so that all the ring holds is in doubt."""

    cursor: Cursor = field(default_factory=Cursor)
    landing: int = 0  # newest landing generation met; 0: none yet
    objects: set[bytes] = field(default_factory=set)  # SHA-256 of objects the landing took
    parked: dict[tuple[int, int, int], Parked] = field(default_factory=dict)
    day: Day = field(default_factory=Day)
    receipt_ns: int = 0  # wall clock of the newest signed verdict
    restored_ns: int = 0  # wall clock when the receiver was last found restored; 0: never
    restored_blocks: int = 0  # how many blocks that put in doubt
    forgotten_ns: int = 0  # wall clock when an empty memory met a receiver that holds this stream already; 0: never
    conflicts: int = 0
    fresh: bool = True
