"""The real Ring over a disk in memory: crashed before every step, by kill -9 and by power cuts, then opened again and asked.

Fault model: tests.support.memory_disk (cache and platter apart; un-synced writes lost or torn at 512 bytes in any subset; names are
durable at once, so directory syncs are not covered here). Sealing is not part of the workload: the child needs a file system.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from buffer import limits
from buffer.codec import decode
from buffer.errors import StorageFault
from buffer.reader import RingReader
from buffer.ring import Instant, Ring, RingOptions
from buffer.tagtable import Tag, TagTable, encode_table
from buffer.types import make_columns
from tests.support.memory_disk import Crash, MemoryDisk

TABLE = encode_table(TagTable("g", "g.main", "s", "UTC", ("p",), (Tag(16, "a", "x/a", "p"), Tag(17, "b", "x/b", "p"))))
JOURNAL = limits.JOURNAL_RESERVE_BYTES + 7 * limits.PAGE_BYTES  # a few blocks, so that journals roll
COMMITS = 9


class RingDisk(MemoryDisk):
    """What a ring does beside what a landing does: truncate, rename, unlink."""

    def truncate(self, path: str, size_bytes: int) -> None:
        self._step("truncate", path)
        file = self.files[path]
        file.cache, file.platter, file.pending = file.cache[:size_bytes], file.platter[:size_bytes], []

    def rename(self, old: str, new: str) -> None:
        self._step("rename", old)
        self.files[new] = self.files.pop(old)

    def unlink(self, path: str) -> None:
        self._step("unlink", path)
        self.files.pop(path, None)


def reborn(disk: MemoryDisk) -> RingDisk:
    """The same disk for a new process."""
    other = RingDisk()
    other.files, other.directories = disk.files, disk.directories
    return other


class ToySigner:
    """A keyed hash in the place of a signature: a real one costs 0.1 ms a state."""

    key_id = b"toy-key!"
    algorithm = -8

    def sign(self, to_be_signed: bytes) -> bytes:
        return hashlib.sha512(b"toy" + to_be_signed).digest()

    def verify(self, key_id: bytes, algorithm: int, to_be_signed: bytes, signature: bytes) -> None:
        assert signature == self.sign(to_be_signed)


TOY = ToySigner()


def instant(n: int) -> Instant:
    return Instant(1_790_000_000 * 10**9 + n, n, bytes(16), True)


def open_ring(disk: RingDisk, nonce: int, max_bytes: int) -> Ring:
    salts = itertools.count(nonce * 1000 + 1)
    ring = Ring.open(disk, RingOptions("g.main", max_bytes, JOURNAL), TOY, TOY, instant(0), nonce, lambda: next(salts))
    ring.use_table(TABLE)
    return ring


@dataclass
class Acknowledged:
    """What a source was told."""

    values: list[int] = field(default_factory=list)
    position: bytes | None = None


def play(disk: RingDisk, max_bytes: int, told: Acknowledged, nonce: int = 1, first: int = 0) -> None:
    """Open and commit a few times; `told` is what was acknowledged when the disk crashed."""
    ring = open_ring(disk, nonce, max_bytes)
    ring.commit(instant(0))
    value = first
    for n in range(COMMITS):
        count = n % 4
        if count:
            values = list(range(value, value + count))
            ring.append(make_columns([16 + v % 2 for v in values], [10**18 + v for v in values], [1] * count, values, [0] * count), 0, bytes([n, first % 251]))
        ring.commit(instant(n))
        if count:
            told.values += values
            told.position = bytes([n, first % 251])
        value += count
        if n == 4:
            ring._roll = True
        ring.make_room(instant(n))


def held(disk: RingDisk) -> list[int]:
    """Every reading a reader finds, in order of (generation, seq)."""
    reader = RingReader(disk)
    inventory = reader.inventory()
    out = []
    for generation in sorted({j.generation for j in inventory.journals}):
        for frame in reader.blocks(inventory, generation, 0):
            if frame.manifest.count:
                out += [int(v) for v in decode(frame.payload, frame.manifest.count).values]
    return out


def check(disk: RingDisk, told: Acknowledged, max_bytes: int, nonce: int, *, evicts: bool) -> list[str]:
    """Open the ring again after a crash; return what is broken."""
    try:
        ring = open_ring(disk, nonce, max_bytes)
        ring.commit(instant(100))
    except StorageFault as fault:
        return [f"did not start by itself: {fault}"]
    found = held(disk)
    broken = []
    if len(set(found)) != len(found):
        broken.append("G4 a reading twice")
    kept = told.values if not evicts else [v for v in told.values if v >= min(found, default=0)]
    if found[: len(kept)] != kept:
        broken.append(f"G1 acknowledged {kept[-5:]}, found {found[-8:]}")
    if ring.state is None or ring.state.lost:
        broken.append("G2 a loss is claimed where nothing was lost")
    if told.position is not None and found[-1:] == told.values[-1:] and ring.last.positions.get(0) != told.position:
        broken.append("the position is not that of the newest committed reading")
    if ring.last.positions.get(0) is not None and not found:
        broken.append("a position without its readings")
    if evicts and ring.state is not None and ring.state.low > (ring.generation, ring.state.end):
        broken.append("low is beyond the end")
    return broken


def states(seed: int, cuts: int) -> Iterator[list[str]]:
    """Yield what is broken in each state: every crash point, killed and cut from power `cuts` times, small and large ring."""
    for max_bytes in (100 * JOURNAL, 3 * JOURNAL):
        evicts = max_bytes < 10 * JOURNAL
        probe = RingDisk()
        play(probe, max_bytes, Acknowledged())
        for at in range(probe.steps + 1):
            disk, told = RingDisk(crash_at=at), Acknowledged()
            try:
                play(disk, max_bytes, told)
            except Crash:
                pass
            yield check(reborn(disk.after_kill()), told, max_bytes, 2, evicts=evicts)
            for n in range(cuts):
                yield check(reborn(disk.after_power_cut(random.Random(f"{seed} {at} {n}"))), told, max_bytes, 2, evicts=evicts)
