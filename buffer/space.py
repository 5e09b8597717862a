"""Making room on a file system that is full, by our doing or another's: evict a little, measure again, go on while it helps.

First a committed block with the new `low`, then truncate and unlink. The block stands in the open journal, which keeps a place for it; where
no journal has one, as at a start, in the reserve journal. What such a start evicts first is enough for the next one, should this one die.
"""

from __future__ import annotations

from errno import ENOSPC
from typing import TYPE_CHECKING, Final

from buffer.errors import StorageFault
from buffer.journals import RECORD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from buffer.journals import Journals
    from buffer.room import Room
    from buffer.state import Place
    from buffer.storage import Storage

EVICTIONS_MAX: Final = 16  # at one time, each of twice as much as the one before


class Space:
    """helpless: evicting did not make room; not again until something shows that it would."""

    def __init__(self, storage: Storage, journals: Journals, room: Room) -> None:
        self._storage = storage
        self._journals = journals
        self._room = room
        self.helpless = False

    def keep_reserve(self) -> bool:
        """Have the reserve journal; say whether it is there."""
        before, there = self._journals.reserve, self._journals.keep_reserve()
        self.helpless = self.helpless and before == there
        return there

    def used(self, act: Callable[[], None], make: Callable[[], None]) -> None:
        """Do what takes space; once more after `make`, where there was none."""
        try:
            act()
        except StorageFault as fault:
            if fault.errno != ENOSPC:
                raise
            make()
            self.helpless = True  # unless it goes now, somebody else takes what we free
            act()
            self.helpless = not self._journals.reserve

    def make(
        self, object_bytes: int, need_bytes: int, end: Place, monotonic_ns: int, begin_reserve: Callable[[], bool], commit: Callable[[], None]
    ) -> None:
        """Have room for an object, and for a journal that takes a commit; 0: for none. Raise StorageFault where evicting does not help.

        end: of all readings. begin_reserve: open the reserve journal, if it is there; commit: a block with nothing but the record.
        """
        room, journals, step = self._room, self._journals, 1
        room.give_back_spare(monotonic_ns, max(1, object_bytes + journals.wanted_bytes(need_bytes) - self._storage.free_bytes()))
        for _ in range(EVICTIONS_MAX):
            before, used = self._storage.free_bytes(), room.used_bytes()
            wanted = object_bytes + journals.wanted_bytes(need_bytes)
            if before >= wanted:
                return
            if journals.shrink_pool():
                continue
            if self.helpless:
                break
            if not journals.fits(RECORD_BYTES):
                if not begin_reserve():
                    break
                step = 2 * journals.reserve_file_bytes
            if not room.raise_low(min(step, wanted - before), end):
                break
            commit()
            room.drop_below(room.low)
            self.helpless = self._storage.free_bytes() - before < (used - room.used_bytes()) // 2
            step *= 2
        raise StorageFault("the file system is full by somebody else's doing; evicting does not help", path="", errno=ENOSPC)
