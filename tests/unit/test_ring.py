"""The ring on a real file system: what was committed is there after every kind of start."""

from __future__ import annotations

import itertools
import os

import pytest

from buffer import layout, limits
from buffer.codec import decode
from buffer.errors import MisuseError, StorageFault
from buffer.reader import RingReader
from buffer.ring import Instant, Ring, RingOptions
from buffer.storage import PosixReadStorage, PosixStorage
from buffer.tagtable import Tag, TagTable, encode_table
from buffer.types import Columns, make_columns
from tests.support.keys import Key

KEY = Key()
TABLE = encode_table(TagTable("g", "g.main", "s", "UTC", ("p",), (Tag(16, "a", "x/a", "p"), Tag(17, "b", "x/b", "p"))))
JOURNAL = 256 * 1024


def instant(n: int = 0) -> Instant:
    return Instant(1_790_000_000 * 10**9 + n, n, bytes(16), True)


def open_ring(root, nonce: int = 1, max_bytes: int = 64 * 2**20) -> Ring:
    salts = itertools.count(nonce * 1000 + 1)
    options = RingOptions("g.main", max_bytes, JOURNAL, (KEY.spki,))
    ring = Ring.open(PosixStorage(root), options, KEY, KEY, instant(), nonce, lambda: next(salts))
    ring.use_table(TABLE)
    ring.commit(instant())
    return ring


def some(first: int, n: int) -> Columns:
    return make_columns([16 + i % 2 for i in range(n)], [10**18 + first + i for i in range(n)], [1] * n, list(range(first, first + n)), [0] * n)


def read_all(root) -> list[tuple[int, int, int]]:
    """Every reading as (generation, seq, value), through the reader."""
    reader = RingReader(PosixReadStorage(root))
    inventory = reader.inventory()
    out = []
    for generation in sorted({j.generation for j in inventory.journals}):
        for frame in reader.blocks(inventory, generation, 0):
            m = frame.verified(KEY).manifest
            if m.count:
                values = decode(frame.payload, m.count).values
                out += [(generation, m.first_seq + i, int(v)) for i, v in enumerate(values)]
    return out


def crash(ring: Ring) -> None:
    """Let go of the lock as the kernel would, without any of the product's own code running."""
    for fd in list(ring._storage._names):
        os.close(fd)


def test_committed_readings_are_read_back_in_order(tmp_path):
    ring = open_ring(tmp_path)
    for i in range(5):
        ring.append(some(i * 10, 10), 0, bytes([i]))
        done = ring.commit(instant(i))
        assert (done.first_seq, done.end_seq) == (i * 10, i * 10 + 10)
    assert [v for _, _, v in read_all(tmp_path)] == list(range(50))


def test_readings_one_at_a_time_stand_where_they_were_added(tmp_path):
    ring = open_ring(tmp_path)
    ring.singly.add(16, 0, 0)
    ring.append(some(1, 2))
    ring.singly.add(16, 3, 3)
    assert ring.commit(instant()).end_seq == 4
    ring.singly.add(16, 4, 4)
    with pytest.raises(MisuseError, match="wait"):
        ring.use_table(b"")
    ring.commit(instant())
    assert [v for _, _, v in read_all(tmp_path)] == list(range(5))


def test_a_start_after_kill_begins_a_generation_and_keeps_everything(tmp_path):
    ring = open_ring(tmp_path)
    ring.append(some(0, 7), 0, b"seven")
    ring.commit(instant())
    first = ring.generation
    crash(ring)
    again = open_ring(tmp_path, nonce=2)
    assert again.state.predecessor == (first, 7)
    assert again.last.positions == {0: b"seven"}
    assert again.last.tag(16).value == 6
    again.append(some(7, 3))
    again.commit(instant())
    assert [v for _, _, v in read_all(tmp_path)] == list(range(10))


def test_a_second_writer_is_refused(tmp_path):
    open_ring(tmp_path)
    with pytest.raises(StorageFault, match="another process"):
        open_ring(tmp_path, nonce=2)


def test_a_torn_tail_is_dropped_and_a_hole_is_named(tmp_path):
    ring = open_ring(tmp_path)
    for i in range(3):
        ring.append(some(i, 1))
        ring.commit(instant())
    path = tmp_path / ring._journals.active.facts.name.path
    crash(ring)
    data = bytearray(path.read_bytes())
    data[limits.PAGE_BYTES * 3 + 60] ^= 1  # page 0 header, 1 empty block, then readings 0, 1, 2: the middle one rots
    path.write_bytes(data)
    again = open_ring(tmp_path, nonce=2)
    assert [(x.first, x.last) for x in again.state.lost] == [(1, 1)]
    assert again.state.predecessor[1] == 3


def test_the_oldest_goes_first_and_low_is_committed_before(tmp_path):
    ring = open_ring(tmp_path, max_bytes=8 * JOURNAL)
    for i in range(60):
        ring.append(some(i * 1000, 1000))
        ring._roll = True
        ring.commit(instant(i))
        ring.make_room(instant(i))
    assert ring.usage_bytes() <= 9 * JOURNAL
    generation, low = ring.state.low
    readings = read_all(tmp_path)
    assert low > 0
    assert readings[0][1] <= low
    assert readings[-1][2] == 59_999
    crash(ring)
    assert open_ring(tmp_path, nonce=2, max_bytes=8 * JOURNAL).state.low == (generation, low)


class _FailingSync(PosixStorage):
    fail = False

    def fdatasync(self, handle):
        if self.fail:
            type(self).fail = False
            self._poisoned.add(handle)
            raise StorageFault("Input/output error", path="journal", errno=5)
        super().fdatasync(handle)


def test_after_a_failed_sync_the_same_block_goes_to_a_new_journal(tmp_path):
    salts = itertools.count(1)
    ring = Ring.open(_FailingSync(tmp_path), RingOptions("g.main", 2**30, JOURNAL), KEY, KEY, instant(), 1, lambda: next(salts))
    ring.use_table(TABLE)
    ring.commit(instant())
    ring.append(some(0, 3))
    first = ring._journals.active.facts.name
    _FailingSync.fail = True
    assert ring.commit(instant()).end_seq == 3
    assert ring._journals.active.facts.name.serial == first.serial + 1
    assert [v for _, _, v in read_all(tmp_path)] == [0, 1, 2]
    crash(ring)
    assert open_ring(tmp_path, nonce=2).state.predecessor[1] == 3
    assert [v for _, _, v in read_all(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("harm", [os.unlink, lambda path: os.truncate(path, 0), lambda path: os.truncate(path, 4096)])
@pytest.mark.parametrize("directory", [layout.JOURNALS, ""])
def test_what_is_committed_after_somebody_removed_open_files_is_there(tmp_path, harm, directory):
    ring = open_ring(tmp_path)
    ring.append(some(0, 10))
    ring.commit(instant(1))
    for path in [p for p in (tmp_path / directory).iterdir() if p.is_file()]:
        harm(path)
    for i in (1, 2):
        ring.append(some(10 * i, 10))
        ring.commit(instant(1 + i))
    kept = [] if directory else list(range(10))
    assert [value for _, _, value in read_all(tmp_path)] == [*kept, *range(10, 30)]
    assert not directory or any("removed or cut" in event for event in ring.counters.events)
    crash(ring)
    ring = open_ring(tmp_path, 2)
    assert [value for _, _, value in read_all(tmp_path)] == [*kept, *range(10, 30)]
    assert directory == "" or [(loss.first, loss.last) for loss in ring.state.lost] == [(0, 9)]


def test_readers_stop_at_the_durable_mark(tmp_path):
    ring = open_ring(tmp_path)
    ring.append(some(0, 2))
    ring.commit(instant())
    mark = (tmp_path / layout.DURABLE).read_bytes()
    ring.append(some(2, 2))
    ring.commit(instant())
    (tmp_path / layout.DURABLE).write_bytes(mark)
    assert [v for _, _, v in read_all(tmp_path)] == [0, 1]


def test_a_commit_of_many_blocks_is_all_or_nothing(tmp_path):
    ring = open_ring(tmp_path)
    mark = (tmp_path / layout.DURABLE).read_bytes()
    n = limits.BLOCK_READINGS_MAX + 10
    ring.append(some(0, n), 0, b"p")
    done = ring.commit(instant())
    assert done.last_block > done.first_block
    path = tmp_path / ring._journals.active.facts.name.path
    crash(ring)
    data = bytearray(path.read_bytes())
    end = bytes(data).rstrip(b"\0")
    data[len(end) - 5 : len(end)] = bytes(5)  # the last block of the commit is torn
    path.write_bytes(data)
    (tmp_path / layout.DURABLE).write_bytes(mark)  # the power went before it was acknowledged
    again = open_ring(tmp_path, nonce=2)
    assert again.state.predecessor is None
    assert again.state.lost == ()
    assert again.last.positions == {}


def test_a_crash_loop_leaves_no_journals_behind(tmp_path):
    for nonce in range(1, 25):
        crash(open_ring(tmp_path, nonce=nonce))
    assert sum(layout.parse_journal(name) is not None for name in os.listdir(tmp_path / "journal")) <= 3


@pytest.mark.parametrize("ordinal", ["9999999999", "4294967295", "2147483647"])
@pytest.mark.parametrize("name", ["journal/{}-ffffffff-0000000000000000-000000.journal", "last/{}-ffffffff-0000000000000000"])
def test_a_name_beyond_the_last_generation_keeps_nobody_from_starting(tmp_path, ordinal, name):
    ring = open_ring(tmp_path)
    ring.append(some(0, 10))
    ring.commit(instant(1))
    crash(ring)
    (tmp_path / name.format(ordinal)).write_bytes(b"\xff" * 9_000)
    again = open_ring(tmp_path, 2)
    assert again.generation >> 32 == 2
    assert [value for _, _, value in read_all(tmp_path)] == list(range(10))


def test_a_file_of_the_last_generation_is_named_not_a_crash(tmp_path):
    crash(open_ring(tmp_path))
    (tmp_path / f"journal/{layout.ORDINAL_MAX:010d}-ffffffff-0000000000000000-000000.journal").write_bytes(b"")
    with pytest.raises(StorageFault, match="move it away"):
        open_ring(tmp_path, 2)
