"""Landing -> lake and PostgreSQL: each reading once, whatever is done twice; bad rows apart; a conflict found."""

from __future__ import annotations

import time

import duckdb
import pandas
import psycopg
import pyarrow.dataset
import pytest

from buffer.types import make_columns
from gateway import runtime as world
from gateway import settings as s
from gateway.deliver import service as deliver
from gateway.deliver.cursor import Cursor
from gateway.deliver.parquet import LakeSink, count_rows, identities
from gateway.deliver.postgres import PostgresSink
from gateway.deliver.service import Feed
from gateway.receive import service as receive
from gateway.upload import service as upload
from tests.integration.test_upload_receive import free_port, landed, put, running, seal_all, until
from tests.support.peers import postgres
from tests.support.site import Site, instant


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, free_port())


@pytest.fixture(scope="module")
def dsn():
    with postgres() as text:
        yield text


async def filled(site: Site, n: int = 60) -> None:
    """Land n readings, some live, some as a segment."""
    ring = site.ring()
    put(ring, 0, n // 2)
    seal_all(ring, site.root / "ring" / site.stream)
    async with running(receive.run(world.real(), site.site()), upload.run(world.real(), site.gateway())):
        put(ring, n // 2, n - n // 2)
        await until(lambda: landed(site) == list(range(n)))


def drain(feed: Feed, sink) -> Cursor:
    while (work := feed.next(sink.cursor(feed.stream), sink)) is not None:
        sink.write(work)
    return sink.cursor(feed.stream)


async def test_the_lake_holds_each_reading_once_and_duckdb_reads_it(site):
    await filled(site)
    async with running(deliver.run(world.real(), site.site())):
        await until(lambda: count_rows(site.root / "lake") == 60)
    found = list(identities(site.root / "lake"))
    assert len(set(found)) == len(found) == 60
    rows = duckdb.connect().execute(
        f"SELECT tag, count(*), min(value_int), max(value_int) FROM read_parquet('{site.root}/lake/**/*.parquet', hive_partitioning = true)"
        " WHERE site = 'acme_ghent' AND date >= DATE '2001-01-01' GROUP BY tag ORDER BY tag"
    ).fetchall()
    assert rows == [("a", 30, 0, 58), ("b", 30, 1, 59)]


async def test_pyarrow_and_pandas_read_the_lake_in_microseconds(site):
    await filled(site)
    drain(Feed(site.site(), site.stream), LakeSink(site.root / "lake", site.root))
    table = pyarrow.dataset.dataset(site.root / "lake", partitioning="hive").to_table()
    assert table.num_rows == 60
    assert {"site", "date"} <= set(table.column_names)
    assert str(table.schema.field("ts").type) == "timestamp[us, tz=UTC]"
    frame = pandas.read_parquet(site.root / "lake")
    assert sorted(frame["value_int"]) == list(range(60))
    assert str(frame["ts"].dt.tz) == "UTC"
    assert set(frame["site"]) == {"acme_ghent"}


async def test_a_crash_between_files_and_cursor_doubles_nothing(site, monkeypatch):
    await filled(site)
    feed, sink = Feed(site.site(), site.stream), LakeSink(site.root / "lake", site.root)
    real, calls = LakeSink._write_state, []

    def crash_at_the_second(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt  # files are written, the cursor is not
        real(self, *arguments)

    monkeypatch.setattr(LakeSink, "_write_state", crash_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        drain(feed, sink)
    assert count_rows(site.root / "lake") > 0
    monkeypatch.setattr(LakeSink, "_write_state", real)
    drain(Feed(site.site(), site.stream), LakeSink(site.root / "lake", site.root))
    found = list(identities(site.root / "lake"))
    assert len(set(found)) == len(found) == 60


@pytest.mark.peers
async def test_postgres_rows_and_cursor_share_a_transaction(site, dsn, tmp_path):
    await filled(site)
    (tmp_path / "dsn").write_text(dsn)
    sink = PostgresSink(s.SinkSettings("historian", "postgres", tmp_path / "dsn"), time.time_ns)
    feed = Feed(site.site(), site.stream)
    work = feed.next(sink.cursor(site.stream), sink)
    real = PostgresSink._describe

    def dies(self, *arguments):
        raise psycopg.OperationalError("the connection went away")

    PostgresSink._describe = dies  # after COPY, before commit
    try:
        with pytest.raises(Exception, match="went away"):
            sink.write(work)
    finally:
        PostgresSink._describe = real
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM ebbgate.readings").fetchone() == (0,)
    drain(feed, sink)
    drain(Feed(site.site(), site.stream), sink)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT (stream, generation, seq)) FROM ebbgate.readings").fetchone() == (60, 60)
        assert connection.execute("SELECT count(*) FROM ebbgate.last").fetchone() == (2,)
        connection.execute("DROP SCHEMA ebbgate CASCADE")


@pytest.mark.peers
async def test_rows_a_database_cannot_take_are_kept_apart_and_a_conflict_is_found(site, dsn, tmp_path):
    ring = site.ring()
    stamps = [10**18, time.time_ns() + 3600 * 10**9, 10**18 + 1, 10**18 + 2]
    ring.append(make_columns([16, 16, 17, 17], stamps, [1, 1, 3, 1], [1, 2, 0, 4], [0] * 4, texts=("nul \0 in it",)))
    ring.commit(instant())
    async with running(receive.run(world.real(), site.site()), upload.run(world.real(), site.gateway())):
        await until(lambda: (site.root / "landing" / site.stream / "durable").exists())
        await until(lambda: len(landed(site)) == 4)
    (tmp_path / "dsn").write_text(dsn)
    sink = PostgresSink(s.SinkSettings("historian", "postgres", tmp_path / "dsn"), time.time_ns)
    sink.cursor(site.stream)  # makes the schema
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "INSERT INTO ebbgate.readings (stream, generation, seq, tag, path, ts, ts_ns, value_int, quality, flags)"
            " VALUES (%s, %s, 0, 'somebody else', '', now(), 0, 99, 0, 0)",
            (site.stream, ring.generation),
        )
    cursor = drain(Feed(site.site(), site.stream), sink)
    assert cursor.rows == 4
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM ebbgate.quarantine").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM ebbgate.conflicts").fetchone() == (1,)
        connection.execute("DROP SCHEMA ebbgate CASCADE")
