"""Who speaks with a source: one lock per source in <state>/collect/lock/, held by collect, or by check, browse and read (G10).

Two processes at one PLC would be two sessions and twice the load. collect holds the locks of all its sources, gives up those that are
paused LET_GO_NS after the pause began, and takes them again when the pause ends. A lock ends with its process, however that ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from buffer.errors import StorageFault
from buffer.storage import PosixStorage, make_directory
from gateway.errors import PlantError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

LET_GO_NS: Final = 3 * 10**9  # a source leaves within a second of a pause
WAIT_S: Final = 8.0  # for collect to let a paused source go
_LOOK_S: Final = 0.25
_NAMES_SHOWN_MAX: Final = 5  # in one message
_PRIVATE: Final = 0o700  # nobody else can open, and so hold, a lock


class SourceLocks:
    """The locks of one process. Methods raise StorageFault only where the directory itself cannot be used."""

    def __init__(self, directory: Path, names: Iterable[str]) -> None:
        """directory: <state>/collect."""
        make_directory(directory / "lock", _PRIVATE)
        self._storage = PosixStorage(directory / "lock")
        self._names = tuple(names)
        self._held: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The sources this process may speak with."""
        return self._names

    def watch(self, names: Iterable[str]) -> None:
        """Speak with these sources from now on: locks of others are given up, those of new ones are taken at the next poll."""
        self._names = tuple(names)
        for gone in set(self._held) - set(self._names):
            self.release(gone)

    def take(self, name: str) -> bool:
        """Take a lock if it is free; say whether it is held now."""
        if name not in self._held:
            try:
                self._held[name] = self._storage.lock(name)
            except StorageFault:
                return False
        return True

    def release(self, name: str) -> None:
        """Give a lock up."""
        handle = self._held.pop(name, None)
        if handle is not None:
            self._storage.close(handle)


async def wait_for_turn(
    directory: Path, name: str, paused: Callable[[str], bool], sleep: Callable[[float], Awaitable[None]], beside: Sequence[str] = ()
) -> SourceLocks:
    """Return the lock of a source, taken; raise PlantError if collect reads it now. Waits WAIT_S if the source was paused just now.

    beside: sources on the same connection, where there can be no second one: their locks are taken too.
    """
    locks = SourceLocks(directory, (name, *beside))
    busy = [name]
    for _ in range(round(WAIT_S / _LOOK_S)):
        busy = [one for one in locks.names if not locks.take(one)]
        if not busy:
            return locks
        if unasked := [one for one in busy if not paused(one)]:
            busy = unasked
            break
        await sleep(_LOOK_S)
    for one in locks.names:
        locks.release(one)
    raise _busy(name, busy)


def _busy(name: str, busy: Sequence[str]) -> SourceBusy:
    about = "`ebbgate status` shows what collect knows. To ask the machine yourself:"
    if name in busy:
        return SourceBusy(
            f"{name} is being read by collect, or by another check, browse or read: a second session might lock others out",
            f"{about} ebbgate pause {name}, then this again, then ebbgate resume {name}.",
        )
    others = ", ".join(busy[:_NAMES_SHOWN_MAX]) + (f" and {len(busy) - _NAMES_SHOWN_MAX} more" if len(busy) > _NAMES_SHOWN_MAX else "")
    return SourceBusy(
        f"{others} on the connection of {name} is being read by collect, or by another check or read: a device gets one connection",
        f"{about} pause {others} too. Where the device has a connection to spare, say so: source.{name}.load = {{ connections = 2 }}.",
    )


class SourceBusy(PlantError):
    """Another process of ours speaks with the source."""
