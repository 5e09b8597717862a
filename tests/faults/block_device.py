"""A block device whose every write and flush is recorded, or that refuses: ext4 on a loop device over a FUSE file of our own.

The log is one file of records in the order in which they happened: W (offset, data), F (a flush completed), A (the test's own mark: a
commit was acknowledged up to a value; appended by the process under test). Both writers append with O_APPEND, so their order is real.

    record = kind (1 byte), offset or value (8 bytes, signed, little endian), length (4 bytes), data

A poisoned device (the file POISON beside the image exists) answers EIO to writes that hold the marked bytes, and takes everything else: what
a failing cable, path or thin pool does. Needs /dev/fuse, /dev/loop*, mkfs.ext4, mfusepy and root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RECORD = struct.Struct("<cqI")
IMAGE_BYTES = 24 * 1024 * 1024
SECTOR = 512
READY_SECONDS_MAX = 20


def missing() -> str:
    """Say what this machine lacks; empty when all is there."""
    import importlib.util
    import shutil

    wanted = [name for name in ("mkfs.ext4", "losetup", "mount", "umount", "fusermount3") if shutil.which(name) is None]
    wanted += [path for path in ("/dev/fuse", "/dev/loop-control") if not Path(path).exists()]
    wanted += [] if importlib.util.find_spec("mfusepy") else ["mfusepy"]
    wanted += [] if os.geteuid() == 0 else ["root"]
    return ", ".join(wanted)


def serve(image: str, log: str, poison: str, mountpoint: str) -> None:
    """Be the FUSE file system: one file, `disk`. Ends when it is unmounted."""
    import mfusepy as fuse

    class Disk(fuse.Operations):
        use_ns = True

        def __init__(self) -> None:
            self.image = os.open(image, os.O_RDWR)
            self.size = os.fstat(self.image).st_size
            self.log = os.open(log, os.O_WRONLY | os.O_APPEND)
            self.lock = threading.Lock()

        def getattr(self, path, fh=None):
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            if path == "/disk":
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": self.size}
            raise fuse.FuseOSError(errno.ENOENT)

        def readdir(self, path, fh):
            return [".", "..", "disk"]

        def open(self, path, flags):
            return 1

        def read(self, path, size, offset, fh):
            return os.pread(self.image, size, offset)

        def write(self, path, data, offset, fh):
            if os.path.exists(poison) and Path(poison).read_bytes() in data:
                raise fuse.FuseOSError(errno.EIO)
            with self.lock:
                os.write(self.log, RECORD.pack(b"W", offset, len(data)) + data)
                return os.pwrite(self.image, data, offset)

        def fsync(self, path, datasync, fh):
            with self.lock:
                os.write(self.log, RECORD.pack(b"F", 0, 0))
            return 0

        def flush(self, path, fh):
            return 0

        def truncate(self, path, length, fh=None):
            return 0

    fuse.FUSE(Disk(), mountpoint, foreground=True, allow_other=True)


@dataclass
class Device:
    """A mounted ext4 whose block device is recorded."""

    directory: Path  # of image, log and mount points
    mount: Path

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def base(self) -> Path:
        """The image as it was when recording began."""
        return self.directory / "base.img"

    def poison(self, data: bytes) -> None:
        """From now on a write that holds these bytes fails."""
        (self.directory / "POISON.tmp").write_bytes(data)
        (self.directory / "POISON.tmp").rename(self.directory / "POISON")

    def heal(self) -> None:
        (self.directory / "POISON").unlink()

    def again(self) -> None:
        """Unmount and mount: what a reboot does to a file system that the kernel turned read-only."""
        loop = next(line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[1] == str(self.mount))
        run("umount", str(self.mount))
        run("mount", loop, str(self.mount))


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def device(directory: Path) -> Iterator[Device]:
    """A fresh ext4, mounted; everything is taken down again."""
    image, fuse_mount, mount = directory / "disk.img", directory / "fuse", directory / "mount"
    for one in (fuse_mount, mount):
        one.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    run("mkfs.ext4", "-q", "-F", str(image))
    made = Device(directory, mount)
    made.base.write_bytes(image.read_bytes())
    made.log.touch()
    command = [sys.executable, "-m", "tests.faults.block_device", str(image), str(made.log), str(directory / "POISON"), str(fuse_mount)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    loop = ""
    try:
        _wait_for(fuse_mount / "disk", server)
        loop = run("losetup", "-f", "--show", str(fuse_mount / "disk"))
        run("mount", "-o", "data=ordered", loop, str(mount))
        yield made
    finally:
        for command in (["umount", "-l", str(mount)], ["losetup", "-d", loop], ["fusermount3", "-u", "-z", str(fuse_mount)]):
            if command[-1]:
                subprocess.run(command, capture_output=True, check=False, timeout=60)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)
        if server.poll() is None:
            server.kill()
            server.wait()


def _wait_for(path: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(server.stderr.read().decode(errors="replace")[-500:] if server.stderr else "FUSE ended")
        with contextlib.suppress(OSError):
            if path.stat().st_size == IMAGE_BYTES:
                return
        time.sleep(0.05)
    raise TimeoutError("the FUSE file did not appear")


def run_fsck(loop: str) -> None:
    """Repair a file system as a boot does; raise OSError where that cannot be done without a person."""
    done = subprocess.run(["e2fsck", "-y", loop], check=False, capture_output=True, text=True, timeout=60)
    if done.returncode > 1:  # 1: errors, corrected
        raise OSError(f"e2fsck {loop}: {done.stdout.strip()[-500:]} {done.stderr.strip()[-300:]}")


@contextlib.contextmanager
def mounted(image: Path, mount: Path) -> Iterator[None]:
    """An image as the next start finds it: its file system's journal is replayed by mounting."""
    loop = run("losetup", "-f", "--show", str(image))
    try:
        try:
            run("mount", loop, str(mount))
        except OSError:  # a superblock torn at 512 bytes: what a boot does before it mounts
            run_fsck(loop)
            run("mount", loop, str(mount))
        try:
            yield
        finally:
            run("umount", str(mount))
    finally:
        run("losetup", "-d", loop)


def records(log: bytes) -> list[tuple[bytes, int, bytes]]:
    """Return (kind, offset or value, data) in order."""
    out, at = [], 0
    while at + RECORD.size <= len(log):
        kind, value, length = RECORD.unpack_from(log, at)
        at += RECORD.size
        size = length if kind == b"W" else 0
        out.append((kind, value, log[at : at + size]))
        at += size
    return out


if __name__ == "__main__":
    serve(*sys.argv[1:5])
