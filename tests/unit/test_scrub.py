"""The scrub: rot planted in every kind of file is found, declared once, and survives neither sealing nor a restart of collect."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from buffer import layout, limits
from buffer.errors import StorageFault
from buffer.journal import PAGE
from buffer.manifest import Loss, LossReason
from buffer.reader import RingReader
from buffer.ring import with_root
from buffer.scrub import INTERVAL_NS, Progress, Scrub, decode_progress, encode_progress, fresh
from buffer.seal import result_from  # noqa: F401 -- the sealing child's vocabulary is loaded as collect loads it
from buffer.segment import seal
from buffer.storage import PosixReadStorage
from tests.support.keys import Key
from tests.unit.test_ring import crash, instant, open_ring, some

NOW = 1_790_000_000 * 10**9


class Keys(Key):
    def knows(self, name: bytes) -> bool:
        return name == self.key_id


@pytest.fixture
def ring(tmp_path):
    """50 readings sealed, then 5 blocks of 10 in the journal."""
    ring = open_ring(tmp_path)
    ring.append(some(0, 50))
    ring.commit(instant())
    ring._roll = True
    ring.commit(instant())
    request = with_root(ring.sealable(), str(tmp_path))
    ring.adopt(request, seal(request), instant())
    for i in range(5):
        ring.append(some(50 + 10 * i, 10))
        ring.commit(instant())
    return ring


def scrubbed(root, progress=None, keys=None):
    scrub = Scrub(PosixReadStorage(root), keys or Keys(), progress or Progress())
    found = []
    while (checked := scrub.step(NOW)) is not None:
        found.append(checked)
    return found, scrub


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def bad(root, **options):
    return [checked for checked in scrubbed(root, **options)[0] if checked.problem]


def test_a_good_ring_has_no_finding_and_every_file_is_looked_at(ring, tmp_path):
    found, scrub = scrubbed(tmp_path)
    assert [c for c in found if c.problem or c.losses] == []
    assert {c.path.split("/")[0] for c in found} == {"objects", "last", "segments", "journal"}
    assert not scrub.due(NOW)
    assert not scrub.due(NOW + INTERVAL_NS - 1)
    assert scrub.due(NOW + INTERVAL_NS)


@pytest.mark.parametrize("ending", ["parquet", "cose"])
def test_rot_in_a_segment_loses_its_readings_with_a_reason(ring, tmp_path, ending):
    [name] = ring.segments
    path = tmp_path / (name.parquet if ending == "parquet" else name.cose)
    flip(path, path.stat().st_size // 2)
    [found] = bad(tmp_path)
    assert found.losses == (Loss(name.generation, 0, 49, LossReason.BIT_ROT),)
    ring.declare_lost(found.losses, instant())
    assert ring.state.lost == found.losses
    assert fresh(found.losses, ring.state.lost) == [], "the next round declares nothing anew"
    crash(ring)
    assert open_ring(tmp_path, nonce=2).state.lost == found.losses, "a start forgets no reason"


def test_sql_reads_no_segment_that_was_found_rotten(ring, tmp_path):
    """Its bytes still look like Parquet; what they say is not what was measured. Where a journal still has the blocks, they stand in."""
    from buffer.query import run_query

    [name] = ring.segments
    [journal] = [p for p in (tmp_path / "journal").glob("*.journal") if p.name.endswith("-000000.journal")]
    assert run_query(tmp_path, "SELECT count(*), sum(value_int) FROM readings").rows == [[100, sum(range(100))]]
    ring.declare_lost((Loss(name.generation, 0, 49, LossReason.BIT_ROT),), instant())
    (tmp_path / name.parquet).write_bytes(b"rot")
    assert run_query(tmp_path, "SELECT count(*), sum(value_int) FROM readings").rows == [[100, sum(range(100))]]
    journal.unlink()
    assert run_query(tmp_path, "SELECT count(*), min(seq) FROM readings").rows == [[50, 50]]
    assert run_query(tmp_path, "SELECT kind, first_seq, last_seq, reason FROM gaps").rows == [["lost", 0, 49, "bit_rot"]]


def test_rot_in_a_block_loses_its_readings_alone_and_sealing_launders_nothing(ring, tmp_path):
    mark = RingReader(PosixReadStorage(tmp_path)).durable()
    path = tmp_path / layout.JournalName(mark.generation, 50, 1).path
    assert path.exists()
    flip(path, PAGE * 3 + 200)
    [found] = bad(tmp_path)
    assert [(x.first, x.last) for x in found.losses] == [(60, 69)]
    ring.declare_lost(found.losses, instant())
    ring._roll = True
    ring.commit(instant())
    request = with_root(ring.sealable(), str(tmp_path))
    result = seal(request)
    assert result.parts == (), "a segment over rotten blocks would make rot into truth"
    ring.seal_failed(request, result.error)
    assert ring.state.lost == found.losses


def test_rot_in_the_newest_block_is_found_too_though_nothing_follows_it(ring, tmp_path):
    mark = RingReader(PosixReadStorage(tmp_path)).durable()
    flip(tmp_path / layout.JournalName(mark.generation, 50, 1).path, mark.end_offset - PAGE + 100)
    [found] = bad(tmp_path)
    assert [(x.first, x.last) for x in found.losses] == [(90, 99)]


def test_rot_in_the_last_block_of_a_closed_journal_is_found_by_where_the_next_one_begins(ring, tmp_path):
    mark = RingReader(PosixReadStorage(tmp_path)).durable()
    ring._roll = True
    ring.append(some(100, 10))
    ring.commit(instant())
    flip(tmp_path / layout.JournalName(mark.generation, 50, 1).path, mark.end_offset - PAGE + 100)
    [found] = bad(tmp_path)
    assert [(x.first, x.last) for x in found.losses] == [(90, 99)]


def test_rot_in_the_last_block_of_a_dead_generation_is_found_by_what_its_successor_states(ring, tmp_path):
    mark = RingReader(PosixReadStorage(tmp_path)).durable()
    crash(ring)
    open_ring(tmp_path, nonce=2)
    flip(tmp_path / layout.JournalName(mark.generation, 50, 1).path, mark.end_offset - PAGE + 100)
    [found] = bad(tmp_path)
    assert [(x.generation, x.first, x.last) for x in found.losses] == [(mark.generation, 90, 99)]


def test_rot_in_a_sealed_journal_costs_nothing_because_the_segment_has_it(ring, tmp_path):
    [old] = [p for p in (tmp_path / "journal").glob("*.journal") if p.name.endswith("-000000.journal")]
    flip(old, PAGE * 2 + 200)
    assert all(found.losses == () for found in scrubbed(tmp_path)[0])
    crash(ring)
    flip(old, PAGE + 200)
    assert all(found.losses == () for found in scrubbed(tmp_path)[0])


@pytest.mark.parametrize("directory", ["objects", "last"])
def test_rot_in_an_object_or_last_file_is_damage_without_loss(ring, tmp_path, directory):
    path = sorted((tmp_path / directory).iterdir())[0]
    flip(path, path.stat().st_size // 2)
    [found] = bad(tmp_path)
    assert found.losses == ()
    assert found.path == f"{directory}/{path.name}"


def test_a_disk_that_refuses_a_segment_is_rot(ring, tmp_path):
    class Refusing(PosixReadStorage):
        def read_direct(self, path, offset, size_bytes):
            if path.endswith(".parquet"):
                raise StorageFault("Input/output error", path=path, errno=5)
            return super().read_direct(path, offset, size_bytes)

    scrub = Scrub(Refusing(tmp_path), Keys(), Progress())
    found = []
    while (checked := scrub.step(NOW)) is not None:
        found += [checked] if checked.problem else []
    assert [x.losses for x in found] == [(Loss(ring.generation, 0, 49, LossReason.BIT_ROT),)]


def test_a_key_that_is_not_known_is_no_rot(ring, tmp_path):
    other = Keys(bytes([7] * 32))
    assert all(found.losses == () for found in scrubbed(tmp_path, keys=other)[0])


def test_a_file_evicted_while_it_is_read_is_a_fact(ring, tmp_path):
    [name] = ring.segments

    class Evicting(PosixReadStorage):
        def read_direct(self, path, offset, size_bytes):
            if path == name.parquet:
                (tmp_path / name.cose).unlink()
                (tmp_path / name.parquet).write_bytes(b"")
                (tmp_path / name.parquet).unlink()
            return super().read_direct(path, offset, size_bytes)

    scrub = Scrub(Evicting(tmp_path), Keys(), Progress())
    while (checked := scrub.step(NOW)) is not None:
        assert not checked.problem


def test_a_restart_goes_on_where_it_was(ring, tmp_path):
    scrub = Scrub(PosixReadStorage(tmp_path), Keys(), Progress())
    first = scrub.step(NOW)
    second = scrub.step(NOW)
    kept = decode_progress(encode_progress(scrub.progress))
    rest, again = scrubbed(tmp_path, progress=kept)
    whole, _ = scrubbed(tmp_path)
    assert [first.path, second.path, *(c.path for c in rest)] == [c.path for c in whole]
    assert again.progress.files == len(whole)
    assert again.progress.finished_ns == NOW


@pytest.mark.parametrize("data", [None, b"", b"{}[", b"[1]", b'{"files": "x"}', b'{"unknown": 1}'])
def test_progress_that_is_none_begins_a_round(data):
    assert decode_progress(data) == Progress()


async def test_collect_declares_what_it_finds_once_and_says_so(ring, tmp_path):
    """The loop around it, over the real ring; the writer is replaced by one that runs at once."""
    from gateway.collect.scrubber import Scrubber

    [name] = ring.segments
    flip(tmp_path / name.parquet, 1000)
    table = sorted((tmp_path / "objects").iterdir())[0]
    flip(table, 200)
    notices = []

    class Writer:
        def notice(self, kind, source, **detail):
            notices.append(detail)

        async def exclusively(self, action):
            return action()

    async def offload(action):
        return action()

    async def sleep(_):
        await asyncio.sleep(0)

    from buffer.tagtable import decode_table
    from tests.unit.test_ring import TABLE

    runtime = SimpleNamespace(offload=offload, sleep=sleep, wall_ns=lambda: NOW)
    scrubber = Scrubber.__new__(Scrubber)
    scrubber._runtime, scrubber._ring, scrubber._writer, scrubber._instant = runtime, ring, Writer(), instant
    scrubber._table, scrubber._path = (lambda: decode_table(TABLE)), tmp_path / "scrub.json"
    scrubber._settings = SimpleNamespace(data_key=tmp_path / "data.key")
    scrubber.scrub = Scrub(PosixReadStorage(tmp_path), Keys(), Progress())
    await scrubber.round()
    assert ring.state.lost == (Loss(name.generation, 0, 49, LossReason.BIT_ROT),)
    assert [n["event"] for n in notices] == ["scrub found damage", "scrub found damage", "scrub ended"]
    assert [n for n in notices if n.get("readings_lost") == 50]
    assert json.loads((tmp_path / "scrub.json").read_text())["damaged"] == 2
    assert bad(tmp_path)[0].path == name.cose, "the tag table was written again"
    scrubber.scrub.progress = replace(scrubber.scrub.progress, finished_ns=NOW - limits.SCRUB_INTERVAL_NS)
    notices.clear()
    await scrubber.round()
    assert [n["event"] for n in notices] == ["scrub ended"]
