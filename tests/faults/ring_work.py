"""A ring at work, and what must be true of it afterwards: the common part of every test that breaks a real file system under it.

The source is a counter: reading n has the value n, and each commit's source position is the last value in it. A source that
resends what was not acknowledged is a start that goes on behind the recovered position. So the books are simple: what is held, over all
generations, is one unbroken run of values without repetition, and it reaches at least the last acknowledged one.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

from buffer import limits
from buffer.codec import decode
from buffer.errors import StorageFault
from buffer.frame import HEADER_BYTES
from buffer.reader import RingReader
from buffer.ring import Instant, Ring, RingOptions, with_root
from buffer.storage import PosixReadStorage, PosixStorage
from buffer.tagtable import Tag, TagTable, encode_table
from buffer.types import make_columns
from gateway.trust.keys import KeyRing, KeySigner, spki_der

STREAM = "g.main"
JOURNAL_BYTES = limits.JOURNAL_RESERVE_BYTES + 32 * limits.PAGE_BYTES
TABLE = encode_table(TagTable("g", STREAM, "s", "UTC", ("p",), (Tag(16, "a", "x/a", "p"), Tag(17, "b", "x/b", "p"))))
POSITION = struct.Struct(">q")
TRIES_MAX = 40  # of a commit that the disk refuses: then the process gives up, as a person would restart it
SEALED_AT_START_MAX = 16

Acknowledge = Callable[[int], None]


def instant() -> Instant:
    """A clock is not what is tested here; the monotonic one rises so that journals age."""
    import time

    return Instant(time.time_ns(), time.monotonic_ns(), bytes(16), True)


def open_ring(root: Path, signer: KeySigner, max_bytes: int) -> Ring:
    """Open as collect does, with small journals."""
    keys = KeyRing()
    keys.trust(signer.public)
    seed = int.from_bytes(os.urandom(4), "big")
    salts = itertools.count(seed + 1)
    options = RingOptions(STREAM, max_bytes, JOURNAL_BYTES, (spki_der(signer.public),))
    ring = Ring.open(PosixStorage(root), options, signer, keys, instant(), seed, lambda: next(salts))
    ring.use_table(TABLE)
    return ring


def work(root: Path, signer: KeySigner, max_bytes: int, commits: int, acknowledge: Acknowledge, seed: int = 0) -> None:
    """Commit, seal and evict; acknowledge(n) after each commit up to value n. Raise StorageFault when the disk refuses for good."""
    ring = open_ring(root, signer, max_bytes)
    try:
        _work(ring, root, commits, acknowledge, random.Random(seed))
    finally:
        ring.close()


def _work(ring: Ring, root: Path, commits: int, acknowledge: Acknowledge, rng: random.Random) -> None:
    _persist(lambda: ring.commit(instant()))
    for _ in range(SEALED_AT_START_MAX):
        if not ring.crowded():
            break
        _seal(ring, root)
    position = ring.known(0).position
    value = POSITION.unpack(position)[0] + 1 if position else 0
    for n in range(commits):
        count = rng.choice([0, 1, 3, 40, 300])
        values = list(range(value, value + count))
        if count:
            columns = make_columns([16 + v % 2 for v in values], [10**18 + v for v in values], [1] * count, values, [0] * count)
            ring.append(columns, 0, POSITION.pack(values[-1]))
        _persist(lambda: ring.commit(instant()))
        value += count
        acknowledge(value - 1)
        if n % 7 == 3:
            ring.roll_if_due(instant(), 0)
        try:
            ring.make_room(instant())
            if n % 5 == 4:
                _seal(ring, root)
        except StorageFault:
            continue  # the next round tries again; commits are what must go on


def _persist(commit: Callable[[], object]) -> None:
    for _ in range(TRIES_MAX):
        try:
            commit()
        except StorageFault as fault:
            last = fault
        else:
            return
    raise last


def _seal(ring: Ring, root: Path) -> None:
    from buffer.segment import seal

    request = ring.sealable()
    if request is None:
        return
    result = seal(with_root(request, str(root)))
    if result.error or not result.parts:
        ring.seal_failed(request, result.error)
    else:
        ring.adopt(request, result, instant())


def held(root: Path) -> dict[tuple[int, int], int]:
    """Return (generation, seq) -> value of everything a reader of the ring finds, segments and blocks alike."""
    from io import BytesIO

    import pyarrow.parquet as pq

    reader = RingReader(PosixReadStorage(root))
    inventory = reader.inventory()
    out: dict[tuple[int, int], int] = {}
    for segment in inventory.segments:
        frame = reader.segment_frame(segment)
        assert frame is not None and len(frame.cose) > HEADER_BYTES
        table = pq.read_table(BytesIO(frame.payload), columns=["seq", "value_int"])
        for seq, value in zip(table["seq"].to_pylist(), table["value_int"].to_pylist(), strict=True):
            out[segment.generation, seq] = value
    for generation in sorted({j.generation for j in inventory.journals}):
        for frame in reader.blocks(inventory, generation, 0):
            m = frame.manifest
            if not m.count:
                continue
            for seq, value in enumerate(decode(frame.payload, m.count).values.view("int64").tolist(), m.first_seq):
                assert out.setdefault((generation, seq), value) == value, f"{generation}/{seq} is {value} here and something else there"
    return out


def faults(root: Path, signer: KeySigner, max_bytes: int, acknowledged: int) -> list[str]:
    """Open the ring as the next start does and return what is broken. acknowledged: the last value a source was told of, -1 none."""
    found = []
    ring = open_ring(root, signer, max_bytes)
    ring.commit(instant())
    low = ring.state.low if ring.state is not None else (0, 0)
    values = [value for place, value in sorted(held(root).items()) if place >= low]  # an eviction that was cut short leaves some below
    if values != list(range(values[0], values[0] + len(values))) if values else False:
        odd = next(i for i, (a, b) in enumerate(itertools.pairwise(values)) if b != a + 1)
        found.append(f"not one run: after {values[odd]} comes {values[odd + 1]}")
    if acknowledged >= 0 and (values[-1] if values else -1) < acknowledged:
        found.append(f"acknowledged up to {acknowledged}, held up to {values[-1] if values else None}")
    position = ring.known(0).position
    if values and (position is None or POSITION.unpack(position)[0] != values[-1]):
        found.append(f"the position is {position!r}, the newest reading {values[-1]}")
    if ring.state is not None and ring.state.lost:
        found.append(f"losses are claimed where nothing was lost: {ring.state.lost}")
    ring.close()
    return found
