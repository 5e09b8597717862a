"""What a start and a scrub hold at once does not grow with the journal."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np

from buffer.ring import Ring, RingOptions
from buffer.scrub import Progress, Scrub
from buffer.storage import PosixReadStorage, PosixStorage
from buffer.types import make_columns
from tests.unit.test_ring import KEY, TABLE, crash, instant
from tests.unit.test_scrub import NOW, Keys

MIB = 2**20
JOURNAL = 8 * MIB
BLOCK, BLOCKS = 20_000, 45
HELD_MAX = 3 * MIB  # a window of one MiB, two blocks, what they decode to


def open_ring(root, nonce):
    salts = itertools.count(1000 * nonce)
    ring = Ring.open(PosixStorage(root), RingOptions("g.main", 64 * MIB, JOURNAL, (KEY.spki,)), KEY, KEY, instant(), nonce, lambda: next(salts))
    ring.use_table(TABLE)
    ring.commit(instant())
    return ring


def most(act):
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_start_and_a_scrub_read_a_full_journal_by_windows(tmp_path):
    ring = open_ring(tmp_path, 1)
    noise = np.random.default_rng(1)
    for _ in range(BLOCKS):
        values = noise.integers(0, 2**62, BLOCK).tolist()
        ring.append(make_columns([16] * BLOCK, list(range(10**18, 10**18 + BLOCK)), [1] * BLOCK, values, [0] * BLOCK))
        ring.commit(instant())
    assert ring.counters.payload_bytes > JOURNAL * 0.7
    assert ring.info(instant()).journals == 1
    crash(ring)
    assert most(lambda: open_ring(tmp_path, 2)) < HELD_MAX
    scrub = Scrub(PosixReadStorage(tmp_path), Keys(), Progress())
    assert most(lambda: [one.problem for one in iter(lambda: scrub.step(NOW), None)]) < HELD_MAX
