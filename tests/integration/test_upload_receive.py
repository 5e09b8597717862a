"""Ring -> uploader -> real mutual TLS -> receiver -> landing: everything once, through outages, lost state and restores."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
import socket

import pyarrow.parquet as pq
import pytest

from buffer.codec import decode
from buffer.manifest import FrameKind
from buffer.ring import with_root
from buffer.segment import seal
from buffer.storage import PosixReadStorage
from buffer.types import make_columns
from gateway import runtime as world
from gateway.landing import LandingReader
from gateway.receive import service as receive
from gateway.upload import service as upload
from gateway.wire.request import Lane
from tests.support.site import Site, instant
from tests.unit.test_ring import crash


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, free_port())


def put(ring, first: int, n: int) -> None:
    tags = [16 + i % 2 for i in range(n)]
    ring.append(make_columns(tags, [10**18 + first + i for i in range(n)], [1] * n, list(range(first, first + n)), [0] * n))
    ring.commit(instant())


def seal_all(ring, root) -> None:
    ring._roll = True
    ring.commit(instant())
    while (request := ring.sealable()) is not None:
        ring.adopt(request, seal(with_root(request, str(root))), instant())


@contextlib.asynccontextmanager
async def running(*services):
    tasks = [asyncio.create_task(service) for service in services]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def landed(site: Site) -> list[int]:
    """The values of every reading in `new`, by index, in order of (generation, seq)."""
    reader = LandingReader(PosixReadStorage(site.root / "landing" / site.stream))
    reader.refresh()
    out = {}
    for record in [r for lane in Lane for r in reader.records(lane, 0, 10**6)]:
        wanted = {seq for a, b in record.new for seq in range(a, b + 1)}
        if not wanted:
            continue
        frame = reader.frame(record)
        m = frame.manifest
        if m.kind == FrameKind.SEGMENT:
            table = pq.read_table(io.BytesIO(bytes(frame.payload)))
            pairs = zip(table["seq"].to_pylist(), table["value_int"].to_pylist(), strict=True)
        else:
            pairs = ((m.first_seq + i, int(v)) for i, v in enumerate(decode(frame.payload, m.count).values))
        for seq, value in pairs:
            if seq in wanted:
                assert (m.generation, seq) not in out, "landed twice"
                out[(m.generation, seq)] = value
    return [out[key] for key in sorted(out)]


async def until(condition, seconds: float = 20.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.1)


async def test_live_and_sealed_readings_land_once(site):
    ring = site.ring()
    put(ring, 0, 50)
    seal_all(ring, site.root / "ring" / site.stream)
    put(ring, 50, 10)
    async with running(receive.run(world.real(), site.site()), upload.run(world.real(), site.gateway())) as tasks:
        await until(lambda: landed(site) == list(range(60)) or any(t.done() for t in tasks))
        assert not any(t.done() for t in tasks), [t.exception() for t in tasks if t.done()]
        put(ring, 60, 5)
        await until(lambda: landed(site) == list(range(65)))
    assert landed(site) == list(range(65))


async def test_an_outage_and_a_lost_uploader_state_double_nothing(site):
    ring = site.ring()
    gateway, runtime = site.gateway(), world.real()
    async with running(receive.run(runtime, site.site()), upload.run(runtime, gateway)):
        put(ring, 0, 20)
        await until(lambda: landed(site) == list(range(20)))
    put(ring, 20, 20)  # both are down
    seal_all(ring, site.root / "ring" / site.stream)
    put(ring, 40, 5)
    (gateway.state / "upload" / "state.db").unlink()
    async with running(receive.run(runtime, site.site()), upload.run(runtime, gateway)):
        await until(lambda: landed(site) == list(range(45)))


async def test_a_receiver_restored_from_yesterdays_copy_gets_everything_again(site):
    ring = site.ring()
    gateway, runtime = site.gateway(), world.real()
    async with running(receive.run(runtime, site.site()), upload.run(runtime, gateway)):
        put(ring, 0, 20)
        await until(lambda: landed(site) == list(range(20)))
    shutil.copytree(site.root / "landing", site.root / "yesterday")
    async with running(receive.run(runtime, site.site()), upload.run(runtime, gateway)):
        put(ring, 20, 20)
        await until(lambda: landed(site) == list(range(40)))
    shutil.rmtree(site.root / "landing")
    shutil.copytree(site.root / "yesterday", site.root / "landing")
    async with running(receive.run(runtime, site.site()), upload.run(runtime, gateway)):
        put(ring, 40, 1)
        await until(lambda: landed(site) == list(range(41)), 30)


async def test_a_new_disk_is_a_new_generation_and_lands_beside_the_old_one(site):
    ring = site.ring()
    gateway, runtime = site.gateway(), world.real()
    async with running(receive.run(runtime, site.site()), upload.run(runtime, gateway)):
        put(ring, 0, 10)
        await until(lambda: landed(site) == list(range(10)))
    crash(ring)
    shutil.rmtree(site.root / "ring")
    again = site.ring(nonce=99)
    async with running(receive.run(runtime, site.site()), upload.run(runtime, gateway)):
        put(again, 100, 5)
        await until(lambda: sorted(landed(site)) == [*range(10), *range(100, 105)])
