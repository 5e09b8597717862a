"""What the ring costs a flash disk: bytes the device is given, counted at a block device of our own (an ext4 image on a loop device).

`commit`: device bytes a commit of 100, 1,000 and 4,096 readings, against SQLite WAL synchronous=FULL; steady state, in files that were zeroed
before. `plant`: 6,000 tags a second as in life: a commit a second, sealing, `last` files, recycled journals; device bytes a reading over all, and
what that means for a year. Everything is synced before the counter is read, so that what the page cache held counts too.
Needs root and a free loop device; else it says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.harness import Report, main
from benchmarks.peers import Sqlite
from benchmarks.rings import batches, instant, open_ring, tag_table
from benchmarks.workload import TAGS, Workload
from buffer.ring import with_root
from buffer.segment import seal
from buffer.types import Columns, concat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buffer.ring import Instant, Ring

IMAGE_BYTES: Final = 2 * 1024**3
COMMITS: Final = {100: 300, 1_000: 200, 4_096: 100}  # readings a commit -> commits
GOALS: Final = {100: 0.2, 1_000: 0.12, 4_096: 0.1}
PLANT_TAGS: Final = 6_000
PLANT_SECONDS: Final = 480  # three segments, measured
WARM_SECONDS: Final = 640  # before: until journals are recycled and not zeroed any more
SEAL_EVERY_S: Final = 160
HASTE: Final = 10  # the ring is told that so many times more time went by: a journal is given back an hour after its segment
SECONDS_A_YEAR: Final = 365.25 * 86_400
TBW: Final = 150  # terabytes an industrial 256 GB SSD is rated for; an eMMC of 32 GB is near 30
SECTOR: Final = 512


class Disk:
    """A mounted image; `written` counts what its block device was given."""

    def __init__(self, mount: Path, device: str) -> None:
        self.mount = mount
        self._stat = Path("/sys/block") / device.removeprefix("/dev/") / "stat"

    def written(self) -> int:
        """Return bytes written so far, everything synced."""
        subprocess.run(["sync", "-f", str(self.mount)], check=True)
        return int(self._stat.read_text().split()[6]) * SECTOR  # Documentation/block/stat.rst: write sectors


@contextlib.contextmanager
def disk(work: Path) -> Iterator[Disk]:
    """Make, mount and take away a disk; raise OSError or CalledProcessError where this machine does not let us."""
    image, mount = work / "disk.img", work / "disk"
    image.touch()
    os.truncate(image, IMAGE_BYTES)
    mount.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True, stdout=subprocess.DEVNULL)
    device = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run(["mount", "-o", "noatime", device, mount], check=True)
        try:
            yield Disk(mount, device)
        finally:
            subprocess.run(["umount", mount], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def per_commit(report: Report, one: Disk) -> None:
    """Device bytes a commit, ours and SQLite's in turns."""
    workload = Workload()
    workload.scans(60)
    for size, full in COMMITS.items():
        commits = report.options.size(full, 5)
        parts = list(itertools.islice(batches(workload.scans(-(-commits * size // TAGS)), size), commits))
        ours: list[float] = []
        theirs: list[float] = []
        for turn in range(report.options.rounds):
            ring = open_ring(one.mount / f"ring-{size}-{turn}")
            before = one.written()
            for part in parts:
                ring.append(part, 0, bytes(16))
                ring.commit(instant())
            ours.append((one.written() - before) / len(parts))
            ring.close()
            directory = one.mount / f"sqlite-{size}-{turn}"
            directory.mkdir()
            peer = Sqlite(directory)
            prepared = [peer.prepare(part, i * size) for i, part in enumerate(parts)]
            before = one.written()
            for rows in prepared:
                peer.commit(rows)
            theirs.append((one.written() - before) / len(parts))
            peer.close()
            for used in (directory, one.mount / f"ring-{size}-{turn}"):
                subprocess.run(["rm", "-r", used], check=True)
        report.add(
            f"commit.{size}", float(np.median(ours)), "device bytes/commit", peer="SQLite", peer_value=float(np.median(theirs)),
            ratio=float(np.median(np.array(ours) / np.array(theirs))), goal=f"ratio <= {GOALS[size]}", commits=len(parts),
            peer_settings=Sqlite.settings, how="block device counter, everything synced before it is read",
        )  # fmt: skip


def plant(tags: int) -> Iterator[Columns]:
    """Yield a second of `tags` tags after another."""
    workloads = [Workload(seed=i) for i in range(tags // TAGS)]
    while True:
        parts = []
        for i, workload in enumerate(workloads):
            c = workload.scans(1)
            parts.append(Columns(c.tag + np.uint32(i * TAGS), c.ts_ns, c.kind, c.values, c.quality, c.flags, None, c.texts))
        yield concat(parts)


def as_in_life(report: Report, one: Disk) -> None:
    """Commit every second, seal when it is due, keep journals for the live lane, recycle them."""
    root = one.mount / "plant"
    seconds, warm = report.options.size(PLANT_SECONDS, 5), report.options.size(WARM_SECONDS, 5)
    ring = open_ring(root, table=tag_table(PLANT_TAGS), max_bytes=320 * 1024**2)
    readings = before = 0
    counters = ring.counters
    zero = (0, 0, 0, 0)
    for second, columns in enumerate(itertools.islice(plant(PLANT_TAGS), warm + seconds)):
        if second == warm:
            before, readings = one.written(), 0
            zero = (counters.bytes_written, counters.sealed_bytes, counters.sealed_readings, counters.sealed)
        now = dataclasses.replace(instant(), monotonic_ns=second * HASTE * 10**9)
        ring.append(columns, 0, bytes(16))
        ring.commit(now)
        ring.make_room(now)
        readings += len(columns)
        if (second + 1) % SEAL_EVERY_S == 0 or second in (warm - 1, warm + seconds - 1):
            _seal_all(ring, root, now)
    total = one.written() - before
    written, sealed_bytes, sealed_readings, sealed = (
        a - b for a, b in zip((counters.bytes_written, counters.sealed_bytes, counters.sealed_readings, counters.sealed), zero, strict=True)
    )
    kept = sealed_bytes / max(1, sealed_readings)
    per_reading = total / readings
    year = per_reading * PLANT_TAGS * SECONDS_A_YEAR / 1e12
    facts: dict[str, Any] = {
        "readings": readings, "seconds": seconds, "journal_and_last_bytes_per_reading": written / readings,
        "segment_bytes_per_reading": kept, "segments": sealed, "used_bytes": ring.usage_bytes(),
        "kept_twice": "each reading is written twice: in a block when it is committed, in a segment when it is sealed",
    }  # fmt: skip
    report.add("plant.device_bytes", per_reading, "device bytes/reading", peer="bytes a reading kept in segments",
               peer_value=kept, **facts)  # fmt: skip
    report.add("plant.year", year, "TB/year at 6,000 tags/s", **facts)
    report.add("plant.flash_life", TBW / year, "years", what=f"an SSD rated for {TBW} TB written, all of it for the ring", **facts)
    report.add("plant.ring_30_days", kept * PLANT_TAGS * 30 * 86_400 / 1e9, "GB for 30 days at 6,000 tags/s",
               goal="value <= 28" if sealed else "", **facts)  # fmt: skip
    ring.close()


def _seal_all(ring: Ring, root: Path, now: Instant) -> None:
    ring.roll_if_due(now, 0)
    ring.commit(now)
    while (request := ring.sealable()) is not None:
        result = seal(with_root(request, str(root)))
        if result.error:
            raise RuntimeError(result.error)
        ring.adopt(request, result, now)


def run(report: Report) -> None:
    """Measure where a disk of our own can be had."""
    try:
        with disk(report.options.work) as one:
            per_commit(report, one)
            as_in_life(report, one)
    except (OSError, subprocess.CalledProcessError) as error:
        report.add("commit", None, "device bytes/commit", absent=f"no loop device of our own: {error}"[:200])


if __name__ == "__main__":
    main("wear", run)
