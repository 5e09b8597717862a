"""The journals of a ring and its `durable` mark, as their writer handles them: begin, append, sync, recycle. Decides nothing about data.

At most JOURNAL_POOL_FILES_MAX files wait to be used again, zeroed once. A journal whose sync failed is never written again (G9), not
even to recycle it. The last JOURNAL_RESERVE_BYTES of a journal are left to the caller for state records: with the disk full, the
record that must precede an eviction still has its place. Where no journal has such a place, as at a start, the reserve journal is that
place: a small file, zeroed while there was room, that becomes a journal by its name; what is cut off its end is room for the `last` file
without which no journal may go.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from errno import ENOSPC
from typing import TYPE_CHECKING, Final

from buffer import layout, limits
from buffer.errors import MisuseError, StorageFault
from buffer.journal import PAGE, JournalHeader, JournalWriter, frame_pages
from buffer.layout import DurableMark, JournalName
from buffer.recovery import JournalFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buffer.cut import Built
    from buffer.storage import Storage


RECORD_BYTES: Final = limits.MANIFEST_BYTES_MAX + PAGE  # the most that a block takes that holds a state record and nothing else


@dataclass(slots=True)
class Active:
    """The journal being written. acked_end: behind the newest block that was synced."""

    writer: JournalWriter
    facts: JournalFacts
    opened_ns: int
    acked_end: int = PAGE
    payload_bytes: int = 0


class Journals:
    """Owner of journal/ and `durable`. closed: journals not written any more, oldest first."""

    def __init__(self, storage: Storage, stream: str, journal_bytes: int, reserve_bytes: int, salts: Callable[[], int]) -> None:
        self._storage = storage
        self._stream = stream
        self.journal_bytes = journal_bytes
        self._reserve_bytes = reserve_bytes
        self._slack_bytes = reserve_bytes // 2
        self.reserve_file_bytes = PAGE + 2 * RECORD_BYTES + reserve_bytes + self._slack_bytes  # two: the commit that waits for the record too
        self._salts = salts
        self._serial = 0
        self._mark: int | None = None
        self._next_free = 0
        self._dead: dict[str, int] = {}  # files nothing is in, that could not be removed yet
        self.generation = 0
        self.active: Active | None = None
        self.closed: list[JournalFacts] = []
        self.free: list[int] = []
        self.reserve = False  # the reserve journal is there

    def take_over(self, closed: Sequence[JournalFacts], free: Sequence[int], now_ns: int) -> None:
        """Begin with what recovery found."""
        self.closed = list(closed)
        for journal in self.closed:
            journal.sealed_at_ns = now_ns
        for number in sorted(free):
            self._next_free = number + 1
            path = layout.free_journal(number)
            if self._storage.size(path) == self.journal_bytes and len(self.free) < limits.JOURNAL_POOL_FILES_MAX:
                self.free.append(number)
            else:
                self._dead[path] = 0
        size = self._storage.size(layout.RESERVE_JOURNAL)
        self.reserve = size == self.reserve_file_bytes
        if size is not None and not self.reserve:
            self._dead[layout.RESERVE_JOURNAL] = size
        self.bury()

    # ---- writing ----

    def fits(self, size_bytes: int) -> bool:
        """Say whether the active journal takes this much."""
        return self.active is not None and self.active.writer.room() >= size_bytes

    def begin(self, first_seq: int, first_block: int, need_bytes: int, now_ns: int) -> None:
        """Have a new journal for a commit of need_bytes; the old one is closed. Raise StorageFault: the old one goes on.

        Where the disk is full and no journal is open, a small one must do.
        """
        size = max(self.journal_bytes, PAGE + need_bytes + self._reserve_bytes)
        try:
            active = self._create(first_seq, first_block, size, now_ns)
        except StorageFault as fault:
            if fault.errno != ENOSPC or self.active is not None:
                raise
            active = self._create(first_seq, first_block, PAGE + need_bytes + self._reserve_bytes, now_ns)
        self.close_active()
        self.active = active

    def wanted_bytes(self, need_bytes: int) -> int:
        """Return what the disk must have free for the reserve journal, if it is not there, and a journal for a commit of need_bytes, if any."""
        size = max(self.journal_bytes, PAGE + need_bytes + self._reserve_bytes)
        recycled = not need_bytes or (bool(self.free) and size == self.journal_bytes)
        return (0 if recycled else size + PAGE) + (0 if self.reserve else self.reserve_file_bytes + PAGE)

    def keep_reserve(self) -> bool:
        """Have the reserve journal; say whether it is there."""
        if not self.reserve and layout.RESERVE_JOURNAL not in self._dead:
            try:
                self._storage.close(self._storage.create(layout.RESERVE_JOURNAL, self.reserve_file_bytes))
                self.reserve = True
            except StorageFault:
                self._dead[layout.RESERVE_JOURNAL] = 0
        self.bury()
        return self.reserve

    def begin_reserve(self, first_seq: int, first_block: int, now_ns: int) -> bool:
        """Go on in the reserve journal, which takes no space but gives some; False where there is none. Raise StorageFault."""
        if not self.reserve:
            return False
        self.reserve, size = False, self.reserve_file_bytes - self._slack_bytes
        try:
            self._storage.truncate(layout.RESERVE_JOURNAL, size)
        except StorageFault:
            self._dead[layout.RESERVE_JOURNAL] = self.reserve_file_bytes
            raise
        active = self._create(first_seq, first_block, size, now_ns, layout.RESERVE_JOURNAL)
        self.close_active()
        self.active = active
        return True

    def new_number(self) -> int:
        """Return a number for a file of the pool, given once."""
        number, self._next_free = self._next_free, self._next_free + 1
        return number

    def _create(self, first_seq: int, first_block: int, size: int, now_ns: int, recycled: str | None = None) -> Active:
        name = JournalName(self.generation, first_seq, self._serial)
        self._serial += 1  # also after a failure: a name is used once
        if recycled is None and self.free and size == self.journal_bytes:
            recycled = layout.free_journal(self.free.pop())
        header = JournalHeader(self._stream, self.generation, first_seq, first_block, name.serial, self._salts())
        try:
            writer = JournalWriter.create(self._storage, name.path, header, size, recycled)
        except StorageFault:
            self._dead[name.path] = size
            if recycled is not None:
                self._dead[recycled] = 0
            self.bury()
            raise
        return Active(writer, JournalFacts(name, size), now_ns)

    def _open(self) -> Active:
        if self.active is None:
            raise MisuseError("write before begin")
        return self.active

    def close_active(self) -> None:
        """Write no more to the active journal."""
        active, self.active = self.active, None
        if active is None:
            return
        active.writer.close()
        active.facts.runs = [run for run in active.facts.runs if run.readings]
        active.facts.sealed_at_ns = active.opened_ns
        self.closed.append(active.facts)

    def write(self, built: Sequence[Built]) -> None:
        """Write and sync one commit, its last block only when the others are durable. Raise StorageFault: see `abandon`."""
        active = self._open()
        self._expect(active.facts.name.path, active.acked_end)
        writer = active.writer
        for one in built[:-1]:
            writer.append(one.frame)
        if len(built) > 1:
            writer.sync()
        writer.append(built[-1].frame)
        writer.sync()

    def _expect(self, path: str, least_bytes: int) -> None:
        """Raise StorageFault where somebody removed or cut a file that is held open: it takes writes and syncs, and nobody will ever read them."""
        try:
            size = self._storage.size(path)
        except StorageFault:
            return  # a directory that cannot be looked into still has it
        if size is None or size < least_bytes:
            raise StorageFault("removed or cut by somebody while it was written", path=path)

    def acknowledge(self, built: Sequence[Built], seq: int, block: int) -> int:
        """Note a durable commit, which ended at seq and block; readers may have it. Return the bytes it took."""
        active = self._open()
        for one in built:
            active.facts.note(one.frame.manifest)
            active.payload_bytes += len(one.frame.payload)
        taken, active.acked_end = active.writer.end - active.acked_end, active.writer.end
        self._advance(DurableMark(self.generation, active.facts.name.serial, active.acked_end, seq, block))
        return taken

    def _advance(self, mark: DurableMark) -> None:
        data = layout.encode_durable(mark)
        try:
            if self._mark is None and self._storage.size(layout.DURABLE) == len(data):
                self._mark = self._storage.open(layout.DURABLE)
            if self._mark is not None:
                self._expect(layout.DURABLE, len(data))
                self._storage.pwrite(self._mark, 0, data)
                return
        except StorageFault:
            self._forget_mark()
        self._storage.publish(layout.DURABLE, [data])

    def _forget_mark(self) -> None:
        if self._mark is not None:
            self._storage.close(self._mark)
            self._mark = None

    def abandon(self) -> None:
        """G9: that file is never written or synced again. What was acknowledged in it stays, and is read past the cache."""
        active = self.active
        self.close_active()
        if active is None:
            return
        active.facts.poisoned = True
        if active.acked_end == PAGE:
            self.give_back(active.facts)

    @staticmethod
    def need(built: Sequence[Built]) -> int:
        """Return how many bytes of a journal a commit takes."""
        return sum(frame_pages(one.frame) for one in built)

    # ---- giving back ----

    def record_holder(self) -> JournalFacts | None:
        """Return the closed journal with the newest state record: not to be given back before a newer record is committed."""
        if self.active is not None and self.active.acked_end > PAGE:
            return None
        return max((j for j in self.closed if j.last_block >= 0), key=lambda j: (j.name.generation, j.last_block), default=None)

    def give_back(self, journal: JournalFacts, *, pool: bool = True) -> None:
        """Have a closed journal no more: recycled, or removed."""
        self.closed.remove(journal)
        room = len(self.free) < limits.JOURNAL_POOL_FILES_MAX
        if pool and room and not journal.poisoned and journal.size_bytes == self.journal_bytes:
            number = self.new_number()
            with contextlib.suppress(StorageFault):
                self._storage.rename(journal.name.path, layout.free_journal(number))
                self.free.append(number)
                return
        self._dead[journal.name.path] = journal.size_bytes
        self.bury()

    def shrink_pool(self) -> bool:
        """Remove one waiting file, not the last one; say whether there was one."""
        if len(self.free) > 1:
            self._dead[layout.free_journal(self.free.pop())] = self.journal_bytes
            self.bury()
            return True
        return False

    def bury(self) -> None:
        """Remove the files nothing is in: truncated first, so that no reader's descriptor holds the space."""
        for path in list(self._dead):
            with contextlib.suppress(StorageFault):  # tried again; it counts until it is gone
                remove(self._storage, path)
                del self._dead[path]

    def usage_bytes(self) -> int:
        """Return what journal/ takes."""
        active = self.active.facts.size_bytes if self.active is not None else 0
        waiting = len(self.free) * self.journal_bytes + self.reserve * self.reserve_file_bytes
        return active + sum(j.size_bytes for j in self.closed) + waiting + sum(self._dead.values())

    def close(self) -> None:
        """Give handles back."""
        self.close_active()
        self._forget_mark()


def remove(storage: Storage, path: str) -> None:
    """Truncate, then unlink."""
    if storage.size(path) is not None:
        storage.truncate(path, 0)
        storage.unlink(path)
