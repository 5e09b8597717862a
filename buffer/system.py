"""The system calls that buffer.storage makes, and no others. `os` is one System; the simulated disk of the tests is another, so that
every step of creating, publishing and adopting is crashed as it really runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence


class System(Protocol):
    """As in the module `os`: same names, same errors."""

    def open(self, path: str, flags: int, mode: int = 0o777) -> int: ...  # noqa: D102
    def close(self, fd: int, /) -> None: ...  # noqa: D102
    def write(self, fd: int, data: memoryview, /) -> int: ...  # noqa: D102
    def pwrite(self, fd: int, data: memoryview, offset: int, /) -> int: ...  # noqa: D102
    def pread(self, fd: int, length: int, offset: int, /) -> bytes: ...  # noqa: D102
    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int, /) -> int: ...  # noqa: D102
    def fsync(self, fd: int) -> None: ...  # noqa: D102
    def fdatasync(self, fd: int) -> None: ...  # noqa: D102
    def fchmod(self, fd: int, mode: int) -> None: ...  # noqa: D102
    def chmod(self, path: str, mode: int) -> None: ...  # noqa: D102
    def rename(self, src: str, dst: str) -> None: ...  # noqa: D102
    def unlink(self, path: str) -> None: ...  # noqa: D102
    def ftruncate(self, fd: int, length: int, /) -> None: ...  # noqa: D102
    def mkdir(self, path: str, mode: int = 0o777) -> None: ...  # noqa: D102
    def listdir(self, path: str) -> list[str]: ...  # noqa: D102
    def stat(self, path: str) -> os.stat_result: ...  # noqa: D102
    def statvfs(self, path: str) -> os.statvfs_result: ...  # noqa: D102
    def posix_fadvise(self, fd: int, offset: int, length: int, advice: int, /) -> None: ...  # noqa: D102


def write_all(system: System, fd: int, data: bytes | memoryview) -> None:
    """Write all of it where the file stands."""
    view = memoryview(data)
    while view:
        view = view[system.write(fd, view) :]


def pwrite_all(system: System, fd: int, offset: int, data: bytes) -> None:
    """Write all of it at an offset."""
    view = memoryview(data)
    while view:
        done = system.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def pread_all(system: System, fd: int, offset: int, size_bytes: int) -> bytes:
    """Return the bytes at an offset, fewer only at the end of the file."""
    parts: list[bytes] = []
    while size_bytes > 0:
        part = system.pread(fd, size_bytes, offset)
        if not part:
            break
        parts.append(part)
        offset, size_bytes = offset + len(part), size_bytes - len(part)
    return b"".join(parts)
