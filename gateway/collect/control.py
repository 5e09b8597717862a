"""Requests of people, as files in <state>/control/, written by an operator group and polled here. Nothing is written back.

`pause/<source>`: while the file exists, that source is left alone. Its first line says who and why. Also left alone is a source whose lock
another process holds: somebody's `check`, `browse` or `read` (gateway.collect.locks).

`fill/<source>`: gaps that a person wants filled from the server's history (gateway.fillorder). Read when the file changes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gateway.collect.locks import LET_GO_NS
from gateway.errors import ConfigError
from gateway.fillorder import ORDER_BYTES_MAX, FillOrder, parse_order

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.collect.locks import SourceLocks

PAUSE_FILES_MAX: Final = 4_096  # one per source at the most; a directory filled by mistake costs no memory
_REASON_CHARS_MAX: Final = 200


class Control:
    """The requests in force. `poll` reads the directory; sources ask `paused` and `asked`."""

    def __init__(self, directory: Path, locks: SourceLocks | None = None, generation: str = "") -> None:
        """generation: of the ring that is written now."""
        self._directory = directory / "pause"
        self._fills = directory / "fill"
        self._generation = generation
        self._orders: dict[str, tuple[tuple[int, int], FillOrder | str]] = {}  # source -> file as it was (mtime, inode), what it says
        self._locks = locks
        self._paused: dict[str, str] = {}
        self.fault = ""  # why the requests cannot be read; those in force stay
        self._since_ns: dict[str, int] = {}

    def poll(self, now_ns: int = 0) -> tuple[dict[str, str], set[str]]:
        """Read the directory; return what was newly paused (source -> reason) and what was resumed. now_ns: monotonic."""
        now: dict[str, str] = {}
        try:
            for path in sorted(self._directory.iterdir())[:PAUSE_FILES_MAX]:
                if not path.name.startswith("."):
                    now[path.name] = self._reason(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.fault = f"{self._directory} cannot be read: {error.strerror or error}"
            return {}, set()
        self.fault = ""
        now |= self._locked(now, now_ns)
        new = {name: reason for name, reason in now.items() if name not in self._paused}
        gone = set(self._paused) - set(now)
        self._paused = now
        return new, gone

    def paused(self, source: str) -> bool:
        """Say whether a person asked to leave this source alone."""
        return source in self._paused

    def asked(self, source: str) -> FillOrder | str | None:
        """Return what a person wants filled of this source, or why the file that says so is no order; None where there is none."""
        path = self._fills / source
        try:
            facts = path.stat()
            seen = (facts.st_mtime_ns, facts.st_ino)
            if self._orders.get(source, (None,))[0] != seen:
                with path.open("rb") as file:
                    data = file.read(ORDER_BYTES_MAX + 1)
                self._orders[source] = (seen, self._order(data, source))
        except OSError as error:
            self._orders.pop(source, None)
            return None if isinstance(error, FileNotFoundError | NotADirectoryError) else f"{path}: {error.strerror}"
        return self._orders[source][1]

    def watch(self, names: Iterable[str]) -> None:
        """Speak with these sources from now on."""
        if self._locks is not None:
            self._locks.watch(names)

    def close(self) -> None:
        """Give all locks up."""
        for name in self._locks.names if self._locks else ():
            if self._locks:
                self._locks.release(name)

    def _locked(self, paused: dict[str, str], now_ns: int) -> dict[str, str]:
        """Take and give up locks as pauses begin and end; return the sources that another process has."""
        self._since_ns = {name: self._since_ns.get(name, now_ns) for name in paused}
        others: dict[str, str] = {}
        for name in self._locks.names if self._locks else ():
            if self._locks and name not in paused and not self._locks.take(name):
                others[name] = "somebody's check, browse or read is at it"
            elif self._locks and name in paused and now_ns - self._since_ns[name] >= LET_GO_NS:
                self._locks.release(name)
        return others

    @staticmethod
    def _reason(path: Path) -> str:
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                return file.read(_REASON_CHARS_MAX).partition("\n")[0].strip()
        except OSError:
            return ""

    def _order(self, data: bytes, source: str) -> FillOrder | str:
        try:
            order = parse_order(data)
        except ConfigError as error:
            return error.message
        if order.source != source:
            return f"an order for {order.source!r}, not for {source!r}"
        return replace(order, fresh=order.generation == self._generation)
