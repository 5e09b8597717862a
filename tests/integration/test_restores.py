"""The four restores, to the end of the path: nothing lost, nothing doubled in the lake and in PostgreSQL, and somebody is told."""

from __future__ import annotations

import contextlib
import json
import shutil

import psycopg
import pytest

from buffer.storage import PosixReadStorage
from gateway import runtime as world
from gateway import settings as s
from gateway.completeness import account
from gateway.console.facts import Facts
from gateway.console.pages.gateways import one_gateway
from gateway.console.views import views
from gateway.deliver import service as deliver
from gateway.deliver.parquet import identities
from gateway.landing import LandingReader
from gateway.receive import service as receive
from gateway.upload import service as upload
from tests.integration.test_upload_receive import free_port, landed, put, running, seal_all, until
from tests.support.peers import postgres
from tests.support.site import Site
from tests.unit.test_ring import crash

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def dsn():
    with postgres() as text:
        yield text


class Whole(Site):
    """A site with both targets."""

    def __init__(self, root, dsn: str) -> None:
        super().__init__(root, free_port())
        self.dsn = dsn
        (root / "dsn").write_text(dsn)
        with psycopg.connect(dsn) as connection:
            connection.execute("DROP SCHEMA IF EXISTS ebbgate CASCADE")

    def site(self) -> s.SiteSettings:
        import dataclasses

        return dataclasses.replace(super().site(), sinks=(s.SinkSettings("historian", "postgres", self.root / "dsn"),))

    @contextlib.asynccontextmanager
    async def all_running(self):
        runtime = world.real()
        async with running(receive.run(runtime, self.site()), upload.run(runtime, self.gateway()), deliver.run(runtime, self.site())):
            yield

    def in_lake(self) -> list[int]:
        """Values of the lake, each once or the test fails."""
        import duckdb

        found = list(identities(self.root / "lake"))
        assert len(set(found)) == len(found), "doubled in the lake"
        query = f"SELECT value_int FROM read_parquet('{self.root}/lake/**/*.parquet') WHERE tag NOT LIKE '\\_%' ESCAPE '\\'"
        return sorted(row[0] for row in duckdb.connect().execute(query).fetchall()) if found else []

    def in_postgres(self) -> list[int]:
        with psycopg.connect(self.dsn) as connection:
            if connection.execute("SELECT to_regclass('ebbgate.readings')").fetchone() == (None,):
                return []
            rows = connection.execute("SELECT value_int, stream, generation, seq FROM ebbgate.readings").fetchall()
        assert len({row[1:] for row in rows}) == len(rows), "doubled in PostgreSQL"
        return sorted(row[0] for row in rows)

    async def everywhere(self, values: list[int], seconds: float = 60) -> None:
        """Wait until both targets hold exactly these."""
        with contextlib.suppress(TimeoutError):
            await until(lambda: sorted(landed(self)) == values and self.in_lake() == values and self.in_postgres() == values, seconds)
        assert sorted(landed(self)) == values
        assert self.in_lake() == values
        assert self.in_postgres() == values

    def account(self):
        reader = LandingReader(PosixReadStorage(self.root / "landing" / self.stream))
        reader.refresh()
        return account(self.stream, reader.state)

    def shown(self) -> str:
        """What the console's page of this gateway says."""
        facts = Facts(self.site())
        facts.refresh()
        return one_gateway(views(facts)[0], world.real().wall_ns())


@pytest.fixture
def site(tmp_path, dsn):
    return Whole(tmp_path, dsn)


async def test_a_replaced_disk(site):
    ring = site.ring()
    async with site.all_running():
        put(ring, 0, 20)
        await site.everywhere(list(range(20)))
    crash(ring)
    shutil.rmtree(site.root / "ring")
    again = site.ring(nonce=99)
    async with site.all_running():
        put(again, 100, 5)
        await site.everywhere([*range(20), *range(100, 105)])
    assert "the ring was replaced" in site.account().findings[0]
    assert "the ring was replaced" in site.shown()


async def test_a_restored_snapshot_of_the_ring(site):
    ring = site.ring()
    async with site.all_running():
        put(ring, 0, 20)
        await site.everywhere(list(range(20)))
        shutil.copytree(site.root / "ring", site.root / "snapshot")
        put(ring, 20, 20)
        await site.everywhere(list(range(40)))
    put(ring, 40, 7)  # reported to nobody: these go with the old state
    crash(ring)
    shutil.rmtree(site.root / "ring")
    shutil.move(site.root / "snapshot", site.root / "ring")
    again = site.ring(nonce=99)
    async with site.all_running():
        put(again, 100, 5)
        await site.everywhere([*range(40), *range(100, 105)])
        await until(lambda: any("branch" in x for x in json.loads((site.root / "landing/status.json").read_text())["streams"][site.stream]["alarms"]))
        assert "branch" in site.shown()
    assert "restored from an earlier state" in site.account().findings[0]
    assert site.account().final == 0


async def test_a_wiped_state_of_the_uploader(site, monkeypatch):
    monkeypatch.setattr(upload, "ADVISORY_TICKS", 2)
    ring = site.ring()
    async with site.all_running():
        put(ring, 0, 30)
        await site.everywhere(list(range(30)))
    put(ring, 30, 10)
    seal_all(ring, site.root / "ring" / site.stream)
    shutil.rmtree(site.root / "state" / "upload")
    async with site.all_running():
        put(ring, 40, 5)
        await site.everywhere(list(range(45)))
        shown = site.root / "state" / "upload" / "status.json"
        await until(lambda: "upload began without its state" in shown.read_text())
        await until(lambda: "upload began without its state" in site.shown())
    assert site.account().missing == ()


@pytest.mark.parametrize("with_deliver", [False, True], ids=["landing alone", "landing and deliver"])
async def test_a_receiver_restored_from_yesterdays_copy(site, with_deliver):
    ring = site.ring()
    async with site.all_running():
        put(ring, 0, 20)
        await site.everywhere(list(range(20)))
    restored = ["landing", "deliver"] if with_deliver else ["landing"]
    for name in restored:
        shutil.copytree(site.root / name, site.root / f"{name}-yesterday")
    async with site.all_running():
        put(ring, 20, 20)
        await site.everywhere(list(range(40)))
    for name in restored:
        shutil.rmtree(site.root / name)
        shutil.move(site.root / f"{name}-yesterday", site.root / name)
    async with site.all_running():
        put(ring, 40, 3)
        await site.everywhere(list(range(43)))
        status = site.root / "landing" / "status.json"
        await until(lambda: "restored: a sender knows opening" in status.read_text())
        assert "restored: a sender knows opening" in site.shown()
    assert site.account().missing == ()


async def test_a_lost_state_of_deliver_doubles_nothing(site):
    ring = site.ring()
    async with site.all_running():
        put(ring, 0, 20)
        await site.everywhere(list(range(20)))
    shutil.rmtree(site.root / "deliver")
    async with site.all_running():
        put(ring, 20, 5)
        await site.everywhere(list(range(25)))
