"""A disk in memory for crash points: cache and platter apart, every mutating step counted, a crash before any of them.

A synced file is on the platter. Of unsynced writes a power cut keeps any subset, torn at 512 bytes; kill -9 keeps all of the cache.
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field

from buffer.errors import StorageFault
from gateway.landing import LandingState
from gateway.landing.index import parse_entries

SECTOR = 512


class Crash(BaseException):
    """The process is gone."""


@dataclass
class _File:
    cache: bytearray = field(default_factory=bytearray)
    platter: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)


class MemoryDisk:
    """Implements buffer.storage.Storage."""

    def __init__(self, crash_at: int = -1) -> None:
        self.files: dict[str, _File] = {}
        self.directories: set[str] = set()
        self.steps = 0
        self.crash_at = crash_at
        self.fail: set[str] = set()  # names of steps that raise StorageFault from now on
        self.full = False
        self._handles: dict[int, str] = {}
        self._next = 3
        self.before_step = lambda: None

    def _step(self, name: str, path: str = "") -> None:
        self.before_step()
        if self.steps == self.crash_at:
            raise Crash
        self.steps += 1
        if name in self.fail or (self.full and name in ("create", "publish", "pwrite")):
            raise StorageFault("said no", path=path, errno=errno.ENOSPC if self.full else errno.EIO)

    # ---- after a crash ----

    def after_kill(self) -> MemoryDisk:
        """What a new process finds: the cache."""
        other = MemoryDisk()
        other.directories = set(self.directories)
        for path, file in self.files.items():
            other.files[path] = _File(bytearray(file.cache), bytearray(file.platter), list(file.pending))
        return other

    def after_power_cut(self, rng: random.Random) -> MemoryDisk:
        """What a new process finds: the platter, and any part of what was on its way."""
        other = MemoryDisk()
        other.directories = set(self.directories)
        for path, file in self.files.items():
            kept = bytearray(file.platter)
            for offset, data in file.pending:
                for at in range(offset // SECTOR * SECTOR, offset + len(data), SECTOR):
                    a, b = max(at, offset), min(at + SECTOR, offset + len(data))
                    if rng.random() < 0.5:
                        _write(kept, a, data[a - offset : b - offset])
            other.files[path] = _File(bytearray(kept), bytearray(kept))
        return other

    # ---- Storage ----

    def list(self, path: str):
        prefix = path + "/" if path else ""
        return sorted({name[len(prefix) :].split("/")[0] for name in self.files if name.startswith(prefix)})

    def size(self, path: str):
        return len(self.files[path].cache) if path in self.files else None

    def read(self, path: str, offset: int, size_bytes: int):
        return bytes(self.files[path].cache[offset : offset + size_bytes]) if path in self.files else None

    def read_direct(self, path: str, offset: int, size_bytes: int):
        return bytes(self.files[path].platter[offset : offset + size_bytes]) if path in self.files else None

    def create(self, path: str, size_bytes: int) -> int:
        self._step("create", path)
        assert path not in self.files, f"{path} exists"
        self.files[path] = _File(bytearray(size_bytes), bytearray(size_bytes))
        return self.open(path)

    def open(self, path: str) -> int:
        if path not in self.files:
            raise StorageFault("not there", path=path, errno=errno.ENOENT)
        self._next += 1
        self._handles[self._next] = path
        return self._next

    def pwrite(self, handle: int, offset: int, data: bytes) -> None:
        self._step("pwrite", self._handles[handle])
        file = self.files[self._handles[handle]]
        _write(file.cache, offset, data)
        file.pending.append((offset, bytes(data)))

    def fdatasync(self, handle: int) -> None:
        self._step("fdatasync", self._handles[handle])
        self.sync_file(self._handles[handle])

    def sync_file(self, path: str) -> None:
        file = self.files[path]
        file.platter, file.pending = bytearray(file.cache), []

    def close(self, handle: int) -> None:
        self._handles.pop(handle)

    def publish(self, path: str, chunks) -> None:
        self._step("publish", path)
        data = bytearray(b"".join(chunks))
        self.files[path] = _File(data, bytearray(data))

    def adopt(self, temporary: str, path: str) -> None:
        raise AssertionError("not used here")

    def truncate(self, path: str, size_bytes: int) -> None:
        raise AssertionError("the landing truncates nothing")

    def rename(self, old: str, new: str) -> None:
        raise AssertionError("the landing renames nothing")

    def unlink(self, path: str) -> None:
        """The landing removes index parts that say nothing beyond their summary, and nothing else."""
        entries = [entry for entry, _ in parse_entries(bytes(self.files[path].cache))]
        assert path.startswith("index/"), path
        assert len(entries) == 1, path
        assert isinstance(entries[0], LandingState), path
        self._step("unlink", path)
        del self.files[path]

    def mkdir(self, path: str, mode: int = 0o750) -> None:
        self.directories.add(path)

    def fsync_dir(self, path: str) -> None:
        return

    def lock(self, path: str) -> None:
        return

    def free_bytes(self) -> int:
        return 10**12


def _write(data: bytearray, offset: int, piece: bytes) -> None:
    if len(data) < offset + len(piece):
        data.extend(bytes(offset + len(piece) - len(data)))
    data[offset : offset + len(piece)] = piece
