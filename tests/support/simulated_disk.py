"""A disk that can be crashed at any moment, in every way the storage model allows. It stands under `buffer.storage.PosixStorage`, in the
place of the module `os`: the steps of creating, publishing and adopting are those of the product, not a copy of them.

The fault model.

* **Cache and platter are apart.** A write goes to the page cache. Every reader and every new process sees the cache. What survives a
  power cut is the platter. A read after POSIX_FADV_DONTNEED sees the platter. O_DIRECT is refused (EINVAL), as some file systems do:
  the product then takes the other way past the cache.
* **Un-synced writes** are in one of three fates at a power cut, each piece by itself: kept, lost, or torn, for a write is broken at
  512 bytes and every piece has a fate of its own (zero sectors side by side share one). Any subset may be kept: later without earlier.
  Of a file that grew, what lies between kept pieces is zeros; a truncation is a piece like the others.
* **fsync and fdatasync** put the pieces of that file on the platter, not its name.
* **A failed fsync**: some pieces (any subset) reach the platter, none is tried again, the cache goes on showing all of them, and the
  next fsync "succeeds". The kernel says EIO once.
* **Names.** Creating, renaming, unlinking and making a directory are durable when that directory is synced. Before that any subset is
  kept, with one rule that every journaling file system keeps: two changes of one file or of one name keep their order. A file whose
  directory is not there is not there.
* **A new file** has no content on the platter until it is synced, whatever its name says: renamed before the sync, it is empty or torn.
* **kill -9** leaves the cache as it was, un-synced pieces still on their way: a power cut after it may lose them yet.
* **Full disk.** Beyond `capacity` bytes (files, and what others put there) writes that grow a file, and creations, fail with ENOSPC;
  writes into what is there do not. The data written before the failure stays.
* **Any call may fail** (`faults`: EIO, ENOSPC, EMFILE...), by its number among the calls that change something, by its name, or because of
  the directory it is for.

What is not modelled: a device that lies about its flush, two processes that write one file, mmap, links, owners and modes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from buffer.storage import PosixStorage

SECTOR = 512
BLOCK = 4096
_ZEROS = bytes(SECTOR)


class Crash(BaseException):
    """The process is gone."""


# ---- the medium: what is where, and how one effect changes it ----

Piece = tuple[int, bytes | None]  # offset and data; (new size, None) for a truncation
NameChange = tuple[int | None, str, str]  # inode, name that goes ("" for none), name that comes ("" for none)
Effect = tuple[Any, ...]


def pieces_of(offset: int, data: bytes) -> list[Piece]:
    """Break a write at 512 bytes; neighbouring sectors of zeros stay together."""
    out: list[Piece] = []
    zeros_from = -1
    end = offset + len(data)
    at = offset
    while at < end:
        stop = min(end, (at // SECTOR + 1) * SECTOR)
        part = data[at - offset : stop - offset]
        if part == _ZEROS[: len(part)]:
            zeros_from = at if zeros_from < 0 else zeros_from
        else:
            if zeros_from >= 0:
                out.append((zeros_from, bytes(at - zeros_from)))
                zeros_from = -1
            out.append((at, part))
        at = stop
    if zeros_from >= 0:
        out.append((zeros_from, bytes(end - zeros_from)))
    return out


def put(content: bytes, piece: Piece) -> bytes:
    """Return the content after a piece."""
    offset, data = piece
    if data is None:
        return content[:offset].ljust(offset, b"\0")
    if offset > len(content):
        content = content.ljust(offset, b"\0")
    return content[:offset] + data + content[offset + len(data) :]


@dataclass(slots=True)
class Medium:
    """cache, platter: by inode. names, durable: path -> inode. data: pieces on their way, by inode. moved: name changes on their way."""

    cache: dict[int, bytes] = field(default_factory=dict)
    platter: dict[int, bytes] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)
    directories: set[int] = field(default_factory=set)
    data: dict[int, list[Piece]] = field(default_factory=dict)
    moved: list[tuple[str, NameChange]] = field(default_factory=list)  # directory, change
    next_inode: int = 1

    def copy(self) -> Medium:
        """What a new process finds after kill -9."""
        data = {inode: list(pieces) for inode, pieces in self.data.items()}
        return Medium(
            dict(self.cache), dict(self.platter), dict(self.names), dict(self.durable), set(self.directories), data, list(self.moved), self.next_inode
        )

    def apply(self, effect: Effect) -> None:
        """Let one thing happen."""
        getattr(self, "_" + effect[0])(*effect[1:])

    def _write(self, inode: int, offset: int, data: bytes) -> None:
        self.cache[inode] = put(self.cache[inode], (offset, data))
        self.data.setdefault(inode, []).extend(pieces_of(offset, data))

    def _truncate(self, inode: int, size: int) -> None:
        self.cache[inode] = put(self.cache[inode], (size, None))
        self.data.setdefault(inode, []).append((size, None))

    def _sync(self, inode: int) -> None:
        for piece in self.data.pop(inode, ()):
            self.platter[inode] = put(self.platter[inode], piece)

    def _sync_failed(self, inode: int, reached: Sequence[int]) -> None:
        pieces = self.data.pop(inode, [])
        for i in reached:
            if i < len(pieces):
                self.platter[inode] = put(self.platter[inode], pieces[i])

    def _name(self, inode: int, gone: str, come: str) -> None:
        if inode not in self.cache:
            self.cache[inode] = self.platter[inode] = b""
            self.next_inode = max(self.next_inode, inode + 1)
        _rename(self.names, (inode, gone, come))
        self.moved.append(((come or gone).rpartition("/")[0], (inode, gone, come)))

    def _directory(self, inode: int, path: str) -> None:
        self.directories.add(inode)
        self._name(inode, "", path)

    def _sync_directory(self, path: str) -> None:
        rest = []
        for place, change in self.moved:
            if place == path:
                _rename(self.durable, change)
            else:
                rest.append((place, change))
        self.moved = rest

    # ---- power ----

    def pending(self) -> list[tuple[str, int, int]]:
        """Return what is on its way: ("data", inode, which) and ("name", which, 0)."""
        out = [("name", i, 0) for i in range(len(self.moved))]
        return out + [("data", inode, i) for inode, pieces in self.data.items() for i in range(len(pieces))]

    def power_cut(self, kept: Iterable[tuple[str, int, int]]) -> Medium:
        """What is there when the power comes back, if just these of `pending` made it."""
        names, platter = dict(self.durable), dict(self.platter)
        wanted = set(kept)
        broken: set[Any] = set()  # inodes and names whose order would be violated
        for i, (_, change) in enumerate(self.moved):
            touched = {x for x in change if x != ""}
            if ("name", i, 0) in wanted and not touched & broken:
                _rename(names, change)
            else:
                broken |= touched
        for _, inode, i in sorted(key for key in wanted if key[0] == "data"):
            platter[inode] = put(platter[inode], self.data[inode][i])
        there = {p: n for p, n in names.items() if _reachable(p, names)}
        alive = set(there.values())
        content = {inode: data for inode, data in platter.items() if inode in alive}
        return Medium(content, dict(content), there, dict(there), self.directories & alive, next_inode=self.next_inode)


def _rename(names: dict[str, int], change: NameChange) -> None:
    inode, gone, come = change
    if gone:
        names.pop(gone, None)
    if come and inode is not None:
        names[come] = inode


def _reachable(path: str, names: dict[str, int]) -> bool:
    parent = path.rpartition("/")[0]
    return not parent or (parent in names and _reachable(parent, names))


# ---- the system calls ----


class Calls:
    """A `System`: what one process asks of a medium. Every call that changes something goes through `step`."""

    def __init__(self, medium: Medium) -> None:
        self.medium = medium
        self.steps = 0
        self.crash_at = -1
        self.fail: set[str] = set()
        self.refused = ""  # directory in which nothing can be changed, "" for none
        self.faults: dict[int, int] = {}
        self.syncs = 0  # of files, so far
        self.sync_faults: frozenset[int] = frozenset()  # numbers of syncs that fail
        self.sync_reaches: Callable[[int], Sequence[int]] = lambda count: ()
        self.capacity = 10**12
        self.others = 0
        self.log: list[Effect] | None = None
        self.before_step: Callable[[], None] = lambda: None
        self.handles: dict[int, list[Any]] = {}  # fd -> inode, direct, path, offset
        self._next_fd = 3

    def step(self, name: str, path: str = "") -> None:
        """One call that changes something is about to happen."""
        self.before_step()
        if self.crash_at >= 0 and self.steps >= self.crash_at:
            raise Crash
        number, self.steps = self.steps, self.steps + 1
        if number in self.faults or name in self.fail or (self.refused and path.startswith(self.refused)):
            raise OSError(self.faults.get(number, errno.EIO), "said no", path)

    def effect(self, *effect: Any) -> None:
        """Let it happen."""
        self.medium.apply(effect)
        if self.log is not None:
            self.log.append(effect)

    def inode(self, path: str) -> int:
        """Return it; raise FileNotFoundError."""
        inode = self.medium.names.get(path[1:])
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "not there", path)
        return inode

    def used(self) -> int:
        """Return what all files take."""
        cache = self.medium.cache
        return sum(-(-len(cache[i]) // BLOCK) * BLOCK for i in set(self.medium.names.values()))

    def room_for(self, more: int) -> None:
        """Raise OSError where the disk is full."""
        if more > 0 and self.used() + self.others + more > self.capacity:
            raise OSError(errno.ENOSPC, "no space left on the disk")

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT here", path)
        known = path == "/" or path[1:] in self.medium.names
        if flags & os.O_CREAT and not known:
            self.step("create", path)
            self.inode(os.path.dirname(path)) if os.path.dirname(path) != "/" else None
            self.room_for(1)
            self.effect("name", self.medium.next_inode, "", path[1:])
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "there already", path)
        inode = 0 if path == "/" else self.inode(path)
        if flags & os.O_TRUNC and self.medium.cache[inode]:
            self.step("truncate", path)
            self.effect("truncate", inode, 0)
        self._next_fd += 1
        self.handles[self._next_fd] = [inode, False, path, 0]
        return self._next_fd

    def close(self, fd: int) -> None:
        del self.handles[fd]

    def write(self, fd: int, data: memoryview) -> int:
        handle = self.handles[fd]
        done = self.pwrite(fd, data, handle[3])
        handle[3] += done
        return done

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        inode, _, path, _ = self.handles[fd]
        self.step("pwrite", path)
        self.room_for(offset + len(data) - len(self.medium.cache[inode]))
        self.effect("write", inode, offset, bytes(data))
        return len(data)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        inode, direct, _, _ = self.handles[fd]
        content = self.medium.platter[inode] if direct else self.medium.cache[inode]
        return content[offset : offset + length]

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        data = self.pread(fd, len(buffers[0]), offset)
        buffers[0][: len(data)] = data
        return len(data)

    def fsync(self, fd: int) -> None:
        inode, _, path, _ = self.handles[fd]
        place = path[1:]
        if path == "/" or inode in self.medium.directories:
            self.step("fsync_dir", path)
            self.effect("sync_directory", place)
            return
        number, self.syncs = self.syncs, self.syncs + 1
        try:
            self.step("fdatasync", path)
            if number in self.sync_faults:
                raise OSError(errno.EIO, "the device said no", path)
        except OSError:
            self.effect("sync_failed", inode, tuple(self.sync_reaches(len(self.medium.data.get(inode, ())))))
            raise
        self.effect("sync", inode)

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd)

    def fchmod(self, fd: int, mode: int) -> None:
        return

    def chmod(self, path: str, mode: int) -> None:
        return

    def rename(self, src: str, dst: str) -> None:
        self.step("rename", src)
        self.effect("name", self.inode(src), src[1:], dst[1:])

    def unlink(self, path: str) -> None:
        inode = self.inode(path)
        self.step("unlink", path)
        self.effect("name", inode, path[1:], "")

    def ftruncate(self, fd: int, length: int) -> None:
        inode, _, path, _ = self.handles[fd]
        self.step("truncate", path)
        self.effect("truncate", inode, length)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        if path == "/" or path[1:] in self.medium.names:
            raise FileExistsError(errno.EEXIST, "there already", path)
        if os.path.dirname(path) != "/":
            self.inode(os.path.dirname(path))
        self.step("mkdir", path)
        self.effect("directory", self.medium.next_inode, path[1:])

    def listdir(self, path: str) -> list[str]:
        if path != "/":
            self.inode(path)
        prefix = path[1:] + "/" if path != "/" else ""
        return [name[len(prefix) :] for name in self.medium.names if name.startswith(prefix) and "/" not in name[len(prefix) :]]

    def stat(self, path: str) -> Any:
        return SimpleNamespace(st_size=len(self.medium.cache[self.inode(path)]))

    def statvfs(self, path: str) -> Any:
        return SimpleNamespace(f_bavail=max(0, self.capacity - self.used() - self.others), f_frsize=1)

    def posix_fadvise(self, fd: int, offset: int, length: int, advice: int) -> None:
        self.handles[fd][1] = True


class SimulatedDisk(PosixStorage):
    """A `Storage` over a medium, for one process. calls: where faults are planted and effects are logged."""

    def __init__(self, medium: Medium | None = None, crash_at: int = -1) -> None:
        self.medium = medium if medium is not None else Medium()
        self.calls = Calls(self.medium)
        self.calls.crash_at = crash_at
        super().__init__(Path("/"), self.calls)

    def _at(self, path: str) -> str:
        assert not path.startswith("/") and ".." not in path, path
        return "/" + path

    def lock(self, path: str) -> int:
        """It ends with its process; that there is one process at a time is the business of tests/unit/test_ring.py."""
        handle = self.calls.open(self._at(path), os.O_RDWR | os.O_CREAT)
        self._names[handle] = path
        return handle

    @property
    def steps(self) -> int:
        """How many calls changed something."""
        return self.calls.steps

    def set_full(self, yes: bool) -> None:
        """Have room for nothing more, or for anything."""
        self.calls.capacity = 0 if yes else 10**12

    def after_kill(self) -> SimulatedDisk:
        """What a new process finds: the cache."""
        return SimulatedDisk(self.medium.copy())

    def after_power_cut(self, rng: Any) -> SimulatedDisk:
        """What a new process finds: the platter, and any part of what was on its way."""
        return SimulatedDisk(self.medium.power_cut([x for x in self.medium.pending() if rng.random() < 0.5]))

    def become(self, other: SimulatedDisk) -> None:
        """Have the content of another disk under a running process: a restored volume."""
        self.medium = self.calls.medium = other.medium

    def note(self, *what: object) -> None:
        """Leave a mark in the log."""
        if self.calls.log is not None:
            self.calls.log.append(("note", *what))

    def paths(self) -> list[str]:
        """Every file there is, as a process sees it."""
        return sorted(p for p, inode in self.medium.names.items() if inode not in self.medium.directories)

    def content(self, path: str) -> bytes:
        """What a process reads in a file."""
        return self.medium.cache[self.medium.names[path]]

    def on_platter(self, path: str) -> bytes:
        """What the device holds of a file, whatever its name is worth."""
        return self.medium.platter[self.medium.names[path]]

    def rot(self, path: str, data: bytes) -> None:
        """Have other bytes in a file, in cache and platter."""
        inode = self.medium.names[path]
        self.medium.cache[inode] = self.medium.platter[inode] = bytes(data)
        self.medium.data.pop(inode, None)

    def flip(self, path: str, at: int, mask: int) -> None:
        """Flip bits of one byte, in cache and platter."""
        data = bytearray(self.content(path))
        data[at] ^= mask
        self.rot(path, bytes(data))
