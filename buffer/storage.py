"""The only door to the disk, and the only place with fsync, rename and unlink. PosixStorage in life, a simulated disk in tests.

Storage model (DESIGN G1): a completed sync persists; what was not synced may be lost, torn at 512 bytes, or reordered; a name is
durable when its directory was synced; after a failed sync the page cache lies, so that handle is never written or synced again.

Paths are relative to one root and use "/". Every OSError becomes a StorageFault that names path and errno.
"""

from __future__ import annotations

import contextlib
import errno as errno_module
import fcntl
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from buffer.errors import MisuseError, StorageFault, faults
from buffer.system import pread_all, pwrite_all, write_all
from buffer.together import in_turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from buffer.system import System
    from buffer.together import Each

ZERO_CHUNK_BYTES: Final = 1024 * 1024
DIRECT_ALIGN_BYTES: Final = 4096  # covers 512- and 4096-byte logical blocks
FILE_MODE: Final = 0o640  # later processes read by group
DIRECTORY_MODE: Final = 0o750
TEMPORARY_SUFFIX: Final = ".tmp"
# A link under a name of ours leads to a file of somebody else, which is neither read nor changed; a pipe is an error, no wait.
_OURS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_READ: Final = os.O_RDONLY | _OURS


class ReadStorage(Protocol):
    """What readers may do: look, never touch."""

    def list(self, path: str) -> Sequence[str]:
        """Return the names in a directory, sorted; an absent directory is empty."""

    def size(self, path: str) -> int | None:
        """Return the length of a file in bytes, None if it is not there."""

    def read(self, path: str, offset: int, size_bytes: int) -> bytes | None:
        """Return at most size_bytes through the page cache; None if the file is not there."""

    def read_direct(self, path: str, offset: int, size_bytes: int) -> bytes | None:
        """Return at most size_bytes past the page cache: what the device holds; None if the file is not there."""


class Storage(ReadStorage, Protocol):
    """What the one writer may do."""

    def create(self, path: str, size_bytes: int) -> int:
        """Make a file of zeros that must not exist, synced with its directory; return a handle."""

    def open(self, path: str) -> int:
        """Open an existing file for pwrite; return a handle."""

    def pwrite(self, handle: int, offset: int, data: bytes) -> None:
        """Write all of data at offset."""

    def fdatasync(self, handle: int) -> None:
        """Make what was written durable. After a StorageFault the handle accepts neither write nor sync."""

    def close(self, handle: int) -> None:
        """Give the handle back. Does not sync."""

    def publish(self, path: str, chunks: Iterable[bytes]) -> None:
        """Make or replace a file in one step: temporary file, write, fsync, rename, directory synced."""

    def publish_together(self, files: Sequence[tuple[str, bytes | memoryview]]) -> None:
        """Publish several files, each in one step, all durable on return: a directory is synced once. StorageFault: any may be there."""

    def adopt(self, temporary: str, path: str) -> None:
        """Publish a file somebody else wrote in this store: fsync, rename, directory synced."""

    def truncate(self, path: str, size_bytes: int) -> None:
        """Cut a file; not synced."""

    def rename(self, old: str, new: str) -> None:
        """Rename; durable only after fsync_dir."""

    def unlink(self, path: str) -> None:
        """Remove; durable only after fsync_dir. An absent file is a fact, not a fault."""

    def mkdir(self, path: str, mode: int = DIRECTORY_MODE) -> None:
        """Make a directory and its parents where absent; durable on return."""

    def fsync_dir(self, path: str) -> None:
        """Make the names in a directory durable."""

    def sync_file(self, path: str) -> None:
        """Open, fsync, close: recovery does it before it believes what it reads."""

    def lock(self, path: str) -> int:
        """Take the writer's lock until the handle is closed or this process ends; raise StorageFault if somebody else holds it."""

    def free_bytes(self) -> int:
        """Return what the file system still takes."""


class PosixReadStorage:
    """Read-only view of one directory tree; methods as in `ReadStorage`. Opens and closes per call: holds nothing."""

    def __init__(self, root: Path, system: System = os) -> None:
        self.root = root
        self._os = system

    def _at(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            message = f"path {path!r} leaves the store"
            raise MisuseError(message)
        return f"{self.root}/{path}" if path else str(self.root)

    def list(self, path: str) -> Sequence[str]:
        with faults(path):
            try:
                return sorted(self._os.listdir(self._at(path)))
            except FileNotFoundError:
                return []

    def size(self, path: str) -> int | None:
        with faults(path):
            try:
                return self._os.stat(self._at(path)).st_size
            except FileNotFoundError:
                return None

    def read(self, path: str, offset: int, size_bytes: int) -> bytes | None:
        with faults(path):
            try:
                fd = self._os.open(self._at(path), _READ)
            except FileNotFoundError:
                return None
            try:
                return pread_all(self._os, fd, offset, size_bytes)
            finally:
                self._os.close(fd)

    def read_direct(self, path: str, offset: int, size_bytes: int) -> bytes | None:
        """Return at most size_bytes past the page cache (O_DIRECT, else dropped cache); None if the file is not there."""
        with faults(path):
            try:
                return self._read_direct(path, offset, size_bytes)
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno not in (errno_module.EINVAL, errno_module.EOPNOTSUPP, errno_module.ENOTSUP):
                    raise
            return self._read_dropped(path, offset, size_bytes)

    def _read_direct(self, path: str, offset: int, size_bytes: int) -> bytes:
        first = offset // DIRECT_ALIGN_BYTES * DIRECT_ALIGN_BYTES
        span = -(-(offset + size_bytes - first) // DIRECT_ALIGN_BYTES) * DIRECT_ALIGN_BYTES
        if span <= 0:
            return b""
        fd = self._os.open(self._at(path), _READ | os.O_DIRECT)
        try:
            with mmap.mmap(-1, span) as page_aligned, memoryview(page_aligned) as view:
                got = 0
                while got < span and got % DIRECT_ALIGN_BYTES == 0:  # an odd count is the end of the file
                    with view[got:] as rest:
                        part = self._os.preadv(fd, [rest], first + got)
                    if part == 0:
                        break
                    got += part
                return bytes(view[offset - first : min(got, offset - first + size_bytes)])
        finally:
            self._os.close(fd)

    def _read_dropped(self, path: str, offset: int, size_bytes: int) -> bytes:
        fd = self._os.open(self._at(path), _READ)
        try:
            self._os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return pread_all(self._os, fd, offset, size_bytes)
        finally:
            self._os.close(fd)

    def free_bytes(self) -> int:
        with faults(""):
            facts = self._os.statvfs(str(self.root))
            return facts.f_bavail * facts.f_frsize


class PosixStorage(PosixReadStorage):
    """The writer's view of one directory tree; methods as in `Storage`. file_mode None: a file system without modes (FAT).

    each: how files are worked through that are published together.
    """

    def __init__(self, root: Path, system: System = os, *, file_mode: int | None = FILE_MODE, each: Each = in_turn) -> None:
        super().__init__(root, system)
        self._file_mode = file_mode
        self._each = each
        self._poisoned: set[int] = set()
        self._names: dict[int, str] = {}

    def create(self, path: str, size_bytes: int) -> int:
        with faults(path):  # real zeros, not a hole: a later write must need no new block
            fd = self._os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL | _OURS, FILE_MODE)
            try:
                zeros = bytes(min(ZERO_CHUNK_BYTES, size_bytes))
                for at in range(0, size_bytes, ZERO_CHUNK_BYTES):
                    pwrite_all(self._os, fd, at, zeros[: size_bytes - at])
                self._os.fsync(fd)
                _sync_directory(self._os, os.path.dirname(self._at(path)))
            except OSError:
                self._os.close(fd)
                with contextlib.suppress(OSError):
                    self._os.unlink(self._at(path))
                raise
            self._names[fd] = path
            return fd

    def open(self, path: str) -> int:
        with faults(path):
            fd = self._os.open(self._at(path), os.O_RDWR | _OURS)
            self._names[fd] = path
            return fd

    def pwrite(self, handle: int, offset: int, data: bytes) -> None:
        self._refuse_poisoned(handle)
        with faults(self._names.get(handle, "?")):
            pwrite_all(self._os, handle, offset, data)

    def fdatasync(self, handle: int) -> None:
        """Make what was written durable; a failure poisons the handle."""
        self._refuse_poisoned(handle)
        with faults(self._names.get(handle, "?")):
            try:
                self._os.fdatasync(handle)
            except OSError:
                self._poisoned.add(handle)
                raise

    def _refuse_poisoned(self, handle: int) -> None:
        if handle in self._poisoned:
            message = f"{self._names.get(handle)}: written or synced again after a failed sync"
            raise MisuseError(message)

    def close(self, handle: int) -> None:
        self._poisoned.discard(handle)
        self._names.pop(handle, None)
        with contextlib.suppress(OSError):
            self._os.close(handle)

    def publish(self, path: str, chunks: Iterable[bytes]) -> None:
        with faults(path):
            _publish(self._os, self._at(path), chunks, durable=True, mode=self._file_mode)

    def publish_together(self, files: Sequence[tuple[str, bytes | memoryview]]) -> None:
        def one(file: tuple[str, bytes | memoryview]) -> None:
            with faults(file[0]):
                _publish(self._os, self._at(file[0]), [file[1]], durable=True, mode=self._file_mode, sync_name=False)

        self._each(one, files)
        for directory in sorted({os.path.dirname(path) for path, _ in files}):
            self.fsync_dir(directory)

    def adopt(self, temporary: str, path: str) -> None:
        self.sync_file(temporary)
        with faults(path):
            self._os.chmod(self._at(temporary), FILE_MODE)
            self._os.rename(self._at(temporary), self._at(path))
            _sync_directory(self._os, os.path.dirname(self._at(path)))

    def truncate(self, path: str, size_bytes: int) -> None:
        with faults(path):
            try:
                fd = self._os.open(self._at(path), os.O_WRONLY | _OURS)
            except OSError as error:
                if error.errno == errno_module.ELOOP:
                    return  # a link: nothing behind it is ours
                raise
            try:
                self._os.ftruncate(fd, size_bytes)
            finally:
                self._os.close(fd)

    def rename(self, old: str, new: str) -> None:
        with faults(old):
            self._os.rename(self._at(old), self._at(new))

    def unlink(self, path: str) -> None:
        with faults(path), contextlib.suppress(FileNotFoundError):
            self._os.unlink(self._at(path))

    def mkdir(self, path: str, mode: int = DIRECTORY_MODE) -> None:
        with faults(path):
            _make_directory(self._os, self._at(path), mode)

    def fsync_dir(self, path: str) -> None:
        with faults(path):
            _sync_directory(self._os, self._at(path))

    def sync_file(self, path: str) -> None:
        with faults(path):
            fd = self._os.open(self._at(path), _READ)
            try:
                self._os.fsync(fd)
            finally:
                self._os.close(fd)

    def lock(self, path: str) -> int:
        """Take an exclusive lock on a file in a directory only its owner can enter; return its handle."""
        with faults(path):
            fd = self._os.open(self._at(path), os.O_RDWR | os.O_CREAT | _OURS, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._os.close(fd)
                if isinstance(error, BlockingIOError):
                    raise StorageFault("another process writes here; stop it first", path=path, errno=errno_module.EBUSY) from None
                raise
            self._names[fd] = path
            return fd


# ---- plain files of any process: configuration, keys, status ----


def publish_file(path: Path, data: bytes, *, durable: bool = True, mode: int = FILE_MODE) -> None:
    """Make or replace one small file by rename; raise StorageFault. Not durable: good enough for a status shown to people."""
    with faults(str(path)):
        _publish(os, str(path), [data], durable=durable, mode=mode)


def make_directory(path: Path, mode: int = DIRECTORY_MODE) -> None:
    """Make a directory and its parents where absent, names durable; raise StorageFault."""
    with faults(str(path)):
        _make_directory(os, str(path), mode)


def remove_file(path: Path) -> None:
    """Remove a file where it is there, durably; raise StorageFault."""
    with faults(str(path)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        _sync_directory(os, str(path.parent))


def _publish(system: System, path: str, chunks: Iterable[bytes | memoryview], *, durable: bool, mode: int | None, sync_name: bool = True) -> None:
    """One owner per file: the temporary name is fixed, and what a crash left under it is overwritten."""
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}{TEMPORARY_SUFFIX}")
    fd = system.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _OURS, FILE_MODE if mode is None else mode)
    try:
        try:
            if mode is not None:
                system.fchmod(fd, mode)
            for chunk in chunks:
                write_all(system, fd, chunk)
            if durable:
                system.fsync(fd)
        finally:
            system.close(fd)
        system.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            system.unlink(temporary)
        raise
    if durable and sync_name:
        _sync_directory(system, directory)


def _make_directory(system: System, path: str, mode: int) -> None:
    """The parent is synced also where the directory is there: the process that made it may have died before that."""
    parent = os.path.dirname(path)
    try:
        system.mkdir(path, mode)
    except FileExistsError:
        with contextlib.suppress(PermissionError):  # a parent of somebody else, who made it
            _sync_directory(system, parent)
        return
    except FileNotFoundError:
        _make_directory(system, parent, mode)
        with contextlib.suppress(FileExistsError):  # another process of ours was faster
            system.mkdir(path, mode)
    _sync_directory(system, parent)


def _sync_directory(system: System, path: str) -> None:
    fd = system.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        system.fsync(fd)
    finally:
        system.close(fd)
