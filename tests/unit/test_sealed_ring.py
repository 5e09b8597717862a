"""The sealing child and the ring together: ask, make, adopt, publish, start again."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from buffer import limits
from buffer.errors import CorruptError, StorageFault
from buffer.reader import RingReader
from buffer.ring import with_root
from buffer.seal import result_from, to_line
from buffer.segment import seal
from buffer.spare import DISK_FREE_JOURNALS_MIN
from buffer.storage import PosixReadStorage
from buffer.types import make_columns
from gateway.trust.keys import create_signer
from tests.faults import ring_work
from tests.support.keys import Key
from tests.unit.test_ring import JOURNAL, crash, instant, open_ring, read_all, some

NAN = 0x7FF8_0000_0000_0BAD
MINUS_ZERO = 0x8000_0000_0000_0000


def sealed_ring(root, *commits, max_bytes=64 * 2**20):
    ring = open_ring(root, max_bytes=max_bytes)
    for columns in commits:
        ring.append(columns)
        ring.commit(instant())
    ring._roll = True
    ring.commit(instant())
    return ring, with_root(ring.sealable(), str(root))


def test_a_segment_holds_every_kind_bit_for_bit(tmp_path):
    columns = make_columns(
        [16, 17, 16, 17, 16, 16, 17, 3],
        [10**18 + i * 1001 for i in range(8)],
        [0, 0, 1, 2, 3, 4, 6, 3],
        [NAN, MINUS_ZERO, 2**64 - 5, 1, 0, 2**63 + 1, 0, 1],
        [0, 0x80000000, 0, 0, 0, 0, 0x80310000, 0],
        texts=("Größe\n", '{"source": "p"}'),
    )
    ring, request = sealed_ring(tmp_path, columns)
    out = subprocess.run([sys.executable, "-m", "buffer.sealing"], input=to_line(request), capture_output=True, text=True, timeout=60, check=True)
    result = result_from(out.stdout)
    assert result.error == ""
    [name] = ring.adopt(request, result, instant())
    table = pq.read_table(tmp_path / name.parquet).sort_by("seq")
    assert table["value_double"].to_numpy()[:2].view("u8").tolist() == [NAN, MINUS_ZERO]
    assert table["value_int"].to_pylist()[2] == -5
    assert table["value_string"].to_pylist()[4] == "Größe\n"
    assert table["tag"].to_pylist()[-1] == "_ebbgate.gap"
    frame = RingReader(PosixReadStorage(tmp_path)).segment_frame(name).verified(Key())
    assert (frame.manifest.first_seq, frame.manifest.count) == (0, 8)
    crash(ring)
    again = open_ring(tmp_path, nonce=2)
    assert again.state.predecessor[1] == 8
    assert again.segments == [name]
    assert again.last.tag(17).kind == 6


def test_a_rotten_journal_is_not_sealed(tmp_path):
    ring, request = sealed_ring(tmp_path, some(0, 100))
    path = tmp_path / request.journals[0]
    data = bytearray(path.read_bytes())
    data[limits.PAGE_BYTES * 2 + 500] ^= 4
    path.write_bytes(data)
    result = seal(request)
    assert result.parts == ()
    assert "not all there" in result.error
    ring.seal_failed(request, result.error)
    assert ring.sealable() is None


def test_a_disk_that_refuses_says_nothing_about_the_journal(tmp_path):
    ring, request = sealed_ring(tmp_path, some(0, 100))
    (tmp_path / "segments").rename(tmp_path / "elsewhere")
    result = seal(request)
    assert result.again and "StorageFault" in result.error and result_from(to_line(result)) == result
    (tmp_path / "elsewhere").rename(tmp_path / "segments")
    result = seal(request)
    (tmp_path / result.parts[0].path).rename(tmp_path / "moved")
    (tmp_path / "segments").rename(tmp_path / "elsewhere")
    with pytest.raises((StorageFault, CorruptError)):
        ring.adopt(request, result, instant())
    (tmp_path / "elsewhere").rename(tmp_path / "segments")
    assert with_root(ring.sealable(), str(tmp_path)) == request
    assert [name.last for name in ring.adopt(request, seal(request), instant())] == [99]
    assert ring.sealable() is None


@pytest.mark.parametrize("change", [{"length": 10}, {"sha256": "0" * 64}])
def test_a_part_that_is_not_what_the_child_checked_is_refused(tmp_path, change):
    ring, request = sealed_ring(tmp_path, some(0, 10))
    result = seal(request)
    with pytest.raises(CorruptError, match="not what the child checked"):
        ring.adopt(request, replace(result, parts=(replace(result.parts[0], **change),)), instant())


@pytest.mark.parametrize("left_out", [{"first_block": 2}, {"last_block": 1}])
def test_a_part_that_leaves_out_a_block_is_refused(tmp_path, left_out):
    ring, request = sealed_ring(tmp_path, some(0, 10), some(10, 10))
    assert request.last_block == 2
    result = seal(replace(request, **left_out))
    assert result.parts, "a good file, of the wrong blocks"
    with pytest.raises(CorruptError, match="not the blocks that were asked for"):
        ring.adopt(request, result, instant())
    assert ring.segments == []
    assert with_root(ring.sealable(), str(tmp_path)) == request
    assert [(name.first, name.last) for name in ring.adopt(request, seal(request), instant())] == [(0, 19)]


def test_journals_that_stand_in_segments_go_before_history(tmp_path):
    """The ring is full of journals kept for an hour after their segment: they go first, the pool keeps one, and no reading goes."""
    signer = create_signer(tmp_path / "data.key")
    (tmp_path / "ring").mkdir()
    told = []
    ring_work.work(tmp_path / "ring", signer, 12 * ring_work.JOURNAL_BYTES, 150, told.append)
    assert sorted(ring_work.held(tmp_path / "ring").values()) == list(range(told[-1] + 1))


def test_commits_go_on_while_a_segment_is_published(tmp_path, monkeypatch):
    ring, request = sealed_ring(tmp_path, some(0, 10))
    published = ring._storage.publish

    def beside(path, chunks):
        ring.append(some(10 + len(counted), 1))
        counted.append(ring.commit(instant()).end_seq)
        published(path, chunks)

    counted = []
    monkeypatch.setattr(ring._storage, "publish", beside)
    made = ring.publish_sealed(request, seal(request))
    assert counted == [11] and ring.segments == [], "the .cose was written beside a commit, and is not counted yet"
    monkeypatch.undo()
    [name] = ring.admit(request, made, instant())
    assert ring.segments == [name] and (name.first, name.last) == (0, 9) and ring.sealable() is None
    crash(ring)
    assert [value for _, _, value in read_all(tmp_path)] == [*range(10), 10]
    assert open_ring(tmp_path, nonce=2).segments == [name]


def test_a_journal_evicted_while_its_segment_is_published_stays_evicted(tmp_path):
    ring, request = sealed_ring(tmp_path, some(0, 10), max_bytes=8 * JOURNAL)
    made = ring.publish_sealed(request, seal(request))
    assert made.fault is None and len(made.parts) == 1
    for i in range(12):
        ring.append(some(i * 1_000, 1_000))
        ring._roll = True
        ring.commit(instant())
        ring.make_room(instant())
    assert ring.state.low > (ring.generation, 9) and list((tmp_path / "segments").iterdir())
    assert ring.admit(request, made, instant()) == []
    ring.make_room(instant())
    assert ring.segments == [] and not list((tmp_path / "segments").iterdir())
    assert ring.usage_bytes() == sum(path.stat().st_size for name in ("journal", "objects", "last") for path in (tmp_path / name).iterdir())


def test_the_next_journal_finds_its_file_made(tmp_path, monkeypatch):
    ring = open_ring(tmp_path)
    number = ring.spare.wanted()
    assert ring.spare.wanted() is None, "one try a journal"
    assert ring.spare.make(number)
    ring.spare.add(number)
    before = ring._journals.usage_bytes()
    ring.append(some(0, 5))
    ring._roll = True
    made = []
    monkeypatch.setattr(ring._storage, "create", lambda *arguments: made.append(arguments))
    ring.commit(instant())
    assert made == [] and ring._journals.usage_bytes() == before
    assert ring.spare.wanted() == number + 1
    monkeypatch.undo()
    assert ring.spare.make(number + 1)  # killed before it was counted
    crash(ring)
    again = open_ring(tmp_path, nonce=2)
    assert again._journals.usage_bytes() == sum(path.stat().st_size for path in (tmp_path / "journal").iterdir()), "counted by the next start"
    assert [value for _, _, value in read_all(tmp_path)] == list(range(5))


@pytest.mark.parametrize("why", ["ring", "disk", "refuses"])
def test_no_file_is_made_for_the_next_journal_where_room_is_short(tmp_path, monkeypatch, why):
    ring = open_ring(tmp_path, max_bytes=64 * 2**20 if why != "ring" else 2 * JOURNAL)
    if why == "disk":
        monkeypatch.setattr(ring._storage, "free_bytes", lambda: DISK_FREE_JOURNALS_MIN * JOURNAL - 1)
    if why == "refuses":
        (tmp_path / "journal").rename(tmp_path / "elsewhere")
        assert not ring.spare.make(ring.spare.wanted())
        return
    assert ring.spare.wanted() is None
