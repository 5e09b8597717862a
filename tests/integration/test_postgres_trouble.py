"""A database in trouble, and text no database takes: this sink waits with one clear message, the lake goes on, nothing is lost or doubled."""

from __future__ import annotations

import re
import time
from pathlib import Path

import psycopg
import pytest

from buffer.manifest import FrameKind
from buffer.storage import PosixReadStorage
from buffer.types import make_columns
from gateway import runtime as world
from gateway import settings as s
from gateway.deliver import postgres as module
from gateway.deliver import service as deliver
from gateway.deliver.parquet import count_rows
from gateway.deliver.postgres import PostgresSink
from gateway.deliver.service import Feed
from gateway.deliver.sink import SinkError
from gateway.landing import LandingReader
from gateway.receive import service as receive
from gateway.upload import service as upload
from gateway.wire.request import Lane
from tests.integration.test_deliver import drain, filled
from tests.integration.test_restores import Whole
from tests.integration.test_upload_receive import landed, running, until
from tests.support.peers import postgres
from tests.support.site import instant

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def dsn():
    with postgres() as text:
        yield text


@pytest.fixture
def site(tmp_path, dsn):
    return Whole(tmp_path, dsn)


def sink_of(site: Whole, dsn: str = "", **more) -> PostgresSink:
    (site.root / "dsn").write_text(dsn or site.dsn)
    return PostgresSink(s.SinkSettings("historian", "postgres", site.root / "dsn", **more), time.time_ns)


def rows(site: Whole, query: str = "SELECT count(*) FROM ebbgate.readings"):
    with psycopg.connect(site.dsn, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def run(site: Whole, *statements: str) -> None:
    with psycopg.connect(site.dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


async def test_a_database_that_is_away_read_only_or_cut_off_never_stops_the_lake(site):
    await filled(site)
    (site.root / "dsn").write_text("host=127.0.0.1 port=1 user=nobody dbname=x connect_timeout=2")
    async with running(deliver.run(world.real(), site.site())):
        await until(lambda: count_rows(site.root / "lake") == 60)
        await until((site.root / "deliver/status.json").exists)
        await until(lambda: "refused" in (site.root / "deliver/status.json").read_text())
        (site.root / "dsn").write_text(site.dsn)
        await until(lambda: site.in_postgres() == list(range(60)), 90)


def test_read_only_terminated_and_dropped_are_one_line_each_and_heal(site):
    sink = sink_of(site)
    sink.cursor("a.main")
    run(site, "ALTER DATABASE postgres SET default_transaction_read_only = on")
    try:
        sink._drop()
        with pytest.raises(SinkError, match="read-only"):
            sink.cursor("a.main")
    finally:
        with psycopg.connect(site.dsn, autocommit=True, options="-c default_transaction_read_only=off") as connection:
            connection.execute("ALTER DATABASE postgres RESET default_transaction_read_only")
    sink.cursor("a.main")
    run(site, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ebbgate'")
    with pytest.raises(SinkError, match="terminat|closed"):
        sink.cursor("a.main")
    sink.cursor("a.main")
    run(site, "DROP SCHEMA ebbgate CASCADE")
    with pytest.raises(SinkError, match="does not exist"):
        sink.cursor("a.main")
    sink.cursor("a.main")  # made again; its cursor went with it, so everything is delivered again


async def test_a_schema_of_somebody_else_is_filled_and_one_that_is_closed_is_named(site):
    await filled(site)
    run(site, "DROP ROLE IF EXISTS writer", "CREATE ROLE writer LOGIN")
    as_writer = site.dsn.replace("user=postgres", "user=writer")
    with pytest.raises(SinkError, match="permission denied for database"):
        sink_of(site, as_writer).cursor(site.stream)
    sink_of(site).cursor("other.main")
    run(site, "GRANT USAGE ON SCHEMA ebbgate TO writer", "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA ebbgate TO writer")
    assert drain(Feed(site.site(), site.stream), sink_of(site, as_writer)).rows == 60
    assert site.in_postgres() == list(range(60))
    run(site, "DROP SCHEMA ebbgate CASCADE", "DROP ROLE writer")


async def test_a_table_partitioned_by_time_as_timescale_wants_it(site):
    await filled(site)
    columns = next(x for x in module._SCHEMA if "TABLE IF NOT EXISTS ebbgate.readings" in x)
    run(
        site, "CREATE SCHEMA ebbgate", columns + " PARTITION BY RANGE (ts)",
        "CREATE TABLE ebbgate.readings_all PARTITION OF ebbgate.readings FOR VALUES FROM ('2001-01-01') TO ('2100-01-01')",
    )  # fmt: skip
    sink = sink_of(site)
    feed = Feed(site.site(), site.stream)
    work = feed.next(sink.cursor(site.stream), sink)
    sink.write(work)
    run(site, "DELETE FROM ebbgate.cursors")  # the same rows once more: a unique violation, equal rows left alone
    drain(Feed(site.site(), site.stream), sink)
    assert site.in_postgres() == list(range(60))
    assert rows(site, "SELECT count(*) FROM ebbgate.conflicts") == [(0,)]


async def test_hostile_text_goes_to_quarantine_or_is_made_storable_and_the_sql_of_the_docs_brings_it_back(site):
    ring = site.ring()
    later = time.time_ns() + 3600 * 10**9
    texts = ("nul \0 in it", "half \ud800 of a pair", "'); DROP TABLE readings; --", "\x1b[2J", "")
    ring.append(make_columns([16] * 6, [*range(10**18, 10**18 + 5), later], [3] * 5 + [1], [*range(5), 42], [0] * 6, texts=texts))
    ring.commit(instant())
    async with running(receive.run(world.real(), site.site()), upload.run(world.real(), site.gateway())):
        await until(lambda: (site.root / "landing" / site.stream / "durable").exists())
        await until(lambda: len(landed(site)) == 6)
    assert drain(Feed(site.site(), site.stream), sink_of(site)).rows == 6
    reasons = dict(rows(site, "SELECT reason, count(*) FROM ebbgate.quarantine GROUP BY reason"))
    assert reasons["later than the allowed future"] == 1
    assert sum(reasons.values()) + rows(site)[0][0] == 6
    assert ("'); DROP TABLE readings; --",) in rows(site, "SELECT value_string FROM ebbgate.readings")
    assert (0,) not in rows(site, "SELECT count(*) FROM ebbgate.tags")
    rows(site, "SELECT * FROM ebbgate.notices")  # whatever stands in a text, the views answer
    blocks = re.findall(r"```sql\n(WITH taken.*?)```", (Path(__file__).parents[2] / "docs/sinks.md").read_text(), re.DOTALL)
    run(site, blocks[0])
    assert rows(site, "SELECT value_int FROM ebbgate.readings WHERE ts > now()") == [(42,)]
    assert "later than the allowed future" not in dict(rows(site, "SELECT reason, count(*) FROM ebbgate.quarantine GROUP BY reason"))


async def test_tags_are_chosen_by_path_and_notices_always_come(site):
    ring = site.ring()
    ring.append(make_columns([16, 17, 1], [10**18, 10**18 + 1, 10**18 + 2], [1, 1, 3], [1, 2, 0], [0] * 3, texts=('{"source": "p"}',)))
    ring.commit(instant())
    async with running(receive.run(world.real(), site.site()), upload.run(world.real(), site.gateway())):
        await until(lambda: (site.root / "landing" / site.stream / "durable").exists())
        await until(lambda: len(landed(site)) == 3)
    drain(Feed(site.site(), site.stream), sink_of(site, tags=("x/a", "press/**")))
    assert rows(site, "SELECT path FROM ebbgate.readings ORDER BY path") == [("_ebbgate/source_down",), ("x/a",)]


async def test_a_frame_that_rotted_costs_its_readings_and_no_others_and_comes_when_restored(site):
    await filled(site)
    reader = LandingReader(PosixReadStorage(site.root / "landing" / site.stream))
    reader.refresh()
    one = next(r for lane in Lane for r in reader.records(lane, 0, 1000) if r.new and r.kind is not FrameKind.SEGMENT)
    live = site.root / "landing" / site.stream / one.file
    good = live.read_bytes()
    at = one.offset + one.length - 40  # in the payload of a frame that brought readings
    live.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    async with running(deliver.run(world.real(), site.site())):
        await until((site.root / "deliver/status.json").exists)
        await until(lambda: "does not read" in (site.root / "deliver/status.json").read_text(), 60)
        await until(lambda: 0 < count_rows(site.root / "lake") < 60 and 0 < len(site.in_postgres()) < 60)
        status = (site.root / "deliver/status.json").read_text()
        assert live.name in status
        assert '"unread": 1' in status
    live.write_bytes(good)
    async with running(deliver.run(world.real(), site.site())):
        await until(lambda: site.in_lake() == list(range(60)) and site.in_postgres() == list(range(60)), 60)
        await until(lambda: '"unread": 1' not in (site.root / "deliver/status.json").read_text())
