"""Reading a store that somebody brought: a copy, a stick, a backup. Nothing in it is believed to be a file before it was looked at.

A pipe would block for ever, a device or a sparse file would fill the memory, a link would lead elsewhere: each is a CorruptError that
names the path, so that `verify` and `ring check` report it as a finding and go on with the rest.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError, StorageFault
from buffer.storage import PosixReadStorage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILE_BYTES_MAX: Final = 1024**3  # no file of a ring or a landing is as large; one is read whole


def plain_size(path: Path | str, name: str, most: int = FILE_BYTES_MAX) -> int | None:
    """Return the length of a plain file, None if it is not there; raise CorruptError for anything else, or more than `most` bytes."""
    try:
        facts = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageFault(error.strerror or str(error), path=name, errno=error.errno) from error
    if not stat.S_ISREG(facts.st_mode):
        raise CorruptError("not a plain file", source=name, offset=0)
    if facts.st_size > most:
        message = f"{facts.st_size} bytes: larger than any file of ours"
        raise CorruptError(message, source=name, offset=0)
    return facts.st_size


class PlainFiles(PosixReadStorage):
    """Read-only view of a directory tree of unknown origin. Beyond `ReadStorage`: CorruptError for what is no plain file or too large."""

    def _at(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise CorruptError("a path that leaves the store", source=path.replace("\0", "\ufffd"))
        return super()._at(path)

    def list(self, path: str) -> Sequence[str]:
        """Return the names in a directory, sorted; nothing where there is none."""
        return super().list(path) if os.path.isdir(self._at(path)) else []

    def size(self, path: str) -> int | None:
        """Return the length of a file in bytes, None if it is not there; raise CorruptError."""
        return plain_size(self._at(path), path)

    def read(self, path: str, offset: int, size_bytes: int) -> bytes | None:
        """Return at most size_bytes, None if the file is not there; raise CorruptError."""
        return None if self.size(path) is None else super().read(path, offset, min(size_bytes, FILE_BYTES_MAX))
