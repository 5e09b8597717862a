"""The backlog after an outage: sealed segments verbatim over mutual TLS 1.3, real uploader to real receiver on loopback, until all is receipted.

120 segments of a million readings (one real Parquet payload under 120 signed manifests: nobody on this way decodes it). A round is an uploader
that has sent nothing of it and an empty landing: objects, upload, verification, writing, syncing, signed receipts, cursor. Peers: the
same bytes by aiohttp's client to an aiohttp server over the same mutual TLS 1.3, four at a time, which writes and syncs each body before it
answers ("syncs"), or forgets it ("discards"). Servers are processes of their own. CPU: both ends together.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import shutil
from typing import TYPE_CHECKING, Final

import aiohttp
import numpy as np
from aiohttp.abc import AbstractResolver

from benchmarks.fabricate import Fabric
from benchmarks.harness import Report, Sample, interleave, main, median, ratio, stopwatch
from benchmarks.ingest import fresh
from benchmarks.rings import STREAM, open_ring, tag_table
from benchmarks.site import NAME, Server, Site
from benchmarks.workload import Workload
from buffer.rows import make_rows
from buffer.segment import arrow_table, parquet_bytes
from buffer.storage import PosixReadStorage
from gateway.trust.certs import client_context

if TYPE_CHECKING:
    from pathlib import Path

READINGS: Final = 1_000_000  # a segment
SEGMENTS: Final = 120  # of some seconds: handshakes and the first, small requests are in it, and are not all of it
IN_FLIGHT: Final = 4  # gateway.settings.Backfill
GOALS: Final = {"sync": "ratio >= 0.7", "discard": "ratio >= 0.45"}
WAIT_S: Final = 120.0


def payload(readings: int) -> bytes:
    """Return a real segment's Parquet."""
    columns = Workload().scans(readings // 1_000)
    return parquet_bytes(arrow_table(make_rows(columns, np.arange(readings), tag_table(), by_tag=True), 1), {})


def build(report: Report) -> tuple[Site, list[bytes]]:
    """Make keys and a full ring; return the frames as they travel too."""
    options = report.options
    site = Site(fresh(options))
    readings = options.size(READINGS, 20_000)
    data = payload(readings)
    root = site.root / "ring" / STREAM
    root.mkdir(parents=True)
    fabric = Fabric(root, site.data, readings)
    bodies: list[bytes] = []
    for _ in range(options.size(SEGMENTS, 3)):
        name = fabric.add(data, hashlib.sha256(data).digest())
        bodies.append((root / name.cose).read_bytes() + data)
    open_ring(root, signer=site.data, statement=site.statement).close()
    return site, bodies


async def _drained(site: Site, server: Server, state: Path, segments: int) -> None:
    uploader, carrier, store = site.uploader(server.port, state, PosixReadStorage(site.root / "ring" / STREAM))
    machine = uploader.machine
    machine.memory.fresh = False  # it remembers that nothing of this was sent: an outage, not a lost disk
    task = asyncio.create_task(uploader.run())
    looked = segments - 1
    try:
        async with asyncio.timeout(WAIT_S):
            for turn in itertools.count():
                receipts = machine.counters.receipts
                if receipts > looked or (receipts == looked and turn % 50 == 0):  # the sum over the backlog costs more than a request
                    looked = receipts
                    if machine.plan.backlog(machine.memory.cursor).readings == 0:
                        return
                if task.done():
                    task.result()
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        store.close()
        await carrier.close()


def run_ours(report: Report, site: Site, segments: int, n: int, size: int) -> Sample:
    """One drain."""
    directory = fresh(report.options)
    server = Server("receive", site.root, directory / "landing")
    samples: list[Sample] = []
    try:
        with stopwatch(n, samples, server.cpu_s) as extra:
            asyncio.run(_drained(site, server, directory / "state", segments))
        extra["bytes"] = size
    finally:
        server.close()
        shutil.rmtree(directory)
    return samples[0]


class _Local(AbstractResolver):
    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[dict[str, object]]:  # type: ignore[override]
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": family or 2, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        """Nothing is held."""


async def _put_all(site: Site, port: int, bodies: list[bytes]) -> None:
    pki = site.pki
    connector = aiohttp.TCPConnector(ssl=client_context(pki / "tls.crt", pki / "tls.key", pki / "ca.crt"), resolver=_Local(), limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one(i: int) -> None:
            async with session.put(f"https://{NAME}:{port}/{i}", data=bodies[i]) as response:
                response.raise_for_status()
                await response.read()

        await asyncio.gather(*(one(i) for i in range(len(bodies))))


def run_peer(report: Report, site: Site, kind: str, bodies: list[bytes], n: int) -> Sample:
    """The same bytes to a plain server."""
    directory = fresh(report.options)
    server = Server(kind, site.root, directory)
    samples: list[Sample] = []
    try:
        with stopwatch(n, samples, server.cpu_s):
            asyncio.run(_put_all(site, server.port, bodies))
    finally:
        server.close()
        shutil.rmtree(directory)
    return samples[0]


def run(report: Report) -> None:
    """Measure."""
    site, bodies = build(report)
    n, size = len(bodies) * report.options.size(READINGS, 20_000), sum(map(len, bodies))
    result = interleave(report.options.rounds, {
        "ours": lambda: run_ours(report, site, len(bodies), n, size),
        "sync": lambda: run_peer(report, site, "sync", bodies, n),
        "discard": lambda: run_peer(report, site, "discard", bodies, n),
    })  # fmt: skip
    ours = result["ours"]
    facts = {"megabytes": size / 1e6, "segments": len(bodies), "in_flight": IN_FLIGHT, "mb_per_s": size / 1e6 / median(ours, lambda s: s.wall_s)}
    for kind, goal in GOALS.items():
        report.add(
            f"segments.{kind}", median(ours, lambda s: s.per_s), "readings/s", peer=f"plain aiohttp PUT of the same bytes, server {kind}s",
            peer_value=median(result[kind], lambda s: s.per_s), ratio=ratio(ours, result[kind], lambda s: s.per_s), goal=goal,
            cpu_us=median(ours, lambda s: s.cpu_us), cpu_ratio=ratio(ours, result[kind], lambda s: s.cpu_us), **facts,
        )  # fmt: skip
    report.add("segments.rate", median(ours, lambda s: s.per_s), "readings/s", goal="value >= 1e8", **facts)


if __name__ == "__main__":
    main("drain", run)
