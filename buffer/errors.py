"""What can go wrong in the store, by whose fault it is.

`StoreError` is never raised itself. The three children answer "whose fault": the caller's, the disk's, the bytes'.
"""

from __future__ import annotations

import errno as numbers
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType


class StoreError(Exception):
    """Base of everything `buffer` raises on purpose."""


class MisuseError(StoreError):
    """The caller broke the contract of a function: a defect of ours, never of the site. Not to be caught."""


class StorageFault(StoreError):
    """The disk said no: EIO, ENOSPC, a failed sync, a lock held by another process. Environment, exit code 3."""

    def __init__(self, message: str, *, path: str, errno: int | None = None) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.errno = errno


class CorruptError(StoreError):
    """Bytes that are not what their format says. Names file and offset, so that a person can look."""

    def __init__(self, message: str, *, source: str = "", offset: int | None = None) -> None:
        where = source if offset is None else f"{source} at byte {offset}"
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.source = source
        self.offset = offset

    def at(self, source: str, offset: int | None = None) -> CorruptError:
        """Return the same finding with the place filled in (parsers of plain bytes do not know their file)."""
        return type(self)(self.message, source=source, offset=offset)


class SignatureError(CorruptError):
    """A signature does not fit its bytes, or its key is not known. The bytes are not to be believed."""


def invariant(holds: bool, message: str) -> None:
    """Raise `MisuseError` unless `holds`: a contract between our own modules, kept in production too."""
    if not holds:
        raise MisuseError(message)


_LINK: Final = "a symbolic link stands where a file of this store belongs; put the file back, or remove the link"


class faults:  # noqa: N801 -- used as a word; a generator would cost three times as much on every call
    """Turns an OSError into a StorageFault that names the path."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, OSError):
            what = _LINK if error.errno == numbers.ELOOP else error.strerror or str(error)
            raise StorageFault(what, path=self._path, errno=error.errno) from error
