"""SQL over a ring that is damaged, being evicted, or on a disk that is full: the truth or an error that names it, never a short count in silence."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from buffer import layout, query, snapshot
from buffer.check import check_ring
from buffer.errors import CorruptError, StorageFault
from buffer.journal import PAGE
from buffer.query import QueryOptions, QueryRefused, run_query, write_query
from buffer.types import make_columns
from gateway.ringfacts import describe, gather
from tests.support.keys import Key
from tests.support.readings import some
from tests.support.store import Store, state_record

COUNT = "SELECT count(*), min(seq), max(seq) FROM readings"
NANS = (0x7FF8_0000_0000_0BAD, 0x7FF0_0000_0000_0001, 0xFFF8_0000_0000_0000, 0xFFF0_0000_0000_0001, 0, 0x8000_0000_0000_0000)


@pytest.fixture
def store(tmp_path):
    """Two segments of five readings whose journals are gone, and three blocks of five in a journal."""
    store = Store(tmp_path / "ring" / "g.main")
    for first in (0, 5):
        store.add(some(first, 5))
        store.seal()
    for path in sorted((store.root / layout.JOURNALS).iterdir())[:2]:
        path.unlink()
    for first in (10, 15, 20):
        store.add(some(first, 5))
    return store


@pytest.fixture
def ring(store):
    return store.root.parent


def segments(store: Store) -> list[Path]:
    return sorted((store.root / layout.SEGMENTS).glob("*.parquet"))


def truth(ring: Path) -> None:
    result = run_query(ring, COUNT)
    assert (result.rows, result.missing) == ([[25, 0, 24]], ())


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("harm", [lambda path: os.truncate(path, 900), lambda path: path.write_bytes(b"x" * 900), lambda path: os.truncate(path, 0), Path.unlink])
def test_a_damaged_segment_is_named(store, ring, which, harm):
    truth(ring)
    path = segments(store)[which]
    harm(path)
    with pytest.raises(CorruptError, match=path.name):
        run_query(ring, COUNT)
    with pytest.raises(CorruptError, match=path.name):
        write_query(ring, COUNT, ring.parent / "x.csv")
    assert not (ring.parent / "x.csv").exists()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("form", ["", "csv"])
@pytest.mark.parametrize("step", ["truncated", "removed"])
def test_a_segment_caught_in_its_eviction_is_an_occasion_to_look_again(store, ring, tmp_path, monkeypatch, which, form, step):
    real, evicted = snapshot.take_snapshot, segments(store)[: which + 1]

    def evict_after(*arguments):
        taken = real(*arguments)
        while evicted:
            path = evicted.pop()
            path.with_suffix(".cose").unlink()
            os.truncate(path, 0)
            if step == "removed":
                path.unlink()
        return taken

    monkeypatch.setattr(snapshot, "take_snapshot", evict_after)
    (tmp_path / "s").mkdir()
    request = {"ring": str(ring), "scratch": str(tmp_path / "s"), "sql": "SELECT count(*) FROM readings", "form": form, "options": {}}
    lines = list(query._serve(request))
    left = 25 - 5 * (which + 1)
    assert [left] in lines if not form else (tmp_path / "s" / query.RESULT).read_text().splitlines()[1:] == [str(left)]


def test_a_disk_that_takes_no_more_is_not_called_an_eviction(ring, monkeypatch):
    monkeypatch.setattr(query, "COMMAND", ("sh", "-c", 'ulimit -f 64; exec "$@"', "sh", *query.COMMAND))
    with pytest.raises(StorageFault, match="File too large"):
        run_query(ring, "SELECT count(*) FROM (SELECT a FROM range(20000000) t(a) ORDER BY hash(a))", QueryOptions(memory="40MB"))
    with pytest.raises(StorageFault, match="File too large"):
        write_query(ring, "SELECT * FROM range(1000000)", ring.parent / "x.csv")


def test_what_lies_in_a_journal_that_rots_is_named_beside_the_result(store, ring):
    store.seal()  # a segment repeats nothing of what its journal lost
    segments(store)[-1].with_suffix(".cose").unlink()
    segments(store)[-1].unlink()
    journal = store.root / store.names[-2]
    with journal.open("r+b") as file:
        file.seek(PAGE + PAGE + 300)  # in the second block
        file.write(b"\xff\xff")
    store.add(some(25, 5))
    result = run_query(ring, COUNT)
    assert (result.rows, result.missing) == ([[25, 0, 29]], ("g.main 7-3fa91c02 15-19",))
    assert run_query(ring, "SELECT kind, generation, first_seq, last_seq FROM gaps").rows == [["missing", store.generation, 15, 19]]
    assert write_query(ring, "FROM readings", ring.parent / "x.parquet") == (25, ("g.main 7-3fa91c02 15-19",))


def test_a_dead_generation_that_is_not_there_is_named(tmp_path):
    ring = tmp_path / "ring"
    old = Store(ring / "g.main").add(some(0, 5))
    new = Store(ring / "g.main", generation=8 << 32 | 1, predecessor=(old.generation, 5))
    new.add(some(5, 5), state=state_record(0, 5, new.generation, predecessor=new.predecessor, low=(old.generation, 2)))
    assert run_query(ring, COUNT).missing == ()
    (old.root / old.names[0]).unlink()
    assert run_query(ring, COUNT).missing == ("g.main 7-3fa91c02 2-4",)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: os.truncate(path, 10), lambda path: path.write_bytes(bytes(64))])
@pytest.mark.parametrize("sealed", [True, False])
def test_without_durable_nobody_says_how_far_the_ring_goes(tmp_path, harm, sealed):
    store = Store(tmp_path / "ring" / "g.main").add(some(0, 5))
    if sealed:
        store.seal()
    harm(store.root / layout.DURABLE)
    with pytest.raises(CorruptError, match="durable"):
        run_query(tmp_path / "ring", COUNT)
    assert any("durable" in finding for finding in check_ring(store.root, Key()).findings)
    assert "ring check" in describe(gather(store.root, 10**9, tmp_path / "status.json"))[-1]


def test_a_ring_in_which_nothing_was_committed_yet_is_empty(tmp_path):
    store = Store(tmp_path / "ring" / "g.main")
    assert run_query(tmp_path / "ring", COUNT).rows == [[0, None, None]]
    assert check_ring(store.root, Key()).findings == []
    assert "nothing was committed" in describe(gather(store.root, 10**9, tmp_path / "status.json"))[-1]


def test_a_newest_block_that_cannot_be_read_leaves_no_account(store, ring):
    (store.root / store.names[-1]).unlink()
    with pytest.raises(CorruptError, match="newest block"):
        run_query(ring, COUNT)
    assert "ring check" in describe(gather(store.root, 10**9, ring / "status.json"))[-1]


@pytest.mark.parametrize("name", ["seq=1", "quality=5", "tag=x", "ts=2020-01-01", "site=acme", "we[1]rd*?"])
def test_the_names_of_directories_above_the_ring_are_no_columns(tmp_path, name):
    store = Store(tmp_path / name / "ring" / "g.main").add(some(0, 4))
    store.seal()
    result = run_query(tmp_path / name / "ring", "SELECT seq, quality, tag, epoch_ns(ts) // 1000, value_int FROM readings ORDER BY seq")
    assert result.rows == [[i, 0, f"tag{9 - i % 2}", 10**15, i] for i in range(4)]
    assert check_ring(store.root, Key()).findings == []


def test_a_parquet_result_keeps_every_bit(tmp_path):
    columns = make_columns([16] * 12, [10**18] * 12, [0] * 12, list(NANS) * 2, [0] * 12)
    store = Store(tmp_path / "ring" / "g.main").add(columns)
    store.seal()
    store.add(columns)
    assert write_query(tmp_path / "ring", "FROM readings ORDER BY seq", tmp_path / "x.parquet") == (24, ())
    bits = pq.read_table(tmp_path / "x.parquet")["value_double"].combine_chunks().view(pa.uint64()).to_pylist()
    assert bits == list(NANS) * 4
    shown = [row[0] for row in run_query(tmp_path / "ring", "SELECT value_double FROM readings ORDER BY seq").rows]
    assert [math.isnan(value) or struct.pack("<d", value) for value in shown[:6]] == [True] * 4 + [bytes(8), bytes(7) + b"\x80"]


def test_words_that_are_not_utf8_are_refused_as_words(ring):
    with pytest.raises(QueryRefused, match="not UTF-8"):
        run_query(ring, "SELECT '" + os.fsdecode(b"\xff") + "'")
    place = Path(os.fsdecode(os.fsencode(ring.parent) + b"/\xff"))
    place.mkdir()
    with pytest.raises(QueryRefused, match="not UTF-8"):
        write_query(ring, "SELECT 1", place / "x.csv")


def test_texts_cross_to_the_caller_whatever_the_encoding_of_his_terminal(ring, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert run_query(ring, "SELECT chr(9731)").rows == [["\u2603"]]
