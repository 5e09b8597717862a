"""The file of the next journal, zeroed beside commits: made by one of them, it would keep its readings waiting for 16 MiB and a sync.

In a ring that runs for long, journals are recycled and nothing is to be made. It is made where there is room for it: history is never
evicted, and a nearly full disk never filled, for a file that can wait until it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from buffer import layout
from buffer.errors import StorageFault

if TYPE_CHECKING:
    from buffer.journals import Journals
    from buffer.room import Room
    from buffer.storage import Storage

DISK_FREE_JOURNALS_MIN: Final = 8  # journals that must fit the disk's free space: it is also somebody else's


class Spare:
    """`wanted`, then `make`, then `add`. Only `make` may run while another thread commits, and it alone takes time."""

    def __init__(self, storage: Storage, journals: Journals, room: Room) -> None:
        self._storage = storage
        self._journals = journals
        self._room = room
        self._tried = ""  # the journal that was active

    def wanted(self) -> int | None:
        """Return the number of the file to make; None where one waits, there is no room, or this journal already had its try."""
        journals, active = self._journals, self._journals.active
        if journals.free or active is None or active.facts.name.path == self._tried:
            return None
        self._tried = active.facts.name.path
        try:
            room = self._storage.free_bytes() >= DISK_FREE_JOURNALS_MIN * journals.journal_bytes
        except StorageFault:
            return None
        return journals.new_number() if room and self._room.over_bytes() + journals.journal_bytes <= 0 else None

    def make(self, number: int) -> bool:
        """Make it, durable; say whether it is there."""
        try:
            self._storage.close(self._storage.create(layout.free_journal(number), self._journals.journal_bytes))
        except StorageFault:
            return False
        return True

    def add(self, number: int) -> None:
        """Count it: the next journal is this file."""
        self._journals.free.append(number)
