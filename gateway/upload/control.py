"""What people ask of the uploader: files in <state>/control/, written by an operator group and polled. Nothing is written back.

`retry`      whenever its time changes: forget the back-off and try what is parked now
`backfill`   first line "newest": the backlog goes newest first while the file says so
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Control:
    """The requests in force."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._retry = self._stamp()

    def _stamp(self) -> int:
        try:
            return (self._directory / "retry").stat().st_mtime_ns
        except OSError:
            return 0

    def retry(self) -> bool:
        """Say whether a person asked since the last look."""
        before, self._retry = self._retry, self._stamp()
        return self._retry not in (0, before)

    def newest_first(self) -> bool:
        """Say whether a person wants the newest part of the backlog first."""
        try:
            with (self._directory / "backfill").open(encoding="ascii", errors="replace") as file:
                return file.read(16).partition("\n")[0].strip() == "newest"
        except OSError:
            return False
