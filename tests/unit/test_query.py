"""SQL over a ring: right rows, also while it is written; one statement that reads, and no right to do more."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from buffer import layout, query, snapshot
from buffer.errors import CorruptError, StorageFault
from buffer.landlock import landlock_abi
from buffer.manifest import Loss, LossReason, OpenGap
from buffer.query import QueryOptions, QueryRefused, QueryUnsafe, run_query, stream_query
from buffer.reader import RingReader
from buffer.storage import PosixReadStorage
from buffer.tagtable import Tag, TagTable
from buffer.types import Kind, make_columns
from tests.support.readings import some
from tests.support.store import GENERATION, Store, state_record

MINUS_ZERO = 0x8000_0000_0000_0000
SECOND = 10**9


def digests(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def store(tmp_path):
    """A segment of 4 readings and a notice, and an unsealed tail of 3."""
    store = Store(tmp_path / "ring" / "g.main")
    notice = '{"detail": "cable", "source": "p"}'
    store.add(
        make_columns(
            [16, 17, 18, 20, 1],
            [SECOND + 1, 2 * SECOND, 3 * SECOND, 4 * SECOND, 5 * SECOND],
            [Kind.DOUBLE, Kind.INT64, Kind.TEXT, Kind.UINT64, Kind.TEXT],
            [MINUS_ZERO, 7, 0, 2**63 + 1, 1],
            [0, 0x80000000, 0, 0, 0],
            texts=("RUN", notice),
        )
    )
    store.seal()
    store.add(make_columns([16, 17, 19], [6 * SECOND, SECOND, 7 * SECOND], [0, 1, 2], [0x4004_0000_0000_0000, 9, 1], [0, 0, 0x40000000]))
    return store


@pytest.fixture
def ring(store):
    return store.root.parent


def rows(ring, sql, **options):
    return run_query(ring, sql, QueryOptions(**options)).rows


def test_readings_are_segments_and_what_is_not_sealed_yet(ring):
    result = run_query(ring, "SELECT seq, tag, path, ts, ts_ns, value, value_int, value_uint, value_string, quality FROM readings ORDER BY seq")
    assert result.rows == [
        [0, "tag9", "a/b0", "1970-01-01T00:00:01Z", 1, -0.0, None, None, None, 0],
        [1, "tag8", "a/b1", "1970-01-01T00:00:02Z", 0, 7.0, 7, None, None, 0x80000000],
        [2, "tag7", "a/b2", "1970-01-01T00:00:03Z", 0, None, None, None, "RUN", 0],
        [3, "tag5", "a/b4", "1970-01-01T00:00:04Z", 0, float(2**63), None, 2**63 + 1, None, 0],
        [4, "_ebbgate.source_down", "_ebbgate/source_down", "1970-01-01T00:00:05Z", 0, None, None, None, '{"detail": "cable", "source": "p"}', 0],
        [5, "tag9", "a/b0", "1970-01-01T00:00:06Z", 0, 2.5, None, None, None, 0],
        [6, "tag8", "a/b1", "1970-01-01T00:00:01Z", 0, 9.0, 9, None, None, 0],
        [7, "tag6", "a/b3", "1970-01-01T00:00:07Z", 0, 1.0, None, None, None, 0x40000000],
    ]
    assert result.columns[:2] == ("seq", "tag")
    assert result.types[3] == "TIMESTAMP WITH TIME ZONE"
    assert not result.truncated


def test_views(store, ring):
    assert rows(ring, "SELECT seq FROM readings_good ORDER BY seq") == [[0], [2], [3], [5], [6]]
    assert rows(ring, "SELECT tag, seq FROM last ORDER BY tag") == [["tag5", 3], ["tag6", 7], ["tag7", 2], ["tag8", 1], ["tag9", 5]]
    assert rows(ring, "SELECT kind, source, seq FROM notices") == [["source_down", "p", 4]]
    assert rows(ring, "SELECT DISTINCT stream, generation FROM readings") == [["g.main", GENERATION]]
    assert rows(ring, "SELECT tag, is_unsigned, retired FROM tags WHERE tag IN ('tag5', 'tag9') ORDER BY tag") == [
        ["tag5", True, False],
        ["tag9", False, False],
    ]
    assert rows(ring, "SELECT * FROM gaps") == []


def test_gaps_are_what_the_newest_state_record_says(store, ring):
    lost = (Loss(GENERATION, 2, 3, LossReason.BIT_ROT),)
    store.add(some(8, 1), state=state_record(2, 9, lost=lost, open_gaps=(OpenGap(1, 0, 10**18),)))
    assert rows(ring, "SELECT kind, source, since, generation, first_seq, last_seq, reason FROM gaps ORDER BY kind") == [
        ["lost", None, None, GENERATION, 2, 3, "bit_rot"],
        ["open", "p", "2001-09-09T01:46:40Z", None, None, None, "history may still fill it"],
    ]


def test_a_notice_that_was_cut_does_not_spoil_the_view(store, ring):
    store.add(make_columns([3], [0], [Kind.TEXT], [0], [0], texts=('{"source": "p',)))
    assert rows(ring, "SELECT source FROM notices ORDER BY seq") == [["p"], [None]]


def test_several_streams_stand_side_by_side(store, ring):
    Store(ring / "g.other").add(some(0, 2))
    assert rows(ring, "SELECT stream, count(*) FROM readings GROUP BY stream ORDER BY stream") == [["g.main", 8], ["g.other", 2]]
    assert rows(ring / "g.other", "SELECT count(*) FROM readings") == [[2]]


def test_a_ring_without_readings_has_all_views(tmp_path):
    Store(tmp_path / "g.main")
    for view in ("readings", "readings_good", "last", "gaps", "notices"):
        assert rows(tmp_path, f"SELECT * FROM {view}") == []


def test_an_earlier_generation_is_not_read_beyond_its_end(tmp_path):
    first = Store(tmp_path / "g.main")
    first.add(some(0, 5)).add(some(5, 5))
    second = Store(tmp_path / "g.main", generation=8 << 32 | 1, predecessor=(GENERATION, 5))  # the last block was never durable
    second.add(some(0, 3))
    assert rows(tmp_path, "SELECT generation, count(*) FROM readings GROUP BY ALL ORDER BY ALL") == [[GENERATION, 5], [8 << 32 | 1, 3]]


def test_a_journal_sealed_in_part_is_counted_once(tmp_path):
    store = Store(tmp_path / "g.main").add(some(0, 5)).add(some(5, 5))
    store.seal(last_block=0)
    store.add(some(10, 1))
    assert rows(tmp_path, "SELECT count(*), count(DISTINCT seq) FROM readings") == [[11, 11]]


@pytest.mark.parametrize("last", [2, 9, 9_999_999_999_999_999])
def test_a_copy_of_a_segment_under_another_name_counts_nothing_twice(tmp_path, last):
    store = Store(tmp_path / "g.main").add(some(0, 5)).add(some(5, 5))
    store.seal(last_block=0)
    name, copy = layout.SegmentName(GENERATION, 0, 4), layout.SegmentName(GENERATION, 0, last)
    for a, b in ((name.parquet, copy.parquet), (name.cose, copy.cose)):
        (store.root / b).write_bytes((store.root / a).read_bytes())
    assert rows(tmp_path, "SELECT count(*), count(DISTINCT seq) FROM readings") == [[10, 10]]


def test_two_segments_that_both_hold_a_reading_are_named(tmp_path, monkeypatch):
    store = Store(tmp_path / "g.main").add(some(0, 5)).add(some(5, 5))
    store.seal(last_block=0)
    held = layout.SegmentName(GENERATION, 0, 4)
    monkeypatch.setattr(RingReader, "segment_manifest", lambda *_: None)  # being evicted: says nothing
    names = (held, layout.SegmentName(GENERATION, 3, 9))
    with pytest.raises(CorruptError, match="the same readings"):
        snapshot._apart(RingReader(PosixReadStorage(store.root)), names)


def test_what_is_beyond_durable_is_not_seen(store, ring):
    mark = (store.root / layout.DURABLE).read_bytes()
    store.add(some(8, 4))
    (store.root / layout.DURABLE).write_bytes(mark)
    assert rows(ring, "SELECT count(*) FROM readings") == [[8]]


def test_since_leaves_out_old_segments_and_never_the_tail(store, ring):
    later = 10**18 + 1
    store.add(some(8, 2), state=state_record(2, 10, wall_ns=later))
    store.seal()
    store.add(some(10, 1), state=state_record(3, 11, wall_ns=later))
    assert rows(ring, "SELECT min(seq), max(seq) FROM readings", since_ns=later) == [[5, 10]]
    assert rows(ring, "SELECT count(*) FROM readings", since_ns=0) == [[11]]


# ---- one statement that reads ----

REFUSED = [
    "COPY (SELECT 'forged') TO '{ring}/g.main/segments/x.parquet'",
    "COPY readings TO 'x.csv'",
    "ATTACH '{ring}/x.db'",
    "EXPORT DATABASE '{ring}'",
    "PRAGMA database_list",
    "SET enable_external_access = true",
    "RESET ALL",
    "INSTALL httpfs",
    "LOAD httpfs",
    "CREATE TABLE x AS SELECT 1",
    "DROP VIEW readings",
    "INSERT INTO tags VALUES (1)",
    "UPDATE tags SET unit = ''",
    "DELETE FROM tags",
    "CALL pragma_version()",
    "CHECKPOINT",
    "VACUUM",
    "USE memory",
    "BEGIN",
    "PREPARE p AS SELECT 1",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{ring}/x.csv'",
    "EXPLAIN DELETE FROM tags",
    "EXPLAIN /* */ ANALYZE COPY (SELECT 1) TO '{ring}/x.csv'",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{ring}/x.csv'",
    "",
    "-- nothing",
    "SELEC 1",
    "SELECT * FROM nothing",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_csv('{ring}/g.main/durable')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT getenv('HOME')",
    "SELECT value + tag FROM readings",
    "WITH x AS (DELETE FROM tags RETURNING *) SELECT * FROM x",
    "WITH x AS (INSERT INTO tags SELECT * FROM tags RETURNING *) SELECT count(*) FROM x",
    "SELECT repeat('x', 2000000000)",
    "SELECT repeat('x', 20000000)",
    "SELECT list(range) FROM range(200000000)",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_whatever_is_not_one_reading_statement_is_refused_and_changes_nothing(ring, sql):
    before = digests(ring)
    with pytest.raises(QueryRefused) as refused:
        run_query(ring, sql.format(ring=ring))
    assert "Traceback" not in str(refused.value) and "\n" not in str(refused.value)
    assert digests(ring) == before


@pytest.mark.parametrize(
    "sql",
    ["SELECT 1", "WITH a AS (SELECT 1) SELECT * FROM a", "EXPLAIN SELECT * FROM readings", "EXPLAIN ANALYZE SELECT count(*) FROM readings",
     "FROM readings", "DESCRIBE readings", "SUMMARIZE tags", "SELECT 1;", "VALUES (1)"],
)  # fmt: skip
def test_reading_statements_are_taken(ring, sql):
    assert run_query(ring, sql).rows


def test_a_child_that_ends_within_a_line_is_an_error_of_ours_not_of_the_parser(ring, monkeypatch):
    half = """import sys; sys.stdin.readline(); print('{"columns": [], "types": []}'); print('[1, ', end='', flush=True); sys.exit(9)"""
    monkeypatch.setattr(query, "COMMAND", (sys.executable, "-c", half))
    with pytest.raises(QueryRefused, match="ended with code 9"):
        run_query(ring, "SELECT 1")


def test_memory_of_python_is_bounded_too(ring, monkeypatch):
    with pytest.raises(QueryRefused, match="ask for less"):
        run_query(ring, "SELECT repeat('x', 4000000) FROM range(2000)")


def test_nothing_is_written_into_the_ring_by_a_result(ring):
    before = digests(ring)
    for place in (ring / "g.main" / layout.SEGMENTS, ring):
        with pytest.raises(QueryRefused, match="a part of the ring"):
            query.write_query(ring, "SELECT 1", place / "x.parquet")
    assert digests(ring) == before


def test_a_place_that_cannot_be_written_is_a_fault_that_names_it(ring):
    with pytest.raises(StorageFault, match="/proc: cannot be written"):
        query.write_query(ring, "SELECT 1", Path("/proc/x.csv"))


def test_a_wrong_name_gets_the_list_of_views(ring):
    with pytest.raises(QueryRefused, match="views: readings, readings_good, last, gaps, tags, notices"):
        run_query(ring, "SELECT * FROM reading")


def test_rows_beyond_the_bound_are_cut_and_said(ring):
    result = run_query(ring, "SELECT * FROM range(20000)", QueryOptions(rows_max=5000))
    assert len(result.rows) == 5000 and result.truncated


def test_values_come_as_plain_python(ring):
    sql = "SELECT [1, 2], {'a': 1.5::DECIMAL(4, 1)}, 'x'::BLOB, DATE '2026-01-02', INTERVAL 1 DAY, NULL, true, 2::HUGEINT ** 2"
    assert run_query(ring, sql).rows == [[[1, 2], {"a": 1.5}, "78", "2026-01-02", "1 day, 0:00:00", None, True, 4.0]]


def test_a_query_that_takes_too_long_is_ended(ring):
    with pytest.raises(QueryRefused, match="took too long"):
        run_query(ring, "SELECT count(*) FROM range(10000000000) a, range(1000000) b", QueryOptions(seconds_max=2))


def test_leaving_early_ends_the_child_and_its_scratch(ring, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    lines = stream_query(ring, "SELECT * FROM range(100000000)")
    next(lines), next(lines)
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    lines.close()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_here_is_no_ring(tmp_path):
    with pytest.raises(StorageFault, match="no ring"):
        run_query(tmp_path, "SELECT 1")


# ---- no right to write ----

ATTACK = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from buffer import query
query.protect(Path({ring!r}), {scratch!r})
import duckdb, numpy, os
connection = duckdb.connect()
def attempt(action):
    try: action()
    except Exception as error: return type(error).__name__
    return "ALLOWED"
segment = next(Path({ring!r}).glob("*/segments/*.parquet"))
print(attempt(lambda: connection.execute(f"COPY (SELECT 'forged') TO '{{segment}}'").fetchall()),
      attempt(lambda: connection.execute("ATTACH '" + str(segment.parent / "x.db") + "'").fetchall()),
      attempt(lambda: connection.execute(f"EXPORT DATABASE '{{segment.parent}}/e'").fetchall()),
      attempt(lambda: segment.write_bytes(b"")), attempt(lambda: os.truncate(segment, 0)), attempt(segment.unlink),
      attempt(lambda: segment.rename(Path({scratch!r}) / "x")), attempt(lambda: (Path({scratch!r}) / "y").write_text("y")),
      attempt(lambda: os.system("rm -rf " + {ring!r}) == 0 or 1 / 0))
"""


def _attack(ring, scratch) -> list[str]:
    scratch.mkdir()
    code = ATTACK.format(root=str(Path(query.__file__).parents[1]), ring=str(ring), scratch=str(scratch))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(landlock_abi() < 3, reason="this kernel has no Landlock: the other branch is tested below")
def test_with_the_statement_check_gone_duckdb_still_cannot_write(ring, tmp_path):
    before = digests(ring)
    outcomes = _attack(ring, tmp_path / "scratch")
    assert [outcome == "ALLOWED" for outcome in outcomes] == [False] * 7 + [True, False]
    assert digests(ring) == before


def test_without_landlock_the_owner_of_the_ring_is_refused(ring, tmp_path, monkeypatch):
    monkeypatch.setattr("buffer.landlock.landlock_abi", lambda: 2)
    monkeypatch.setattr(os, "listdir", lambda path, real=os.listdir: ["1"] if path == "/proc/self/task" else real(path))
    with pytest.raises(QueryUnsafe, match="user who may only read"):
        query.protect(ring, str(tmp_path))


def test_without_landlock_somebody_who_may_only_read_is_served(ring, tmp_path, monkeypatch):
    monkeypatch.setattr("buffer.landlock.landlock_abi", lambda: 0)
    monkeypatch.setattr(os, "listdir", lambda path, real=os.listdir: ["1"] if path == "/proc/self/task" else real(path))
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    query.protect(ring, str(tmp_path))


def test_a_process_with_threads_is_refused(ring, tmp_path):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(QueryUnsafe, match="threads"):
            query.protect(ring, str(tmp_path))
    finally:
        stop.set()
        thread.join()


def test_the_child_has_one_thread_when_it_gives_up_writing():
    code = "import os, buffer.query, sys; print(len(os.listdir('/proc/self/task')), [m for m in ('numpy', 'duckdb', 'pyarrow') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(query.__file__).parents[1])
    assert out.stdout == "1 []\n"


# ---- a ring that is being written ----


def test_a_ring_being_written_is_counted_exactly(tmp_path):
    store = Store(tmp_path / "g.main").add(some(0, 100))
    done = threading.Event()
    seen = []

    def look():
        while not done.is_set() and len(seen) < 20:
            seen.append(run_query(tmp_path, "SELECT count(*), count(DISTINCT seq), min(seq), max(seq) FROM readings").rows[0])

    looker = threading.Thread(target=look)
    looker.start()
    for i in range(1, 13):
        store.add(some(100 * i, 100))
        if i % 4 == 0:
            store.seal()
    done.set()
    looker.join()
    assert seen
    for count, distinct, first, last in seen:
        assert (count, first, last) == (distinct, 0, distinct - 1)


def test_a_segment_that_vanishes_before_the_first_row_is_an_occasion_to_look_again(store, ring, tmp_path, monkeypatch):
    store.add(some(8, 100))
    store.seal()
    real = query.check_statement

    def evict_then_check(connection, sql):
        for path in sorted((ring / "g.main" / "segments").glob("*"))[:2]:
            path.unlink()
        real(connection, sql)
        monkeypatch.setattr(query, "check_statement", real)

    monkeypatch.setattr(query, "check_statement", evict_then_check)
    (tmp_path / "s").mkdir()
    for path in sorted((ring / "g.main" / "journal").glob("*"))[:1]:
        path.unlink()  # else its blocks stand in for the segment
    request = {"ring": str(ring), "scratch": str(tmp_path / "s"), "sql": "SELECT min(seq), count(*) FROM readings", "options": {}}
    assert list(query._serve(request))[1] == [5, 103]


def test_a_ring_that_never_holds_still_is_an_error_not_a_loop(store, ring, tmp_path, monkeypatch):
    real = snapshot.RingReader.inventory
    counter = iter(range(100))

    def unsteady(self):
        (ring / "g.main" / "journal" / f"{7:010d}-3fa91c02-{9999:016d}-{next(counter):06d}.journal").write_bytes(b"")
        return real(self)

    monkeypatch.setattr(snapshot.RingReader, "inventory", unsteady)
    with pytest.raises(StorageFault, match="again and again"):
        snapshot.take_snapshot(ring / "g.main", tmp_path)


def test_a_missing_tag_table_is_named(store, ring):
    for path in (ring / "g.main" / "objects").iterdir():
        path.unlink()
    with pytest.raises(CorruptError, match="objects/"):
        run_query(ring, "SELECT 1")


def test_texts_from_a_plant_cannot_become_sql(tmp_path):
    table = TagTable("g", "g.main", "s", "UTC", ("p",), (Tag(16, "a", "x'); DROP VIEW readings; --", "p", states=((1, "it's"),)),))
    Store(tmp_path / "it's a ring" / "g.main", table=table).add(some(0, 2)).seal()
    assert rows(tmp_path / "it's a ring", "SELECT count(*) FROM readings") == [[2]]
    assert rows(tmp_path / "it's a ring", "SELECT path, states FROM tags") == [["x'); DROP VIEW readings; --", json.dumps({"1": "it's"})]]


@pytest.mark.parametrize("end", [";", " ; -- é; x", "; /* ; */ ;", " -- no semicolon", ""])
def test_what_stands_behind_a_statement_goes_into_no_file(ring, tmp_path, end):
    assert query.write_query(ring, "SELECT 'é;' AS x" + end, tmp_path / "x.csv") == (1, ())
    assert (tmp_path / "x.csv").read_text() == "x\né;\n"
