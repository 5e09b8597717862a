"""Requests of people, as files in <state>/control/, written by an operator group and polled here. Nothing is written back.

`pause/<source>`: while the file exists, that source is left alone. Its first line says who and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

PAUSE_FILES_MAX: Final = 4_096  # one per source at the most; a directory filled by mistake costs no memory
_REASON_CHARS_MAX: Final = 200


class Control:
    """The requests in force. `poll` reads the directory; sources ask `paused`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "pause"
        self._paused: dict[str, str] = {}
        self.fault = ""  # why the requests cannot be read; those in force stay

    def poll(self) -> tuple[dict[str, str], set[str]]:
        """Read the directory; return what was newly paused (source -> reason) and what was resumed."""
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
        new = {name: reason for name, reason in now.items() if name not in self._paused}
        gone = set(self._paused) - set(now)
        self._paused = now
        return new, gone

    def paused(self, source: str) -> bool:
        """Say whether a person asked to leave this source alone."""
        return source in self._paused

    @staticmethod
    def _reason(path: Path) -> str:
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                return file.read(_REASON_CHARS_MAX).partition("\n")[0].strip()
        except OSError:
            return ""
