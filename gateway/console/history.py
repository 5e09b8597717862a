"""Goes back through the landing index after a start, newest first, a chunk at a time: DAYS days for the calendar, a shift for values and
notices. Nothing it finds is newer than what was followed, so the pages only become fuller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError, StorageFault
from buffer.manifest import FrameKind
from buffer.storage import PosixReadStorage
from gateway.landing import LandingReader
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from gateway.console.facts import Follower

DAYS: Final = 35
VALUES_NS: Final = 8 * 3600 * 10**9
CHUNK_RECORDS: Final = 2_000  # index entries in one step: about 0.1 s
CHUNK_VALUES: Final = 250  # frames opened in one step
_DAY_NS: Final = 86_400 * 10**9


class History:
    """One stream."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._reader = LandingReader(PosixReadStorage(follower.root))  # its own place in the index: the follower keeps its
        self._below = dict(follower.began)
        self._after_ns = 0  # when the oldest live record seen was received

    def step(self, now_ns: int) -> bool:
        """Take one chunk of each lane; say whether anything is left."""
        try:
            self._reader.refresh()
            for lane in Lane:
                self._chunk(lane, now_ns)
        except (CorruptError, StorageFault) as error:
            self._follower.facts.error = str(error)
            self._below = {}
        left = any(self._below.values())
        self._follower.facts.looking_back = left
        return left

    def _chunk(self, lane: Lane, now_ns: int) -> None:
        below = self._below.get(lane, 0)
        if not below:
            return
        values = now_ns - self._follower.facts.told_since_ns < VALUES_NS
        first = max(0, below - (CHUNK_VALUES if values else CHUNK_RECORDS))
        oldest_ns = before_ns = 0  # received
        for record in self._reader.records(lane, first, below - first):
            if record.number >= below:
                break
            self._follower.index(record)
            if lane == Lane.LIVE and before_ns:
                self._follower.silence(before_ns, record.received_ns)
            before_ns = record.received_ns
            oldest_ns = oldest_ns or before_ns
            if values and (record.kind == FrameKind.BLOCK or record.new):
                try:
                    self._follower.values(record, live=False)
                except CorruptError as error:
                    self._follower.facts.error = str(error)
        if lane == Lane.LIVE and before_ns:
            if self._after_ns:
                self._follower.silence(before_ns, self._after_ns)
            self._after_ns = oldest_ns
        self._below[lane] = 0 if oldest_ns and now_ns - oldest_ns > DAYS * _DAY_NS else first
